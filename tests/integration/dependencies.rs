//! What the program is made of: licences, sources and versions are those that `.deny.toml` allows, read
//! as cargo-deny reads it. `make deny` has that check the same, and the advisories, which take a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use crate::commands::json as parsed;

/// A crate that is compiled, for the program or for its tests.
#[derive(Clone, Debug)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    /// None: a directory, as is our own package and a patched crate.
    source: Option<String>,
}

/// What `.deny.toml` says, as far as it is checked here.
#[derive(Debug, Default)]
struct Policy {
    targets: Vec<String>,
    licences: Vec<String>,
    /// By crate.
    exceptions: BTreeMap<String, Vec<String>>,
    registries: Vec<String>,
    skip: Vec<Skip>,
    /// What of `skip` and `ignore` lacks its reason.
    unargued: Vec<String>,
}

/// `mio:0.6`: a crate, and a requirement as Cargo.toml would have it.
#[derive(Debug)]
struct Skip {
    name: String,
    version: String,
}

impl Skip {
    fn of(spec: &str) -> Self {
        let (name, version) = spec.split_once(':').unwrap_or_else(|| {
            panic!(".deny.toml: `{spec}` in `skip` is not of the form name:0.1 or name:1")
        });
        // Then the beginning of a version is all that has to be compared.
        let parts: Vec<_> = version.split('.').collect();
        assert!(
            matches!(parts[..], ["0", minor] | [minor] if minor != "0" && minor.parse::<u32>().is_ok()),
            ".deny.toml: `{spec}` has to name a whole series, such as 0.1 or 1"
        );
        Self { name: name.to_owned(), version: version.to_owned() }
    }

    fn covers(&self, package: &Package) -> bool {
        let rest = package.version.strip_prefix(&self.version);
        package.name == self.name && rest.is_some_and(|rest| rest.starts_with('.'))
    }
}

impl Policy {
    fn of(file: &Value) -> Self {
        let reason = |entry: &&Value| entry["reason"].as_str().is_none_or(str::is_empty);
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let skip = list(&file["bans"]["skip"]);
        let ignore = list(&file["advisories"]["ignore"]);
        let name = |entry: &Value| {
            text(if entry["id"].is_string() { &entry["id"] } else { &entry["crate"] })
        };
        Self {
            targets: texts(&file["graph"]["targets"]),
            licences: texts(&file["licenses"]["allow"]),
            exceptions: list(&file["licenses"]["exceptions"])
                .iter()
                .map(|entry| (text(&entry["crate"]), texts(&entry["allow"])))
                .collect(),
            registries: texts(&file["sources"]["allow-registry"]),
            skip: skip.iter().map(|entry| Skip::of(&text(&entry["crate"]))).collect(),
            unargued: skip.iter().chain(&ignore).filter(reason).map(name).collect(),
        }
    }

    /// What is not allowed, and what is allowed but not needed, each with its remedy.
    fn problems(&self, packages: &[Package]) -> Vec<String> {
        let mut problems = self.licence_problems(packages);
        problems.extend(self.source_problems(packages));
        problems.extend(self.version_problems(packages));
        problems.extend(self.unargued.iter().map(|entry| {
            format!("{entry} has no reason in .deny.toml: say why it is allowed, in `reason`")
        }));
        problems
    }

    /// Whether a crate may be used with one licence less than are allowed, or with all.
    fn may_use(&self, package: &Package, without: Option<(Option<&str>, &str)>) -> bool {
        let allows = |by: Option<&str>, licences: &[String], licence: &str| {
            without != Some((by, licence)) && licences.iter().any(|it| it == licence)
        };
        let name = package.name.as_str();
        let exceptions = self.exceptions.get(name).map_or(&[][..], Vec::as_slice);
        package.licence.as_ref().is_some_and(|expression| {
            is_satisfied(expression, &|licence| {
                allows(None, &self.licences, licence) || allows(Some(name), exceptions, licence)
            })
        })
    }

    fn licence_problems(&self, packages: &[Package]) -> Vec<String> {
        let mut problems = Vec::new();
        let foreign = || packages.iter().filter(|package| package.source.is_some());
        for package in foreign().filter(|package| !self.may_use(package, None)) {
            let Package { name, version, licence, .. } = package;
            let licence = licence.as_deref().unwrap_or("none that its Cargo.toml states");
            problems.push(format!(
                "the licence of {name} {version} is {licence}: do without the crate, or, if you accept \
                 the licence, add it to `[licenses] allow` in .deny.toml, or for this crate alone to \
                 `exceptions`, and say why"
            ));
        }
        let is_needed = |by: Option<&str>, licence: &str| {
            foreign().any(|package| {
                self.may_use(package, None) && !self.may_use(package, Some((by, licence)))
            })
        };
        for licence in self.licences.iter().filter(|licence| !is_needed(None, licence)) {
            problems.push(format!(
                "no crate needs the licence {licence} any more: remove it from `[licenses] allow` in .deny.toml"
            ));
        }
        for (name, licences) in &self.exceptions {
            for licence in licences.iter().filter(|licence| !is_needed(Some(name), licence)) {
                problems.push(format!(
                    "{name} needs no exception for the licence {licence} any more: remove it from \
                     `[licenses] exceptions` in .deny.toml"
                ));
            }
        }
        problems
    }

    fn source_problems(&self, packages: &[Package]) -> Vec<String> {
        let is_known = |source: &str| {
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            self.registries.iter().any(|known| known == registry)
        };
        let foreign = packages.iter().filter_map(|package| {
            let Package { name, version, source, .. } = package;
            let source = source.as_deref().filter(|source| !is_known(source))?;
            Some(format!(
                "{name} {version} comes from {source}, and only what is released on crates.io stays \
                 there: take it from there, or add the place to `[sources]` in .deny.toml, and say why"
            ))
        });
        foreign.collect()
    }

    fn version_problems(&self, packages: &[Package]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
        for package in packages {
            versions.entry(&package.name).or_default().push(package);
        }
        let is_skipped = |package: &&&Package| self.skip.iter().any(|skip| skip.covers(package));
        for (name, all) in &versions {
            if all.iter().filter(|it| !is_skipped(it)).count() > 1 {
                let all: Vec<_> = all.iter().map(|package| package.version.as_str()).collect();
                problems.push(format!(
                    "{name} is there more than once, {}: `cargo tree --locked --target all --invert {name}@{}` \
                     says who needs it; have all use one, or list the older in `[bans] skip` in .deny.toml, \
                     with the reason",
                    all.join(" and "),
                    all[0],
                ));
            }
        }
        for skip in &self.skip {
            let all = versions.get(skip.name.as_str()).map_or(&[][..], Vec::as_slice);
            if all.len() < 2 || !all.iter().any(|package| skip.covers(package)) {
                let Skip { name, version } = skip;
                problems.push(format!(
                    "{name} {version} is no duplicate any more: remove {name}:{version} from `[bans] skip` in .deny.toml"
                ));
            }
        }
        problems
    }
}

/// Whether an SPDX expression holds with these licences. Older crates write `/` for OR.
fn is_satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut tokens: Vec<&str> = spaced.split_whitespace().rev().collect();
    let holds = any(&mut tokens, allows);
    assert!(tokens.is_empty(), "not an SPDX expression: {expression}");
    holds
}

/// `all OR all…`; the next token is the last.
fn any(tokens: &mut Vec<&str>, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut holds = all(tokens, allows);
    while tokens.pop_if(|token| *token == "OR").is_some() {
        holds |= all(tokens, allows);
    }
    holds
}

/// `licence AND licence…`
fn all(tokens: &mut Vec<&str>, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut holds = one(tokens, allows);
    while tokens.pop_if(|token| *token == "AND").is_some() {
        holds &= one(tokens, allows);
    }
    holds
}

/// A licence, perhaps WITH an exception to it, or a group.
fn one(tokens: &mut Vec<&str>, allows: &dyn Fn(&str) -> bool) -> bool {
    let first = tokens.pop().expect("an SPDX expression continues");
    if first == "(" {
        let holds = any(tokens, allows);
        assert_eq!(tokens.pop(), Some(")"), "a group of an SPDX expression ends");
        return holds;
    }
    if tokens.pop_if(|token| *token == "WITH").is_none() {
        return allows(first);
    }
    let exception = tokens.pop().expect("WITH is followed by an exception");
    allows(&format!("{first} WITH {exception}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!(".deny.toml: {value} should be a text")).to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn json_of(value: DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.into_owned().into(),
        DeValue::Boolean(flag) => flag.into(),
        DeValue::Array(values) => {
            values.into_iter().map(|value| json_of(value.into_inner())).collect()
        }
        DeValue::Table(table) => json_of_table(table),
        other => panic!(".deny.toml: {other:?} is not expected there"),
    }
}

fn json_of_table(table: DeTable<'_>) -> Value {
    let pairs = table.into_iter();
    pairs.map(|(key, value)| (key.get_ref().to_string(), json_of(value.into_inner()))).collect()
}

fn policy() -> Policy {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deny.toml");
    let text = fs::read_to_string(path).expect(".deny.toml can be read");
    let (table, errors) = DeTable::parse_recoverable(&text);
    assert!(errors.is_empty(), ".deny.toml: {errors:?}");
    Policy::of(&json_of_table(table.into_inner()))
}

/// All crates that are compiled on this machine, for the program or its tests. Without the network: all are here
/// already, or these tests could not have been compiled.
fn packages(policy: &Policy) -> Vec<Package> {
    let of_this_machine = |target: &&String| target.starts_with(env::consts::ARCH);
    let target = policy.targets.iter().find(of_this_machine).unwrap_or_else(|| {
        panic!(
            "add this machine's target, {}, to `[graph] targets` in .deny.toml",
            env::consts::ARCH
        )
    });
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", target]);
    let edges = ["--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"];
    let tree = cargo(&[&["tree", "--target", target][..], &edges].concat());
    let mut packages = reached(&parsed(&metadata));
    // The metadata also contains crates that only features need which are off.
    packages.retain(|package| {
        let name = format!("{} v{}", package.name, package.version);
        tree.lines().any(|line| line == name || line.starts_with(&format!("{name} ")))
    });
    packages
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {} fails: {errors}", arguments[0]);
    String::from_utf8(output.stdout).expect("it is UTF-8")
}

/// What the package at the root needs: Cargo.lock has more, such as what optional parts would.
fn reached(metadata: &Value) -> Vec<Package> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = metadata["resolve"]["root"].as_str().into_iter().collect();
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            let needs = nodes[id]["deps"].as_array().into_iter().flatten();
            open.extend(needs.filter_map(|dependency| dependency["pkg"].as_str()));
        }
    }
    let optional = |value: &Value| value.as_str().map(str::to_owned);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut packages: Vec<_> = packages
        .filter(|package| package["id"].as_str().is_some_and(|id| reached.contains(id)))
        .map(|package| Package {
            name: text(&package["name"]),
            version: text(&package["version"]),
            licence: optional(&package["license"]),
            source: optional(&package["source"]),
        })
        .collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages
}

#[test]
fn every_dependency_is_one_that_deny_toml_allows_and_it_allows_nothing_without_need() {
    let policy = policy();
    let packages = packages(&policy);
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let problems = policy.problems(&packages);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A policy like that of `.deny.toml`, and packages that need all of it.
fn fine() -> (Value, Vec<Package>) {
    let file = json!({
        "licenses": {
            "allow": ["MIT", "Apache-2.0", "Unicode-3.0"],
            "exceptions": [{ "crate": "roots", "allow": ["CDLA-Permissive-2.0"] }],
        },
        "sources": { "allow-registry": ["https://crates.example/index"] },
        "bans": { "skip": [{ "crate": "nom:4", "reason": "the old one" }] },
        "advisories": { "ignore": [{ "id": "RUSTSEC-1", "reason": "not called" }] },
    });
    let packages = [
        ("both", "1.0.0", "MIT OR Apache-2.0"),
        ("apache", "1.0.0", "Apache-2.0"),
        ("nom", "4.2.3", "MIT"),
        ("nom", "7.1.3", "MIT"),
        ("old", "0.1.0", "MIT/GPL-3.0"),
        ("roots", "1.0.0", "CDLA-Permissive-2.0"),
        ("tables", "1.0.0", "(MIT OR Zlib) AND Unicode-3.0"),
    ];
    let package = |(name, version, licence): (&str, &str, &str)| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: Some(licence.to_owned()),
        source: Some(String::from("registry+https://crates.example/index")),
    };
    let mut packages: Vec<_> = packages.into_iter().map(package).collect();
    packages.push(Package {
        name: String::from("ours"),
        version: String::from("0.1.0"),
        licence: None,
        source: None,
    });
    (file, packages)
}

#[test]
fn what_the_policy_lacks_or_allows_without_need_is_reported_with_a_remedy() {
    let (file, packages) = fine();
    assert_eq!(Policy::of(&file).problems(&packages), Vec::<String>::new());

    type Change = fn(&mut Value, &mut Vec<Package>);
    let cases: [(Change, &[&str]); 10] = [
        (
            |_, packages| packages[0].licence = Some(String::from("GPL-3.0 AND MIT")),
            &["both 1.0.0 is GPL-3.0 AND MIT", "[licenses] allow", "exceptions"],
        ),
        (
            |_, packages| packages[0].licence = None,
            &["both 1.0.0 is none that its Cargo.toml states"],
        ),
        (
            |_, packages| {
                packages[1].licence = Some(String::from("Apache-2.0 WITH LLVM-exception"))
            },
            &["apache 1.0.0 is Apache-2.0 WITH LLVM-exception"],
        ),
        (
            |_, packages| {
                packages[0].source = Some(String::from("git+https://example.org/both#1f"))
            },
            &["both 1.0.0 comes from git+https://example.org/both", "[sources]"],
        ),
        (
            |_, packages| {
                packages.push(Package { version: String::from("2.0.0"), ..packages[0].clone() });
            },
            &["both is there more than once, 1.0.0 and 2.0.0", "cargo tree", "[bans] skip"],
        ),
        (
            |_, packages| packages.retain(|package| package.name != "tables"),
            &["no crate needs the licence Unicode-3.0 any more: remove it"],
        ),
        (
            |_, packages| packages[5].licence = Some(String::from("MIT")),
            &["roots needs no exception for the licence CDLA-Permissive-2.0 any more: remove it"],
        ),
        (
            |_, packages| packages.retain(|package| package.version != "4.2.3"),
            &["nom 4 is no duplicate any more: remove nom:4"],
        ),
        (
            |_, packages| packages[2].version = String::from("5.0.0"),
            &["nom is there more than once, 5.0.0 and 7.1.3"],
        ),
        (
            |file, _| file["advisories"]["ignore"][0]["reason"] = json!(""),
            &["RUSTSEC-1 has no reason"],
        ),
    ];
    for (change, parts) in cases {
        let (mut file, mut packages) = fine();
        change(&mut file, &mut packages);
        let problems = Policy::of(&file).problems(&packages).join("\n");
        for part in parts {
            assert!(problems.contains(part), "no {part:?} in {problems:?}");
        }
    }
}
