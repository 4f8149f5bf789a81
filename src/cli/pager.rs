//! Shows long tables on a terminal through the operator's pager.

use std::env;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;
use terminal_size::{Height, Width, terminal_size_of};

use super::print;

/// The exit code of a shell that doesn't find the command.
const NOT_FOUND: i32 = 127;

/// The number of columns of the terminal on standard output; `None` if it isn't a terminal.
pub(super) fn columns() -> Option<usize> {
    let (Width(columns), _) = terminal_size_of(io::stdout())?;
    Some(usize::from(columns))
}

/// Prints lines. If standard output is a terminal with fewer rows, uses PAGER, or `less`.
pub(super) fn page(text: &str) -> Result<()> {
    let rows = terminal_size_of(io::stdout()).map(|(_, Height(rows))| usize::from(rows));
    let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    let pager = env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    let is_long = rows.is_some_and(|rows| text.lines().count() >= rows);
    if !is_long || is_dumb || !io::stdin().is_terminal() || ["", "cat"].contains(&pager.trim()) {
        return print(text);
    }
    // Ctrl-C is for the pager, which uses the terminal until it ends.
    signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false)))
        .context("cannot handle SIGINT")?;
    let mut command = Command::new("sh");
    command.args(["-c", &pager]).stdin(Stdio::piped());
    if env::var_os("LESS").is_none() {
        // Keep the text on the screen, and show colours.
        command.env("LESS", "FRX");
    }
    let Ok(mut child) = command.spawn() else { return print(text) };
    if let Some(mut stdin) = child.stdin.take() {
        match writeln!(stdin, "{text}") {
            // The user quit before the end.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let ended = child.wait().context("the pager")?;
    if ended.code() == Some(NOT_FOUND) { print(text) } else { Ok(()) }
}
