//! What the program takes on its command line.

use clap::{Args, Parser, Subcommand};

use super::{dead_letters, help, listen, manual, publish, queues, tail, webhooks, why};
use crate::config::{ServerSettings, Settings};
use crate::domain;

/// Delivers JSON events from RabbitMQ queues to the webhooks that want them, and loses none.
///
/// `run` consumes the queues, finds in PostgreSQL the webhooks that want each event, and POSTs it to
/// each of them. What fails is tried again, by the broker's clock; what can't be delivered ends in a
/// dead-letter queue. The other commands are for those who operate it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = FIRST_STEPS)]
#[command(after_long_help = format!("{FIRST_STEPS}\n\n{}", help::PROGRAM))]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

pub(super) const FIRST_STEPS: &str = "First steps:
  export AMQP_URL=amqp://user:password@host:5672/%2f
  export DATABASE_URL=postgres://user:password@host:5432/database
  webhook-notifier migrate                                   makes the table
  webhook-notifier webhooks add https://example.com/in '*'   registers a webhook
  webhook-notifier check                                     says what is missing
  webhook-notifier run                                       delivers";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Consume the queues and deliver, until SIGTERM or SIGINT
    #[command(after_long_help = help::RUN)]
    Run(Settings),
    /// Make the tables, or add to them what is missing; keeps every row
    #[command(after_long_help = help::MIGRATE)]
    Migrate(ServerSettings),
    /// Check configuration, broker, topology and database, and say the remedies; changes nothing
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
    /// List, show, replay and purge what could not be delivered
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Have a queue be of another kind, with all that is in it
    #[command(subcommand)]
    Queues(queues::Queues),
    /// Say what became of an event: who wanted it, what was tried, where it is, what to do; or how a webhook
    /// has been
    ///
    /// Reads the delivery log (DELIVERY_LOG) and, where the broker answers, the dead-letter queues.
    /// Exit code 1 if nothing is known of the event, and the log would know.
    #[command(after_long_help = help::WHY)]
    Why(why::Why),
    /// Show attempts as they are logged, by all instances, until Ctrl-C
    #[command(after_long_help = help::TAIL)]
    Tail(tail::Tail),
    /// Publish an event to a queue, and wait until the broker has it
    #[command(after_long_help = help::PUBLISH)]
    Publish(publish::Publish),
    /// Be a receiver: answer POSTs and print them
    #[command(after_long_help = help::LISTEN)]
    Listen(listen::Listen),
    /// Print what a shell needs to complete commands and options
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// Which shell
        shell: manual::Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_long_help = help::MAN)]
    Man(manual::Man),
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

/// The name of an account, as an argument.
pub(super) fn account(text: &str) -> Result<String, String> {
    domain::account::check(text).map_err(|problem| format!("the account {problem}"))?;
    Ok(text.to_owned())
}
