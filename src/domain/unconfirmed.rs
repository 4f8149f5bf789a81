//! The bookkeeping of a channel in confirm mode: what was published on it, until its end is known.
//!
//! The broker counts the messages of a channel from 1, and its confirms name them by that number, the
//! delivery tag: an ack for what is safe, a nack for what a queue refused, for one message or for all up
//! to a tag. A message that no queue takes is returned first, and then acked all the same.
//!
//! So each message has exactly one end. It is confirmed, refused, returned, or taken back by its
//! publisher; it expires, because nobody waits for it any more; or it is left when the channel is lost,
//! and has to be published again on another one. Its end is what takes it out of the tags' reach, and so
//! it can't have a second one.

use std::collections::BTreeMap;

/// What was published on one channel. Of a message it knows only the tag.
#[derive(Debug)]
pub struct Unconfirmed<T> {
    /// The tag of the last message that was published.
    last_tag: u64,
    /// Those without an end, by tag.
    open: BTreeMap<u64, T>,
    /// Refused (nack), until somebody takes them.
    refused: Vec<T>,
    /// Returned, until somebody takes them.
    unrouted: Vec<T>,
}

impl<T> Default for Unconfirmed<T> {
    fn default() -> Self {
        let (last_tag, refused, unrouted) = (0, Vec::new(), Vec::new());
        Self { last_tag, open: BTreeMap::new(), refused, unrouted }
    }
}

impl<T> Unconfirmed<T> {
    /// Adds the next message that is published. Returns it with its tag.
    pub fn publish(&mut self, message: T) -> (u64, &T) {
        self.last_tag += 1;
        (self.last_tag, self.open.entry(self.last_tag).or_insert(message))
    }

    /// The broker acks the message with this tag, or, if `multiple`, all up to it. Yields the messages
    /// that this confirms, in the order in which they were published; one that isn't drawn stays.
    ///
    /// A tag that is unknown, or whose message has had its end, confirms nothing.
    pub fn ack(&mut self, tag: u64, multiple: bool) -> impl Iterator<Item = T> {
        let first = if multiple { 0 } else { tag };
        self.open.extract_if(first..=tag, |_, _| true).map(|(_, message)| message)
    }

    /// The broker nacks the message with this tag, or, if `multiple`, all up to it.
    pub fn nack(&mut self, tag: u64, multiple: bool) {
        let first = if multiple { 0 } else { tag };
        let refused = self.open.extract_if(first..=tag, |_, _| true);
        self.refused.extend(refused.map(|(_, message)| message));
    }

    /// The broker returns the message with this tag. The ack that follows doesn't confirm it.
    pub fn take_returned(&mut self, tag: u64) -> Option<T> {
        self.open.remove(&tag)
    }

    /// Keeps messages that were returned, for [`Unconfirmed::take_unrouted`] or another channel.
    pub fn keep_unrouted(&mut self, messages: impl IntoIterator<Item = T>) {
        self.unrouted.extend(messages);
    }

    /// Takes the open messages that `is_taken` chooses, in the order in which they were published.
    /// Whatever the broker says of them from now on has no effect.
    pub fn take_if(&mut self, is_taken: impl Fn(&T) -> bool) -> Vec<T> {
        let taken = self.open.extract_if(.., |_, message| is_taken(message));
        taken.map(|(_, message)| message).collect()
    }

    /// Takes what was refused.
    pub fn take_refused(&mut self) -> Vec<T> {
        std::mem::take(&mut self.refused)
    }

    /// Takes what was returned and kept.
    pub fn take_unrouted(&mut self) -> Vec<T> {
        std::mem::take(&mut self.unrouted)
    }

    /// Drops what nobody waits for any more: of the open messages and of those that were returned.
    pub fn expire(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.open.retain(|_, message| is_wanted(message));
        self.unrouted.retain(is_wanted);
    }

    /// The messages without an end, in the order in which they were published.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.open.values()
    }

    /// How many messages have no end.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether every message has had its end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What was refused, and nobody has taken.
    #[must_use]
    pub fn refused(&self) -> &[T] {
        &self.refused
    }

    /// What was returned, and nobody has taken.
    #[must_use]
    pub fn unrouted(&self) -> &[T] {
        &self.unrouted
    }

    /// What has to be published again once the channel is lost: first the messages without an end, in the
    /// order in which they were published, then what was refused, then what was returned.
    pub fn into_left(self) -> impl Iterator<Item = T> {
        self.open.into_values().chain(self.refused).chain(self.unrouted)
    }
}

#[cfg(test)]
mod tests;
