//! Colours on a terminal, unless NO_COLOR is set (<https://no-color.org>).

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

use anstyle::{AnsiColor, Style};

/// Whether standard output is coloured.
static OUT: LazyLock<bool> = LazyLock::new(|| is_coloured(&io::stdout()));

/// Whether standard error is coloured.
static ERR: LazyLock<bool> = LazyLock::new(|| is_coloured(&io::stderr()));

fn is_coloured(stream: &impl IsTerminal) -> bool {
    let is_off = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
    !is_off && !is_dumb && stream.is_terminal()
}

/// The head of a table or a paragraph, on standard output.
pub(super) fn heading(text: impl Display) -> String {
    painted(*OUT, Style::new().bold(), text)
}

/// Something good, on standard output.
pub(super) fn good(text: impl Display) -> String {
    painted(*OUT, AnsiColor::Green.on_default(), text)
}

/// A warning, on standard output.
pub(super) fn warning(text: impl Display) -> String {
    painted(*OUT, AnsiColor::Yellow.on_default().bold(), text)
}

/// Something bad, on standard output.
pub(super) fn bad(text: impl Display) -> String {
    painted(*OUT, AnsiColor::Red.on_default().bold(), text)
}

/// A line on standard error after the program's name, which is red, or yellow for a warning.
pub(super) fn error_line(name: &str, problem: &str) -> String {
    match problem.strip_prefix("warning: ") {
        Some(problem) => {
            let named = format!("{name} warning:");
            format!("{} {problem}", painted(*ERR, AnsiColor::Yellow.on_default().bold(), named))
        }
        None => format!("{} {problem}", painted(*ERR, AnsiColor::Red.on_default().bold(), name)),
    }
}

fn painted(is_wanted: bool, style: Style, text: impl Display) -> String {
    if is_wanted { format!("{style}{text}{style:#}") } else { text.to_string() }
}
