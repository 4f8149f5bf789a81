//! A receiver whose connections a test controls byte by byte.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use rustix::net::sockopt::set_socket_recv_buffer_size;

/// The receiver.
pub(crate) struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// The open connections; `None`: the receiver has ended.
    streams: Mutex<Option<HashMap<usize, TcpStream>>>,
}

/// The head of a request, as read.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The number of its connection, from 0.
    pub(crate) connection: usize,
    pub(crate) id: String,
    pub(crate) length: usize,
}

/// One of its connections.
pub(crate) struct Connection {
    /// From 0.
    pub(crate) number: usize,
    reader: BufReader<TcpStream>,
    shared: Arc<Shared>,
}

impl Wire {
    /// Calls `behaviour` for each connection, in its own thread, and closes the connection when
    /// that returns.
    pub(crate) fn serving(behaviour: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        // So that the kernel buffers little of a large body.
        Self::with_buffer(16 << 10, behaviour)
    }

    /// The same with a receive buffer of about this many bytes.
    pub(crate) fn with_buffer(
        bytes: usize,
        behaviour: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        set_socket_recv_buffer_size(&listener, bytes).expect("it is ours");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        *shared.streams.lock().expect("no holder panics") = Some(HashMap::new());
        let accepting = Arc::clone(&shared);
        let behaviour = Arc::new(behaviour);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                match &mut *accepting.streams.lock().expect("no holder panics") {
                    Some(streams) => streams.extend(stream.try_clone().map(|it| (number, it))),
                    None => return,
                }
                stream.set_nodelay(true).expect("it is open");
                let (behaviour, shared) = (Arc::clone(&behaviour), Arc::clone(&accepting));
                thread::spawn(move || {
                    let reader = BufReader::new(stream);
                    let mut connection = Connection { number, reader, shared };
                    behaviour(&mut connection);
                    // Closes it, or resets it if there is unread input.
                    let mut streams = connection.shared.streams.lock().expect("no holder panics");
                    streams.as_mut().map(|streams| streams.remove(&connection.number));
                });
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The heads that were read.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no holder panics").clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let streams = self.shared.streams.lock().expect("no holder panics").take();
        for stream in streams.into_iter().flat_map(HashMap::into_values) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which notices that the receiver has ended.
        let _ = TcpStream::connect(self.address);
    }
}

impl Connection {
    /// Reads the next request's head; `None` at the end of the connection.
    pub(crate) fn head(&mut self) -> Option<Seen> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let header = |name: &str| {
            let found = lines.iter().find_map(|line| line.strip_prefix(name));
            found.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        let seen = Seen {
            connection: self.number,
            id: header("webhook-id").unwrap_or_default(),
            length: header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0),
        };
        self.shared.seen.lock().expect("no holder panics").push(seen.clone());
        Some(seen)
    }

    /// Reads the next request, with its body.
    pub(crate) fn request(&mut self) -> Option<Seen> {
        let seen = self.head()?;
        self.body(&seen).then_some(seen)
    }

    /// Reads that request's body. False if the connection ends before.
    pub(crate) fn body(&mut self, seen: &Seen) -> bool {
        let body = io::copy(&mut (&mut self.reader).take(seen.length as u64), &mut io::sink());
        body.is_ok_and(|read| read == seen.length as u64)
    }

    /// Waits for input without reading it: if the connection is then closed, an RST is sent. False at
    /// the end of the connection.
    pub(crate) fn wait_for_input(&mut self) -> bool {
        !self.reader.buffer().is_empty()
            || self.reader.get_ref().peek(&mut [0]).is_ok_and(|count| count > 0)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have closed the connection.
        let _ = self.reader.get_mut().write_all(bytes.as_ref());
    }

    /// Answers with status 200 and these header lines.
    pub(crate) fn ok(&mut self, headers: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{headers}\r\n"));
    }

    /// Answers all requests.
    pub(crate) fn answer_all(&mut self) {
        while self.request().is_some() {
            self.ok("");
        }
    }

    /// Reads everything, and sends nothing.
    pub(crate) fn swallow(&mut self) {
        let _ = io::copy(&mut self.reader, &mut io::sink());
    }

    /// Neither reads nor sends anything until the other side has closed the connection.
    pub(crate) fn stall(&mut self) {
        let poll = |stream: &TcpStream| {
            let mut fds = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP)];
            rustix::event::poll(&mut fds, None)
        };
        let _ = poll(self.reader.get_ref());
    }
}
