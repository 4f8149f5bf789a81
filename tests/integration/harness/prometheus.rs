//! A real Prometheus that watches a notifier, as documented for operators, but with shorter
//! intervals.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use url::form_urlencoded;

use super::{Process, SOON, Signal, wait_until};

/// The files for operators.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/monitoring")
}

fn given(name: &str) -> String {
    fs::read_to_string(folder().join(name)).expect("it is there, and text")
}

/// The rules with a second for every `for:`, and ten for every range and window.
fn sped_up(rules: &str) -> String {
    let mut sped_up = String::new();
    for line in rules.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start().starts_with("for: ") {
            sped_up += indent;
            sped_up += "for: 1s";
        } else {
            let mut pieces = line.split('[');
            sped_up += pieces.next().expect("a line has a beginning");
            for piece in pieces {
                let range = piece.split_once(']').filter(|(range, _)| is_duration(range));
                sped_up += &range.map_or(format!("[{piece}"), |(_, rest)| format!("[10s]{rest}"));
            }
        }
        sped_up.push('\n');
    }
    sped_up
}

fn is_duration(text: &str) -> bool {
    let number = text.strip_suffix(['s', 'm', 'h', 'd']);
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

pub(crate) struct Prometheus {
    process: Process,
    address: SocketAddr,
    files: TempDir,
}

/// An alert that fires.
#[derive(Debug)]
pub(crate) struct Alert {
    pub(crate) name: String,
    /// Its labels and annotations.
    texts: Value,
}

impl Alert {
    /// A label, or an annotation.
    pub(crate) fn text(&self, name: &str) -> &str {
        let [labels, annotations] = ["labels", "annotations"].map(|part| &self.texts[part][name]);
        labels.as_str().or(annotations.as_str()).unwrap_or_default()
    }
}

impl Prometheus {
    /// Runs with the example configuration and the rules, and scrapes one notifier.
    pub(crate) fn watching(notifier: SocketAddr) -> Self {
        let files = TempDir::new().expect("a folder");
        let write = |name, text: &str| fs::write(files.path().join(name), text).expect("a file");
        write("prometheus-rules.yml", &sped_up(&given("prometheus-rules.yml")));
        write("prometheus.yml", &configuration(notifier));
        let mut command = Command::new("prometheus");
        command
            .current_dir(&files)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg("--web.listen-address=127.0.0.1:0");
        let mut process = Process::spawn(command);
        let line = process.wait_stderr(SOON, "msg=\"Listening on\"");
        let (_, address) = line.split_once("address=").expect("it says where");
        let address = address.trim().parse().expect("an address with a port");
        process.wait_stderr(SOON, "Server is ready to receive web requests");
        Self { process, address, files }
    }

    /// Scrapes another notifier from now on.
    pub(crate) fn watch(&self, notifier: SocketAddr) {
        let file = self.files.path().join("prometheus.yml");
        fs::write(file, configuration(notifier)).expect("a file");
        self.process.signal(Signal::HUP);
    }

    /// Replaces its rules by these.
    pub(crate) fn replace_rules(&self, rules: &str) {
        fs::write(self.files.path().join("prometheus-rules.yml"), rules).expect("a file");
        self.process.signal(Signal::HUP);
    }

    /// The data in a response of its HTTP API.
    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.address).expect("Prometheus accepts");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").expect("it takes a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers and closes");
        let (_, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let mut answer: Value = serde_json::from_str(body).expect("its API speaks JSON");
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// The present series of an expression.
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let query: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        list(self.get(&format!("query?query={query}"))["result"].take())
    }

    /// The rules as it has read them: recorded names and alerts, with their expressions.
    pub(crate) fn rules(&self) -> Vec<Value> {
        let groups = list(self.get("rules")["groups"].take());
        groups.into_iter().flat_map(|mut group| list(group["rules"].take())).collect()
    }

    /// The alerts that fire now.
    pub(crate) fn alerts(&self) -> Vec<Alert> {
        let alerts = list(self.get("alerts")["alerts"].take());
        let firing = alerts.into_iter().filter(|alert| alert["state"] == "firing");
        firing
            .map(|texts| Alert {
                name: texts["labels"]["alertname"].as_str().expect("a name").to_owned(),
                texts,
            })
            .collect()
    }

    /// Waits until an alert of that name fires, and returns all that fire then.
    #[track_caller]
    pub(crate) fn wait_firing(&self, limit: Duration, name: &str) -> Vec<Alert> {
        let mut firing = Vec::new();
        wait_until(limit, &format!("{name} fires"), || {
            firing = self.alerts();
            firing.iter().any(|alert| alert.name == name)
        });
        firing.retain(|alert| alert.name == name);
        firing
    }

    /// Waits until no alert fires.
    #[track_caller]
    pub(crate) fn wait_quiet(&self, limit: Duration) {
        wait_until(limit, "no alert fires", || self.alerts().is_empty());
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        other => panic!("not a list: {other}"),
    }
}

fn configuration(notifier: SocketAddr) -> String {
    let given = given("prometheus.yml");
    let sped_up = given.replace(": 15s", ": 1s");
    let configuration = sped_up.replace("[127.0.0.1:9090]", &format!("['{notifier}']"));
    assert!(sped_up != given && configuration != sped_up, "nothing to replace in {given}");
    configuration
}
