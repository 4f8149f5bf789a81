//! Long tables on a terminal: one screen after the other, by the operator's pager.

use std::env;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;
use terminal_size::{Height, Width, terminal_size_of};

use super::print;

/// What a shell ends with that doesn't find the command.
const NOT_FOUND: i32 = 127;

/// How many columns the terminal has that standard output is; nothing where it is none.
pub(super) fn columns() -> Option<usize> {
    let (Width(columns), _) = terminal_size_of(io::stdout())?;
    Some(usize::from(columns))
}

/// Prints lines; where standard output is a terminal that has fewer, by way of PAGER, or `less`.
pub(super) fn page(text: &str) -> Result<()> {
    let rows = terminal_size_of(io::stdout()).map(|(_, Height(rows))| usize::from(rows));
    let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    let pager = env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    let is_long = rows.is_some_and(|rows| text.lines().count() >= rows);
    if !is_long || is_dumb || !io::stdin().is_terminal() || ["", "cat"].contains(&pager.trim()) {
        return print(text);
    }
    // Ctrl-C is the pager's, which uses the terminal until it ends.
    signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false)))
        .context("no signal can be caught")?;
    let mut command = Command::new("sh");
    command.args(["-c", &pager]).stdin(Stdio::piped());
    if env::var_os("LESS").is_none() {
        // What is on the screen stays there; colours are colours.
        command.env("LESS", "FRX");
    }
    let Ok(mut child) = command.spawn() else { return print(text) };
    if let Some(mut stdin) = child.stdin.take() {
        match writeln!(stdin, "{text}") {
            // It was left before the end.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let ended = child.wait().context("the pager")?;
    if ended.code() == Some(NOT_FOUND) { print(text) } else { Ok(()) }
}
