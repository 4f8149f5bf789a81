//! The commands that only read: `list` and `show`.

use anyhow::Result;
use serde_json::json;

use super::super::{Common, paint, print, print_json, print_stderr};
use super::age;
use crate::broker::Message;
use crate::clock::unix_millis;
use crate::dead_letters::{self, DeadLetterScope, ToRenew};
use crate::domain::dead_letter::{DeadLetter, DeadLetterGroups};
use crate::domain::delivery::Value;
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::domain::time::UnixMillis;

/// How many characters of a reason a table shows: ours are single words.
const MOST_OF_REASON: usize = 40;

/// How many characters of a type a table shows.
const MOST_OF_TYPE: usize = 40;

/// How many characters of an error a table shows: ours aren't longer.
const MOST_OF_ERROR: usize = 300;

pub(super) fn list(scope: DeadLetterScope<'_>, common: &Common) -> Result<()> {
    let mut groups = DeadLetterGroups::default();
    let to_renew = dead_letters::look_first(scope, |letter, _| groups.add(letter))?;
    let groups = groups.largest_first();
    if common.output.json {
        print_json(&groups)?;
        return renew(to_renew, scope);
    }
    let reasons = groups.iter().map(|group| cell(Some(&group.reason), MOST_OF_REASON));
    let reasons: Vec<String> = reasons.collect();
    let queue =
        groups.iter().map(|group| queue_of(&group.queue).chars().count()).max().unwrap_or(0).max(5);
    let reason = reasons.iter().map(|reason| reason.chars().count()).max().unwrap_or(0).max(6);
    let mut lines = vec![paint::heading(format_args!(
        "{:>7}  {:queue$}  {:reason$}  {:36}  {:>6}  {:>6}  LAST ERROR",
        "COUNT", "QUEUE", "REASON", "WEBHOOK", "OLDEST", "NEWEST"
    ))];
    let now = unix_millis();
    lines.extend(groups.iter().zip(reasons).map(|(group, shown)| {
        format!(
            "{:>7}  {:queue$}  {shown:reason$}  {:36}  {:>6}  {:>6}  {}",
            group.count,
            queue_of(&group.queue),
            or_dash(group.webhook_id.as_ref()),
            age(group.oldest, now),
            age(group.newest, now),
            cell(group.last_error.as_ref(), MOST_OF_ERROR),
        )
    }));
    let total: u64 = groups.iter().map(|group| group.count).sum();
    lines.push(format!("{total:>7}  in total"));
    print(lines.join("\n"))?;
    renew(to_renew, scope)
}

/// Renews the dead letters that were read too often, after the answer has been printed.
fn renew(to_renew: ToRenew<'_>, scope: DeadLetterScope<'_>) -> Result<()> {
    if to_renew.is_empty() {
        return Ok(());
    }
    print_stderr(
        "this is the complete answer. Some dead letters were read so often that RabbitMQ might drop them, so \
         they are now replaced by copies. This may take some seconds, and can be interrupted",
    );
    match to_renew.renew(scope) {
        // The next command that reads them continues.
        Err(_) if scope.shutdown.is_requested() => Ok(()),
        renewed => Ok(renewed?),
    }
}

pub(super) fn list_each(scope: DeadLetterScope<'_>, common: &Common) -> Result<()> {
    let mut letters = Vec::new();
    let to_renew = dead_letters::look_first(scope, |letter, _| letters.push(letter))?;
    letters.sort_by_key(|letter| letter.dead_at);
    if common.output.json {
        print_json(&letters)?;
        return renew(to_renew, scope);
    }
    let now = unix_millis();
    let width = |of: &dyn Fn(&DeadLetter) -> String, least: usize| {
        letters.iter().map(|letter| of(letter).chars().count()).max().unwrap_or(0).max(least)
    };
    let reason_of = |letter: &DeadLetter| cell(Some(&letter.reason), MOST_OF_REASON);
    let type_of = |letter: &DeadLetter| cell(letter.event_type.as_ref(), MOST_OF_TYPE);
    let queue = width(&|letter| queue_of(&letter.queue), 5);
    let (reason, kind) = (width(&reason_of, 6), width(&type_of, 4));
    let mut lines = vec![paint::heading(format_args!(
        "{:>6}  {:queue$}  {:reason$}  {:36}  {:36}  {:kind$}  LAST ERROR",
        "DEAD", "QUEUE", "REASON", "WEBHOOK", "EVENT", "TYPE"
    ))];
    lines.extend(letters.iter().map(|letter| {
        format!(
            "{:>6}  {:queue$}  {:reason$}  {:36}  {:36}  {:kind$}  {}",
            age(letter.dead_at, now),
            queue_of(&letter.queue),
            reason_of(letter),
            or_dash(letter.webhook_id.as_ref()),
            cell(letter.event_id.as_ref(), MAX_NAME_BYTES),
            type_of(letter),
            cell(letter.last_error.as_ref(), MOST_OF_ERROR),
        )
    }));
    print(lines.join("\n"))?;
    renew(to_renew, scope)
}

pub(super) fn show(scope: DeadLetterScope<'_>, common: &Common) -> Result<()> {
    let (mut shown, mut documents) = (Vec::new(), Vec::new());
    let to_renew = dead_letters::look_first(scope, |letter, message| {
        if common.output.json {
            documents.push(as_json(&letter, message));
        } else {
            shown.push(as_text(&letter, message));
        }
    })?;
    match shown.as_slice() {
        _ if common.output.json => print_json(&documents)?,
        [] => print("no dead letter matches")?,
        shown => print(shown.join("\n\n"))?,
    }
    renew(to_renew, scope)
}

/// The whole message.
fn as_json(letter: &DeadLetter, message: &Message) -> serde_json::Value {
    let headers = message.headers.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => json!(text),
            Value::Integer(integer) => json!(integer),
        };
        (name.clone(), value)
    });
    json!({
        "dead_letter": letter,
        "message_id": message.message_id,
        "type": message.event_type,
        "content_type": message.content_type,
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "body": String::from_utf8_lossy(&message.body),
    })
}

fn as_text(letter: &DeadLetter, message: &Message) -> String {
    let queue = queue_of(&letter.queue);
    let reason = cell(Some(&letter.reason), MOST_OF_REASON);
    let ago = |at: UnixMillis| format!(", {} ago", age(Some(at), unix_millis()));
    let mut lines = vec![
        paint::heading(format_args!("queue         {queue}")),
        format!("reason        {reason}{}", letter.dead_at.map(ago).unwrap_or_default()),
        format!("error         {}", cell(letter.last_error.as_ref(), MOST_OF_ERROR)),
    ];
    let properties = [
        ("message-id", &message.message_id),
        ("type", &message.event_type),
        ("content-type", &message.content_type),
    ];
    for (name, value) in properties {
        lines.extend(value.as_ref().map(|value| format!("{name:12}  {}", value.escape_debug())));
    }
    for (name, value) in &message.headers {
        let value = match value {
            // In full, because many contain JSON.
            Value::Text(text) => shown::line(text, usize::MAX),
            Value::Integer(at) if name.ends_with("-at") => {
                format!("{at} ({} ago)", age(Some(*at), unix_millis()))
            }
            Value::Integer(integer) => integer.to_string(),
        };
        lines.push(format!("{}: {value}", name.escape_debug()));
    }
    lines.push(String::new());
    // The body may contain control characters, which must not reach the terminal.
    lines.push(shown::lines(&String::from_utf8_lossy(&message.body)));
    lines.join("\n")
}

/// The name of a queue. That of an orphaned dead letter comes from a header, which anybody may have written.
fn queue_of(name: &str) -> String {
    shown::line(name, MAX_NAME_BYTES)
}

/// A table cell: somebody else may have written its text.
fn cell(text: Option<&String>, most: usize) -> String {
    text.map_or_else(|| "-".to_owned(), |text| shown::line(text, most))
}

fn or_dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}
