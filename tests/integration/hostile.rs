//! Hostile receivers: each costs at most the deadline and a few KiB, and others aren't affected.

mod attacks;

use std::{
    collections::BTreeMap,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uuid::Uuid;

use attacks::{Attack, TIMEOUT, attacks, ok, raw};

use crate::harness::{
    DeadLetter, Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Then, wait_until,
};

/// REQUEST_TIMEOUT of these tests.
const DEADLINE: Duration = Duration::from_millis(500);

/// How much later an attempt may end on a machine that is busy with other tests. (On an idle one it is
/// ten milliseconds.)
const TOLERANCE: Duration = Duration::from_millis(1_500);

/// The threads of the admin port: its own, and one of tiny_http.
const ADMIN_THREADS: u64 = 2;

/// The queue's capacity. Its lanes for events and for retries have at most this many consumers each, and as many worker
/// threads;
/// a consumer that starts or ends briefly has another thread.
const CAPACITY: u64 = 16;
const MOST_THREADS: u64 = 5 * CAPACITY;

/// Behaves according to the path's first part, which is the number of an attack.
fn attacker() -> Receiver {
    let attacks = attacks();
    Receiver::forgetful(move |request| {
        let number = request.path.split('/').nth(1).and_then(|number| number.parse::<usize>().ok());
        number.map_or(Reply::Status(200), |number| attacks[number].reply.clone())
    })
}

/// A receiver that sends its answer on each connection at once, and never reads.
struct NonReader {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl NonReader {
    fn sending(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // So that the kernel buffers little.
        set_socket_recv_buffer_size(&listener, 4 << 10).expect("it is ours");
        let address = listener.local_addr().expect("it is bound");
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if has_ended.load(Ordering::SeqCst) {
                    return;
                }
                if stream.write_all(answer.as_bytes()).is_ok() {
                    open.push(stream);
                }
            }
        });
        Self { address, ended }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for NonReader {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

/// How an attempt ended.
#[derive(Debug)]
struct Attempt {
    outcome: String,
    took: Duration,
}

impl Attempt {
    /// Whether it had one of these outcomes, or a timeout since the machine was too busy.
    fn has_ended_with(&self, outcomes: &[&str]) -> bool {
        let too_late = self.outcome == "timeout" && self.took >= DEADLINE;
        outcomes.contains(&self.outcome.as_str()) || too_late
    }
}

/// The attempts that were made for a webhook, according to the log.
fn attempts(notifier: &Notifier, webhook: Uuid) -> Vec<Attempt> {
    let webhook = webhook.to_string();
    let lines = notifier.stderr().into_iter().filter(|line| line.contains(&webhook));
    let attempt = |line: String| {
        let value = |key: &str| Some(line.split(key).nth(1)?.split(' ').next()?.to_owned());
        let outcome = match line.contains("delivered event=") {
            true => String::from("delivered"),
            false if line.contains("attempt failed ") => value(" reason=")?,
            false => return None,
        };
        let millis = value(" ms=")?.parse().expect("a number");
        Some(Attempt { outcome, took: Duration::from_millis(millis) })
    };
    lines.filter_map(attempt).collect()
}

/// The process's resources.
#[derive(Clone, Copy)]
struct Held {
    kib: u64,
    threads: u64,
}

impl Held {
    fn by(notifier: &Notifier) -> Self {
        let metrics = notifier.metrics();
        Self {
            kib: metrics.sum("process_resident_memory_bytes", &[]) as u64 / 1024,
            threads: metrics.sum("process_threads", &[]) as u64,
        }
    }
}

fn launch(sandbox: &Sandbox, capacity: u64, schedule: &str) -> Notifier {
    sandbox
        .notifier()
        .env("QUEUES", format!("{}={capacity}", sandbox.queue()))
        .env("REQUEST_TIMEOUT", format!("{}ms", DEADLINE.as_millis()))
        .env("CONNECT_TIMEOUT", "400ms")
        .env("RETRY_SCHEDULE", schedule)
        .env("CIRCUIT_BREAKER", "off")
        .env("RUST_LOG", "info,webhook_notifier=debug")
        .start()
}

#[test]
fn no_attack_costs_more_than_the_deadline_and_a_few_kib() {
    const TIMES: usize = 3;
    let sandbox = Sandbox::new();
    let receiver = attacker();
    let silent = NonReader::sending("");
    let early = NonReader::sending("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let mut cases = Vec::new();
    for (number, Attack { name, outcomes, .. }) in attacks().into_iter().enumerate() {
        let webhook =
            sandbox.webhook(&receiver.url(&format!("/{number}")), &[&format!("{number}")]);
        cases.push((format!("{number}"), webhook, name, outcomes, 100));
    }
    let encrypted = |url: String| url.replace("http:", "https:");
    // The outcome depends on how much of a large event fits into the kernel's buffers.
    let by_size = &["timeout", "delivered"];
    for (kind, url, name, outcomes, bytes) in [
        ("silent", silent.url(), "request is never read", TIMEOUT, 1_000_000),
        ("early", early.url(), "200 before the request is read", by_size, 1_000_000),
        ("silent.tls", encrypted(silent.url()), "TLS, silence", TIMEOUT, 100),
        ("early.tls", encrypted(early.url()), "TLS, no TLS", &["tls"], 100),
    ] {
        cases.push((kind.to_owned(), sandbox.webhook(&url, &[kind]), name, outcomes, bytes));
    }
    sandbox.webhook(&receiver.url("/"), &["warm.up"]);
    let notifier = launch(&sandbox, CAPACITY, "5m");
    sandbox.publish(&Event::new("warm.up").body("x".repeat(1_000)));
    let first = Held::by(&notifier);
    eprintln!(
        "{:30} {:>5}  {:22} {:>6}  {:>13}  THREADS",
        "ATTACK", "TIMES", "OUTCOME", "MS", "KIB"
    );

    for (kind, webhook, name, outcomes, bytes) in cases {
        let body = format!(r#"{{"filler":"{}"}}"#, "x".repeat(bytes));
        let events: Vec<_> = (0..TIMES).map(|_| Event::new(&kind).body(body.as_bytes())).collect();
        let attempt = |events: &[Event], sum: usize| {
            sandbox.broker.publish(sandbox.queue(), events);
            wait_until(SOON, &format!("{name}: {sum} attempts"), || {
                attempts(&notifier, webhook).len() >= sum
            });
        };
        // The first attempt of a kind allocates memory that the next ones use again.
        attempt(&events[..1], 1);
        let before = Held::by(&notifier);
        // One by one: after a receiver has closed a connection, it gets one request at a time.
        for sum in 2..=TIMES {
            attempt(&events[sum - 1..sum], sum);
        }

        let attempts = attempts(&notifier, webhook);
        let after = Held::by(&notifier);
        let longest = attempts.iter().map(|attempt| attempt.took).max().expect("there are some");
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for attempt in &attempts {
            *found.entry(&attempt.outcome).or_default() += 1;
        }
        let found = found.iter().map(|(outcome, count)| format!("{outcome} {count}"));
        let found = found.collect::<Vec<_>>().join(", ");
        eprintln!(
            "{name:30} {:>5}  {found:22} {:>6}  {:>5} → {:>5}  {} → {}",
            attempts.len(),
            longest.as_millis(),
            before.kib,
            after.kib,
            before.threads,
            after.threads,
        );
        for attempt in &attempts {
            assert!(attempt.has_ended_with(outcomes), "{name}: {attempt:?}");
            assert!(attempt.took <= DEADLINE + TOLERANCE, "{name}: {attempt:?}");
        }
        assert!(after.threads <= first.threads + ADMIN_THREADS + MOST_THREADS, "{name}");
        // Buffers of connections, and of large events in flight.
        let allowance = 1_024 + (TIMES * 4 * bytes) as u64 / 1_024;
        assert!(after.kib <= before.kib + allowance, "{name}: {} KiB", after.kib);
    }
    // Including what each first attempt allocated: 14 MiB, half of it for events of a megabyte.
    let last = Held::by(&notifier);
    assert!(last.kib <= first.kib + (24 << 10), "{} → {} KiB", first.kib, last.kib);
    notifier.terminate();
}

#[test]
fn two_hundred_attackers_at_once_are_bounded_and_their_neighbour_is_served() {
    const ATTACKERS: usize = 200;
    const ROUNDS: usize = 5;
    let sandbox = Sandbox::new();
    let (receiver, neighbour) = (attacker(), Receiver::new());
    let kinds = attacks().len();
    for number in 0..ATTACKERS {
        sandbox.webhook(&receiver.url(&format!("/{}/{number}", number % kinds)), &["attack"]);
    }
    sandbox.webhook(&neighbour.url("/"), &["health"]);
    // Each delivery has two attempts: few may be in flight at a time, and the others wait.
    let notifier = launch(&sandbox, CAPACITY, "200ms");
    let settled = || {
        let metrics = notifier.metrics();
        let settled = ["webhook_request_success_total", "webhook_dead_letters_total"];
        settled.iter().map(|name| metrics.sum(name, &[])).sum::<f64>()
    };
    let mut held = Vec::new();
    eprintln!("{:>5}  {:>8}  {:>6}  {:>7}", "ROUND", "SETTLED", "KIB", "THREADS");

    for round in 1..=ROUNDS {
        sandbox.publish(&Event::new("attack"));
        let health: Vec<_> = (0..10).map(|_| Event::new("health")).collect();
        sandbox.broker.publish(sandbox.queue(), &health);
        neighbour.wait_at("/", round * health.len());
        let expected = round * (ATTACKERS + health.len());
        wait_until(LATER, "all are settled", || settled() >= expected as f64);

        let now = Held::by(&notifier);
        eprintln!("{round:>5}  {:>8}  {:>6}  {:>7}", settled(), now.kib, now.threads);
        held.push(now);
    }

    // The allocator grows for dozens of rounds, whatever the receivers do. What these sent in the last three
    // rounds is fifty times as much.
    let (warm, last) = (held[1], held[ROUNDS - 1]);
    assert!(last.threads <= warm.threads + ADMIN_THREADS + MOST_THREADS);
    assert!(last.kib <= warm.kib + 4_096, "{} KiB, then {} KiB", warm.kib, last.kib);
    for health in neighbour.requests() {
        assert_eq!(health.attempt, 1);
    }
    notifier.terminate();
}

#[test]
fn an_answer_cut_off_at_any_byte_counts_if_its_head_is_complete() {
    const ANSWERS: [&str; 2] = [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ];
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        let mut parts = request.path.split('/').skip(1);
        let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok());
        let (answer, bytes) = (number().expect("an answer"), number().expect("a length"));
        let then = if request.path.ends_with("fin") { Then::Close } else { Then::Reset };
        raw(&ANSWERS[answer][..bytes], then)
    });
    let mut cases = Vec::new();
    for (number, answer) in ANSWERS.iter().enumerate() {
        let head = answer.find("\r\n\r\n").expect("a head") + 4;
        for bytes in 0..=answer.len() {
            for end in ["fin", "rst"] {
                let path = format!("/{number}/{bytes}/{end}");
                let webhook = sandbox.webhook(&receiver.url(&path), &["*"]);
                cases.push((path, webhook, bytes >= head));
            }
        }
    }
    let notifier = launch(&sandbox, 4, "100ms");

    sandbox.publish(&Event::new("order.paid"));

    wait_until(SOON, "each has had an attempt", || receiver.requests().len() >= cases.len());
    for (path, webhook, complete) in &cases {
        wait_until(SOON, "its outcome is known", || !attempts(&notifier, *webhook).is_empty());
        for attempt in attempts(&notifier, *webhook) {
            // An RST may discard what arrived before it.
            let delivered = *complete && (path.ends_with("fin") || attempt.outcome == "delivered");
            let expected = if delivered { "delivered" } else { "reset" };
            assert!(attempt.has_ended_with(&[expected]), "{path}: {attempt:?}");
            assert!(attempt.took <= DEADLINE + TOLERANCE, "{path}: {attempt:?}");
        }
    }
    eprintln!("{} cuts: reset before the head is complete, delivered after", cases.len());
    notifier.terminate();
}

/// Whatever a receiver sends after its answer must not count as the answer to the next request, which
/// is 410.
#[track_caller]
fn check_smuggling(then: Then, extra: &str) {
    let sandbox = Sandbox::new();
    let first = format!("{}ok{extra}", ok("content-length: 2\r\n"));
    let receiver = Receiver::answering(move |request| match request.body.ends_with(b"1}") {
        true => raw(&first, then.clone()),
        false => Reply::Status(410),
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = launch(&sandbox, 1, "5m");
    sandbox.publish(&Event::new("order.paid").body(r#"{"n":1}"#));
    receiver.wait_at("/", 1);
    wait_until(SOON, "the first is delivered", || attempts(&notifier, webhook).len() == 1);
    let second = Event::new("order.paid").body(r#"{"n":2}"#);
    // Only the kernel knows whether the extra bytes have arrived.
    thread::sleep(Duration::from_millis(200));

    sandbox.publish(&second);

    sandbox.expect_dead(&DeadLetter {
        event: &second,
        kind: "order.paid",
        webhook,
        reason: "gone",
        attempts: 1,
    });
    assert_eq!(receiver.connections(), 2, "the second request needs a new connection");
    notifier.terminate();
}

const SMUGGLED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[test]
fn a_second_answer_to_a_request_is_not_that_of_the_next_request() {
    check_smuggling(Then::Stay, SMUGGLED);
}

#[test]
fn an_answer_sent_before_the_next_request_is_not_its_answer() {
    check_smuggling(Then::Later(Duration::from_millis(50), SMUGGLED.into()), "");
}
