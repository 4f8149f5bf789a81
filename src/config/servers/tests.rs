//! Which URLs are accepted, and what is said of the others: never a password.

use super::*;

fn amqp(url: &str) -> Result<Amqp, String> {
    Amqp::parse(url, &Roots::bundled())
}

fn host(name: &str, port: u16) -> Host {
    Host { name: name.to_owned(), port }
}

fn database(url: &str) -> Result<Database, String> {
    Database::parse(url, &Roots::bundled())
}

#[test]
fn the_parts_of_the_amqp_url_are_decoded() {
    let url = "amqp://us%40er:p%2Fw@[::1]:5673/my%2fhost?heartbeat=7";
    let amqp = amqp(url).expect("a URL");
    assert_eq!(amqp.hosts, [host("::1", 5673)]);
    assert_eq!(amqp.heartbeat, 7);
    assert_eq!((amqp.user.as_str(), amqp.vhost.as_str()), ("us@er", "my/host"));
    assert_eq!(amqp.password.expose(), "p/w");
    assert!(amqp.tls.is_none());
    assert!(!format!("{amqp:?}").contains("p/w"));
}

#[test]
fn amqps_has_a_port_of_its_own() {
    let amqp = amqp("amqps://host/").expect("a URL");
    assert_eq!(amqp.hosts, [host("host", 5671)]);
    assert!(amqp.tls.is_some());
}

#[test]
fn a_url_may_have_several_hosts_each_with_its_port() {
    let amqp = amqp("amqp://u,s:p,w@a:5673,b,[::1]:5674,10.0.0.1/v,h?heartbeat=7").expect("a URL");
    let hosts = [host("a", 5673), host("b", 5672), host("::1", 5674), host("10.0.0.1", 5672)];
    assert_eq!(amqp.hosts, hosts);
    assert_eq!((amqp.user.as_str(), amqp.vhost.as_str()), ("u,s", "v,h"));
    assert_eq!((amqp.password.expose(), amqp.heartbeat), ("p,w", 7));
    assert_eq!(amqp.to_string(), "a:5673,b:5672,[::1]:5674,10.0.0.1:5672");
}

#[test]
fn the_error_about_a_url_does_not_quote_its_password() {
    for (bad, says) in [
        ("http://s3cret@x/", "amqp://"),
        ("amqp://u:s3cret@x/a/b", "%2f"),
        ("amqp://u:s3cret@x/?frame=1", "heartbeat"),
        ("amqp://u:s3cret@x/?heartbeat=0", "heartbeat"),
        ("amqp://u:s3cret@x/?cacertfile=/x", "amqps"),
        ("amqps://u:s3cret@x/?cacertfile=/nowhere", "/nowhere"),
        ("amqps://u:s3cret@x/?certfile=/nowhere", "keyfile"),
        ("s3cret", "amqp://"),
        ("amqp://u:s3cret@a,,b/", "host 2 of its 3 is empty"),
        ("amqp://u:s3cret@a,b:99999/", "\"b\", has a port"),
        ("amqp://u:s3cret@a, b/", "\"b\", has a space"),
        ("amqp://u:s3cret@a;b/", "semicolon"),
        ("amqp://u:s3cret@[::1:5/", "no `]`"),
        ("amqp://u:s3cret@a:1,u2:s3cret@b:2/%2f", "once, before the first host"),
        ("amqp://u:s3cret@a/%2f,amqp://u:s3cret@b/%2f", "several URLs"),
        ("amqp://u:s3cret@a, amqps://u:s3cret@b", "several URLs"),
        ("amqp://u:s3cret/s3cret@a/%2f", "%2f"),
        ("amqp://u:s3cret", "\"u\" has a port"),
    ] {
        let error = amqp(bad).expect_err(bad);
        assert!(error.contains(says) && !error.contains("s3cret"), "{bad}: {error}");
    }
    for (bad, says) in [
        ("", "empty"),
        ("postgres://u:s3cret@x/?sslmode=s3cret", "verify-full"),
        ("postgres://u:s3cret@x/?sslrootcert=/nowhere", "/nowhere"),
        ("postgres://u:s3cret@x/?sslcert=/nowhere", "sslkey"),
        ("postgres://u:s3cret@x/?sslrootcert=system", "verify-full"),
        ("postgres://u:s3cret@a,,b/db", "host 2 of its 3 is empty"),
        ("postgres://u:s3cret@127.0.0.1:27399,,/db", "host 2 of its 3 is empty"),
        ("postgresql://u:s3cret@a:99999/db", "\"a\" has a port"),
        ("postgres://u:s3cret@a,[::1:5/db", "no `]`"),
        ("postgres://u:s3cret@a:1, b:2/db", "\"b\", has a space"),
        ("postgres://u:s3cret@a:1,u2:s3cret@b:2/db", "once, before the first host"),
        ("postgres://u:p@s3cret@b:x/db", "%40"),
        ("postgres://u:s3cret@a/db,postgres://u:s3cret@b/db", "several URLs"),
        ("postgres://u:s3cret@a/db?target_session_attrs=primary", "any, read-write, read-only"),
    ] {
        let error = database(bad).expect_err(bad);
        assert!(error.contains(says) && !error.contains("s3cret"), "{bad}: {error}");
    }
}

#[test]
fn parameters_of_tls_are_removed_from_the_database_url() {
    let url = "postgres://u:p@a:1,b:2/db?sslmode=verify-full&options=-cx%3Dy&sslrootcert=system";
    let read = database(url).expect("a URL");
    assert_eq!(read.url.expose(), "postgres://u:p@a:1,b:2/db?options=-cx%3Dy");
    assert_eq!(read.encryption, Encryption::Required);
    let read = database("postgres://u@a/db").expect("a URL");
    assert_eq!(read.encryption, Encryption::IfOffered);
    let other = "host=a user=u password='x?sslmode=y' sslmode=require";
    let read = database(other).expect("the other form");
    assert_eq!(read.url.expose(), other);
    for url in [
        "postgres://u:p/w@a/db",
        "postgres://%2Frun%2Fpostgresql/db",
        "postgres:///db?host=/run",
        "postgres://a:,[::1]:2?target_session_attrs=read-write",
    ] {
        assert_eq!(database(url).expect("a URL").url.expose(), url);
    }
}
