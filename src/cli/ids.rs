//! Ids as people give them: complete, or a beginning that no other id has.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, bail};
use uuid::Uuid;

use super::print_stderr;
use crate::config::Config;
use crate::dead_letters::{self, DeadLetterScope};
use crate::domain::dead_letter::Selection;
use crate::domain::encoding::{header_of_id, id_of_header};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown::{self, quoted};
use crate::store::{Store, StoreError};

/// Anything shorter than this isn't accepted as the beginning of an id.
const SHORTEST: usize = 4;

/// How many characters of a webhook's id a table shows: enough to give back to a command.
pub(super) const SHOWN_OF_WEBHOOK: i32 = 8;

/// How many ids are listed if several begin with the given text.
const MOST_LISTED: usize = 5;

/// The id of a webhook, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WebhookId {
    given: String,
    /// The first and the last id with this beginning: the same if it is complete.
    first: Uuid,
    last: Uuid,
}

impl FromStr for WebhookId {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if let Ok(id) = Uuid::try_parse(given) {
            return Ok(Self { given: given.to_owned(), first: id, last: id });
        }
        let digits: String = given.chars().filter(|c| *c != '-').collect();
        let is_beginning = digits.len() >= SHORTEST
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            && has_hyphens_of_uuid(given);
        let filled =
            |with: &str| Uuid::try_parse(&format!("{digits}{}", with.repeat(32 - digits.len())));
        match (is_beginning && digits.len() < 32).then(|| (filled("0"), filled("f"))) {
            Some((Ok(first), Ok(last))) => Ok(Self { given: given.to_owned(), first, last }),
            _ => Err(format!(
                "{} is neither the id of a webhook nor the beginning of one, of at least {SHORTEST} characters",
                quoted(given)
            )),
        }
    }
}

/// Whether hyphens are only where a UUID has them; it needn't have any.
fn has_hyphens_of_uuid(text: &str) -> bool {
    let at: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    [8, 13, 18, 23].starts_with(&at)
}

impl WebhookId {
    /// The complete id of the registered webhook that is meant. A complete id is returned unchecked,
    /// without a query.
    pub(super) fn registered(&self, store: impl FnOnce() -> Result<Store>) -> Result<Uuid> {
        self.complete(store, false)
    }

    /// The complete id of the webhook that is meant, registered or in the log.
    pub(super) fn known(&self, store: impl FnOnce() -> Result<Store>) -> Result<Uuid> {
        self.complete(store, true)
    }

    /// Whether the complete id was given.
    pub(super) fn is_complete(&self) -> bool {
        self.first == self.last
    }

    /// The webhooks, registered or in the log, that have this id or whose ids begin with it; a few of
    /// them if there are many.
    pub(super) fn matching(&self, store: &Store) -> Result<Vec<Uuid>> {
        between(store, self.first, self.last, true)
    }

    fn complete(&self, store: impl FnOnce() -> Result<Store>, logged: bool) -> Result<Uuid> {
        let Self { given, first, last } = self;
        if self.is_complete() {
            return Ok(*first);
        }
        match between(&store()?, *first, *last, logged)?.as_slice() {
            [one] => Ok(*one),
            [] => bail!(
                "no webhook has an id that begins with {given}: see `webhooks list`. For a deleted \
                 webhook give the complete id"
            ),
            several => {
                let several: Vec<String> = several.iter().map(Uuid::to_string).collect();
                bail!(
                    "the ids of several webhooks begin with {given}: {}. Give more characters",
                    listed(&several)
                )
            }
        }
    }
}

fn between(store: &Store, first: Uuid, last: Uuid, logged: bool) -> Result<Vec<Uuid>> {
    let most = i64::try_from(MOST_LISTED + 1).unwrap_or(i64::MAX);
    match store.webhooks_between(first, last, most, logged) {
        // Without the log, only registered webhooks.
        Err(StoreError::Misconfigured(_)) if logged => {
            Ok(store.webhooks_between(first, last, most, false)?)
        }
        found => Ok(found?),
    }
}

/// Whether a text may be the beginning of an event's id, rather than a complete one.
pub(super) fn may_be_beginning(given: &str) -> bool {
    // Most ids are UUIDs, so a complete UUID is no beginning.
    given.chars().count() >= SHORTEST && Uuid::try_parse(given).is_err()
}

/// The ids of events in the log that begin with this text; a few of them if there are many.
pub(super) fn logged_events(store: &Store, given: &str) -> Result<Vec<String>> {
    let most = i64::try_from(MOST_LISTED + 1).unwrap_or(i64::MAX);
    for beginning in [Some(given.to_owned()), id_of_header(given)].into_iter().flatten() {
        let found = match store.events_beginning(&beginning, most) {
            // The log can't contain an id that the database can't represent.
            Err(StoreError::InvalidValue(_)) if !beginning.is_ascii() => continue,
            found => found?,
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The complete id of an event among the dead letters if exactly one begins with the given text;
/// otherwise the given text. When dead letters are moved, `ord-17` doesn't stand for `ord-171`.
pub(super) fn dead_event(scope: DeadLetterScope<'_>, given: &str, moves: bool) -> Result<String> {
    let is_logged = || {
        let logged = Store::new(scope.config)?.entries_of(given, None);
        Ok::<_, anyhow::Error>(logged.is_ok_and(|entries| !entries.is_empty()))
    };
    // Reading all dead letters would be useless then.
    if !may_be_beginning(given) || is_logged()? {
        return Ok(given.to_owned());
    }
    let selection =
        Selection { event_id: Some(given.to_owned()), by_beginning: true, ..Selection::default() };
    let (mut is_there, mut found) = (false, BTreeSet::new());
    dead_letters::read(
        DeadLetterScope { selection: &selection, limit: u64::MAX, ..scope },
        |letter, _| {
            let Some(id) = letter.event_id else { return };
            is_there |= id == given || header_of_id(&id) == given;
            if found.len() <= MOST_LISTED {
                found.insert(id);
            }
        },
    )?;
    let found: Vec<String> = found.into_iter().collect();
    match found.as_slice() {
        [one] if !is_there && moves && Uuid::try_parse(one).is_err() => bail!(
            "no dead letter belongs to the event {}, but one belongs to {}, whose id begins with that: \
             give the complete id to move it",
            quoted(given),
            listed(&found)
        ),
        [one] if !is_there => {
            print_stderr(&format!("using the event {}", shown::line(one, MAX_NAME_BYTES)));
            Ok(one.clone())
        }
        several @ [_, _, ..] if !is_there => bail!(several_events(given, several)),
        _ => Ok(given.to_owned()),
    }
}

pub(super) fn several_events(given: &str, ids: &[String]) -> String {
    format!(
        "the ids of several events begin with {}: {}. Give more characters",
        quoted(given),
        listed(ids)
    )
}

/// Some ids in one line.
fn listed(ids: &[String]) -> String {
    let shown = ids.iter().take(MOST_LISTED).map(|id| shown::line(id, MAX_NAME_BYTES));
    let shown: Vec<String> = shown.collect();
    let more = if ids.len() > MOST_LISTED { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Opens the store to complete an id; a complete id needs none.
pub(super) fn store(config: &Config) -> impl FnOnce() -> Result<Store> {
    move || Ok(Store::new(config)?)
}

/// An event's id in a form that commands accept: as it is, or as receivers get it.
pub(super) fn event_to_give(id: &str) -> String {
    match !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => id.to_owned(),
        false => header_of_id(id).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_complete_or_a_beginning() {
        let id: WebhookId = "6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33".parse().expect("whole");
        assert_eq!(id.first, id.last);
        for (given, first, last) in [
            (
                "6f1c",
                "6f1c0000-0000-0000-0000-000000000000",
                "6f1cffff-ffff-ffff-ffff-ffffffffffff",
            ),
            (
                "6F1C4F0E-8",
                "6f1c4f0e-8000-0000-0000-000000000000",
                "6f1c4f0e-8fff-ffff-ffff-ffffffffffff",
            ),
            (
                "6f1c4f0e-",
                "6f1c4f0e-0000-0000-0000-000000000000",
                "6f1c4f0e-ffff-ffff-ffff-ffffffffffff",
            ),
            (
                "6f1c4f0e8d",
                "6f1c4f0e-8d00-0000-0000-000000000000",
                "6f1c4f0e-8dff-ffff-ffff-ffffffffffff",
            ),
        ] {
            let id: WebhookId = given.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!([id.first.to_string(), id.last.to_string()], [first, last], "{given}");
        }
        let long = "6".repeat(33);
        for wrong in ["", "6f1", "6f1-", "6f1-c", "6f1g", "not-an-id", "6f1c 4f0e", "é6f1c", &long]
        {
            let refused = wrong.parse::<WebhookId>().expect_err(wrong);
            assert!(refused.contains("neither the id of a webhook"), "{refused}");
        }
    }

    #[test]
    fn an_event_id_that_is_shown_can_be_given_back() {
        for (id, shown) in
            [("ord-17", "ord-17"), ("a b", "a%20b"), ("bestellung-ü", "bestellung-%C3%BC")]
        {
            assert_eq!(event_to_give(id), shown);
            assert_eq!(id_of_header(shown).unwrap_or_else(|| shown.to_owned()), id);
        }
    }
}
