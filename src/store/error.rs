//! Why PostgreSQL gave no answer, and what to do about it.

use postgres::error::SqlState;

use super::connector::ConnectError;
use crate::tls;

/// Why PostgreSQL gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It may answer another time: away, restarting, overloaded, hanging.
    #[error("PostgreSQL does not answer: {0}: is it running, is DATABASE_URL right?")]
    Unavailable(String),
    /// Waiting won't help: the login, the database or the table is wrong. Says the remedy.
    #[error("PostgreSQL refuses: {0}")]
    Misconfigured(String),
    /// It can't take this very value, such as a character that its encoding lacks.
    #[error("PostgreSQL refuses: {0}")]
    Refused(String),
}

impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Postgres(error) => explain(&error),
            ConnectError::Silent { .. } => Self::Unavailable(error.to_string()),
            ConnectError::NoTls { .. } => Self::Misconfigured(error.to_string()),
        }
    }
}

/// Whether the server ended the session: its last words come before the connection is closed.
pub(super) fn is_closing(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]
            .contains(&code)
    })
}

/// Tells what waiting can mend from what it can't, with the remedy.
pub(super) fn explain(error: &postgres::Error) -> StoreError {
    if let Some(problem) = tls::problem(error) {
        return StoreError::Misconfigured(problem);
    }
    let Some(db) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map_or_else(String::new, |c| format!(": {c}"));
        return StoreError::Unavailable(format!("{error}{cause}"));
    };
    // Class 22: data exceptions.
    if db.code().code().starts_with("22") {
        return StoreError::Refused(db.message().to_owned());
    }
    let remedy = match db.code().code() {
        "28000" | "28P01" => "check the user and password in DATABASE_URL",
        "3D000" => "create the database, or name another in DATABASE_URL",
        "3F000" | "42P01" | "42703" => "run `webhook-notifier migrate` on this database",
        "42501" => {
            "grant this user the rights to the tables `webhooks`, `backlogs` and \
                    `delivery_attempts`"
        }
        _ => return StoreError::Unavailable(db.message().to_owned()),
    };
    StoreError::Misconfigured(format!("{}: {remedy}", db.message()))
}
