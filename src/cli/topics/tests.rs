//! Whether the manual and the other Markdown files are true, and readable on a terminal.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::*;

/// The words of a line for a shell, without its comment; quotes are single ones.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, piece) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(piece.to_owned());
            continue;
        }
        for word in piece.split_whitespace() {
            if word == "#" {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}

/// What follows the program's name, wherever a text has a command to type.
fn commands_of(markdown: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    // Every second piece lies between the marks.
    for (at, piece) in markdown.split("```").enumerate() {
        let inline = || piece.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " "));
        let lines: Vec<String> = match at % 2 {
            0 => inline().collect(),
            _ => piece.lines().map(str::to_owned).collect(),
        };
        for line in lines {
            let line = words(&line);
            let named = line.iter().position(|word| word.ends_with("webhook-notifier"));
            let Some(name) = named else { continue };
            // Before it: a prompt, `sudo`, variables.
            let is_typed = |word: &String| word == "$" || word == "sudo" || word.contains('=');
            if name + 1 < line.len() && line[..name].iter().all(is_typed) {
                let rest = line[name..]
                    .iter()
                    .take_while(|word| !["<<<", "||", "|", ">"].contains(&word.as_str()));
                commands.push(rest.cloned().collect());
            }
        }
    }
    commands
}

/// Whether `help` explains this.
fn is_explained(words: &[String]) -> bool {
    let program = Cli::command();
    let mut found = Some(&program);
    for word in words {
        found = found.and_then(|command| command.find_subcommand(word));
    }
    found.is_some() || matches!(words, [name] if topic(name).is_some())
}

/// All Markdown files of the sources, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<_> = ["src", "tests", "scripts"].map(|folder| root.join(folder)).into();
    let mut paths = vec![root.join("README.md")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    let texts = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("text");
        (path, text)
    });
    texts.collect()
}

#[test]
fn each_command_of_the_documents_is_one() {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    let mut count = 0;
    for (path, text) in documents() {
        for command in commands_of(&text) {
            count += 1;
            let id = Uuid::nil().to_string();
            let given = command.iter().map(|word| match word.as_str() {
                "ID" => id.as_str(),
                "COMMAND" | "TOPIC" | "NAME" => "run",
                // An empty file.
                "$E" | "/etc/webhook-notifier.env" => "/dev/null",
                word => word,
            });
            let parsed = Cli::try_parse_from(given).map(|cli| cli.command);
            let is_one = match &parsed {
                Ok(super::super::Command::Help(Help { of })) => is_explained(of),
                Ok(_) => true,
                Err(error) => matches!(error.kind(), DisplayHelp | DisplayVersion),
            };
            assert!(is_one, "{}: {command:?}: {parsed:?}", path.display());
        }
    }
    assert!(count > 45, "only {count}");
}

#[test]
fn each_file_of_the_manual_is_a_topic_and_no_topic_is_named_like_a_command() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the manual")
        .map(|entry| entry.expect("a file").file_name().into_string().expect("text"))
        .collect();
    files.sort();
    let mut topics: Vec<_> = TOPICS.iter().map(|topic| format!("{}.md", topic.name)).collect();
    topics.sort();
    assert_eq!(files, topics);
    let program = Cli::command();
    for topic in &TOPICS {
        assert!(program.find_subcommand(topic.name).is_none(), "{}", topic.name);
    }
}

#[test]
fn each_topic_begins_with_a_short_title_and_has_sections_below() {
    for Topic { name, text } in &TOPICS {
        let headings = markdown::blocks(text).into_iter().filter_map(|block| match block {
            Block::Heading(level, _) => Some(level),
            _ => None,
        });
        let levels: Vec<_> = headings.collect();
        assert!(text.starts_with("# ") && levels[0] == HeadingLevel::H1, "{name}");
        assert!(levels[1..].iter().all(|level| *level == HeadingLevel::H2), "{name}: {levels:?}");
    }
    // Each is a line of the list.
    let listed = plain::text(&contents(&Cli::command()), COLUMNS);
    for topic in &TOPICS {
        let line = listed.lines().rev().find(|line| line.trim_start().starts_with(topic.name));
        let line = line.unwrap_or_else(|| panic!("{} is not in {listed}", topic.name));
        assert!(line.ends_with(topic.title()), "{line}");
    }
}

#[test]
fn no_line_of_a_topic_is_longer_than_the_terminal_but_for_code() {
    fn code_of(blocks: &[Block]) -> Vec<String> {
        let codes = blocks.iter().map(|block| match block {
            Block::Code(code) => code.lines().map(|line| line.trim().to_owned()).collect(),
            Block::List(items) => items.iter().flat_map(|item| code_of(item)).collect(),
            _ => Vec::new(),
        });
        codes.flatten().collect()
    }
    for topic in &TOPICS {
        let blocks = topic.page();
        let code = code_of(&blocks);
        for line in plain::text(&blocks, COLUMNS).lines() {
            let is_code = code.iter().any(|code| code == line.trim());
            assert!(line.chars().count() <= COLUMNS || is_code, "{}: {line:?}", topic.name);
        }
    }
}

#[test]
fn each_command_names_topics_that_say_more() {
    let mut open = vec![Cli::command()];
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().cloned());
        if command.has_subcommands() && command.get_name() != NAME {
            continue;
        }
        let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        let (_, others) = help.split_once("\nSee also:\n").unwrap_or_else(|| panic!("{command:?}"));
        let named: Vec<_> = others.split("webhook-notifier help ").skip(1).collect();
        assert!(!named.is_empty(), "{}: {others}", command.get_name());
        for rest in named {
            let name = rest.split(|c: char| !(c.is_alphanumeric() || c == '-')).next();
            assert!(is_explained(&[name.unwrap_or_default().to_owned()]), "{rest}");
        }
    }
}

#[test]
fn a_name_that_is_none_is_told_with_the_nearest_one() {
    let program = Cli::command();
    for (command, name, meant) in [
        (&program, "runbok", "; is runbook meant?"),
        (&program, "dead-leters", "; is dead-letters meant?"),
        (&program, "quixotic", " (there are: run, "),
        (program.find_subcommand("webhooks").expect("one"), "lst", "; is list meant?"),
    ] {
        let Usage(problem) = unknown(name, command);
        assert!(problem.contains(&format!("{name:?}{meant}")), "{problem}");
    }
    let Usage(problem) = unknown("quixotic", &program);
    for topic in &TOPICS {
        assert!(problem.contains(topic.name), "{problem}");
    }
}
