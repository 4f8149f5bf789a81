//! A stream that repairs the broker's frames, so that amiquip can read them.
//!
//! AMQP's short strings are bytes, and a producer may put bytes that aren't UTF-8 into a property such as
//! `type`. Then amiquip gives up the whole connection, and does so again at each redelivery: one such message
//! would block its queue forever. So each byte that isn't UTF-8 is replaced by a control character. An event
//! type or id with a control character makes the event malformed. Other properties don't matter to a delivery.
//!
//! Headers may contain such bytes too; amiquip would leave out that header and all that follow. They are
//! replaced if they are in a header's name or text. Also, amiquip reads nested arrays and tables by recursion,
//! and a frame has room for more levels than its thread has stack: one message would crash the process, and
//! then the next process that receives the message. So a header that nests too deep becomes a header of
//! bytes, which nobody reads; the others stay unchanged. If there are several headers `account`, the first one
//! with a value counts.

use std::io::{self, Read, Write};

use mio::{Evented, Poll, PollOpt, Ready, Token};

use crate::domain::broker_names::header::PRODUCERS_ACCOUNT;

/// "Substitute", the control character for what is invalid or in error (ECMA-48, 8.3.148).
const SUBSTITUTE: u8 = 0x1a;

/// How many bytes are read at once.
const CHUNK: usize = 16 * 1024;

/// The layout of frames (AMQP 0-9-1, section 4.2.3): type, channel, size, payload, end.
const HEAD: usize = 7;
const END: usize = 1;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const KINDS: [u8; 4] = [METHOD, CONTENT_HEADER, 3, 8];

/// How deep tables and arrays may nest in a message's headers. RabbitMQ's own (`x-death`) are an array
/// of tables of an array.
const MAX_DEPTH: usize = 32;

/// A stream from the broker whose frames are repaired.
pub(super) struct RepairedStream<S> {
    stream: S,
    /// The bytes read so far, up to `filled`: first frames that were handed on, then repaired frames, then a
    /// part of a frame. The rest is free. It is not cleared, which would cost more than the read.
    buffer: Vec<u8>,
    handed_on: usize,
    repaired: usize,
    filled: usize,
}

impl<S: Read> RepairedStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), handed_on: 0, repaired: 0, filled: 0 }
    }

    /// Reads more, and repairs the frames that are complete now. Returns false if the stream has ended.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.handed_on..self.filled, 0);
        self.repaired -= self.handed_on;
        self.filled -= self.handed_on;
        self.handed_on = 0;
        if self.buffer.len() - self.filled < CHUNK / 2 {
            self.buffer.resize(self.filled + CHUNK, 0);
        } else if self.filled == 0 && self.buffer.len() > CHUNK {
            // It had grown for a large frame, which was handed on.
            self.buffer = vec![0; CHUNK];
        }
        let read = self.stream.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        let filled = &mut self.buffer[..self.filled];
        while let Some(size) = frame_size(&filled[self.repaired..]) {
            let Some(frame) = filled.get_mut(self.repaired..self.repaired + size) else { break };
            repair(frame);
            self.repaired += size;
        }
        Ok(read > 0)
    }
}

impl<S: Read> Read for RepairedStream<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.repaired == self.handed_on {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let waiting = &self.buffer[self.handed_on..self.repaired];
        let count = waiting.len().min(out.len());
        out[..count].copy_from_slice(&waiting[..count]);
        self.handed_on += count;
        Ok(count)
    }
}

impl<S: Write> Write for RepairedStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Evented> Evented for RepairedStream<S> {
    fn register(&self, poll: &Poll, token: Token, ready: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.register(poll, token, ready, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, ready: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.reregister(poll, token, ready, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}

impl<S: Read + Write + Evented + Send + 'static> amiquip::IoStream for RepairedStream<S> {}

/// The size of the first frame in these bytes, as soon as it is known. Bytes that aren't a frame, such as the
/// answer of another server, count as one frame, so that amiquip refuses them.
fn frame_size(bytes: &[u8]) -> Option<usize> {
    let kind = bytes.first()?;
    if !KINDS.contains(kind) {
        return Some(bytes.len());
    }
    let size = bytes.get(3..HEAD)?.try_into().ok()?;
    Some(HEAD + u32::from_be_bytes(size) as usize + END)
}

/// Replaces bytes that aren't UTF-8 in the short strings of a message's delivery and properties, and headers
/// that nest too deep.
fn repair(frame: &mut [u8]) {
    let Some(([kind, ..], payload)) = frame.split_at_mut_checked(HEAD) else { return };
    let mut fields = Fields(payload);
    // If a field is cut off, the rest stays unchanged, so that amiquip refuses it.
    let _ = match *kind {
        METHOD => repair_method(&mut fields),
        CONTENT_HEADER => repair_properties(&mut fields),
        _ => None,
    };
}

/// `basic.deliver` (section 1.8.3.13), whose exchange and routing key the producer has chosen.
fn repair_method(fields: &mut Fields<'_>) -> Option<()> {
    const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
    if fields.take(4)? != BASIC_DELIVER {
        return None;
    }
    fields.repair_short_string()?;
    let (delivery_tag, redelivered) = (8, 1);
    fields.take(delivery_tag + redelivered)?;
    fields.repair_short_string()?;
    fields.repair_short_string()
}

/// A content header (section 4.2.6.1) of the class `basic`.
fn repair_properties(fields: &mut Fields<'_>) -> Option<()> {
    let (class, weight, body_size) = (2, 2, 8);
    fields.take(class + weight + body_size)?;
    let flags = u16::from_be_bytes(fields.take(2)?.try_into().ok()?);
    // Content type and so on, from the highest bit down.
    for property in 0..14 {
        if flags & (1 << (15 - property)) == 0 {
            continue;
        }
        match property {
            // headers
            2 => {
                let size = u32::from_be_bytes(fields.take(4)?.try_into().ok()?);
                // The table ends at a value that can't be read.
                let _ = repair_headers(&mut Fields(fields.take(size as usize)?));
            }
            // delivery mode, priority
            3 | 4 => drop(fields.take(1)?),
            // timestamp
            9 => drop(fields.take(8)?),
            _ => fields.repair_short_string()?,
        }
    }
    Some(())
}

/// Replaces bytes that aren't UTF-8 in the names of headers and in texts; amiquip would end the table there,
/// and lose all later headers. Turns headers that nest too deep into bytes. If there are several headers
/// [`PRODUCERS_ACCOUNT`], of which amiquip would keep the last, renames all but the first one with a value.
fn repair_headers(table: &mut Fields<'_>) -> Option<()> {
    let mut has_account = false;
    loop {
        let size = table.take(1)?[0];
        let name = table.take(size.into())?;
        repair_text(name);
        let [kind] = table.take(1)? else { return None };
        let size = match *kind {
            b'S' | b'x' | b'A' | b'F' => {
                u32::from_be_bytes(table.take(4)?.try_into().ok()?) as usize
            }
            other => fixed_size(other)?,
        };
        let value = table.take(size)?;
        match *kind {
            b'S' => repair_text(value),
            // Both types have the same layout.
            b'A' if nests_too_deep(value, Within::Array) => *kind = b'x',
            b'F' if nests_too_deep(value, Within::Table) => *kind = b'x',
            _ => {}
        }
        if name == PRODUCERS_ACCOUNT.as_bytes() {
            let says_nothing = matches!(*kind, b'V' | b'S') && value.is_empty();
            if has_account || says_nothing {
                name.fill(SUBSTITUTE);
            }
            has_account |= !says_nothing;
        }
    }
}

/// The size of a value whose type determines it.
fn fixed_size(kind: u8) -> Option<usize> {
    Some(match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        _ => return None,
    })
}

/// Replaces each byte that isn't UTF-8.
fn repair_text(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        text = &mut text[error.valid_up_to()..];
        // A character that is cut off at the end has no error length.
        let bad = error.error_len().unwrap_or(text.len());
        text[..bad].fill(SUBSTITUTE);
    }
}

/// Whether a header (section 4.2.5.5) nests too deep. Reads it as amiquip does: a value that can't be read
/// ends the table or array around it.
fn nests_too_deep(header: &[u8], within: Within) -> bool {
    // The unread rest of each open table and array, the innermost last.
    let mut open = vec![(header, within)];
    while let Some((rest, within)) = open.last_mut() {
        match next_value(rest, *within) {
            Some(Some(inner)) if open.len() < MAX_DEPTH => open.push(inner),
            Some(Some(_)) => return true,
            Some(None) => {}
            None => drop(open.pop()),
        }
    }
    false
}

#[derive(Clone, Copy)]
enum Within {
    Table,
    Array,
}

/// Takes the next value, with its name, from the unread rest; `None` if there is no readable value. Returns
/// the value if it is a table or an array.
fn next_value<'a>(rest: &mut &'a [u8], within: Within) -> Option<Option<(&'a [u8], Within)>> {
    let mut take = |size: usize| -> Option<&'a [u8]> {
        let (taken, left) = rest.split_at_checked(size)?;
        *rest = left;
        Some(taken)
    };
    if matches!(within, Within::Table) {
        let size = take(1)?[0];
        take(size.into())?;
    }
    let kind = take(1)?[0];
    let fixed = match kind {
        b'S' | b'x' | b'A' | b'F' => {
            let size = u32::from_be_bytes(take(4)?.try_into().ok()?);
            let inner = take(size as usize)?;
            return Some(match kind {
                b'A' => Some((inner, Within::Array)),
                b'F' => Some((inner, Within::Table)),
                _ => None,
            });
        }
        other => fixed_size(other)?,
    };
    take(fixed).map(|_| None)
}

/// The fields of a frame that are left to check.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, size: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn repair_short_string(&mut self) -> Option<()> {
        let size = self.take(1)?[0];
        repair_text(self.take(size.into())?);
        Some(())
    }
}

#[cfg(test)]
mod tests;
