//! The head of an answer: finds its end, reads how long its connection lives, and repairs three mistakes that
//! other clients tolerate.
//!
//! Software in use makes each of these mistakes: a folded header line (old mail and CGI code), white space
//! before a colon, and a line that isn't a header (a PHP warning printed too early). The status above them is
//! still valid. ureq refuses such an answer as a whole, so it gets a repaired head. No other mistakes are
//! repaired.

use std::ops::Range;
use std::time::Duration;

/// Searches for the end of a head that arrives in pieces, without reading any byte twice.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// How many bytes were searched.
    searched: usize,
    /// Where the incomplete line begins.
    line: usize,
    /// Empty lines before the status line don't count.
    has_status: bool,
}

impl Search {
    /// The length of the head at the beginning of these bytes, once it is complete. Each call must pass the bytes
    /// of the last call, and may pass more.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(found) = bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + found + 1;
            let is_empty = matches!(&bytes[self.line..end], b"\n" | b"\r\n");
            (self.searched, self.line) = (end, end);
            if is_empty && self.has_status {
                return Some(end);
            }
            self.has_status |= !is_empty;
        }
        self.searched = bytes.len();
        None
    }
}

/// Whether these bytes are the beginning of an answer, or may become one with more bytes.
pub(super) fn begins_as_http(bytes: &[u8]) -> bool {
    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let start = &bytes[skipped..];
    let known = b"HTTP/1.";
    let compared = start.len().min(known.len());
    start[..compared] == known[..compared]
}

/// The facts in a complete head that concern its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeadFacts {
    /// Whether another answer follows: 1xx, except 101.
    pub(super) is_interim: bool,
    /// `Keep-Alive: timeout=`: how long the connection may be idle before the other side closes it.
    pub(super) idle_limit: Option<Duration>,
    /// `Keep-Alive: max=`: how many more requests the other side will answer.
    pub(super) requests_left: Option<u64>,
    /// Whether [`repair`] has something to repair.
    pub(super) has_mistakes: bool,
}

impl HeadFacts {
    pub(super) fn read(head: &[u8]) -> Self {
        let mut read = Self::default();
        let mut is_status = true;
        for line in lines(head) {
            let text = &head[line];
            if is_status {
                is_status = text.is_empty();
                read.is_interim = is_interim(text);
                continue;
            }
            match header(text) {
                Line::End => {}
                Line::Good { name, value } => {
                    if name.eq_ignore_ascii_case(b"keep-alive") {
                        read.keep_alive(value);
                    }
                }
                Line::Folded | Line::Spaced { .. } | Line::NoHeader => read.has_mistakes = true,
            }
        }
        read
    }

    fn keep_alive(&mut self, value: &[u8]) {
        for parameter in value.split(|byte| *byte == b',') {
            let Some((name, number)) =
                str::from_utf8(parameter).ok().and_then(|text| text.split_once('='))
            else {
                continue;
            };
            // Anything but a number is ignored.
            let Ok(number) = number.trim().parse() else { continue };
            match name.trim() {
                name if name.eq_ignore_ascii_case("timeout") => {
                    self.idle_limit = Some(Duration::from_secs(number));
                }
                name if name.eq_ignore_ascii_case("max") => self.requests_left = Some(number),
                _ => {}
            }
        }
    }
}

/// Repairs a head: joins a folded line with the one above, removes white space before a colon, and omits lines
/// that aren't headers.
pub(super) fn repair(head: &[u8]) -> Vec<u8> {
    let mut repaired = Vec::with_capacity(head.len());
    let mut is_status = true;
    // The continuation of an omitted line is omitted too.
    let mut is_left_out = false;
    for line in lines(head) {
        let text = &head[line];
        if is_status {
            is_status = text.is_empty();
            repaired.extend_from_slice(text);
            repaired.extend_from_slice(b"\r\n");
            continue;
        }
        match header(text) {
            Line::Folded => {
                if !is_left_out {
                    repaired.truncate(repaired.len() - b"\r\n".len());
                    repaired.push(b' ');
                    repaired.extend_from_slice(text.trim_ascii());
                    repaired.extend_from_slice(b"\r\n");
                }
                continue;
            }
            Line::NoHeader => {
                is_left_out = true;
                continue;
            }
            Line::Spaced { name, value } => {
                repaired.extend_from_slice(name);
                repaired.push(b':');
                repaired.extend_from_slice(value);
            }
            Line::Good { .. } | Line::End => repaired.extend_from_slice(text),
        }
        is_left_out = false;
        repaired.extend_from_slice(b"\r\n");
    }
    repaired
}

/// A line after the first.
enum Line<'a> {
    /// The empty line after the last header.
    End,
    Good {
        name: &'a [u8],
        value: &'a [u8],
    },
    Folded,
    Spaced {
        name: &'a [u8],
        value: &'a [u8],
    },
    NoHeader,
}

fn header(line: &[u8]) -> Line<'_> {
    match line.first() {
        None => return Line::End,
        Some(b' ' | b'\t') => return Line::Folded,
        Some(_) => {}
    }
    let name = line.iter().take_while(|byte| is_token(**byte)).count();
    let (name, rest) = line.split_at(name);
    match rest {
        [b':', value @ ..] if !name.is_empty() => Line::Good { name, value },
        rest => match rest.trim_ascii_start() {
            [b':', value @ ..] if !name.is_empty() => Line::Spaced { name, value },
            _ => Line::NoHeader,
        },
    }
}

/// The bytes that a header's name may have (RFC 9110, section 5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

fn is_interim(status_line: &[u8]) -> bool {
    let code = status_line.get(b"HTTP/1.1 ".len()..).unwrap_or_default();
    matches!(code, [b'1', _, _, ..]) && !code.starts_with(b"101")
}

/// The status line of a complete head.
pub(super) fn status_line(head: &[u8]) -> &[u8] {
    lines(head).map(|line| &head[line]).find(|line| !line.is_empty()).unwrap_or_default()
}

/// The lines of a head, without their line ends.
fn lines(head: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let length = head[next..].iter().position(|byte| *byte == b'\n')?;
        let (start, end) = (next, next + length);
        next = end + 1;
        let end = if head[start..end].ends_with(b"\r") { end - 1 } else { end };
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_ends_with_the_first_empty_line_after_its_status() {
        for (text, end) in [
            ("HTTP/1.1 200 OK\r\n\r\nbody", Some(19)),
            ("HTTP/1.1 200 OK\n\nbody", Some(17)),
            ("HTTP/1.1 200 OK\na: b\n\r\nbody", Some(23)),
            ("\r\n\nHTTP/1.1 200 OK\r\n\r\n", Some(22)),
            ("HTTP/1.1 200 OK\r\na: b\r\n \r\n", None),
            ("\r\n\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(Search::default().end(text.as_bytes()), end, "{text:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_answer_are_recognized_by_the_first_of_them() {
        for good in ["", "H", "\r\nHTTP/", "HTTP/1.1 200", "HTTP/1.0 200 OK\r\n\r\n"] {
            assert!(begins_as_http(good.as_bytes()), "{good:?}");
        }
        for bad in ["SSH-2.0-x", "HTTP/2 200", "\x15\x03\x01\0\x02", "<html>", "http/1.1"] {
            assert!(!begins_as_http(bad.as_bytes()), "{bad:?}");
        }
    }

    #[track_caller]
    fn check(headers: &str, repaired: &str) {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        assert!(HeadFacts::read(head.as_bytes()).has_mistakes, "{head:?}");
        let repaired = format!("HTTP/1.1 200 OK\r\n{repaired}\r\n");
        assert_eq!(String::from_utf8_lossy(&repair(head.as_bytes())), repaired);
        assert!(!HeadFacts::read(repaired.as_bytes()).has_mistakes, "{repaired:?}");
    }

    #[test]
    fn three_mistakes_are_repaired_and_the_rest_stays() {
        check("a: b\r\n\t c\r\n d\r\ne: f\r\n", "a: b c d\r\ne: f\r\n");
        check("a: b\r\n \r\nc: d\r\n", "a: b \r\nc: d\r\n");
        check("a : b\r\nc \t:d\r\n", "a: b\r\nc:d\r\n");
        check("a: b\r\nno header\r\nc: d\r\n", "a: b\r\nc: d\r\n");
        check("PHP Warning:  x in /y.php on line 3\r\na: b\r\n", "a: b\r\n");
        check("<b>Notice</b>: x\n  of two lines\na: b\n", "a: b\r\n");
        check(": b\r\n", "");
        let head = "HTTP/1.1 200 OK\r\n folded\r\na: b\r\n\r\n";
        assert_eq!(repair(head.as_bytes()), b"HTTP/1.1 200 OK folded\r\na: b\r\n\r\n");
    }

    #[test]
    fn keep_alive_is_read_and_nonsense_in_it_is_ignored() {
        let read = |value: &str| {
            let head = format!("HTTP/1.1 200 OK\r\nX: 1\r\nKEEP-alive:{value}\r\n\r\n");
            let head = HeadFacts::read(head.as_bytes());
            assert!(!head.has_mistakes && !head.is_interim);
            (head.idle_limit.map(|limit| limit.as_secs()), head.requests_left)
        };
        assert_eq!(read("timeout=5, max=100"), (Some(5), Some(100)));
        assert_eq!(read(" Timeout = 72"), (Some(72), None));
        assert_eq!(read("max=0,timeout=0"), (Some(0), Some(0)));
        for nonsense in ["", "5", "timeout", "timeout=-1", "timeout=soon;max=1", "\u{fe}=1"] {
            assert_eq!(read(nonsense), (None, None), "{nonsense:?}");
        }
    }

    #[test]
    fn an_interim_head_is_known_by_its_status() {
        for (line, is_interim) in [
            ("HTTP/1.1 100 Continue", true),
            ("HTTP/1.1 103", true),
            ("HTTP/1.1 101 Switching Protocols", false),
            ("HTTP/1.1 200 OK", false),
            ("HTTP/1.1 1", false),
        ] {
            let head = format!("{line}\r\n\r\n");
            assert_eq!(HeadFacts::read(head.as_bytes()).is_interim, is_interim, "{line}");
        }
    }

    proptest! {
        /// However it is cut, and whatever it is.
        #[test]
        fn the_end_is_the_same_for_every_way_to_cut_it(
            head in "(HTTP/1.1 200 OK\r?\n)?([a-c :\t]{0,5}\r?\n){0,5}", cuts in prop::collection::vec(0_usize..40, 0..5),
        ) {
            let whole = Search::default().end(head.as_bytes());
            let mut search = Search::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(head.len())).collect();
            cuts.sort_unstable();
            cuts.push(head.len());
            let found = cuts.into_iter().find_map(|cut| search.end(&head.as_bytes()[..cut]));
            prop_assert_eq!(found, whole);
            if let Some(end) = whole {
                let repaired = repair(&head.as_bytes()[..end]);
                prop_assert!(!HeadFacts::read(&repaired).has_mistakes);
                prop_assert_eq!(Search::default().end(&repaired), Some(repaired.len()));
            }
        }
    }
}
