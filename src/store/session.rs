//! Connections outside the pool, for uses that must not take one from the deliveries.

use postgres::Client;

use super::connector::Connector;
use super::{Store, StoreError, bounded_by_timeout, connect, explain, no_answer};

/// A connection that is opened on demand, and dropped when it fails or doesn't answer.
pub struct Session {
    connector: Connector,
    client: Option<Client>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_connected = self.client.is_some();
        formatter
            .debug_struct("Session")
            .field("is_connected", &is_connected)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A session whose connection has this name in `pg_stat_activity`. Opens no connection yet.
    #[must_use]
    pub fn session(&self, name: &str) -> Session {
        Session { connector: self.connector.named(name), client: None }
    }

    /// A session whose connection may be one that is no longer used.
    pub(super) fn unnamed_session(&self) -> Session {
        Session { connector: self.connector.clone(), client: None }
    }
}

impl Session {
    /// Closes the connection until it is needed again.
    pub fn disconnect(&mut self) {
        if let Some(client) = self.client.take() {
            // Closing may take as long as a query.
            let _ = bounded_by_timeout(&self.connector, || {
                drop(client);
                Ok(())
            });
        }
    }

    /// Keeps the connection for the next use of the store.
    pub(super) fn keep(mut self) {
        if let Some(client) = self.client.take() {
            self.connector.keep(client);
        }
    }

    /// Runs `work` on the connection, within the time limit of a query. After [`Failed::Silence`] it is
    /// unknown whether it was done.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    ) -> Result<T, Failed> {
        let client = self.client.take();
        let connector = self.connector.clone();
        let done = bounded_by_timeout(&self.connector, move || {
            let mut client = match client {
                Some(client) => client,
                None => connect(&connector)?,
            };
            let answer = work(&mut client).map_err(|error| explain(connector.place(), &error))?;
            Ok((client, answer))
        });
        match done {
            Some(Ok((client, answer))) => {
                self.client = Some(client);
                Ok(answer)
            }
            Some(Err(error)) => Err(Failed::Error(error)),
            None => Err(Failed::Silence(no_answer(self.connector.place()))),
        }
    }
}

/// Why [`Session::run`] returned no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// PostgreSQL reported an error, or there was no connection: the work wasn't done (unless the connection
    /// broke right after it).
    Error(StoreError),
    /// There was no answer in time.
    Silence(StoreError),
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Error(error) | Failed::Silence(error) => error,
        }
    }
}
