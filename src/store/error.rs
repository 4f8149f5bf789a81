//! Errors of PostgreSQL: what failed, whether waiting helps, and the remedy.

use std::error::Error;
use std::io;
use std::sync::Arc;

use postgres::error::SqlState;

use super::connector::ConnectError;
use crate::tls;

/// Why a query failed. The message names the servers and the database.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing answers: PostgreSQL is down, hangs, or the network is gone.
    #[error("PostgreSQL at {} does not answer: {}: is it running, is DATABASE_URL right?", .0.place, .0.what)]
    Unavailable(ErrorText),
    /// PostgreSQL answers with an error that may be temporary: it is starting, has no free connections, a
    /// table is locked, or it can't write.
    #[error("PostgreSQL at {} answers with an error: {}", .0.place, .0.what)]
    Failing(ErrorText),
    /// Waiting won't help: the login, the database or a table is wrong. The message has the remedy.
    #[error("PostgreSQL at {} refuses: {}", .0.place, .0.what)]
    Misconfigured(ErrorText),
    /// PostgreSQL can't represent a value, such as a character that its encoding lacks.
    #[error("PostgreSQL at {} refuses: {}", .0.place, .0.what)]
    InvalidValue(ErrorText),
}

/// The message of an error, and the servers that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorText {
    place: Arc<str>,
    what: String,
}

impl StoreError {
    /// The error that nothing answers at this place.
    #[must_use]
    pub fn unavailable(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Unavailable(ErrorText { place: Arc::clone(place), what: what.into() })
    }

    /// An error that may be temporary.
    #[must_use]
    pub fn failing(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Failing(ErrorText { place: Arc::clone(place), what: what.into() })
    }

    pub(super) fn misconfigured(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Misconfigured(ErrorText { place: Arc::clone(place), what: what.into() })
    }

    /// Whether the error may be temporary, so that waiting helps.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Failing(_))
    }

    /// PostgreSQL's own error and the remedy, without the address; `None` if it doesn't answer.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        match self {
            Self::Unavailable(_) => None,
            Self::Failing(text) | Self::Misconfigured(text) | Self::InvalidValue(text) => {
                Some(&text.what)
            }
        }
    }

    /// Classifies a failure to connect.
    pub(super) fn of_connecting(place: &Arc<str>, error: &ConnectError) -> Self {
        match error {
            ConnectError::Postgres(error) => explain(place, error),
            ConnectError::Silent { .. } | ConnectError::Unreachable { .. } => {
                Self::unavailable(place, error.to_string())
            }
            ConnectError::NoThread(_) => Self::failing(place, error.to_string()),
            ConnectError::NoTls { .. } | ConnectError::NoOptions { .. } => {
                Self::misconfigured(place, error.to_string())
            }
            ConnectError::Each(errors) => {
                let by_host = errors.iter().map(|(host, error)| {
                    let mut of_host = Self::of_connecting(place, error);
                    (host.as_str(), std::mem::take(&mut of_host.text_mut().what))
                });
                let what = grouped(by_host);
                let mut combined = Self::of_connecting(place, error.most_informative());
                combined.text_mut().what = what;
                combined
            }
        }
    }

    fn text_mut(&mut self) -> &mut ErrorText {
        match self {
            Self::Unavailable(text)
            | Self::Failing(text)
            | Self::Misconfigured(text)
            | Self::InvalidValue(text) => text,
        }
    }
}

/// The errors of several hosts. Hosts with the same error are listed together.
fn grouped<'a>(by_host: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut groups: Vec<(Vec<&str>, String)> = Vec::new();
    for (host, what) in by_host {
        match groups.iter_mut().find(|(_, other)| *other == what) {
            Some((hosts, _)) => hosts.push(host),
            None => groups.push((vec![host], what)),
        }
    }
    let texts = groups.into_iter().map(|(hosts, what)| match what.starts_with(&hosts.concat()) {
        // The message names its host already.
        true => what,
        false => format!("{}: {what}", hosts.join(", ")),
    });
    texts.collect::<Vec<_>>().join("; ")
}

/// Whether the error says that the server ends the session: it sends this message before it closes the
/// connection.
pub(super) fn is_closing(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]
            .contains(&code)
    })
}

/// Whether the error is only about a value in a row: the encoding can't represent it, it is too large, or
/// the disk lost it.
pub(super) fn is_of_a_value(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        ["22", "54", "XX"].iter().any(|class| code.code().starts_with(class))
            || *code == SqlState::OUT_OF_MEMORY
    })
}

/// What an error of the server is about.
enum ErrorKind {
    Temporary,
    Permanent,
    InvalidValue,
}

/// Distinguishes errors that waiting can resolve from others, and adds the remedy.
pub(super) fn explain(place: &Arc<str>, error: &postgres::Error) -> StoreError {
    if let Some(problem) = tls::problem(error) {
        return StoreError::misconfigured(place, problem);
    }
    let Some(db) = error.as_db_error() else { return without_answer(place, error) };
    let message = db.message();
    let (kind, remedy) = classify(db.code().code(), message);
    let what = match remedy {
        "" => format!("{message} (SQLSTATE {})", db.code().code()),
        remedy => format!("{message} (SQLSTATE {}): {remedy}", db.code().code()),
    };
    match kind {
        ErrorKind::Temporary => StoreError::failing(place, what),
        ErrorKind::Permanent => StoreError::misconfigured(place, what),
        ErrorKind::InvalidValue => {
            StoreError::InvalidValue(ErrorText { place: Arc::clone(place), what })
        }
    }
}

/// By "PostgreSQL Error Codes" of its documentation.
fn classify(code: &str, message: &str) -> (ErrorKind, &'static str) {
    match code {
        "28000" | "28P01" => (ErrorKind::Permanent, "check the user and password in DATABASE_URL"),
        "3D000" => (ErrorKind::Permanent, "create the database, or name another in DATABASE_URL"),
        // A missing schema, table, column, function, operator for the types, or unique index.
        "3F000" | "42P01" | "42703" | "42883" | "42704" | "42P10" => {
            (ErrorKind::Permanent, "run `webhook-notifier migrate` on this database")
        }
        "42501" if message.starts_with("must be owner") => {
            (ErrorKind::Permanent, "run `migrate` as the owner of the tables")
        }
        "42501" if message.contains("for schema") => (
            ErrorKind::Permanent,
            "GRANT USAGE ON this SCHEMA TO this user, and CREATE for `migrate`",
        ),
        "42501" => (
            ErrorKind::Permanent,
            "GRANT SELECT, UPDATE ON webhooks (INSERT and DELETE, too, for `webhooks add` and \
             `remove`), and SELECT, INSERT, UPDATE, DELETE ON backlogs, \
             delivery_attempts, webhook_conditions, notifier_instances TO this user",
        ),
        "25006" => (
            ErrorKind::Temporary,
            "this is a standby server, or the database or the user is read-only: DATABASE_URL has to \
             lead to the primary; if it names several hosts, the primary is found",
        ),
        "26000" | "42P05" => (
            ErrorKind::Temporary,
            "is there a pooler in between that gives each statement another connection?",
        ),
        "53300" => (
            ErrorKind::Temporary,
            "raise `max_connections` there, or lower DATABASE_POOL_SIZE here",
        ),
        "53100" => (ErrorKind::Temporary, "free some space on its disk"),
        "57014" | "55P03" => (
            ErrorKind::Temporary,
            "it took too long: is a table locked (pg_stat_activity says by whom), or the server \
             overloaded?",
        ),
        "57P01" | "57P02" | "57P03" => {
            (ErrorKind::Temporary, "it is starting, stopping or recovering")
        }
        "0A000" => {
            (ErrorKind::Temporary, "is it PostgreSQL 13 or newer, with the tables of `migrate`?")
        }
        // A trigger that somebody added. Class 23: a constraint.
        "P0001" => (ErrorKind::Permanent, "a trigger of yours on this table forbids it"),
        code if code.starts_with("23") => (
            ErrorKind::Permanent,
            "a constraint that `webhook-notifier migrate` did not create forbids it",
        ),
        // Class 22: data exceptions.
        code if code.starts_with("22") => (ErrorKind::InvalidValue, ""),
        _ => (ErrorKind::Temporary, ""),
    }
}

/// An error of the client itself, without an answer of the server.
fn without_answer(place: &Arc<str>, error: &postgres::Error) -> StoreError {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    let what = format!("{error}{cause}");
    let mut io = None;
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        io = io.or_else(|| error.downcast_ref::<io::Error>().map(io::Error::kind));
        next = error.source();
    }
    match io {
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            StoreError::failing(place, format!("{what}: is the server there PostgreSQL?"))
        }
        // From `target_session_attrs`.
        Some(io::ErrorKind::PermissionDenied) if what.contains("database") => StoreError::failing(
            place,
            format!(
                "{what}: none of the hosts that answer is a primary: does a standby have to be promoted?"
            ),
        ),
        Some(_) => StoreError::unavailable(place, what),
        None if error.is_closed() => StoreError::unavailable(place, what),
        // These are the client's messages about the login or DATABASE_URL.
        None if what.starts_with("authentication error") || what.starts_with("invalid config") => {
            StoreError::misconfigured(
                place,
                format!("{what}: check the user and password in DATABASE_URL"),
            )
        }
        None if what.starts_with("error deserializing") => StoreError::misconfigured(
            place,
            format!(
                "{what}: the column's type is not the one that `webhook-notifier migrate` creates"
            ),
        ),
        None if what.starts_with("error connecting") => StoreError::unavailable(place, what),
        None => StoreError::failing(place, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unavailable_server_does_not_answer_and_all_errors_name_the_place() {
        let place: Arc<str> = "db.example:5432/hooks".into();
        let silent = StoreError::unavailable(&place, "no answer within 5s");
        assert!(
            silent.to_string().starts_with("PostgreSQL at db.example:5432/hooks does not answer")
        );
        assert_eq!(silent.answer(), None);
        assert!(silent.is_temporary());
        let failing = StoreError::failing(&place, "too many clients");
        assert_eq!(failing.answer(), Some("too many clients"));
        for error in [failing, StoreError::misconfigured(&place, "no table")] {
            let text = error.to_string();
            assert!(text.contains("db.example:5432/hooks"), "{text}");
            assert!(!text.contains("does not answer"), "{text}");
        }
    }

    #[test]
    fn errors_that_waiting_can_resolve_are_distinguished_from_others() {
        for (code, is_temporary, remedy) in [
            ("42P01", false, "migrate"),
            ("42501", false, "GRANT"),
            ("28P01", false, "password"),
            ("23502", false, "constraint"),
            ("25006", true, "primary"),
            ("53300", true, "max_connections"),
            ("57014", true, "locked"),
            ("XX000", true, ""),
        ] {
            let (kind, given) = classify(code, "permission denied for table webhooks");
            assert_eq!(matches!(kind, ErrorKind::Temporary), is_temporary, "{code}");
            assert!(given.contains(remedy), "{code}: {given}");
        }
        assert!(classify("42501", "must be owner of table webhooks").1.contains("owner"));
        assert!(classify("42501", "permission denied for schema public").1.contains("SCHEMA"));
        assert!(matches!(classify("22P05", "").0, ErrorKind::InvalidValue));
    }
}
