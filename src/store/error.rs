//! Why PostgreSQL didn't do what it was asked, and what to do about it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use postgres::error::SqlState;

use super::connector::ConnectError;
use crate::tls;

/// Why PostgreSQL didn't do what it was asked. Names the servers and the database.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing answers: it is down, hangs, or the network is gone.
    #[error("PostgreSQL at {} does not answer: {}: is it running, is DATABASE_URL right?", .0.place, .0.what)]
    Unavailable(Said),
    /// It answers with an error that may be temporary: it is starting, has no free connections, a table
    /// is locked, it can't write.
    #[error("PostgreSQL at {} answers with an error: {}", .0.place, .0.what)]
    Failing(Said),
    /// Waiting won't help: the login, the database or a table is wrong. Says what to do.
    #[error("PostgreSQL at {} refuses: {}", .0.place, .0.what)]
    Misconfigured(Said),
    /// It can't accept this value, such as a character that its encoding lacks.
    #[error("PostgreSQL at {} refuses: {}", .0.place, .0.what)]
    Refused(Said),
}

/// The error, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    place: Arc<str>,
    what: String,
}

impl StoreError {
    /// Nothing answers at this place.
    #[must_use]
    pub fn unavailable(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Unavailable(Said { place: Arc::clone(place), what: what.into() })
    }

    /// An error that may be temporary.
    #[must_use]
    pub fn failing(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Failing(Said { place: Arc::clone(place), what: what.into() })
    }

    pub(super) fn misconfigured(place: &Arc<str>, what: impl Into<String>) -> Self {
        Self::Misconfigured(Said { place: Arc::clone(place), what: what.into() })
    }

    /// Whether it may be temporary, so that waiting helps.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Failing(_))
    }

    /// PostgreSQL's own error and what to do, without its address; `None` if it doesn't answer.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        match self {
            Self::Unavailable(_) => None,
            Self::Failing(said) | Self::Misconfigured(said) | Self::Refused(said) => {
                Some(&said.what)
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
                let told = errors.iter().map(|(host, error)| {
                    let mut said = Self::of_connecting(place, error);
                    (host.as_str(), std::mem::take(&mut said.said_mut().what))
                });
                let what = each(told);
                let mut told = Self::of_connecting(place, error.most_telling());
                told.said_mut().what = what;
                told
            }
        }
    }

    fn said_mut(&mut self) -> &mut Said {
        match self {
            Self::Unavailable(said)
            | Self::Failing(said)
            | Self::Misconfigured(said)
            | Self::Refused(said) => said,
        }
    }
}

/// What each host came to; those that say the same together.
fn each<'a>(told: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut groups: Vec<(Vec<&str>, String)> = Vec::new();
    for (host, what) in told {
        match groups.iter_mut().find(|(_, said)| *said == what) {
            Some((hosts, _)) => hosts.push(host),
            None => groups.push((vec![host], what)),
        }
    }
    let told = groups.into_iter().map(|(hosts, what)| match what.starts_with(&hosts.concat()) {
        // It names its host already.
        true => what,
        false => format!("{}: {what}", hosts.join(", ")),
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Whether the server ended the session: its last message comes before the connection is closed.
pub(super) fn is_closing(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]
            .contains(&code)
    })
}

/// Whether the error is about a value in a row, and nothing else: the encoding can't represent it, it is
/// too large, or the disk lost it.
pub(super) fn is_of_a_value(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        ["22", "54", "XX"].iter().any(|class| code.code().starts_with(class))
            || *code == SqlState::OUT_OF_MEMORY
    })
}

/// An error answer: its kind, and what to do.
enum Kind {
    Passing,
    Lasting,
    OfValue,
}

/// Distinguishes errors that waiting can resolve from others, and says what to do.
pub(super) fn explain(place: &Arc<str>, error: &postgres::Error) -> StoreError {
    if let Some(problem) = tls::problem(error) {
        return StoreError::misconfigured(place, problem);
    }
    let Some(db) = error.as_db_error() else { return without_answer(place, error) };
    let message = db.message();
    let (kind, remedy) = judge(db.code().code(), message);
    let what = match remedy {
        "" => format!("{message} (SQLSTATE {})", db.code().code()),
        remedy => format!("{message} (SQLSTATE {}): {remedy}", db.code().code()),
    };
    match kind {
        Kind::Passing => StoreError::failing(place, what),
        Kind::Lasting => StoreError::misconfigured(place, what),
        Kind::OfValue => StoreError::Refused(Said { place: Arc::clone(place), what }),
    }
}

/// By "PostgreSQL Error Codes" of its documentation.
fn judge(code: &str, message: &str) -> (Kind, &'static str) {
    match code {
        "28000" | "28P01" => (Kind::Lasting, "check the user and password in DATABASE_URL"),
        "3D000" => (Kind::Lasting, "create the database, or name another in DATABASE_URL"),
        // A missing schema, table, column, function, operator for the types, or unique index.
        "3F000" | "42P01" | "42703" | "42883" | "42704" | "42P10" => {
            (Kind::Lasting, "run `webhook-notifier migrate` on this database")
        }
        "42501" if message.starts_with("must be owner") => {
            (Kind::Lasting, "`migrate` has to be run as the owner of the tables")
        }
        "42501" if message.contains("for schema") => {
            (Kind::Lasting, "GRANT USAGE ON this SCHEMA TO this user, and CREATE for `migrate`")
        }
        "42501" => (
            Kind::Lasting,
            "GRANT SELECT, UPDATE ON webhooks (INSERT and DELETE, too, for `webhooks add` and \
             `remove`), and SELECT, INSERT, UPDATE, DELETE ON backlogs, \
             delivery_attempts, webhook_conditions, notifier_instances TO this user",
        ),
        "25006" => (
            Kind::Passing,
            "this is a standby server, or the database or the user is read-only: DATABASE_URL has to \
             lead to the primary; if it names several hosts, the primary is found",
        ),
        "26000" | "42P05" => (
            Kind::Passing,
            "is there a pooler in between that gives each statement another connection?",
        ),
        "53300" => {
            (Kind::Passing, "raise `max_connections` there, or lower DATABASE_POOL_SIZE here")
        }
        "53100" => (Kind::Passing, "give its disk more room"),
        "57014" | "55P03" => (
            Kind::Passing,
            "it took too long: is a table locked (pg_stat_activity says by whom), or the server \
             overloaded?",
        ),
        "57P01" | "57P02" | "57P03" => (Kind::Passing, "it starts, stops or recovers"),
        "0A000" => (Kind::Passing, "is it PostgreSQL 13 or newer, with the tables of `migrate`?"),
        // From a trigger that somebody added, and class 23: from a constraint.
        "P0001" => (Kind::Lasting, "a trigger of yours on this table forbids it"),
        code if code.starts_with("23") => {
            (Kind::Lasting, "a constraint that `webhook-notifier migrate` has not made forbids it")
        }
        // Class 22: data exceptions.
        code if code.starts_with("22") => (Kind::OfValue, ""),
        _ => (Kind::Passing, ""),
    }
}

/// Not an answer of the server, but the client's own error.
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
            StoreError::failing(place, format!("{what}: is it PostgreSQL that listens there?"))
        }
        // From `target_session_attrs`.
        Some(io::ErrorKind::PermissionDenied) if what.contains("database") => StoreError::failing(
            place,
            format!("{what}: no host that answers is a primary: is a standby to be promoted?"),
        ),
        Some(_) => StoreError::unavailable(place, what),
        None if error.is_closed() => StoreError::unavailable(place, what),
        // In the client's words: about the login, or DATABASE_URL.
        None if what.starts_with("authentication error") || what.starts_with("invalid config") => {
            StoreError::misconfigured(
                place,
                format!("{what}: check the user and password in DATABASE_URL"),
            )
        }
        None if what.starts_with("error deserializing") => StoreError::misconfigured(
            place,
            format!("{what}: the column has another type than `webhook-notifier migrate` gives it"),
        ),
        None if what.starts_with("error connecting") => StoreError::unavailable(place, what),
        None => StoreError::failing(place, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_is_told_as_such_and_all_name_the_place() {
        let place: Arc<str> = "db.example:5432/hooks".into();
        let silent = StoreError::unavailable(&place, "no answer within 5s");
        assert!(
            silent.to_string().starts_with("PostgreSQL at db.example:5432/hooks does not answer")
        );
        assert_eq!(silent.answer(), None);
        assert!(silent.is_passing());
        let failing = StoreError::failing(&place, "too many clients");
        assert_eq!(failing.answer(), Some("too many clients"));
        for error in [failing, StoreError::misconfigured(&place, "no table")] {
            let text = error.to_string();
            assert!(text.contains("db.example:5432/hooks"), "{text}");
            assert!(!text.contains("does not answer"), "{text}");
        }
    }

    #[test]
    fn what_waiting_cannot_mend_is_told_from_what_it_can() {
        for (code, is_passing, remedy) in [
            ("42P01", false, "migrate"),
            ("42501", false, "GRANT"),
            ("28P01", false, "password"),
            ("23502", false, "constraint"),
            ("25006", true, "primary"),
            ("53300", true, "max_connections"),
            ("57014", true, "locked"),
            ("XX000", true, ""),
        ] {
            let (kind, said) = judge(code, "permission denied for table webhooks");
            assert_eq!(matches!(kind, Kind::Passing), is_passing, "{code}");
            assert!(said.contains(remedy), "{code}: {said}");
        }
        assert!(judge("42501", "must be owner of table webhooks").1.contains("owner"));
        assert!(judge("42501", "permission denied for schema public").1.contains("SCHEMA"));
        assert!(matches!(judge("22P05", "").0, Kind::OfValue));
    }
}
