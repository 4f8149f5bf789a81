//! The commands: arguments in, tables or JSON out, exit codes 0 (done), 1 (failed), 2 (usage).

mod arguments;
mod check;
mod dead_letters;
mod help;
mod ids;
mod listen;
mod logger;
mod manual;
mod migrate;
mod pager;
mod paint;
mod publish;
mod queues;
mod tail;
mod webhooks;
mod why;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;

use self::arguments::{Cli, Command, Common, Output, account};
use self::logger::logger;
use crate::app;
use crate::config::{Config, ConfigError, Settings};
use crate::domain::shown;
use crate::store::Store;

/// The program's.
const NAME: &str = "webhook-notifier";

/// The most threads that a command needs, those of its connections included.
const THREADS: usize = 10;

/// How long a line of the log or of standard error may be, in characters. Ours have some hundred; what
/// they quote is other programs' affair.
const MOST_OF_LINE: usize = 8_192;

/// A command that makes no sense as it was given; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Reads the arguments, runs the command, and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let logged = matches!(command, Command::Run(_));
    match dispatch(command) {
        Ok(code) => code,
        Err(error) if error.is::<ConfigError>() || error.is::<Usage>() => {
            complain(&format!("{error}"));
            ExitCode::from(2)
        }
        // `webhooks list | head` is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            if logged {
                log::error!("{error:#}");
            } else {
                complain(&format!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    if !matches!(command, Command::Run(_)) {
        crate::threads::check(THREADS)
            .context("raise the limit (`ulimit -u`) or leave more memory")?;
    }
    match command {
        Command::Run(settings) => {
            let config = settings.read()?;
            logger(&config.rust_log).init();
            for warning in settings.warnings() {
                log::warn!("{warning}");
            }
            app::check_threads(&config)?;
            let store = Store::new(&config)?;
            app::run(config, store)?;
        }
        Command::Migrate(settings) => migrate::run(settings)?,
        Command::Check { settings, output } => return check::run(&read(&settings.0)?, output.json),
        Command::Webhooks(command) => return webhooks::run(command),
        Command::DeadLetters(command) => dead_letters::run(command)?,
        Command::Queues(command) => queues::run(command)?,
        Command::Why(command) => return why::run(command),
        Command::Tail(command) => tail::run(command)?,
        Command::Publish(command) => publish::run(command)?,
        Command::Listen(options) => listen::run(options)?,
        Command::Completions { shell } => manual::completions(shell)?,
        Command::Man(options) => manual::man(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the settings of a command and starts the logger that they describe.
fn read(settings: &Settings) -> Result<Config, ConfigError> {
    let config = settings.read()?;
    logger(&config.rust_log).init();
    for warning in settings.warnings() {
        complain(&format!("warning: {warning}"));
    }
    Ok(config)
}

/// A line on standard output. Unlike `println!`, a closed pipe is an error and not a panic.
fn print(line: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(shown::json(&serde_json::to_string_pretty(value)?))
}

/// A line on standard error.
fn complain(problem: &str) {
    let problem = shown::line(problem, MOST_OF_LINE);
    let _ = writeln!(io::stderr(), "{}", paint::complaint("webhook-notifier:", &problem));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// The words of a line for a shell, without its comment; quotes are single ones.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (at, piece) in line.split('\'').enumerate() {
            if at % 2 == 1 {
                words.push(piece.to_owned());
                continue;
            }
            for word in piece.split_whitespace() {
                if word == "#" {
                    return words;
                }
                words.push(word.to_owned());
            }
        }
        words
    }

    /// What follows the program's name, wherever the README has a command to type.
    fn commands_of_the_readme() -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        // Every second piece lies between the marks.
        for (at, piece) in include_str!("../README.md").split("```").enumerate() {
            let inline = || piece.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " "));
            let lines: Vec<String> = match at % 2 {
                0 => inline().collect(),
                _ => piece.lines().map(str::to_owned).collect(),
            };
            for line in lines {
                let line = words(&line);
                let named = line.iter().position(|word| word.ends_with("webhook-notifier"));
                let Some(name) = named else { continue };
                // Before it: a prompt, `sudo`, variables.
                let is_typed = |word: &String| word == "$" || word == "sudo" || word.contains('=');
                if name + 1 < line.len() && line[..name].iter().all(is_typed) {
                    let rest = line[name..]
                        .iter()
                        .take_while(|word| !["<<<", "||", "|", ">"].contains(&word.as_str()));
                    commands.push(rest.cloned().collect());
                }
            }
        }
        commands
    }

    #[test]
    fn each_command_in_the_readme_is_one() {
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
        let commands = commands_of_the_readme();
        assert!(commands.len() > 25, "only {commands:?}");
        for command in commands {
            let id = Uuid::nil().to_string();
            let given = command.iter().map(|word| match word.as_str() {
                "ID" => id.as_str(),
                "COMMAND" => "run",
                // An empty file.
                "$E" => "/dev/null",
                word => word,
            });
            let parsed = Cli::try_parse_from(given).map(drop).map_err(|error| error.kind());
            let is_one = matches!(parsed, Ok(()) | Err(DisplayHelp | DisplayVersion));
            assert!(is_one, "{command:?}: {parsed:?}");
        }
    }
}
