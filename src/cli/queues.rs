//! `queues`: what a queue is made of.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;

use super::{Common, Usage, complain, help, print, print_json, read};
use crate::broker::{self, MoveError, Moved, Progress, moving_queue};
use crate::config::QueueType;
use crate::domain::broker_names;
use crate::domain::shown::quoted;
use crate::shutdown;

#[derive(Debug, Subcommand)]
pub(super) enum Queues {
    /// Have a queue be of another kind, with all that is in it
    ///
    /// RabbitMQ can't change the kind of a queue. So what it holds is put aside, in
    /// webhooks.moving.QUEUE, the queue is deleted and made anew, and all comes back, in its order. Stop
    /// what publishes to it and what consumes it before. When it is interrupted, run it again: it goes
    /// on where it was.
    #[command(after_long_help = help::QUEUES_MOVE)]
    Move {
        /// The queue, such as high_priority
        queue: String,
        /// What it is to be
        #[arg(long, value_name = "TYPE", default_value = "quorum", value_parser = queue_type())]
        to: QueueType,
        /// Only say what it is, and what it holds
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
        let problem =
            format!("{} is the notifier's own, which is what it has to be", quoted(&queue));
        return Err(Usage(problem).into());
    }
    let config = read(&common.settings.0)?;
    let (trigger, shutdown) = shutdown::channel();
    // To say how far it came.
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
                    put_aside(before.put_aside, &queue)
                ),
                None => format!("{queue} is not there{}", put_aside(before.put_aside, &queue)),
            }),
        };
    }
    let mut so_far = SoFar { is_json, is_seen: io::stderr().is_terminal(), last: String::new() };
    let moved = broker::move_queue(&config, &shutdown, &queue, to, |progress| {
        so_far.hear(&queue, to, progress);
    });
    if moved.is_ok() || so_far.is_seen {
        so_far.end();
    }
    if let Err(MoveError::Unfit(problem)) = moved {
        let far = if so_far.last.is_empty() { "nothing was moved" } else { &so_far.last };
        bail!("{far}: {problem}");
    }
    let Moved { was_there, messages, without_user, without_copies } = moved.with_context(|| {
        let far = if so_far.last.is_empty() { "nothing was moved" } else { &so_far.last };
        format!("{far}; nothing is lost: run it again, and it goes on")
    })?;
    for (count, what) in [
        (without_user, "have lost their `user-id`, which only that user may write"),
        (without_copies, "have lost their header `CC`, which would have led copies elsewhere"),
    ] {
        if count > 0 {
            complain(&format!("warning: {count} messages {what}"));
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
    complain(
        "warning: what was bound to it by other exchanges than the default one has to be bound again",
    );
    Ok(())
}

fn put_aside(count: Option<u32>, queue: &str) -> String {
    let aside = moving_queue(queue);
    count.map(|count| format!("; put aside in {aside}: {count}")).unwrap_or_default()
}

/// How far it is: a line that follows it where somebody sees it, and lines of what is done.
struct SoFar {
    is_json: bool,
    is_seen: bool,
    last: String,
}

impl SoFar {
    fn hear(&mut self, queue: &str, to: QueueType, progress: Progress) {
        match progress {
            Progress::Carried { to, done, of } => {
                self.last = format!("{done} of {of} messages moved to {to}");
                if self.is_seen {
                    let _ = write!(io::stderr(), "\r{} ", self.last);
                }
            }
            Progress::Made => {
                self.end();
                self.last = format!("{queue} made anew, as a {to} queue");
                if !self.is_json {
                    let _ = print(&self.last);
                }
            }
        }
    }

    /// The line that follows it is over.
    fn end(&self) {
        if self.is_seen && self.last.contains(" moved to ") {
            let _ = writeln!(io::stderr());
        } else if !self.is_json && self.last.contains(" moved to ") {
            let _ = print(&self.last);
        }
    }
}
