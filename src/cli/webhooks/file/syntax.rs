//! Parses TOML and JSON into tables, with the line of each part.
//!
//! Errors never quote the file's content: it may be a secret.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::domain::declared::FileProblem;
use crate::domain::shown::quoted;

/// The name of the list in both formats.
const LIST: &str = "webhooks";

/// A table of the list.
pub(super) struct FileTable {
    pub(super) line: usize,
    /// In the order of the file, each with its line.
    pub(super) pairs: Pairs,
}

/// Keys with their lines and values.
type Pairs = Vec<(String, usize, Value)>;

/// The tables, and problems with anything else in the file.
type Tables = (Vec<FileTable>, Vec<FileProblem>);

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at + 1).collect())
    }

    /// The number of the line that contains a position, from 1.
    fn at(&self, place: usize) -> usize {
        self.0.partition_point(|begin| *begin <= place) + 1
    }
}

fn no_list(what: &str) -> String {
    format!("{what}: a file is a list of webhooks, `[[{LIST}]]` or {{\"{LIST}\": […]}}")
}

/// All syntax errors, if there are any.
pub(super) fn toml(text: &str) -> Result<Tables, Vec<FileProblem>> {
    let lines = Lines::of(text);
    let line = |span: Range<usize>| lines.at(span.start);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: toml::de::Error| FileProblem {
            line: error.span().map_or(0, line),
            what: error.message().lines().collect::<Vec<_>>().join(" "),
        };
        return Err(errors.into_iter().map(problem).collect());
    }
    let (mut tables, mut problems, mut is_there) = (Vec::new(), Vec::new(), false);
    for (key, value) in document.into_inner() {
        let at = line(key.span());
        let mut problem = |line, what| problems.push(FileProblem { line, what });
        match (&**key.get_ref(), value.into_inner()) {
            (LIST, DeValue::Array(values)) => {
                is_there = true;
                for value in values {
                    let at = line(value.span());
                    match value.into_inner() {
                        DeValue::Table(pairs) => {
                            tables.push(FileTable { line: at, pairs: of_toml(pairs, &line) })
                        }
                        _ => problem(at, no_list("no table")),
                    }
                }
            }
            (LIST, _) => {
                is_there = true;
                problem(at, no_list("no list"));
            }
            (other, _) => problem(at, no_list(&format!("{} belongs to no webhook", quoted(other)))),
        }
    }
    if !is_there && problems.is_empty() {
        problems.push(FileProblem { line: 0, what: no_list(&format!("no `{LIST}` in it")) });
    }
    // In the order of the file.
    tables.sort_by_key(|table| table.line);
    Ok((tables, problems))
}

fn of_toml(table: DeTable<'_>, line: &impl Fn(Range<usize>) -> usize) -> Pairs {
    let pairs = table.into_iter();
    pairs
        .map(|(key, value)| (key.get_ref().to_string(), line(key.span()), of_value(value)))
        .collect()
}

fn of_value(value: Spanned<DeValue<'_>>) -> Value {
    match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Boolean(flag) => Value::Bool(flag),
        DeValue::Integer(number) => {
            let whole = i64::from_str_radix(number.as_str(), number.radix());
            whole.map_or_else(|_| Value::String(number.to_string()), Value::from)
        }
        DeValue::Float(number) => {
            let parsed = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            parsed.map_or_else(|| Value::String(number.to_string()), Value::Number)
        }
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(values) => Value::Array(values.into_iter().map(of_value).collect()),
        DeValue::Table(table) => {
            let pairs = table.into_iter();
            Value::Object(
                pairs.map(|(key, value)| (key.get_ref().to_string(), of_value(value))).collect(),
            )
        }
    }
}

/// The members of an object, including repeated ones.
struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(All)
    }
}

pub(super) fn json(text: &str) -> Result<Tables, Vec<FileProblem>> {
    // First a check of the syntax alone: its errors quote nothing.
    if let Err(error) = serde_json::from_str::<&RawValue>(text) {
        return Err(vec![FileProblem { line: error.line(), what: error.to_string() }]);
    }
    let lines = Lines::of(text);
    // The values are slices of the text, so their addresses give their positions.
    let line = |raw: &RawValue| {
        lines.at((raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize))
    };
    let whole = |what: &str| vec![FileProblem { line: 0, what: no_list(what) }];
    let members: Members<'_> = serde_json::from_str(text).map_err(|_| whole("no object"))?;
    let (mut tables, mut problems, mut is_there) = (Vec::new(), Vec::new(), false);
    for (key, value) in members.0 {
        if key != LIST {
            let what = no_list(&format!("{} belongs to no webhook", quoted(&key)));
            problems.push(FileProblem { line: line(value), what });
            continue;
        }
        is_there = true;
        let Ok(values) = serde_json::from_str::<Vec<&RawValue>>(value.get()) else {
            problems.push(FileProblem { line: line(value), what: no_list("no list") });
            continue;
        };
        for value in values {
            match serde_json::from_str::<Members<'_>>(value.get()) {
                Ok(members) => {
                    let mut pairs = Pairs::new();
                    for (key, value) in members.0 {
                        let at = line(value);
                        match serde_json::from_str(value.get()) {
                            Ok(value) => pairs.push((key, at, value)),
                            Err(_) => {
                                let what = "a number that is too large, or nested too deeply";
                                let what = format!("{}: {what}", quoted(&key));
                                problems.push(FileProblem { line: at, what });
                            }
                        }
                    }
                    tables.push(FileTable { line: line(value), pairs });
                }
                Err(_) => {
                    problems.push(FileProblem { line: line(value), what: no_list("no object") })
                }
            }
        }
    }
    if !is_there && problems.is_empty() {
        return Err(whole(&format!("no `{LIST}` in it")));
    }
    Ok((tables, problems))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as literal;

    const TOML: &str = "# of the team\n[[webhooks]]\nid = 'x'\nevents = [\n  'a',\n]\nrate_per_second = 0x10\n\n\
                        [[webhooks]]\nheaders = { A = \"b\" }\npaused = true\n";
    const JSON: &str = "{\n \"webhooks\": [\n  {\"id\": \"x\",\n   \"events\": [\"a\"], \"rate_per_second\": 16},\n\
                        \n  {\n \"headers\": {\"A\": \"b\"},\n \"paused\": true}]}";

    fn flat((tables, problems): Tables) -> Vec<(usize, Pairs)> {
        assert_eq!(problems, []);
        let sorted = |mut pairs: Pairs| {
            pairs.sort_by_key(|(_, line, _)| *line);
            pairs
        };
        tables.into_iter().map(|table| (table.line, sorted(table.pairs))).collect()
    }

    #[test]
    fn tables_and_their_parts_know_their_lines() {
        let pair = |name: &str, line, value| (name.to_owned(), line, value);
        assert_eq!(
            flat(toml(TOML).expect("TOML")),
            [
                (
                    2,
                    vec![
                        pair("id", 3, literal!("x")),
                        pair("events", 4, literal!(["a"])),
                        pair("rate_per_second", 7, literal!(16)),
                    ]
                ),
                (
                    9,
                    vec![
                        pair("headers", 10, literal!({"A": "b"})),
                        pair("paused", 11, literal!(true))
                    ]
                ),
            ]
        );
        assert_eq!(
            flat(json(JSON).expect("JSON")),
            [
                (
                    3,
                    vec![
                        pair("id", 3, literal!("x")),
                        pair("events", 4, literal!(["a"])),
                        pair("rate_per_second", 4, literal!(16)),
                    ]
                ),
                (
                    6,
                    vec![
                        pair("headers", 7, literal!({"A": "b"})),
                        pair("paused", 8, literal!(true))
                    ]
                ),
            ]
        );
    }

    #[test]
    fn what_is_no_such_file_is_told_with_its_lines_and_without_its_secrets() {
        let told = |read: Result<Tables, Vec<FileProblem>>| {
            let problems = read.map_or_else(|problems| problems, |(_, problems)| problems);
            problems.into_iter().map(|it| (it.line, it.what)).collect::<Vec<_>>()
        };
        let check = |told: Vec<(usize, String)>, expected: &[(usize, &str)]| {
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for ((line, what), (at, says)) in told.iter().zip(expected) {
                assert!(line == at && what.contains(says) && !what.contains("s3cret"), "{told:?}");
            }
        };
        check(told(toml("a = 1\n[[webhooks]]\nb = 's3cret\nc = \n")), &[(3, ""), (4, "")]);
        check(told(toml("")), &[(0, "no `webhooks` in it")]);
        check(told(toml("webhooks = 's3cret'")), &[(1, "no list")]);
        check(told(toml("\nwebhooks = ['s3cret', 7]\n")), &[(2, "no table"), (2, "no table")]);
        check(
            told(toml("\n[webhook]\nsecret = 's3cret'")),
            &[(2, "\"webhook\" belongs to no webhook")],
        );
        check(told(json("{\"webhooks\": [\n\"s3cret\", {\"a\": }]}")), &[(2, "expected value")]);
        check(told(json("[\"s3cret\"]")), &[(0, "no object")]);
        check(told(json("{}")), &[(0, "no `webhooks` in it")]);
        check(told(json("{\"webhooks\":\n \"s3cret\"}")), &[(2, "no list")]);
        check(told(json("{\"webhooks\":\n [\"s3cret\"]}")), &[(2, "no object")]);
        check(
            told(json("{\"webhooks\": [{\"a\":\n1e999}]}")),
            &[(2, "\"a\": a number that is too large")],
        );
        let deep = format!("{{\"webhooks\": [{{\"a\":{}{}}}]}}", "[".repeat(200), "]".repeat(200));
        check(told(json(&deep)), &[(1, "nested too deeply")]);
        check(told(json("{\"x\": \"s3cret\"}")), &[(1, "\"x\" belongs to no webhook")]);
    }
}
