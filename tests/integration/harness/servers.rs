//! The servers that the tests run against.
//!
//! Nearly all tests share one RabbitMQ and one PostgreSQL, named by the
//! environment. Tests that stop or kill a server have a second pair, one test
//! at a time.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use url::Url;
use uuid::Uuid;

/// Where one RabbitMQ and one PostgreSQL are.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    pub(crate) amqp_url: String,
    pub(crate) database_url: String,
}

impl Servers {
    /// The pair that all tests share.
    pub(crate) fn shared() -> Self {
        Self { amqp_url: required("AMQP_URL"), database_url: required("DATABASE_URL") }
    }
}

fn required(variable: &str) -> String {
    env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `make test`, it starts the servers"))
}

/// Poisoned by every test that fails while it holds the servers. The next one
/// may use them all the same: `drop` has brought them back.
static TURN: Mutex<()> = Mutex::new(());

/// The pair whose servers may be stopped and killed. Whoever holds it has it to
/// himself; both servers run again when it is dropped.
pub(crate) struct FaultServers {
    directory: PathBuf,
    servers: Servers,
    _turn: MutexGuard<'static, ()>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    Broker,
    Postgres,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Postgres => "postgres",
        }
    }
}

/// How a server goes away.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// In good order: it tells its clients.
    Stop,
    /// SIGKILL, as in a crash.
    Kill,
}

impl FaultServers {
    pub(crate) fn take() -> Self {
        let directory = PathBuf::from(required("FAULT_SERVICES_DIR"));
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        services(&directory, &["up"]);
        let listing = services(&directory, &["env"]);
        Self { servers: listed(&listing), directory, _turn: turn }
    }

    /// How they are reached by TLS, and what checks their certificates.
    pub(crate) fn by_tls(&self) -> (Servers, PathBuf) {
        let listing = services(&self.directory, &["env", "--tls"]);
        (listed(&listing), listed_value(&listing, "TLS_CA_FILE").into())
    }

    /// A file that services.sh made for TLS.
    pub(crate) fn tls_file(&self, name: &str) -> String {
        self.directory.join("tls").join(name).display().to_string()
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Ends one. A kill of the broker finds every [queue on its disk](Self::write_queue_names).
    /// Messages and acks are as far as they are.
    pub(crate) fn end(&self, server: Server, end: End) {
        let verb = match end {
            End::Stop => "stop",
            End::Kill => "kill",
        };
        if let (Server::Broker, End::Kill) = (server, end) {
            self.write_queue_names();
        }
        services(&self.directory, &[verb, server.name()]);
    }

    /// RabbitMQ (3.10 and 4.0 at least) writes the names of quorum queues late, on a busy machine by
    /// seconds, and after a SIGKILL before that the queue has no leader, for ever
    /// (rabbitmq/rabbitmq-server#15725). The tool takes a second or two.
    pub(crate) fn write_queue_names(&self) {
        self.rabbitmqctl(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]);
    }

    /// SIGKILL, at once: where the names of the queues were written before.
    pub(crate) fn kill_broker_now(&self) {
        services(&self.directory, &["kill", Server::Broker.name()]);
    }

    pub(crate) fn start(&self, server: Server) {
        services(&self.directory, &["start", server.name()]);
    }

    /// A virtual host of its own, with all rights.
    pub(crate) fn vhost(&self) -> Vhost<'_> {
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        let mut url = Url::parse(&self.servers.amqp_url).expect("an URL");
        url.set_path(&name);
        let user = url.username().to_owned();
        self.rabbitmqctl(&["add_vhost", &name]);
        let servers = Servers { amqp_url: url.into(), ..self.servers.clone() };
        let vhost = Vhost { faults: self, name, user, servers };
        vhost.may_configure(".*");
        vhost
    }

    /// Runs RabbitMQ's own tool against the broker; returns what it printed.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        services(&self.directory, &[&["rabbitmqctl"], arguments].concat())
    }
}

fn listed(listing: &str) -> Servers {
    Servers {
        amqp_url: listed_value(listing, "AMQP_URL"),
        database_url: listed_value(listing, "DATABASE_URL"),
    }
}

fn listed_value(listing: &str, variable: &str) -> String {
    listing
        .lines()
        .find_map(|line| line.strip_prefix(variable)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("services.sh env does not print {variable}"))
        .to_owned()
}

/// A virtual host: what notifiers of one broker share, here nobody else shares. It goes when this is
/// dropped.
pub(crate) struct Vhost<'a> {
    faults: &'a FaultServers,
    pub(crate) name: String,
    user: String,
    servers: Servers,
}

impl Vhost<'_> {
    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Lets the user make and delete what fits this expression.
    pub(crate) fn may_configure(&self, expression: &str) {
        let rights = [expression, ".*", ".*"];
        let whose = ["set_permissions", "-p", &self.name, &self.user];
        self.faults.rabbitmqctl(&[&whose[..], &rights].concat());
    }

    /// The most queues that it may have; -1 for no limit.
    pub(crate) fn limit_queues(&self, most: i32) {
        let limits = format!("{{\"max-queues\": {most}}}");
        self.faults.rabbitmqctl(&["set_vhost_limits", "-p", &self.name, &limits]);
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        // As below.
        let _ =
            services_command(&self.faults.directory, &["rabbitmqctl", "delete_vhost", &self.name])
                .output();
    }
}

impl Drop for FaultServers {
    fn drop(&mut self) {
        // Not `services`: a panic here, during another one, would abort all tests.
        let _ = services_command(&self.directory, &["up"]).status();
    }
}

fn services(directory: &Path, arguments: &[&str]) -> String {
    let output =
        services_command(directory, arguments).output().expect("scripts/services.sh can be run");
    assert!(
        output.status.success(),
        "services.sh {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("services.sh prints text")
}

fn services_command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh"));
    command.args(arguments).env("WEBHOOK_NOTIFIER_LOCAL_DIR", directory);
    command
}
