//! The manual page webhook-notifier(7): all topics of `help`.

use clap_mangen::roff::{Inline, Roff, bold, italic, line_break, roman};
use pulldown_cmark::HeadingLevel;

use super::super::NAME;
use super::super::topics::TOPICS;
use super::markdown::{self, Block, Line, Span};

/// The page, as roff.
pub(super) fn page() -> Vec<u8> {
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    let mut roff = Roff::new();
    roff.control("TH", [NAME, "7", " ", &source, "guide for operators"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{NAME} - the guide for operators"))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("Each section is a topic, which "),
        bold(format!("{NAME} help TOPIC")),
        roman(" prints by itself."),
    ]);
    for topic in &TOPICS {
        roff.control("SH", [topic.name.to_uppercase().as_str()]);
        for block in &markdown::blocks(topic.text) {
            write(&mut roff, block);
        }
    }
    roff.render().into_bytes()
}

fn write(roff: &mut Roff, block: &Block) {
    match block {
        Block::Heading(HeadingLevel::H1, title) => {
            roff.text([italic(markdown::text(title))]);
        }
        Block::Heading(_, title) => {
            roff.control("SS", [markdown::text(title).as_str()]);
        }
        Block::Paragraph(line) => {
            roff.control("PP", []);
            roff.text(inlines(line));
        }
        Block::Code(code) => {
            roff.control("PP", []);
            roff.control("RS", ["4"]);
            roff.control("nf", []);
            for line in code.lines() {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
            roff.control("RE", []);
        }
        Block::List(items) => items.iter().for_each(|item| write_item(roff, item)),
        Block::Table { heads, rows } => rows.iter().for_each(|row| write_row(roff, heads, row)),
    }
}

fn write_item(roff: &mut Roff, blocks: &[Block]) {
    roff.control("IP", [r"\(bu", "2"]);
    let others = match blocks {
        [Block::Paragraph(line), others @ ..] => {
            roff.text(inlines(line));
            others
        }
        blocks => blocks,
    };
    for block in others {
        roff.control("RS", ["2"]);
        write(roff, block);
        roff.control("RE", []);
    }
}

/// Writes the first cell as a term, and the others below it: few tables would fit into a terminal's width.
fn write_row(roff: &mut Roff, heads: &[Line], row: &[Line]) {
    let Some((term, cells)) = row.split_first() else { return };
    roff.control("TP", []);
    roff.text(inlines(term));
    let named = heads.iter().skip(1);
    let filled: Vec<_> = named.zip(cells).filter(|(_, cell)| !cell.is_empty()).collect();
    let mut text = Vec::new();
    for (head, cell) in &filled {
        if !text.is_empty() {
            text.push(line_break());
        }
        if filled.len() > 1 && !head.is_empty() {
            text.push(italic(format!("{}: ", markdown::text(head))));
        }
        text.extend(inlines(cell));
    }
    roff.text(text);
}

fn inlines(line: &[Span]) -> Vec<Inline> {
    let inlines = line.iter().filter_map(|span| match span {
        Span::Text(text) => Some(roman(text)),
        Span::Strong(text) | Span::Code(text) => Some(bold(text)),
        Span::Emphasis(text) => Some(italic(text)),
        Span::Link(target) if target.starts_with("http") => Some(roman(format!(" <{target}>"))),
        // Links to other sections of this page, or to files of the sources, have no target here.
        Span::Link(_) => None,
    });
    inlines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_section_for_each_topic_with_its_headings_and_tables() {
        let page = String::from_utf8(page()).expect("text");
        for topic in &TOPICS {
            let section = format!("\n.SH {}\n", topic.name.to_uppercase().replace('-', r"\-"));
            let plain = format!("\n.SH {}\n", topic.name.to_uppercase());
            assert!(page.contains(&section) || page.contains(&plain), "no {}", topic.name);
        }
        for part in [".SS \"A queue grows\"", "REQUEST_TIMEOUT", ".SS \"Circuit breaker\""] {
            assert!(page.contains(part), "no {part}");
        }
    }
}
