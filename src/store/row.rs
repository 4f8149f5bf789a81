//! Reads rows of `webhooks` so that no content of a row makes the query fail.
//!
//! Anybody with SQL access can write these rows, and one row must not affect other webhooks. So each column
//! is read as text, and PostgreSQL sends no more of it than can be used. It replaces a larger value, without
//! decompressing it, by question marks, which are too long as well. An invalid value makes its webhook
//! unusable. If PostgreSQL itself fails on a row (its encoding can't be converted to UTF-8, or the disk lost
//! a part of it), fewer and fewer rows are read at a time until that row is found.

use postgres::types::Type;
use postgres::{Client, Row};
use uuid::Uuid;

use super::error::is_of_a_value;
use super::time::unix_seconds;
use crate::domain::account;
use crate::domain::secret::Secret;
use crate::domain::settings::{Columns, MAX_COLUMN_CHARS};
use crate::domain::webhook::{MAX_URL_CHARS, Secrets, Webhook};

/// The longest secret that is read, in characters: usable secrets have some ninety at most.
const MOST_OF_SECRET: usize = 1_024;

/// The longest number that is read, in characters, whatever its notation.
const MOST_OF_NUMBER: usize = 256;

/// The longest list of statuses that is read, in characters.
const MOST_OF_STATUSES: usize = 1_023;

/// More than the longest valid account name.
pub(super) const MOST_OF_ACCOUNT: usize = 1_023;

/// The account of a row as an SQL expression, the same as in the index of `sql/010_accounts.sql`. An account
/// that is too long keeps enough characters to match no event.
pub(super) const OF_ACCOUNT: &str = "left(account::text, 256)";

/// How many rows are read at a time, so that memory doesn't grow with their number.
pub(super) const CHUNK: usize = 1_000;

/// A column of any type as text: at most `most` characters, and one more if it is longer. If it has more
/// bytes than so many characters can have, it isn't decompressed.
pub(super) fn text(column: &str, most: usize) -> String {
    let (read, bytes) = (most + 1, 4 * (most + 1) + 8);
    format!(
        "CASE WHEN {column} IS NULL THEN NULL
              WHEN pg_column_size({column}) > {bytes} THEN repeat('?', {read})
              ELSE left({column}::text, {read}) END AS {column}"
    )
}

/// The column `headers`, limited as by [`text`]. Only the texts of a JSON object are read, because a number
/// of ten bytes may have 131,072 digits.
fn headers() -> String {
    let (read, bytes) = (MAX_COLUMN_CHARS + 1, 4 * (MAX_COLUMN_CHARS + 1) + 8);
    format!(
        "CASE WHEN headers IS NULL THEN NULL
              WHEN pg_column_size(headers) > {bytes} THEN repeat('?', {read})
              WHEN pg_typeof(headers) <> 'jsonb'::regtype THEN left(headers::text, {read})
              WHEN jsonb_typeof(to_jsonb(headers)) = 'null' THEN NULL
              WHEN jsonb_typeof(to_jsonb(headers)) <> 'object' THEN '[]'
              ELSE left(coalesce((
                       SELECT jsonb_object_agg(
                                  key, CASE jsonb_typeof(value) WHEN 'string' THEN value END)
                       FROM jsonb_each(to_jsonb(headers)))::text, '{{}}'), {read})
         END AS headers"
    )
}

/// The columns that [`webhook`] reads.
pub(super) fn columns_of_webhook() -> String {
    [
        "id".to_owned(),
        text("post_url", MAX_URL_CHARS),
        text("secret", MOST_OF_SECRET),
        text("previous_secret", MOST_OF_SECRET),
        format!("{} AS previous_secret_ends", unix_seconds("previous_secret_expires_at")),
        "paused_at IS NOT NULL AS is_paused".to_owned(),
        "disabled_at IS NOT NULL AS is_disabled".to_owned(),
        headers(),
        text("timeout_ms", MOST_OF_NUMBER),
        text("max_in_flight", MOST_OF_NUMBER),
        text("rate_per_second", MOST_OF_NUMBER),
        text("no_retry_status", MOST_OF_STATUSES),
        text("account", MOST_OF_ACCOUNT),
    ]
    .join(", ")
}

/// A query that fails if the table doesn't exist, lacks a column, or may not be read.
pub(super) fn probe() -> String {
    format!("SELECT {}, events FROM webhooks LIMIT 0", columns_of_webhook())
}

/// The enabled webhooks with one of these patterns that have no account, and those of this account.
pub(super) fn wanting(
    client: &mut Client,
    patterns: &Vec<String>,
    account: Option<&str>,
) -> Result<Vec<Webhook>, postgres::Error> {
    const WANTING: &str = "FROM webhooks
                           WHERE events && $1 AND disabled_at IS NULL AND id IS NOT NULL";
    let mut parameters: Vec<super::Parameter<'_>> = vec![(patterns, Type::TEXT_ARRAY)];
    if let Some(account) = &account {
        parameters.push((account, Type::TEXT));
    }
    // UNION ALL rather than OR: each part can use its own index, however many other accounts want such
    // events.
    let select = |columns: &str| {
        let everybodys = format!("SELECT {columns} {WANTING} AND account IS NULL");
        match account {
            None => everybodys,
            Some(_) => {
                format!("{everybodys} UNION ALL SELECT {columns} {WANTING} AND {OF_ACCOUNT} = $2")
            }
        }
    };
    // PostgreSQL may consider other accounts equal, by the column's collation.
    let read = |rows: Vec<Row>| -> Result<Vec<Webhook>, postgres::Error> {
        let mut webhooks = rows.iter().map(webhook).collect::<Result<Vec<_>, _>>()?;
        webhooks.retain(|webhook| account::may_have(webhook.account.as_deref(), account));
        Ok(webhooks)
    };
    match client.query_typed(&select(&columns_of_webhook()), &parameters) {
        Ok(rows) => read(rows),
        // The error is about a row. If it is about the pattern or the account, the next query fails too.
        Err(error) if is_of_a_value(&error) => {
            let rows = client.query_typed(&select("id"), &parameters)?;
            let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<_>, _>>()?;
            let unreadable = |id, why: &str, state: Switches| Webhook {
                is_paused: state.is_paused,
                ..Webhook::unreadable(id, why)
            };
            let mut found = each(client, &columns_of_webhook(), &ids, webhook, unreadable)?;
            found.retain(|webhook| account::may_have(webhook.account.as_deref(), account));
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

/// The accounts of the enabled webhooks with one of these patterns; `None` if there are more than `most`.
/// They are compared byte by byte, whatever the column's collation.
pub(super) fn accounts_wanting(
    client: &mut Client,
    patterns: &Vec<String>,
    most: usize,
) -> Result<Option<Vec<String>>, postgres::Error> {
    let rows = client.query_typed(
        &format!(
            "SELECT DISTINCT {OF_ACCOUNT} COLLATE \"C\" AS account FROM webhooks
             WHERE events && $1 AND disabled_at IS NULL AND account IS NOT NULL LIMIT {most} + 1"
        ),
        &[(patterns, Type::TEXT_ARRAY)],
    )?;
    let accounts = rows.iter().map(|row| row.try_get("account")).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(accounts).filter(|accounts| accounts.len() <= most))
}

/// The webhook with this id, if it exists, and whether it is disabled.
pub(super) fn look_up(
    client: &mut Client,
    id: Uuid,
) -> Result<Option<(Webhook, bool)>, postgres::Error> {
    let read = |row: &Row| Ok((webhook(row)?, row.try_get("is_disabled")?));
    let unreadable =
        |id, why: &str, state: Switches| (Webhook::unreadable(id, why), state.is_disabled);
    let mut found = each(client, &columns_of_webhook(), &[id], read, unreadable)?;
    Ok(found.pop())
}

/// Reads the rows with these ids, in any order. For a row that PostgreSQL can't read, `unreadable` provides
/// the value.
pub(super) fn each<T>(
    client: &mut Client,
    columns: &str,
    ids: &[Uuid],
    read: impl Fn(&Row) -> Result<T, postgres::Error>,
    unreadable: impl Fn(Uuid, &str, Switches) -> T,
) -> Result<Vec<T>, postgres::Error> {
    let asked = format!("SELECT {columns} FROM webhooks WHERE id = ANY($1)");
    let mut found = Vec::with_capacity(ids.len());
    let mut parts: Vec<&[Uuid]> = ids.chunks(CHUNK).rev().collect();
    while let Some(part) = parts.pop() {
        match client.query_typed(&asked, &[(&part, Type::UUID_ARRAY)]) {
            Ok(rows) => {
                for row in &rows {
                    found.push(read(row)?);
                }
            }
            Err(error) if is_of_a_value(&error) => match part {
                [id] => {
                    let why = error.as_db_error().map_or("", |db| db.message());
                    if let Some(state) = Switches::of(client, *id)? {
                        found.push(unreadable(*id, why, state));
                    }
                }
                several => {
                    let (first, second) = several.split_at(several.len() / 2);
                    parts.extend([second, first]);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The columns that can be read even of an unreadable row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switches {
    pub(super) is_disabled: bool,
    pub(super) is_paused: bool,
}

impl Switches {
    fn of(client: &mut Client, id: Uuid) -> Result<Option<Self>, postgres::Error> {
        let rows = client.query_typed(
            "SELECT disabled_at IS NOT NULL AS is_disabled, paused_at IS NOT NULL AS is_paused
             FROM webhooks WHERE id = $1",
            &[(&id, Type::UUID)],
        )?;
        let state = |row: &Row| {
            Ok(Self {
                is_disabled: row.try_get("is_disabled")?,
                is_paused: row.try_get("is_paused")?,
            })
        };
        rows.first().map(state).transpose()
    }
}

/// The webhook from [`columns_of_webhook`].
pub(super) fn webhook(row: &Row) -> Result<Webhook, postgres::Error> {
    let secret = |name| Ok(some(row, name)?.map(Secret::new));
    let ends: Option<i64> = row.try_get("previous_secret_ends")?;
    let ends = ends.map(|seconds| u64::try_from(seconds).unwrap_or(0));
    let secrets =
        Secrets { current: secret("secret")?, previous: secret("previous_secret")?.zip(ends) };
    let (id, is_paused) = (row.try_get("id")?, row.try_get("is_paused")?);
    let url = some(row, "post_url")?.unwrap_or_default();
    let registered = Webhook::new(id, &url, &secrets, &columns(row)?);
    Ok(Webhook { is_paused, ..registered })
}

/// The settings from [`columns_of_webhook`].
pub(super) fn columns(row: &Row) -> Result<Columns, postgres::Error> {
    Ok(Columns {
        headers: some(row, "headers")?.map(Secret::new),
        timeout_ms: some(row, "timeout_ms")?,
        max_in_flight: some(row, "max_in_flight")?,
        rate_per_second: some(row, "rate_per_second")?,
        no_retry_status: some(row, "no_retry_status")?,
        account: some(row, "account")?,
    })
}

/// The name of a column that was longer than [`columns_of_webhook`] reads, if there is one.
pub(super) fn cut(row: &Row) -> Result<Option<&'static str>, postgres::Error> {
    for (name, most) in [
        ("post_url", MAX_URL_CHARS),
        ("secret", MOST_OF_SECRET),
        ("headers", MAX_COLUMN_CHARS),
        ("timeout_ms", MOST_OF_NUMBER),
        ("max_in_flight", MOST_OF_NUMBER),
        ("rate_per_second", MOST_OF_NUMBER),
        ("no_retry_status", MOST_OF_STATUSES),
        ("account", MOST_OF_ACCOUNT),
    ] {
        if some(row, name)?.is_some_and(|text| text.chars().nth(most).is_some()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A column of text that may be NULL.
pub(super) fn some(row: &Row, name: &str) -> Result<Option<String>, postgres::Error> {
    row.try_get(name)
}
