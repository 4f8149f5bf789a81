//! A TCP proxy that can play a broken network.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use url::Url;

pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
}

struct State {
    mode: Mode,
    connections: Vec<Connection>,
    accepted: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forwarding,
    /// Connections are accepted and stay open, but nothing passes.
    Frozen,
    /// Connections are closed as soon as they are made.
    Refusing,
    Ended,
}

#[derive(Clone)]
struct Connection {
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    /// Set for ever by a freeze: what was sent meanwhile is lost.
    dead: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy in front of the server that the URL names.
    pub(crate) fn before(url: &str) -> Self {
        let url = Url::parse(url).expect("an URL");
        let host = url.host_str().expect("an URL with a host");
        let port = url.port().expect("an URL with a port");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream: format!("{host}:{port}").parse().expect("an IP address"),
            state: Mutex::new(State {
                mode: Mode::Forwarding,
                connections: Vec::new(),
                accepted: 0,
            }),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// The URL with the proxy in place of the server.
    pub(crate) fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("an URL");
        url.set_ip_host(self.address.ip()).expect("it has a host");
        url.set_port(Some(self.address.port())).expect("it has a port");
        url.into()
    }

    /// From now on nothing passes, and nobody is told: the peers' sockets stay
    /// open. Connections of this time never carry anything again.
    pub(crate) fn freeze(&self) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        state.mode = Mode::Frozen;
        for connection in &state.connections {
            connection.dead.store(true, Ordering::SeqCst);
        }
    }

    /// Lets new connections through.
    pub(crate) fn thaw(&self) {
        self.set_mode(Mode::Forwarding);
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.state.lock().expect("no holder panics");
        for connection in state.connections.drain(..) {
            connection.close();
        }
    }

    /// Ends all connections, and every new one at once.
    pub(crate) fn refuse(&self) {
        self.set_mode(Mode::Refusing);
        self.cut();
    }

    /// How many connections were made to it, refused ones included.
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
    fn accept(&self, listener: &TcpListener) {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let mut state = self.state.lock().expect("no holder panics");
            state.accepted += 1;
            match state.mode {
                Mode::Ended => return,
                Mode::Refusing => continue,
                Mode::Forwarding | Mode::Frozen => {}
            }
            // The upstream may be away: then the client sees its end at once.
            let Ok(server) = TcpStream::connect(self.upstream) else {
                continue;
            };
            let connection = Connection {
                client: Arc::new(client),
                server: Arc::new(server),
                dead: Arc::new(AtomicBool::new(state.mode == Mode::Frozen)),
            };
            state.connections.push(connection.clone());
            let back = connection.clone();
            thread::spawn(move || connection.pump(&connection.client, &connection.server));
            thread::spawn(move || back.pump(&back.server, &back.client));
        }
    }
}

impl Connection {
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if self.dead.load(Ordering::SeqCst) {
                // A dead connection swallows everything, the end included.
                if read == 0 {
                    return;
                }
                continue;
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
