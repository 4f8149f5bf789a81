//! The settings of a webhook as arguments.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value};

use super::super::Usage;
use crate::domain::secret::Secret;
use crate::domain::settings::{Column, Columns, MAX_COLUMN_CHARS, check_headers};
use crate::domain::shown::quoted;
use crate::domain::signature::{self, SigningKey};
use crate::domain::time::Span;
use crate::domain::webhook::HIDDEN;
use crate::store::ColumnChange;

/// The settings to change.
#[derive(Debug, Args)]
pub(in crate::cli) struct GivenSettings {
    /// A header for each request, `Name: value` (can be repeated); together these replace all its
    /// headers. Other users of this machine can see arguments: use --headers-from for secrets
    #[arg(long = "header", value_name = "HEADER", value_parser = hide)]
    headers: Vec<Secret>,
    /// Read such headers from a file, one per line; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    headers_from: Option<PathBuf>,
    /// How long a request may take, such as 5s; at most REQUEST_TIMEOUT
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// Requests that may be in flight at a time, in all instances together
    #[arg(long, value_name = "N")]
    max_in_flight: Option<String>,
    /// Requests in a second, such as 10 or 0.5, in all instances together
    #[arg(long, value_name = "N")]
    rate: Option<String>,
    /// Statuses after which a delivery is dead at once, such as 400,404,422 or 4xx, instead of those in
    /// NO_RETRY_STATUS; `none` for none
    #[arg(long, value_name = "LIST")]
    no_retry: Option<String>,
    /// A description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Its account: it gets only the events of this account; without an account it gets every event.
    /// Webhooks of one account share capacity
    #[arg(long, value_name = "TEXT")]
    account: Option<String>,
}

impl GivenSettings {
    /// The account, if one is given.
    pub(super) fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }
}

/// A secret that the receiver already has.
#[derive(Debug, Args)]
pub(in crate::cli) struct GivenSecret {
    /// A file with the secret that the receiver already has (`whsec_` and base64); `-` reads standard
    /// input
    #[arg(long, value_name = "FILE")]
    secret_from: Option<PathBuf>,
}

/// The settings to remove.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct Unset {
    /// Remove a setting: header (all of them), timeout, max-in-flight, rate, no-retry, description,
    /// account (can be repeated)
    #[arg(long = "unset", value_name = "SETTING", value_parser = column)]
    columns: Vec<Column>,
}

impl Unset {
    /// Whether the account is removed.
    pub(super) fn account(&self) -> bool {
        self.columns.contains(&Column::Account)
    }
}

fn hide(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text.to_owned()))
}

fn column(flag: &str) -> Result<Column, String> {
    let named = Column::ALL.into_iter().find(|column| column.flag() == flag);
    named.ok_or_else(|| {
        let flags = Column::ALL.map(Column::flag);
        format!("it is one of {}", flags.join(", "))
    })
}

/// The changes of settings, after the checks that a delivery makes.
pub(super) fn changes(given: &GivenSettings, unset: &Unset) -> Result<Vec<ColumnChange>> {
    let columns = Columns {
        headers: headers(given)?,
        timeout_ms: given.timeout.map(|time| time.as_millis().to_string()),
        max_in_flight: given.max_in_flight.clone(),
        rate_per_second: given.rate.clone(),
        account: given.account.clone(),
        no_retry_status: given.no_retry.clone(),
    };
    if let Err(unusable) = columns.read() {
        return Err(Usage(format!("--{}: {}", unusable.column.flag(), unusable.problem)).into());
    }
    let text = |text: &Option<String>| text.clone().map(Secret::new);
    let given = [
        (Column::Headers, columns.headers.clone()),
        (Column::TimeoutMs, text(&columns.timeout_ms)),
        (Column::MaxInFlight, text(&columns.max_in_flight)),
        (Column::RatePerSecond, text(&columns.rate_per_second)),
        (Column::NoRetryStatus, text(&columns.no_retry_status)),
        (Column::Description, text(&given.description)),
        (Column::Account, text(&columns.account)),
    ];
    let mut changes = Vec::new();
    for (column, value) in given {
        let dropped = unset.columns.contains(&column);
        if dropped && value.is_some() {
            return Err(
                Usage(format!("--{} can't be given and unset at once", column.flag())).into()
            );
        }
        if dropped || value.is_some() {
            changes.push(ColumnChange::new(column, value.as_ref()));
        }
    }
    Ok(changes)
}

/// Reads the given secret, if there is one. `settings` may use standard input too.
pub(super) fn secret(given: &GivenSecret, settings: &GivenSettings) -> Result<Option<Secret>> {
    let Some(file) = &given.secret_from else { return Ok(None) };
    if file.to_str().is_some_and(|text| text.starts_with(signature::PREFIX)) {
        // The error must not show the secret.
        return Err(Usage(
            "--secret-from takes the name of a file, not the secret: other users of this machine see \
             arguments. `-` reads standard input"
                .to_owned(),
        )
        .into());
    }
    let is_stdin = |file: &Path| file == Path::new("-");
    if is_stdin(file) && settings.headers_from.as_deref().is_some_and(is_stdin) {
        let problem = "--secret-from and --headers-from can't both read standard input";
        return Err(Usage(problem.to_owned()).into());
    }
    let shown = name_of(file);
    let text = read_text(file, &shown)?;
    let secret = text.trim();
    SigningKey::parse(secret).map_err(|error| Usage(format!("--secret-from {shown}: {error}")))?;
    Ok(Some(Secret::new(secret.to_owned())))
}

/// The headers as JSON for the table; `None` if there are none.
fn headers(given: &GivenSettings) -> Result<Option<Secret>> {
    let mut lines: Vec<String> =
        given.headers.iter().map(|header| header.expose().to_owned()).collect();
    if let Some(file) = &given.headers_from {
        let text = read_text(file, &quoted(&file.to_string_lossy()))?;
        lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let mut pairs = Vec::new();
    for line in &lines {
        let Some((name, value)) = line.split_once(':') else {
            // The error must not show the line, which may be a secret.
            return Err(Usage("--header: a header is `Name: value`".to_owned()).into());
        };
        pairs.push((name.trim(), value.trim()));
    }
    if let Some((name, _)) = pairs.iter().find(|(_, value)| *value == HIDDEN) {
        let name = quoted(name);
        let problem = format!(
            "--header: `{HIDDEN}` stands for a value that is not shown: give the value of {name}"
        );
        return Err(Usage(problem).into());
    }
    check_headers(pairs.iter().map(|(name, value)| (*name, Some(*value))))
        .map_err(|problem| Usage(format!("--header: {problem}")))?;
    let value = |value: &str| Value::String(value.to_owned());
    let json: Map<String, Value> =
        pairs.into_iter().map(|(name, text)| (name.to_ascii_lowercase(), value(text))).collect();
    Ok(Some(Secret::new(Value::Object(json).to_string())))
}

/// The number of base64 characters in the shortest secret.
const LEAST_OF_SECRET: usize = 32;

/// The name of a file for messages; hidden if it may be the secret itself, without its prefix.
fn name_of(file: &Path) -> String {
    let name = file.to_string_lossy();
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
    let is_path = name.strip_prefix('/').is_some_and(|rest| rest.contains('/'));
    let may_be_secret = name.len() >= LEAST_OF_SECRET && !is_path && name.bytes().all(is_base64);
    match may_be_secret {
        true => "the file (its name looks like a secret, and is not shown)".to_owned(),
        false => quoted(&name),
    }
}

fn read_text(file: &Path, shown: &str) -> Result<String> {
    let mut text = String::new();
    // More than this can't be stored.
    let most = MAX_COLUMN_CHARS as u64;
    let read = match file.to_str() {
        Some("-") => io::stdin().take(most).read_to_string(&mut text),
        _ => File::open(file).and_then(|file| file.take(most).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {shown}"))?;
    Ok(text)
}
