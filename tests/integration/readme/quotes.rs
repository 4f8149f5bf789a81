//! The lines of the log that the manual quotes are lines of the program.

use std::{fs, path::Path};

use super::documents;

/// How a quotation of a command, in a shell or to PostgreSQL, begins: it is no line of the log.
const TYPED: [&str; 15] = [
    "GRANT",
    "UPDATE",
    "completions",
    "dead",
    "help",
    "make",
    "man",
    "queues",
    "rabbitmqctl",
    "source",
    "sudo",
    "systemctl",
    "tail",
    "webhooks",
    "why",
];

/// Lines whose first word the program puts in.
const COMPOSED: [&str; 2] = ["exchange lost", "binding lost"];

/// All sources, with each text in one line.
fn sources() -> String {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut sources = String::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(path).expect("text");
                let mut lines = source.split("\\\n");
                sources.push_str(lines.next().unwrap_or_default());
                lines.for_each(|line| sources.push_str(line.trim_start()));
            }
        }
    }
    sources
}

/// The words that a quotation begins with, if it has at least two.
fn phrase(quoted: &str) -> Option<String> {
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_alphabetic());
    let words: Vec<_> = quoted.split_whitespace().take_while(is_word).collect();
    let is_typed = words.first().is_some_and(|word| TYPED.contains(word));
    (words.len() > 1 && !is_typed).then(|| words.join(" "))
}

#[test]
fn each_line_of_the_log_that_the_manual_quotes_is_in_the_sources() {
    let sources = sources();
    let mut count = 0;
    let manual = documents().into_iter().filter(|(name, _)| name.starts_with("src/manual/"));
    for (name, text) in manual {
        // Every second piece lies between the marks.
        let texts: String = text.split("```").step_by(2).collect();
        for phrase in texts.split('`').skip(1).step_by(2).filter_map(phrase) {
            let is_said = COMPOSED.contains(&phrase.as_str()) || sources.contains(&phrase);
            assert!(is_said, "{name} quotes {phrase:?}, which is not in src");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} quotations");
}
