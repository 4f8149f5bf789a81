//! Input from outside, for every parser: what is accepted is bounded and keeps its meaning; what is
//! refused is named in one line that discloses no secret. No server is needed here.
//!
//! `tests/corpus/<parser>/` holds examples, one per file, named `good-…` or `bad-…` and after what they
//! show. In addition there are random inputs: PROPTEST_CASES sets how many.

use std::{fmt, fs, path::Path};

use proptest::{prelude::*, sample::Index, test_runner::Config};

mod messages;
mod settings;
mod webhooks;

/// Stands for a secret.
const MARK: &str = "s3cret-T0ken";

/// The longest line that a refusal may be, in characters.
const LONGEST_LINE: usize = 600;

/// PROPTEST_CASES, or a part of it for slow cases. A failing case should be added to the corpus, with a
/// name.
fn cases(part: u32) -> Config {
    let usual = Config::default();
    Config { cases: usual.cases.div_ceil(part), failure_persistence: None, ..usual }
}

/// The examples for a parser, in order.
fn corpus(parser: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(parser);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut examples: Vec<_> = files
        .map(|file| {
            let path = file.expect("the folder can be read").path();
            let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("the file can be read"))
        })
        .collect();
    examples.sort();
    assert!(examples.len() > 5, "{parser} has {} examples", examples.len());
    examples
}

/// The examples that are text.
fn texts(parser: &str) -> Vec<(String, String)> {
    let text = |bytes| String::from_utf8(bytes).expect("these are text");
    corpus(parser).into_iter().map(|(name, bytes)| (name, text(bytes))).collect()
}

/// Checks a result against the example's name.
#[track_caller]
fn check_example<T: fmt::Debug, E: fmt::Display>(name: &str, answer: Result<T, E>) -> Option<T> {
    match answer {
        Ok(accepted) => {
            assert!(name.starts_with("good-"), "{name} is accepted: {accepted:?}");
            Some(accepted)
        }
        Err(refusal) => {
            let line = refusal.to_string();
            assert!(name.starts_with("bad-"), "{name} is refused: {line}");
            assert_eq!(fault_of(&line), None, "{name}: {line:?}");
            None
        }
    }
}

/// What is wrong with a line for people.
fn fault_of(line: &str) -> Option<&'static str> {
    if line.is_empty() {
        return Some("it has no text");
    }
    if line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}')) {
        return Some("a control character");
    }
    if line.chars().count() > LONGEST_LINE {
        return Some("too long");
    }
    line.contains(MARK).then_some("the secret")
}

/// Checks the refusal of input that isn't secret.
#[track_caller]
fn expect_one_line(refusal: &dyn fmt::Display) {
    let line = refusal.to_string();
    assert_eq!(fault_of(&line), None, "{line:?}");
}

/// A change to bytes, as a faulty or hostile program might make it.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Double(Index, usize),
    Cut(Index),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let place = any::<Index>;
        prop_oneof![
            (place(), any::<u8>()).prop_map(|(at, bits)| Self::Flip(at, bits)),
            (place(), prop::collection::vec(any::<u8>(), 1..6))
                .prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            (place(), 1_usize..9).prop_map(|(at, count)| Self::Remove(at, count)),
            (place(), 1_usize..40).prop_map(|(at, count)| Self::Double(at, count)),
            place().prop_map(Self::Cut),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let size = bytes.len();
        let end = |at: usize, count: usize| (at + count).min(size);
        match self {
            Self::Flip(at, bits) if size > 0 => bytes[at.index(size)] ^= bits,
            Self::Insert(at, more) => {
                let at = at.index(size + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) if size > 0 => {
                let at = at.index(size);
                bytes.drain(at..end(at, *count));
            }
            Self::Double(at, count) if size > 0 => {
                let at = at.index(size);
                let part = bytes[at..end(at, *count)].to_vec();
                bytes.splice(at..at, part);
            }
            Self::Cut(at) => bytes.truncate(at.index(size + 1)),
            _ => {}
        }
    }
}

/// An example with up to four changes.
fn changed(parser: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let examples = corpus(parser).into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
    let changes = prop::collection::vec(Change::any(), 0..4);
    (prop::sample::select(examples), changes).prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    })
}

/// The same for parsers that only get text.
fn changed_text(parser: &str) -> impl Strategy<Value = String> + use<> {
    changed(parser).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
