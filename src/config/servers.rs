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

/// The supported values of `target_session_attrs`; libpq has more.
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
        AMQP.check_single(text)?;
        let (before, hosts, after) = around_hosts(text).ok_or_else(usage)?;
        if before.split_once('@').is_some_and(|(_, more)| more.contains(',')) {
            // Otherwise a host would become a part of the password.
            return Err(AMQP.unescaped());
        }
        // `Url` can't parse a list of hosts.
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

/// The hosts and the rest of the URL, split as PostgreSQL's client does it: a password may contain a slash.
fn hosts_of_postgres(text: &str) -> (&str, &str) {
    let start = text.find('@').map(|at| at + 1).or(text.find("://").map(|start| start + 3));
    let rest = &text[start.unwrap_or_default()..];
    rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))
}

/// The error about an unsupported `target_session_attrs`.
#[must_use]
pub fn session_attrs() -> String {
    format!(
        "target_session_attrs is not one of {} (of several hosts, the primary is always used)",
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
            POSTGRES.check_single(text)?;
            let (hosts, after) = hosts_of_postgres(text);
            // They may be given as parameters instead.
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
            // As in libpq, the server's certificate is then checked against the given root.
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
        // `allow` encrypts if the server demands it, and `prefer` if it can, which includes that.
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
mod tests;
