//! Keeps track of the messages that were published on a channel in confirm mode, until the outcome of each
//! is known.
//!
//! The broker numbers the messages of a channel from 1, and its confirms refer to this number, the delivery
//! tag: an ack for messages that are safe, a nack for messages that a queue refused, each for one message
//! or for all up to a tag. A message that no queue takes is returned first, and still acked
//! afterwards.
//!
//! Each message has exactly one outcome. It is confirmed, refused, returned, or taken back by its
//! publisher; it expires, because nobody waits for it any more; or it is left when the channel is lost,
//! and has to be published again on another one. The outcome removes the message from the list of open
//! ones, so later confirms can't give it a second outcome.

use std::collections::BTreeMap;

/// The messages that were published on one channel. Only the tag of a message matters here.
#[derive(Debug)]
pub struct Unconfirmed<T> {
    /// The tag of the last message that was published.
    last_tag: u64,
    /// The open messages, whose outcome isn't known yet, by tag.
    open: BTreeMap<u64, T>,
    /// The messages that were refused (nack) and not taken yet.
    refused: Vec<T>,
    /// The messages that were returned and not taken yet.
    unrouted: Vec<T>,
}

impl<T> Default for Unconfirmed<T> {
    fn default() -> Self {
        let (last_tag, refused, unrouted) = (0, Vec::new(), Vec::new());
        Self { last_tag, open: BTreeMap::new(), refused, unrouted }
    }
}

impl<T> Unconfirmed<T> {
    /// Adds the next message that is published. Returns the message with its tag.
    pub fn publish(&mut self, message: T) -> (u64, &T) {
        self.last_tag += 1;
        (self.last_tag, self.open.entry(self.last_tag).or_insert(message))
    }

    /// Handles an ack of the message with this tag or, if `multiple`, of all messages up to it. Yields the
    /// messages that it confirms, in the order in which they were published. A message stays open until
    /// it is taken from the iterator.
    ///
    /// An ack confirms nothing if the tag is unknown, or if its message isn't open any more.
    pub fn ack(&mut self, tag: u64, multiple: bool) -> impl Iterator<Item = T> {
        let first = if multiple { 0 } else { tag };
        self.open.extract_if(first..=tag, |_, _| true).map(|(_, message)| message)
    }

    /// Handles a nack of the message with this tag or, if `multiple`, of all messages up to it.
    pub fn nack(&mut self, tag: u64, multiple: bool) {
        let first = if multiple { 0 } else { tag };
        let refused = self.open.extract_if(first..=tag, |_, _| true);
        self.refused.extend(refused.map(|(_, message)| message));
    }

    /// Takes the message with this tag, which the broker returned. The ack that follows doesn't confirm it.
    pub fn take_returned(&mut self, tag: u64) -> Option<T> {
        self.open.remove(&tag)
    }

    /// Keeps returned messages for [`Unconfirmed::take_unrouted`] or for another channel.
    pub fn keep_unrouted(&mut self, messages: impl IntoIterator<Item = T>) {
        self.unrouted.extend(messages);
    }

    /// Takes the open messages for which `is_taken` is true, in the order in which they were published.
    /// Later confirms of them have no effect.
    pub fn take_if(&mut self, is_taken: impl Fn(&T) -> bool) -> Vec<T> {
        let taken = self.open.extract_if(.., |_, message| is_taken(message));
        taken.map(|(_, message)| message).collect()
    }

    /// Takes the messages that were refused.
    pub fn take_refused(&mut self) -> Vec<T> {
        std::mem::take(&mut self.refused)
    }

    /// Takes the messages that were returned and kept.
    pub fn take_unrouted(&mut self) -> Vec<T> {
        std::mem::take(&mut self.unrouted)
    }

    /// Drops the open and the returned messages that nobody waits for any more.
    pub fn expire(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.open.retain(|_, message| is_wanted(message));
        self.unrouted.retain(is_wanted);
    }

    /// The open messages, in the order in which they were published.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.open.values()
    }

    /// The number of open messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no message is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The messages that were refused and not taken yet.
    #[must_use]
    pub fn refused(&self) -> &[T] {
        &self.refused
    }

    /// The messages that were returned and not taken yet.
    #[must_use]
    pub fn unrouted(&self) -> &[T] {
        &self.unrouted
    }

    /// The messages that have to be published again after the channel was lost: first the open ones, in the
    /// order in which they were published, then the refused ones, then the returned ones.
    pub fn into_left(self) -> impl Iterator<Item = T> {
        self.open.into_values().chain(self.refused).chain(self.unrouted)
    }
}

#[cfg(test)]
mod tests;
