//! The README's tables are what the program has, no more and no less.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    harness::{SOON, Sandbox, notifier::Launch},
    observability::eventful,
};

pub(crate) fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).expect("there is a README.md")
}

/// The names in backticks in the first column of the tables below a heading,
/// without the labels in braces.
pub(crate) fn documented(heading: &str) -> BTreeSet<String> {
    let readme = readme();
    let section = readme
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("## "));
    let names: BTreeSet<_> = section
        .filter_map(|line| line.strip_prefix('|'))
        .filter_map(|row| row.split('|').next())
        // Every second piece lies between backticks.
        .flat_map(|column| column.split('`').skip(1).step_by(2))
        .filter_map(|name| name.split('{').next())
        .map(str::to_owned)
        .collect();
    assert!(!names.is_empty(), "README.md has no table under {heading}");
    names
}

#[track_caller]
fn assert_same(documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let invented: Vec<_> = documented.difference(real).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "README.md lacks {missing:?} and invents {invented:?}"
    );
}

#[test]
fn the_readme_lists_exactly_the_variables_of_help() {
    let help = Launch::new(&["run", "--help"]).spawn().finish(SOON).stdout;
    // However it is wrapped.
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let variables: BTreeSet<_> = words
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next())
        .map(str::to_owned)
        .collect();
    assert!(variables.contains("AMQP_URL"), "no variables in {help}");
    assert_same(&documented("## Configuration"), &variables);
}

#[test]
fn the_readme_lists_exactly_the_metrics_that_are_served() {
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
    assert_same(&documented("## Metrics"), &served);
}
