//! The bare loop, a baseline for the notifier: the smallest and fastest code with the same crates. It
//! receives, POSTs, and acks. It looks up no webhook, counts nothing, retries nothing, has no limits, and
//! stops at the first failure.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use amiquip::{
    Auth, Channel, Connection, ConnectionOptions, ConnectionTuning, Consumer, ConsumerMessage,
    ConsumerOptions,
};
use percent_encoding::percent_decode_str;
use ureq::{
    Agent,
    http::Uri,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};
use url::Url;

pub(crate) const COMMAND: &str = "bare-loop";

/// Printed to stderr when every channel consumes.
pub(crate) const READY: &str = "bare loop: ready";

/// The main function of its process: AMQP_URL QUEUE URL CHANNELS PREFETCH. Runs until it is killed.
pub(crate) fn run(arguments: &[String]) {
    let [broker, queue, receiver, channels, prefetch] = arguments else {
        panic!("{COMMAND} AMQP_URL QUEUE URL CHANNELS PREFETCH")
    };
    let channels: usize = channels.parse().expect("a number of channels");
    let prefetch: u16 = prefetch.parse().expect("a number of messages");
    let receiver: Uri = receiver.parse().expect("a URL");
    let agent = agent(channels);
    let mut connection = connect(broker);
    let channels: Vec<_> =
        (0..channels).map(|_| connection.open_channel(None).expect("a channel")).collect();
    for channel in &channels {
        channel.qos(0, prefetch, false).expect("qos");
    }
    thread::scope(|scope| {
        for channel in channels {
            let (agent, receiver) = (&agent, &receiver);
            scope.spawn(move || consume(&channel, queue, prefetch, agent, receiver));
        }
        eprintln!("{READY}");
    });
}

/// A connection without Nagle's algorithm. (Otherwise a publish in two packets would wait 40 ms for the
/// broker's delayed acknowledgement of the first.)
pub(crate) fn connect(url: &str) -> Connection {
    let url: Url = url.parse().expect("AMQP_URL is an URL");
    let text = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let address = (url.host_str().expect("a host"), url.port().expect("a port"));
    let stream = TcpStream::connect(address).expect("the broker listens");
    stream.set_nodelay(true).expect("it is a TCP socket");
    let stream = mio::net::TcpStream::from_stream(stream).expect("it can be polled");
    let options = ConnectionOptions::default()
        .auth(Auth::Plain {
            username: text(url.username()),
            password: text(url.password().unwrap_or_default()),
        })
        .virtual_host(text(url.path().trim_start_matches('/')));
    Connection::insecure_open_stream(stream, options, ConnectionTuning::default())
        .expect("the broker lets us in")
}

/// A client without timeouts: with any, ureq would read the clock, and at worst start a thread for each
/// lookup.
fn agent(threads: usize) -> Agent {
    let settings = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .input_buffer_size(16 << 10)
        .output_buffer_size(16 << 10)
        .max_idle_connections(threads)
        .max_idle_connections_per_host(threads)
        .build();
    Agent::with_parts(settings, DefaultConnector::default(), Literal)
}

fn consume(channel: &Channel, queue: &str, prefetch: u16, agent: &Agent, receiver: &Uri) {
    let consumer = channel.basic_consume(queue, ConsumerOptions::default()).expect("the queue");
    // Acks are frequent enough that the broker always sends more messages without waiting for us.
    let most_unacked = usize::from(prefetch / 2).max(1);
    let mut unacked = 0;
    loop {
        let Ok(ConsumerMessage::Delivery(delivery)) = consumer.receiver().recv() else {
            panic!("the connection is lost")
        };
        post(agent, receiver, &delivery.body);
        unacked += 1;
        if unacked == most_unacked || consumer.receiver().is_empty() {
            ack(&consumer, delivery, unacked);
            unacked = 0;
        }
    }
}

fn ack(consumer: &Consumer<'_>, delivery: amiquip::Delivery, count: usize) {
    match count {
        1 => consumer.ack(delivery),
        _ => consumer.ack_multiple(delivery),
    }
    .expect("the broker takes an ack");
}

fn post(agent: &Agent, receiver: &Uri, body: &[u8]) {
    let request = agent.post(receiver).header("content-type", "application/json");
    let mut response = request.send(body).expect("the receiver answers");
    assert!(response.status().is_success(), "the receiver answers 2xx");
    // The body must be read to the end, or the connection can't be reused.
    let mut body = response.body_mut().as_reader();
    let mut rest = [0; 64];
    while body.read(&mut rest).expect("the response ends") > 0 {}
}

/// Resolves an IP address, which needs no lookup.
#[derive(Debug)]
struct Literal;

impl Resolver for Literal {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().and_then(|host| host.parse::<IpAddr>().ok());
        let address = host.zip(uri.port_u16()).map(SocketAddr::from);
        let mut found = self.empty();
        found.push(address.ok_or(ureq::Error::HostNotFound)?);
        Ok(found)
    }
}
