//! The metrics port: its answers, and clients that send odd requests or none.

mod attacks;

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
};

use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, wait_until};

/// A client that has sent these bytes.
fn client_sending(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("the metrics port accepts");
    client.set_read_timeout(Some(SOON)).expect("a valid limit");
    // Its connection may have been closed already.
    let _ = client.write_all(bytes);
    client
}

/// Whether the other side has closed the connection.
fn is_disconnected(client: &TcpStream) -> bool {
    client.set_nonblocking(true).expect("it is a socket");
    let mut client = client;
    match client.read(&mut [0; 1024]) {
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        Ok(length) => length == 0,
    }
}

/// The status of the only answer to these bytes, or what happened instead. `ends`: the client sends a FIN
/// after them.
fn answer_to(address: SocketAddr, bytes: &[u8], ends: bool) -> String {
    let mut client = client_sending(address, bytes);
    if ends {
        client.shutdown(Shutdown::Write).expect("it is connected");
    }
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Err(error) => format!("{}", error.kind()),
        Ok(0) => "closed".to_owned(),
        Ok(_) => {
            let answer = String::from_utf8_lossy(&answer);
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
            assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
            answer.split(' ').nth(1).expect("a status").to_owned()
        }
    }
}

/// How often each outcome occurred, as text.
fn counted(outcomes: impl IntoIterator<Item = String>) -> String {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome).or_insert(0) += 1;
    }
    let counts = counts.into_iter().map(|(outcome, count)| format!("{count} x {outcome}"));
    counts.collect::<Vec<_>>().join(", ")
}

#[test]
fn every_request_gets_an_answer_however_odd_it_is() {
    let rows: [(&[u8], &str); 34] = [
        (b"GET /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET /metrics HTTP/1.0\n\n", "200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET http://somewhere.else/metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET /metrics?a=%00&b=/../ HTTP/1.1\r\n\r\n", "200"),
        (
            b"GET /healthz HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "200",
        ),
        (b"GET /healthz HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", "200"),
        (b"GET /healthz HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n", "200"),
        (b"GET /healthz HTTP/1.1\r\nexpect: something\r\nconnection: upgrade\r\n\r\n", "200"),
        (
            b"GET /healthz HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
            "200",
        ),
        (b"GET //metrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET /./metrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET /%6detrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET /%2e%2e/%2fmetrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics%00 HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics%zz%c0%ae HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics#x HTTP/1.1\r\n\r\n", "404"),
        (b"GET \\metrics HTTP/1.1\r\n\r\n", "404"),
        (b"GET * HTTP/1.1\r\n\r\n", "404"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "405"),
        (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", "405"),
        (b"get /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET /metrics\0 HTTP/1.1\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\na: \0\r\n\r\n", "400"),
        (b"GET /m\xc3\xa9trics HTTP/1.1\r\n\r\n", "400"),
        (b"GET /metrics\r\n", "400"),
        (b"GET /metrics HTTP/0.9\r\n\r\n", "400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        (b"GET / metrics HTTP/1.1\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\nno header\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\na: b\r\n folded\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
    ];
    let sandbox = Sandbox::new();
    let mut notifier = sandbox.notifier().start();
    let address = notifier.admin_address();
    let mut outcomes = Vec::new();
    for (request, expected) in rows {
        for ends in [false, true] {
            let outcome = answer_to(address, request, ends);
            assert_eq!(outcome, expected, "{}", request.escape_ascii());
            outcomes.push(outcome);
        }
    }
    for unfinished in [&b"GET /metrics HT"[..], b"GET /metrics HTTP/1.1\r\nhost: x\r\n"] {
        assert_eq!(answer_to(address, unfinished, false), "408");
        assert_eq!(answer_to(address, unfinished, true), "closed");
    }
    assert_eq!(answer_to(address, b"", false), "closed");
    assert!(notifier.get("/metrics").body.contains("\n# TYPE "));
    assert!(notifier.is_running());
    eprintln!("{:<40} | {}", "odd requests", counted(outcomes));
}

#[test]
fn the_admin_port_serves_its_paths_and_refuses_all_others() {
    let sandbox = Sandbox::new();
    let mut notifier = sandbox.notifier().start();

    let metrics = notifier.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: text/plain"), "{}", metrics.head);
    let health = notifier.get("/healthz");
    assert_eq!((health.status, health.body.trim()), (200, "ok"));
    let ready = notifier.get("/readyz");
    assert_eq!((ready.status, ready.body.trim()), (200, "ready"));
    // Some monitors add a query.
    assert_eq!(notifier.get("/metrics?name=x").status, 200);

    for path in ["/metric", "/metrics/", "/status", "/../etc/passwd", "/%00", "//"] {
        assert_eq!(notifier.get(path).status, 404, "{path}");
    }
    let statuses: BTreeMap<_, _> = ["HEAD", "POST", "PUT", "DELETE"]
        .into_iter()
        .map(|method| (method, notifier.ask(method, "/metrics").status))
        .collect();
    let expected = BTreeMap::from([("HEAD", 200), ("POST", 405), ("PUT", 405), ("DELETE", 405)]);
    assert_eq!(statuses, expected);
    assert!(notifier.ask("HEAD", "/metrics").body.is_empty());
    assert!(notifier.is_running());
}

#[test]
fn silent_clients_are_disconnected() {
    let sandbox = Sandbox::new();
    let mut notifier = sandbox.notifier().start();
    let silent: Vec<_> = (0..200).map(|_| notifier.connect_to_admin()).collect();
    wait_until(SOON, "it is ready", || notifier.is_ready());
    for mut client in silent {
        client.set_read_timeout(Some(SOON)).expect("a valid limit");
        let end = client.read(&mut [0]);
        assert!(matches!(end, Ok(0)), "a silent client is disconnected: {end:?}");
    }
    wait_until(SOON, "it is ready", || notifier.is_ready());
    assert!(notifier.is_running());
}

/// Sets how many files the process may have open.
fn limit_files(notifier: &Notifier, limit: usize) {
    let limit = format!("--nofile={limit}:");
    let pid = format!("--pid={}", notifier.id());
    let limited = Command::new("prlimit").args([pid, limit]).status().expect("there is a prlimit");
    assert!(limited.success());
}

#[test]
fn running_out_of_open_files_is_survived() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("before"));
    receiver.wait_at("/", 1);
    let [_, _, open] = notifier.resources();

    // Fewer than it has open: it can't open another one, whatever it closes meanwhile.
    limit_files(&notifier, 3);
    let address = notifier.admin_address();
    let mut early = client_sending(address, b"GET /healthz HTTP/1.1\r\n\r\n");
    notifier.wait_stderr(SOON, "metrics port interrupted");
    limit_files(&notifier, open + 20);

    notifier.wait_stderr(SOON, "metrics port answers again");
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer, late as it is");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    sandbox.publish(&Event::new("after"));
    receiver.wait_at("/", 2);
    let output = notifier.stderr();
    let interrupted = output.iter().filter_map(|line| {
        let (_, state) = line.split_once("metrics port ")?;
        Some(state.starts_with("interrupted"))
    });
    let states = Vec::from_iter(interrupted);
    assert_eq!(states, [true, false], "{output:#?}");
    notifier.terminate();
}

/// The status of the answer to a browser that asks for a page under this host name.
fn status_for(notifier: &Notifier, host: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    answer_to(notifier.admin_address(), request.as_bytes(), false)
}

#[test]
fn the_page_is_not_served_under_a_foreign_host_name() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().env("METRICS_HOSTS", "hooks.example, other.example").start();
    for path in ["/", "/status.json"] {
        for host in ["evil.example", "evil.example:80", "localhost.evil.example", ""] {
            assert_eq!(status_for(&notifier, host, path), "421", "{host:?} {path}");
        }
        for host in ["127.0.0.1", "localhost:9090", "[::1]:9090", "Hooks.Example", "other.example"]
        {
            assert_eq!(status_for(&notifier, host, path), "200", "{host:?} {path}");
        }
    }
    for path in ["/metrics", "/healthz"] {
        assert_eq!(status_for(&notifier, "evil.example", path), "200", "{path}");
    }
    notifier.terminate();
}
