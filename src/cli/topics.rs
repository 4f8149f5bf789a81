//! `help`: the commands and the topics of the manual, which is Markdown in `src/manual`.

use std::iter;

use anyhow::Result;
use clap::{Args, Command, CommandFactory, Parser as _};
use pulldown_cmark::HeadingLevel;

use super::manual::markdown::{self, Block, Span};
use super::manual::plain;
use super::{Cli, NAME, Usage, pager};

#[cfg(test)]
mod tests;

/// The command's own name.
const HELP: &str = "help";

/// The width of a text that no terminal shows.
const COLUMNS: usize = 80;

/// The longest line that is easy to read, and the limit of `--help`, too.
const MOST_COLUMNS: usize = 100;

/// How similar a name must be to be suggested, from 0 to 1.
const MIN_SIMILARITY: f64 = 0.8;

/// A topic of the manual.
pub(super) struct Topic {
    pub(super) name: &'static str,
    /// In Markdown.
    pub(super) text: &'static str,
}

macro_rules! topics {
    ($($name:literal)*) => {
        [$(Topic { name: $name, text: include_str!(concat!("../manual/", $name, ".md")) }),*]
    };
}

/// In reading order.
pub(super) static TOPICS: [Topic; 21] = topics![
    "install"
    "configuration"
    "events"
    "receivers"
    "webhook-settings"
    "webhook-file"
    "egress"
    "notices"
    "guarantees"
    "pace"
    "backlogs"
    "instances"
    "metrics"
    "alerts"
    "runbook"
    "upgrade"
    "rabbitmq"
    "postgresql"
    "tls"
    "versions"
    "growth"
];

#[derive(Debug, Args)]
pub(super) struct Help {
    /// A command, such as `dead-letters list`, or a topic, such as `runbook` [default: list all of them]
    #[arg(value_name = "COMMAND|TOPIC")]
    of: Vec<String>,
}

/// Prints a topic, what `--help` of a command prints, or a list of both.
pub(super) fn help(Help { of }: &Help) -> Result<()> {
    let columns = pager::columns().unwrap_or(COLUMNS).min(MOST_COLUMNS);
    let program = Cli::command();
    if of.is_empty() {
        return pager::page(&plain::text(&contents(&program), columns));
    }
    if let Some(topic) = of.first().and_then(|name| topic(name)) {
        if of.len() > 1 {
            let name = topic.name;
            return Err(
                Usage(format!("{name} is a topic without parts: `{NAME} help {name}`")).into()
            );
        }
        return pager::page(&plain::text(&topic.page(), columns));
    }
    let mut command = &program;
    for name in of {
        command = command.find_subcommand(name).ok_or_else(|| unknown(name, command))?;
    }
    let words = of.iter().map(String::as_str);
    // This prints the help, and exits.
    Cli::parse_from(iter::once(NAME).chain(words).chain(["--help"]));
    Ok(())
}

fn topic(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

/// The error of a name that none of `command` has, and the remedy.
fn unknown(name: &str, command: &Command) -> Usage {
    let mut names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let what = match command.get_name() {
        NAME => {
            names.extend(TOPICS.iter().map(|topic| topic.name));
            "there is no command or topic".to_owned()
        }
        command => format!("`{command}` has no command"),
    };
    let similarity = |other: &str| strsim::jaro_winkler(name, other);
    let nearest = names.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let nearest = nearest.filter(|nearest| similarity(nearest) >= MIN_SIMILARITY);
    let meant = nearest.map(|nearest| format!("; is {nearest} meant?")).unwrap_or_default();
    Usage(format!("{what} {name:?}{meant} (there are: {})", names.join(", ")))
}

/// The program for completions, where `help` has a subcommand for each name that it explains.
pub(super) fn for_completions(program: Command) -> Command {
    // fish would mistake a second `help` for the first, and complete nothing.
    let others = program.get_subcommands().filter(|command| command.get_name() != HELP);
    let commands: Vec<_> = others.map(outline).collect();
    let topics = TOPICS.iter().map(|topic| named(topic.name).about(topic.title()));
    program.mut_subcommand(HELP, |help| outline(&help).subcommands(commands).subcommands(topics))
}

/// A command without its arguments.
fn outline(command: &Command) -> Command {
    let about = command.get_about().cloned().unwrap_or_default();
    named(command.get_name()).about(about).subcommands(command.get_subcommands().map(outline))
}

fn named(name: &str) -> Command {
    Command::new(name.to_owned()).disable_help_flag(true)
}

/// All commands and topics.
fn contents(program: &Command) -> Vec<Block> {
    let about =
        |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let commands = program.get_subcommands().map(|command| (command.get_name(), about(command)));
    let topics = TOPICS.iter().map(|topic| (topic.name, topic.title().to_owned()));
    vec![
        heading("Commands"),
        list(commands),
        heading("Topics"),
        list(topics),
        Block::Paragraph(vec![
            code(format!("{NAME} help NAME")),
            text(" explains one of these, such as "),
            code("help run".to_owned()),
            text(" or "),
            code("help runbook".to_owned()),
            text(". "),
            code(format!("man 7 {NAME}")),
            text(" has all topics."),
        ]),
    ]
}

/// Names, and what they are about.
fn list<'a>(named: impl Iterator<Item = (&'a str, String)>) -> Block {
    let rows =
        named.map(|(name, about)| vec![vec![code(name.to_owned())], vec![Span::Text(about)]]);
    Block::Table { heads: Vec::new(), rows: rows.collect() }
}

impl Topic {
    /// What it is about, in a few words.
    fn title(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches("# ")
    }

    /// Its text, and the other topics that this refers to.
    fn page(&self) -> Vec<Block> {
        let mut blocks = markdown::blocks(self.text);
        let mut others: Vec<&str> = Vec::new();
        for link in markdown::links(self.text) {
            let file = link.split('#').next().unwrap_or_default();
            if let Some(topic) = file.strip_suffix(".md").and_then(topic)
                && !others.contains(&topic.name)
            {
                others.push(topic.name);
            }
        }
        if !others.is_empty() {
            blocks.push(heading("See also"));
            let others = text(&format!(" of {}", others.join(", ")));
            blocks.push(Block::Paragraph(vec![code(format!("{NAME} help")), others]));
        }
        blocks
    }
}

fn heading(title: &str) -> Block {
    Block::Heading(HeadingLevel::H2, vec![text(title)])
}

fn text(text: &str) -> Span {
    Span::Text(text.to_owned())
}

fn code(code: String) -> Span {
    Span::Code(code)
}
