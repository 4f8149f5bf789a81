//! The boundaries between the modules, as designed: which may use which.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each module of the shell may use of the crate, besides [`ANYWHERE`].
const ARROWS: [(&str, &[&str]); 29] = [
    ("lib", &[]),
    ("main", &["cli"]),
    ("cli", &["app", "broker", "dead_letters", "sender", "store", "threads"]),
    (
        "app",
        &[
            "admin",
            "backlogs",
            "broker",
            "consumer",
            "delivery_log",
            "directory",
            "instances",
            "notices",
            "pipeline",
            "receivers",
            "status",
            "store",
            "supervisor",
            "threads",
            "workers",
        ],
    ),
    ("consumer", &["backlogs", "broker", "health", "pipeline", "receivers", "workers"]),
    (
        "pipeline",
        &[
            "backlogs",
            "broker",
            "delivery_log",
            "directory",
            "notices",
            "receivers",
            "sender",
            "workers",
        ],
    ),
    ("notices", &["broker", "directory", "receivers", "store"]),
    ("backlogs", &["broker", "directory", "receivers", "store"]),
    ("instances", &["directory", "health", "receivers", "store"]),
    ("dead_letters", &["broker", "store"]),
    ("delivery_log", &["store"]),
    ("directory", &["store"]),
    ("admin", &["status"]),
    ("status", &["backlogs", "broker", "directory", "health", "receivers"]),
    ("supervisor", &[]),
    ("broker", &["lookup", "threads", "tls"]),
    ("receivers", &[]),
    ("workers", &[]),
    ("sender", &["lookup", "tls"]),
    ("store", &["threads", "tls"]),
    ("lookup", &[]),
    ("threads", &[]),
    ("config", &["tls"]),
    ("tls", &[]),
    ("metrics", &["health"]),
    ("health", &[]),
    ("shutdown", &[]),
    ("clock", &[]),
    ("domain", &[]),
];

/// What the whole shell may use; the domain uses nothing but itself.
const ANYWHERE: [&str; 5] = ["clock", "config", "domain", "metrics", "shutdown"];

/// A crate that only these modules may name.
const OWNERS: [(&str, &[&str]); 8] = [
    ("amiquip", &["broker", "consumer"]),
    ("mio", &["broker"]),
    ("postgres", &["store"]),
    ("r2d2", &["store"]),
    ("r2d2_postgres", &["store"]),
    ("ureq", &["sender"]),
    ("rustls", &["broker", "sender", "tls"]),
    ("tiny_http", &["admin", "cli"]),
];

/// A source file, with its top-level module.
struct Source {
    path: PathBuf,
    module: String,
    /// Without comments and literals.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let sources = files.into_iter().map(|file| {
        let path = file.strip_prefix(&root).expect("it was found there");
        let first = path.iter().next().expect("a file has a name");
        let module = first.to_str().expect("a plain name").trim_end_matches(".rs");
        Source {
            module: module.to_owned(),
            path: path.to_owned(),
            code: code_of(&fs::read_to_string(&file).expect("it is text")),
        }
    });
    sources.collect()
}

/// The source without comments, strings and characters.
fn code_of(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r\"") || rest.starts_with("r#\"") {
            let close = if rest.starts_with("r#") { "\"#" } else { "\"" };
            let end = rest[3..].find(close).expect("a raw string ends");
            3 + end + close.len()
        } else if next == '"' {
            1 + literal_length(&rest[1..], '"')
        } else if rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'') && next == '\'' {
            1 + literal_length(&rest[1..], '\'')
        } else {
            code.push(next);
            next.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code
}

/// The length of a literal after its opening quote, including the closing one.
fn literal_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect()
}

/// What follows `root::`: the `a` of `root::a::b`, and the `a` and `c` of `root::{a::b, c}`.
fn used_of(code: &str, root: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices(&format!("{root}::")) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + root.len() + 2..];
        match rest.strip_prefix('{') {
            None => used.extend(first_word(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut item = 0;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' if depth == 0 => {
                            used.extend(first_word(&group[item..at]));
                            item = at + 1;
                        }
                        '}' => {
                            used.extend(first_word(&group[item..at]));
                            break;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    used
}

fn first_word(text: &str) -> Option<String> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    let word = &text[..end.unwrap_or(text.len())];
    (!word.is_empty()).then(|| word.to_owned())
}

/// The modules that a file uses, under any name of the crate.
fn modules_used(source: &Source, all: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut used = used_of(&source.code, "crate");
    used.extend(used_of(&source.code, "webhook_notifier"));
    used.retain(|module| *module != source.module && all.contains(module.as_str()));
    used
}

#[test]
fn modules_use_each_other_only_along_the_arrows_of_the_design() {
    let sources = sources();
    let arrows = BTreeMap::from(ARROWS);
    let all: BTreeSet<_> = arrows.keys().copied().collect();
    let mut violations = Vec::new();
    for source in &sources {
        let Some(allowed) = arrows.get(source.module.as_str()) else {
            violations.push(format!("{} is in no layout", source.path.display()));
            continue;
        };
        for used in modules_used(source, &all) {
            let anywhere = source.module != "domain" && ANYWHERE.contains(&used.as_str());
            if !anywhere && !allowed.contains(&used.as_str()) {
                violations.push(format!("{} uses {used}", source.path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

/// What is allowed and never used suggests ways to a reader that do not exist.
#[test]
fn the_design_has_no_module_arrow_or_owner_that_the_sources_do_not_have() {
    let sources = sources();
    let all: BTreeSet<_> = ARROWS.iter().map(|(module, _)| *module).collect();
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut named: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in &sources {
        uses.entry(&source.module).or_default().extend(modules_used(source, &all));
        named.entry(&source.module).or_default().extend(words(&source.code));
    }
    let mut invented = Vec::new();
    for (module, allowed) in ARROWS {
        let Some(used) = uses.get(module) else {
            invented.push(format!("there is no module {module}"));
            continue;
        };
        let unused = allowed.iter().filter(|allowed| !used.contains(**allowed));
        invented.extend(unused.map(|unused| format!("{module} does not use {unused}")));
    }
    for module in ANYWHERE {
        let users = uses.values().filter(|used| used.contains(module)).count();
        if users < 2 {
            invented.push(format!("{users} modules use {module}: an arrow will do"));
        }
    }
    for (name, owners) in OWNERS {
        let names = |owner: &str| named.get(owner).is_some_and(|words| words.contains(name));
        let strangers = owners.iter().filter(|owner| !names(owner));
        invented.extend(strangers.map(|owner| format!("{owner} does not name {name}")));
    }
    assert!(invented.is_empty(), "{invented:#?}");
}

#[test]
fn no_module_uses_itself_through_others() {
    let sources = sources();
    let all: BTreeSet<_> = sources.iter().map(|source| source.module.as_str()).collect();
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let used = modules_used(source, &all);
        uses.entry(&source.module).or_default().extend(used);
    }
    for module in uses.keys() {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&str> = uses[module].iter().map(String::as_str).collect();
        while let Some(next) = open.pop() {
            assert!(next != *module, "{module} uses itself by way of {reached:?}");
            if reached.insert(next) {
                open.extend(uses[next].iter().map(String::as_str));
            }
        }
    }
}

#[test]
fn a_crate_that_does_io_is_named_only_by_the_modules_that_own_it() {
    let mut violations = Vec::new();
    for source in sources() {
        let words = words(&source.code);
        for (name, owners) in OWNERS {
            if words.contains(name) && !owners.contains(&source.module.as_str()) {
                violations.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn the_domain_has_no_io_no_clock_and_no_randomness() {
    // An address or a time passed as an argument is only a value.
    let forbidden = [
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "ToSocketAddrs",
        "lookup_host",
        "Instant",
        "elapsed",
        "new_v4",
        "now_v7",
        "rand",
        "random",
        "log",
        "crossbeam_channel",
        "anyhow",
        "println",
        "eprintln",
    ];
    let forbidden_of_std = ["fs", "thread", "io", "env", "process", "os"];
    let mut count = 0;
    for source in sources() {
        if source.module != "domain" {
            continue;
        }
        count += 1;
        let path = source.path.display();
        let words = words(&source.code);
        for word in forbidden {
            assert!(!words.contains(word), "{path} names {word}");
        }
        assert!(!source.code.contains("::now()"), "{path} reads the clock");
        let of_std = used_of(&source.code, "std");
        for module in forbidden_of_std {
            assert!(!of_std.contains(module), "{path} uses std::{module}");
        }
    }
    assert!(count >= 5, "only {count} files in the domain");
}

/// Except in tests, which make up times.
#[test]
fn the_wall_clock_is_read_and_unix_times_are_counted_in_one_place_each() {
    let owners = [("SystemTime::now", "clock.rs"), ("UNIX_EPOCH", "domain/time.rs")];
    let mut violations = Vec::new();
    for source in sources() {
        let product = source.code.split("#[cfg(test)]").next().unwrap_or_default();
        if source.path.ends_with("tests.rs") {
            continue;
        }
        for (name, owner) in owners {
            if product.contains(name) && source.path != Path::new(owner) {
                violations.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

/// `thread::spawn` and a scope's `spawn` panic if a thread can't be started, and a panic ends the
/// process.
#[test]
fn a_thread_is_only_started_in_a_way_that_can_fail() {
    for source in sources() {
        let product = source.code.split("#[cfg(test)]").next().unwrap_or_default();
        if source.path.ends_with("tests.rs") {
            continue;
        }
        for call in ["thread::spawn(", "scope.spawn("] {
            assert!(!product.contains(call), "{} calls {call})", source.path.display());
        }
    }
}

#[test]
fn main_is_short() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
    let lines = fs::read_to_string(path).expect("src/main.rs").lines().count();
    assert!(lines <= 40, "src/main.rs has {lines} lines");
}

#[test]
fn these_tests_read_sources_as_the_compiler_does() {
    let code = code_of(
        "use crate::{a::{b, c}, d}; // crate::e\nlet x = \"crate::f \\\" crate::g\"; /* crate::h */
         let y = ('\"', crate::i::j(), '\\'', r#\"crate::\"k\"#); fn f<'a>(l: &'a mycrate::m) {}",
    );
    let used: Vec<_> = used_of(&code, "crate").into_iter().collect();
    assert_eq!(used, ["a", "d", "i"]);
}
