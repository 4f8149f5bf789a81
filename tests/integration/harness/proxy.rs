//! A TCP proxy that can simulate a broken network.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    POLL_INTERVAL,
    streams::{address_of, with_address},
};

/// If the proxy reads at least this many bytes from a client, they belong to a message that it publishes:
/// acks and heartbeats are shorter, even several of them.
const MESSAGE: usize = 256;

pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    /// When a client sends its next message, half of it is forwarded and all connections are closed.
    armed: AtomicBool,
    /// What [`Proxy::before_each`] was given.
    watcher: Mutex<Option<Watcher>>,
}

type Watcher = Box<dyn FnMut(&[u8]) + Send>;

struct State {
    mode: Mode,
    connections: Vec<Connection>,
    accepted: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forwarding,
    /// Accepts connections and keeps them open, but forwards nothing.
    Frozen,
    /// Closes connections as soon as they are accepted.
    Refusing,
    Ended,
}

#[derive(Clone)]
struct Connection {
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    /// Set permanently by a freeze: what was sent meanwhile is lost.
    dead: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy in front of the server that the URL names.
    pub(crate) fn before(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream: address_of(url),
            state: Mutex::new(State {
                mode: Mode::Forwarding,
                connections: Vec::new(),
                accepted: 0,
            }),
            armed: AtomicBool::new(false),
            watcher: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// The URL with the proxy in place of the server.
    pub(crate) fn url(&self, url: &str) -> String {
        with_address(url, self.address)
    }

    /// From now on nothing is forwarded, and neither side notices: the sockets stay open. The connections
    /// that exist before [`Self::thaw`] never forward anything again.
    pub(crate) fn freeze(&self) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        state.mode = Mode::Frozen;
        for connection in &state.connections {
            connection.dead.store(true, Ordering::SeqCst);
        }
    }

    /// Forwards new connections.
    pub(crate) fn thaw(&self) {
        self.set_mode(Mode::Forwarding);
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Closes all connections in the middle of a message that a client publishes; if none is published within
    /// `patience`, then. Returns whether it was in a message.
    pub(crate) fn cut_in_a_message(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.shared.armed.store(true, Ordering::SeqCst);
        while self.shared.armed.load(Ordering::SeqCst) {
            if Instant::now() >= deadline && self.shared.armed.swap(false, Ordering::SeqCst) {
                self.cut();
                return false;
            }
            thread::sleep(POLL_INTERVAL);
        }
        true
    }

    /// Calls `watcher` with all that clients send from now on, each time before it is forwarded.
    pub(crate) fn before_each(&self, watcher: impl FnMut(&[u8]) + Send + 'static) {
        *self.shared.watcher.lock().expect("no watcher panics") = Some(Box::new(watcher));
    }

    /// Closes the frozen connections, as keep-alives do eventually: a server keeps its side of them
    /// open for hours.
    pub(crate) fn close_frozen(&self) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        state.connections.retain(|connection| {
            let dead = connection.dead.load(Ordering::SeqCst);
            if dead {
                connection.close();
            }
            !dead
        });
    }

    /// Closes all connections, and every new one at once.
    pub(crate) fn refuse(&self) {
        self.set_mode(Mode::Refusing);
        self.cut();
    }

    /// How many connections were accepted, including refused ones.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.state.lock().expect("no holder panics").accepted
    }

    fn set_mode(&self, mode: Mode) {
        self.shared.state.lock().expect("no holder panics").mode = mode;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set_mode(Mode::Ended);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let mut state = self.state.lock().expect("no holder panics");
            state.accepted += 1;
            match state.mode {
                Mode::Ended => return,
                Mode::Refusing => continue,
                Mode::Forwarding | Mode::Frozen => {}
            }
            // The upstream may be away: then the client's connection is closed at once.
            let Ok(server) = TcpStream::connect(self.upstream) else {
                continue;
            };
            let connection = Connection {
                client: Arc::new(client),
                server: Arc::new(server),
                dead: Arc::new(AtomicBool::new(state.mode == Mode::Frozen)),
            };
            // Ended connections would keep their sockets otherwise.
            state.connections.retain(Connection::is_pumped);
            state.connections.push(connection.clone());
            let back = connection.clone();
            let shared = Arc::clone(&self);
            thread::spawn(move || connection.pump_up(&shared));
            thread::spawn(move || back.pump(&back.server, &back.client, |_| false));
        }
    }

    fn cut(&self) {
        let mut state = self.state.lock().expect("no holder panics");
        for connection in state.connections.drain(..) {
            connection.close();
        }
    }
}

impl Connection {
    /// Each pump holds its own handle.
    fn is_pumped(&self) -> bool {
        Arc::strong_count(&self.client) > 1
    }

    /// From the client to the server.
    fn pump_up(&self, shared: &Shared) {
        self.pump(&self.client, &self.server, |bytes| {
            if let Some(watcher) = &mut *shared.watcher.lock().expect("no watcher panics") {
                watcher(bytes);
            }
            let cuts = bytes.len() >= MESSAGE && shared.armed.swap(false, Ordering::SeqCst);
            if cuts {
                let _ = (&*self.server).write_all(&bytes[..bytes.len() / 2]);
                shared.cut();
            }
            cuts
        });
    }

    /// Forwards bytes, until a side closes or `cuts` returns that it has closed the connection.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, cuts: impl Fn(&[u8]) -> bool) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if self.dead.load(Ordering::SeqCst) {
                // A dead connection swallows everything, including its end.
                if read == 0 {
                    return;
                }
                continue;
            }
            if cuts(&buffer[..read]) {
                return;
            }
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                self.close();
                return;
            }
        }
    }

    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}
