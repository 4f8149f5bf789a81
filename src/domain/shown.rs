//! Other people's text, as it may stand in a line that people read: a log, a table, an error.
//!
//! A line break would begin a line that we never wrote, an escape sequence would move the cursor of
//! whoever reads it, and a change of direction would let a text read backwards. So each of these is
//! shown as Rust writes it in a string, and what is too long is cut.

use std::fmt;

/// What a quoted text shows at most, in characters: enough to be recognized.
const MOST_QUOTED: usize = 80;

/// The text in quotation marks, escaped, and cut where it is long.
#[must_use]
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// The text as one line, cut after so many characters. What was shown is shown again as it is.
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

/// The text, whole, as one word of a line: as it is where it is visible ASCII, else in quotation marks,
/// escaped.
#[must_use]
pub fn word(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |formatter| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain { formatter.write_str(text) } else { write!(formatter, "{text:?}") }
    })
}

/// The text with its own lines and tabs, whole.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        push(&mut shown, c, is_deceptive(c) && !matches!(c, '\n' | '\t'));
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

/// Control characters, the other separators of lines, and what changes the direction of writing
/// (Unicode Standard Annex 9, section 2).
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn what_could_deceive_is_escaped_and_the_rest_is_not() {
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
        fn whatever_is_shown_is_one_bounded_line(text in any::<String>(), most in 0_usize..50) {
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
