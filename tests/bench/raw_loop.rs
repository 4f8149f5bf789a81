//! A receiver's maximum throughput: a separate process with keep-alive connections that only send the same
//! request and read the response.

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

/// The stack size of a connection's thread: there can be many of them.
const STACK: usize = 128 * 1024;

/// Measures and prints the requests per second that a receiver answers on these connections, and returns
/// them. Each connection sends this number of requests.
pub(crate) fn measure_receiver(behaviour: Behaviour, connections: u32, requests: u32) -> f64 {
    let log = Log::new();
    let receiver = Receiver::start(behaviour, &log);
    let executable = env::current_exe().expect("we run from a file");
    let arguments = [
        COMMAND.to_owned(),
        receiver.address.to_string(),
        connections.to_string(),
        requests.to_string(),
    ];
    let (began, before) = (Instant::now(), processor_time(process::id()));
    let status = Command::new(executable).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "the raw loop failed");
    let all = connections * requests;
    assert!(log.wait(all as usize, Duration::from_secs(10)), "requests are missing");
    let per_second = f64::from(all) / began.elapsed().as_secs_f64();
    let processor = (processor_time(process::id()) - before).as_secs_f64();
    println!(
        "receiver ({behaviour:?}): {per_second:.0} requests/s from {connections} raw sockets, {:.1} µs of CPU per request at the receiver",
        processor / f64::from(all) * 1e6,
    );
    per_second
}

/// The main function of that process: ADDRESS CONNECTIONS REQUESTS, the last for each connection.
pub(crate) fn run(arguments: &[String]) {
    let [address, connections, requests] = arguments else {
        panic!("{COMMAND} ADDRESS CONNECTIONS REQUESTS")
    };
    let connections: u32 = connections.parse().expect("a number of connections");
    let requests: u32 = requests.parse().expect("a number of requests");
    let body = body(Stamp { number: 0, sent: now() }, "raw.loop");
    let head = format!(
        "POST /webhooks/0 HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = Arc::new([head.as_bytes(), &body].concat());
    let threads = (0..connections).map(|_| {
        let mut stream = TcpStream::connect(address).expect("the receiver listens");
        stream.set_nodelay(true).expect("it is a TCP socket");
        let request = Arc::clone(&request);
        let send = move || {
            let mut response = [0; 512];
            for _ in 0..requests {
                stream.write_all(&request).expect("the receiver reads");
                let read = stream.read(&mut response).expect("the receiver answers");
                assert!(response[..read].ends_with(b"ok"), "half a response");
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(send).expect("one more thread")
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no connection fails");
    }
}
