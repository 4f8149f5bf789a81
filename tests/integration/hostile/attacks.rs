//! What hostile receivers do, and how an attempt must end then.

use std::time::Duration;

use crate::harness::{Reply, Then};

/// A receiver's behaviour, and how an attempt must end.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) reply: Reply,
    /// The allowed outcomes: reasons of a failure, or "delivered".
    pub(super) outcomes: &'static [&'static str],
}

const DELIVERED: &[&str] = &["delivered"];
const PROTOCOL: &[&str] = &["protocol"];
pub(super) const TIMEOUT: &[&str] = &["timeout"];
const RESET: &[&str] = &["reset"];

pub(super) fn raw(bytes: impl AsRef<[u8]>, then: Then) -> Reply {
    Reply::Raw(bytes.as_ref().to_vec(), then)
}

/// Sends these bytes again and again, as fast as the other side reads.
fn flood(bytes: impl AsRef<[u8]>) -> Then {
    Then::Repeat(Duration::ZERO, bytes.as_ref().to_vec())
}

/// Sends these bytes again and again, slowly.
fn drip(bytes: impl AsRef<[u8]>) -> Then {
    Then::Repeat(Duration::from_millis(50), bytes.as_ref().to_vec())
}

/// Status 200 with these header lines.
pub(super) fn ok(headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n")
}

/// Ten megabytes of zeros in 64 KiB: one block of fixed Huffman codes, which repeats a zero in runs of
/// 258.
fn gzip_bomb() -> Vec<u8> {
    let (last_fixed_block, zero, run, end) = ("110", "00110000", "1100010100000", "0000000");
    let bits = [last_fixed_block, zero, &run.repeat(40_000), end].concat();
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
    bomb.extend(bits.as_bytes().chunks(8).map(byte));
    let head = ok(&format!("content-encoding: gzip\r\ncontent-length: {}\r\n", bomb.len()));
    [head.into_bytes(), bomb].concat()
}

pub(super) fn attacks() -> Vec<Attack> {
    let chunked = ok("transfer-encoding: chunked\r\n");
    let long = ok("content-length: 1000000\r\n");
    let headers = |count: usize| "x-filler: abcdefgh\r\n".repeat(count);
    let header = |bytes: usize| format!("x-filler: {}\r\n", "a".repeat(bytes));
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let table = [
        // Interim responses.
        ("100 without end", raw("", flood("HTTP/1.1 100 Continue\r\n\r\n".repeat(99))), PROTOCOL),
        ("103 without end", raw("", flood(early.repeat(99))), PROTOCOL),
        ("102, one by one", raw("", drip("HTTP/1.1 102 Processing\r\n\r\n")), TIMEOUT),
        ("100 with headers", raw("HTTP/1.1 100 C\r\na: b\r\n\r\n", Then::Stay), PROTOCOL),
        ("101", raw("HTTP/1.1 101 Upgrade\r\nupgrade: x\r\n\r\n", Then::Stay), &["status_1xx"][..]),
        (
            "103, then 200",
            raw([early, &ok("content-length: 0\r\n")].concat(), Then::Stay),
            DELIVERED,
        ),
        // The head.
        ("head in drops", raw("HTTP/1.1 200 OK\r\nx: ", drip("x")), TIMEOUT),
        ("head of empty lines", raw("", flood("\r\n".repeat(999))), PROTOCOL),
        ("head without end", raw("HTTP/1.1 200 OK\r\n", flood("a: b\r\n".repeat(999))), PROTOCOL),
        ("10,000 headers", raw(ok(&headers(10_000)), Then::Stay), PROTOCOL),
        ("header of 1 MiB", raw(ok(&header(1 << 20)), Then::Stay), PROTOCOL),
        (
            "header of 15 KiB",
            raw(ok(&(header(15 << 10) + "content-length: 0\r\n")), Then::Stay),
            DELIVERED,
        ),
        ("NUL in a header", raw(ok("a: \0\r\n"), Then::Stay), PROTOCOL),
        ("no HTTP", raw([0xff; 300], Then::Close), PROTOCOL),
        ("HTTP/0.9", raw("<html>200 OK</html>\r\n", Then::Close), PROTOCOL),
        ("HTTP/3.0", raw("HTTP/3.0 200 OK\r\n\r\n", Then::Stay), PROTOCOL),
        ("HTTP/2", raw("\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", Then::Close), PROTOCOL),
        ("status 000", raw("HTTP/1.1 000 X\r\n\r\n", Then::Stay), PROTOCOL),
        (
            "status 999",
            raw("HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", Then::Stay),
            &["status_5xx"],
        ),
        ("status 9999", raw("HTTP/1.1 9999 X\r\n\r\n", Then::Stay), PROTOCOL),
        ("status -200", raw("HTTP/1.1 -200 X\r\n\r\n", Then::Stay), PROTOCOL),
        (
            "two lengths",
            raw(ok("content-length: 1\r\ncontent-length: 2\r\n"), Then::Stay),
            PROTOCOL,
        ),
        ("length -1", raw(ok("content-length: -1\r\n"), Then::Stay), PROTOCOL),
        ("length 2^64", raw(ok("content-length: 18446744073709551616\r\n"), Then::Stay), PROTOCOL),
        (
            "redirect",
            raw("HTTP/1.1 302 F\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", Then::Stay),
            &["status_3xx"],
        ),
        // The body: the outcome depends only on the status before it.
        ("body in drops", raw(&long, drip("x")), DELIVERED),
        ("body without end", Reply::Endless, DELIVERED),
        ("body cut off", raw(&long, Then::Reset), &["delivered", "reset"]),
        (
            "body of a 204",
            raw("HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello", Then::Stay),
            DELIVERED,
        ),
        ("chunk of 2^63", raw(format!("{chunked}8000000000000000\r\n"), drip("x")), DELIVERED),
        (
            "chunk of 2^80",
            raw(format!("{chunked}100000000000000000000\r\n"), Then::Stay),
            DELIVERED,
        ),
        ("chunk of no size", raw(format!("{chunked}zz\r\n\r\n"), Then::Stay), DELIVERED),
        ("chunk size without end", raw(&chunked, flood("0".repeat(999))), DELIVERED),
        ("chunks of a byte", raw(&chunked, flood("1\r\nx\r\n".repeat(999))), DELIVERED),
        (
            "trailers without end",
            raw(format!("{chunked}0\r\n"), flood("a: b\r\n".repeat(999))),
            DELIVERED,
        ),
        ("gzip bomb", raw(gzip_bomb(), Then::Stay), DELIVERED),
        // No answer.
        ("silence", Reply::Hang, TIMEOUT),
        ("FIN", Reply::Close, RESET),
        ("RST", Reply::Reset, RESET),
    ];
    table.map(|(name, reply, outcomes)| Attack { name, reply, outcomes }).into()
}
