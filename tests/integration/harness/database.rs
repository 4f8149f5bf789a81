//! A PostgreSQL schema for one test, and plain SQL on it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use postgres::{Client, Config, NoTls, Row, types::ToSql};
use url::Url;
use uuid::Uuid;

use super::{SOON, Sandbox, process::Finished};

pub(crate) struct Database {
    /// Selects the test's schema.
    url: String,
    schema: String,
    client: Mutex<Option<Client>>,
}

impl Database {
    /// Creates an empty schema.
    pub(crate) fn create(server: &str, schema: &str) -> Self {
        // Not with `Url`, which doesn't support a list of hosts.
        let mark = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{mark}options=-csearch_path%3D{schema}");
        let database = Self { url, schema: schema.to_owned(), client: Mutex::new(None) };
        database.execute(&format!("CREATE SCHEMA {schema}"), &[]);
        database
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    #[track_caller]
    pub(crate) fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> u64 {
        self.with_client(|client| client.execute(sql, parameters))
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    #[track_caller]
    pub(crate) fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.with_client(|client| client.query(sql, parameters))
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// Runs several statements, as `psql -f` would.
    #[track_caller]
    pub(crate) fn run_script(&self, sql: &str) {
        self.with_client(|client| client.batch_execute(sql))
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Registers a webhook by SQL.
    #[track_caller]
    pub(crate) fn insert_webhook(&self, url: &str, events: &[&str]) -> Uuid {
        let rows = self.query(
            "INSERT INTO webhooks (post_url, events) VALUES ($1, $2) RETURNING id",
            &[&url, &events],
        );
        rows[0].get(0)
    }

    fn with_client<T>(
        &self,
        operation: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_mut().is_none_or(|client| client.is_valid(Duration::from_secs(5)).is_err()) {
            let mut config: Config = self.url.parse()?;
            config.connect_timeout(Duration::from_secs(10));
            *slot = Some(config.connect(NoTls)?);
        }
        operation(slot.as_mut().expect("just connected"))
    }
}

/// Another database, with an encoding of its own. It is dropped with this.
pub(crate) struct EncodedDatabase<'s> {
    sandbox: &'s Sandbox,
    name: String,
    pub(crate) url: String,
}

impl<'s> EncodedDatabase<'s> {
    /// With the tables.
    #[track_caller]
    pub(crate) fn new(sandbox: &'s Sandbox, encoding: &str) -> Self {
        let name = format!("{}_{}", sandbox.queue(), encoding.to_lowercase());
        let create =
            format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
        sandbox.database.execute(&create, &[]);
        let mut url = Url::parse(&sandbox.servers.database_url).expect("a URL");
        url.set_path(&name);
        let database = Self { sandbox, name, url: url.into() };
        assert_eq!(database.command(&["migrate"]).code, Some(0));
        database
    }

    /// Runs a command on this database.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Finished {
        let launch = self.sandbox.launch(arguments).env("DATABASE_URL", &self.url);
        launch.spawn().finish(SOON)
    }
}

impl Drop for EncodedDatabase<'_> {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // The test may have panicked: another panic would abort all tests.
        let _ = self.sandbox.database.with_client(|client| client.batch_execute(&sql));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP SCHEMA {} CASCADE", self.schema);
        // The server may be gone after a failed test.
        let _ = self.with_client(|client| client.batch_execute(&sql));
    }
}
