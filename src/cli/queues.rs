//! `queues`: changes the type of a queue.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;

use super::{Common, Usage, help, print, print_json, print_stderr, read};
use crate::broker::{self, MoveError, Moved, Progress, moving_queue};
use crate::config::QueueType;
use crate::domain::broker_names;
use crate::domain::shown::quoted;
use crate::shutdown;

#[derive(Debug, Subcommand)]
pub(super) enum Queues {
    /// Change a queue's type, keeping all its messages
    ///
    /// RabbitMQ can't change the type of a queue. So this command moves the messages to
    /// webhooks.moving.QUEUE, deletes the queue, creates it again, and moves the messages back in order.
    /// First stop everything that publishes to the queue or consumes it. If the command is interrupted,
    /// run it again: it continues.
    #[command(after_long_help = help::QUEUES_MOVE)]
    Move {
        /// The queue, such as high_priority
        queue: String,
        /// The type it should have
        #[arg(long, value_name = "TYPE", default_value = "quorum", value_parser = queue_type())]
        to: QueueType,
        /// Only print its type and how much it holds
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
}

fn queue_type() -> impl TypedValueParser<Value = QueueType> {
    let all = [QueueType::Quorum, QueueType::Classic];
    PossibleValuesParser::new(all.map(QueueType::label)).try_map(|text| text.parse::<QueueType>())
}

pub(super) fn run(command: Queues) -> Result<()> {
    let Queues::Move { queue, to, dry_run, common } = command;
    if broker_names::is_ours(&queue) {
        let problem = format!("{} belongs to the notifier, which chooses its type", quoted(&queue));
        return Err(Usage(problem).into());
    }
    let config = read(&common.settings.0)?;
    let (trigger, shutdown) = shutdown::channel();
    // Ctrl-C ends the command between two steps, so that it can report its progress.
    shutdown::watch_signals(trigger)?;
    let is_json = common.output.json;
    let before = broker::look_at(&config, &shutdown, &queue)?;
    if dry_run {
        let (kind, counts) = before.queue.unzip();
        let (messages, consumers) = counts.map(|it| (it.ready, it.consumers)).unzip();
        return match is_json {
            true => print_json(&json!({
                "queue": queue, "type": kind.map(QueueType::label), "messages": messages,
                "consumers": consumers, "put_aside": before.put_aside,
            })),
            false => print(match before.queue {
                Some((kind, counts)) => format!(
                    "{queue} is a {kind} queue; messages: {}, consumers: {}{}",
                    counts.ready,
                    counts.consumers,
                    moved_away(before.put_aside, &queue)
                ),
                None => format!("{queue} does not exist{}", moved_away(before.put_aside, &queue)),
            }),
        };
    }
    let mut shown = TypeChangeProgress {
        is_json,
        on_terminal: io::stderr().is_terminal(),
        last: String::new(),
    };
    let moved = broker::move_queue(&config, &shutdown, &queue, to, |progress| {
        shown.update(&queue, to, progress);
    });
    if moved.is_ok() || shown.on_terminal {
        shown.end();
    }
    if let Err(MoveError::Unfit(problem)) = moved {
        let far = if shown.last.is_empty() { "nothing was moved" } else { &shown.last };
        bail!("{far}: {problem}");
    }
    let Moved { was_there, messages, without_user, without_copies } = moved.with_context(|| {
        let far = if shown.last.is_empty() { "nothing was moved" } else { &shown.last };
        format!("{far}; nothing is lost: run the command again to continue")
    })?;
    for (count, what) in [
        (without_user, "have lost their `user-id`, which only that user may write"),
        (
            without_copies,
            "have lost their header `CC`, which would have sent copies to other queues",
        ),
    ] {
        if count > 0 {
            print_stderr(&format!("warning: {count} messages {what}"));
        }
    }
    if is_json {
        return print_json(&json!({
            "queue": queue, "type": to.label(), "was_there": was_there, "messages": messages,
        }));
    }
    if was_there {
        return print(format_args!("nothing to do: {queue} is a {to} queue"));
    }
    print(format_args!("{queue} is a {to} queue now, with its messages: {messages}"))?;
    print_stderr(
        "warning: bindings of it to exchanges other than the default one are gone: create them again",
    );
    Ok(())
}

fn moved_away(count: Option<u32>, queue: &str) -> String {
    let aside = moving_queue(queue);
    count.map(|count| format!("; messages in {aside}: {count}")).unwrap_or_default()
}

/// Prints the progress: a status line on a terminal, and a line for each completed step.
struct TypeChangeProgress {
    is_json: bool,
    on_terminal: bool,
    last: String,
}

impl TypeChangeProgress {
    fn update(&mut self, queue: &str, to: QueueType, progress: Progress) {
        match progress {
            Progress::Carried { to, done, of } => {
                self.last = format!("{done} of {of} messages moved to {to}");
                if self.on_terminal {
                    let _ = write!(io::stderr(), "\r{} ", self.last);
                }
            }
            Progress::Made => {
                self.end();
                self.last = format!("{queue} created again, as a {to} queue");
                if !self.is_json {
                    let _ = print(&self.last);
                }
            }
        }
    }

    /// Ends the status line.
    fn end(&self) {
        if self.on_terminal && self.last.contains(" moved to ") {
            let _ = writeln!(io::stderr());
        } else if !self.is_json && self.last.contains(" moved to ") {
            let _ = print(&self.last);
        }
    }
}
