//! An installation of the product in a directory, and a supervisor that does with its units what
//! systemd does, as far as the tests need it.

use std::{
    env,
    fmt::Write as _,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use uuid::Uuid;

use super::{
    LATER, Notifier, SOON, notifier, notifier::Launch, process::Finished, process::Process,
    wait_until,
};

/// What `make install` has installed into its own directory.
pub(crate) struct Installation(TempDir);

/// A unit of an installation.
pub(crate) struct Unit {
    text: String,
    instance: String,
}

/// A started unit, and what it reports to its supervisor.
pub(crate) struct Service {
    pub(crate) notifier: Notifier,
    socket: PathBuf,
    reported: Arc<Mutex<Vec<String>>>,
}

impl Installation {
    /// Nothing is installed yet.
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn new() -> Self {
        let installation = Self::empty();
        let finished = installation.make(&["install"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        installation
    }

    /// Runs one of the Makefile's targets, with the binary of these tests.
    pub(crate) fn make(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new("make");
        command
            .arg("--no-print-directory")
            .args(arguments)
            .arg(format!("BINARY={}", notifier::binary().display()))
            .arg(format!("DESTDIR={}", self.0.path().display()))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            // Nothing from a `make` that runs the tests.
            .env_clear()
            .env("PATH", env::var_os("PATH").expect("a PATH"));
        Process::spawn(command).finish(LATER)
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// The path of what is installed under this name.
    pub(crate) fn path(&self, installed: &str) -> PathBuf {
        self.root().join(installed.trim_start_matches('/'))
    }

    /// All files, by name, with their modes.
    pub(crate) fn files(&self) -> Vec<(String, u32)> {
        let mut files = Vec::new();
        let mut directories = vec![self.root().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("it is ours") {
                let entry = entry.expect("it is ours");
                let metadata = entry.metadata().expect("it is ours");
                if metadata.is_dir() {
                    directories.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let name = path.strip_prefix(self.root()).expect("it was found there");
                files
                    .push((format!("/{}", name.display()), metadata.permissions().mode() & 0o7777));
            }
        }
        files.sort();
        files
    }

    /// Writes the environment file.
    pub(crate) fn configure(&self, variables: &[(&str, &str)]) {
        let mut text = String::new();
        for (name, value) in variables {
            writeln!(text, "{name}='{value}'").expect("a string");
        }
        fs::write(self.path("/etc/webhook-notifier.env"), text).expect("it is ours");
    }

    /// A unit by its name; for an instance of a template, the name has the instance after the `@`.
    pub(crate) fn unit(&self, name: &str) -> Unit {
        let (file, instance) = match name.split_once('@') {
            Some((template, instance)) => (format!("{template}@"), instance),
            None => (name.to_owned(), ""),
        };
        let path = self.path(&format!("/usr/local/lib/systemd/system/{file}.service"));
        let text = fs::read_to_string(path).expect("the unit is installed");
        Unit { text, instance: instance.to_owned() }
    }

    /// Starts a unit, and waits until it serves its metrics.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, watchdog: Duration) -> Service {
        let socket = self.path(&format!("/notify-{}", Uuid::new_v4()));
        let reported = hear(&socket);
        let notifier = self
            .launch(&self.unit(name))
            .env("NOTIFY_SOCKET", socket.to_str().expect("text"))
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string())
            .start_unready();
        Service { notifier, socket, reported }
    }

    /// What systemd would run: the unit's command with the unit's environment.
    pub(crate) fn launch(&self, unit: &Unit) -> Launch {
        let command = unit.value("ExecStart").replace("%I", &unit.instance);
        let mut words = command.split(' ');
        let program = self.path(words.next().expect("a program"));
        let mut command = Command::new(program);
        command.args(words).env_clear();
        let file = self.path(&unit.value("EnvironmentFile"));
        let text = fs::read_to_string(file).expect("the environment file is there");
        let variables = text.lines().filter(|line| !line.starts_with('#'));
        for (name, value) in variables.filter_map(|line| line.split_once('=')) {
            command.env(name, value.trim_matches('\''));
        }
        Launch(command)
    }
}

impl Unit {
    /// The value of a setting that occurs once.
    #[track_caller]
    pub(crate) fn value(&self, setting: &str) -> String {
        let values = self.text.lines().filter_map(|line| line.strip_prefix(setting));
        let values: Vec<_> = values.filter_map(|rest| rest.strip_prefix('=')).collect();
        match values.as_slice() {
            [value] => (*value).to_owned(),
            _ => panic!("{setting}: {values:?}"),
        }
    }
}

impl Service {
    /// All lines that it has sent to its supervisor so far.
    pub(crate) fn reported(&self) -> Vec<String> {
        self.reported.lock().expect("no reader panics").clone()
    }

    pub(crate) fn count(&self, line: &str) -> usize {
        self.reported().iter().filter(|reported| *reported == line).count()
    }

    /// Waits for a line with this beginning after the first `after` lines; returns its position
    /// plus one.
    #[track_caller]
    pub(crate) fn wait_heard(&self, after: usize, beginning: &str) -> usize {
        let find = || {
            let reported = self.reported();
            let found = reported[after..].iter().position(|line| line.starts_with(beginning));
            found.map(|at| after + at + 1)
        };
        wait_until(SOON, &format!("{beginning} is reported"), || find().is_some());
        find().expect("it was there")
    }

    /// Waits for `more` further signs of life.
    #[track_caller]
    pub(crate) fn wait_alive(&self, more: usize) {
        let before = self.count("WATCHDOG=1");
        wait_until(SOON, "signs of life", || self.count("WATCHDOG=1") >= before + more);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Ends the listening thread.
        let end = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"", &self.socket));
        let _ = end;
    }
}

/// Listens on the socket until an empty datagram arrives.
fn hear(path: &Path) -> Arc<Mutex<Vec<String>>> {
    let socket = UnixDatagram::bind(path).expect("a short path");
    let reported = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reported);
    thread::spawn(move || {
        let mut bytes = [0; 4_096];
        while let Ok(length @ 1..) = socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            sink.lock().expect("no test panics with it").extend(text.lines().map(str::to_owned));
        }
    });
    reported
}
