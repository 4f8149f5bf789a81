//! The manual page webhook-notifier(7): the README's part for operators.

use clap_mangen::roff::{Inline, Roff, bold, italic, line_break, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::super::NAME;

const README: &str = include_str!("../../../README.md");

/// Sections that are for whoever has the sources, or decides whether to use it.
const LEFT_OUT: [&str; 5] =
    ["Two commands", "How it compares", "Seeing it hold", "Benchmarks", "Reading the code"];

/// The page, as roff.
pub(super) fn page() -> Vec<u8> {
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    let mut writer = Writer { is_wanted: true, ..Writer::default() };
    writer.roff.control("TH", [NAME, "7", " ", &source, "guide for operators"]);
    writer.roff.control("SH", ["NAME"]);
    writer.roff.text([roman(format!("{NAME} - the guide for operators"))]);
    writer.roff.control("SH", ["DESCRIPTION"]);
    for event in Parser::new_ext(README, Options::ENABLE_TABLES) {
        writer.event(event);
    }
    writer.roff.render().into_bytes()
}

#[derive(Default)]
struct Writer {
    roff: Roff,
    /// The text that is being written.
    line: Vec<Inline>,
    is_wanted: bool,
    is_bold: bool,
    is_italic: bool,
    is_code: bool,
    is_heading: bool,
    /// The numbers of the next items of the lists that we are in; none, where they have none.
    lists: Vec<Option<u64>>,
    /// Just begun, it has no text yet.
    is_new_item: bool,
    /// Where the links lead that we are in.
    links: Vec<String>,
    heads: Vec<String>,
    cells: Vec<Vec<Inline>>,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        // Until the next section.
        let begins_section =
            matches!(event, Event::Start(Tag::Heading { level: HeadingLevel::H2, .. }));
        if !self.is_wanted && !begins_section && !self.is_heading {
            return;
        }
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.is_code => {
                for line in text.lines() {
                    self.roff.text([roman(line)]);
                }
            }
            Event::Text(text) => {
                let text = text.into_string();
                self.line.push(match (self.is_bold, self.is_italic) {
                    (true, _) => bold(text),
                    (false, true) => italic(text),
                    _ => roman(text),
                });
            }
            Event::Code(text) => self.line.push(bold(text.into_string())),
            Event::SoftBreak => self.line.push(roman(" ")),
            Event::HardBreak => self.line.push(line_break()),
            // The README has none of the others.
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { .. } => {
                self.line.clear();
                self.is_heading = true;
            }
            Tag::Paragraph if std::mem::take(&mut self.is_new_item) => {}
            Tag::Paragraph => drop(self.roff.control("PP", [])),
            Tag::Strong => self.is_bold = true,
            Tag::Emphasis => self.is_italic = true,
            Tag::Link { dest_url, .. } => self.links.push(dest_url.into_string()),
            Tag::CodeBlock(_) => {
                self.flush();
                self.is_code = true;
                self.roff.control("PP", []);
                self.roff.control("RS", ["4"]);
                self.roff.control("nf", []);
            }
            Tag::List(first) => {
                self.flush();
                if !self.lists.is_empty() {
                    self.roff.control("RS", []);
                }
                self.lists.push(first);
            }
            Tag::Item => {
                self.is_new_item = true;
                match self.lists.last_mut() {
                    Some(Some(number)) => {
                        self.roff.control("IP", [format!("{number}.").as_str(), "4"]);
                        *number += 1;
                    }
                    _ => drop(self.roff.control("IP", [r"\(bu", "2"])),
                }
            }
            Tag::Table(_) => self.heads.clear(),
            Tag::TableHead | Tag::TableRow => self.cells.clear(),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => {
                self.is_heading = false;
                let title = plain(&std::mem::take(&mut self.line));
                match level {
                    HeadingLevel::H1 => {}
                    HeadingLevel::H2 => {
                        self.is_wanted = !LEFT_OUT.contains(&title.as_str());
                        if self.is_wanted {
                            self.roff.control("SH", [title.to_uppercase().as_str()]);
                        }
                    }
                    _ if self.is_wanted => drop(self.roff.control("SS", [title.as_str()])),
                    _ => {}
                }
            }
            TagEnd::Paragraph => self.flush(),
            TagEnd::Strong => self.is_bold = false,
            TagEnd::Emphasis => self.is_italic = false,
            TagEnd::Link => {
                let target = self.links.pop().unwrap_or_default();
                // Others lead to a section of the page itself, which names it.
                if target.starts_with("http") {
                    self.line.push(roman(format!(" <{target}>")));
                }
            }
            TagEnd::CodeBlock => {
                self.is_code = false;
                self.roff.control("fi", []);
                self.roff.control("RE", []);
            }
            TagEnd::Item => {
                self.flush();
                self.is_new_item = false;
            }
            TagEnd::List(_) => {
                self.lists.pop();
                if !self.lists.is_empty() {
                    self.roff.control("RE", []);
                }
            }
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.line)),
            TagEnd::TableHead => {
                self.heads = self.cells.drain(..).map(|cell| plain(&cell)).collect();
            }
            TagEnd::TableRow => self.row(),
            TagEnd::Table => self.heads.clear(),
            _ => {}
        }
    }

    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.roff.text(std::mem::take(&mut self.line));
        }
    }

    /// A row of a table: its first cell as a term, and the others below. No table of ours would fit beside the
    /// margins of a terminal.
    fn row(&mut self) {
        let mut cells = std::mem::take(&mut self.cells).into_iter();
        self.roff.control("TP", []);
        self.roff.text(cells.next().unwrap_or_default());
        let named = self.heads.iter().skip(1);
        let filled: Vec<_> = named.zip(cells).filter(|(_, cell)| !cell.is_empty()).collect();
        let mut text = Vec::new();
        for (head, cell) in &filled {
            if !text.is_empty() {
                text.push(line_break());
            }
            if filled.len() > 1 && !head.is_empty() {
                text.push(italic(format!("{head}: ")));
            }
            text.extend(cell.iter().cloned());
        }
        self.roff.text(text);
    }
}

fn plain(line: &[Inline]) -> String {
    let text = line.iter().map(|part| match part {
        Inline::Roman(text) | Inline::Bold(text) | Inline::Italic(text) => text.as_str(),
        Inline::LineBreak => " ",
    });
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_in_the_readme() {
        for title in LEFT_OUT {
            assert!(README.contains(&format!("\n## {title}\n")), "{title}");
        }
    }

    #[test]
    fn the_guide_has_the_readmes_other_sections_and_their_tables() {
        let page = String::from_utf8(page()).expect("text");
        for part in [".SH RUNBOOK", ".SH CONFIGURATION", ".SS \"A queue grows\"", "REQUEST_TIMEOUT"]
        {
            assert!(page.contains(part), "no {part}");
        }
        for title in LEFT_OUT {
            assert!(!page.contains(&title.to_uppercase()), "{title}");
        }
    }
}
