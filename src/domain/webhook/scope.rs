//! The scope of a change of the table `webhooks`: which cached answers may have become invalid.

use std::collections::HashSet;

use serde::Deserialize;
use uuid::Uuid;

/// What a change may affect: webhooks as they were before the change, and events that webhooks get after
/// it. By default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    is_everything: bool,
    ids: HashSet<Uuid>,
    /// The patterns that are a whole type.
    types: HashSet<Box<str>>,
    /// The patterns that are a prefix, without the dot and the star.
    prefixes: HashSet<Box<str>>,
    /// Whether one of the patterns is `*`.
    has_every_type: bool,
    /// The accounts whose events the changed webhooks get.
    accounts: HashSet<Box<str>>,
    /// Whether one of the changed webhooks gets the events of all accounts.
    for_everybody: bool,
}

/// The description of a change, as `sql/015_changes.sql` writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    ids: Vec<Uuid>,
    patterns: Vec<Box<str>>,
    accounts: Vec<Box<str>>,
    everybody: bool,
}

impl Scope {
    /// A scope of all webhooks and events: anything may have changed.
    #[must_use]
    pub fn everything() -> Self {
        Self { is_everything: true, ..Self::default() }
    }

    /// The scope of a webhook that gets fewer events than before, or none.
    #[must_use]
    pub fn of_webhook(id: Uuid) -> Self {
        Self { ids: HashSet::from([id]), ..Self::default() }
    }

    /// Reads the trigger's description of a change. If it can't be read, anything may have changed.
    #[must_use]
    pub fn read(json: &str) -> Self {
        let Ok(Written { ids, patterns, accounts, everybody }) = serde_json::from_str(json) else {
            return Self::everything();
        };
        let mut scope = Self {
            ids: ids.into_iter().collect(),
            accounts: accounts.into_iter().collect(),
            for_everybody: everybody,
            ..Self::default()
        };
        for pattern in patterns {
            // A pattern such as `a*` is kept as a type of this name, which no event has.
            match pattern.strip_suffix(".*") {
                Some(prefix) => drop(scope.prefixes.insert(prefix.into())),
                None if *pattern == *"*" => scope.has_every_type = true,
                None => drop(scope.types.insert(pattern)),
            }
        }
        scope
    }

    /// Whether all cached answers may be invalid.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.is_everything
    }

    /// Whether the change may affect a webhook.
    #[must_use]
    pub fn concerns_webhook(&self, id: Uuid) -> bool {
        self.is_everything || self.ids.contains(&id)
    }

    /// Whether another webhook may get events of this type and account now. `None` stands for events
    /// without an account.
    #[must_use]
    pub fn concerns_events(&self, event_type: &str, account: Option<&str>) -> bool {
        let is_for = || account.is_some_and(|account| self.accounts.contains(account));
        self.is_everything || ((self.for_everybody || is_for()) && self.concerns_type(event_type))
    }

    /// Whether another webhook may get events of this type now that belong to an account for which
    /// `is_one` is false.
    #[must_use]
    pub fn concerns_others(&self, event_type: &str, is_one: impl Fn(&str) -> bool) -> bool {
        !self.accounts.iter().all(|account| is_one(account)) && self.concerns_type(event_type)
    }

    /// Whether a webhook in the scope may want events of a type, as [`super::matching_patterns`] defines
    /// it.
    fn concerns_type(&self, event_type: &str) -> bool {
        let has_prefix = || {
            let mut dots = event_type.match_indices('.');
            dots.any(|(dot, _)| self.prefixes.contains(&event_type[..dot]))
        };
        self.is_everything
            || self.has_every_type
            || self.types.contains(event_type)
            || (!self.prefixes.is_empty() && has_prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::super::matching_patterns;
    use super::*;
    use proptest::prelude::*;

    fn wanting(patterns: &[&str]) -> Scope {
        let patterns = serde_json::to_string(patterns).expect("texts");
        Scope::read(&format!(
            r#"{{"ids" : [], "patterns" : {patterns}, "accounts" : ["x", "y"], "everybody" : false}}"#
        ))
    }

    #[test]
    fn a_scope_concerns_the_webhooks_that_it_names() {
        let [named, other] = [1, 2].map(Uuid::from_u128);
        let scope = Scope::read(&format!(
            r#" {{"ids":["{named}"],"patterns":["a.b"],"accounts":[],"everybody":true}}"#
        ));
        assert!(!scope.is_everything());
        assert!(scope.concerns_webhook(named) && !scope.concerns_webhook(other));
        for account in [None, Some("x")] {
            assert!(scope.concerns_events("a.b", account));
            assert!(!scope.concerns_events("a.c", account));
        }
        assert!(!scope.concerns_others("a.b", |_| false));
        let scope = Scope::of_webhook(named);
        assert!(scope.concerns_webhook(named) && !scope.concerns_events("a.b", None));
    }

    #[test]
    fn a_change_for_one_account_concerns_no_other() {
        let scope = wanting(&["a.*"]);
        assert!(!scope.concerns_events("a.b", None));
        assert!(scope.concerns_events("a.b", Some("x")) && scope.concerns_events("a.b", Some("y")));
        assert!(!scope.concerns_events("a.b", Some("z")) && !scope.concerns_events("b", Some("x")));
        // Only account x is known; y may get such events now.
        assert!(scope.concerns_others("a.b", |account| account == "x"));
        assert!(!scope.concerns_others("a.b", |_| true) && !scope.concerns_others("b", |_| false));
    }

    #[test]
    fn an_unreadable_description_means_that_anything_may_have_changed() {
        let of =
            |id: &str| format!(r#"{{"ids":[{id}],"patterns":[],"accounts":[],"everybody":true}}"#);
        assert_ne!(Scope::read(&of("")), Scope::everything());
        for text in ["", "{}", "17", &of("17"), &of("\"x\""), "{\"ids\":[]}"] {
            assert_eq!(Scope::read(text), Scope::everything(), "{text:?}");
        }
        let scope = Scope::everything();
        assert!(scope.concerns_webhook(Uuid::nil()) && scope.concerns_events("a", None));
    }

    proptest! {
        #[test]
        fn a_scope_concerns_exactly_the_types_that_its_patterns_match(
            patterns in prop::collection::vec("[ab.*]{1,5}", 0..4),
            event_type in "[ab.]{1,6}",
        ) {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let matching = matching_patterns(&event_type);
            let expected = patterns.iter().any(|pattern| matching.iter().any(|it| it == pattern));
            prop_assert_eq!(wanting(&patterns).concerns_events(&event_type, Some("x")), expected);
        }
    }
}
