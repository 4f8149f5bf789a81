//! `tail`: prints the delivery log as it is written, by all instances.

use std::io;
use std::time::Duration;

use super::ids::{self, SHOWN_OF_WEBHOOK, WebhookId, event_to_give};
use super::{Common, account, print, print_stderr, read};
use crate::domain::delivery_log::{LogEntry, What};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::domain::time::{Span, between, rfc3339};
use crate::shutdown;
use crate::store::{Follower, Store};
use anyhow::Result;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often PostgreSQL is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many characters of a detail are printed; `why` shows more.
const MOST_OF_DETAIL: usize = 60;

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Only deliveries to this webhook: its id or the beginning of it
    #[arg(long, value_name = "ID")]
    webhook: Option<WebhookId>,
    /// Only events of this account
    #[arg(long, value_name = "TEXT", value_parser = account)]
    account: Option<String>,
    /// Only failures: failed, held back, dead or dropped
    #[arg(long)]
    failures: bool,
    /// Begin with the last N entries
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(0..=10_000))]
    lines: u32,
    #[command(flatten)]
    common: Common,
}

/// Prints entries until Ctrl-C, or until the reader of its output has gone.
pub(super) fn run(command: Tail) -> Result<()> {
    let Tail { webhook, account, failures, lines, common } = command;
    let config = read(&common.settings.0)?;
    let store = Store::new(&config)?;
    let webhook = webhook.map(|webhook| webhook.known(ids::store(&config))).transpose()?;
    let mut follower = Follower::new(&store, webhook, account, failures);
    // Ctrl-C simply ends the command.
    let (_trigger, shutdown) = shutdown::channel();
    let is_json = common.output.json;
    // Complete ids, unless their first characters are known to distinguish the webhooks.
    let shown = match is_json || store.webhooks_differ_within(SHOWN_OF_WEBHOOK).unwrap_or(false) {
        true => SHOWN_OF_WEBHOOK as usize,
        false => WHOLE,
    };
    // Its connection isn't needed any more.
    drop(store);
    if !is_json {
        print(heading(shown))?;
    }
    let mut is_away = false;
    while !is_closed_pipe() {
        match follower.next(lines) {
            Ok(seen) => {
                if is_away {
                    print_stderr("PostgreSQL answers again");
                    is_away = false;
                }
                for entry in &seen.entries {
                    print(match is_json {
                        true => shown::json(&serde_json::to_string(entry)?),
                        false => as_text(entry, shown),
                    })?;
                }
                if seen.more {
                    continue;
                }
            }
            Err(error) if error.is_temporary() => {
                if !is_away {
                    print_stderr(&format!("{error}; this command continues once it answers"));
                }
                is_away = true;
            }
            Err(error) => return Err(error.into()),
        }
        let _ = shutdown.wait(INTERVAL);
    }
    Ok(())
}

/// Whether the reader of a pipe has gone, as in `tail | head`. Without new entries, no write would fail.
fn is_closed_pipe() -> bool {
    let out = io::stdout();
    let mut ends = [PollFd::new(&out, PollFlags::empty())];
    let polled = poll(&mut ends, Some(&Timespec::default()));
    polled.is_ok() && ends[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// The length of an id.
const WHOLE: usize = 36;

fn heading(shown_of_webhook: usize) -> String {
    format!(
        "{:20}  ATT  {:11}  {:>7}  {:shown_of_webhook$}  {:36}  TYPE",
        "TIME", "WHAT", "MS", "WEBHOOK", "EVENT"
    )
}

/// With ids that `why` and other commands accept.
fn as_text(entry: &LogEntry, shown_of_webhook: usize) -> String {
    let LogEntry { at, attempt, what, ms, webhook_id, .. } = entry;
    let ms = ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
    // The whole id would fill half a line.
    let webhook = webhook_id
        .map_or_else(|| "-".to_owned(), |id| id.to_string()[..shown_of_webhook].to_owned());
    let name = |text: &str| shown::line(text, MAX_NAME_BYTES);
    format!(
        "{}  {attempt:>3}  {:11}  {ms:>7}  {webhook:shown_of_webhook$}  {:36}  {}{}",
        rfc3339(*at),
        what.label(),
        name(&event_to_give(&entry.event_id)),
        name(&entry.event_type),
        remark(entry),
    )
}

/// The answer, and what happens next.
fn remark(entry: &LogEntry) -> String {
    let LogEntry { what, reason, detail, answer, dead, next_attempt_at, at, .. } = entry;
    let mut remarks = Vec::new();
    match what {
        What::Delivered | What::Unmatched => {}
        What::Failed if !detail.is_empty() => remarks.push(match answer {
            Some(answer) => answer.line(MOST_OF_DETAIL),
            None => shown::line(detail, MOST_OF_DETAIL),
        }),
        _ => remarks.extend(reason.as_deref().map(|reason| shown::line(reason, MOST_OF_DETAIL))),
    }
    remarks.extend(next_attempt_at.map(|next| match next < *at {
        false => format!("next in {}", Span::from(between(*at, next))),
        true => "next at once".to_owned(),
    }));
    remarks.extend(dead.as_deref().map(|reason| format!("dead: {}", shown::line(reason, 40))));
    if remarks.is_empty() { String::new() } else { format!(": {}", remarks.join(", ")) }
}
