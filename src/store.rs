//! PostgreSQL: every SQL statement, and the shared pool. (postgres and r2d2 are named here only.)
//!
//! A query is bounded on our side. The server's `statement_timeout` says nothing when the server
//! itself is frozen, and the client has no time-out of its own, so each query runs in a thread
//! that its caller gives up on.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use postgres::types::Type;
use postgres::{
    Client, Row,
    config::{Host, SslMode},
};
use r2d2::ManageConnection;
use uuid::Uuid;

use crate::config::{Config, ConfigError, Encryption};
use crate::domain::secret::Secret;
use crate::domain::settings::{Columns, MAX_COLUMN_CHARS};
use crate::domain::webhook::{Secrets, Webhook, matching_patterns};
use crate::tls::Tls;

mod backlogs;
mod connector;
mod delivery_attempts;
mod error;
mod listen;
mod registered;
mod session;

use connector::Connector;
use error::{explain, is_closing};

pub use backlogs::{BacklogRow, RemoveError, Standing};
pub use delivery_attempts::{Follower, LogSession, MOST_ENTRIES, PRUNE_CHUNK, Seen, Unwritten};
pub use error::StoreError;
pub use listen::{Heard, NotListening, Sign};
pub use registered::{Change, Registered};

/// How long a query may take, the wait for a connection included. The queries here take
/// milliseconds; this is how soon we notice that PostgreSQL hangs.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for a pooled connection: less than [`QUERY_TIMEOUT`], so that the error says
/// which of the two it was.
const POOL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the server works on a statement: less than we wait for it, so that a locked table is
/// told from a server that hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a pooled connection may be unused.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that acknowledges nothing for this long is gone, whatever TCP still hopes for.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

const MIGRATIONS: [(i32, &str, &str); 9] = [
    (1, "webhooks", include_str!("../sql/001_webhooks.sql")),
    (2, "events_index", include_str!("../sql/002_events_index.sql")),
    (3, "disabled", include_str!("../sql/003_disabled.sql")),
    (4, "notify", include_str!("../sql/004_notify.sql")),
    (5, "secrets", include_str!("../sql/005_secrets.sql")),
    (6, "settings", include_str!("../sql/006_settings.sql")),
    (7, "delivery_attempts", include_str!("../sql/007_delivery_attempts.sql")),
    (8, "backlogs", include_str!("../sql/008_backlogs.sql")),
    (9, "deferrals", include_str!("../sql/009_deferrals.sql")),
];

/// Any number that no other program locks by: held during `migrate`, so that two don't collide.
const MIGRATION_LOCK: i64 = 0x7765_6268_6f6f_6b73;

/// What [`webhook`] reads of a row: settings as text, since whoever made the columns first chose their
/// types. A time may be `infinity`, which no number can say.
const WEBHOOK: &str = "id, post_url, secret, previous_secret,
     CASE WHEN previous_secret_expires_at IS NOT NULL
          THEN extract(epoch FROM
                   least(greatest(previous_secret_expires_at, 'epoch'), '9999-12-31'))::bigint
     END AS previous_secret_ends, paused_at IS NOT NULL AS is_paused,
     left(headers::text, 16385) AS headers, timeout_ms::text AS timeout_ms,
     max_in_flight::text AS max_in_flight, rate_per_second::text AS rate_per_second,
     left(account::text, 1024) AS account";

/// One character more than may be, so that it is seen.
const _: () = assert!(MAX_COLUMN_CHARS == 16_384);

type Pool = r2d2::Pool<Connector>;

/// What a statement is given, and of which type.
type Parameter<'a> = (&'a (dyn postgres::types::ToSql + Sync), Type);

/// The webhooks, in PostgreSQL. Shared by all threads.
#[derive(Debug)]
pub struct Store {
    config: postgres::Config,
    tls: Tls,
    pool_size: u32,
    pool: RwLock<Current>,
}

/// The pool in use.
#[derive(Clone, Debug)]
struct Current {
    pool: Pool,
    since: Instant,
}

/// What has become of the webhook of a parked delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there, perhaps with another URL than before.
    Enabled(Webhook),
    /// It is there and gets nothing.
    Disabled,
    /// It is no longer there.
    Deleted,
}

impl Store {
    /// Makes the pool. Opens nothing, so that a missing database is reported by whoever needs it.
    ///
    /// # Errors
    /// If DATABASE_URL can't be read.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let error =
            |problem: &str| ConfigError { variable: "DATABASE_URL", problem: problem.to_owned() };
        // The parser's own words may quote what it could not read: perhaps the password.
        let mut settings: postgres::Config =
            config.database.url.expose().parse().map_err(|_| {
                error("is not a URL such as postgres://user:password@host:5432/database")
            })?;
        if settings.get_hosts().is_empty() {
            return Err(error("names no host"));
        }
        let timeout = format!("-c statement_timeout={}", STATEMENT_TIMEOUT.as_millis());
        let mode = settings.get_ssl_mode();
        let options = [settings.get_options().unwrap_or_default(), &timeout].join(" ");
        settings
            .options(options.trim())
            .application_name("webhook-notifier")
            .ssl_mode(match config.database.encryption {
                Encryption::Off => SslMode::Disable,
                // Or as the other form of DATABASE_URL says, `host=… sslmode=…`, which the client reads.
                Encryption::IfOffered => mode,
                Encryption::Required => SslMode::Require,
            })
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(TCP_TIMEOUT)
            .keepalives_idle(TCP_TIMEOUT)
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        let tls = config.database.tls.clone();
        let pool = new_pool(&settings, &tls, config.database_pool_size);
        let pool = RwLock::new(Current { pool, since: Instant::now() });
        Ok(Self { config: settings, tls, pool_size: config.database_pool_size, pool })
    }

    /// Host and port, for people.
    #[must_use]
    pub fn address(&self) -> String {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let ports = self.config.get_ports();
        // As the client does: a single port is for all hosts.
        let last = ports.last().copied().unwrap_or(5432);
        let ports = ports.iter().copied().chain(std::iter::repeat(last));
        hosts.zip(ports).map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
    }

    /// The enabled webhooks that want an event type.
    ///
    /// # Errors
    /// [`StoreError`]; the event then has to wait.
    pub fn webhooks_wanting(&self, event_type: &str) -> Result<Vec<Webhook>, StoreError> {
        let patterns = matching_patterns(event_type);
        self.query(move |client| {
            let asked = format!(
                "SELECT {WEBHOOK} FROM webhooks WHERE events && $1 AND disabled_at IS NULL"
            );
            let rows = client.query_typed(&asked, &[(&patterns, Type::TEXT_ARRAY)])?;
            rows.iter().map(webhook).collect()
        })
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

    /// A webhook, if there is one with this id, and whether it is disabled.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn look_up(&self, id: Uuid) -> Result<Option<(Webhook, bool)>, StoreError> {
        self.query(move |client| {
            let asked = format!(
                "SELECT {WEBHOOK}, disabled_at IS NOT NULL AS disabled FROM webhooks WHERE id = $1"
            );
            let rows = client.query_typed(&asked, &[(&id, Type::UUID)])?;
            let found = |row| Ok((webhook(row)?, row.try_get("disabled")?));
            rows.first().map(found).transpose()
        })
    }

    /// Disables a webhook for a reason, if it still has that URL and is enabled. Says whether it
    /// was.
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

    /// Asks for an answer, any answer, about the table.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ping(&self) -> Result<(), StoreError> {
        self.query(|client| {
            client.query_typed("SELECT disabled_at FROM webhooks LIMIT 1", &[]).map(drop)
        })
    }

    /// Connects outside the pool and looks at what `run` needs: the login, the database, the
    /// tables. Unlike the pool, this knows a wrong password from a server that is away.
    ///
    /// # Errors
    /// [`StoreError`], with the remedy.
    pub fn check(&self) -> Result<(), StoreError> {
        let connector = Connector::new(self.config.clone(), &self.tls);
        bounded_by_timeout(move || {
            let mut client = connect(&connector)?;
            let looked = format!("SELECT {WEBHOOK}, events, disabled_at FROM webhooks LIMIT 0");
            let looked = [looked.as_str(), backlogs::LOOK];
            let mut look = |asked: &str| client.query_typed(asked, &[]).map(drop);
            looked.into_iter().try_for_each(&mut look).map_err(|error| explain(&error))
        })
        .unwrap_or_else(|| Err(no_answer()))
    }

    /// Makes the tables, or adds to them what is missing. Returns the names of the migrations
    /// applied; none if there was nothing to do.
    ///
    /// # Errors
    /// [`StoreError`]. What was applied before stays.
    pub fn migrate(&self) -> Result<Vec<&'static str>, StoreError> {
        let mut client = self.connect()?;
        let mut apply = || -> Result<_, postgres::Error> {
            // A full table may take longer to index than a query of ours may last.
            client.batch_execute("SET statement_timeout = 0")?;
            client
                .execute_typed("SELECT pg_advisory_lock($1)", &[(&MIGRATION_LOCK, Type::INT8)])?;
            client.batch_execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (
                     version INTEGER PRIMARY KEY,
                     name TEXT NOT NULL,
                     applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
                 )",
            )?;
            let mut applied = Vec::new();
            for (version, name, sql) in MIGRATIONS {
                let mut transaction = client.transaction()?;
                let recorded = transaction.execute_typed(
                    "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)
                     ON CONFLICT DO NOTHING",
                    &[(&version, Type::INT4), (&name, Type::TEXT)],
                )?;
                if recorded == 1 {
                    transaction.batch_execute(sql)?;
                    applied.push(name);
                }
                transaction.commit()?;
            }
            Ok(applied)
        };
        // The lock ends with the connection.
        apply().map_err(|error| explain(&error))
    }

    /// All webhooks, oldest first; or the one with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self, id: Option<Uuid>) -> Result<Vec<Registered>, StoreError> {
        self.command(
            "SELECT * FROM webhooks WHERE $1 IS NULL OR id = $1 ORDER BY created_at, id",
            &[(&id, Type::UUID)],
        )
    }

    /// The webhooks with these ids, and then, enabled or not, those with one of these patterns; at
    /// most so many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn concerned(
        &self,
        ids: &[Uuid],
        patterns: &[String],
        most: i64,
    ) -> Result<Vec<Registered>, StoreError> {
        self.command(
            "SELECT * FROM webhooks WHERE id = ANY($1) OR events && $2
             ORDER BY id = ANY($1) DESC, created_at, id LIMIT $3",
            &[(&ids, Type::UUID_ARRAY), (&patterns, Type::TEXT_ARRAY), (&most, Type::INT8)],
        )
    }

    /// Deletes a webhook and returns it; `None` if there is none with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, id: Uuid) -> Result<Option<Registered>, StoreError> {
        self.command("DELETE FROM webhooks WHERE id = $1 RETURNING *", &[(&id, Type::UUID)])
            .map(|mut removed| removed.pop())
    }

    /// Disables a webhook, for a reason, or enables it (without one).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_disabled(
        &self,
        id: Uuid,
        reason: Option<&str>,
    ) -> Result<Option<Registered>, StoreError> {
        self.command(
            "UPDATE webhooks SET disabled_reason = $2,
                 disabled_at = CASE WHEN $2 IS NULL THEN NULL ELSE coalesce(disabled_at, now()) END
             WHERE id = $1 RETURNING *",
            &[(&id, Type::UUID), (&reason, Type::TEXT)],
        )
        .map(|mut changed| changed.pop())
    }

    /// Pauses a webhook, or resumes it; since when it is paused stays where it is already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_paused(&self, id: Uuid, is_paused: bool) -> Result<Option<Registered>, StoreError> {
        self.command(
            "UPDATE webhooks SET paused_at = CASE WHEN $2 THEN coalesce(paused_at, now()) END
             WHERE id = $1 RETURNING *",
            &[(&id, Type::UUID), (&is_paused, Type::BOOL)],
        )
        .map(|mut changed| changed.pop())
    }

    /// Gives a webhook a new secret, and keeps the one that it had for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rotate_secret(
        &self,
        id: Uuid,
        secret: &Secret,
        keep: Duration,
    ) -> Result<Option<Registered>, StoreError> {
        // The columns on the right of SET are those of before.
        self.command(
            "UPDATE webhooks SET secret = $2,
                 previous_secret = CASE WHEN $3 > 0 THEN secret END,
                 previous_secret_expires_at =
                     CASE WHEN $3 > 0 AND secret IS NOT NULL
                          THEN now() + make_interval(secs => $3) END
             WHERE id = $1 RETURNING *",
            &[
                (&id, Type::UUID),
                (&secret.expose(), Type::TEXT),
                (&keep.as_secs_f64(), Type::FLOAT8),
            ],
        )
        .map(|mut changed| changed.pop())
    }

    /// A statement of a command: once, on a connection of its own, so that its error is exact.
    fn command(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Registered>, StoreError> {
        let statement = format!(
            "WITH found AS ({statement})
             SELECT {WEBHOOK}, events, created_at::text, disabled_at::text, disabled_reason,
                    paused_at::text, description::text, secret IS NOT NULL AS signed,
                    CASE WHEN previous_secret_expires_at > now()
                         THEN previous_secret_expires_at::text END AS previous_secret_expires_at
             FROM found ORDER BY found.created_at, id"
        );
        let rows = self.connect()?.query_typed(&statement, parameters);
        rows.and_then(|rows| rows.iter().map(Registered::of).collect()).map_err(|e| explain(&e))
    }

    fn connect(&self) -> Result<Client, StoreError> {
        connect(&Connector::new(self.config.clone(), &self.tls))
    }

    /// Runs a query on a pooled connection. It has to be safe to repeat: a connection that died
    /// while idle is found out only by using it, and there may be a pool full of those after a
    /// restart of the server.
    fn query<T: Send + 'static>(
        &self,
        run: impl Fn(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Current { pool, since } =
            self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let attempts = self.pool_size + 1;
        let work = move || {
            let mut last = None;
            for _ in 0..attempts {
                let mut client = pool
                    .get_timeout(POOL_TIMEOUT)
                    .map_err(|error| StoreError::Unavailable(error.to_string()))?;
                match run(&mut client) {
                    Ok(answer) => return Ok(answer),
                    Err(error) if client.is_closed() || is_closing(&error) => {
                        last = Some(explain(&error));
                    }
                    Err(error) => return Err(explain(&error)),
                }
            }
            Err(last.unwrap_or_else(|| StoreError::Unavailable("no connection".to_owned())))
        };
        let answer = bounded_by_timeout(work);
        if answer.is_none() {
            self.abandon_pool(since);
        }
        answer.unwrap_or_else(|| Err(no_answer()))
    }

    /// Starts over with a new pool. A connection on which a query hangs can't be taken from its
    /// thread, and would hold its place in the pool for as long as it hangs. `since` says which
    /// pool it was: another caller may have replaced it already.
    fn abandon_pool(&self, since: Instant) {
        // A pool begins with three threads of its own, and panics where there can't be any.
        if let Err(error) = crate::threads::check(3) {
            log::warn!("no new connections to PostgreSQL: {error}");
            return;
        }
        let mut current = self.pool.write().unwrap_or_else(PoisonError::into_inner);
        if current.since == since {
            let pool = new_pool(&self.config, &self.tls, self.pool_size);
            *current = Current { pool, since: Instant::now() };
        }
    }
}

/// Runs `work` in a thread of its own, and gives up on it after [`QUERY_TIMEOUT`]: `None`.
fn bounded_by_timeout<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Option<Result<T, StoreError>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let started = std::thread::Builder::new()
        .name("query".to_owned())
        // A send fails when the caller has given up; the answer has no reader then.
        .spawn(move || drop(sender.send(work())));
    match started {
        Ok(_) => receiver.recv_timeout(QUERY_TIMEOUT).ok(),
        Err(error) => Some(Err(StoreError::Unavailable(format!("no thread to ask it: {error}")))),
    }
}

fn connect(connector: &Connector) -> Result<Client, StoreError> {
    Ok(connector.connect()?)
}

fn no_answer() -> StoreError {
    StoreError::Unavailable(format!("no answer within {QUERY_TIMEOUT:?}"))
}

fn new_pool(config: &postgres::Config, tls: &Tls, size: u32) -> Pool {
    r2d2::Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        // What a burst opened is closed again: each costs PostgreSQL a process, and us four files.
        .idle_timeout(Some(IDLE_TIMEOUT))
        // A check is a round trip for each query; `Store::query` repeats instead.
        .test_on_check_out(false)
        .connection_timeout(POOL_TIMEOUT)
        // Each failed connection would be an ERROR line, several a second while PostgreSQL is
        // away; the lanes log the change of state once.
        .error_handler(Box::new(r2d2::NopErrorHandler))
        .build_unchecked(Connector::new(config.clone(), tls))
}

fn webhook(row: &Row) -> Result<Webhook, postgres::Error> {
    let secret = |name| Ok(row.try_get::<_, Option<String>>(name)?.map(Secret::new));
    let ends: Option<i64> = row.try_get("previous_secret_ends")?;
    // Before 1970 is long over.
    let ends = ends.map(|seconds| u64::try_from(seconds).unwrap_or(0));
    let secrets =
        Secrets { current: secret("secret")?, previous: secret("previous_secret")?.zip(ends) };
    let (id, is_paused) = (row.try_get("id")?, row.try_get("is_paused")?);
    let registered = Webhook::new(id, row.try_get("post_url")?, &secrets, &columns(row)?);
    Ok(Webhook { is_paused, ..registered })
}

fn columns(row: &Row) -> Result<Columns, postgres::Error> {
    Ok(Columns {
        headers: row.try_get::<_, Option<String>>("headers")?.map(Secret::new),
        timeout_ms: row.try_get("timeout_ms")?,
        max_in_flight: row.try_get("max_in_flight")?,
        rate_per_second: row.try_get("rate_per_second")?,
        account: row.try_get("account")?,
    })
}
