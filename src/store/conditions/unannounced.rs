//! The changes of webhooks that haven't been announced. A notifier takes each of them before it announces it,
//! so that no other does.

use std::collections::HashMap;

use postgres::types::Type;
use postgres::{Row, Transaction};
use uuid::Uuid;

use super::IS_FAILING;
use crate::domain::notice::Subject;
use crate::domain::time::UnixMillis;
use crate::domain::webhook::MAX_URL_CHARS;
use crate::store::row::{self, some, text};
use crate::store::time::{rfc3339, unix_millis};
use crate::store::{Store, StoreError};

/// More than the longest valid account name.
const MOST_OF_ACCOUNT: usize = 1_023;

/// The longest reason that is read, in characters.
const MOST_OF_REASON: usize = 1_000;

/// How long a circuit breaker has to be open before the failure is announced.
const OPEN_FOR: &str = "interval '10 minutes'";

/// Whether a webhook that was announced as failing has succeeded since.
const HAS_RECOVERED: &str = "(c.told_failing_at IS NOT NULL
     AND (c.succeeded_at > c.told_failing_at OR c.succeeded_at >= c.failed_at))";

/// The SQL condition that the row `c` of the webhook `w` has a change that hasn't been announced.
fn is_unannounced() -> String {
    format!(
        "((w.disabled_at IS NOT NULL) <> c.told_disabled OR (w.paused_at IS NOT NULL) <> c.told_paused
          OR {HAS_RECOVERED} OR {})",
        is_unannounced_failure()
    )
}

fn is_unannounced_failure() -> String {
    format!(
        "(c.told_failing_at IS NULL AND {IS_FAILING} AND w.disabled_at IS NULL AND w.paused_at IS NULL
          AND c.open_since IS NOT NULL
          AND greatest(c.failing_since, c.succeeded_at, c.open_since) <= now() - {OPEN_FOR})"
    )
}

/// The changes of a webhook that have to be announced.
#[derive(Clone, Debug)]
pub struct Unannounced {
    /// The webhook.
    pub webhook: Uuid,
    /// What notices say about the webhook.
    pub subject: Subject,
    /// The changes, in the order of their announcement.
    pub changes: Vec<WebhookChange>,
}

/// A change of a webhook's state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum WebhookChange {
    Failing { since: UnixMillis, failed_at: UnixMillis },
    Recovered { at: Option<UnixMillis> },
    Disabled { at: Option<String>, reason: Option<String> },
    Enabled,
    Paused { at: Option<String> },
    Resumed,
}

impl Store {
    /// How many webhooks have changes that haven't been announced. If webhooks may have changed
    /// (`have_changed`), first adds the rows that are missing in the table.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn count_unannounced(&self, have_changed: bool) -> Result<i64, StoreError> {
        let asked = format!(
            "SELECT count(*) FROM webhook_conditions AS c JOIN webhooks AS w ON w.id = c.webhook_id
             WHERE {}",
            is_unannounced()
        );
        self.query(move |client| {
            if have_changed {
                client.execute_typed(
                    "INSERT INTO webhook_conditions (webhook_id)
                     SELECT w.id FROM webhooks AS w
                     WHERE (w.disabled_at IS NOT NULL OR w.paused_at IS NOT NULL)
                         AND w.id IS NOT NULL
                         AND NOT EXISTS (SELECT 1 FROM webhook_conditions AS c
                                         WHERE c.webhook_id = w.id)
                     ON CONFLICT DO NOTHING",
                    &[],
                )?;
            }
            let rows = client.query_typed(&asked, &[])?;
            rows.first().map_or(Ok(0), |row| row.try_get(0))
        })
    }

    /// Takes the changes of at most `most` webhooks that haven't been announced. No other notifier will
    /// announce these.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn take_unannounced(&self, most: i64) -> Result<Vec<Unannounced>, StoreError> {
        self.query(move |client| {
            let mut transaction = client.transaction()?;
            let taken = take(&mut transaction, most)?;
            transaction.commit()?;
            Ok(taken)
        })
    }

    /// What notices say about these webhooks. Deleted ones are missing in the result.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn subjects(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Subject>, StoreError> {
        let ids = ids.to_vec();
        self.query(move |client| {
            let columns = format!("id, {}", columns_of_subject());
            let read = |row: &Row| Ok((row.try_get("id")?, subject(row)?));
            let unreadable = |id, _: &str, _| (id, Subject::default());
            let found = row::each(client, &columns, &ids, read, unreadable)?;
            Ok(found.into_iter().collect())
        })
    }
}

fn take(transaction: &mut Transaction<'_>, most: i64) -> Result<Vec<Unannounced>, postgres::Error> {
    let asked = format!(
        "SELECT c.webhook_id, c.told_disabled, c.told_paused,
             w.disabled_at IS NOT NULL AS is_disabled, w.paused_at IS NOT NULL AS is_paused,
             coalesce({HAS_RECOVERED}, false) AS has_recovered,
             coalesce({}, false) AS is_failing, {} AS failing_since, {} AS failed_at,
             {} AS succeeded_at, {} AS disabled_time, {} AS paused_time, {}, {}
         FROM webhook_conditions AS c JOIN webhooks AS w ON w.id = c.webhook_id
         WHERE {} ORDER BY c.webhook_id LIMIT $1
         FOR UPDATE OF c SKIP LOCKED",
        is_unannounced_failure(),
        unix_millis("greatest(c.failing_since, c.succeeded_at)"),
        unix_millis("c.failed_at"),
        unix_millis("c.succeeded_at"),
        rfc3339("w.disabled_at"),
        rfc3339("w.paused_at"),
        text("disabled_reason", MOST_OF_REASON),
        columns_of_subject(),
        is_unannounced(),
    );
    let rows = transaction.query_typed(&asked, &[(&most, Type::INT8)])?;
    let mut unannounced = Vec::with_capacity(rows.len());
    let (mut ids, mut disabled, mut paused, mut failing, mut restarted) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let (is_disabled, is_paused): (bool, bool) =
            (row.try_get("is_disabled")?, row.try_get("is_paused")?);
        let was_switched = is_disabled != row.try_get::<_, bool>("told_disabled")?
            || is_paused != row.try_get::<_, bool>("told_paused")?;
        let one = Unannounced {
            webhook: row.try_get("webhook_id")?,
            subject: subject(row)?,
            changes: changes_of(row, is_disabled, is_paused)?,
        };
        let has = |kind: fn(&WebhookChange) -> bool| one.changes.iter().any(kind);
        ids.push(one.webhook);
        disabled.push(is_disabled);
        paused.push(is_paused);
        failing.push(if is_disabled || has(|it| matches!(it, WebhookChange::Recovered { .. })) {
            Some(false)
        } else {
            has(|it| matches!(it, WebhookChange::Failing { .. })).then_some(true)
        });
        restarted.push(was_switched);
        unannounced.push(one);
    }
    transaction.execute_typed(
        "UPDATE webhook_conditions AS c SET
             told_disabled = u.disabled, told_paused = u.paused,
             told_failing_at = CASE WHEN u.failing THEN now() WHEN NOT u.failing THEN NULL
                                    ELSE c.told_failing_at END,
             -- An operator has taken care of it, so earlier failures no longer count.
             failing_since = CASE WHEN u.restarted THEN NULL ELSE c.failing_since END,
             failed_at = CASE WHEN u.restarted THEN NULL ELSE c.failed_at END,
             open_since = CASE WHEN u.restarted THEN NULL ELSE c.open_since END
         FROM unnest($1, $2, $3, $4, $5) AS u (id, disabled, paused, failing, restarted)
         WHERE c.webhook_id = u.id",
        &[
            (&ids, Type::UUID_ARRAY),
            (&disabled, Type::BOOL_ARRAY),
            (&paused, Type::BOOL_ARRAY),
            (&failing, Type::BOOL_ARRAY),
            (&restarted, Type::BOOL_ARRAY),
        ],
    )?;
    Ok(unannounced)
}

fn changes_of(
    row: &Row,
    is_disabled: bool,
    is_paused: bool,
) -> Result<Vec<WebhookChange>, postgres::Error> {
    let mut changes = Vec::new();
    if row.try_get("has_recovered")? && !is_disabled {
        changes.push(WebhookChange::Recovered { at: row.try_get("succeeded_at")? });
    }
    if row.try_get("is_failing")? {
        let since: Option<UnixMillis> = row.try_get("failing_since")?;
        let failed_at: Option<UnixMillis> = row.try_get("failed_at")?;
        changes.push(WebhookChange::Failing {
            since: since.unwrap_or(0),
            failed_at: failed_at.unwrap_or(0),
        });
    }
    match (row.try_get("told_disabled")?, is_disabled) {
        (false, true) => changes.push(WebhookChange::Disabled {
            at: some(row, "disabled_time")?,
            reason: some(row, "disabled_reason")?,
        }),
        (true, false) => changes.push(WebhookChange::Enabled),
        _ => {}
    }
    match (row.try_get("told_paused")?, is_paused) {
        (false, true) => changes.push(WebhookChange::Paused { at: some(row, "paused_time")? }),
        (true, false) => changes.push(WebhookChange::Resumed),
        _ => {}
    }
    Ok(changes)
}

fn columns_of_subject() -> String {
    [text("post_url", MAX_URL_CHARS), text("account", MOST_OF_ACCOUNT)].join(", ")
}

fn subject(row: &Row) -> Result<Subject, postgres::Error> {
    Ok(Subject {
        account: some(row, "account")?,
        post_url: some(row, "post_url")?.unwrap_or_default(),
    })
}
