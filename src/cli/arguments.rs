//! The arguments of the program.

use clap::{Args, Parser, Subcommand};

use super::{dead_letters, help, listen, manual, publish, queues, tail, topics, webhooks, why};
use crate::config::{ServerSettings, Settings};
use crate::domain;

/// Delivers JSON events from RabbitMQ queues to the webhooks that want them, and loses none.
///
/// `run` consumes the queues. It finds the webhooks that want each event in PostgreSQL, and POSTs the event
/// to each of them. If a delivery fails, it waits at the broker and is tried again. If it can't be delivered,
/// it goes to a dead-letter queue. The other commands are for operators.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = FIRST_STEPS)]
#[command(after_long_help = format!("{FIRST_STEPS}\n\n{}", help::PROGRAM))]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

pub(super) const FIRST_STEPS: &str = "First steps:
  export AMQP_URL=amqp://user:password@host:5672/%2f
  export DATABASE_URL=postgres://user:password@host:5432/database
  webhook-notifier migrate                                   creates the tables
  webhook-notifier webhooks add https://example.com/in '*'   registers a webhook
  webhook-notifier check                                     says what is missing
  webhook-notifier run                                       delivers";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Consume the queues and deliver, until SIGTERM or SIGINT
    #[command(after_long_help = help::RUN)]
    Run(Settings),
    /// Create the tables, or add missing parts to them; keeps every row
    #[command(after_long_help = help::MIGRATE)]
    Migrate(ServerSettings),
    /// Check configuration, broker, topology and database, and suggest remedies; changes nothing
    #[command(after_long_help = help::CHECK)]
    Check {
        #[command(flatten)]
        settings: ServerSettings,
        #[command(flatten)]
        output: Output,
    },
    /// Register, show, change and remove webhooks
    #[command(subcommand)]
    Webhooks(webhooks::Webhooks),
    /// List, show, replay and purge deliveries that failed for good
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Change the type of a queue, and keep its messages
    #[command(subcommand)]
    Queues(queues::Queues),
    /// Explain what happened to an event: who wanted it, the attempts, where it is, what to do; or how a
    /// webhook is doing
    ///
    /// Reads the delivery log (DELIVERY_LOG) and, if the broker answers, the dead-letter queues. The exit
    /// code is 1 if the log should know the event but does not.
    #[command(after_long_help = help::WHY)]
    Why(why::Why),
    /// Show attempts of all instances as they are logged, until Ctrl-C
    #[command(after_long_help = help::TAIL)]
    Tail(tail::Tail),
    /// Publish an event to a queue, and wait until the broker confirms it
    #[command(after_long_help = help::PUBLISH)]
    Publish(publish::Publish),
    /// Run a receiver that prints the POSTs it gets and answers them
    #[command(after_long_help = help::LISTEN)]
    Listen(listen::Listen),
    /// Print a script that lets a shell complete commands and options
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// Which shell
        shell: manual::Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_long_help = help::MAN)]
    Man(manual::Man),
    /// Explain a command or a topic of the manual, such as `runbook`; or list all of them
    #[command(after_long_help = help::HELP)]
    Help(topics::Help),
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Output {
    /// Print JSON instead of text for people
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) settings: ServerSettings,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Parses the name of an account.
pub(super) fn account(text: &str) -> Result<String, String> {
    domain::account::check(text).map_err(|problem| format!("the account {problem}"))?;
    Ok(text.to_owned())
}
