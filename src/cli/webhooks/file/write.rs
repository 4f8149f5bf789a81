//! Writes the webhooks as a file declares them.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::domain::declared::{Existing, Values};
use crate::domain::secret::Secret;
use crate::domain::settings::Column;
use crate::domain::shown;
use crate::domain::webhook::{HIDDEN, without_secrets};

/// The order of an entry's settings.
const SETTINGS: [Column; 6] = [
    Column::Account,
    Column::Description,
    Column::TimeoutMs,
    Column::MaxInFlight,
    Column::RatePerSecond,
    Column::NoRetryStatus,
];

/// An entry: its keys in order. A setting that the webhook doesn't have is left out.
fn entry(known: &Existing, reveal: bool) -> Vec<(&'static str, Value)> {
    let Values { post_url, events, headers, settings, paused, disabled, secret } = &known.values;
    let url = if reveal { post_url.clone() } else { without_secrets(post_url) };
    let mut entry =
        vec![("id", json!(known.id)), ("post_url", json!(url)), ("events", json!(events))];
    for column in SETTINGS {
        let text = settings.get(&column);
        entry.extend(text.map(|text| (column.name(), setting(column, text))));
    }
    if !headers.is_empty() {
        let shown =
            |value: &Secret| if reveal { value.expose().to_owned() } else { HIDDEN.to_owned() };
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), Value::String(shown(value))));
        entry.push(("headers", Value::Object(headers.collect())));
    }
    if *paused {
        entry.push(("paused", json!(true)));
    }
    if let Some(reason) = disabled {
        entry.push(("disabled", json!(true)));
        if !reason.is_empty() {
            entry.push(("disabled_reason", json!(reason)));
        }
    }
    if let Some(secret) = secret.as_ref().filter(|_| reveal) {
        entry.push(("secret", json!(secret.expose())));
    }
    entry
}

/// A number if possible.
fn setting(column: Column, text: &str) -> Value {
    let is_number =
        matches!(column, Column::TimeoutMs | Column::MaxInFlight | Column::RatePerSecond);
    let whole = || text.parse::<i64>().ok().map(Value::from);
    // Only if the JSON parser reads back the same number: it may be wrong in the last of 17 digits.
    let is_exact = |number: &f64| {
        serde_json::from_str::<f64>(&json!(number).to_string()).ok() == Some(*number)
    };
    let number = || text.parse().ok().filter(is_exact).map(Value::from);
    let number = is_number.then(|| whole().or_else(number)).flatten();
    number.unwrap_or_else(|| json!(text))
}

/// As JSON, for printing.
pub(in crate::cli::webhooks) fn as_json(known: &[&Existing], reveal: bool) -> Value {
    let object = |known: &&Existing| {
        let pairs = entry(known, reveal).into_iter();
        Value::Object(pairs.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
    };
    json!({ "webhooks": known.iter().map(object).collect::<Vec<_>>() })
}

/// As TOML.
pub(in crate::cli::webhooks) fn as_toml(known: &[&Existing], reveal: bool) -> String {
    let what = if reveal {
        "# With secrets: keep this file as you keep passwords."
    } else {
        "# `apply` leaves `***`, and the secrets that are not in this file, unchanged."
    };
    let mut text = format!("# Webhooks, for `webhook-notifier webhooks apply FILE`.\n{what}\n");
    if known.is_empty() {
        text.push_str("\nwebhooks = []\n");
    }
    for known in known {
        text.push_str("\n[[webhooks]]\n");
        for (key, value) in entry(known, reveal) {
            let _ = writeln!(text, "{key} = {}", toml(&value));
        }
    }
    text
}

fn toml(value: &Value) -> String {
    match value {
        Value::String(text) => toml_text(text),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(toml).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(pairs) => {
            let pairs =
                pairs.iter().map(|(key, value)| format!("{} = {}", toml_key(key), toml(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        // Written alike in TOML and JSON.
        other => other.to_string(),
    }
}

/// A bare key if that is allowed.
fn toml_key(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !key.is_empty() && key.chars().all(is_bare) { key.to_owned() } else { toml_text(key) }
}

/// A basic string in which invisible characters are escaped.
fn toml_text(text: &str) -> String {
    let mut written = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => written.extend(['\\', c]),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            c if shown::is_hidden(c) => {
                let _ = write!(written, "\\U{:08X}", u32::from(c));
            }
            c => written.push(c),
        }
    }
    written.push('"');
    written
}

#[cfg(test)]
mod tests {
    use super::super::syntax;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    fn known(url: &str, text: &str, number: &str) -> Existing {
        let settings = [
            (Column::Description, text.to_owned()),
            (Column::RatePerSecond, number.to_owned()),
            (Column::TimeoutMs, number.to_owned()),
        ];
        let values = Values {
            post_url: url.to_owned(),
            events: vec![text.to_owned(), "*".to_owned()],
            headers: BTreeMap::from([(text.to_owned(), Secret::new("s3cret".to_owned()))]),
            settings: settings.into(),
            paused: true,
            disabled: Some(text.to_owned()),
            secret: Some(Secret::new("s3cret".to_owned())),
        };
        Existing { id: Uuid::nil(), version: None, values, flaw: None, has_odd_headers: false }
    }

    #[test]
    fn an_export_has_no_secret_unless_it_is_to() {
        let known = known("https://a.b/?s3cret", "text", "7");
        for reveal in [false, true] {
            let texts = [as_toml(&[&known], reveal), as_json(&[&known], reveal).to_string()];
            for text in texts {
                assert_eq!(text.matches("s3cret").count(), if reveal { 3 } else { 0 }, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn both_forms_say_the_same_whatever_stands_in_the_table(
            url: String, text: String, number in "[0-9]{1,4}([.][0-9]{1,3})?|[a-z]{0,3}|-?[0-9]{18,20}",
        ) {
            let known = known(&url, &text, &number);
            let written = as_toml(&[&known], true);
            let no_hidden = !written.contains(|c| c != '\n' && shown::is_hidden(c));
            prop_assert!(no_hidden, "{}", written);
            let json = as_json(&[&known], true).to_string();
            let read = |tables: Result<(Vec<syntax::FileTable>, _), Vec<_>>| {
                let (mut tables, _) = tables.expect("it was written so");
                tables.remove(0).pairs.into_iter().map(|(key, _, value)| (key, value)).collect::<BTreeMap<_, _>>()
            };
            prop_assert_eq!(read(syntax::toml(&written)), read(syntax::json(&json)));
        }
    }
}
