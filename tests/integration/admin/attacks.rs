//! Clients that attack the metrics port: none of them keeps the scraper from its answers.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketType, connect, socket, sockopt::set_socket_recv_buffer_size},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::{answer_to, client_sending, counted, is_disconnected, limit_files};
use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, wait_until};

/// A scraper gets its answer within this time, whoever else is connected.
const SCRAPE_LIMIT: Duration = Duration::from_secs(1);

/// By how much the process may grow during an attack. The requests and answers that it holds at a time
/// take at most 4 MiB, and far less here.
const MOST_GROWTH_KIB: usize = 4 * 1024;

/// Threads that come and go whatever the port's clients do, by the beginnings of their names: those of attempts, of
/// queries, and of new connections to PostgreSQL and to the broker. On a busy machine there are more of them.
const TRANSIENT: [&str; 4] = ["worker-", "query", "connect", "check"];

/// The port's threads, whatever its clients do. One that they start without a name has the name of that which
/// started it.
const OF_PORT: [&str; 2] = ["admin", "admin-door"];

/// A notifier, its receiver, and a scraper that requests /metrics all the time.
struct UnderAttack {
    sandbox: Sandbox,
    receiver: Receiver,
    notifier: Notifier,
    /// How many times the scraper got its answer and an event was delivered.
    rounds: AtomicUsize,
}

impl UnderAttack {
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

    /// The names of all threads except those of the lane's consumers, whose names begin with the queue's, and
    /// [`TRANSIENT`].
    fn threads(&self) -> Vec<String> {
        let consumer = &self.sandbox.queue()[..12];
        let mut names = self.notifier.thread_names();
        names.retain(|name| {
            !name.starts_with(consumer) && !TRANSIENT.iter().any(|of| name.starts_with(of))
        });
        names.sort();
        names
    }

    /// Waits until the scraper has had `count` more answers.
    #[track_caller]
    fn wait_rounds(&self, count: usize) {
        let enough = self.rounds.load(Ordering::SeqCst) + count;
        wait_until(SOON, "the scraper gets answers", || {
            self.rounds.load(Ordering::SeqCst) >= enough
        });
    }

    /// Runs the attack, which returns its outcome as text, and checks that it harms neither the scraper
    /// nor the events nor the process.
    #[track_caller]
    fn withstands(&mut self, name: &str, attack: impl FnOnce(&Self) -> String) {
        for _ in 0..20 {
            self.round();
        }
        let this = &*self;
        let ([memory, ..], threads) = (this.notifier.resources(), this.threads());
        let over = AtomicBool::new(false);
        let (outcome, seen) = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut seen = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    let [memory, ..] = this.notifier.resources();
                    seen.push((this.round(), memory, this.threads()));
                }
                seen
            });
            let outcome = attack(this);
            this.wait_rounds(1);
            over.store(true, Ordering::SeqCst);
            (outcome, watch.join().expect("the scraper is served, and events are delivered"))
        });
        let slowest = |which: usize| seen.iter().map(|(took, ..)| took[which]).max();
        let [scrape, delivery] = [0, 1].map(|which| slowest(which).expect("a round"));
        let most_memory = seen.iter().map(|(_, memory, _)| *memory).max().expect("a round");
        let most_threads = seen.iter().map(|(.., threads)| threads.len()).max().expect("a round");
        eprintln!(
            "{name:<40} | {outcome:<58} | {:>3} scrapes, slowest {:>3} ms, slowest delivery \
             {:>3} ms | {memory} to {most_memory} KiB | {} to {} threads",
            seen.len(),
            scrape.as_millis(),
            delivery.as_millis(),
            threads.len(),
            most_threads,
        );
        assert!(scrape < SCRAPE_LIMIT, "a scrape took {scrape:?}");
        assert!(most_memory < memory + MOST_GROWTH_KIB, "{memory} to {most_memory} KiB");
        for (.., now) in &seen {
            // More threads of a name that isn't the port's are no harm: a connection to the broker that is open
            // now and then has two, for example.
            let others = now.iter().filter(|name| !threads.contains(name)).collect::<Vec<_>>();
            assert!(others.is_empty(), "{others:?} beside {threads:?}");
            let of_port = now.iter().filter(|name| name.starts_with("admin")).collect::<Vec<_>>();
            assert_eq!(of_port, OF_PORT);
        }
        assert!(self.notifier.is_running());
        let output = self.notifier.stderr();
        let unwell = |line: &&String| line.contains("interrupted") || line.contains("panicked");
        assert_eq!(output.iter().find(unwell), None, "{output:#?}");
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

#[test]
fn ten_thousand_idle_connections_do_not_block_metrics() {
    const CROWD: usize = 10_000;
    allow_files(CROWD as u64 + 1_000);
    UnderAttack::new().withstands("10,000 idle connections", |target| {
        let began = Instant::now();
        let mut crowd: Vec<_> = (0..CROWD).map(|_| target.notifier.connect_to_admin()).collect();
        let opened = began.elapsed();
        let all = crowd.len();
        crowd.retain(|client| !is_disconnected(client));
        let first = all - crowd.len();
        wait_until(SOON, "all are disconnected", || {
            crowd.retain(|client| !is_disconnected(client));
            crowd.is_empty()
        });
        let last = began.elapsed();
        format!("opened in {opened:.1?}, {first} disconnected by then, all after {last:.1?}")
    });
}

#[test]
fn clients_that_send_a_byte_a_second_do_not_block_metrics() {
    const CROWD: usize = 500;
    const SECONDS: usize = 8;
    UnderAttack::new().withstands("500 clients of a byte a second", |target| {
        let address = target.notifier.admin_address();
        // As long as possible, so that the port has to keep much of it.
        let begin = format!("GET /metrics HTTP/1.1\r\na: {}", "x".repeat(8_000));
        let slow_client = || client_sending(address, begin.as_bytes());
        let mut crowd: Vec<_> = (0..CROWD).map(|_| slow_client()).collect();
        let mut count = CROWD;
        let mut answers = Vec::new();
        for _ in 0..SECONDS {
            thread::sleep(Duration::from_secs(1));
            for client in &mut crowd {
                if client.write_all(b"x").is_err() || is_disconnected(client) {
                    // It connects again at once.
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
                _ => "disconnected".to_owned(),
            });
        }
        format!("{count} connections; of the last 500, {}", counted(answers))
    });
}

#[test]
fn clients_that_never_read_their_answer_do_not_block_metrics() {
    const CROWD: usize = 500;
    UnderAttack::new().withstands("500 clients that never read", |target| {
        let address = target.notifier.admin_address();
        let crowd = ["/metrics", "/"].into_iter().cycle().take(CROWD).map(|path| {
            let client = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            // The least that the kernel allows. It is set before connecting, since the peer learns it
            // then.
            set_socket_recv_buffer_size(&client, 1).expect("a valid size");
            connect(&client, &address).expect("the metrics port accepts");
            let mut client = TcpStream::from(client);
            let _ = client.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            client
        });
        let crowd: Vec<_> = crowd.collect();
        target.wait_rounds(50);
        let outcomes = crowd.into_iter().map(|mut client| {
            client.set_read_timeout(Some(SOON)).expect("a valid limit");
            let mut answer = Vec::new();
            match client.read_to_end(&mut answer) {
                Ok(length) if length > 10_000 => "answered when they finally read".to_owned(),
                _ => "cut off".to_owned(),
            }
        });
        counted(outcomes)
    });
}

#[test]
fn huge_requests_are_refused_and_do_not_block_metrics() {
    const TIMES: usize = 200;
    let mut target = UnderAttack::new();
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
        target.withstands(&format!("{TIMES} x {attack}"), |target| {
            let address = target.notifier.admin_address();
            let answers = (0..TIMES).map(|_| answer_to(address, request.as_bytes(), false));
            let answers = counted(answers);
            assert_eq!(answers, format!("{TIMES} x 431"));
            answers
        });
    }
    target.withstands(&format!("{TIMES} x a body without an end"), |target| {
        let address = target.notifier.admin_address();
        let sent = (0..TIMES).map(|_| {
            let head = b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut client = client_sending(address, head);
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
    UnderAttack::new().withstands("16 clients, 250 wrong methods each", |target| {
        let address = target.notifier.admin_address();
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
fn idle_connections_are_closed_when_open_files_run_out() {
    let target = UnderAttack::new();
    target.round();
    let [_, _, open] = target.notifier.resources();
    limit_files(&target.notifier, open + 20);
    let crowd: Vec<_> = (0..60).map(|_| target.notifier.connect_to_admin()).collect();
    let [scrape, _] = target.round();
    assert!(scrape < SCRAPE_LIMIT, "a scrape took {scrape:?}");
    let closed = crowd.iter().filter(|client| is_disconnected(client)).count();
    assert!(closed >= 40, "only {closed} were closed");
    let output = target.notifier.stderr();
    assert!(!output.iter().any(|line| line.contains("metrics port interrupted")), "{output:#?}");
    target.notifier.terminate();
}
