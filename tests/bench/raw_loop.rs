//! What a receiver can take: keep-alive connections that do nothing but send the same request and
//! read the response, from a process of their own.

use std::{
    env,
    io::{Read, Write},
    net::TcpStream,
    process::{self, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    event::{Stamp, body},
    measure::{now, processor_time},
    receiver::{Behaviour, Log, Receiver},
};

pub(crate) const COMMAND: &str = "raw-loop";

/// As many as the tuned notifier has consumers.
const CONNECTIONS: u32 = 4;
/// Takes about two seconds on two cores.
const REQUESTS: u32 = 100_000;

/// Measures the receiver and says what it can take.
pub(crate) fn measure_receiver() {
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    let executable = env::current_exe().expect("we run from a file");
    let address = receiver.address.to_string();
    let (began, before) = (Instant::now(), processor_time(process::id()));
    let status = Command::new(executable).args([COMMAND, &address]).status();
    assert!(status.is_ok_and(|status| status.success()), "the raw loop failed");
    assert!(log.wait(REQUESTS as usize, Duration::from_secs(10)), "requests are missing");
    let seconds = began.elapsed().as_secs_f64();
    let processor = (processor_time(process::id()) - before).as_secs_f64();
    println!(
        "receiver: {:.0} requests/s from {CONNECTIONS} raw sockets, {:.1} µs of CPU per request at the receiver",
        f64::from(REQUESTS) / seconds,
        processor / f64::from(REQUESTS) * 1e6,
    );
}

/// The process: ADDRESS.
pub(crate) fn run(arguments: &[String]) {
    let [address] = arguments else { panic!("{COMMAND} ADDRESS") };
    let body = body(Stamp { number: 0, sent: now() }, "raw.loop");
    let head = format!(
        "POST /webhooks/0 HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = Arc::new([head.as_bytes(), &body].concat());
    let threads = (0..CONNECTIONS).map(|_| {
        let mut stream = TcpStream::connect(address).expect("the receiver listens");
        stream.set_nodelay(true).expect("it is a TCP socket");
        let request = Arc::clone(&request);
        thread::spawn(move || {
            let mut response = [0; 512];
            for _ in 0..REQUESTS / CONNECTIONS {
                stream.write_all(&request).expect("the receiver reads");
                let read = stream.read(&mut response).expect("the receiver answers");
                assert!(response[..read].ends_with(b"ok"), "half a response");
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no connection fails");
    }
}
