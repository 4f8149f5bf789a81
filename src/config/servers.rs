//! The addresses of RabbitMQ and PostgreSQL: their URLs, and how to use TLS with them.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::hosts::Form;
use crate::domain::secret::Secret;
use crate::tls::{Check, Identity, Roots, Tls};

const AMQP: Form = Form {
    starts: ["amqp://", "amqps://"],
    example: "amqp://user:password@host:5672,other:5672/%2f",
};

const POSTGRES: Form = Form {
    starts: ["postgres://", "postgresql://"],
    example: "postgres://user:password@host:5432,other:5432/database",
};

/// What `target_session_attrs` may be, where libpq has more.
const SESSION_ATTRS: [&str; 3] = ["any", "read-write", "read-only"];

/// The address of RabbitMQ, and our login.
#[derive(Clone, Debug)]
pub struct Amqp {
    /// The nodes of a cluster, or the only one.
    pub hosts: Vec<Host>,
    /// How to encrypt; `None` for no encryption.
    pub tls: Option<Tls>,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Secret,
    /// Virtual host.
    pub vhost: String,
    /// In seconds. A silent connection is given up after two of them.
    pub heartbeat: u16,
}

/// A node's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name or an address.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        match name.contains(':') {
            true => write!(formatter, "[{name}]:{port}"),
            false => write!(formatter, "{name}:{port}"),
        }
    }
}

impl fmt::Display for Amqp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        formatter.write_str(&hosts.join(","))
    }
}

impl Amqp {
    /// Reads AMQP_URL (RabbitMQ's "URI specification" and "URI query parameters"), with a list of hosts
    /// as in libpq's URLs. Errors never quote the value: it may contain a password.
    pub(super) fn parse(text: &str, roots: &Roots) -> Result<Self, String> {
        let usage = || "is not a URL such as amqp://user:password@host:5672/%2f".to_owned();
        let text = text.trim();
        AMQP.is_one(text)?;
        let (before, hosts, after) = around_hosts(text).ok_or_else(usage)?;
        if before.split_once('@').is_some_and(|(_, more)| more.contains(',')) {
            // A host that would be a part of the password.
            return Err(AMQP.bare());
        }
        // `Url` knows no list of hosts.
        let url = Url::parse(&format!("{before}host{after}")).map_err(|_| usage())?;
        let (encrypted, port) = match url.scheme() {
            "amqp" => (false, 5672),
            "amqps" => (true, 5671),
            _ => return Err(usage()),
        };
        let hosts = AMQP.hosts(hosts, after, port)?;
        let or =
            |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let path = url.path().strip_prefix('/').unwrap_or_default();
        if path.contains('/') {
            return Err("the virtual host has a bare slash: write it as %2f".to_owned());
        }
        let mut heartbeat = 10;
        let mut files = Files::default();
        for (name, value) in url.query_pairs() {
            let file = match &*name {
                "heartbeat" => {
                    let seconds = value.parse().ok().filter(|seconds| (1..=600).contains(seconds));
                    heartbeat =
                        seconds.ok_or_else(|| "heartbeat must be 1 to 600 seconds".to_owned())?;
                    continue;
                }
                "cacertfile" => &mut files.roots,
                "certfile" => &mut files.certificate,
                "keyfile" => &mut files.key,
                _ => {
                    return Err("has an unknown parameter: heartbeat, cacertfile, certfile and \
                                keyfile are supported"
                        .to_owned());
                }
            };
            if !encrypted {
                return Err(format!("{name} is for amqps:// only"));
            }
            *file = Some(PathBuf::from(&*value));
        }
        let tls = match encrypted {
            true => Some(files.tls(roots, Check::Name, "certfile", "keyfile")?),
            false => None,
        };
        let decode = |part: &str| decode(part).ok_or_else(usage);
        Ok(Self {
            hosts,
            tls,
            user: or(decode(url.username())?, "guest"),
            password: Secret::new(decode(url.password().unwrap_or("guest"))?),
            vhost: or(decode(path)?, "/"),
            heartbeat,
        })
    }
}

/// The parts of a URL before its hosts, the hosts, and the rest.
fn around_hosts(text: &str) -> Option<(&str, &str, &str)> {
    let start = text.find("://")? + 3;
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |length| start + length);
    let start = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    Some((&text[..start], &text[start..end], &text[end..]))
}

/// The hosts, and what stands behind them, as PostgreSQL's client takes its URLs apart: there a password may hold
/// a slash.
fn hosts_of_postgres(text: &str) -> (&str, &str) {
    let start = text.find('@').map(|at| at + 1).or(text.find("://").map(|start| start + 3));
    let rest = &text[start.unwrap_or_default()..];
    rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))
}

/// What to say of a `target_session_attrs` that is not taken.
#[must_use]
pub fn session_attrs() -> String {
    format!(
        "target_session_attrs is not one of {} (of several hosts the primary is used, whatever it says)",
        SESSION_ATTRS.join(", ")
    )
}

/// The address of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Database {
    /// Without the parameters that PostgreSQL's client doesn't understand.
    pub url: Secret,
    /// When to encrypt.
    pub encryption: Encryption,
    /// How to encrypt.
    pub tls: Tls,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Never.
    Off,
    /// If the server can.
    IfOffered,
    /// Always.
    Required,
}

impl Database {
    /// Reads DATABASE_URL, including libpq's `sslmode` (as defined in "SSL Support" of PostgreSQL's
    /// documentation), `sslrootcert`, `sslcert` and `sslkey`.
    pub(super) fn parse(text: &str, roots: &Roots) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty: needs postgres://user:password@host:5432/database".to_owned());
        }
        // `Url` can't parse a list of hosts. The other form, `host=… password=…`, is left to the client.
        let is_url = ["postgres://", "postgresql://"].iter().any(|start| text.starts_with(start));
        let parts = text.split_once('?').filter(|_| is_url);
        let (place, query) = parts.unwrap_or((text, ""));
        if is_url {
            POSTGRES.is_one(text)?;
            let (hosts, after) = hosts_of_postgres(text);
            // They may also be parameters.
            if !hosts.is_empty() {
                POSTGRES.hosts(hosts, after, 5432)?;
            }
        }
        let mut others = Vec::new();
        let mut files = Files::default();
        let (mut encryption, mut check) = (Encryption::IfOffered, Check::Nothing);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || decode(value).ok_or_else(|| format!("{name} is not UTF-8"));
            match name {
                "target_session_attrs" if !SESSION_ATTRS.contains(&value()?.as_str()) => {
                    return Err(session_attrs());
                }
                "sslmode" => (encryption, check) = read_mode(&value()?)?,
                "sslrootcert" => files.roots = Some(PathBuf::from(value()?)),
                "sslcert" => files.certificate = Some(PathBuf::from(value()?)),
                "sslkey" => files.key = Some(PathBuf::from(value()?)),
                _ => others.push(pair),
            }
        }
        let system = files.roots.as_ref().is_some_and(|file| file.as_os_str() == "system");
        files.roots = files.roots.filter(|_| !system);
        if system && check != Check::Name {
            return Err("sslrootcert=system needs sslmode=verify-full".to_owned());
        }
        if files.roots.is_some() && check == Check::Nothing {
            // As in libpq: a given root certificate is used.
            check = Check::Chain;
        }
        let tls = files.tls(roots, check, "sslcert", "sslkey")?;
        let mut url = place.to_owned();
        if !others.is_empty() {
            url = format!("{place}?{}", others.join("&"));
        }
        Ok(Self { url: Secret::new(url), encryption, tls })
    }
}

fn read_mode(mode: &str) -> Result<(Encryption, Check), String> {
    Ok(match mode {
        "disable" => (Encryption::Off, Check::Nothing),
        // "If the server demands it" is what we offer anyway.
        "allow" | "prefer" => (Encryption::IfOffered, Check::Nothing),
        "require" => (Encryption::Required, Check::Nothing),
        "verify-ca" => (Encryption::Required, Check::Chain),
        "verify-full" => (Encryption::Required, Check::Name),
        _ => {
            return Err("sslmode is not one of disable, allow, prefer, require, verify-ca, \
                        verify-full"
                .to_owned());
        }
    })
}

/// The files that a URL may name.
#[derive(Default)]
struct Files {
    roots: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Files {
    /// `certificate` and `key` are the parameters' names.
    fn tls(self, usual: &Roots, check: Check, certificate: &str, key: &str) -> Result<Tls, String> {
        let roots = match &self.roots {
            Some(file) => Roots::only(file)?,
            None => usual.clone(),
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(Identity::read(certificate, key)?),
            (None, None) => None,
            _ => return Err(format!("{certificate} and {key} go together")),
        };
        Tls::new(roots, check, identity)
    }
}

pub(super) fn decode(part: &str) -> Option<String> {
    percent_decode_str(part).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
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
    fn there_may_be_several_hosts_each_with_its_port() {
        let amqp =
            amqp("amqp://u,s:p,w@a:5673,b,[::1]:5674,10.0.0.1/v,h?heartbeat=7").expect("a URL");
        let hosts = [host("a", 5673), host("b", 5672), host("::1", 5674), host("10.0.0.1", 5672)];
        assert_eq!(amqp.hosts, hosts);
        assert_eq!((amqp.user.as_str(), amqp.vhost.as_str()), ("u,s", "v,h"));
        assert_eq!((amqp.password.expose(), amqp.heartbeat), ("p,w", 7));
        assert_eq!(amqp.to_string(), "a:5673,b:5672,[::1]:5674,10.0.0.1:5672");
    }

    #[test]
    fn what_cannot_be_read_of_a_url_is_told_without_it() {
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
            ("amqp://u:s3cret@a:1,u2:s3cret@b:2/%2f", "once, before the first"),
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
            ("postgres://u:s3cret@a:1,u2:s3cret@b:2/db", "once, before the first"),
            ("postgres://u:p@s3cret@b:x/db", "%40"),
            ("postgres://u:s3cret@a/db,postgres://u:s3cret@b/db", "several URLs"),
            ("postgres://u:s3cret@a/db?target_session_attrs=primary", "any, read-write, read-only"),
        ] {
            let error = database(bad).expect_err(bad);
            assert!(error.contains(says) && !error.contains("s3cret"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_the_database_url_says_of_tls_is_taken_out_of_it() {
        let url =
            "postgres://u:p@a:1,b:2/db?sslmode=verify-full&options=-cx%3Dy&sslrootcert=system";
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
}
