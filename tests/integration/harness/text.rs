//! Text in temporary files, and text that is independent of its line breaks.

use std::io::Write as _;

use tempfile::NamedTempFile;

/// A temporary file with this text.
pub(crate) struct TextFile(NamedTempFile);

impl TextFile {
    pub(crate) fn new(text: &str) -> Self {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("it is writable");
        Self(file)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.path().to_str().expect("a path in UTF-8")
    }
}

/// The words of a text in one line, wherever its lines were wrapped.
pub(crate) fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
