//! Each relative link of a Markdown file leads to a file that exists, and to a heading in it.

use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::documents;

fn parse(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

fn links(text: &str) -> Vec<String> {
    let links = parse(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    });
    links.collect()
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    let mut title = None;
    for event in parse(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => title = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let title = title.take().unwrap_or_default().to_lowercase().replace(' ', "-");
                let is_kept = |c: &char| c.is_alphanumeric() || ['-', '_'].contains(c);
                anchors.push(title.chars().filter(is_kept).collect());
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(title) = &mut title {
                    title.push_str(&text);
                }
            }
            _ => {}
        }
    }
    anchors
}

/// The file that a link leads to, from the top.
fn target(from: &str, path: &str) -> PathBuf {
    let mut target = PathBuf::from(from);
    if path.is_empty() {
        return target;
    }
    target.pop();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => assert!(target.pop(), "{from}: {path} leads out of it"),
            part => target.push(part),
        }
    }
    target
}

#[test]
fn each_relative_link_leads_to_a_file_or_a_heading() {
    let documents = documents();
    let mut count = 0;
    for (name, text) in &documents {
        for link in links(text).into_iter().filter(|link| !link.starts_with("http")) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = target(name, path);
            let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(&target).exists();
            assert!(exists, "{name}: no file at {link}");
            if !anchor.is_empty() {
                let text = &documents[target.to_str().expect("text")];
                let anchors = anchors(text);
                assert!(anchors.iter().any(|it| it == anchor), "{name}: {link}: {anchors:?}");
            }
            count += 1;
        }
    }
    assert!(count > 100, "only {count} links");
}

#[test]
fn anchors_and_targets_are_as_on_a_page() {
    let text = "# Dead letters, and replay\n\n## `DISABLE_AFTER` (5d)\n\n[a](b.md#c)\n";
    assert_eq!(anchors(text), ["dead-letters-and-replay", "disable_after-5d"]);
    assert_eq!(links(text), ["b.md#c"]);
    assert_eq!(target("a/b/c.md", "../d.md"), Path::new("a/d.md"));
    assert_eq!(target("a/b/c.md", ""), Path::new("a/b/c.md"));
}
