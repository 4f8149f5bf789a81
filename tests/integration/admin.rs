//! The metrics port with hostile clients.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketType, connect, socket, sockopt::set_socket_recv_buffer_size},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, wait_until};

/// What a scraper can rely on, whoever else is connected.
const SCRAPE_LIMIT: Duration = Duration::from_secs(1);

/// By how much the process may grow meanwhile. The requests and answers that it holds at a time are at
/// most 4 MiB, and far less here.
const MOST_GROWTH_KIB: usize = 4 * 1024;

/// Attempts and queries run in threads that live for milliseconds, and on a busy machine a lane starts a few
/// consumers more. A thread for each client would be hundreds.
const MORE_THREADS: usize = 16;

/// A notifier, its receiver, and a scraper that requests /metrics all the time.
struct Besieged {
    sandbox: Sandbox,
    receiver: Receiver,
    notifier: Notifier,
    /// How many times the scraper was answered and an event delivered.
    rounds: AtomicUsize,
}

impl Besieged {
    fn new() -> Self {
        let sandbox = Sandbox::alone(1);
        let receiver = Receiver::new();
        sandbox.webhook(&receiver.url("/"), &["*"]);
        let notifier = sandbox.notifier().start();
        Self { sandbox, receiver, notifier, rounds: AtomicUsize::new(0) }
    }

    /// Scrapes, and has an event delivered. Returns how long each took.
    fn round(&self) -> [Duration; 2] {
        let began = Instant::now();
        assert_eq!(self.notifier.get("/metrics").status, 200);
        let scrape = began.elapsed();
        let event = Event::new("order.paid");
        let began = Instant::now();
        self.sandbox.publish(&event);
        wait_until(SOON, "the event is delivered", || !self.receiver.of("/", &event).is_empty());
        self.rounds.fetch_add(1, Ordering::SeqCst);
        [scrape, began.elapsed()]
    }

    /// Waits until the scraper has had `count` more answers.
    #[track_caller]
    fn wait_rounds(&self, count: usize) {
        let enough = self.rounds.load(Ordering::SeqCst) + count;
        wait_until(SOON, "the scraper gets answers", || {
            self.rounds.load(Ordering::SeqCst) >= enough
        });
    }

    /// Runs the attack, which reports its outcome, and checks that it harms neither the scraper nor the
    /// events nor the process.
    #[track_caller]
    fn withstands(&mut self, attack: &str, wage: impl FnOnce(&Self) -> String) {
        for _ in 0..20 {
            self.round();
        }
        let this = &*self;
        let [memory, threads, _] = this.notifier.resources();
        let over = AtomicBool::new(false);
        let (outcome, seen) = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut seen = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    seen.push((this.round(), this.notifier.resources()));
                }
                seen
            });
            let outcome = wage(this);
            this.wait_rounds(1);
            over.store(true, Ordering::SeqCst);
            (outcome, watch.join().expect("the scraper is served, and events are delivered"))
        });
        let slowest = |which: usize| seen.iter().map(|(took, _)| took[which]).max();
        let most = |which: usize| seen.iter().map(|(_, held)| held[which]).max();
        let [scrape, delivery] = [0, 1].map(|which| slowest(which).expect("a round"));
        let [most_memory, most_threads] = [0, 1].map(|which| most(which).expect("a round"));
        eprintln!(
            "{attack:<40} | {outcome:<58} | {:>3} scrapes, slowest {:>3} ms, slowest delivery \
             {:>3} ms | {memory} to {most_memory} KiB | {threads} to {most_threads} threads",
            seen.len(),
            scrape.as_millis(),
            delivery.as_millis(),
        );
        assert!(scrape < SCRAPE_LIMIT, "a scrape took {scrape:?}");
        assert!(most_memory < memory + MOST_GROWTH_KIB, "{memory} to {most_memory} KiB");
        assert!(most_threads <= threads + MORE_THREADS, "{threads} to {most_threads} threads");
        assert!(self.notifier.is_running());
        let said = self.notifier.stderr();
        let unwell = |line: &&String| line.contains("interrupted") || line.contains("panicked");
        assert_eq!(said.iter().find(unwell), None, "{said:#?}");
    }
}

/// Allows this process to open `count` files.
fn allow_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    assert!(most >= count, "the hard limit of open files is {most}: {count} are needed");
    if limit.current.is_some_and(|current| current < count) {
        let raised = Rlimit { current: Some(count), ..limit };
        setrlimit(Resource::Nofile, raised).expect("it is within the hard limit");
    }
}

/// A client that has sent these bytes.
fn client_saying(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(address).expect("the metrics port accepts");
    client.set_read_timeout(Some(SOON)).expect("a valid limit");
    // Its connection may have been closed already.
    let _ = client.write_all(bytes);
    client
}

/// Whether the other side has closed its connection.
fn is_sent_away(client: &TcpStream) -> bool {
    client.set_nonblocking(true).expect("it is a socket");
    let mut client = client;
    match client.read(&mut [0; 1024]) {
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        Ok(length) => length == 0,
    }
}

/// The status of the only answer to these bytes, or what came instead.
fn answer_to(address: SocketAddr, bytes: &[u8], and_no_more: bool) -> String {
    let mut client = client_saying(address, bytes);
    if and_no_more {
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
fn ten_thousand_idle_connections_do_not_block_metrics() {
    const CROWD: usize = 10_000;
    allow_files(CROWD as u64 + 1_000);
    Besieged::new().withstands("10,000 idle connections", |besieged| {
        let began = Instant::now();
        let mut crowd: Vec<_> = (0..CROWD).map(|_| besieged.notifier.connect_to_admin()).collect();
        let opened = began.elapsed();
        let all = crowd.len();
        crowd.retain(|client| !is_sent_away(client));
        let first = all - crowd.len();
        wait_until(SOON, "all are sent away", || {
            crowd.retain(|client| !is_sent_away(client));
            crowd.is_empty()
        });
        let last = began.elapsed();
        format!("opened in {opened:.1?}, {first} sent away by then, all after {last:.1?}")
    });
}

#[test]
fn clients_that_send_a_byte_a_second_do_not_block_metrics() {
    const CROWD: usize = 500;
    const SECONDS: usize = 8;
    Besieged::new().withstands("500 clients of a byte a second", |besieged| {
        let address = besieged.notifier.admin_address();
        // As long as possible, so that much of it is kept.
        let begin = format!("GET /metrics HTTP/1.1\r\na: {}", "x".repeat(8_000));
        let slow_client = || client_saying(address, begin.as_bytes());
        let mut crowd: Vec<_> = (0..CROWD).map(|_| slow_client()).collect();
        let mut count = CROWD;
        let mut answers = Vec::new();
        for _ in 0..SECONDS {
            thread::sleep(Duration::from_secs(1));
            for client in &mut crowd {
                if client.write_all(b"x").is_err() || is_sent_away(client) {
                    // It comes back at once.
                    *client = slow_client();
                    count += 1;
                }
            }
        }
        for mut client in crowd {
            client.set_nonblocking(false).expect("it is a socket");
            let mut answer = String::new();
            answers.push(match client.read_to_string(&mut answer) {
                Ok(length) if length > 0 => answer.split(' ').nth(1).expect("a status").to_owned(),
                _ => "sent away".to_owned(),
            });
        }
        format!("{count} connections; of the last 500, {}", counted(answers))
    });
}

#[test]
fn clients_that_never_read_their_answer_do_not_block_metrics() {
    const CROWD: usize = 500;
    Besieged::new().withstands("500 clients that never read", |besieged| {
        let address = besieged.notifier.admin_address();
        let crowd = ["/metrics", "/"].into_iter().cycle().take(CROWD).map(|path| {
            let client = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            // The least that the kernel allows. It is set before connecting, since the peer is told
            // then.
            set_socket_recv_buffer_size(&client, 1).expect("a valid size");
            connect(&client, &address).expect("the metrics port accepts");
            let mut client = TcpStream::from(client);
            let _ = client.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            client
        });
        let crowd: Vec<_> = crowd.collect();
        besieged.wait_rounds(50);
        let outcomes = crowd.into_iter().map(|mut client| {
            client.set_read_timeout(Some(SOON)).expect("a valid limit");
            let mut answer = Vec::new();
            match client.read_to_end(&mut answer) {
                Ok(length) if length > 10_000 => "answered when they read at last".to_owned(),
                _ => "cut off".to_owned(),
            }
        });
        counted(outcomes)
    });
}

#[test]
fn huge_requests_are_refused_and_do_not_block_metrics() {
    const TIMES: usize = 200;
    let mut besieged = Besieged::new();
    let long = "x".repeat(1 << 20);
    let url = format!("GET /{long} HTTP/1.1\r\n\r\n");
    let method = format!("{long} / HTTP/1.1\r\n\r\n");
    let headers = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let header = format!("GET /metrics HTTP/1.1\r\na: {long}\r\n\r\n");
    let line_without_end = long.repeat(2);
    for (attack, request) in [
        ("a URL of 1 MiB", url),
        ("a method of 1 MiB", method),
        ("10,000 headers", headers),
        ("a header of 1 MiB", header),
        ("2 MiB without a line", line_without_end),
    ] {
        besieged.withstands(&format!("{TIMES} x {attack}"), |besieged| {
            let address = besieged.notifier.admin_address();
            let answers = (0..TIMES).map(|_| answer_to(address, request.as_bytes(), false));
            let answers = counted(answers);
            assert_eq!(answers, format!("{TIMES} x 431"));
            answers
        });
    }
    besieged.withstands(&format!("{TIMES} x a body without an end"), |besieged| {
        let address = besieged.notifier.admin_address();
        let sent = (0..TIMES).map(|_| {
            let head = b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut client = client_saying(address, head);
            let mut status = [0; 12];
            client.read_exact(&mut status).expect("an answer before the body");
            assert_eq!(&status, b"HTTP/1.1 405");
            let chunks = std::iter::from_fn(|| client.write_all(&[b'f'; 1 << 16]).ok());
            chunks.take(1 << 12).count()
        });
        let most = sent.max().expect("some");
        assert!(most < 1 << 12, "256 MiB were taken");
        format!("{TIMES} x 405, cut off after {} MiB at most", most >> 4)
    });
}

#[test]
fn a_flood_of_requests_does_not_block_metrics() {
    const CLIENTS: usize = 16;
    const TIMES: usize = 250;
    let methods = ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "BREW"];
    Besieged::new().withstands("16 clients, 250 wrong methods each", |besieged| {
        let address = besieged.notifier.admin_address();
        let flood = || {
            let answers = methods.iter().cycle().take(TIMES).map(|method| {
                let request = format!("{method} /metrics HTTP/1.1\r\n\r\n");
                answer_to(address, request.as_bytes(), false)
            });
            answers.collect::<Vec<_>>()
        };
        let began = Instant::now();
        let answers = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(flood)).collect();
            let answers = clients.into_iter().map(|client| client.join().expect("answers"));
            counted(answers.flatten())
        });
        assert_eq!(answers, format!("{} x 405", CLIENTS * TIMES));
        format!("{answers} in {:.1?}", began.elapsed())
    });
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
        for and_no_more in [false, true] {
            let outcome = answer_to(address, request, and_no_more);
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
    // Some monitors ask with a query.
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
        assert!(matches!(end, Ok(0)), "a silent client is sent away: {end:?}");
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
fn idle_connections_are_closed_when_open_files_run_out() {
    let besieged = Besieged::new();
    besieged.round();
    let [_, _, open] = besieged.notifier.resources();
    limit_files(&besieged.notifier, open + 20);
    let crowd: Vec<_> = (0..60).map(|_| besieged.notifier.connect_to_admin()).collect();
    let [scrape, _] = besieged.round();
    assert!(scrape < SCRAPE_LIMIT, "a scrape took {scrape:?}");
    let sent_away = crowd.iter().filter(|client| is_sent_away(client)).count();
    assert!(sent_away >= 40, "only {sent_away} gave way");
    let said = besieged.notifier.stderr();
    assert!(!said.iter().any(|line| line.contains("metrics port interrupted")), "{said:#?}");
    besieged.notifier.terminate();
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

    // It can't open a single file more, whatever is closed meanwhile.
    limit_files(&notifier, 3);
    let address = notifier.admin_address();
    let mut early = client_saying(address, b"GET /healthz HTTP/1.1\r\n\r\n");
    notifier.wait_stderr(SOON, "metrics port interrupted");
    limit_files(&notifier, open + 20);

    notifier.wait_stderr(SOON, "metrics port answers again");
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer, late as it is");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    sandbox.publish(&Event::new("after"));
    receiver.wait_at("/", 2);
    let said = notifier.stderr();
    let interrupted = said.iter().filter_map(|line| {
        let (_, state) = line.split_once("metrics port ")?;
        Some(state.starts_with("interrupted"))
    });
    let states = Vec::from_iter(interrupted);
    assert_eq!(states, [true, false], "{said:#?}");
    notifier.terminate();
}

/// Sends a browser's request for a page under another name that resolves to this address.
fn asked_by(notifier: &Notifier, host: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    answer_to(notifier.admin_address(), request.as_bytes(), false)
}

#[test]
fn the_page_is_not_served_under_a_foreign_host_name() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().env("METRICS_HOSTS", "hooks.example, other.example").start();
    for path in ["/", "/status.json"] {
        for host in ["evil.example", "evil.example:80", "localhost.evil.example", ""] {
            assert_eq!(asked_by(&notifier, host, path), "421", "{host:?} {path}");
        }
        for host in ["127.0.0.1", "localhost:9090", "[::1]:9090", "Hooks.Example", "other.example"]
        {
            assert_eq!(asked_by(&notifier, host, path), "200", "{host:?} {path}");
        }
    }
    for path in ["/metrics", "/healthz"] {
        assert_eq!(asked_by(&notifier, "evil.example", path), "200", "{path}");
    }
    notifier.terminate();
}
