//! The head of a request. Its method and path are kept; the rest is checked and dropped.
//!
//! httparse parses it. This module limits its size, and decides which host names may request which paths.

use httparse::{EMPTY_HEADER, Error, Request};

use super::hosts::Hosts;

/// The longest head, in bytes. Browsers and proxies send 2 or 3 KiB; other servers allow 8 KiB, too.
pub(super) const MOST_BYTES: usize = 8 * 1024;

/// The longest first line, in bytes. Usual ones have 30, or 750 with the sixty characters that a search on the page
/// may have. Longer ones are refused, because each may have to wait in memory.
const MOST_OF_LINE: usize = 1024;

/// The most headers. A browser behind a proxy sends about 30; other servers allow 100, too.
pub(super) const MOST_HEADERS: usize = 100;

/// A client's request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageRequest {
    method: String,
    target: String,
}

/// Why a request isn't sent to tiny_http.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadRequest {
    Malformed,
    TooLarge,
    /// Its host is not one of our names.
    Misdirected,
}

impl PageRequest {
    /// Parses what a client has sent so far; `None` while the head is incomplete. An invalid first line is refused
    /// at once, since the end of the head might never come.
    pub(super) fn read(received: &[u8], hosts: &Hosts) -> Result<Option<Self>, BadRequest> {
        let seen = &received[..received.len().min(MOST_BYTES)];
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut head = Request::new(&mut headers);
        let parsed = head.parse(seen).map_err(|error| match error {
            Error::TooManyHeaders => BadRequest::TooLarge,
            _ => BadRequest::Malformed,
        })?;
        // httparse accepts any UTF-8 in the target, which is `None` until it is complete.
        if head.path.is_some_and(|target| !target.is_ascii()) {
            return Err(BadRequest::Malformed);
        }
        // Empty lines before the request line are ignored (RFC 9112, 2.2).
        let first = seen.trim_ascii_start().split(|byte| *byte == b'\n').next();
        if first.is_some_and(|line| line.len() > MOST_OF_LINE) {
            return Err(BadRequest::TooLarge);
        }
        if parsed.is_partial() {
            return if seen.len() < MOST_BYTES { Ok(None) } else { Err(BadRequest::TooLarge) };
        }
        let (method, target) = head.method.zip(head.path).ok_or(BadRequest::Malformed)?;
        let (authority, target) = parts_of(target);
        let mut named = head.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("host"));
        // A host that isn't text counts as empty.
        let host = named.next().map(|it| str::from_utf8(it.value).unwrap_or_default().trim());
        // A request has at most one host (RFC 9112, 3.2).
        if named.next().is_some() {
            return Err(BadRequest::Malformed);
        }
        // A request without a host isn't from a browser: browsers send one even with HTTP/1.0.
        match authority.or(host) {
            Some(host) if !hosts.may_request(host, target) => Err(BadRequest::Misdirected),
            _ => Ok(Some(Self { method: method.to_owned(), target: target.to_owned() })),
        }
    }

    /// Whether the answer has no body, whatever its content-length.
    pub(super) fn wants_head_only(&self) -> bool {
        self.method == "HEAD"
    }

    /// The request for tiny_http, without the client's headers and body.
    pub(super) fn rewritten(&self) -> String {
        format!("{} {} HTTP/1.1\r\n\r\n", self.method, self.target)
    }
}

/// The host and the path of an absolute target, which a server must accept (RFC 9112, 3.2.2). Any other
/// target is returned unchanged, without a host.
fn parts_of(target: &str) -> (Option<&str>, &str) {
    match target.strip_prefix("http://") {
        Some(rest) => match rest.find('/') {
            Some(slash) => (Some(&rest[..slash]), &rest[slash..]),
            None => (Some(rest), "/"),
        },
        None => (None, target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(received: &[u8]) -> Result<Option<PageRequest>, BadRequest> {
        PageRequest::read(received, &Hosts::new(&[], "x"))
    }

    #[track_caller]
    fn check(head: &str, expected: &str) {
        let request = read(head.as_bytes()).expect("not refused").expect("a whole head");
        assert_eq!(request.rewritten(), format!("{expected} HTTP/1.1\r\n\r\n"));
        // However little of it has arrived, it is neither refused nor complete before its end.
        let end = head.find("\r\n\r\n").map_or(head.len(), |at| at + 4);
        for length in 0..end {
            assert_eq!(read(&head.as_bytes()[..length]), Ok(None), "{length} bytes");
        }
    }

    #[track_caller]
    fn refused(head: &str, refusal: BadRequest) {
        assert_eq!(read(head.as_bytes()), Err(refusal), "{head:?}");
    }

    #[test]
    fn method_and_path_of_a_request_are_kept() {
        check("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: */*\r\n\r\n", "GET /metrics");
        check("HEAD /healthz?a=b HTTP/1.0\r\n\r\n", "HEAD /healthz?a=b");
        check("GET /readyz HTTP/1.0\n\n", "GET /readyz");
        check("\r\n\r\nGET / HTTP/1.1\r\n\r\n", "GET /");
        check("OPTIONS * HTTP/1.1\r\nhost:\r\n\r\n", "OPTIONS *");
        check("GET http://x:9090/metrics HTTP/1.1\r\n\r\n", "GET /metrics");
        check("GET http://x HTTP/1.1\r\n\r\n", "GET /");
        check("CONNECT x:443 HTTP/1.1\r\n\r\n", "CONNECT x:443");
    }

    #[test]
    fn bytes_after_the_head_are_ignored() {
        check("POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nGET /metr", "POST /");
        check("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "GET /a");
    }

    #[test]
    fn an_invalid_first_line_is_refused_at_once() {
        let wrong = [
            "GET\r\n",
            "GET /metrics\r\n",
            "GET  /metrics HTTP/1.1\r\n",
            "GET /metrics HTTP/1.1 \r\n",
            "GET /metrics HTTP/0.9\r\n",
            "PRI * HTTP/2.0\r\n",
            "G<T /metrics HTTP/1.1\r\n",
            "GET /\0 HTTP",
            "GET /\u{e9} HTTP/1.1\r\n",
            "GET /metrics\rX: y HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
        ];
        for line in wrong {
            refused(line, BadRequest::Malformed);
        }
    }

    #[test]
    fn the_page_is_refused_to_requests_with_another_host() {
        check("GET / HTTP/1.1\r\nHost: x:9090\r\n\r\n", "GET /");
        check("GET http://x/status.json HTTP/1.1\r\nhost: evil\r\n\r\n", "GET /status.json");
        check("GET /metrics HTTP/1.1\r\nhost: evil\r\n\r\n", "GET /metrics");
        for head in [
            "GET / HTTP/1.1\r\nhost: evil:9090\r\n\r\n",
            "GET /status.json?a HTTP/1.1\r\nHOST:evil\r\n\r\n",
            "GET http://evil HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        ] {
            refused(head, BadRequest::Misdirected);
        }
        refused("GET / HTTP/1.1\r\nhost: x\r\nhost: evil\r\n\r\n", BadRequest::Malformed);
    }

    #[test]
    fn an_invalid_header_is_refused() {
        for line in ["nothing", ": x", "a b: c", " folded: x", "a: \0", "a: b\rc: d"] {
            refused(&format!("GET / HTTP/1.1\r\n{line}\r\n"), BadRequest::Malformed);
        }
    }

    #[test]
    fn a_head_without_an_end_is_too_large_at_its_limit() {
        let line = "GET / HTTP/1.1\r\n";
        let header = |length: usize| format!("{line}a:{}\r\n\r\n", "x".repeat(length));
        let most = MOST_BYTES - header(0).len();
        assert!(read(header(most).as_bytes()).is_ok_and(|request| request.is_some()));
        refused(&header(most + 1), BadRequest::TooLarge);
        refused(&"A".repeat(MOST_OF_LINE + 1), BadRequest::TooLarge);
        refused(&"\r\n".repeat(MOST_BYTES / 2), BadRequest::TooLarge);
        refused(&format!("\n{}", "A".repeat(MOST_OF_LINE + 1)), BadRequest::TooLarge);
        let target = "x".repeat(MOST_OF_LINE);
        refused(&format!("GET /{target} HTTP/1.1\r\n\r\n"), BadRequest::TooLarge);
    }

    #[test]
    fn a_head_with_too_many_headers_is_too_large() {
        let head = |headers: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(headers));
        check(&head(MOST_HEADERS), "GET /");
        refused(&head(MOST_HEADERS + 1), BadRequest::TooLarge);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_rewritten_request_has_two_lines_whatever_was_received(
            bytes in "(GET|P[ -~]{0,3}) [ -~]{0,9} HTTP/1[.][01]\r?\n([a-c:\r\t ]{0,5}\r?\n){0,4}"
        ) {
            if let Ok(Some(request)) = read(bytes.as_bytes()) {
                let rewritten = request.rewritten();
                prop_assert_eq!(rewritten.matches('\n').count(), 2);
                prop_assert_eq!(rewritten.matches(' ').count(), 2);
            }
        }
    }
}
