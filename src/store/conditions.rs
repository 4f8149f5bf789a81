//! The table `webhook_conditions`: since when webhooks have been failing, and which changes of webhooks
//! have been announced.

use std::time::Duration;

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::time::unix_millis;
use super::{Store, StoreError};
use crate::domain::notice::NO_SUCCESS;
use crate::domain::time::UnixMillis;

mod unannounced;

pub use unannounced::{Unannounced, WebhookChange};

/// How many rows are read at most: more than a process remembers receivers.
const MOST_ROWS: i64 = 20_000;

/// How many of the most recently disabled webhooks are reported.
const MOST_RECENT: i64 = 20;

/// How long the row of a webhook without new events is kept.
const KEPT_FOR: &str = "interval '30 days'";

/// Whether a webhook is failing: its last failure is later than its last success.
const IS_FAILING: &str = "c.failed_at > coalesce(c.succeeded_at, '-infinity')";

/// An outage of a webhook's receiver. Its times are ages, so that only PostgreSQL's clock matters.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// The webhook.
    pub webhook: Uuid,
    /// How long ago it began.
    pub since: Duration,
    /// How long ago the last attempt failed.
    pub failed: Duration,
    /// How long ago its circuit breaker opened, if it is open.
    pub opened: Option<Duration>,
}

/// A webhook that was recently disabled because it failed for too long.
#[derive(Clone, Debug)]
pub struct RecentlyDisabled {
    /// The webhook.
    pub webhook: Uuid,
    /// The recorded reason, which begins with [`NO_SUCCESS`].
    pub reason: String,
}

impl Store {
    /// The webhooks that are failing or were announced as failing, by the records of all notifiers. With
    /// each comes the age of its latest record: the outage's beginning, a success, or a rest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn failing_webhooks(&self) -> Result<Vec<(Uuid, Duration)>, StoreError> {
        let asked = format!(
            "SELECT webhook_id, extract(epoch FROM now() -
                 coalesce(greatest(failing_since, succeeded_at, rested_at), told_failing_at))::float8 AS ago
             FROM webhook_conditions AS c
             WHERE {IS_FAILING} OR told_failing_at IS NOT NULL LIMIT {MOST_ROWS}"
        );
        self.query(move |client| {
            let rows = client.query_typed(&asked, &[])?;
            let read = |row: &Row| {
                let ago: Option<f64> = row.try_get("ago")?;
                Ok((row.try_get("webhook_id")?, seconds(ago.unwrap_or(0.0))))
            };
            rows.iter().map(read).collect()
        })
    }

    /// Records the last success of each of these webhooks, given by its age.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_successes(&self, successes: &[(Uuid, Duration)]) -> Result<(), StoreError> {
        let (ids, ago): (Vec<Uuid>, Vec<f64>) =
            successes.iter().map(|(webhook, ago)| (*webhook, ago.as_secs_f64())).unzip();
        self.query(move |client| {
            client.execute_typed(
                "UPDATE webhook_conditions AS c
                 SET succeeded_at = now() - make_interval(secs => s.ago), open_since = NULL
                 FROM unnest($1, $2) AS s (id, ago)
                 WHERE c.webhook_id = s.id
                     AND (c.succeeded_at IS NULL
                          OR c.succeeded_at < now() - make_interval(secs => s.ago))",
                &[(&ids, Type::UUID_ARRAY), (&ago, Type::FLOAT8_ARRAY)],
            )
        })
        .map(drop)
    }

    /// Records which webhooks are paused or disabled now, each at most once per interval. An operator has
    /// taken care of them, so their earlier failures no longer count, announced or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_rest(&self, interval: Duration) -> Result<(), StoreError> {
        let interval = interval.as_secs_f64();
        self.query(move |client| {
            client.execute_typed(
                "INSERT INTO webhook_conditions AS c (webhook_id, rested_at)
                 SELECT w.id, now() FROM webhooks AS w
                 WHERE (w.disabled_at IS NOT NULL OR w.paused_at IS NOT NULL) AND w.id IS NOT NULL
                     AND NOT EXISTS (
                         SELECT 1 FROM webhook_conditions AS known WHERE known.webhook_id = w.id
                             AND known.rested_at > now() - make_interval(secs => $1))
                 ORDER BY w.id
                 ON CONFLICT (webhook_id) DO UPDATE SET
                     rested_at = now(), failing_since = NULL, failed_at = NULL, open_since = NULL",
                &[(&interval, Type::FLOAT8)],
            )
        })
        .map(drop)
    }

    /// Records failing webhooks. If an outage is new in the table, its recorded beginning is at most
    /// `most_before` earlier than its last failure. If nothing was attempted for longer than `gap`, a new
    /// outage begins.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_failures(
        &self,
        failing: &[Failing],
        most_before: Duration,
        gap: Duration,
    ) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = failing.iter().map(|one| one.webhook).collect();
        let of = |time: fn(&Failing) -> Option<Duration>| -> Vec<Option<f64>> {
            failing.iter().map(|one| time(one).map(|ago| ago.as_secs_f64())).collect()
        };
        let (since, failed) = (of(|one| Some(one.since)), of(|one| Some(one.failed)));
        let opened = of(|one| one.opened);
        let (most_before, gap) = (most_before.as_secs_f64(), gap.as_secs_f64());
        let statement = format!(
            "INSERT INTO webhook_conditions AS c (webhook_id, failing_since, failed_at, open_since)
             SELECT f.id, now() - make_interval(secs => least(f.since, f.failed + $5)),
                 now() - make_interval(secs => f.failed), now() - make_interval(secs => f.opened)
             FROM unnest($1, $2, $3, $4) AS f (id, since, failed, opened)
             WHERE EXISTS (SELECT 1 FROM webhooks AS w
                           WHERE w.id = f.id AND w.disabled_at IS NULL AND w.paused_at IS NULL)
             -- All notifiers lock the rows in the same order, so they can't deadlock.
             ORDER BY f.id
             ON CONFLICT (webhook_id) DO UPDATE SET
                 failing_since = CASE
                     WHEN c.failing_since IS NULL OR NOT coalesce({IS_FAILING}, false)
                         THEN greatest(excluded.failing_since, c.rested_at)
                     WHEN excluded.failed_at > c.failed_at + make_interval(secs => $6)
                         THEN excluded.failed_at
                     ELSE c.failing_since END,
                 open_since = CASE
                     WHEN c.failing_since IS NULL OR NOT coalesce({IS_FAILING}, false)
                         THEN excluded.open_since
                     ELSE coalesce(c.open_since, excluded.open_since) END,
                 failed_at = greatest(c.failed_at, excluded.failed_at)
             WHERE excluded.failed_at > coalesce(c.rested_at, '-infinity')"
        );
        self.query(move |client| {
            client.execute_typed(
                &statement,
                &[
                    (&ids, Type::UUID_ARRAY),
                    (&since, Type::FLOAT8_ARRAY),
                    (&failed, Type::FLOAT8_ARRAY),
                    (&opened, Type::FLOAT8_ARRAY),
                    (&most_before, Type::FLOAT8),
                    (&gap, Type::FLOAT8),
                ],
            )
        })
        .map(drop)
    }

    /// Disables the webhooks whose last failure is at least `after` later than the first one, and records
    /// this reason. Returns these webhooks, and since when each had been failing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn disable_failing(
        &self,
        after: Duration,
        reason: &str,
    ) -> Result<Vec<(Uuid, UnixMillis)>, StoreError> {
        let (after, reason) = (after.as_secs_f64(), reason.to_owned());
        const DUE: &str = "c.failed_at - greatest(c.failing_since, c.succeeded_at, c.rested_at)
             >= make_interval(secs => $1)";
        // An UPDATE notifies all notifiers even if it changes no row, and each then clears its directory.
        let is_any_due = format!(
            "SELECT 1 FROM webhook_conditions AS c JOIN webhooks AS w ON w.id = c.webhook_id
             WHERE {IS_FAILING} AND {DUE} AND w.disabled_at IS NULL AND w.paused_at IS NULL LIMIT 1"
        );
        let statement = format!(
            "WITH due AS (
                 SELECT c.webhook_id, greatest(c.failing_since, c.succeeded_at, c.rested_at) AS since
                 FROM webhook_conditions AS c
                 WHERE {IS_FAILING} AND {DUE} FOR UPDATE SKIP LOCKED
             ), disabled AS (
                 UPDATE webhooks AS w SET disabled_at = now(), disabled_reason = $2
                 FROM due
                 WHERE w.id = due.webhook_id AND w.disabled_at IS NULL AND w.paused_at IS NULL
                 RETURNING w.id, due.since
             ), begun_anew AS (
                 UPDATE webhook_conditions AS c
                 SET failing_since = NULL, failed_at = NULL, open_since = NULL, told_failing_at = NULL
                 WHERE c.webhook_id IN (SELECT id FROM disabled)
             )
             SELECT id, {} AS since FROM disabled",
            unix_millis("since")
        );
        self.query(move |client| {
            if client.query_typed(&is_any_due, &[(&after, Type::FLOAT8)])?.is_empty() {
                return Ok(Vec::new());
            }
            let rows =
                client.query_typed(&statement, &[(&after, Type::FLOAT8), (&reason, Type::TEXT)])?;
            rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("since")?))).collect()
        })
    }

    /// Deletes the rows of webhooks that have recovered or no longer exist.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_conditions(&self) -> Result<(), StoreError> {
        let statement = format!(
            "DELETE FROM webhook_conditions AS c WHERE NOT EXISTS (
                 SELECT 1 FROM webhooks AS w WHERE w.id = c.webhook_id AND (
                     c.told_disabled OR c.told_paused OR c.told_failing_at IS NOT NULL
                     OR w.disabled_at IS NOT NULL OR w.paused_at IS NOT NULL
                     OR c.rested_at > now() - {KEPT_FOR}
                     OR coalesce({IS_FAILING} AND c.failed_at > now() - {KEPT_FOR}, false)))"
        );
        self.query(move |client| client.execute_typed(&statement, &[])).map(drop)
    }

    /// The webhooks that were disabled within the last day because they failed for too long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn recently_disabled(&self) -> Result<Vec<RecentlyDisabled>, StoreError> {
        self.query(|client| {
            let rows = client.query_typed(
                "SELECT id, left(disabled_reason, 200) AS reason FROM webhooks
                 WHERE (disabled_at IS NOT NULL OR paused_at IS NOT NULL)
                     AND disabled_at > now() - interval '1 day'
                     AND starts_with(disabled_reason, $1)
                 ORDER BY disabled_at DESC, id LIMIT $2",
                &[(&NO_SUCCESS, Type::TEXT), (&MOST_RECENT, Type::INT8)],
            )?;
            let read = |row: &Row| {
                Ok(RecentlyDisabled { webhook: row.try_get("id")?, reason: row.try_get("reason")? })
            };
            rows.iter().map(read).collect()
        })
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

/// The statements of `run` on this table, so written that they affect no row: for
/// [`Store::missing_rights`].
pub(super) const STATEMENTS: &str = "INSERT INTO webhook_conditions (webhook_id)
     SELECT NULL::uuid WHERE false ON CONFLICT (webhook_id) DO UPDATE SET failed_at = now();
     DELETE FROM webhook_conditions WHERE false";
