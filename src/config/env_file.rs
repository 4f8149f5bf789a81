//! Reads a file of variables like systemd's `EnvironmentFile=` (systemd.exec(5)), so that a command run
//! by hand gets the settings of the service.
//!
//! The syntax resembles a shell's, but nothing is expanded: `$` and `%` are literal. `#` begins a comment only
//! at the start of a line, and a quote counts only at the beginning of a value, or after a quoted part.

use std::collections::HashMap;
use std::fs;
use std::mem;

use crate::domain::shown;

/// The longest problem, in characters.
const MOST_PROBLEM: usize = 200;

/// The variables of a file. If a name is repeated, the last one counts.
pub(super) type Variables = HashMap<String, String>;

/// Reads the file.
///
/// # Errors
/// If it can't be read: one line that quotes none of its content.
pub(super) fn read(path: &str) -> Result<Variables, String> {
    let text = fs::read_to_string(path);
    text.map(|text| parse(&text)).map_err(|error| shown::line(&error.to_string(), MOST_PROBLEM))
}

/// The state of the parser.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    LineStart,
    Comment,
    Name,
    /// After `=`, or after a quoted part: the next part may be quoted.
    PartStart,
    Plain,
    SingleQuoted,
    DoubleQuoted,
}

fn parse(text: &str) -> Variables {
    let mut variables = Variables::new();
    let (mut name, mut value) = (String::new(), String::new());
    // The length of the value without trailing white space, unless that is quoted.
    let mut kept = 0;
    let mut at = State::LineStart;
    let mut chars = text.chars();
    let mut define = |name: &str, mut value: String, kept: usize| {
        value.truncate(kept);
        variables.insert(name.trim_end().to_owned(), value);
    };
    while let Some(c) = chars.next() {
        let ends_line = matches!(c, '\n' | '\r');
        at = match at {
            State::LineStart if matches!(c, '#' | ';') => State::Comment,
            State::LineStart if c.is_ascii_whitespace() => State::LineStart,
            State::LineStart => {
                name = c.to_string();
                State::Name
            }
            State::Comment | State::Name if ends_line => State::LineStart,
            State::Comment => State::Comment,
            State::Name if c == '=' => {
                value.clear();
                kept = 0;
                State::PartStart
            }
            State::Name => {
                name.push(c);
                State::Name
            }
            State::PartStart | State::Plain if ends_line => {
                define(&name, mem::take(&mut value), kept);
                State::LineStart
            }
            State::PartStart if c == '\'' => State::SingleQuoted,
            State::PartStart if c == '"' => State::DoubleQuoted,
            State::PartStart if c.is_ascii_whitespace() => State::PartStart,
            State::PartStart | State::Plain if c == '\\' => {
                // An escaped line break joins two lines.
                value.extend(chars.next().filter(|c| !matches!(c, '\n' | '\r')));
                kept = value.len();
                State::Plain
            }
            State::PartStart | State::Plain => {
                value.push(c);
                if !c.is_ascii_whitespace() {
                    kept = value.len();
                }
                State::Plain
            }
            State::SingleQuoted if c == '\'' => State::PartStart,
            State::DoubleQuoted if c == '"' => State::PartStart,
            State::DoubleQuoted if c == '\\' => {
                match chars.next() {
                    Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                    Some('\n' | '\r') | None => {}
                    Some(other) => value.extend(['\\', other]),
                }
                kept = value.len();
                State::DoubleQuoted
            }
            State::SingleQuoted | State::DoubleQuoted => {
                value.push(c);
                kept = value.len();
                at
            }
        };
    }
    // The end of the file ends the line, and any open quotes.
    if !matches!(at, State::LineStart | State::Comment | State::Name) {
        define(&name, value, kept);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        assert_eq!(parse(text), expected.collect(), "{text:?}");
    }

    #[test]
    fn nothing_is_expanded_and_quotes_count_where_a_part_begins() {
        check("A=b", &[("A", "b")]);
        check("A=pa$$w%20rd#1;2", &[("A", "pa$$w%20rd#1;2")]);
        check("A=it's \"so\"", &[("A", "it's \"so\"")]);
        check("A='$x \"y\" \\n # z'", &[("A", "$x \"y\" \\n # z")]);
        check(r#"A="a \"b\" \$c \\ \`d\` \n 'e'""#, &[("A", r#"a "b" $c \ `d` \n 'e'"#)]);
        check("A='a' \"b\" c", &[("A", "abc")]);
        check("A=''", &[("A", "")]);
        check("A=\nB= \nC", &[("A", ""), ("B", "")]);
        check("A=b \\", &[("A", "b ")]);
        check("A=1\nB='c\nD=2 ", &[("A", "1"), ("B", "c\nD=2 ")]);
    }

    #[test]
    fn white_space_around_counts_only_in_quotes() {
        check("  A = b c  \t\r\nB=\t' d '  \n", &[("A", "b c"), ("B", " d ")]);
        check("A=b\\ \\\n  c\n", &[("A", "b   c")]);
        check("A=\"two\nlines\"\nB=1", &[("A", "two\nlines"), ("B", "1")]);
    }

    #[test]
    fn comments_begin_where_lines_do_and_the_last_value_counts() {
        check("# A=1\n; B=2\n  # C=3\n\nA=1 # one\nA=2", &[("A", "2")]);
        check("", &[]);
    }

    proptest! {
        #[test]
        fn any_value_can_be_quoted(value in any::<String>()) {
            prop_assume!(!value.contains('\r'));
            let escaped: String = value.chars().flat_map(|c| match c {
                '"' | '\\' | '$' | '`' => vec!['\\', c],
                _ => vec![c],
            }).collect();
            let text = format!("BEFORE=x\nA=\"{escaped}\"\nAFTER=y\n");
            let read = parse(&text);
            prop_assert_eq!(read.get("A"), Some(&value));
            prop_assert_eq!(read.len(), 3);
        }

        #[test]
        fn any_text_can_be_parsed(text in any::<String>()) {
            parse(&text);
        }
    }
}
