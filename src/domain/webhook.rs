//! A webhook: a registered URL, and the patterns of the event types it wants.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Uri;
use http::uri::Scheme;
use uuid::Uuid;

use super::account;
use super::event::Event;
use super::limits::Limits;
use super::secret::Secret;
use super::settings::{Columns, WebhookSettings};
use super::shown;
use super::signature::{BadSecret, SigningKey, SigningKeys, UnixSeconds};
use super::statuses::Statuses;

mod patterns;
mod place;
mod post_url;
mod scope;
mod twins;

pub use patterns::{Patterns, check_pattern, doubt, matching_patterns, nearly_matches};
pub use place::place;
pub use post_url::{
    HIDDEN, MAX_URL_CHARS, check_url, hides_part, read_url, url_key, without_secrets,
};
pub use scope::Scope;
pub use twins::{Candidate, Twins, twins};

/// How many characters of PostgreSQL's message about an unreadable row are kept.
const MAX_MESSAGE_CHARS: usize = 200;

/// A registered webhook, with what a delivery needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The primary key; stable across changes of the URL.
    pub id: Uuid,
    /// The URL as registered.
    pub post_url: Box<str>,
    /// The account whose events it gets; `None` if it gets the events of all accounts.
    pub account: Option<Box<str>>,
    /// The group with which it shares the capacity that one customer or host may use.
    pub group: Group,
    /// Whether it is paused: its deliveries wait until it is resumed.
    pub is_paused: bool,
    /// When it was looked up.
    pub as_of: AsOf,
    /// Where its events go and what signs them; or why it can't be used, without any secret. Computed
    /// once when the webhook is looked up, not for each delivery.
    pub target: Result<Target, String>,
}

/// When an answer about webhooks was valid, relative to the cache that remembers it.
#[derive(Clone, Debug, Default)]
pub struct AsOf {
    /// How many changes of the table had been reported by then. All copies of an answer share this
    /// number, so that it can be raised once the answer turns out to be still valid.
    changes: Arc<AtomicU32>,
    /// The age of the cache at that time, in milliseconds.
    pub millis: u64,
}

impl AsOf {
    /// After this many changes of the table, at this age of the cache.
    #[must_use]
    pub fn new(changes: u32, millis: u64) -> Self {
        Self { changes: Arc::new(AtomicU32::new(changes)), millis }
    }

    /// After how many changes of the table the answer was still valid.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// Records that the answer is still valid after this many changes.
    pub fn outlives(&self, changes: u32) {
        self.changes.store(changes, Ordering::Release);
    }
}

impl PartialEq for AsOf {
    fn eq(&self, other: &Self) -> bool {
        (self.changes(), self.millis) == (other.changes(), other.millis)
    }
}

impl Eq for AsOf {}

/// Webhooks that share capacity: those of one account, and of the webhooks without an account those whose
/// URLs have the same host and port. So the many webhooks of one customer can't crowd out others.
///
/// A group is identified by a hash of its name. Two groups with the same hash (a chance of one in 2⁶⁴)
/// would share capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u64);

impl Group {
    /// The group of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }

    fn of_webhook(id: Uuid, account: Option<&str>, target: &Result<Target, String>) -> Self {
        match (account, target) {
            (Some(account), _) => Self::of(&format!("account {account}")),
            (None, Ok(Target { uri, .. })) => {
                let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
                let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16());
                Self::of(&format!("host {host}:{}", port.unwrap_or(usual)))
            }
            // A webhook that can't be used never has a request in flight.
            (None, Err(_)) => Self::of(&format!("webhook {id}")),
        }
    }
}

/// The parts of a webhook that a request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URL, as [`read_url`] reads it.
    pub uri: Uri,
    /// The keys that sign the requests.
    pub keys: SigningKeys,
    /// The settings. Most webhooks have none.
    pub settings: Option<Box<WebhookSettings>>,
}

/// The secrets of a webhook as registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// The current secret; `None` if the requests aren't signed.
    pub current: Option<Secret>,
    /// The previous secret, and when it expires.
    pub previous: Option<(Secret, UnixSeconds)>,
}

impl Webhook {
    /// Creates a webhook from its row, which is untrusted input. It isn't paused.
    #[must_use]
    pub fn new(id: Uuid, post_url: &str, secrets: &Secrets, columns: &Columns) -> Self {
        let uri = read_url(post_url);
        let keys = secrets.keys().map_err(|error| {
            format!("unusable secret: {error}: `webhooks rotate-secret {id}` makes another")
        });
        let settings = columns.read().map_err(|unusable| {
            let flag = unusable.column.flag();
            format!(
                "{unusable}: correct it by `webhooks set {id}` with --{flag}, or remove it with --unset {flag}"
            )
        });
        // The URL is reported first: without a usable one, the other problems don't matter.
        let target = uri.and_then(|uri| Ok(Target { uri, keys: keys?, settings: settings? }));
        let account = columns.account.as_deref();
        let group = Group::of_webhook(id, account, &target);
        let (post_url, account) = (post_url.into(), account.map(Box::from));
        Self { id, post_url, account, group, is_paused: false, as_of: AsOf::default(), target }
    }

    /// Creates a webhook whose row can't be read; `why` is PostgreSQL's message.
    #[must_use]
    pub fn unreadable(id: Uuid, why: &str) -> Self {
        let why = shown::line(why, MAX_MESSAGE_CHARS);
        let target = Err(format!("its row in the table cannot be read: {why}: correct it by SQL"));
        let group = Group::of_webhook(id, None, &target);
        let post_url = Box::default();
        Self {
            id,
            post_url,
            account: None,
            group,
            is_paused: false,
            as_of: AsOf::default(),
            target,
        }
    }

    /// Whether the accounts of webhook and event allow that the webhook gets the event.
    #[must_use]
    pub fn may_have(&self, event: &Event) -> bool {
        account::may_have(self.account.as_deref(), event.account.as_deref())
    }

    /// How much memory it takes, in bytes. Approximate.
    #[must_use]
    pub fn size(&self) -> usize {
        let of_target = match &self.target {
            Err(problem) => problem.len(),
            Ok(Target { uri, keys: _, settings }) => {
                let of_uri = uri.path_and_query().map_or(0, |path| path.as_str().len())
                    + uri.authority().map_or(0, |authority| authority.as_str().len());
                let of_settings =
                    |settings: &WebhookSettings| size_of::<WebhookSettings>() + settings.size();
                of_uri + settings.as_deref().map_or(0, of_settings)
            }
        };
        let of_account = self.account.as_deref().map_or(0, str::len);
        size_of::<Self>() + self.post_url.len() + of_account + of_target
    }

    /// The settings, if there are any that can be used.
    #[must_use]
    pub fn settings(&self) -> Option<&WebhookSettings> {
        self.target.as_ref().ok()?.settings.as_deref()
    }

    /// The statuses after which its deliveries aren't retried, if it has its own.
    #[must_use]
    pub fn no_retry_status(&self) -> Option<&Statuses> {
        self.settings()?.no_retry_status.as_ref()
    }

    /// The webhook's own limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.settings().map_or(Limits::default(), |settings| settings.limits)
    }
}

impl Secrets {
    fn keys(&self) -> Result<SigningKeys, BadSecret> {
        let key = |secret: &Secret| SigningKey::parse(secret.expose());
        let previous = self.previous.as_ref().map(|(secret, ends)| Ok((key(secret)?, *ends)));
        Ok(SigningKeys {
            current: self.current.as_ref().map(key).transpose()?,
            previous: previous.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Value;
    use crate::domain::event::Properties;
    use proptest::prelude::*;

    #[test]
    fn a_group_is_an_account_or_else_a_host_and_port() {
        let group = |id: u128, url: &str, account: Option<&str>| {
            let columns = Columns { account: account.map(str::to_owned), ..Columns::default() };
            Webhook::new(Uuid::from_u128(id), url, &Secrets::default(), &columns).group
        };
        let same = |one: (&str, Option<&str>), other: (&str, Option<&str>)| {
            group(1, one.0, one.1) == group(2, other.0, other.1)
        };
        assert!(same(("http://a/1", None), ("http://A:80/2?x", None)));
        assert!(same(("https://a/", None), ("https://a:443/", None)));
        assert!(!same(("http://a/", None), ("https://a/", None)));
        assert!(!same(("http://a:1/", None), ("http://a:2/", None)));
        assert!(!same(("http://a/", None), ("http://b/", None)));
        assert!(same(("http://a/", Some("acme")), ("https://b:7/", Some("acme"))));
        assert!(!same(("http://a/", Some("acme")), ("http://a/", Some("other"))));
        assert!(!same(("http://a/", Some("a:80")), ("http://a/", None)));
        assert!(!same(("", None), ("", None)), "an unusable webhook has its own group");
    }

    #[test]
    fn the_size_of_a_webhook_includes_its_texts() {
        let size = |url: &str| {
            Webhook::new(Uuid::nil(), url, &Secrets::default(), &Columns::default()).size()
        };
        let plain = size("http://a/");
        assert!((size_of::<Webhook>()..600).contains(&plain), "{plain}");
        let long = format!("http://a/{}", "x".repeat(5_000));
        assert!(size(&long) > plain + 9_000);
        assert!(size(&"x".repeat(5_000)) > 5_000);
        let unreadable = Webhook::unreadable(Uuid::nil(), &"é\n".repeat(1_000));
        assert!(unreadable.size() < 2_000);
        assert!(unreadable.target.is_err_and(|problem| !problem.contains('\n')));
    }

    #[test]
    fn an_unusable_secret_makes_a_webhook_unusable_and_is_not_disclosed() {
        let secrets = |current: &str| Secrets {
            current: Some(Secret::new(current.to_owned())),
            previous: None,
        };
        let webhook =
            Webhook::new(Uuid::nil(), "http://a/", &secrets("s3cret"), &Columns::default());
        let error = webhook.target.expect_err("it is no secret");
        assert!(error.contains("rotate-secret") && !error.contains("s3cret"), "{error}");
        let good = SigningKey::secret_of([1; 32]);
        let secrets = secrets(good.expose());
        let webhook = Webhook::new(Uuid::nil(), "http://a/", &secrets, &Columns::default());
        assert!(webhook.target.expect("a target").keys.current.is_some());
    }

    #[test]
    fn an_unusable_setting_makes_a_webhook_unusable_and_the_message_has_the_remedy() {
        let columns = Columns { timeout_ms: Some("0".to_owned()), ..Columns::default() };
        let webhook = Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
        assert!(webhook.limits().is_none());
        let error = webhook.target.expect_err("a timeout of zero is unusable");
        for part in ["unusable timeout_ms", "webhooks set 00000000-", "--unset timeout"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_event_may_go_to_a_webhook_of_another_account(
            webhooks in prop::collection::vec(prop::option::of("[aA7 é]{0,2}"), 1..20),
            header in prop::option::of(prop_oneof![
                "[aA7 é]{0,2}".prop_map(Value::Text),
                (-10_i64..10).prop_map(Value::Integer),
            ]),
            members in prop::collection::vec(
                ("account|account_id|data", "\"[aA7 é]{0,2}\"|7|-7|7\\.0|null|true|\\{\\}|\\[7\\]"), 0..4,
            ),
        ) {
            let members = members.iter().map(|(name, value)| format!(",\"{name}\":{value}"));
            let body = format!("{{\"type\":\"t\"{}}}", members.collect::<String>());
            let given = Properties { account: header.as_ref(), ..Properties::default() };
            let event = Event::read(given, body.as_bytes(), 9_999, || "new".to_owned());
            let event = event.expect("all of these are valid");
            // The account, determined in another way.
            let parsed: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            let member = |name: &str| match &parsed[name] {
                serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
                serde_json::Value::Number(number) => number.as_i64().map(|it| it.to_string()),
                _ => None,
            };
            let owner = match header {
                Some(Value::Integer(number)) => Some(number.to_string()),
                Some(Value::Text(text)) if !text.is_empty() => Some(text),
                _ => member("account").or_else(|| member("account_id")),
            };
            for account in webhooks {
                let columns = Columns { account: account.clone(), ..Columns::default() };
                let webhook =
                    Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
                prop_assert_eq!(webhook.target.is_err(), account.as_deref() == Some(""));
                let is_its_own = account.is_none() || account == owner;
                prop_assert_eq!(webhook.may_have(&event), is_its_own, "{:?} {:?}", account, event);
            }
        }
    }
}
