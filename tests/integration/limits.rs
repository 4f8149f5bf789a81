//! Machines without enough threads or memory.

use std::{ops::RangeInclusive, process::Command, time::Duration};

use amiquip::{AmqpValue, FieldTable};

use crate::harness::{
    Event, LATER, Receiver, Reply, SOON, Sandbox, Servers,
    notifier::{Launch, binary},
    wait_until,
};

/// The address space of a thread's stack. A limit on the address space then limits the threads, without
/// special permissions and without counting other processes' threads: what still works when no more threads
/// can be started is enough for everything else.
const STACK: u64 = 64 << 20;

/// What the process needs without threads, and some reserve.
const REST: u64 = 256 << 20;

/// A call with address space for about `threads` threads.
fn limited(sandbox: &Sandbox, threads: u64, arguments: &[&str]) -> Launch {
    in_space(sandbox, threads * STACK + REST, arguments).env("RUST_MIN_STACK", STACK.to_string())
}

/// A call with `bytes` of address space.
fn in_space(sandbox: &Sandbox, bytes: u64, arguments: &[&str]) -> Launch {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -v {} && exec \"$0\" \"$@\"", bytes >> 10)])
        .arg(binary())
        .args(arguments)
        .env_clear();
    Launch(command)
        .env("AMQP_URL", &sandbox.servers.amqp_url)
        .env("DATABASE_URL", sandbox.database.url())
        .env("QUEUES", sandbox.queue())
        .env("METRICS_ADDR", "127.0.0.1:0")
        .env("ALLOW_NETWORKS", "127.0.0.0/8,::1")
        // Otherwise each thread takes address space for its own heap.
        .env("MALLOC_ARENA_MAX", "1")
}

const SLOW: RangeInclusive<usize> = 1..=30;

#[test]
fn if_no_more_threads_can_be_started_everything_is_still_delivered() {
    let sandbox = Sandbox::new();
    let slow = Receiver::answering(|_| Reply::Slow(Duration::from_millis(100), 200));
    let failing = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(503),
        _ => Reply::Status(200),
    });
    for number in SLOW {
        // By name, to use threads for look-ups.
        let url = slow.url(&format!("/{number}")).replace("127.0.0.1", "localhost");
        sandbox.webhook(&url, &["slow"]);
    }
    sandbox.webhook(&failing.url("/"), &["failing"]);
    let notifier = limited(&sandbox, 46, &["run"])
        .env("RETRY_SCHEDULE", "1s,1s,1s,1s,repeat")
        .env("CIRCUIT_BREAKER", "off");
    let mut notifier = notifier.start();

    // Each needs thirty threads, and there are more of them than possible consumers.
    let events: Vec<_> = (0..4).map(|_| Event::new("slow")).collect();
    let failures: Vec<_> = (0..20).map(|_| Event::new("failing")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    sandbox.broker.publish(sandbox.queue(), &failures);

    for event in &events {
        for number in SLOW {
            wait_until(LATER, "it is delivered", || {
                !slow.of(&format!("/{number}"), event).is_empty()
            });
        }
    }
    for event in &failures {
        wait_until(LATER, "its retry is delivered", || failing.of("/", event).len() >= 2);
    }
    assert!(notifier.is_running());
    notifier.wait_stderr(SOON, "lane stays at");
    wait_until(LATER, "it is ready", || notifier.is_ready());
    let log = notifier.stderr().join("\n");
    assert!(!log.contains("panicked"), "{log}");
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}

#[test]
fn a_start_without_enough_threads_is_refused_with_one_clear_line() {
    let sandbox = Sandbox::new();
    for threads in [0, 1, 5, 20] {
        let finished = limited(&sandbox, threads, &["run"]).spawn().finish(SOON);
        assert_eq!(finished.code, Some(1), "{threads}: {finished:?}");
        assert!(!finished.stderr.contains("panicked"), "{threads}: {finished:?}");
        let errors: Vec<_> =
            finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{threads}: {finished:?}");
        assert!(errors[0].contains("TasksMax"), "{threads}: {errors:?}");
    }
    for command in [&["check"][..], &["webhooks", "list"], &["publish", sandbox.queue()]] {
        let finished = limited(&sandbox, 0, command).spawn().finish(SOON);
        assert_eq!(finished.code, Some(1), "{command:?}: {finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{command:?}: {finished:?}");
        assert!(finished.stderr.contains("ulimit -u"), "{command:?}: {finished:?}");
    }
}

#[test]
fn publish_holds_only_some_of_the_copies_of_a_large_body() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    // This queue keeps one message.
    let arguments = FieldTable::from([("x-max-length".to_owned(), AmqpValue::LongInt(1))]);
    sandbox.broker.declare(sandbox.queue(), arguments).expect("a fresh name");
    let body = format!("{{\"text\":\"{}\"}}", "x".repeat(100 << 10));
    let publish =
        ["publish", sandbox.queue(), &body, "--type", "large", "--count", "3000", "--id", "copy"];

    let finished = in_space(&sandbox, 200 << 20, &publish).spawn().finish(LATER);

    assert_eq!(finished.code, Some(0), "{:.2000}", finished.stderr);
    assert_eq!(finished.stdout.lines().last(), Some("copy-3000"));
    let last = sandbox.broker.take(sandbox.queue()).expect("the last of them");
    assert_eq!(last.body, body.as_bytes());
    assert_eq!(last.properties.message_id().as_deref(), Some("copy-3000"));
}
