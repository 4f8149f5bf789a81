//! `help`: each topic of the manual, on a terminal and in a pipe.

use std::{fs, path::Path, process::Command};

use super::manual;
use crate::harness::{Launch, Process, SOON, notifier, process::Finished};

fn topics() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual");
    let names = fs::read_dir(folder).expect("the manual").map(|entry| {
        let path = entry.expect("it can be read").path();
        path.file_stem().expect("a name").display().to_string()
    });
    names.collect()
}

fn help(words: &[&str]) -> Finished {
    Launch::new(&[&["help"], words].concat()).spawn().finish(SOON)
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect()
}

#[test]
fn each_topic_is_listed_and_printed_and_in_the_manual_page() {
    let topics = topics();
    assert!(topics.len() > 15, "only {topics:?}");
    let list = help(&[]);
    assert_eq!((list.code, list.stderr.as_str()), (Some(0), ""), "{list:?}");
    let page = Launch::new(&["man", "guide"]).spawn().finish(SOON).stdout.replace('\\', "");
    for topic in &topics {
        let title =
            manual(topic).lines().next().expect("a title").trim_start_matches("# ").to_owned();
        let listed = list
            .stdout
            .lines()
            .any(|line| line.trim().strip_prefix(topic).is_some_and(|rest| rest.trim() == title));
        assert!(listed, "{topic} is not in {}", list.stdout);
        let printed = help(&[topic]);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{topic}: {printed:?}");
        assert!(printed.stdout.starts_with(&title), "{topic}: {printed:?}");
        assert!(!printed.stdout.contains('\u{1b}'), "{topic}: {printed:?}");
        // All of it, but for Markdown's marks, targets of links and heads of tables that were not needed.
        let (source, shown) = (manual(topic), printed.stdout);
        let lost = words(&source).len().saturating_sub(words(&shown).len());
        assert!(lost * 5 < words(&source).len(), "{topic} lost {lost} words: {shown}");
        assert!(page.contains(&format!(".SH {}", topic.to_uppercase())), "{topic}");
    }
    for command in ["run", "dead-letters", "help"] {
        assert!(
            list.stdout.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}"
        );
    }
}

#[test]
fn a_command_is_explained_as_by_its_own_option() {
    for command in [&["run"][..], &["dead-letters"], &["dead-letters", "replay"], &["help"]] {
        let by_option = Launch::new(&[command, &["--help"]].concat()).spawn().finish(SOON);
        let by_help = help(command);
        assert_eq!(by_help.code, Some(0), "{by_help:?}");
        assert_eq!(by_help.stdout, by_option.stdout, "{command:?}");
    }
}

#[test]
fn an_unknown_name_is_a_usage_error_that_names_the_nearest_and_all() {
    let none = help(&["runbok"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(2), ""), "{none:?}");
    for part in ["no command or topic \"runbok\"", "is runbook meant?", "dead-letters", "growth"] {
        assert!(none.stderr.contains(part), "no {part}: {none:?}");
    }
    let none = help(&["dead-letters", "lst"]);
    assert_eq!(none.code, Some(2), "{none:?}");
    assert!(
        none.stderr.contains("`dead-letters` has no command \"lst\"; is list meant?"),
        "{none:?}"
    );
    assert_eq!(help(&["runbook", "pace"]).code, Some(2));
}

#[test]
fn a_topic_is_as_wide_as_its_terminal_and_goes_through_the_pager() {
    let binary = notifier::binary();
    let on_terminal = |columns: usize, rows: usize| {
        let line = format!("stty cols {columns} rows {rows}; {} help pace", binary.display());
        // util-linux's, which makes a terminal for a command.
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        command.env("TERM", "xterm").env("NO_COLOR", "1").env("PAGER", "sed 's/^/paged: /'");
        let finished = Process::spawn(command).finish(SOON);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout.replace('\r', "")
    };
    let longest = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let narrow = on_terminal(60, 1_000);
    assert!(longest(&narrow) <= 60 && !narrow.contains("paged: "), "{narrow}");
    let wide = on_terminal(95, 1_000);
    assert!((81..=95).contains(&longest(&wide)), "{wide}");
    let paged = on_terminal(80, 24);
    assert!(paged.matches("paged: ").count() > 24, "{paged}");
}
