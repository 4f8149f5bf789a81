//! The benchmarks' events, about 300 bytes each, as a billing system might publish them. The number and the
//! time of publishing are at fixed positions, so that receivers can read them at almost no cost.

use std::ops::Range;

/// Ten digits, in `"id":"evt_0000000000"`.
const NUMBER: Range<usize> = 11..21;
/// Nineteen digits, in `"sent_at":1700000000000000000`.
const SENT: Range<usize> = 33..52;

/// What a receiver reads from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) number: u32,
    /// Nanoseconds since 1970.
    pub(crate) sent: u64,
}

/// An event's body. It contains the id and the type, like those of producers that set no AMQP properties.
pub(crate) fn body(stamp: Stamp, kind: &str) -> Vec<u8> {
    let Stamp { number, sent } = stamp;
    format!(
        r#"{{"id":"evt_{number:010}","sent_at":{sent:019},"event_type":"{kind}","account":{{"id":"acct_1FzQ8L","plan":"business","region":"eu-central-1"}},"data":{{"invoice":"in_{number:010}","amount":12900,"currency":"EUR","lines":[{{"sku":"seat","quantity":3,"unit_amount":4300}}],"customer":"cus_9pXyT2"}}}}"#
    )
    .into_bytes()
}

/// Reads what [`body`] wrote; `None` for other bodies.
pub(crate) fn read(body: &[u8]) -> Option<Stamp> {
    let digits = |range: Range<usize>| std::str::from_utf8(body.get(range)?).ok();
    let number = digits(NUMBER)?.parse().ok()?;
    Some(Stamp { number, sent: digits(SENT)?.parse().ok()? })
}
