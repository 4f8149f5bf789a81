//! Makes untrusted text safe for people to read in a log, a table or an error.
//!
//! A line break could begin a forged line, an escape sequence could move the cursor, and a change of the
//! writing direction could make text read backwards. Such characters are escaped as in a Rust string, and
//! long text is cut.

use std::fmt;

/// How many characters of a quoted text are shown: enough to recognize it.
const MOST_QUOTED: usize = 80;

/// The text in quotation marks, escaped, and cut if it is long.
#[must_use]
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// The text as one line, cut after `most` characters. Applying this again changes nothing.
#[must_use]
pub fn line(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    let mut room = most;
    for c in text.chars() {
        let size = if is_deceptive(c) { c.escape_debug().count() } else { 1 };
        if size > room {
            shown.push('…');
            break;
        }
        room -= size;
        push(&mut shown, c, is_deceptive(c));
    }
    shown
}

/// The whole text as one word of a line: unchanged if it is visible ASCII, otherwise escaped and in
/// quotation marks.
#[must_use]
pub fn word(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |formatter| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain { formatter.write_str(text) } else { write!(formatter, "{text:?}") }
    })
}

/// The whole text, escaped except for line breaks and tabs.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        push(&mut shown, c, is_deceptive(c) && !matches!(c, '\n' | '\t'));
    }
    shown
}

/// A JSON document that contains untrusted text. Deceptive and invisible characters in its strings are
/// escaped as JSON escapes them (RFC 8259, section 7), so its meaning stays the same. Its line breaks and
/// spaces stay.
#[must_use]
pub fn json(document: &str) -> String {
    let mut shown = String::with_capacity(document.len());
    for c in document.chars() {
        if c != '\n' && is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

fn push(shown: &mut String, c: char, escaped: bool) {
    if escaped {
        shown.extend(c.escape_debug());
    } else {
        shown.push(c);
    }
}

/// Whether a character is deceptive or invisible, so that it has to be escaped in files for people.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    is_deceptive(c) || is_invisible(c)
}

/// Whether it is a control character, another line separator, or changes the writing direction (Unicode
/// Standard Annex 9, section 2).
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character has no width or only looks like a space: texts that differ in such characters look
/// the same. (These are most of Unicode's Default_Ignorable_Code_Point, and the spaces other than U+0020.)
fn is_invisible(c: char) -> bool {
    (c.is_whitespace() && c != ' ')
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_escapes_hidden_characters_and_loses_none() {
        for (text, shown) in [
            ("Bücher 漢字 😀", "Bücher 漢字 😀"),
            ("a\u{202e}b\u{200b}c", "a\\u202eb\\u200bc"),
            ("\u{7f}\u{9b}1m", "\\u007f\\u009b1m"),
            ("tag\u{e0041}", "tag\\udb40\\udc41"),
            ("no\u{a0}space", "no\\u00a0space"),
        ] {
            let document = serde_json::to_string(text).expect("JSON");
            assert_eq!(json(&document), format!("\"{shown}\""));
        }
        assert_eq!(json("{\n  \"a\": 1\n}"), "{\n  \"a\": 1\n}");
    }

    proptest! {
        #[test]
        fn json_keeps_its_meaning(text: String) {
            let document = serde_json::to_string(&text).expect("JSON");
            let read: String = serde_json::from_str(&json(&document)).expect("still JSON");
            prop_assert_eq!(read, text);
        }
    }

    #[test]
    fn a_word_stays_one_word() {
        for (text, shown) in [
            ("order-17", "order-17"),
            ("evt.123", "evt.123"),
            ("order 17", "\"order 17\""),
            ("a event=b", "\"a event=b\""),
            ("bestellung-ü", "\"bestellung-ü\""),
            ("a\u{202e}\"b", "\"a\\u{202e}\\\"b\""),
            ("", "\"\""),
        ] {
            assert_eq!(word(text).to_string(), shown);
        }
    }

    #[test]
    fn only_deceptive_characters_are_escaped() {
        for (text, shown) in [
            ("plain \"é\" 日本 \\n", "plain \"é\" 日本 \\n"),
            ("a\r\n2026 ERROR forged", "a\\r\\n2026 ERROR forged"),
            ("\u{1b}[2J\u{9b}2J\0\u{7f}", "\\u{1b}[2J\\u{9b}2J\\0\\u{7f}"),
            ("a\u{202e}b\u{2028}c", "a\\u{202e}b\\u{2028}c"),
        ] {
            assert_eq!(line(text, 100), shown);
        }
        assert_eq!(line("日本語", 2), "日本…");
        assert_eq!(lines("a\n\tb\u{1b}\rc"), "a\n\tb\\u{1b}\\rc");
        assert_eq!(quoted("a\n"), "\"a\\n\"");
        assert_eq!(quoted(&"é".repeat(81)), format!("\"{}\"…", "é".repeat(80)));
    }

    proptest! {
        #[test]
        fn a_shown_text_is_one_line_of_limited_length(text in any::<String>(), most in 0_usize..50) {
            let shown = line(&text, most);
            prop_assert!(shown.chars().count() <= most + 1);
            prop_assert_eq!(line(&shown, most), shown.clone());
            for shown in [shown, quoted(&text)] {
                prop_assert!(!shown.contains(is_deceptive), "{shown:?}");
            }
            prop_assert!(lines(&text).chars().all(|c| matches!(c, '\n' | '\t') || !is_deceptive(c)));
        }
    }
}
