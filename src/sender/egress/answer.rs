//! The answer of a proxy to CONNECT, and its meaning.

/// The head of an answer to CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConnectHead {
    /// `None` if it isn't an HTTP/1 answer.
    status: Option<u16>,
    /// Whether it asks for credentials, or rejects ours.
    is_challenge: bool,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// The meaning of an answer to CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProxyVerdict {
    /// The tunnel is open: all following bytes come from the target.
    Through,
    /// The proxy would answer every request like this: why.
    Away(String),
    /// The proxy doesn't connect to this target: the status, and a hint.
    Refused(u16, &'static str),
}

impl ConnectHead {
    /// `None` while it is incomplete.
    pub(super) fn read(input: &[u8]) -> Option<Self> {
        let ends = [&b"\r\n\r\n"[..], b"\n\n"].into_iter().filter_map(|end| {
            let at = input.windows(end.len()).position(|window| window == end)?;
            Some(at + end.len())
        });
        let length = match ends.min() {
            Some(length) => length,
            // Incomplete, but not HTTP/1 either.
            None if input.iter().zip(b"HTTP/1.").any(|(is, has)| is != has) => input.len(),
            None => return None,
        };
        let text = String::from_utf8_lossy(&input[..length]);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| {
            let status = rest.split(' ').find(|part| part.len() == 3)?;
            status.parse().ok().filter(|status| (100..600).contains(status))
        });
        let is_challenge =
            lines.any(|line| line.to_ascii_lowercase().starts_with("proxy-authenticate:"));
        Some(Self { status, is_challenge, length })
    }

    pub(super) fn verdict(&self) -> ProxyVerdict {
        let Some(status) = self.status else {
            return ProxyVerdict::Away("does not answer in HTTP".to_owned());
        };
        match status {
            200..300 => ProxyVerdict::Through,
            // (Filters such as Smokescreen answer 407 without a challenge if they deny an address. Tinyproxy
            // answers 401 to a wrong password, and 500 if it can't connect.)
            401 | 407 if self.is_challenge || status == 401 => {
                let problem = "requires other credentials than those of EGRESS_PROXY";
                ProxyVerdict::Away(format!("{problem} (status {status})"))
            }
            0..200 | 300..400 | 400 | 405 | 501 => {
                let problem =
                    format!("does not accept CONNECT (status {status}): is it an HTTP proxy?");
                ProxyVerdict::Away(problem)
            }
            403 | 407 => ProxyVerdict::Refused(status, ": its rules do not allow it"),
            500..600 => ProxyVerdict::Refused(status, ": it cannot connect there"),
            _ => ProxyVerdict::Refused(status, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(answer: &str) -> ProxyVerdict {
        ConnectHead::read(answer.as_bytes()).expect("it has come to its end").verdict()
    }

    #[test]
    fn an_answer_opens_the_tunnel_or_refuses_this_target_or_all() {
        let away = |answer: &str| matches!(verdict(answer), ProxyVerdict::Away(_));
        for through in
            ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200\n\n", "HTTP/1.1  204 x\r\na: b\r\n\r\n"]
        {
            assert_eq!(verdict(through), ProxyVerdict::Through, "{through:?}");
        }
        for status in [403, 404, 407, 429, 500, 502, 503, 504] {
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 2\r\n\r\nno");
            assert!(
                matches!(verdict(&answer), ProxyVerdict::Refused(it, _) if it == status),
                "{status}"
            );
        }
        for status in [100, 301, 400, 401, 405, 501] {
            assert!(away(&format!("HTTP/1.1 {status} No\r\n\r\n")), "{status}");
        }
        assert!(away("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n"));
        assert!(away("SSH-2.0-OpenSSH_9.2\r\n"));
        assert!(away("HTTP/2 200\r\n\r\n"));
        assert!(away("HTTP/1.1 abc\r\n\r\n"));
    }

    #[test]
    fn a_head_is_read_once_it_is_complete_and_without_the_bytes_behind_it() {
        let answer = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nfirst words of the target";
        let length = answer.len() - b"first words of the target".len();
        for cut in 0..length {
            assert_eq!(ConnectHead::read(&answer[..cut]), None, "{cut}");
        }
        let whole = ConnectHead { status: Some(200), is_challenge: false, length };
        assert_eq!(ConnectHead::read(answer), Some(whole));
    }

    proptest! {
        #[test]
        fn any_answer_of_a_proxy_has_a_verdict(answer in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Some(head) = ConnectHead::read(&answer) {
                prop_assert!(head.length <= answer.len());
                let _ = head.verdict();
            }
        }
    }
}
