//! Markdown as blocks: what `help TOPIC` and the manual page webhook-notifier(7) are both written from.

use std::mem;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A part of a text, with nothing but lines or other blocks in it.
#[derive(Debug, PartialEq)]
pub(in crate::cli) enum Block {
    Heading(HeadingLevel, Line),
    Paragraph(Line),
    /// Stays as it is.
    Code(String),
    List(Vec<Vec<Block>>),
    Table {
        heads: Vec<Line>,
        rows: Vec<Vec<Line>>,
    },
}

/// What is wrapped together.
pub(in crate::cli) type Line = Vec<Span>;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum Span {
    Text(String),
    Strong(String),
    Emphasis(String),
    Code(String),
    /// Where the text before it leads.
    Link(String),
}

impl Span {
    /// What it looks like without any marks.
    pub(in crate::cli) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Strong(text) | Self::Emphasis(text) | Self::Code(text) => text,
            Self::Link(_) => "",
        }
    }
}

/// A line without any marks.
pub(in crate::cli) fn text(line: &[Span]) -> String {
    line.iter().map(Span::text).collect()
}

/// The blocks of a Markdown text.
pub(in crate::cli) fn blocks(markdown: &str) -> Vec<Block> {
    Reader {
        events: parse(markdown),
        line: Line::new(),
        is_strong: false,
        is_emphasis: false,
        links: Vec::new(),
    }
    .blocks()
}

/// Where its links lead, in their order.
pub(in crate::cli) fn links(markdown: &str) -> impl Iterator<Item = String> {
    parse(markdown).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. }) => Some(dest_url.into_string()),
        _ => None,
    })
}

fn parse(markdown: &str) -> Parser<'_> {
    Parser::new_ext(markdown, Options::ENABLE_TABLES)
}

struct Reader<'a> {
    events: Parser<'a>,
    /// What has been read of the current line.
    line: Line,
    is_strong: bool,
    is_emphasis: bool,
    /// Where the current links lead.
    links: Vec<String>,
}

impl Reader<'_> {
    /// The blocks of the text, or of the current item of a list.
    fn blocks(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(event) = self.events.next() {
            // The text of an item has no paragraph of its own if the list is tight.
            if matches!(event, Event::Start(Tag::CodeBlock(_) | Tag::List(_) | Tag::Table(_))) {
                self.end_paragraph(&mut blocks);
            }
            match event {
                Event::Start(Tag::CodeBlock(_)) => blocks.push(self.code()),
                Event::Start(Tag::List(_)) => blocks.push(self.list()),
                Event::Start(Tag::Table(_)) => blocks.push(self.table()),
                Event::End(TagEnd::Heading(level)) => {
                    blocks.push(Block::Heading(level, mem::take(&mut self.line)));
                }
                Event::End(TagEnd::Paragraph) => self.end_paragraph(&mut blocks),
                Event::End(TagEnd::Item) => break,
                event => self.inline(event),
            }
        }
        self.end_paragraph(&mut blocks);
        blocks
    }

    fn end_paragraph(&mut self, blocks: &mut Vec<Block>) {
        if !self.line.is_empty() {
            blocks.push(Block::Paragraph(mem::take(&mut self.line)));
        }
    }

    fn code(&mut self) -> Block {
        let mut code = String::new();
        for event in self.events.by_ref() {
            match event {
                Event::Text(text) => code.push_str(&text),
                _ => break,
            }
        }
        Block::Code(code)
    }

    fn list(&mut self) -> Block {
        let mut items = Vec::new();
        while let Some(Event::Start(Tag::Item)) = self.events.next() {
            items.push(self.blocks());
        }
        Block::List(items)
    }

    fn table(&mut self) -> Block {
        let (mut heads, mut rows, mut cells) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(event) = self.events.next() {
            match event {
                Event::End(TagEnd::TableCell) => cells.push(mem::take(&mut self.line)),
                Event::End(TagEnd::TableHead) => heads = mem::take(&mut cells),
                Event::End(TagEnd::TableRow) => rows.push(mem::take(&mut cells)),
                Event::End(TagEnd::Table) => break,
                event => self.inline(event),
            }
        }
        Block::Table { heads, rows }
    }

    fn inline(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Strong) => self.is_strong = true,
            Event::End(TagEnd::Strong) => self.is_strong = false,
            Event::Start(Tag::Emphasis) => self.is_emphasis = true,
            Event::End(TagEnd::Emphasis) => self.is_emphasis = false,
            Event::Start(Tag::Link { dest_url, .. }) => self.links.push(dest_url.into_string()),
            Event::End(TagEnd::Link) => self.line.extend(self.links.pop().map(Span::Link)),
            Event::Text(text) => {
                let text = text.into_string();
                self.line.push(match (self.is_strong, self.is_emphasis) {
                    (true, _) => Span::Strong(text),
                    (false, true) => Span::Emphasis(text),
                    (false, false) => Span::Text(text),
                });
            }
            Event::Code(code) => self.line.push(Span::Code(code.into_string())),
            Event::SoftBreak | Event::HardBreak => self.line.push(Span::Text(" ".to_owned())),
            // The manual has none of the others.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Span {
        Span::Text(text.to_owned())
    }

    #[test]
    fn each_kind_of_block_is_read() {
        let read = blocks(
            "# Title\n\nSome **bold** and *slanted*\n`code`, a [link](a.md#b).\n\n\
             - one\n- two\n\n```sh\nrun  this\n\nand\n```\n\n| a | b |\n|---|---|\n| `c` | |\n",
        );
        let expected = [
            Block::Heading(HeadingLevel::H1, vec![plain("Title")]),
            Block::Paragraph(vec![
                plain("Some "),
                Span::Strong("bold".to_owned()),
                plain(" and "),
                Span::Emphasis("slanted".to_owned()),
                plain(" "),
                Span::Code("code".to_owned()),
                plain(", a "),
                plain("link"),
                Span::Link("a.md#b".to_owned()),
                plain("."),
            ]),
            Block::List(vec![
                vec![Block::Paragraph(vec![plain("one")])],
                vec![Block::Paragraph(vec![plain("two")])],
            ]),
            Block::Code("run  this\n\nand\n".to_owned()),
            Block::Table {
                heads: vec![vec![plain("a")], vec![plain("b")]],
                rows: vec![vec![vec![Span::Code("c".to_owned())], vec![]]],
            },
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn a_block_in_an_item_comes_after_the_items_text() {
        let read = blocks("- one\n  - inner\n- two\n\nafter\n");
        let paragraph = |text| Block::Paragraph(vec![plain(text)]);
        let inner = Block::List(vec![vec![paragraph("inner")]]);
        let items = vec![vec![paragraph("one"), inner], vec![paragraph("two")]];
        assert_eq!(read, [Block::List(items), paragraph("after")]);
    }
}
