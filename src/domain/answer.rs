//! The beginning of a receiver's answer when it doesn't accept an event, made readable.

use serde::Serialize;

use super::shown;

/// How many characters of a status line are kept. Real ones are shorter.
const MOST_OF_STATUS_LINE: usize = 200;

/// The largest DELIVERY_LOG_BODY, in bytes.
pub const MOST_OF_BODY: usize = 4_096;

/// The beginning of a failed answer: printable, in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// Such as `HTTP/1.1 503 Service Unavailable`.
    pub status_line: String,
    /// The beginning of the body; may be empty.
    pub body: String,
}

impl Excerpt {
    /// The beginning of an answer, with at most `most` bytes of its body.
    #[must_use]
    pub fn new(status_line: &str, body: &str, most: usize) -> Self {
        Self {
            status_line: shown::line(&without_gaps(status_line), MOST_OF_STATUS_LINE),
            body: beginning(&without_gaps(body), most),
        }
    }

    /// Reads a stored excerpt, which anybody may have written.
    #[must_use]
    pub fn read(status_line: &str, body: &str) -> Self {
        Self {
            status_line: shown::line(status_line, MOST_OF_STATUS_LINE),
            body: shown::line(body, MOST_OF_BODY),
        }
    }

    /// The status line without the HTTP version, and at most `most` characters of the body, in one line.
    #[must_use]
    pub fn line(&self, most: usize) -> String {
        let status = match self.status_line.split_once(' ') {
            Some((version, rest)) if version.starts_with("HTTP/") => rest,
            _ => &self.status_line,
        };
        match self.body.as_str() {
            "" => format!("status {status}"),
            body => format!("status {status}: {}", shown::line(body, most)),
        }
    }
}

/// Joins the words by single spaces: an HTML page often has as many spaces and line breaks as words.
fn without_gaps(text: &str) -> String {
    let mut words = text.split_whitespace();
    let mut joined = words.next().unwrap_or_default().to_owned();
    for word in words {
        joined.push(' ');
        joined += word;
    }
    joined
}

fn beginning(text: &str, most: usize) -> String {
    let cut = &text[..text.floor_char_boundary(most)];
    let shown = shown::line(cut, most);
    // If escapes made the text longer, `shown::line` has cut it already.
    if cut.len() < text.len() && !shown.ends_with('…') { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_becomes_one_line() {
        let page = "<html>\r\n  <body>\n\t<h1>Bad   Gateway</h1>\r\n</body></html>\n";
        let excerpt = Excerpt::new("HTTP/1.1 502 Bad Gateway", page, 512);
        assert_eq!(excerpt.body, "<html> <body> <h1>Bad Gateway</h1> </body></html>");
        assert_eq!(excerpt.line(12), "status 502 Bad Gateway: <html> <body…");
        let bare = Excerpt::new("HTTP/1.1 500", "", 512);
        assert_eq!((bare.line(9).as_str(), bare.body.as_str()), ("status 500", ""));
    }

    #[test]
    fn a_long_answer_is_cut_and_deceptive_characters_are_escaped() {
        let cut = |body: &str, most| Excerpt::new("HTTP/1.1 500", body, most).body;
        assert_eq!(cut("abcdef", 4), "abcd…");
        assert_eq!(cut("abcd", 4), "abcd");
        // A character is never cut in two.
        assert_eq!(cut("aéb", 2), "a…");
        assert_eq!(cut("\u{1b}[2J\u{202e}", 99), "\\u{1b}[2J\\u{202e}");
        assert_eq!(cut("\u{1b}\u{1b}", 8), "\\u{1b}…");
    }

    proptest! {
        #[test]
        fn any_answer_is_bounded_and_read_back_as_it_was_written(
            line in any::<String>(), body in any::<String>(), most in 1_usize..600,
        ) {
            let excerpt = Excerpt::new(&line, &body, most);
            prop_assert!(excerpt.body.chars().count() <= most + 1);
            prop_assert!(excerpt.body.len() <= most + "…".len() || !body.is_ascii());
            prop_assert_eq!(Excerpt::read(&excerpt.status_line, &excerpt.body), excerpt);
        }
    }
}
