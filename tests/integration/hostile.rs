//! Hostile receivers: each costs at most the deadline and a few KiB, and others aren't affected.

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

use crate::harness::{
    DeadLetter, Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Then, wait_until,
};

/// REQUEST_TIMEOUT of these tests.
const DEADLINE: Duration = Duration::from_millis(500);

/// How much later an attempt may end on a machine that is busy with other tests. (On an idle one it is
/// ten milliseconds.)
const TOLERANCE: Duration = Duration::from_millis(1_500);

/// The admin port uses another thread if requests overlap.
const ADMIN_THREADS: u64 = 2;

/// The queue's capacity. Each of its two lanes has at most this many consumers, and as many threads for
/// work that those shouldn't wait for; each consumer that starts or ends briefly has one more.
const CAPACITY: u64 = 16;
const MOST_THREADS: u64 = 5 * CAPACITY;

/// What a receiver does, and how an attempt must end.
struct Attack {
    name: &'static str,
    reply: Reply,
    /// The failure's reason, one of these; or "delivered".
    outcomes: &'static [&'static str],
}

const DELIVERED: &[&str] = &["delivered"];
const PROTOCOL: &[&str] = &["protocol"];
const TIMEOUT: &[&str] = &["timeout"];
const RESET: &[&str] = &["reset"];

fn raw(bytes: impl AsRef<[u8]>, then: Then) -> Reply {
    Reply::Raw(bytes.as_ref().to_vec(), then)
}

/// As fast as the other side reads.
fn flood(bytes: impl AsRef<[u8]>) -> Then {
    Then::Repeat(Duration::ZERO, bytes.as_ref().to_vec())
}

fn drip(bytes: impl AsRef<[u8]>) -> Then {
    Then::Repeat(Duration::from_millis(50), bytes.as_ref().to_vec())
}

/// Status 200 with these header lines.
fn ok(headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n")
}

/// Ten megabytes of zeros in 64 KiB: one block of fixed Huffman codes, which repeats a zero in runs of
/// 258.
fn gzip_bomb() -> Vec<u8> {
    let (last_fixed_block, zero, run, end) = ("110", "00110000", "1100010100000", "0000000");
    let bits = [last_fixed_block, zero, &run.repeat(40_000), end].concat();
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
    bomb.extend(bits.as_bytes().chunks(8).map(byte));
    let head = ok(&format!("content-encoding: gzip\r\ncontent-length: {}\r\n", bomb.len()));
    [head.into_bytes(), bomb].concat()
}

fn attacks() -> Vec<Attack> {
    let chunked = ok("transfer-encoding: chunked\r\n");
    let long = ok("content-length: 1000000\r\n");
    let headers = |count: usize| "x-filler: abcdefgh\r\n".repeat(count);
    let header = |bytes: usize| format!("x-filler: {}\r\n", "a".repeat(bytes));
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let table = [
        // Interim responses.
        ("100 without end", raw("", flood("HTTP/1.1 100 Continue\r\n\r\n".repeat(99))), PROTOCOL),
        ("103 without end", raw("", flood(early.repeat(99))), PROTOCOL),
        ("102, one by one", raw("", drip("HTTP/1.1 102 Processing\r\n\r\n")), TIMEOUT),
        ("100 with headers", raw("HTTP/1.1 100 C\r\na: b\r\n\r\n", Then::Stay), PROTOCOL),
        ("101", raw("HTTP/1.1 101 Upgrade\r\nupgrade: x\r\n\r\n", Then::Stay), &["status_1xx"][..]),
        (
            "103, then 200",
            raw([early, &ok("content-length: 0\r\n")].concat(), Then::Stay),
            DELIVERED,
        ),
        // The head.
        ("head in drops", raw("HTTP/1.1 200 OK\r\nx: ", drip("x")), TIMEOUT),
        ("head of empty lines", raw("", flood("\r\n".repeat(999))), PROTOCOL),
        ("head without end", raw("HTTP/1.1 200 OK\r\n", flood("a: b\r\n".repeat(999))), PROTOCOL),
        ("10,000 headers", raw(ok(&headers(10_000)), Then::Stay), PROTOCOL),
        ("header of 1 MiB", raw(ok(&header(1 << 20)), Then::Stay), PROTOCOL),
        (
            "header of 15 KiB",
            raw(ok(&(header(15 << 10) + "content-length: 0\r\n")), Then::Stay),
            DELIVERED,
        ),
        ("NUL in a header", raw(ok("a: \0\r\n"), Then::Stay), PROTOCOL),
        ("no HTTP", raw([0xff; 300], Then::Close), PROTOCOL),
        ("HTTP/0.9", raw("<html>200 OK</html>\r\n", Then::Close), PROTOCOL),
        ("HTTP/3.0", raw("HTTP/3.0 200 OK\r\n\r\n", Then::Stay), PROTOCOL),
        ("HTTP/2", raw("\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", Then::Close), PROTOCOL),
        ("status 000", raw("HTTP/1.1 000 X\r\n\r\n", Then::Stay), PROTOCOL),
        (
            "status 999",
            raw("HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", Then::Stay),
            &["status_5xx"],
        ),
        ("status 9999", raw("HTTP/1.1 9999 X\r\n\r\n", Then::Stay), PROTOCOL),
        ("status -200", raw("HTTP/1.1 -200 X\r\n\r\n", Then::Stay), PROTOCOL),
        (
            "two lengths",
            raw(ok("content-length: 1\r\ncontent-length: 2\r\n"), Then::Stay),
            PROTOCOL,
        ),
        ("length -1", raw(ok("content-length: -1\r\n"), Then::Stay), PROTOCOL),
        ("length 2^64", raw(ok("content-length: 18446744073709551616\r\n"), Then::Stay), PROTOCOL),
        (
            "redirect",
            raw("HTTP/1.1 302 F\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", Then::Stay),
            &["status_3xx"],
        ),
        // The body: the status has already decided.
        ("body in drops", raw(&long, drip("x")), DELIVERED),
        ("body without end", Reply::Endless, DELIVERED),
        ("body cut off", raw(&long, Then::Reset), &["delivered", "reset"]),
        (
            "body of a 204",
            raw("HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello", Then::Stay),
            DELIVERED,
        ),
        ("chunk of 2^63", raw(format!("{chunked}8000000000000000\r\n"), drip("x")), DELIVERED),
        (
            "chunk of 2^80",
            raw(format!("{chunked}100000000000000000000\r\n"), Then::Stay),
            DELIVERED,
        ),
        ("chunk of no size", raw(format!("{chunked}zz\r\n\r\n"), Then::Stay), DELIVERED),
        ("chunk size without end", raw(&chunked, flood("0".repeat(999))), DELIVERED),
        ("chunks of a byte", raw(&chunked, flood("1\r\nx\r\n".repeat(999))), DELIVERED),
        (
            "trailers without end",
            raw(format!("{chunked}0\r\n"), flood("a: b\r\n".repeat(999))),
            DELIVERED,
        ),
        ("gzip bomb", raw(gzip_bomb(), Then::Stay), DELIVERED),
        // No answer.
        ("silence", Reply::Hang, TIMEOUT),
        ("FIN", Reply::Close, RESET),
        ("RST", Reply::Reset, RESET),
    ];
    table.map(|(name, reply, outcomes)| Attack { name, reply, outcomes }).into()
}

/// Behaves according to the path's first part, which is the number of an attack.
fn attacker() -> Receiver {
    let attacks = attacks();
    Receiver::forgetful(move |request| {
        let number = request.path.split('/').nth(1).and_then(|number| number.parse::<usize>().ok());
        number.map_or(Reply::Status(200), |number| attacks[number].reply.clone())
    })
}

/// A receiver that sends its answer on each connection at once, and reads nothing.
struct Deaf {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Deaf {
    fn saying(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // So that the kernel buffers little.
        set_socket_recv_buffer_size(&listener, 4 << 10).expect("it is ours");
        let address = listener.local_addr().expect("it is bound");
        let ended = Arc::new(AtomicBool::new(false));
        let at_its_end = Arc::clone(&ended);
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if at_its_end.load(Ordering::SeqCst) {
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

impl Drop for Deaf {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

/// How an attempt ended, according to the log.
#[derive(Debug)]
struct Attempt {
    outcome: String,
    took: Duration,
}

impl Attempt {
    /// True for a time-out, too, if the machine was too busy.
    fn came_to(&self, outcomes: &[&str]) -> bool {
        let too_late = self.outcome == "timeout" && self.took >= DEADLINE;
        outcomes.contains(&self.outcome.as_str()) || too_late
    }
}

/// The attempts that were made for a webhook.
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
    let mute = Deaf::saying("");
    let hasty = Deaf::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
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
        ("mute", mute.url(), "request is never read", TIMEOUT, 1_000_000),
        ("hasty", hasty.url(), "200 before the request is read", by_size, 1_000_000),
        ("mute.tls", encrypted(mute.url()), "TLS, silence", TIMEOUT, 100),
        ("hasty.tls", encrypted(hasty.url()), "TLS, no TLS", &["tls"], 100),
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
        // The first attempt of a kind allocates what is kept for the next ones.
        attempt(&events[..1], 1);
        let before = Held::by(&notifier);
        // One by one: a receiver that closed a connection gets one request at a time.
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
            assert!(attempt.came_to(outcomes), "{name}: {attempt:?}");
            assert!(attempt.took <= DEADLINE + TOLERANCE, "{name}: {attempt:?}");
        }
        assert!(after.threads <= first.threads + ADMIN_THREADS + MOST_THREADS, "{name}");
        // Buffers of connections, and of large events under way.
        let allowance = 1_024 + (TIMES * 4 * bytes) as u64 / 1_024;
        assert!(after.kib <= before.kib + allowance, "{name}: {} KiB", after.kib);
    }
    // Including what each first attempt needed: 14 MiB, half of it for events of a megabyte.
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
    // Each has two attempts: few may be made at a time, and the others wait between them.
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

    // The allocator warms up for dozens of rounds, whatever the receivers do. But what these sent in the
    // last three rounds would be fifty times as much.
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
        let (answer, bytes) = (number().expect("which"), number().expect("how many"));
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
            assert!(attempt.came_to(&[expected]), "{path}: {attempt:?}");
            assert!(attempt.took <= DEADLINE + TOLERANCE, "{path}: {attempt:?}");
        }
    }
    eprintln!("{} ways to end: reset before the head is complete, delivered after", cases.len());
    notifier.terminate();
}

/// What a receiver sends beyond its answer must not become the answer to the next request, whose true
/// answer is 410.
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
    assert_eq!(receiver.connections(), 2, "the connection was used again");
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
