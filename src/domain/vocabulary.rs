//! Fixed sets of words that are written to messages, tables and labels, and read from them.

use serde::{Serialize, Serializer};

/// A type with one word for each of its values.
pub trait Vocabulary: Copy + 'static {
    /// All values.
    const WORDS: &'static [Self];

    /// The word.
    fn word(self) -> &'static str;
}

/// A word that was read. Another version may have written one that this version doesn't know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadWord<T> {
    /// The value of a known word.
    Known(T),
    /// The word as it was read, unchecked.
    Unknown(String),
}

impl<T: Vocabulary> ReadWord<T> {
    /// The value, if the word is known.
    #[must_use]
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Unknown(_) => None,
        }
    }

    /// The word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Known(known) => known.word(),
            Self::Unknown(word) => word,
        }
    }
}

impl<T: Vocabulary> From<&str> for ReadWord<T> {
    fn from(word: &str) -> Self {
        match T::WORDS.iter().find(|known| known.word() == word) {
            Some(known) => Self::Known(*known),
            None => Self::Unknown(word.to_owned()),
        }
    }
}

/// Serializes the word.
impl<T: Vocabulary> Serialize for ReadWord<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::dead_letter::DeathCause;
    use crate::domain::held::{Dropped, Held};
    use std::collections::BTreeSet;
    use std::fmt::Debug;

    #[track_caller]
    fn check_words<T: Vocabulary + Debug + PartialEq>() {
        for known in T::WORDS {
            assert_eq!(ReadWord::<T>::from(known.word()), ReadWord::Known(*known));
        }
        let words: BTreeSet<_> = T::WORDS.iter().map(|known| known.word()).collect();
        assert_eq!(words.len(), T::WORDS.len(), "two with the same word: {words:?}");
    }

    #[test]
    fn known_words_are_read_back_and_unknown_words_are_kept() {
        check_words::<Held>();
        check_words::<Dropped>();
        check_words::<DeathCause>();
        for word in ["", "sulking", "Breaker", "breaker "] {
            let written = ReadWord::<Held>::from(word);
            assert_eq!((written.known(), written.word()), (None, word));
            assert_eq!(serde_json::to_value(&written).expect("JSON"), word);
        }
        assert_eq!(serde_json::to_value(ReadWord::Known(Held::Rate)).expect("JSON"), "rate");
    }
}
