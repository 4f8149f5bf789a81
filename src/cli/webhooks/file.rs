//! Reads and writes files that declare webhooks, in TOML or JSON.
//!
//! Both contain one list, `webhooks`, of tables. Their keys are the columns of the database, and a few
//! more.

mod syntax;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use uuid::Uuid;

use crate::domain::declared::{FileEntry, FileProblem, SecretHeaders};
use crate::domain::secret::Secret;
use crate::domain::settings::Column;
use crate::domain::shown::quoted;
use crate::domain::signature::Key;
use crate::domain::webhook::HIDDEN;
use syntax::FileTable;

pub(super) use write::{as_json, as_toml};

/// The largest file: several hundred thousand webhooks.
const MOST_BYTES: u64 = 256 << 20;

/// The largest file with a secret.
const MOST_OF_SECRET: u64 = 4 << 10;

/// The keys of an entry.
const KEYS: [&str; 15] = [
    "id",
    "post_url",
    "events",
    "account",
    "description",
    "headers",
    "timeout_ms",
    "max_in_flight",
    "rate_per_second",
    "no_retry_status",
    "paused",
    "disabled",
    "disabled_reason",
    "secret",
    "secret_from",
];

/// The text of a file that declares webhooks.
pub(super) struct Source {
    /// The name for messages.
    pub(super) name: String,
    /// The directory to which file names in it are relative.
    folder: PathBuf,
    is_json: bool,
    text: String,
}

impl Source {
    /// Reads a file, or standard input if it is `-`.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let is_stdin = file == Path::new("-");
        let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
        let mut bytes = Vec::new();
        let read = match is_stdin {
            true => io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes),
            false => {
                File::open(file).and_then(|it| it.take(MOST_BYTES + 1).read_to_end(&mut bytes))
            }
        };
        read.with_context(|| format!("cannot read {}", quoted(&name)))?;
        if bytes.len() as u64 > MOST_BYTES {
            bail!("{} has more than {} MiB", quoted(&name), MOST_BYTES >> 20);
        }
        let text = String::from_utf8(bytes).ok();
        let text = text.with_context(|| format!("{} is not UTF-8", quoted(&name)))?;
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        // TOML can't begin like this.
        let is_json = text.trim_start().starts_with('{')
            || file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self { name, folder, is_json, text })
    }

    /// The declared webhooks, and the problems. If the syntax is broken, only that is reported.
    pub(super) fn entries(&self) -> (Vec<FileEntry>, Vec<FileProblem>) {
        let tables = if self.is_json { syntax::json(&self.text) } else { syntax::toml(&self.text) };
        let (tables, mut problems) = match tables {
            Ok(read) => read,
            Err(problems) => return (Vec::new(), problems),
        };
        let entries = tables.into_iter().map(|table| self.entry(table, &mut problems)).collect();
        (entries, problems)
    }

    fn entry(&self, table: FileTable, problems: &mut Vec<FileProblem>) -> FileEntry {
        let mut entry = FileEntry { line: table.line, ..FileEntry::default() };
        let mut lines = BTreeMap::new();
        let mut unread = BTreeSet::new();
        for (key, line, value) in table.pairs {
            if value.is_null() {
                continue;
            }
            let is_twice = lines.insert(key.clone(), line).is_some();
            let read = if is_twice { Err("it is given twice".to_owned()) } else { Ok(()) };
            let read = read.and_then(|()| self.put(&mut entry, &key, value));
            if let Err(what) = read {
                let shown = if KEYS.contains(&&*key) { key.clone() } else { quoted(&key) };
                problems.push(FileProblem { line, what: format!("{shown}: {what}") });
                unread.insert(key);
            }
        }
        if lines.contains_key("secret") && lines.contains_key("secret_from") {
            let what = "give `secret` or `secret_from`, not both".to_owned();
            problems.push(FileProblem { line: entry.line, what });
        }
        if entry.disabled != Some(true)
            && let Some(line) = lines.get("disabled_reason")
        {
            let what = "disabled_reason: only with `disabled = true`".to_owned();
            problems.push(FileProblem { line: *line, what });
        }
        FileEntry { lines, unread, ..entry }
    }

    /// Reads the value of a key.
    fn put(&self, entry: &mut FileEntry, key: &str, value: Value) -> Result<(), String> {
        match key {
            "id" => {
                let id =
                    Uuid::parse_str(&text(value)?).map_err(|_| "it is not a UUID".to_owned())?;
                entry.id = Some(id);
            }
            "post_url" => entry.post_url = text(value)?,
            "events" => entry.events = texts(value)?,
            "headers" => entry.headers = headers(value)?,
            "paused" => entry.paused = Some(flag(&value)?),
            "disabled" => entry.disabled = Some(flag(&value)?),
            "disabled_reason" => entry.disabled_reason = Some(text(value)?),
            "secret" => entry.secret = secret(&text(value)?)?,
            "secret_from" => entry.secret = secret(&self.read_beside(&text(value)?)?)?,
            _ => {
                let column = Column::ALL.into_iter().find(|column| column.name() == key);
                let text = match column.ok_or_else(|| unknown(key))? {
                    Column::Description => text(value)?,
                    _ => text_or_number(value)?,
                };
                entry.settings.extend(column.map(|column| (column, text)));
            }
        }
        Ok(())
    }

    fn read_beside(&self, name: &str) -> Result<String, String> {
        let file = self.folder.join(name);
        let problem =
            |error: String| format!("cannot read {}: {error}", quoted(&file.to_string_lossy()));
        if name.starts_with(crate::domain::signature::PREFIX) {
            return Err(
                "it is the name of a file: the key for the secret itself is `secret`".to_owned()
            );
        }
        let mut text = String::new();
        // The size of a device isn't known in advance.
        let read = fs::File::open(&file)
            .and_then(|file| file.take(MOST_OF_SECRET + 1).read_to_string(&mut text));
        match read {
            Ok(read) if read as u64 > MOST_OF_SECRET => Err(problem("too large".to_owned())),
            Ok(_) => Ok(text),
            Err(error) => Err(problem(error.to_string())),
        }
    }
}

fn unknown(key: &str) -> String {
    let near = KEYS.iter().find(|known| known.contains(key) || key.contains(*known));
    match near {
        Some(near) => format!("there is no such key: is it `{near}`?"),
        None => format!("there is no such key: there are {}", KEYS.join(", ")),
    }
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("it is not a string".to_owned()),
    }
}

fn text_or_number(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err("it is neither a string nor a number".to_owned()),
    }
}

fn flag(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "it is neither true nor false".to_owned())
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    let problem = || "it is not a list of strings, such as [\"user.*\", \"order.paid\"]".to_owned();
    let Value::Array(values) = value else { return Err(problem()) };
    values.into_iter().map(|value| text(value).map_err(|_| problem())).collect()
}

/// By lower-case name.
fn headers(value: Value) -> Result<SecretHeaders, String> {
    let Value::Object(pairs) = value else {
        return Err(
            "they are not a table of strings, such as { authorization = \"Bearer …\" }".to_owned()
        );
    };
    let mut headers = SecretHeaders::new();
    for (name, value) in pairs {
        let Value::String(value) = value else {
            return Err(format!("the value of {} is not a string", quoted(&name)));
        };
        if headers.insert(name.to_ascii_lowercase(), Secret::new(value)).is_some() {
            return Err(format!("{} is listed twice", quoted(&name)));
        }
    }
    Ok(headers)
}

/// `None` if the webhook keeps its secret.
fn secret(text: &str) -> Result<Option<Secret>, String> {
    match text.trim() {
        HIDDEN => Ok(None),
        secret => {
            Key::parse(secret).map_err(|error| error.to_string())?;
            Ok(Some(Secret::new(secret.to_owned())))
        }
    }
}
