//! Parses Markdown into blocks. `help TOPIC` and the manual page webhook-notifier(7) are written from them.

use std::mem;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A part of a text. It contains lines or other blocks.
#[derive(Debug, PartialEq)]
pub(in crate::cli) enum Block {
    Heading(HeadingLevel, Line),
    Paragraph(Line),
    /// Text that is not wrapped.
    Code(String),
    List(Vec<Vec<Block>>),
    Table {
        heads: Vec<Line>,
        rows: Vec<Vec<Line>>,
    },
}

/// Text that is wrapped as a whole.
pub(in crate::cli) type Line = Vec<Span>;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum Span {
    Text(String),
    Strong(String),
    Emphasis(String),
    Code(String),
    /// The target of a link; its text precedes it.
    Link(String),
}

impl Span {
    /// Its text without markup.
    pub(in crate::cli) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Strong(text) | Self::Emphasis(text) | Self::Code(text) => text,
            Self::Link(_) => "",
        }
    }
}

/// A line's text without markup.
pub(in crate::cli) fn text(line: &[Span]) -> String {
    line.iter().map(Span::text).collect()
}

/// The blocks of a Markdown text.
pub(in crate::cli) fn blocks(markdown: &str) -> Vec<Block> {
    MarkdownReader {
        events: parse(markdown),
        line: Line::new(),
        is_strong: false,
        is_emphasis: false,
        links: Vec::new(),
    }
    .blocks()
}

/// The targets of the text's links, in order.
pub(in crate::cli) fn links(markdown: &str) -> impl Iterator<Item = String> {
    parse(markdown).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. }) => Some(dest_url.into_string()),
        _ => None,
    })
}

fn parse(markdown: &str) -> Parser<'_> {
    Parser::new_ext(markdown, Options::ENABLE_TABLES)
}

struct MarkdownReader<'a> {
    events: Parser<'a>,
    /// The current line, as far as it has been read.
    line: Line,
    is_strong: bool,
    is_emphasis: bool,
    /// The targets of the links that are open.
    links: Vec<String>,
}

impl MarkdownReader<'_> {
    /// The blocks of the text, or of the current item of a list.
    fn blocks(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(event) = self.events.next() {
            // In a tight list, the text of an item is not in a paragraph.
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
            // The manual uses no other markup.
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
