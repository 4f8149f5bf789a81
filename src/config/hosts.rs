//! The hosts of a URL: one, or a list of them as in libpq's.

use std::net::Ipv6Addr;

use super::servers::Host;

/// How many characters of an invalid host name an error shows.
const MOST_OF_NAME: usize = 60;

/// A kind of URL that may have several hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// The schemes of such URLs.
    pub(super) starts: [&'static str; 2],
    /// An example with two hosts, for messages.
    pub(super) example: &'static str,
}

impl Form {
    /// Checks that the text is not a list of URLs.
    ///
    /// # Errors
    /// If it is: how to write several hosts instead.
    pub(super) fn check_single(self, text: &str) -> Result<(), String> {
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        match self.starts.iter().any(|start| rest.contains(start)) {
            true => Err(format!(
                "contains several URLs: one URL names all hosts, as in {}",
                self.example
            )),
            false => Ok(()),
        }
    }

    /// Reads a list of hosts. `after` is the rest of the URL.
    ///
    /// # Errors
    /// Which host is wrong, and why; without any text that may belong to a password.
    pub(super) fn hosts(self, list: &str, after: &str, port: u16) -> Result<Vec<Host>, String> {
        let count = list.split(',').count();
        let read = |(text, number): (&str, usize)| {
            read(text, port).map_err(|problem| {
                if list.contains('@') || after.contains('@') {
                    // The text may belong to a password with a bare special character.
                    return self.unescaped();
                }
                let name = text.trim().split([':', ';', ' ']).next().unwrap_or_default();
                let name = if text.starts_with('[') { text } else { name };
                let name: String = name.chars().take(MOST_OF_NAME).collect();
                let which = match (count, name.as_str()) {
                    (1, "") => "its host".to_owned(),
                    (1, name) => format!("its host {name:?}"),
                    (_, "") => format!("host {number} of its {count}"),
                    (_, name) => format!("host {number} of its {count}, {name:?},"),
                };
                format!("{which} {problem}; several are written as in {}", self.example)
            })
        };
        list.split(',').zip(1..).map(read).collect()
    }

    /// The error about a URL with an `@` in the wrong place.
    pub(super) fn unescaped(self) -> String {
        format!(
            "can't be parsed: in a user or password, @ is written %40, / %2f, ? %3f and # %23; with several \
             hosts, user and password stand once, before the first host, as in {}",
            self.example
        )
    }
}

fn read(text: &str, default_port: u16) -> Result<Host, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.contains(|sign: char| sign.is_whitespace() || sign == ';') {
        return Err("has a space or a semicolon: separate hosts by commas only");
    }
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or("has no `]` after its address")?;
            let address = name.split_once('%').map_or(name, |(address, _)| address);
            if address.parse::<Ipv6Addr>().is_err() {
                return Err("has no IPv6 address in its brackets");
            }
            let port = if rest.is_empty() { Some("") } else { rest.strip_prefix(':') };
            (name, port.ok_or("has something other than a port after its `]`")?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if port.contains(':') {
        return Err(
            "has several colons: an IPv6 address is written in brackets, such as [::1]:1234",
        );
    }
    if name.is_empty() {
        return Err("has no name");
    }
    let is_odd = |sign: char| sign.is_control() || r#"<>\^|"[]@"#.contains(sign);
    if name.contains(is_odd) {
        return Err("is neither a name nor an address");
    }
    let port = match port {
        "" => default_port,
        port => {
            let port = port.parse().ok().filter(|port| *port > 0);
            port.ok_or("has a port that is not a number from 1 to 65535")?
        }
    };
    Ok(Host { name: name.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_host_and_what_is_wrong_with_it() {
        let form = Form { starts: ["x://", "y://"], example: "x://a,b" };
        let says = |list: &str| form.hosts(list, "/v", 1).expect_err(list);
        for (list, expected) in [
            ("a:1,b,,c", "host 3 of its 4 is empty"),
            ("127.0.0.1:27399,,", "host 2 of its 3 is empty"),
            ("", "its host is empty"),
            ("a,bb:99999", "host 2 of its 2, \"bb\", has a port"),
            ("a:0", "its host \"a\" has a port"),
            ("a:s3cret", "its host \"a\" has a port"),
            ("a,[::1:5", "host 2 of its 2, \"[::1:5\", has no `]`"),
            ("[a]:5", "its host \"[a]:5\" has no IPv6 address"),
            ("[::1]5", "something other than a port"),
            ("::1:5", "brackets"),
            ("a:1, b:2", "host 2 of its 2, \"b\", has a space"),
            ("a:1;b:2", "its host \"a\" has a space or a semicolon"),
            (":5", "its host has no name"),
            ("a|b", "neither a name nor an address"),
        ] {
            let said = says(list);
            assert!(said.contains(expected) && said.contains("x://a,b"), "{list}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
        let said = form.hosts("u:s3cret", "/x@host", 1).expect_err("of a password");
        assert!(said.contains("%2f") && !said.contains("s3cret"), "{said}");
    }

    #[test]
    fn a_host_without_a_port_gets_the_default_port() {
        let form = Form { starts: ["x://", "y://"], example: "" };
        let hosts = form.hosts("a:5,b,c:,[::1]:6,[fe80::1%eth0],my_host.", "", 1).expect("a list");
        let told: Vec<String> = hosts.iter().map(Host::to_string).collect();
        assert_eq!(told, ["a:5", "b:1", "c:1", "[::1]:6", "[fe80::1%eth0]:1", "my_host.:1"]);
    }
}
