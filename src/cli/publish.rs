//! `publish`: publishes events to a queue, and waits until the broker confirms them.

use std::io::{self, Read};

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use uuid::Uuid;

use super::arguments::{Common, account};
use super::{print, print_json, read};
use crate::broker::{ACCOUNT, Batches, BrokerError, Message, Outgoing};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::domain::delivery::{Headers, Value};
use crate::domain::event::{Event, Properties};
use crate::shutdown::{self, Shutdown};

/// The most messages that `publish` sends before it waits for their confirms, and the most bytes of their
/// bodies together. A single message may be larger.
const PUBLISH_BATCH: usize = 1_000;
const PUBLISH_BYTES: usize = 8 << 20;

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The queue, such as high_priority
    queue: String,
    /// The event, a JSON object; `-` reads it from standard input [default: a sample]
    body: Option<String>,
    /// The event type, as the AMQP property `type`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The event's account, as the AMQP header `account` [default: what the body says]
    #[arg(long, value_name = "TEXT", value_parser = account)]
    account: Option<String>,
    /// The event id, as the AMQP property `message-id` [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
    /// How many times to publish it, each with its own id
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Publish it even if it is malformed, so that the notifier will dead-letter it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(command: Publish) -> Result<()> {
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
    // The events differ only in their ids, and the last id is the longest. So checking the last one
    // is enough: if any is malformed, nothing is published.
    let (last, body) = (id_of(count), given.clone().unwrap_or_else(|| sample(event_type)));
    let properties =
        Properties { message_id: Some(&last), event_type, account: headers.get(ACCOUNT) };
    match Event::read(properties, &body, config.max_event_bytes, String::new) {
        Err(malformed) if !force => {
            bail!("{malformed}. With --force it is published all the same, and dead-lettered");
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
    let batches = ids.chunks(most).map(|ids| (ids, ids.iter().map(message).collect()));
    let json = common.output.json;
    // As lines, the ids of each batch are printed at once, so that they are known if a later batch fails.
    let published = |ids: &[String]| if json { Ok(()) } else { print(ids.join("\n")) };
    publish_all(&config, &queue, batches, published)?;
    if json { print_json(&ids) } else { Ok(()) }
}

/// Publishes one batch after the other, so that only one is in memory. Calls `published` with the ids of each.
fn publish_all<'a>(
    config: &Config,
    queue: &str,
    all: impl Iterator<Item = (&'a [String], Vec<Outgoing>)>,
    mut published: impl FnMut(&[String]) -> Result<()>,
) -> Result<()> {
    // Ctrl-C simply ends this command, which has nothing to finish.
    let (_trigger, shutdown) = shutdown::channel();
    let not_published = || format!("not published to {queue:?}");
    let mut batches = Batches::open(config, &shutdown).with_context(not_published)?;
    let mut before = 0;
    for (ids, batch) in all {
        if let Err(error) = batches.publish(batch) {
            let error = explained(config, queue, &shutdown, error);
            return Err(error.context(format!("{before} were published before")))
                .with_context(not_published);
        }
        published(ids)?;
        before += ids.len();
    }
    batches.close();
    Ok(())
}

/// Adds the reason why the queue accepted nothing, if the broker gives one when it is asked about the queue. It
/// returns a message in the same way if the queue does not exist and if the queue's node is away.
fn explained(config: &Config, queue: &str, shutdown: &Shutdown, error: BrokerError) -> Error {
    let Ok(mut again) = Batches::open(config, shutdown) else { return error.into() };
    match again.has_queue(queue) {
        Ok(false) => Error::new(error).context(
            "there is no such queue: is its name right? (`run` creates its queues when it first starts)",
        ),
        Ok(true) => error.into(),
        Err(of_queue) => Error::new(error).context(of_queue),
    }
}

/// A sample event, which says that it is one.
fn sample(event_type: Option<&str>) -> Vec<u8> {
    serde_json::json!({
        "event_type": event_type.unwrap_or("sample.published"),
        "published_at_ms": unix_millis(),
        "note": "made by `webhook-notifier publish`",
    })
    .to_string()
    .into_bytes()
}
