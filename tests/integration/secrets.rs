//! Whatever fails, secrets are printed nowhere.

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;
use url::Url;

use crate::harness::{
    Event, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, Signal, process::Finished, wait_until,
};

/// Stands for a customer's secret, in URLs and in events.
const MARK: &str = "s3cret-T0ken";

/// Everything that anybody could have read.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn add(&mut self, what: &str, text: String) {
        self.0.push((what.to_owned(), text));
    }

    fn command(&mut self, arguments: &[&str], finished: Finished) {
        self.add(&arguments.join(" "), finished.stdout);
        self.add(&arguments.join(" "), finished.stderr);
    }

    fn expect_none_of(&self, secrets: &[String]) {
        for (what, text) in &self.0 {
            for secret in secrets {
                assert!(!text.contains(secret), "{secret:?} in {what}: {text}");
            }
        }
    }
}

fn password_of(url: &str) -> String {
    let url = Url::parse(url).expect("a URL");
    url.password().expect("the test servers have passwords").to_owned()
}

fn with_password(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_password(Some(MARK)).expect("it has a host");
    url.into()
}

/// A webhook for each way in which a request can fail; each wants only its own type.
fn register_failures(sandbox: &Sandbox, receiver: &Receiver) -> Vec<String> {
    let at = |path: &str| receiver.url(&format!("{path}?token={MARK}"));
    let tls = at("/tls").replace("http:", "https:");
    let user = at("/").replace("http://", &format!("http://user:{MARK}@"));
    let urls = [
        at("/500"),
        at("/410"),
        at("/302"),
        at("/hang"),
        at("/reset"),
        at("/close"),
        at("/garbage"),
        at("/drip"),
        at("/endless"),
        tls,
        user,
        format!("{}?token={MARK}", receiver.refusing_url()),
        format!("http://10.255.255.1/?token={MARK}"),
        format!("http://{MARK}.invalid/?token={MARK}"),
        format!("ftp://example.org/?token={MARK}"),
        format!("http://[{MARK}/"),
        MARK.to_owned(),
    ];
    let kinds = (0..urls.len()).map(|n| format!("failure.{n}"));
    let kinds: Vec<_> = kinds.collect();
    for (url, kind) in urls.iter().zip(&kinds) {
        sandbox.webhook(url, &[kind]);
    }
    let unusable = sandbox.webhook(&at("/200"), &["unusable"]);
    let secret = format!("whsec_{MARK}");
    let set = "UPDATE webhooks SET secret = $2 WHERE id = $1";
    sandbox.database.execute(set, &[&unusable, &secret]);
    // Each request would send it.
    let set = "UPDATE webhooks SET headers = jsonb_build_object('authorization', $1::text)";
    sandbox.database.execute(set, &[&MARK]);
    let unsendable = sandbox.webhook(&at("/200"), &["unsendable"]);
    let set = "UPDATE webhooks SET headers = jsonb_build_object('a', $2::text) WHERE id = $1";
    sandbox.database.execute(set, &[&unsendable, &format!("{MARK}\r\nb: c")]);
    let kinds = [&kinds[..], &["unsendable".to_owned()]].concat();
    [&kinds[..], &["unusable".to_owned()]].concat()
}

/// What isn't an event, and what isn't a parked delivery.
fn publish_malformed(sandbox: &Sandbox) -> usize {
    let events = [
        Event::raw(format!("\"{MARK}\"")),
        Event::raw(format!("{{\"type\":\"t\",{MARK}")),
        Event::raw(format!("{{\"no_type\":\"{MARK}\"}}")),
        Event::raw(format!("[\"{MARK}\"]")),
        Event::raw(MARK).kind("t"),
    ];
    sandbox.broker.publish(sandbox.queue(), &events);
    let mut headers = FieldTable::new();
    headers.insert("x-webhook-id".to_owned(), AmqpValue::LongString(MARK.to_owned()));
    headers.insert("authorization".to_owned(), AmqpValue::LongString(MARK.to_owned()));
    let crafted = Event::new("order.paid").headers(headers);
    sandbox.broker.publish(&sandbox.retry_queue(), &[crafted]);
    events.len() + 1
}

#[test]
fn no_secret_is_printed_in_a_run_that_meets_every_error() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        let path = request.path.split('?').next().unwrap_or_default();
        match path {
            "/302" => Reply::WithHeaders(302, vec![("location", format!("http://{MARK}/"))]),
            "/hang" => Reply::Hang,
            "/reset" => Reply::Reset,
            "/close" => Reply::Close,
            "/garbage" => Reply::Garbage,
            "/drip" => Reply::Drip,
            "/endless" => Reply::Endless,
            status => Reply::Status(status[1..].parse().unwrap_or(200)),
        }
    });
    let mut seen = Seen::default();
    let url = receiver.url(&format!("/200?token={MARK}"));
    let add = ["webhooks", "add", &url, "signed", "--json"];
    let added = sandbox.command(&add);
    let added: Value = serde_json::from_str(&added.stdout).expect("JSON");
    let (id, first) = (added["id"].as_str().expect("an id"), added["secret"].as_str());
    let rotated = sandbox.command(&["webhooks", "rotate-secret", id, "--json"]);
    let rotated: Value = serde_json::from_str(&rotated.stdout).expect("JSON");
    let second = rotated["secret"].as_str();
    let key = |secret: Option<&str>| secret.expect("a secret")["whsec_".len()..].to_owned();
    let secrets = [
        MARK.to_owned(),
        key(first),
        key(second),
        password_of(&sandbox.servers.amqp_url),
        password_of(&sandbox.servers.database_url),
    ];

    let (broker, database) =
        (Proxy::before(&sandbox.servers.amqp_url), Proxy::before(sandbox.database.url()));
    let mut notifier: Notifier = sandbox
        .notifier()
        .env("RUST_LOG", "trace")
        .env("AMQP_URL", broker.url(&sandbox.servers.amqp_url))
        .env("DATABASE_URL", database.url(sandbox.database.url()))
        .env("RETRY_SCHEDULE", "100ms")
        .env("REQUEST_TIMEOUT", "500ms")
        .start();
    let mut dead = 0;
    for kind in register_failures(&sandbox, &receiver) {
        sandbox.publish(&Event::new(&kind).body(format!("{{\"password\":\"{MARK}\"}}")));
        dead += 1;
    }
    dead += publish_malformed(&sandbox);
    sandbox.publish(&Event::new("signed"));
    // One of them is delivered: its endless body follows a status that decides.
    dead -= 1;
    wait_until(SOON, "all have met their ends", || {
        notifier.metric("webhook_dead_letters_total", &[]) == dead as f64
            && notifier.metric("webhook_request_success_total", &[]) == 2.0
    });
    broker.cut();
    notifier.wait_stderr(SOON, "lane interrupted");
    notifier.wait_stderr(SOON, "lane connected again");
    database.refuse();
    notifier.wait_stderr(SOON, "directory bypassed");
    sandbox.publish(&Event::new("signed"));
    wait_until(SOON, "its loss is noticed", || notifier.metric("webhook_database_up", &[]) == 0.0);
    for path in ["/metrics", "/healthz", "/readyz", "/nowhere"] {
        seen.add(path, notifier.get(path).body);
    }
    database.thaw();
    notifier.wait_stderr(SOON, "directory in use again");
    notifier.signal(Signal::TERM);
    notifier.wait_exit(SOON);
    assert!(
        notifier.stderr().iter().any(|line| line.contains("DEBUG")),
        "everything that can be logged is"
    );
    seen.add("the log", [notifier.stderr(), notifier.stdout()].concat().join("\n"));

    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["listen", "--help"],
        &["check"],
        &["check", "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--each", "--json"],
        &["dead-letters", "replay", "--dry-run"],
    ] {
        let launch = sandbox.launch(arguments).env("WEBHOOK_SECRET", format!("whsec_{MARK}"));
        seen.command(arguments, launch.env("RUST_LOG", "trace").spawn().finish(SOON));
    }
    // The passwords are wrong, or in a place where the URL can't be parsed.
    let (amqp, database) = (&sandbox.servers.amqp_url, sandbox.database.url());
    for (variable, value) in [
        ("AMQP_URL", with_password(amqp)),
        ("DATABASE_URL", with_password(database)),
        ("AMQP_URL", format!("amqp://user:{MARK}@nowhere.invalid/")),
        ("DATABASE_URL", format!("postgres://user:{MARK}@nowhere.invalid/x")),
        ("DATABASE_URL", format!("host=127.0.0.1 password='{MARK}")),
        ("DATABASE_URL", format!("postgres://user:{MARK}@/{MARK}?{MARK}={MARK}")),
        ("AMQP_URL", format!("amqp://user:{MARK}@[/")),
    ] {
        for arguments in [&["check"][..], &["run"], &["migrate"], &["publish", "q", "{}"]] {
            let launch = sandbox
                .launch(arguments)
                .env("METRICS_ADDR", "127.0.0.1:0")
                .env("AMQP_CONNECTION_ATTEMPTS", "1")
                .env("RUST_LOG", "trace")
                .env(variable, &value);
            // Without a name server a look-up may take its time, or the process may keep running.
            let mut process = launch.spawn();
            wait_until(SOON, "it fails, or waits for the database", || {
                !process.is_running()
                    || process.stderr().iter().any(|line| line.contains("consuming begins when"))
            });
            process.kill();
            let what = format!("{arguments:?} with {variable}");
            seen.add(&what, [process.stderr(), process.stdout()].concat().join("\n"));
        }
    }
    seen.expect_none_of(&secrets);
}

#[test]
fn a_log_level_at_which_a_library_prints_secrets_is_refused() {
    let sandbox = Sandbox::new();
    for filter in ["ureq=debug", "info,tokio_postgres=trace", "amiquip::io_loop=info"] {
        let finished = sandbox.launch(&["check"]).env("RUST_LOG", filter).spawn().finish(SOON);
        assert_eq!(finished.code, Some(2), "{filter}: {finished:?}");
        assert!(finished.stderr.contains("RUST_LOG"), "{filter}: {finished:?}");
    }
    let finished = sandbox.launch(&["check"]).env("RUST_LOG", "info,ureq=warn").spawn();
    assert_eq!(finished.finish(SOON).code, Some(0));
}
