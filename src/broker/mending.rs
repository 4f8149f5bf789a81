//! A stream that makes the broker's frames readable for amiquip.
//!
//! AMQP's short strings are bytes, and any producer may put some that are not UTF-8 into a property
//! such as `type`. amiquip then gives up the whole connection, and again at each redelivery: one
//! such message would hold its queue up for ever. So each byte that is not UTF-8 is replaced on its
//! way to amiquip, by one of the same length, and the message becomes readable. An event type or id
//! that was not UTF-8 now holds a control character, which makes the event malformed; what else was
//! not does not matter to a delivery.
//!
//! Header tables may hold such bytes, too; amiquip would leave out that header and all after it. They are
//! replaced as well, where they are a header's name or its text. And amiquip reads arrays and tables within
//! each other by recursion, and a frame has room for more of them than its thread has stack: one message
//! would end the process, and after it the next that is given the message. A header that nests deeper than
//! anybody means it to becomes one of bytes, which nobody looks at; the others stay what they are. Of
//! several headers `account`, the first that says anything counts.

use std::io::{self, Read, Write};

use mio::{Evented, Poll, PollOpt, Ready, Token};

use crate::domain::broker_names::header::PRODUCERS_ACCOUNT;

/// "Substitute", the control character for what is invalid or in error (ECMA-48, 8.3.148).
const SUBSTITUTE: u8 = 0x1a;

/// How much is read at once.
const CHUNK: usize = 16 * 1024;

/// Frames as AMQP 0-9-1, section 4.2.3, has them: type, channel, size, payload, end.
const HEAD: usize = 7;
const END: usize = 1;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const KINDS: [u8; 4] = [METHOD, CONTENT_HEADER, 3, 8];

/// How deep tables and arrays may nest in a message's headers. RabbitMQ's own (`x-death`) are an array
/// of tables of an array.
const MAX_DEPTH: usize = 32;

/// A stream from the broker; see the module.
pub(super) struct MendedStream<S> {
    stream: S,
    /// Up to `filled`, what was read: frames that are handed on, then frames that are mended, then a
    /// part of one. The rest is room that stays as it is: to clear it for each read would cost more
    /// than the read.
    buffer: Vec<u8>,
    handed_on: usize,
    mended: usize,
    filled: usize,
}

impl<S: Read> MendedStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), handed_on: 0, mended: 0, filled: 0 }
    }

    /// Reads on, and mends the frames that are now complete. False: the stream has ended.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.handed_on..self.filled, 0);
        self.mended -= self.handed_on;
        self.filled -= self.handed_on;
        self.handed_on = 0;
        if self.buffer.len() - self.filled < CHUNK / 2 {
            self.buffer.resize(self.filled + CHUNK, 0);
        } else if self.filled == 0 && self.buffer.len() > CHUNK {
            // A large frame is over.
            self.buffer = vec![0; CHUNK];
        }
        let read = self.stream.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        let filled = &mut self.buffer[..self.filled];
        while let Some(size) = frame_size(&filled[self.mended..]) {
            let Some(frame) = filled.get_mut(self.mended..self.mended + size) else { break };
            mend(frame);
            self.mended += size;
        }
        Ok(read > 0)
    }
}

impl<S: Read> Read for MendedStream<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.mended == self.handed_on {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let waiting = &self.buffer[self.handed_on..self.mended];
        let count = waiting.len().min(out.len());
        out[..count].copy_from_slice(&waiting[..count]);
        self.handed_on += count;
        Ok(count)
    }
}

impl<S: Write> Write for MendedStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Evented> Evented for MendedStream<S> {
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

impl<S: Read + Write + Evented + Send + 'static> amiquip::IoStream for MendedStream<S> {}

/// The size of the frame that the bytes begin with, as soon as that can be told. What is no frame,
/// such as the answer of something that isn't RabbitMQ, counts as one, for amiquip to refuse.
fn frame_size(bytes: &[u8]) -> Option<usize> {
    let kind = bytes.first()?;
    if !KINDS.contains(kind) {
        return Some(bytes.len());
    }
    let size = bytes.get(3..HEAD)?.try_into().ok()?;
    Some(HEAD + u32::from_be_bytes(size) as usize + END)
}

/// Replaces what is not UTF-8 in the short strings of a message's delivery and properties, and headers
/// that nest too deep.
fn mend(frame: &mut [u8]) {
    let Some(([kind, ..], payload)) = frame.split_at_mut_checked(HEAD) else { return };
    let mut fields = Fields(payload);
    // A field that ends early leaves the rest as it is, for amiquip to refuse.
    let _ = match *kind {
        METHOD => mend_method(&mut fields),
        CONTENT_HEADER => mend_properties(&mut fields),
        _ => None,
    };
}

/// `basic.deliver` (section 1.8.3.13): its exchange and routing key are the producer's.
fn mend_method(fields: &mut Fields<'_>) -> Option<()> {
    const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
    if fields.take(4)? != BASIC_DELIVER {
        return None;
    }
    fields.mend_short_string()?;
    let (delivery_tag, redelivered) = (8, 1);
    fields.take(delivery_tag + redelivered)?;
    fields.mend_short_string()?;
    fields.mend_short_string()
}

/// A content header (section 4.2.6.1) of the class `basic`.
fn mend_properties(fields: &mut Fields<'_>) -> Option<()> {
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
                // Where a value can't be read, the table ends there.
                let _ = mend_headers(&mut Fields(fields.take(size as usize)?));
            }
            // delivery mode, priority
            3 | 4 => drop(fields.take(1)?),
            // timestamp
            9 => drop(fields.take(8)?),
            _ => fields.mend_short_string()?,
        }
    }
    Some(())
}

/// Replaces what is not UTF-8 in the names of headers and in those that are texts. amiquip would end the
/// table there, and what a later header says would count as never said. Makes what nests too deep bytes,
/// and of [`PRODUCERS_ACCOUNT`] what amiquip would take instead of the first that says anything a header of another
/// name.
fn mend_headers(table: &mut Fields<'_>) -> Option<()> {
    let mut has_account = false;
    loop {
        let size = table.take(1)?[0];
        let name = table.take(size.into())?;
        mend_text(name);
        let [kind] = table.take(1)? else { return None };
        let size = match *kind {
            b'S' | b'x' | b'A' | b'F' => {
                u32::from_be_bytes(table.take(4)?.try_into().ok()?) as usize
            }
            other => fixed_size(other)?,
        };
        let value = table.take(size)?;
        match *kind {
            b'S' => mend_text(value),
            // They are laid out alike.
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

/// The size of a value whose type says it.
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

/// Replaces each byte that is not UTF-8.
fn mend_text(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        text = &mut text[error.valid_up_to()..];
        // The end of a character that is cut off has no length.
        let bad = error.error_len().unwrap_or(text.len());
        text[..bad].fill(SUBSTITUTE);
    }
}

/// Walks through a header (section 4.2.5.5) as amiquip does: what it can't read ends the table or array
/// that it is in.
fn nests_too_deep(header: &[u8], within: Within) -> bool {
    // What is still to be read of each, the innermost last.
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

/// Takes a value off what is still to be read, and its name before it; `None` if there is none that
/// can be read. A table or an array is returned.
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

/// The fields of a frame that are still to be looked at.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, size: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn mend_short_string(&mut self) -> Option<()> {
        let size = self.take(1)?[0];
        mend_text(self.take(size.into())?);
        Some(())
    }
}

#[cfg(test)]
mod tests;
