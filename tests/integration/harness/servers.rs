//! The servers that the tests run against.
//!
//! Nearly all tests share one RabbitMQ and one PostgreSQL, which the environment names. Tests that
//! stop or kill a server use a second pair, one test at a time; the long ones among them use a
//! third, so that the others needn't wait; and tests that only need an administrator's permissions
//! share a fourth, all at once.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// The URLs of one RabbitMQ and one PostgreSQL.
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

pub(super) fn required(variable: &str) -> String {
    env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `make test`, it starts the servers"))
}

/// A pair whose servers may be stopped and killed, unless it is [shared](Self::share): its holder has it
/// exclusively, and both servers run again when it is dropped.
pub(crate) struct FaultServers {
    directory: PathBuf,
    servers: Servers,
    /// A locked file beside the directory, since several test processes may run at once. `None`: the servers
    /// are shared, and no test stops them.
    turn: Option<File>,
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

/// How a server is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// It shuts down in order, and notifies its clients.
    Stop,
    /// SIGKILL, as in a crash.
    Kill,
}

impl End {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
        }
    }
}

impl FaultServers {
    pub(crate) fn take() -> Self {
        Self::alone("FAULT_SERVICES_DIR", &["up", "--tls"])
    }

    /// For a test that only needs a [virtual host](super::Vhost) or a user of its own.
    pub(crate) fn share() -> Self {
        Self::up(required("SHARED_FAULT_SERVICES_DIR").into(), None, &["up"])
    }

    /// For a test that takes minutes.
    pub(crate) fn take_for_long() -> Self {
        Self::alone("LONG_FAULT_SERVICES_DIR", &["up"])
    }

    fn alone(variable: &str, up: &[&str]) -> Self {
        let directory = PathBuf::from(required(variable));
        let turn = File::create(directory.with_extension("turn")).expect("its parent is there");
        turn.lock().expect("a file can be locked");
        Self::up(directory, Some(turn), up)
    }

    fn up(directory: PathBuf, turn: Option<File>, up: &[&str]) -> Self {
        services(&directory, up);
        let listing = services(&directory, &["env"]);
        Self { servers: listed(&listing), directory, turn }
    }

    /// Their TLS URLs, and the CA for their certificates.
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

    /// Stops a server. Before it kills the broker, it has the names of all queues [written to
    /// disk](Self::write_queue_names). Messages and acks may not have got there yet.
    pub(crate) fn end(&self, server: Server, end: End) {
        if let (Server::Broker, End::Kill) = (server, end) {
            self.write_queue_names();
        }
        services(&self.directory, &[end.verb(), server.name()]);
    }

    /// RabbitMQ (at least 3.10 and 4.0) writes the names of quorum queues late, on a busy machine
    /// by seconds. After a SIGKILL before that, the queue never has a leader again
    /// (rabbitmq/rabbitmq-server#15725).
    pub(crate) fn write_queue_names(&self) {
        self.eval("[ok = dets:sync(Table) || Table <- dets:all()]");
    }

    /// Sends SIGKILL at once: the caller has had the names of the queues written.
    pub(crate) fn kill_broker_now(&self) {
        services(&self.directory, &["kill", Server::Broker.name()]);
    }

    pub(crate) fn start(&self, server: Server) {
        services(&self.directory, &["start", server.name()]);
    }

    /// Runs RabbitMQ's own tool against the broker; returns what it printed.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        services(&self.directory, &[&["rabbitmqctl"], arguments].concat())
    }

    /// Evaluates Erlang expressions in the broker; returns the value of the last.
    pub(crate) fn eval(&self, expressions: &str) -> String {
        services(&self.directory, &["eval", &format!("{expressions}.")])
    }

    /// Evaluates expressions when a test ends, perhaps with a panic: another panic would abort all
    /// tests.
    pub(super) fn eval_at_last(&self, expressions: &str) {
        let _ = services_command(&self.directory, &["eval", &format!("{expressions}.")]).output();
    }
}

pub(super) fn listed(listing: &str) -> Servers {
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

impl Drop for FaultServers {
    fn drop(&mut self) {
        if self.turn.is_some() {
            // The test may have panicked: another panic would abort all tests.
            let _ = services_command(&self.directory, &["up"]).status();
        }
    }
}

pub(super) fn services(directory: &Path, arguments: &[&str]) -> String {
    let output =
        services_command(directory, arguments).output().expect("scripts/services.sh can be run");
    assert!(
        output.status.success(),
        "services.sh {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("services.sh prints text")
}

pub(super) fn services_command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh"));
    command.args(arguments).env("WEBHOOK_NOTIFIER_LOCAL_DIR", directory);
    command
}
