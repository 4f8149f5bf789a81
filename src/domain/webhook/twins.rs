//! Finds webhooks that get the same events at the same URL, which is rarely intended.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::super::shown::quoted;
use super::patterns::covering_patterns;

/// How many pairs are reported: nobody reads more.
const MOST: usize = 1_000;

/// The parts of a webhook that decide whether it has a twin.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: Uuid,
    /// Its URL, by [`url_key`](super::url_key).
    pub url: String,
    /// The account whose events it gets.
    pub account: Option<&'a str>,
    /// Its patterns.
    pub events: &'a [String],
}

/// Two webhooks whose common receiver gets some events twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twins {
    /// The id of one of them.
    pub one: Uuid,
    /// The id of the other.
    pub other: Uuid,
    /// A pattern of events that both want.
    pub pattern: String,
}

impl Twins {
    /// The warning in one line.
    #[must_use]
    pub fn warning(&self) -> String {
        let Self { one, other, pattern } = self;
        format!(
            "{one} and {other} have the same URL, and both want {}: their receiver gets such events twice",
            quoted(pattern)
        )
    }
}

/// Which webhooks are looked up: those without an account, those of one account, or all.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Of<'a> {
    Nobody,
    One(&'a str),
    Any,
}

/// The pairs of twins in which `is_meant` holds for at least one webhook. Each pair is reported once.
/// Webhooks of different accounts have no events in common.
pub fn twins(candidates: &[Candidate<'_>], is_meant: impl Fn(Uuid) -> bool) -> Vec<Twins> {
    // Two holders of each pattern are enough: if there are a hundred twins, each is reported with one of
    // these two.
    let mut holders: HashMap<(&str, Of<'_>, &str), Vec<usize>> = HashMap::new();
    for (at, Candidate { url, account, events, .. }) in candidates.iter().enumerate() {
        let own = account.map_or(Of::Nobody, Of::One);
        for (pattern, of) in events.iter().flat_map(|pattern| [(pattern, own), (pattern, Of::Any)])
        {
            let holders = holders.entry((url, of, pattern)).or_default();
            if holders.len() < 2 && !holders.contains(&at) {
                holders.push(at);
            }
        }
    }
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    // If two patterns match a common type, one of them matches all types that the other matches.
    for (at, candidate) in candidates.iter().enumerate() {
        let whose = match candidate.account {
            None => vec![Of::Any],
            Some(account) => vec![Of::One(account), Of::Nobody],
        };
        for pattern in candidate.events {
            for covering in covering_patterns(pattern) {
                let others =
                    whose.iter().filter_map(|of| holders.get(&(&*candidate.url, *of, &*covering)));
                for other in others.flatten().copied() {
                    let other_id = candidates[other].id;
                    if other == at || !(is_meant(candidate.id) || is_meant(other_id)) {
                        continue;
                    }
                    if seen.insert((at.min(other), at.max(other))) {
                        let (one, other) = (candidate.id, other_id);
                        found.push(Twins { one, other, pattern: pattern.clone() });
                    }
                    if found.len() == MOST {
                        return found;
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Given = (&'static str, Option<&'static str>, Vec<String>);

    fn candidates(given: &[Given]) -> Vec<Candidate<'_>> {
        let numbered = given.iter().zip(1..);
        numbered
            .map(|((url, account, events), n)| Candidate {
                id: Uuid::from_u128(n),
                url: (*url).to_owned(),
                account: *account,
                events,
            })
            .collect()
    }

    fn texts(events: &[&str]) -> Vec<String> {
        events.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn twins_have_the_same_url_and_common_events() {
        let check = |one: Given, other: Given, expected: Option<&str>| {
            let given = [one, other];
            let found = twins(&candidates(&given), |_| true);
            let pattern = found.first().map(|twins| twins.pattern.as_str());
            assert_eq!(
                (pattern, found.len()),
                (expected, usize::from(expected.is_some())),
                "{given:?}"
            );
        };
        let of = |url, account, events: &[&str]| (url, account, texts(events));
        check(of("u", None, &["a.*"]), of("u", None, &["b", "a.*"]), Some("a.*"));
        check(of("u", None, &["*"]), of("u", None, &["a.b"]), Some("a.b"));
        check(of("u", None, &["a.b.*"]), of("u", None, &["a.*"]), Some("a.b.*"));
        check(of("u", None, &["a.*"]), of("v", None, &["a.*"]), None);
        check(of("u", None, &["a.*"]), of("u", None, &["a", "b.*"]), None);
        check(of("u", Some("x"), &["*"]), of("u", None, &["*"]), Some("*"));
        check(of("u", Some("x"), &["*"]), of("u", Some("x"), &["*"]), Some("*"));
        check(of("u", Some("x"), &["*"]), of("u", Some("y"), &["*"]), None);
        check(of("u", None, &[]), of("u", None, &["*"]), None);
    }

    #[test]
    fn each_of_many_twins_is_reported_if_it_is_meant() {
        let given = vec![("u", None, texts(&["*"])); 50];
        let candidates = candidates(&given);
        let all = twins(&candidates, |_| true);
        for candidate in &candidates {
            let is_named = |twins: &Twins| [twins.one, twins.other].contains(&candidate.id);
            assert!(all.iter().any(is_named), "{candidate:?}");
        }
        let last = candidates[49].id;
        assert!((1..=2).contains(&twins(&candidates, |id| id == last).len()));
        assert_eq!(twins(&candidates, |_| false), []);
        assert!(all[0].warning().contains("\"*\""));
    }

    proptest! {
        #[test]
        fn two_webhooks_are_twins_if_an_event_would_reach_both(
            given in prop::collection::vec(
                (prop::option::of(0_usize..2), prop::collection::vec("[ab]|[ab][.][ab*]|[*]", 1..4)), 2..3,
            ),
        ) {
            let given: Vec<Given> = given
                .into_iter()
                .map(|(account, events)| ("u", account.map(|it| ["x", "y"][it]), events))
                .collect();
            let found = twins(&candidates(&given), |_| true);
            let accounts = (given[0].1, given[1].1);
            let is_shared = !matches!(accounts, (Some(one), Some(other)) if one != other);
            let types = ["a", "b", "c", "a.a", "a.b", "b.a", "b.b", "a.c", "b.c"];
            let wants = |events: &[String], kind: &str| {
                super::super::matching_patterns(kind).iter().any(|matching| events.contains(matching))
            };
            let both = types.iter().any(|kind| wants(&given[0].2, kind) && wants(&given[1].2, kind));
            prop_assert_eq!(!found.is_empty(), is_shared && both, "{:?}", given);
        }
    }
}
