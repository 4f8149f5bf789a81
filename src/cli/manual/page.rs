//! The manual page of a command: clap's own sections, then the text that `--help` prints below the options.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::super::NAME;

/// The page, as roff.
pub(super) fn of(command: &Command) -> io::Result<Vec<u8>> {
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    // Without a date, so that equal sources give equal pages.
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    // The first line has no room for the complete name on both sides.
    let about = name.strip_prefix(NAME).unwrap_or(name).trim_start_matches('-');
    let about = if about.is_empty() { "commands" } else { about };
    let man = Man::new(command.clone()).title(NAME).date(" ").source(source).manual(about);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let more = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    page.extend(sections(&more).to_roff().into_bytes());
    Ok(page)
}

/// Converts a text whose sections are indented, each after a line `Title:`.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        match line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            None if line.is_empty() => {}
            None => drop(roff.text([roman(line)])),
            Some(title) => {
                roff.control("SH", [title.to_uppercase().as_str()]);
                let is_inside = |line: &&str| line.is_empty() || line.starts_with(' ');
                let mut section = Vec::new();
                while let Some(line) = lines.next_if(is_inside) {
                    section.push(line.strip_prefix("  ").unwrap_or(line));
                }
                if title.starts_with("Example") || title == "First steps" || title == "See also" {
                    as_it_is(&mut roff, &section);
                } else {
                    filled(&mut roff, &section);
                }
            }
        }
    }
    roff
}

/// Writes lines unchanged: commands.
fn as_it_is(roff: &mut Roff, lines: &[&str]) {
    roff.control("nf", []);
    for line in lines.iter().filter(|line| !line.is_empty()) {
        roff.text([roman(*line)]);
    }
    roff.control("fi", []);
}

/// Writes sentences, and terms with their meanings. A meaning stands below its term, or after two spaces.
fn filled(roff: &mut Roff, lines: &[&str]) {
    let is_below = |line: &str| line.starts_with(' ');
    for (at, line) in lines.iter().enumerate() {
        if line.is_empty() {
            roff.control("PP", []);
        } else if is_below(line) {
            roff.text([roman(line.trim_start())]);
        } else if let Some((term, meaning)) = line.split_once("  ") {
            roff.control("TP", []);
            roff.text([bold(term)]);
            roff.text([roman(meaning.trim_start())]);
        } else if lines.get(at + 1).is_some_and(|next| is_below(next)) {
            roff.control("TP", []);
            roff.text([bold(*line)]);
        } else {
            roff.text([roman(*line)]);
        }
    }
}
