use super::*;
use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::SystemTime;

use proptest::prelude::*;
use uuid::Uuid;

use crate::config::Settings;
use crate::domain::delivery::Headers;
use crate::domain::event::{Event, Properties};
use crate::domain::outcome::Reason;
use crate::domain::settings::Columns;
use crate::domain::webhook::{Secrets, Webhook};

/// Makes attempts at a receiver that answers each with the given bytes, repeated if necessary, as
/// long as somebody reads, and then closes.
struct Bench {
    sender: Sender,
    webhook: Webhook,
    event: Event,
    answers: crossbeam_channel::Sender<(Vec<u8>, usize)>,
}

impl Bench {
    fn new() -> Self {
        let mut config = Settings::default().read().expect("the defaults");
        config.allow_networks = AllowedNetworks::parse("127.0.0.1").expect("a network");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
        let (answers, next) = crossbeam_channel::unbounded::<(Vec<u8>, usize)>();
        thread::spawn(move || {
            for (answer, times) in next {
                let (mut stream, _) = listener.accept().expect("an attempt");
                // The whole small request arrives at once, or nearly.
                let mut request = Vec::new();
                while !request.ends_with(b"{}") {
                    let mut room = [0; 1_024];
                    let read = stream.read(&mut room).expect("a request");
                    request.extend(&room[..read]);
                }
                let sent = (0..times).try_for_each(|_| stream.write_all(&answer));
                // The client has read enough.
                let _ = sent.and_then(|()| stream.shutdown(Shutdown::Both));
            }
        });
        let properties =
            Properties { message_id: Some("1"), event_type: Some("a"), ..Properties::default() };
        let event = Event::read(properties, b"{}", 2, String::new).expect("an event");
        let columns = Columns::default();
        let webhook = Webhook::new(Uuid::nil(), &url, &Secrets::default(), &columns);
        Self { sender: Sender::new(&config), webhook, event, answers }
    }

    fn answered(&self, answer: impl Into<Vec<u8>>, times: usize) -> Response {
        self.answers.send((answer.into(), times)).expect("the receiver lives");
        self.sender.post(Request {
            webhook: &self.webhook,
            event: &self.event,
            attempt: 1,
            headers: &Headers::new(),
            content_type: None,
            body: b"{}",
            at: SystemTime::UNIX_EPOCH,
        })
    }
}

#[test]
fn unused_connections_are_closed_and_others_are_kept() {
    let mut config = Settings::default().read().expect("the defaults");
    config.allow_networks = AllowedNetworks::parse("127.0.0.1").expect("a network");
    let sender = Sender::new(&config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
    let webhook = Webhook::new(Uuid::nil(), &url, &Secrets::default(), &Columns::default());
    let properties =
        Properties { message_id: Some("1"), event_type: Some("a"), ..Properties::default() };
    let event = Event::read(properties, b"{}", 2, String::new).expect("an event");
    let post = || {
        sender.post(Request {
            webhook: &webhook,
            event: &event,
            attempt: 1,
            headers: &Headers::new(),
            content_type: None,
            body: b"{}",
            at: SystemTime::UNIX_EPOCH,
        })
    };
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut requests = 0;
        let mut room = [0; 1_024];
        // For such a small request one or two reads are enough.
        let mut request = Vec::new();
        while let Ok(read) = stream.read(&mut room)
            && read > 0
        {
            request.extend(&room[..read]);
            if request.ends_with(b"{}") {
                requests += 1;
                request.clear();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).expect("somebody reads");
            }
        }
        requests
    });
    for _ in 0..4 {
        assert_eq!(post(), Response::Status { code: 200, retry_after: None, excerpt: None });
        sender.close_idle();
    }
    assert!(!served.is_finished());
    for _ in 0..3 {
        sender.close_idle();
    }
    assert_eq!(served.join().expect("no panic"), 4, "all over one connection, which has ended");
}

#[test]
fn an_endless_answer_ends_the_attempt_long_before_the_deadline() {
    let bench = Bench::new();
    let head = "HTTP/1.1 200 OK\r\n";
    for interim in ["100 Continue", "103 Early Hints"] {
        let flood = format!("HTTP/1.1 {interim}\r\n\r\n");
        let response = bench.answered(flood, usize::MAX);
        let Response::NoAnswer { reason: Reason::Protocol, detail } = response else {
            panic!("{response:?}");
        };
        assert!(detail.contains("81920"), "{detail}");
    }
    for endless in ["", "a: b\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n"] {
        let answer = format!("{head}{endless}{}", "a: b\r\n".repeat(99_999));
        match bench.answered(answer, 1) {
            Response::NoAnswer { reason: Reason::Protocol, .. } if endless.len() < 9 => {}
            Response::Status { code: 200, .. } if endless.len() > 9 => {}
            other => panic!("{endless:?}: {other:?}"),
        }
    }
}

#[test]
fn a_head_up_to_the_limit_is_read_and_a_longer_one_is_an_error_that_names_the_limit() {
    let bench = Bench::new();
    let head = |filler: usize| {
        let filler = "a".repeat(filler);
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\nx: {filler}\r\n\r\n")
    };
    let most = MAX_RESPONSE_HEADER_BYTES - head(0).len();
    assert_eq!(
        bench.answered(head(most), 1),
        Response::Status { code: 200, retry_after: None, excerpt: None }
    );
    let response = bench.answered(head(most + 1), 1);
    let Response::NoAnswer { reason: Reason::Protocol, detail } = response else {
        panic!("{response:?}");
    };
    assert!(detail.contains("16384"), "{detail}");
}

proptest! {
    /// A panic would end the process.
    #[test]
    fn whatever_is_answered_is_a_response(
        pieces in prop::collection::vec(
            prop_oneof![
                "HTTP/[0-3]\\.[0-3] [0-9]{2,4}( [a-z]{0,3})?\r\n",
                "(content-length|transfer-encoding|connection|location|expect|Retry-After): ?[-+a-f0-9, ]{0,4}(chunked|close|/)?\r\n",
                "[a-fA-F0-9]{0,17}(;[a-z]*)?\r\n.{0,9}\r\n",
                "[a-z]{0,3}:? ?.{0,5}\r?\n",
                Just(String::from("\r\n")),
                Just(String::from("0\r\n\r\n")),
                Just(String::from("HTTP/1.1 103 E\r\n\r\n")),
                Just(String::from("HTTP/1.1 200 OK\r\n")),
            ],
            0..9,
        ),
        garbage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
    ) {
        thread_local!(static BENCH: Bench = Bench::new());
        let mut answer = [pieces.concat().as_bytes(), b"\r\n"].concat();
        for (at, byte) in garbage {
            let at = at.index(answer.len());
            answer[at] = byte;
        }
        // On a new connection each time: the answer ends this one.
        let response = BENCH.with(|bench| bench.answered(answer, 1));
        if let Response::NoAnswer { reason, .. } = response {
            let fair = [Reason::Protocol, Reason::Reset];
            prop_assert!(fair.contains(&reason), "{:?}", reason);
        }
    }
}
