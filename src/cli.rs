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
mod topics;
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

/// The program's name.
const NAME: &str = "webhook-notifier";

/// The most threads that a command needs, including those of its connections.
const THREADS: usize = 10;

/// The longest line of the log or of standard error, in characters. Our own text takes a few hundred; what
/// it quotes from other programs may have any length.
const MOST_OF_LINE: usize = 8_192;

/// The command line is invalid; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Reads the arguments, runs the command, and prints or logs its error.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let logged = matches!(command, Command::Run(_));
    match dispatch(command) {
        Ok(code) => code,
        Err(error) if error.is::<ConfigError>() || error.is::<Usage>() => {
            print_stderr(&format!("{error}"));
            ExitCode::from(2)
        }
        // `webhooks list | head` closes the pipe early, which is not a failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            if logged {
                log::error!("{error:#}");
            } else {
                print_stderr(&format!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    if !matches!(command, Command::Run(_)) {
        crate::threads::check(THREADS)
            .context("raise the limit (`ulimit -u`) or free some memory")?;
    }
    match command {
        Command::Run(settings) => {
            let config = settings.read()?;
            logger(&config.rust_log).init();
            for warning in settings.warnings().iter().chain(&settings.suspicions(&config)) {
                log::warn!("{warning}");
            }
            app::check_threads(&config)?;
            let store = Store::new(&config)?;
            app::run(config, store)?;
        }
        Command::Migrate(settings) => migrate::run(settings)?,
        Command::Check { settings, output } => {
            let config = read(&settings.0)?;
            print_warnings(&settings.0.suspicions(&config));
            return check::run(&config, output.json);
        }
        Command::Webhooks(command) => return webhooks::run(command),
        Command::DeadLetters(command) => dead_letters::run(command)?,
        Command::Queues(command) => queues::run(command)?,
        Command::Why(command) => return why::run(command),
        Command::Tail(command) => tail::run(command)?,
        Command::Publish(command) => publish::run(command)?,
        Command::Listen(options) => listen::run(options)?,
        Command::Completions { shell } => manual::completions(shell)?,
        Command::Man(options) => manual::man(options)?,
        Command::Help(options) => topics::help(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the settings of a command, starts the logger, and prints the warnings about settings.
fn read(settings: &Settings) -> Result<Config, ConfigError> {
    let config = settings.read()?;
    logger(&config.rust_log).init();
    print_warnings(settings.warnings());
    Ok(config)
}

fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        print_stderr(&format!("warning: {warning}"));
    }
}

/// Prints a line on standard output. Unlike with `println!`, a closed pipe is an error rather than a panic.
fn print(line: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(shown::json(&serde_json::to_string_pretty(value)?))
}

/// Prints a line on standard error.
fn print_stderr(problem: &str) {
    let problem = shown::line(problem, MOST_OF_LINE);
    let _ = writeln!(io::stderr(), "{}", paint::error_line("webhook-notifier:", &problem));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}
