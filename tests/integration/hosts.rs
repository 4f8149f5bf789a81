//! Several hosts in DATABASE_URL: one that doesn't answer must not prevent the use of the next.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use url::Url;

use crate::harness::{Event, LATER, Proxy, Receiver, SOON, Sandbox, wait_until};

/// Accepts connections, sends these bytes on the first one, and then nothing more.
struct Silent {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Silent {
    fn saying(bytes: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let ended = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ended);
        thread::spawn(move || {
            let mut held = Vec::new();
            for client in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut client) = client else { return };
                held.push(client.try_clone());
                thread::spawn(move || {
                    if !bytes.is_empty() && client.read_exact(&mut [0; 8]).is_ok() {
                        let _ = client.write_all(bytes);
                    }
                });
            }
        });
        Self { address, ended }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// The URL with that server first.
fn with_first(url: &str, first: SocketAddr) -> String {
    let parsed = Url::parse(url).expect("a URL");
    let own = format!("{}:{}", parsed.host().expect("a host"), parsed.port().expect("a port"));
    assert_eq!(url.matches(&own).count(), 1, "{url}");
    url.replace(&own, &format!("{first},{own}"))
}

fn check_first(sent: &'static [u8], parameters: &str) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let silent = Silent::saying(sent);
    let url = with_first(sandbox.database.url(), silent.address) + parameters;
    let command = |arguments: &[&str]| {
        sandbox.launch(arguments).env("DATABASE_URL", &url).spawn().finish(SOON)
    };
    for arguments in [&["check"][..], &["webhooks", "list"], &["why", "e"], &["migrate"]] {
        let finished = command(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
    }
    let notifier = sandbox.notifier().env("DATABASE_URL", &url).start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    wait_until(SOON, "notifications arrive", || {
        notifier.metric("webhook_directory_age_seconds", &[]) == 0.0
    });
    wait_until(SOON, "it is ready", || notifier.is_ready());
    notifier.terminate();
}

#[test]
fn a_first_host_that_accepts_and_says_nothing_is_passed_over() {
    check_first(b"", "");
}

#[test]
fn a_first_host_that_speaks_no_tls_and_then_says_nothing_is_passed_over() {
    check_first(b"N", "");
}

#[test]
fn a_first_host_that_never_completes_its_tls_handshake_is_passed_over() {
    check_first(b"S", "");
}

#[test]
fn a_host_that_falls_silent_while_running_is_left_for_the_next() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(sandbox.database.url());
    let own = Url::parse(&proxy.url(sandbox.database.url())).expect("a URL");
    let first = format!("127.0.0.1:{}", own.port().expect("a port")).parse().expect("an address");
    let url = with_first(sandbox.database.url(), first);
    let notifier = sandbox.notifier().env("DATABASE_URL", &url).start();
    sandbox.publish(&Event::new("known"));
    receiver.wait_at("/", 1);
    assert!(proxy.accepted() > 0, "the first host is in use");

    proxy.freeze();
    let unknown = Event::new("unknown");
    sandbox.publish(&unknown);
    wait_until(LATER, "the event whose webhook only PostgreSQL has is delivered", || {
        !receiver.of("/", &unknown).is_empty()
    });
    wait_until(LATER, "notifications arrive", || {
        notifier.metric("webhook_directory_age_seconds", &[]) == 0.0
    });
    wait_until(SOON, "it is ready", || notifier.is_ready());
    notifier.terminate();
}

#[test]
fn if_no_host_answers_the_most_informative_error_is_reported() {
    let sandbox = Sandbox::new();
    let silent = Silent::saying(b"");
    let refusing = Receiver::new().refusing_url().replace("http://", "");
    let refusing = refusing.trim_end_matches('/');
    let url = format!("postgres://u:p@{},{refusing}/db", silent.address);
    let launch = sandbox.launch(&["webhooks", "list"]).env("DATABASE_URL", url);
    let finished = launch.spawn().finish(SOON);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for part in [
        "does not answer",
        "accepts connections",
        "/db",
        &format!("{refusing}: Connection refused"),
    ] {
        assert!(finished.stderr.contains(part), "no {part:?} in {finished:?}");
    }
}

#[test]
fn a_parameter_that_cannot_be_read_is_named() {
    let sandbox = Sandbox::new();
    for (url, sent) in [
        ("host=a password=s3cret target_session_attrs=primary", "any, read-write, read-only"),
        ("host=a password=s3cret port=99999", "an invalid value of port"),
        ("host=a password=s3cret other=s3cret", "an unknown parameter"),
    ] {
        let launch = sandbox.launch(&["webhooks", "list"]).env("DATABASE_URL", url);
        let finished = launch.spawn().finish(SOON);
        assert_ne!(finished.code, Some(0), "{finished:?}");
        let output = &finished.stderr;
        assert!(output.contains(sent) && !output.contains("s3cret"), "{finished:?}");
    }
}

#[test]
fn of_several_hosts_one_that_takes_no_writes_is_not_used() {
    let sandbox = Sandbox::new();
    // As on a standby, it may only read.
    let reader = format!("{}_reader", sandbox.queue());
    let password = uuid::Uuid::new_v4().simple().to_string();
    sandbox.database.run_script(&format!(
        "CREATE ROLE {reader} SUPERUSER LOGIN PASSWORD '{password}';
         ALTER ROLE {reader} SET default_transaction_read_only = on"
    ));
    let mut own = Url::parse(sandbox.database.url()).expect("a URL");
    own.set_username(&reader).expect("it has a host");
    own.set_password(Some(&password)).expect("it has a host");
    let own_address = own.socket_addrs(|| None).expect("an address")[0];
    let check =
        |url: &str| sandbox.launch(&["check"]).env("DATABASE_URL", url).spawn().finish(SOON);
    let refusing = Receiver::new().refusing_url().replace("http://", "");
    let refusing = refusing.trim_end_matches('/');
    let finished = check(&with_first(own.as_str(), refusing.parse().expect("an address")));
    sandbox.database.execute(&format!("DROP ROLE {reader}"), &[]);

    assert_eq!(finished.code, Some(1), "{finished:?}");
    let sent = format!("{own_address}: ");
    let standby = "none of the hosts that answer is a primary: does a standby have to be promoted?";
    for part in [&sent, standby, &format!("{refusing}: Connection refused")] {
        assert!(finished.stdout.contains(part), "no {part:?} in {finished:?}");
    }
}
