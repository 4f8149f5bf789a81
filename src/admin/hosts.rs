//! The host names that the status page answers to.
//!
//! An attacker's page that is open in an operator's browser can point its own host name at our address, and then
//! read our answers as its own ("DNS rebinding"). The browser sends that name as `Host`. So the page answers only
//! to names that an attacker can't control: an address, `localhost`, the machine's own name, or one of
//! METRICS_HOSTS.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The answer to a request with another host.
pub(super) const REMEDY: &str = "the status page answers to an address, localhost, the name of its machine, \
     and the names in METRICS_HOSTS";

/// The paths that answer only to our names: the page and its data.
const FOR_BROWSERS: [&str; 2] = ["/", "/status.json"];

/// Our names, in lower case.
#[derive(Clone, Debug)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// The names of METRICS_HOSTS, `localhost`, and the machine's own name, with its domain and without.
    pub(super) fn new(given: &[String], machine: &str) -> Self {
        let first = machine.split('.').next().unwrap_or_default();
        let own = ["localhost", machine, first].map(str::to_owned);
        let all = own.into_iter().chain(given.iter().cloned());
        Self(all.filter(|name| !name.is_empty()).map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request with this `Host` (RFC 9110, 7.2) may have this target.
    pub(super) fn may_request(&self, host: &str, target: &str) -> bool {
        let path = target.split('?').next().unwrap_or_default();
        !FOR_BROWSERS.contains(&path) || self.includes(host)
    }

    fn includes(&self, host: &str) -> bool {
        if let Some(rest) = host.strip_prefix('[') {
            return rest.split_once(']').is_some_and(|(ip, port)| {
                ip.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':'))
            });
        }
        let name = host.split(':').next().unwrap_or_default();
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        name.parse::<Ipv4Addr>().is_ok() || self.0.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_answers_only_to_names_that_an_attacker_cannot_control() {
        let hosts = Hosts::new(&["Hooks.example.com".to_owned()], "vm-1.internal");
        let own = [
            "127.0.0.1",
            "10.1.2.3:9090",
            "[::1]",
            "[fe80::1]:9090",
            "localhost",
            "LocalHost:9090",
            "vm-1",
            "VM-1.internal:80",
            "hooks.example.com.:9090",
        ];
        for host in own {
            assert!(
                hosts.may_request(host, "/") && hosts.may_request(host, "/status.json?x"),
                "{host}"
            );
        }
        let strange = [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "vm-1.evil.example",
            "[::1].evil.example",
            "[evil.example]",
            "1.2.3",
            "::1",
        ];
        for host in strange {
            assert!(
                !hosts.may_request(host, "/") && !hosts.may_request(host, "/status.json"),
                "{host}"
            );
            assert!(
                hosts.may_request(host, "/metrics") && hosts.may_request(host, "/readyz"),
                "{host}"
            );
        }
        assert!(
            !Hosts::new(&[], "").may_request("", "/"),
            "an empty name of the machine is no name"
        );
    }
}
