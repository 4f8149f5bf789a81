//! The commands: arguments in, tables or JSON out, exit codes 0 (done), 1 (failed), 2 (usage).

mod check;
mod dead_letters;
mod help;
mod ids;
mod listen;
mod manual;
mod pager;
mod paint;
mod queues;
mod tail;
mod topics;
mod webhooks;
mod why;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use crate::broker::{ACCOUNT, Batches, Message, Outgoing};
use crate::config::{Config, ConfigError, ServerSettings, Settings};
use crate::domain::account;
use crate::domain::delivery::{Headers, Value};
use crate::domain::event::{Event, Properties};
use crate::domain::shown;
use crate::store::{Labelled, Migrated, Store};
use crate::{app, shutdown};

/// The program's.
const NAME: &str = "webhook-notifier";

/// Messages that `publish` publishes before it waits for their confirms, and the most bytes of their
/// bodies together, unless one has more.
const PUBLISH_BATCH: usize = 1_000;
const PUBLISH_BYTES: usize = 8 << 20;

/// The most threads that a command needs, those of its connections included.
const THREADS: usize = 10;

/// How long a line of the log or of standard error may be, in characters. Ours have some hundred; what
/// they quote is other programs' affair.
const MOST_OF_LINE: usize = 8_192;

/// Delivers JSON events from RabbitMQ queues to the webhooks that want them, and loses none.
///
/// `run` consumes the queues, finds in PostgreSQL the webhooks that want each event, and POSTs it to
/// each of them. What fails is tried again, by the broker's clock; what can't be delivered ends in a
/// dead-letter queue. The other commands are for those who operate it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = FIRST_STEPS)]
#[command(after_long_help = format!("{FIRST_STEPS}\n\n{}", help::PROGRAM))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const FIRST_STEPS: &str = "First steps:
  export AMQP_URL=amqp://user:password@host:5672/%2f
  export DATABASE_URL=postgres://user:password@host:5432/database
  webhook-notifier migrate                                   makes the table
  webhook-notifier webhooks add https://example.com/in '*'   registers a webhook
  webhook-notifier check                                     says what is missing
  webhook-notifier run                                       delivers";

#[derive(Debug, Subcommand)]
enum Command {
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
    Publish(Publish),
    /// Be a receiver: answer POSTs and print them
    #[command(after_long_help = help::LISTEN)]
    Listen(Listen),
    /// Print what a shell needs to complete commands and options
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// Which shell
        shell: manual::Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_long_help = help::MAN)]
    Man(manual::Man),
    /// Explain a command or a topic of the manual, such as `runbook`; or list them
    #[command(after_long_help = help::HELP)]
    Help(topics::Help),
}

#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// Print JSON instead of text for people
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    settings: ServerSettings,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Publish {
    /// The queue, such as high_priority
    queue: String,
    /// The event, a JSON object; `-` reads it from standard input; without it, a sample is made
    body: Option<String>,
    /// The event type, as the AMQP property `type`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Whose event it is, as the AMQP header `account` [default: what the body says]
    #[arg(long, value_name = "TEXT", value_parser = account)]
    account: Option<String>,
    /// The event id, as the AMQP property `message-id` [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
    /// How many times, each with an id of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Publish even what the notifier can only dead-letter
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Listen {
    /// Where to listen; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    addr: SocketAddr,
    /// Answer the first N attempts of each delivery with --status
    #[arg(long, default_value_t = 0, value_name = "N")]
    fail_first: u32,
    /// The status of the attempts that --fail-first fails
    #[arg(long, default_value_t = 503)]
    status: u16,
    /// Check signatures, and answer 401 to what this secret did not sign; prefer the variable to
    /// the flag, which `ps` shows
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true, value_name = "WHSEC")]
    secret: Option<String>,
    #[command(flatten)]
    output: Output,
}

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
        Command::Migrate(settings) => {
            let migrated = Store::new(&read(&settings.0)?)?.migrate()?;
            let Migrated { applied, restored, labelled } = &migrated;
            if applied.is_empty() && restored.is_empty() {
                print("nothing to do: the database is up to date")?;
            }
            if !applied.is_empty() {
                print(format_args!("applied: {}", applied.join(", ")))?;
            }
            if !restored.is_empty() {
                print(format_args!("restored what was missing: {}", restored.join(", ")))?;
            }
            if let Some(labelled) = labelled {
                print(of_labelled(labelled))?;
            }
            if restored.iter().any(|what| what == "column webhooks.account") {
                let lost = "the accounts are lost with that column: until they are written again, each \
                            webhook gets the events of all accounts";
                complain(&format!("warning: {lost}"));
            }
        }
        Command::Check { settings, output } => return check::run(&read(&settings.0)?, output.json),
        Command::Webhooks(command) => return webhooks::run(command),
        Command::DeadLetters(command) => dead_letters::run(command)?,
        Command::Queues(command) => queues::run(command)?,
        Command::Why(command) => return why::run(command),
        Command::Tail(command) => tail::run(command)?,
        Command::Publish(command) => publish(command)?,
        Command::Listen(options) => listen::run(options)?,
        Command::Completions { shell } => manual::completions(shell)?,
        Command::Man(options) => manual::man(options)?,
        Command::Help(options) => topics::help(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of webhooks whose account was a label before this version.
fn of_labelled(Labelled { count, named }: &Labelled) -> String {
    let (webhooks, has, gets) = match count {
        1 => ("webhook", "has", "it gets"),
        _ => ("webhooks", "have", "each gets"),
    };
    let mut ids: Vec<String> = named.iter().map(Uuid::to_string).collect();
    let more = count.saturating_sub(ids.len() as u64);
    if more > 0 {
        ids.push(format!("and {more} more"));
    }
    format!(
        "{count} {webhooks} {has} an account. It was a label until now, and decides from now on: {gets} the \
         events of that account only, which say so by the AMQP header `account`, or `account` or \
         `account_id` in the body. What waits already has only its body to say so. To get every event \
         again: `webhooks set ID --unset account`. Concerned: {}",
        ids.join(", ")
    )
}

/// The name of an account, as an argument.
fn account(text: &str) -> Result<String, String> {
    account::check(text).map_err(|problem| format!("the account {problem}"))?;
    Ok(text.to_owned())
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

fn logger(filter: &str) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder
        // We report ourselves what matters of these, once and in our words; amiquip calls every
        // clean close an internal error. RUST_LOG=amiquip=warn brings them back.
        .filter_module("amiquip", log::LevelFilter::Off)
        .filter_module("mio", log::LevelFilter::Off)
        .filter_module("tiny_http", log::LevelFilter::Off)
        .filter_module("ureq", log::LevelFilter::Warn)
        .filter_module("ureq_proto", log::LevelFilter::Warn)
        .filter_module("rustls", log::LevelFilter::Warn)
        .filter_module("postgres", log::LevelFilter::Warn)
        .filter_module("tokio_postgres", log::LevelFilter::Warn)
        .parse_filters(filter)
        // env_logger's own format, but for this: whatever a line quotes, it is one line.
        .format(|out, record| {
            let (time, level, target) = (out.timestamp_millis(), record.level(), record.target());
            let text = shown::line(&record.args().to_string(), MOST_OF_LINE);
            writeln!(out, "[{time} {level:<5} {target}] {text}")
        });
    builder
}

fn publish(command: Publish) -> Result<()> {
    let Publish { queue, body, event_type, account, id, count, force, common } = command;
    let config = read(&common.settings.0)?;
    let given = match body.as_deref() {
        Some("-") => {
            let mut body = Vec::new();
            io::stdin().read_to_end(&mut body).context("cannot read standard input")?;
            Some(body)
        }
        Some(text) => Some(text.as_bytes().to_vec()),
        None => None,
    };
    let id_of = |n: u32| match &id {
        Some(id) if count == 1 => id.clone(),
        Some(id) => format!("{id}-{n}"),
        None => Uuid::new_v4().to_string(),
    };
    let event_type = event_type.as_deref();
    let headers: Headers =
        account.map(|account| (ACCOUNT.to_owned(), Value::Text(account))).into_iter().collect();
    // They differ in their ids only, and the last one's is the longest: nothing is published if one
    // is malformed.
    let (last, body) = (id_of(count), given.clone().unwrap_or_else(|| sample(event_type)));
    let properties =
        Properties { message_id: Some(&last), event_type, account: headers.get(ACCOUNT) };
    match Event::read(properties, &body, config.max_event_bytes, String::new) {
        Err(malformed) if !force => {
            bail!("{malformed}. --force publishes it all the same, to be dead-lettered");
        }
        _ => {}
    }
    let most = (PUBLISH_BYTES / body.len().max(1)).clamp(1, PUBLISH_BATCH);
    let ids: Vec<String> = (1..=count).map(id_of).collect();
    let message = |id: &String| {
        let message = Message {
            body: given.clone().unwrap_or_else(|| sample(event_type)),
            content_type: Some("application/json".to_owned()),
            message_id: Some(id.clone()),
            event_type: event_type.map(str::to_owned),
            headers: headers.clone(),
        };
        Outgoing::to_queue(message, &queue)
    };
    let batches = ids.chunks(most).map(|ids| ids.iter().map(message).collect());
    let published = publish_all(&config, batches);
    published.with_context(|| {
        format!("not published to {queue:?} (the notifier makes its queues when it first runs)")
    })?;
    if common.output.json { print_json(&ids) } else { print(ids.join("\n")) }
}

/// Publishes one batch after the other: only one of them is in memory.
fn publish_all(config: &Config, all: impl Iterator<Item = Vec<Outgoing>>) -> Result<()> {
    // Ctrl-C just ends this command: nothing here needs a drain.
    let (_trigger, shutdown) = shutdown::channel();
    let mut batches = Batches::open(config, &shutdown)?;
    let mut before = 0;
    for batch in all {
        let count = batch.len();
        batches.publish(batch).with_context(|| format!("{before} were published before"))?;
        before += count;
    }
    batches.close();
    Ok(())
}

/// An event that says for itself what it is.
fn sample(event_type: Option<&str>) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serde_json::json!({
        "event_type": event_type.unwrap_or("sample.published"),
        "published_at_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        "note": "made by `webhook-notifier publish`",
    })
    .to_string()
    .into_bytes()
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
    use log::Log as _;
    use proptest::prelude::*;

    /// Whether this filter, if it is accepted, lets one of the libraries say more than warnings that
    /// print passwords then.
    fn tells_secrets(filter: &str) -> bool {
        let parsed = Cli::try_parse_from(["x", "run", &format!("--rust-log={filter}")]);
        let Ok(Cli { command: Command::Run(settings) }) = parsed else { panic!("{filter:?}") };
        let Ok(config) = settings.read() else { return false };
        let logger = logger(&config.rust_log).build();
        let targets = [
            "amiquip::io_loop",
            "postgres::client",
            "tokio_postgres::query",
            "ureq::unit",
            "ureq_proto",
        ];
        targets.iter().any(|target| {
            let said = log::Metadata::builder().target(target).level(log::Level::Info).build();
            logger.enabled(&said)
        })
    }

    #[test]
    fn a_filter_that_only_resembles_a_library_lets_it_say_no_more() {
        for filter in ["ureq:=trace", "ureq/x=trace", "ur=trace", "=trace", "trace", "post=trace"] {
            assert!(!tells_secrets(filter), "{filter}");
        }
    }

    proptest! {
        #[test]
        fn no_filter_that_is_accepted_lets_a_library_print_secrets(
            parts in prop::collection::vec(
                "( ?(ureq|ureq_proto|tokio_postgres|amiquip|postgres|u|mio|)(::|:|/|_|x)?=)?(info|trace|warn|)",
                1..4,
            ),
        ) {
            let filter = parts.join(",");
            prop_assert!(!tells_secrets(&filter), "{filter}");
        }
    }
}
