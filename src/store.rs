//! PostgreSQL: every SQL statement, and the shared pool. (Only this module uses postgres and r2d2.)
//!
//! We limit the time of each query ourselves. The server's `statement_timeout` doesn't help when the server itself
//! is frozen, and the client has no timeout of its own. So each query runs in a thread that its caller
//! can abandon.

use std::error::Error as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use postgres::types::Type;
use postgres::{Client, config::SslMode};
use r2d2::ManageConnection;
use uuid::Uuid;

use crate::config::{Config, ConfigError, Encryption, session_attrs};
use crate::domain::webhook::{Webhook, matching_patterns};

mod backlogs;
mod change;
mod conditions;
mod connector;
mod declared;
mod delivery_attempts;
mod error;
mod failing;
mod instances;
mod labels;
mod listen;
mod registered;
mod rights;
mod row;
mod schema;
mod session;
mod time;

use connector::Connector;
use error::{explain, is_closing};

pub use backlogs::{BacklogRow, RemoveError, Standing};
pub use change::{ColumnChange, NewSecret};
pub use conditions::{Failing, RecentlyDisabled, Unannounced, WebhookChange};
pub use declared::ApplyError;
pub use delivery_attempts::{
    Follower, LogSession, MOST_ENTRIES, MOST_MARKS, NewEntries, PRUNE_CHUNK, Reported, Unwritten,
};
pub use error::{ErrorText, StoreError};
pub use labels::Label;
pub use listen::{LifeSign, ListenEnd, ListenEvent};
pub use registered::Registered;
pub use rights::UNSHARED_LIMITS;
pub use schema::{Differences, Labelled, MigrateError, Migrated};

/// How long a query may take, including the wait for a connection. Our queries take milliseconds; this
/// is how soon we notice that PostgreSQL hangs.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for a pooled connection: less than [`QUERY_TIMEOUT`], so that the error says which
/// of the two limits was exceeded.
const POOL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the server may work on a statement: less than we wait for it, which distinguishes a locked
/// table from a server that hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a pooled connection may be idle before it is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// If the server acknowledges nothing for this long, the connection is given up; TCP's own limit is many
/// minutes.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of each connection. Sequential scans are off: they would read the `events` of each row,
/// which may be huge, although the index contains them already. JIT is off: compiling would take longer
/// than our queries.
fn options() -> String {
    let timeout = STATEMENT_TIMEOUT.as_millis();
    format!("-c statement_timeout={timeout} -c enable_seqscan=off -c jit=off -c timezone=UTC")
}

/// Why DATABASE_URL can't be parsed. The parser's own message may quote the text that it could not parse,
/// perhaps the password, so it is used only if it merely names a parameter.
fn parse_problem(fault: &postgres::Error) -> String {
    let cause = fault.source().map(ToString::to_string).unwrap_or_default();
    let named = cause.strip_prefix("invalid value for option `");
    match named.and_then(|named| named.strip_suffix('`')) {
        Some("target_session_attrs") => session_attrs(),
        Some(parameter) => format!("has an invalid value of {parameter}"),
        None => {
            "is not a URL such as postgres://user:password@host:5432/database, or has an unknown \
                 parameter"
                .to_owned()
        }
    }
}

type Pool = r2d2::Pool<Connector>;

/// A statement's parameter and its type.
type Parameter<'a> = (&'a (dyn postgres::types::ToSql + Sync), Type);

/// The webhooks in PostgreSQL. Shared by all threads.
#[derive(Debug)]
pub struct Store {
    connector: Connector,
    pool_size: u32,
    pool: RwLock<ActivePool>,
}

/// The pool in use.
#[derive(Clone, Debug)]
struct ActivePool {
    pool: Pool,
    since: Instant,
}

/// The state of a parked delivery's webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are of the largest")]
pub enum Found {
    /// It exists, perhaps with another URL than before.
    Enabled(Webhook),
    /// It exists and gets nothing.
    Disabled,
    /// It no longer exists.
    Deleted,
}

impl Store {
    /// Creates the pool. Opens no connection: if the database is missing, the first query reports it.
    ///
    /// # Errors
    /// If DATABASE_URL can't be parsed.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let error =
            |problem: &str| ConfigError { variable: "DATABASE_URL", problem: problem.to_owned() };
        let parsed = config.database.url.expose().parse();
        let mut settings: postgres::Config =
            parsed.map_err(|fault| error(&parse_problem(&fault)))?;
        let mode = settings.get_ssl_mode();
        settings
            .application_name("webhook-notifier")
            .ssl_mode(match config.database.encryption {
                Encryption::Off => SslMode::Disable,
                // The client has parsed `sslmode` in the other form of DATABASE_URL, `host=… sslmode=…`.
                Encryption::IfOffered => mode,
                Encryption::Required => SslMode::Require,
            })
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(TCP_TIMEOUT)
            .keepalives_idle(TCP_TIMEOUT)
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        let connector =
            Connector::new(&settings, &config.database.tls, &options()).map_err(error)?;
        let pool = new_pool(&connector, config.database_pool_size);
        let pool = RwLock::new(ActivePool { pool, since: Instant::now() });
        Ok(Self { connector, pool_size: config.database_pool_size, pool })
    }

    /// Hosts, ports and database, for messages.
    #[must_use]
    pub fn place(&self) -> &Arc<str> {
        self.connector.place()
    }

    /// The enabled webhooks that want an event of this type and account: those without an account, and
    /// those of this account. A webhook whose row can't be read is returned as unusable.
    ///
    /// # Errors
    /// [`StoreError`]; the event then has to wait.
    pub fn webhooks_wanting(
        &self,
        event_type: &str,
        account: Option<&str>,
    ) -> Result<Vec<Webhook>, StoreError> {
        let query = |account: Option<&str>| {
            let (patterns, account) = (matching_patterns(event_type), account.map(str::to_owned));
            self.query(move |client| row::wanting(client, &patterns, account.as_deref()))
        };
        match query(account) {
            // The database's encoding lacks a character of the account, so the table can't contain it.
            Err(StoreError::InvalidValue(_)) if account.is_some() => query(None),
            answer => answer,
        }
    }

    /// The accounts of the enabled webhooks that want an event type, each cut after 256 characters; `None`
    /// if there are more than `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn accounts_wanting(
        &self,
        event_type: &str,
        most: usize,
    ) -> Result<Option<Vec<String>>, StoreError> {
        let patterns = matching_patterns(event_type);
        self.query(move |client| row::accounts_wanting(client, &patterns, most))
    }

    /// Looks up the webhook of a parked delivery.
    ///
    /// # Errors
    /// [`StoreError`]; the delivery then has to wait.
    pub fn find(&self, id: Uuid) -> Result<Found, StoreError> {
        Ok(match self.look_up(id)? {
            None => Found::Deleted,
            Some((_, true)) => Found::Disabled,
            Some((webhook, false)) => Found::Enabled(webhook),
        })
    }

    /// The webhook with this id, if it exists, and whether it is disabled. A webhook whose row can't be
    /// read is returned as unusable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn look_up(&self, id: Uuid) -> Result<Option<(Webhook, bool)>, StoreError> {
        self.query(move |client| row::look_up(client, id))
    }

    /// Disables a webhook for a reason, if it still has this URL and is enabled. Returns whether it was
    /// disabled.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn disable(&self, webhook: &Webhook, reason: &'static str) -> Result<bool, StoreError> {
        let (id, url) = (webhook.id, webhook.post_url.clone());
        self.query(move |client| {
            let disabled = client.execute_typed(
                "UPDATE webhooks SET disabled_at = now(), disabled_reason = $3
                 WHERE id = $1 AND post_url = $2 AND disabled_at IS NULL",
                &[(&id, Type::UUID), (&&*url, Type::TEXT), (&reason, Type::TEXT)],
            )?;
            Ok(disabled > 0)
        })
    }

    /// Checks that PostgreSQL answers a query on the table.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ping(&self) -> Result<(), StoreError> {
        self.query(|client| {
            client.query_typed("SELECT disabled_at FROM webhooks LIMIT 1", &[]).map(drop)
        })
    }

    /// Connects outside the pool and checks what `run` needs: the login, the database, the tables.
    /// Unlike the pool, this distinguishes a wrong password from a server that doesn't answer.
    ///
    /// # Errors
    /// [`StoreError`], with the remedy.
    pub fn check(&self) -> Result<(), StoreError> {
        self.query_once(|client| {
            client.query_typed(&row::probe(), &[])?;
            client.query_typed(backlogs::PROBE, &[])?;
            Ok(())
        })
    }

    fn connect(&self) -> Result<Client, StoreError> {
        connect(&self.connector)
    }

    /// Runs `work` on a connection outside the pool, within the time limit of a query. If none can be opened,
    /// this reports the exact error, while the pool only reports that it has no connection.
    fn query_once<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connector = self.connector.clone();
        let done = bounded_by_timeout(&self.connector, move || {
            let mut client = connect(&connector)?;
            let answer = work(&mut client).map_err(|error| explain(connector.place(), &error))?;
            connector.keep(client);
            Ok(answer)
        });
        done.unwrap_or_else(|| Err(no_answer(self.place())))
    }

    /// Runs a query on a pooled connection. The query must be safe to repeat: only its use shows whether
    /// a connection broke while idle, and after a restart of the server all in the pool may be broken.
    fn query<T: Send + 'static>(
        &self,
        run: impl Fn(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let ActivePool { pool, since } =
            self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let attempts = self.pool_size + 1;
        let (place, connector) = (Arc::clone(self.place()), self.connector.clone());
        let work = move || {
            let mut last = None;
            for _ in 0..attempts {
                let began = Instant::now();
                let mut client = pool
                    .get_timeout(POOL_TIMEOUT)
                    .map_err(|error| no_connection(&connector, began, &error))?;
                match run(&mut client) {
                    Ok(answer) => return Ok(answer),
                    Err(error) if client.is_closed() || is_closing(&error) => {
                        last = Some(explain(&place, &error));
                    }
                    Err(error) => return Err(explain(&place, &error)),
                }
            }
            Err(last.unwrap_or_else(|| StoreError::unavailable(&place, "no connection")))
        };
        let answer = bounded_in_thread(QUERY_TIMEOUT, self.place(), work);
        if answer.is_none() {
            self.replace_pool(since);
        }
        answer.unwrap_or_else(|| Err(no_answer(self.place())))
    }

    /// Replaces the pool by a new one. A connection with a hanging query can't be taken from its thread,
    /// and would occupy its place in the pool as long as it hangs. `since` identifies the pool: another
    /// caller may have replaced it already.
    fn replace_pool(&self, since: Instant) {
        // A pool starts three threads, and panics if it can't.
        if let Err(error) = crate::threads::check(3) {
            log::warn!("cannot replace the connections to PostgreSQL: {error}");
            return;
        }
        let mut current = self.pool.write().unwrap_or_else(PoisonError::into_inner);
        if current.since == since {
            let pool = new_pool(&self.connector, self.pool_size);
            *current = ActivePool { pool, since: Instant::now() };
        }
    }
}

/// Runs `work`, which may have to connect first, in its own thread. Returns `None` after
/// [`QUERY_TIMEOUT`] for each host that may be tried.
fn bounded_by_timeout<T: Send + 'static>(
    connector: &Connector,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Option<Result<T, StoreError>> {
    let hosts = u32::try_from(connector.host_count()).unwrap_or(u32::MAX);
    bounded_in_thread(QUERY_TIMEOUT.saturating_mul(hosts), connector.place(), work)
}

fn bounded_in_thread<T: Send + 'static>(
    limit: Duration,
    place: &Arc<str>,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Option<Result<T, StoreError>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let started = std::thread::Builder::new()
        .name("query".to_owned())
        // Fails if the caller has given up; then nobody waits for the answer.
        .spawn(move || drop(sender.send(work())));
    match started {
        Ok(_) => receiver.recv_timeout(limit).ok(),
        Err(error) => Some(Err(StoreError::failing(
            place,
            format!("cannot start a thread for the query: {error}"),
        ))),
    }
}

fn connect(connector: &Connector) -> Result<Client, StoreError> {
    connector.connect().map_err(|error| StoreError::of_connecting(connector.place(), &error))
}

fn no_answer(place: &Arc<str>) -> StoreError {
    StoreError::unavailable(place, format!("no answer within {QUERY_TIMEOUT:?}"))
}

/// Why the pool provided no connection since `since`: the last failure to connect, if there was one;
/// otherwise all connections are in use.
fn no_connection(connector: &Connector, since: Instant, error: &r2d2::Error) -> StoreError {
    match connector.last_failure(since) {
        None => StoreError::unavailable(connector.place(), error.to_string()),
        // The login worked before: perhaps somebody is just changing the password.
        Some(StoreError::Misconfigured(cause)) => StoreError::Failing(cause),
        Some(failure) => failure,
    }
}

fn new_pool(connector: &Connector, size: u32) -> Pool {
    r2d2::Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        // Closes the connections of a burst: each costs PostgreSQL a process, and us four files.
        .idle_timeout(Some(IDLE_TIMEOUT))
        // A check would cost a round trip per query. Instead, `Store::query` repeats a failed query.
        .test_on_check_out(false)
        .connection_timeout(POOL_TIMEOUT)
        // Otherwise each failed connection is an ERROR line, several per second while PostgreSQL is away.
        // The lanes log the outage once.
        .error_handler(Box::new(r2d2::NopErrorHandler))
        .build_unchecked(connector.clone())
}
