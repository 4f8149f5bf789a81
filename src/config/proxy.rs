//! The proxy for requests to receivers.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::Url;

use super::servers::decode;
use crate::domain::secret::Secret;

/// The longest user name and password together. The request to the proxy has to fit in a buffer.
const MOST_OF_CREDENTIALS: usize = 1_024;

/// An HTTP proxy that supports CONNECT. Displays without user name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The header `Proxy-Authorization`, if credentials are given.
    pub authorization: Option<Secret>,
}

impl fmt::Display for EgressProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

impl EgressProxy {
    /// Reads EGRESS_PROXY; `None` if it is empty. Errors never quote the value: it may contain a
    /// password.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let usage = || "is not a URL such as http://host:3128".to_owned();
        let url = Url::parse(text).map_err(|_| usage())?;
        if url.scheme() == "https" {
            let why = "needs http://: the connection to the proxy has no TLS; requests to https \
                       receivers are encrypted end to end";
            return Err(why.to_owned());
        }
        if url.scheme() != "http" || url.query().is_some() || url.fragment().is_some() {
            return Err(usage());
        }
        if url.path() != "/" {
            return Err("has a path, which a proxy's URL can't have: http://host:3128".to_owned());
        }
        // The default port of such a URL would be 80, which proxies hardly ever use.
        let authority = text.split("//").nth(1).unwrap_or_default().trim_end_matches('/');
        let has_port = authority.rsplit(':').next().is_some_and(|it| it.parse::<u16>().is_ok());
        let port = url.port_or_known_default().filter(|port| has_port && *port > 0);
        let port = port.ok_or_else(|| "has no port: http://host:3128".to_owned())?;
        let host = url.host_str().map(|host| host.trim_matches(['[', ']'])).unwrap_or_default();
        let part = |part: &str| decode(part).ok_or_else(usage);
        let (user, password) = (part(url.username())?, part(url.password().unwrap_or_default())?);
        if user.contains(':') {
            return Err("the user name has a colon, which would end it".to_owned());
        }
        if user.len() + password.len() > MOST_OF_CREDENTIALS {
            return Err(format!("user name and password have over {MOST_OF_CREDENTIALS} bytes"));
        }
        let is_known = !user.is_empty() || url.password().is_some();
        // RFC 7617.
        let authorization = is_known.then(|| {
            let credentials = BASE64.encode(format!("{user}:{password}"));
            Secret::new(format!("Basic {credentials}"))
        });
        Ok(Some(Self { host: host.to_owned(), port, authorization }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_has_a_host_a_port_and_perhaps_credentials_that_are_not_shown() {
        let read = |text: &str| EgressProxy::parse(text).expect("a URL");
        assert_eq!(read(""), None);
        for (text, shown, authorization) in [
            ("http://proxy.test:3128", "proxy.test:3128", None),
            ("http://proxy.test:80/", "proxy.test:80", None),
            ("http://[fd00::1]:3128/", "[fd00::1]:3128", None),
            ("http://u%40er:p%3Aw@10.0.0.1:3128", "10.0.0.1:3128", Some("Basic dUBlcjpwOnc=")),
            ("http://user@10.0.0.1:3128", "10.0.0.1:3128", Some("Basic dXNlcjo=")),
        ] {
            let proxy = read(text).expect("a proxy");
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(proxy.authorization.as_ref().map(Secret::expose), authorization);
            assert!(!format!("{proxy:?}").contains("dUBlcj"), "{proxy:?}");
        }
    }

    #[test]
    fn an_error_about_a_proxy_does_not_quote_its_password() {
        for (bad, says) in [
            ("s3cret", "is not a URL"),
            ("socks5://s3cret@proxy.test:1080", "is not a URL"),
            ("https://u:s3cret@proxy.test:3128", "needs http://"),
            ("http://u:s3cret@proxy.test", "has no port"),
            ("http://u:s3cret@[fd00::1]", "has no port"),
            ("http://u:s3cret@proxy.test:0", "has no port"),
            ("http://u:s3cret@proxy.test:99999", "is not a URL"),
            ("http://u:s3cret@proxy.test:3128/path", "has a path"),
            ("http://proxy.test:3128/?s3cret", "is not a URL"),
            ("http://a%3Ab:s3cret@proxy.test:3128", "colon"),
            ("http://", "is not a URL"),
        ] {
            let error = EgressProxy::parse(bad).expect_err(bad);
            assert!(error.contains(says) && !error.contains("s3cret"), "{bad}: {error}");
        }
    }
}
