//! An HTTP proxy with CONNECT, as operators put between their network and the internet.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::streams::OpenStreams;

/// What it does with a CONNECT.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Opens a tunnel.
    Open,
    /// Answers with this status, and a header line (or "").
    Status(u16, &'static str),
    /// Closes the connection.
    Close,
    /// Closes the connection for this address, and opens a tunnel for others.
    CloseFor(&'static str),
    /// Answers nothing.
    Hang,
    /// Answers with bytes that aren't HTTP.
    Garbage,
}

/// A CONNECT as received.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) authorization: String,
}

pub(crate) struct ConnectProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where all tunnels lead, whatever was requested; `None`: where requested.
    upstream: Option<String>,
    way: Mutex<Way>,
    asked: Mutex<Vec<Connect>>,
    accepted: AtomicUsize,
    open: OpenStreams,
}

impl ConnectProxy {
    /// Its tunnels lead where requested.
    pub(crate) fn new() -> Self {
        Self::start(None)
    }

    /// All its tunnels lead to this server (a URL), as if it had every address of the internet.
    pub(crate) fn leading_to(url: &str) -> Self {
        let (_, authority) = url.split_once("//").expect("a URL");
        Self::start(Some(authority.split('/').next().unwrap_or_default().to_owned()))
    }

    fn start(upstream: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            way: Mutex::new(Way::Open),
            asked: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: OpenStreams::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if !accepting.open.keep(&client) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&accepting);
                // The notifier under test reports how the connection ended.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { address, shared }
    }

    /// For EGRESS_PROXY.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn url_with(&self, credentials: &str) -> String {
        format!("http://{credentials}@{}", self.address)
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn set(&self, way: Way) {
        *self.shared.way.lock().expect("no holder panics") = way;
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn asked(&self) -> Vec<Connect> {
        self.shared.asked().clone()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.shared.open.end(self.address);
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Vec<Connect>> {
        self.asked.lock().expect("no holder panics")
    }

    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let first = lines.first().map(String::as_str).unwrap_or_default();
        let target = first.strip_prefix("CONNECT ").and_then(|it| it.strip_suffix(" HTTP/1.1"));
        let header = |name: &str| {
            let found = lines.iter().find_map(|line| {
                let (other, value) = line.split_once(": ")?;
                other.eq_ignore_ascii_case(name).then_some(value)
            });
            found.unwrap_or_default().to_owned()
        };
        let Some(target) = target else {
            return (&client).write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n");
        };
        self.asked().push(Connect {
            target: target.to_owned(),
            host: header("host"),
            authorization: header("proxy-authorization"),
        });
        let way = *self.way.lock().expect("no holder panics");
        match way {
            Way::CloseFor(address) if target.starts_with(address) => {
                return client.shutdown(Shutdown::Both);
            }
            Way::Open | Way::CloseFor(_) => {}
            Way::Status(status, line) => {
                let end = if line.is_empty() { "" } else { "\r\n" };
                let head =
                    format!("HTTP/1.1 {status} Test\r\ncontent-length: 2\r\n{line}{end}\r\nno");
                (&client).write_all(head.as_bytes())?;
                return client.shutdown(Shutdown::Both);
            }
            Way::Close => return client.shutdown(Shutdown::Both),
            Way::Hang => {
                io::copy(&mut reader, &mut io::sink())?;
                return Ok(());
            }
            Way::Garbage => return (&client).write_all(b"220 wrong number\r\n"),
        }
        let Ok(server) = TcpStream::connect(self.upstream.as_deref().unwrap_or(target)) else {
            return (&client).write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
        };
        server.set_nodelay(true)?;
        self.open.keep(&server);
        (&client).write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")?;
        thread::scope(|scope| {
            scope.spawn(|| pump(&server, &client));
            let early = reader.buffer().to_vec();
            if (&server).write_all(&early).is_ok() {
                pump(&client, &server);
            }
        });
        Ok(())
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let mut room = [0; 16 << 10];
    loop {
        let read = from.read(&mut room).unwrap_or(0);
        if read == 0 || to.write_all(&room[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
