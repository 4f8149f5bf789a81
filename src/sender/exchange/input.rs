//! The input buffer of a connection, from which ureq sees only the part that was released.

/// The bytes that were read, and how many of them ureq may see.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    consumed: usize,
    released: usize,
    /// Whether ureq consumed bytes last time; otherwise it waits for more.
    pub(super) made_progress: bool,
}

impl Input {
    pub(super) fn is_empty(&self) -> bool {
        self.consumed == self.bytes.len()
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.bytes.drain(..self.consumed);
            self.released -= self.consumed;
            self.consumed = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn released(&self) -> &[u8] {
        &self.bytes[self.consumed..self.released]
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.released..]
    }

    /// Releases the next bytes, or their replacement.
    pub(super) fn release(&mut self, length: usize, replacement: Option<Vec<u8>>) {
        let end = self.released + length;
        match replacement {
            None => self.released = end,
            Some(replacement) => {
                let length = replacement.len();
                self.bytes.splice(self.released..end, replacement);
                self.released += length;
            }
        }
    }

    /// False if there was nothing to release.
    pub(super) fn release_all(&mut self) -> bool {
        let is_more = self.released < self.bytes.len();
        self.released = self.bytes.len();
        is_more
    }

    pub(super) fn consume(&mut self, amount: usize) {
        self.made_progress = amount > 0;
        self.consumed += amount;
    }
}
