//! Strangers' text is read by people: in tables, in the log, in the output of `listen`. None of its line
//! breaks begins a line there, and no escape sequence reaches the terminal.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use amiquip::{AmqpValue, FieldTable};

use crate::harness::{Event, SOON, Sandbox, process::Finished, wait_for, wait_until};

/// Clears the screen, begins a line, forges another, and reverses the direction of text.
const HOSTILE: &str =
    "\u{1b}[2J\r\n[2026-01-01T00:00:00.000Z ERROR x] forged\u{9b}2J\u{202e}\u{7f}";

#[track_caller]
fn expect_harmless(what: &str, text: &str) {
    let deceptive = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!text.contains(deceptive), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("[2026-01-01")), "{what}: {text}");
    assert!(text.contains("forged"), "{what} does not show it: {text}");
}

#[track_caller]
fn expect_harmless_command(sandbox: &Sandbox, arguments: &[&str]) {
    let Finished { code, stdout, .. } = sandbox.command(arguments);
    assert_eq!(code, Some(0), "{arguments:?}");
    expect_harmless(&format!("{arguments:?}"), &stdout);
}

#[test]
fn a_webhook_registered_by_sql_is_shown_in_one_line() {
    let sandbox = Sandbox::new();
    let url = format!("http://example.org/{HOSTILE}");
    let id = sandbox.webhook(&url, &[HOSTILE, "user.*"]);
    sandbox.database.execute(
        "UPDATE webhooks SET disabled_at = now(), disabled_reason = $2 WHERE id = $1",
        &[&id, &HOSTILE],
    );
    expect_harmless_command(&sandbox, &["webhooks", "list"]);
    let Finished { stdout, .. } = sandbox.command(&["webhooks", "list"]);
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    expect_harmless_command(&sandbox, &["webhooks", "show", &id.to_string()]);
    // For programs it is unchanged.
    let Finished { stdout, .. } = sandbox.command(&["webhooks", "list", "--json", "--reveal"]);
    let list: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(list[0]["post_url"], url.as_str());
}

#[test]
fn a_crafted_dead_letter_is_shown_and_its_escape_sequences_are_not_obeyed() {
    let sandbox = Sandbox::new();
    sandbox.notifier().start().terminate();
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let long = format!("{HOSTILE}{}", "e".repeat(100_000));
    let names = ["x-event-id", "x-event-type", "x-webhook-id", "x-dead-reason", HOSTILE];
    let mut headers: FieldTable =
        names.into_iter().map(|name| (name.to_owned(), text(HOSTILE))).collect();
    headers.insert("x-last-error".to_owned(), text(&long[..10_000]));
    for at in ["x-dead-at", "x-first-received-at", "x-attempt"] {
        headers.insert(at.to_owned(), AmqpValue::LongLongInt(i64::MIN));
    }
    let letter = Event::raw(HOSTILE).kind(HOSTILE).id(HOSTILE).content_type(HOSTILE);
    sandbox.broker.publish(&sandbox.dead_queue(), &[letter.headers(headers)]);
    wait_until(SOON, "it is there", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(1));

    for arguments in [&["dead-letters", "list"][..], &["dead-letters", "list", "--each"]] {
        expect_harmless_command(&sandbox, arguments);
        let Finished { stdout, .. } = sandbox.command(arguments);
        assert!(stdout.len() < 2_000, "{arguments:?}: {} bytes", stdout.len());
    }
    let Finished { stdout, .. } = sandbox.command(&["dead-letters", "show"]);
    let (head, body) = stdout.split_once("\n\n").expect("headers, and then the body");
    expect_harmless("show", head);
    // A body has its own lines.
    assert!(!body.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')), "{body:?}");
    let replayed = sandbox.command(&["dead-letters", "replay"]);
    assert!(replayed.stdout.contains("1 stays dead, malformed"), "{replayed:?}");
}

#[test]
fn a_crafted_entry_of_the_log_is_shown_in_its_own_lines() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook(&format!("http://example.org/{HOSTILE}"), &[HOSTILE]);
    sandbox.database.execute(
        "INSERT INTO delivery_attempts (at, event_id, event_type, webhook_id, queue, outcome, attempt,
             reason, detail, dead)
         VALUES (now(), 'e', $1, $2, $1, 'failed', 1, $1, $1, $1)",
        &[&HOSTILE, &webhook],
    );
    expect_harmless_command(&sandbox, &["why", "e"]);
    let tail = sandbox.launch(&["tail"]).spawn();
    let line = tail.wait_stdout(SOON, "failed");
    expect_harmless("tail", &line);
}

#[test]
fn listen_prints_a_strangers_request_in_a_line_with_its_body_below() {
    let sandbox = Sandbox::new();
    let listener = sandbox.launch(&["listen", "--addr", "127.0.0.1:0"]).spawn();
    let address = wait_for(SOON, "listen prints its address", || {
        let text = listener.stdout().join(" ");
        Some(text.split_once("http://")?.1.split_once('/')?.0.to_owned())
    });
    let body = "\u{1b}[2J\r\nforged";
    let request = format!(
        "POST /\u{1b}[2Jforged HTTP/1.1\r\nhost: x\r\nwebhook-id: \u{1b}]0;forged\u{7}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(&address).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let printed = wait_for(SOON, "it prints", || {
        let lines = listener.stdout();
        (lines.len() > 2).then(|| lines[1..].join("\n"))
    });
    expect_harmless("listen", &printed);
    assert_eq!(printed.matches("forged").count(), 3, "{printed}");
    assert_eq!(printed.lines().count(), 2, "{printed}");
    assert!(printed.lines().nth(1).is_some_and(|body| body.starts_with("  \"")), "{printed}");
}

/// A receiver that answers each request with these bytes.
fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("it accepts");
            // The head, and most likely the whole request.
            let _ = stream.read(&mut [0; 8 * 1024]);
            let _ = stream.write_all(bytes);
        }
    });
    format!("http://{address}/")
}

#[test]
fn no_receiver_forges_a_line_of_the_log_or_of_a_dead_letter() {
    let sandbox = Sandbox::new();
    let answers: [&[u8]; 7] = [
        b"HTTP/1.1 500 \x1b[2J forged\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 503 x\r\nretry-after: \x1b[2J\xffforged\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 x\r\nlocation: \x1b[2Jforged\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/9.\x1b[2Jforged\r\n\r\n",
        b"\x1b[2J\r\n[2026-01-01T00:00:00.000Z ERROR x] forged\r\n",
        b"HTTP/1.1 500 x\r\ncontent-length: \x1b[2Jforged\r\n\r\n",
        b"HTTP/1.1 \x1b\xc2\x9b forged\r\n\r\n",
    ];
    for (n, answer) in answers.iter().enumerate() {
        sandbox.webhook(&answering(answer), &[&format!("answer.{n}")]);
    }
    let mut notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "100ms").env("RUST_LOG", "debug").start();
    for n in 0..answers.len() {
        sandbox.publish(&Event::new(&format!("answer.{n}")));
        let dead = sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "exhausted", "answer {n}: {dead:?}");
        let error = dead.text("x-last-error");
        assert!(!error.is_empty() && !error.contains(char::is_control), "answer {n}: {error:?}");
    }
    // What producers choose.
    for event in [Event::raw(HOSTILE), Event::raw("{}").kind(HOSTILE), Event::new("t").id(HOSTILE)]
    {
        sandbox.publish(&event);
        let dead = sandbox.take_dead();
        assert!(!dead.text("x-last-error").contains(char::is_control), "{dead:?}");
    }
    assert!(notifier.is_running());
    for line in notifier.stderr() {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.starts_with('[') && !line.starts_with("[2026-01-01"), "{line:?}");
    }
}
