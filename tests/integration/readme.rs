//! The README, the manual, the help and the template of the environment file are what the program has, no
//! more and no less.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use crate::{
    harness::{
        LATER, Process, SOON, Sandbox, Servers, notifier::Launch, notifier::binary, unwrapped,
    },
    observability::eventful,
};

mod links;
mod quotes;
mod topics;

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A topic of the manual, in Markdown.
pub(crate) fn manual(topic: &str) -> String {
    file(&format!("src/manual/{topic}.md"))
}

/// All Markdown files, by their paths from the top.
pub(crate) fn documents() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = BTreeMap::from([("README.md".to_owned(), file("README.md"))]);
    let mut open: Vec<_> = ["scripts", "src", "tests"].map(|folder| root.join(folder)).into();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root).expect("it is there").display().to_string();
                documents.insert(name.clone(), file(&name));
            }
        }
    }
    documents
}

/// The names in backticks in the first column of the tables below a heading of a file, without the labels
/// in braces.
pub(crate) fn documented(name: &str, heading: &str) -> BTreeSet<String> {
    let text = file(name);
    let section = text.lines().skip_while(|line| *line != heading).skip(1);
    let names: BTreeSet<_> = section
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| line.strip_prefix('|'))
        .filter_map(|row| row.split('|').next())
        // Every second piece lies between the backticks.
        .flat_map(|column| column.split('`').skip(1).step_by(2))
        .filter_map(|name| name.split('{').next())
        .map(str::to_owned)
        .collect();
    assert!(!names.is_empty(), "{name} has no table under {heading}");
    names
}

/// The same below the title of a topic.
pub(crate) fn documented_topic(topic: &str) -> BTreeSet<String> {
    let text = manual(topic);
    documented(&format!("src/manual/{topic}.md"), text.lines().next().expect("a title"))
}

#[track_caller]
fn assert_same(documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let invented: Vec<_> = documented.difference(real).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "the manual lacks {missing:?} and invents {invented:?}"
    );
}

fn help(command: &[&str]) -> String {
    let finished = Launch::new(&[command, &["--help"]].concat()).spawn().finish(SOON);
    assert_eq!(finished.code, Some(0), "{command:?}: {finished:?}");
    finished.stdout
}

/// The variables of `run --help`, with the defaults in its text.
fn variables() -> BTreeMap<String, String> {
    let help = help(&["run"]);
    let words = unwrapped(&help);
    let settings = words.split("[default: ").skip(1);
    let variables: BTreeMap<_, _> = settings
        .filter_map(|rest| {
            let (default, rest) = rest.split_once(']')?;
            let variable = rest.trim_start().strip_prefix("[env: ")?;
            let end = variable.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
            Some((variable[..end].to_owned(), default.to_owned()))
        })
        .collect();
    assert!(variables.contains_key("AMQP_URL"), "no variables in {help}");
    variables
}

#[test]
fn the_manual_lists_exactly_the_variables_of_help() {
    assert_same(&documented_topic("configuration"), &variables().into_keys().collect());
}

#[test]
fn the_template_of_the_environment_file_has_every_variable_with_its_default() {
    let template = file("scripts/webhook-notifier.env");
    let settings = template.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    // The others are sentences.
    let settings =
        settings.filter(|(name, _)| !name.contains(|c: char| c != '_' && !c.is_ascii_uppercase()));
    let settings: BTreeMap<_, _> =
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let expected = variables().into_iter().map(|(variable, default)| {
        let default = match default.as_str() {
            "none" => String::new(),
            _ => default,
        };
        (variable, default)
    });
    assert_eq!(settings, expected.collect());
    let active = template.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(active, None, "only the operator sets something");
}

/// The names below `Commands:`.
fn commands_of(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // A line that continues the one before is further to the right.
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn every_command_is_in_the_manual_and_its_help_is_complete() {
    let manual = manual("install");
    let mut leaves = 0;
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = help(&words);
        let commands = commands_of(&help);
        if let Some(name) = command.last() {
            assert!(manual.contains(&format!("`{name}`")), "the manual lacks {command:?}");
        }
        if commands.is_empty() {
            leaves += 1;
            for part in ["\nPrints:\n", "\nExit codes:\n", "\nExample", "\nSee also:\n"] {
                assert!(help.contains(part), "{command:?} lacks {part:?}: {help}");
            }
            let own = format!("webhook-notifier {}", words.join(" "));
            let (_, example) = help.split_once("\nExample").expect("just found");
            assert!(example.contains(&own), "no example of {own}: {help}");
        }
        open.extend(commands.into_iter().map(|name| [&command[..], &[name]].concat()));
    }
    assert!(leaves >= 16, "only {leaves} commands found");
}

#[test]
fn the_help_is_a_manual_page_and_its_short_form_is_short() {
    let long = help(&[]);
    for part in ["Environment:", "Files:", "Signals:", "Exit codes:", "Examples:", "See also:"] {
        assert!(long.contains(&format!("\n{part}\n")), "no {part} in {long}");
    }
    let short = Launch::new(&["-h"]).spawn().finish(SOON).stdout;
    assert!(short.lines().count() < 40, "{short}");
    assert!(!short.contains("Environment:"), "{short}");
}

/// What follows `make` in the commands of a text, in blocks or in sentences.
fn targets_of(text: &str) -> BTreeSet<String> {
    let mut targets = BTreeSet::new();
    // Every second piece lies between the marks.
    for (at, piece) in text.split("```").enumerate() {
        let inline = piece.split('`').skip(1).step_by(2);
        let code: Vec<&str> = if at % 2 == 1 { vec![piece] } else { inline.collect() };
        for line in code.iter().flat_map(|code| code.lines()) {
            let command = line.split(" # ").next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().collect();
            let pairs = words.windows(2).filter(|pair| pair[0] == "make");
            targets.extend(pairs.map(|pair| pair[1].to_owned()));
        }
    }
    targets
}

#[test]
fn every_target_that_a_document_names_is_in_the_makefile_and_explains_itself() {
    let makefile = file("Makefile");
    let explained: BTreeSet<_> = makefile
        .lines()
        .filter_map(|line| line.split_once(" ## ")?.0.split_once(':'))
        .map(|(target, _)| target)
        .collect();
    let mut count = 0;
    for (name, text) in documents() {
        for target in targets_of(&text) {
            assert!(explained.contains(target.as_str()), "{name}: no target {target:?}");
            count += 1;
        }
    }
    assert!(count > 25, "only {count} targets found");
    let promised = "install uninstall start stop restart status logs migrate check webhooks \
                    webhook-add publish dead-letters replay demo run test bench chaos soak ci help";
    for target in promised.split_whitespace() {
        assert!(explained.contains(target), "no target {target:?}");
    }
}

#[test]
fn the_manual_lists_exactly_the_metrics_that_are_served() {
    let sandbox = Sandbox::new();
    let notifier = eventful(&sandbox);
    let served: BTreeSet<_> = notifier
        .metrics()
        .types
        .into_keys()
        .map(|name| match name.starts_with("process_") {
            true => String::from("process_*"),
            false => name,
        })
        .collect();
    assert_same(&documented_topic("metrics"), &served);
}

#[test]
fn every_scenario_of_the_benchmark_is_in_its_readme_and_no_other_is() {
    let code = file("tests/bench/scenarios.rs");
    let calls = ["    usual(\"", "    on_request(\""];
    let name = |line: &str| {
        let rest = calls.iter().find_map(|call| line.strip_prefix(call))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let scenarios: BTreeSet<_> = code.lines().filter_map(name).collect();
    assert!(scenarios.len() > 20, "only {scenarios:?}");
    let readme = "tests/bench/README.md";
    let listed = documented(readme, "## Scenarios");
    let invented: Vec<_> = listed.difference(&scenarios).collect();
    assert!(invented.is_empty(), "{readme} invents {invented:?}");
    let text = file(readme);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words: BTreeSet<_> = text.split(|c| !is_part(c)).collect();
    for scenario in scenarios {
        assert!(words.contains(scenario.as_str()), "{readme} lacks {scenario}");
    }
}

#[test]
fn the_readme_is_a_front_page() {
    let lines = file("README.md").lines().count();
    assert!(lines <= 250, "README.md has {lines} lines: the rest belongs into src/manual");
}

/// What `make demo` runs once it has servers.
#[test]
fn the_demo_shows_that_everything_arrives_once() {
    let servers = Servers::shared();
    let mut demo = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo.sh"));
    demo.arg(binary()).env("AMQP_URL", servers.amqp_url).env("DATABASE_URL", servers.database_url);
    let finished = Process::spawn(demo).finish(LATER);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let end = "all 15 deliveries arrived, each once, 3 of them at the third attempt";
    assert!(finished.stdout.ends_with(end), "{finished:?}");
}
