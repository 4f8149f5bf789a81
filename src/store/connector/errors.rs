//! Why there is no connection: the errors of addresses and hosts, and which of them say most.

use std::io;
use std::time::Duration;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum ConnectError {
    #[error("{address}: {cause}")]
    Unreachable { address: String, cause: io::Error },
    #[error("{address} accepts connections, but does not answer within {limit:?}")]
    Silent { address: String, limit: Duration },
    #[error(
        "{address} does not offer TLS, which `sslmode` in DATABASE_URL requires: turn `ssl` on there, or \
         choose another `sslmode`"
    )]
    NoTls { address: String },
    #[error(
        "{address} does not accept `options`, which DATABASE_URL contains: remove them (`ALTER ROLE … SET \
         search_path = …` does the same); or, if it is PgBouncer, set `ignore_startup_parameters = options` \
         there"
    )]
    NoOptions { address: String },
    #[error("cannot start a thread to connect: {0}")]
    NoThread(io::Error),
    /// The errors of at least two hosts, the most informative first.
    #[error("{}", .0.iter().map(|(host, error)| format!("{host}: {error}")).collect::<Vec<_>>().join("; "))]
    Each(Vec<(String, ConnectError)>),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
}

impl ConnectError {
    /// How informative the error is: an answer says more than silence, and silence more than an
    /// unreachable host.
    fn weight(&self) -> u8 {
        match self {
            Self::Postgres(error) if error.as_db_error().is_some() => 3,
            Self::NoTls { .. } | Self::NoOptions { .. } => 3,
            Self::Postgres(_) => 2,
            Self::Silent { .. } => 1,
            Self::Unreachable { .. } | Self::NoThread(_) => 0,
            Self::Each(_) => self.most_informative().weight(),
        }
    }

    /// The most informative of several hosts' errors.
    pub(in crate::store) fn most_informative(&self) -> &Self {
        match self {
            Self::Each(errors) => errors.first().map_or(self, |(_, error)| error),
            error => error,
        }
    }

    /// Whether the server accepted the connection, but sends nothing.
    pub(in crate::store) fn is_silence(&self) -> bool {
        matches!(self.most_informative(), Self::Silent { .. })
    }
}

/// Combines the errors of all hosts into one; there is at least one.
pub(super) fn combined(mut errors: Vec<(String, ConnectError)>) -> ConnectError {
    // The sort is stable: equally informative errors keep the order of the hosts.
    errors.sort_by_key(|(_, error)| std::cmp::Reverse(error.weight()));
    match errors.pop() {
        Some((_, only)) if errors.is_empty() => only,
        last => {
            errors.extend(last);
            ConnectError::Each(errors)
        }
    }
}

pub(super) fn more_informative(
    previous: Option<ConnectError>,
    error: ConnectError,
) -> ConnectError {
    match previous {
        Some(previous) if previous.weight() >= error.weight() => previous,
        _ => error,
    }
}

pub(super) fn unreachable(address: String, why: &str) -> ConnectError {
    ConnectError::Unreachable { address, cause: io::Error::new(io::ErrorKind::NotFound, why) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::StoreError;
    use crate::store::connector::ANSWER_TIMEOUT;

    #[test]
    fn the_most_informative_error_of_an_address_is_kept() {
        let silent = || ConnectError::Silent { address: "a".to_owned(), limit: ANSWER_TIMEOUT };
        let nobody = || unreachable("b".to_owned(), "nobody");
        let no_tls = || ConnectError::NoTls { address: "c".to_owned() };
        let kept = |first, then| more_informative(Some(first), then).to_string();
        assert!(kept(nobody(), silent()).starts_with('a'));
        assert!(kept(silent(), nobody()).starts_with('a'));
        assert!(kept(silent(), no_tls()).starts_with('c'));
        assert!(kept(no_tls(), silent()).starts_with('c'));
    }

    #[test]
    fn the_errors_of_several_hosts_are_listed_the_most_informative_first() {
        let place: Arc<str> = "a,b,c/db".into();
        let silent = || ConnectError::Silent { address: "a".to_owned(), limit: ANSWER_TIMEOUT };
        let nobody = || unreachable("b".to_owned(), "nobody");
        let no_tls = || ConnectError::NoTls { address: "c".to_owned() };
        let named = |name: &str, error| (name.to_owned(), error);
        let each = combined(vec![named("b", nobody()), named("a", silent()), named("c", no_tls())]);
        let error = StoreError::of_connecting(&place, &each);
        assert!(matches!(error, StoreError::Misconfigured(_)));
        let text = error.to_string();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
        assert!(at("c does not offer TLS") < at("a accepts connections"), "{text}");
        assert!(at("a accepts connections") < at("b: nobody"), "{text}");
        let each = combined(vec![named("b", nobody()), named("a", silent())]);
        assert!(each.is_silence());
        assert!(StoreError::of_connecting(&place, &each).answer().is_none());
        assert!(matches!(combined(vec![named("b", nobody())]), ConnectError::Unreachable { .. }));
    }
}
