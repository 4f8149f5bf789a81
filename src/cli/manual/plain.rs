//! Writes blocks of Markdown as plain text, wrapped for a terminal.

use std::iter;

use super::super::paint;
use super::markdown::{self, Block, Line, Span};

/// The indentation of text below its heading, and of an item's blocks below its dash.
const INDENT: usize = 2;

/// The indentation of a row's cells below its first one, if they don't fit beside it.
const BELOW: usize = 4;

/// The spaces between two columns.
const GAP: usize = 2;

/// The least width to which the last column of a table is wrapped. Below it, the table becomes terms.
const LEAST_COLUMN: usize = 36;

/// The longest code that is kept on one line. Longer code is wrapped between its words.
const MOST_UNBROKEN: usize = 40;

/// A space at which no line is wrapped.
const NO_BREAK: char = '\u{a0}';

/// The text in lines of at most `width` characters. Code blocks and longer words may exceed it.
pub(in crate::cli) fn text(blocks: &[Block], width: usize) -> String {
    let mut lines = Vec::new();
    for block in blocks {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        write(&mut lines, block, INDENT, width);
    }
    lines.join("\n")
}

fn write(lines: &mut Vec<String>, block: &Block, indent: usize, width: usize) {
    let indented = |text: &str, by: usize| match text {
        "" => String::new(),
        text => format!("{:by$}{text}", ""),
    };
    match block {
        Block::Heading(_, title) => lines.push(paint::heading(markdown::text(title))),
        Block::Paragraph(line) => {
            let wrapped = wrapped(&marked(line), width.saturating_sub(indent));
            lines.extend(wrapped.iter().map(|line| indented(line, indent)));
        }
        Block::Code(code) => {
            lines.extend(code.lines().map(|line| indented(line, indent + INDENT)));
        }
        Block::List(items) => {
            for item in items {
                let first = lines.len();
                for block in item {
                    write(lines, block, indent + INDENT, width);
                }
                if let Some(line) = lines.get_mut(first) {
                    line.replace_range(indent..=indent, "-");
                }
            }
        }
        Block::Table { heads, rows } => {
            let inner = width.saturating_sub(indent);
            let table = beside(heads, rows, inner).unwrap_or_else(|| below(heads, rows, inner));
            lines.extend(table.iter().map(|line| indented(line, indent)));
        }
    }
}

/// A table in columns, the last one wrapped; `None` if it does not fit.
fn beside(heads: &[Line], rows: &[Vec<Line>], width: usize) -> Option<Vec<String>> {
    let heads: Vec<String> = heads.iter().map(|head| markdown::text(head)).collect();
    let rows: Vec<_> = rows.iter().map(|row| cells(row)).collect();
    let all = || iter::once(&heads).chain(&rows);
    let columns = all().map(Vec::len).max()?;
    let widest = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| length(cell)).max().unwrap_or(0)
    };
    let mut widths: Vec<_> = (0..columns).map(widest).collect();
    let last = widths.pop()?;
    let before: usize = widths.iter().map(|width| width + GAP).sum();
    let room = width.checked_sub(before).filter(|room| *room >= last.min(LEAST_COLUMN))?;
    let mut lines = Vec::new();
    if heads.iter().any(|head| !head.is_empty()) {
        lines.extend(columned(&heads, &widths, room).iter().map(paint::heading));
    }
    lines.extend(rows.iter().flat_map(|row| columned(row, &widths, room)));
    Some(lines)
}

/// The lines of one row.
fn columned(row: &[String], widths: &[usize], room: usize) -> Vec<String> {
    let mut first = String::new();
    for (cell, width) in row.iter().zip(widths) {
        let cell = cell.replace(NO_BREAK, " ");
        first.push_str(&format!("{cell:width$}{:GAP$}", ""));
    }
    let before = length(&first);
    let last = row.get(widths.len()).map(|cell| wrapped(cell, room)).unwrap_or_default();
    let starts = iter::once(first).chain(iter::repeat(format!("{:before$}", "")));
    let lines = starts.zip(last).map(|(start, text)| (start + &text).trim_end().to_owned());
    lines.collect()
}

/// A table as terms: each row's first cell, with its other cells below.
fn below(heads: &[Line], rows: &[Vec<Line>], width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        let cells = cells(row);
        let Some((term, others)) = cells.split_first() else { continue };
        lines.extend(wrapped(term, width));
        let named = heads.iter().skip(1).map(|head| markdown::text(head));
        let filled: Vec<_> = named.zip(others).filter(|(_, cell)| !cell.is_empty()).collect();
        for (head, cell) in &filled {
            let is_named = filled.len() > 1 && !head.is_empty();
            let text = if is_named { format!("{head}: {cell}") } else { (*cell).clone() };
            let wrapped = wrapped(&text, width.saturating_sub(BELOW));
            lines.extend(wrapped.iter().map(|line| format!("{:BELOW$}{line}", "")));
        }
    }
    lines
}

/// The texts of a row's cells. The first one names the row, and gets no backticks.
fn cells(row: &[Line]) -> Vec<String> {
    let text = |(at, cell): (usize, &Line)| match at {
        0 => markdown::text(cell),
        _ => marked(cell),
    };
    row.iter().enumerate().map(text).collect()
}

/// A line's text, with backticks around code.
fn marked(line: &[Span]) -> String {
    let spans = line.iter().map(|span| match span {
        Span::Text(text) | Span::Strong(text) | Span::Emphasis(text) => text.clone(),
        Span::Code(code) if length(code) <= MOST_UNBROKEN => {
            format!("`{}`", code.replace(' ', &NO_BREAK.to_string()))
        }
        Span::Code(code) => format!("`{code}`"),
        Span::Link(target) if target.starts_with("http") => format!(" <{target}>"),
        Span::Link(_) => String::new(),
    });
    spans.collect()
}

/// The text in lines of at most `width` characters, except for longer words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && length(&line) + 1 + length(word) > width {
            lines.push(line);
            line = String::new();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.iter().map(|line| line.replace(NO_BREAK, " ")).collect()
}

/// The width in characters. The manual has no wide ones.
fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(markdown: &str, width: usize, expected: &str) {
        let shown = text(&markdown::blocks(markdown), width);
        assert_eq!(shown, expected.trim_start_matches('\n'), "\n{shown}");
    }

    #[test]
    fn a_text_is_wrapped_below_its_headings() {
        check(
            "# Title\n\nOne two three `four five` six\nand a [link](pace.md) to\n\
             [site](https://example.com).\n\n- item one is long\n- two\n\n```sh\na  b\n\nc\n```\n",
            20,
            "
Title

  One two three
  `four five` six
  and a link to site
  <https://example.com>.

  - item one is long
  - two

    a  b

    c",
        );
    }

    #[test]
    fn a_table_has_columns_where_they_fit() {
        let table = "| name | what |\n|---|---|\n| `a` | short |\n| `bcd` | one two |\n";
        check(table, 40, "\n  name  what\n  a     short\n  bcd   one two");
    }

    #[test]
    fn the_last_column_is_wrapped_where_there_is_room_for_it() {
        let words = "word ".repeat(20);
        let table = format!("| name | what |\n|---|---|\n| `a` | {words} |\n");
        let line = |count: usize| ["word"; 9][..count].join(" ");
        let expected = format!(
            "\n  name  what\n  a     {}\n        {}\n        {}",
            line(8),
            line(8),
            line(4)
        );
        check(&table, 48, &expected);
    }

    #[test]
    fn a_table_that_does_not_fit_becomes_terms() {
        let table =
            "| name | type | what |\n|---|---|---|\n| `a` | kind | one two |\n| b | | three |\n";
        check(
            table,
            15,
            "
  a
      type:
      kind
      what: one
      two
  b
      three",
        );
    }

    proptest! {
        #[test]
        fn wrapping_keeps_each_word_and_the_width(text in "[a-z ]{0,80}", width in 1_usize..30) {
            let lines = wrapped(&text, width);
            let words: Vec<_> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
            prop_assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
            for line in lines {
                prop_assert!(length(&line) <= width || !line.contains(' '), "{:?}", line);
            }
        }
    }
}
