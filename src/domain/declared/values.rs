//! A webhook's values, and the differences between two of them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::secret::Secret;
use super::super::settings::{Column, Columns, check_headers};
use super::super::shown;
use super::super::webhook::{check_pattern, read_url, without_secrets};
use super::SecretHeaders;

/// How many characters of a value are shown.
const MOST_SHOWN: usize = 300;

/// A webhook's values, before or after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// The URL that gets its events.
    pub post_url: String,
    /// The patterns of the event types it wants, in any order.
    pub events: Vec<String>,
    /// Its headers.
    pub headers: SecretHeaders,
    /// Its other settings, as text.
    pub settings: BTreeMap<Column, String>,
    /// Whether it is paused.
    pub paused: bool,
    /// Why it is disabled; `None` if it isn't.
    pub disabled: Option<String>,
    /// The secret that signs its requests.
    pub secret: Option<Secret>,
}

/// One of a webhook's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Its URL.
    PostUrl,
    /// Its patterns.
    Events,
    /// One of its settings.
    Setting(Column),
    /// Whether it is paused.
    Paused,
    /// Whether it is disabled, and why.
    Disabled,
    /// The secret that signs its requests.
    Secret,
}

/// A difference between two webhooks, printable and without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The value that differs.
    pub field: Field,
    /// The value now.
    pub from: String,
    /// The value afterwards.
    pub to: String,
}

impl Field {
    /// Every field.
    pub fn all() -> impl Iterator<Item = Self> {
        let first = [Self::PostUrl, Self::Events];
        let last = [Self::Paused, Self::Disabled, Self::Secret];
        first.into_iter().chain(Column::ALL.map(Self::Setting)).chain(last)
    }

    /// Its name in a file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PostUrl => "post_url",
            Self::Events => "events",
            Self::Setting(column) => column.name(),
            Self::Paused => "paused",
            Self::Disabled => "disabled",
            Self::Secret => "secret",
        }
    }

    /// Whether two webhooks have the same value.
    fn is_same(self, one: &Values, other: &Values) -> bool {
        match self {
            Self::PostUrl => one.post_url == other.post_url,
            Self::Events => set(&one.events) == set(&other.events),
            Self::Setting(Column::Headers) => one.headers == other.headers,
            Self::Setting(column) => {
                let of = |values: &Values| values.settings.get(&column).cloned();
                is_same_text(of(one).as_deref(), of(other).as_deref(), column)
            }
            Self::Paused => one.paused == other.paused,
            Self::Disabled => one.disabled == other.disabled,
            Self::Secret => one.secret == other.secret,
        }
    }

    /// The value, printable; empty if there is none.
    #[must_use]
    pub fn shown(self, values: &Values) -> String {
        let line = |text: &str| shown::line(text, MOST_SHOWN);
        match self {
            Self::PostUrl => line(&without_secrets(&values.post_url)),
            Self::Events => line(&values.events.join(" ")),
            Self::Setting(Column::Headers) => {
                let names: Vec<_> =
                    values.headers.keys().map(|name| format!("{name}: ***")).collect();
                line(&names.join(", "))
            }
            Self::Setting(column) => {
                values.settings.get(&column).map_or(String::new(), |it| line(it))
            }
            Self::Paused => String::from(if values.paused { "yes" } else { "" }),
            Self::Disabled => values.disabled.as_deref().map_or(String::new(), |reason| {
                line(&if reason.is_empty() { "yes".to_owned() } else { format!("yes: {reason}") })
            }),
            Self::Secret => String::from(if values.secret.is_some() { "***" } else { "" }),
        }
    }

    /// What is wrong with the value, one line each, without secrets.
    pub(super) fn problems(self, values: &Values) -> Vec<String> {
        let problem = match self {
            Self::PostUrl if values.post_url.is_empty() => {
                Some("missing: give the URL that gets its events".to_owned())
            }
            Self::PostUrl => read_url(&values.post_url).err().or_else(|| no_nul(&values.post_url)),
            Self::Events if values.events.is_empty() => {
                Some("none: it would get no events; `[\"*\"]` stands for all events".to_owned())
            }
            Self::Events => {
                return values.events.iter().filter_map(|it| check_pattern(it).err()).collect();
            }
            Self::Setting(Column::Headers) => {
                let headers = values.headers.iter();
                check_headers(headers.map(|(name, value)| (name.as_str(), Some(value.expose()))))
                    .err()
            }
            Self::Setting(Column::Description) => {
                values.settings.get(&Column::Description).and_then(|text| no_nul(text))
            }
            Self::Setting(column) => {
                let text = values.settings.get(&column).cloned();
                let mut columns = Columns::default();
                match column {
                    Column::TimeoutMs => columns.timeout_ms = text,
                    Column::MaxInFlight => columns.max_in_flight = text,
                    Column::RatePerSecond => columns.rate_per_second = text,
                    Column::NoRetryStatus => columns.no_retry_status = text,
                    Column::Account => columns.account = text,
                    Column::Headers | Column::Description => {}
                }
                columns.read().err().map(|unusable| unusable.problem)
            }
            Self::Disabled => values.disabled.as_deref().and_then(no_nul),
            // These are checked when the file is read.
            Self::Paused | Self::Secret => None,
        };
        problem.into_iter().collect()
    }
}

impl Values {
    /// The differences between these values and `to`.
    #[must_use]
    pub fn differences(&self, to: &Self) -> Vec<Difference> {
        let differing = Field::all().filter(|field| !field.is_same(self, to));
        differing
            .map(|field| {
                let (from, to) = match field {
                    Field::Setting(Column::Headers) => of_headers(&self.headers, &to.headers),
                    _ => (field.shown(self), field.shown(to)),
                };
                let is_hidden = from == to;
                let to = if is_hidden { format!("{to} (another)") } else { to };
                Difference { field, from, to }
            })
            .collect()
    }

    /// The account, if it has one.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.settings.get(&Column::Account).map(String::as_str)
    }
}

fn set(texts: &[String]) -> BTreeSet<&str> {
    texts.iter().map(String::as_str).collect()
}

/// Compares numbers by value: `1` and `1.0` are the same.
fn is_same_text(one: Option<&str>, other: Option<&str>, column: Column) -> bool {
    let is_number =
        matches!(column, Column::TimeoutMs | Column::MaxInFlight | Column::RatePerSecond);
    let number = |text: Option<&str>| text?.parse::<f64>().ok();
    one == other || is_number && number(one).is_some_and(|it| Some(it) == number(other))
}

/// The names of the headers that differ.
fn of_headers(from: &SecretHeaders, to: &SecretHeaders) -> (String, String) {
    let differing = |of: &SecretHeaders, than: &SecretHeaders, word: &str| {
        let names = of.iter().filter(|(name, value)| than.get(*name) != Some(value));
        let names: Vec<_> = names.map(|(name, _)| format!("{name}: {word}")).collect();
        shown::line(&names.join(", "), MOST_SHOWN)
    };
    (differing(from, to, "***"), differing(to, from, "***"))
}

/// PostgreSQL's text can hold any character but NUL.
fn no_nul(text: &str) -> Option<String> {
    text.contains('\0').then(|| "contains a NUL character".to_owned())
}
