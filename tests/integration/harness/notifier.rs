//! `webhook-notifier`: the real binary, as a process.

use std::{
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::{Deref, DerefMut},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Process, SOON, Signal,
    exposition::Exposition,
    process::{Exit, Finished},
    wait_until,
};

/// WEBHOOK_NOTIFIER_BINARY names another binary than the one that was built with the tests, such as
/// a release.
pub(crate) fn binary() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_webhook-notifier").into();
    env::var_os("WEBHOOK_NOTIFIER_BINARY").unwrap_or_else(built).into()
}

/// A call of the binary that hasn't been made yet.
pub(crate) struct Launch(pub(crate) Command);

impl Launch {
    /// Its environment is empty at first: what is set for the tests themselves must not affect it.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(arguments).env_clear();
        Self(command)
    }

    pub(crate) fn env(mut self, variable: &str, value: impl AsRef<str>) -> Self {
        self.0.env(variable, value.as_ref());
        self
    }

    pub(crate) fn spawn(self) -> Process {
        Process::spawn(self.0)
    }

    /// Runs the command with this input, until it ends.
    #[track_caller]
    pub(crate) fn reading(self, input: &str) -> Finished {
        let Self(mut command) = self;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be started");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Finished {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Starts `run`, and waits until every lane consumes.
    #[track_caller]
    pub(crate) fn start(self) -> Notifier {
        let mut notifier = self.start_unready();
        notifier.wait_stderr(SOON, "ready: ");
        notifier
    }

    /// Starts `run`, and waits until it serves metrics: for starts that can't succeed yet.
    #[track_caller]
    pub(crate) fn start_unready(self) -> Notifier {
        let mut process = self.spawn();
        let line = process.wait_stderr(SOON, "metrics on http://");
        let (_, rest) = line.split_once("http://").expect("just found");
        let (address, _) = rest.split_once('/').expect("a URL with a path");
        let admin = address.parse().expect("an address with a port");
        Notifier { process, admin }
    }
}

/// A running `webhook-notifier run`; dereferences to its process.
pub(crate) struct Notifier {
    process: Process,
    admin: SocketAddr,
}

/// An answer of the admin port.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Notifier {
    pub(crate) fn metrics(&self) -> Exposition {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        Exposition::parse(&answer.body)
    }

    /// The sum of that metric's samples with these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until the sum is this. A delivery that the broker has to confirm is counted after its
    /// confirm, and the receiver may have seen the request before.
    #[track_caller]
    pub(crate) fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        wait_until(SOON, &format!("{name} of {labels:?} is {value}"), || {
            self.metric(name, labels) == value
        });
    }

    /// Waits until the directory listens for changes: it remembers only what it looks up after that.
    #[track_caller]
    pub(crate) fn wait_listening(&self) {
        self.wait_metric("webhook_directory_age_seconds", &[], 0.0);
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path)
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        let text = self.exchange(method, path).expect("the admin port answers and closes");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).expect("a status line");
        Answer {
            status: status.parse().expect("a number"),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn exchange(&self, method: &str, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.admin)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn connect_to_admin(&self) -> TcpStream {
        TcpStream::connect(self.admin).expect("the admin port accepts")
    }

    /// Whether /readyz answers 200; false if the port doesn't answer.
    pub(crate) fn is_ready(&self) -> bool {
        self.exchange("GET", "/readyz").is_ok_and(|text| text.split(' ').nth(1) == Some("200"))
    }

    /// Sends SIGTERM, and waits for the end, which must be clean.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Exit {
        self.signal(Signal::TERM);
        let exit = self.wait_exit(SOON);
        assert_eq!(exit.code, Some(0), "after SIGTERM: {:#?}", self.stderr());
        exit
    }

    /// SIGKILL, as after a crash or by the kernel's out-of-memory killer.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(SOON);
    }
}

impl Deref for Notifier {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Notifier {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
