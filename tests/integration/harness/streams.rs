//! What the servers of these tests have in common: the connections to close at their end, and the address
//! in a URL.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Mutex,
};

use url::Url;

/// The open connections of a server.
pub(super) struct OpenStreams(Mutex<Option<Vec<TcpStream>>>);

impl OpenStreams {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    /// Keeps a handle of the connection, to close it at the end. False: the server has ended.
    pub(super) fn keep(&self, stream: &TcpStream) -> bool {
        match &mut *self.0.lock().expect("no holder panics") {
            Some(open) => open.extend(stream.try_clone()),
            None => return false,
        }
        true
    }

    /// Ends the server at this address: closes its connections, and wakes its accepting thread.
    pub(super) fn end(&self, address: SocketAddr) {
        let open = self.0.lock().expect("no holder panics").take();
        for stream in open.into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(address);
    }
}

/// The address of the server that a URL names by an IP address and a port.
pub(super) fn address_of(url: &str) -> SocketAddr {
    let url = Url::parse(url).expect("a URL");
    let host = url.host_str().expect("a URL with a host");
    let port = url.port().expect("a URL with a port");
    format!("{host}:{port}").parse().expect("an IP address")
}

/// The URL with another address.
pub(super) fn with_address(url: &str, address: SocketAddr) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_ip_host(address.ip()).expect("it has a host");
    url.set_port(Some(address.port())).expect("it has a port");
    url.into()
}
