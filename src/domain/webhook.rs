//! A webhook: a registered URL, and the patterns of the event types it wants.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Uri;
use http::uri::Scheme;
use url::Url;
use uuid::Uuid;

use super::account;
use super::event::Event;
use super::limits::Limits;
use super::secret::Secret;
use super::settings::{Columns, WebhookSettings};
use super::shown;
use super::signature::{BadSecret, Key, Keys, UnixSeconds};
use super::statuses::Statuses;

mod patterns;
mod place;
mod scope;
mod twins;

pub use patterns::{Patterns, check_pattern, doubt, matching_patterns, nearly_matches};
pub use place::place;
pub use scope::Scope;
pub use twins::{Candidate, Twins, twins};

/// The longest URL in characters. Receivers accept request lines of at least 8,000 bytes (RFC 9110,
/// section 4.1).
pub const MAX_URL_CHARS: usize = 8_192;

/// How many characters are kept of PostgreSQL's message about an unreadable row.
const MOST_OF_WORDS: usize = 200;

/// A registered webhook, as far as a delivery needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The primary key; stable across changes of the URL.
    pub id: Uuid,
    /// The URL as registered.
    pub post_url: Box<str>,
    /// The account whose events it gets, and no others; `None` for every event.
    pub account: Option<Box<str>>,
    /// The group with which it shares the part of the capacity that one customer or host may use.
    pub group: Group,
    /// Whether it is paused: its deliveries wait until it is resumed.
    pub is_paused: bool,
    /// When it was looked up.
    pub as_of: AsOf,
    /// Where its events go and what signs them, or why it can't be used, without any secret. Read once
    /// when the webhook is looked up, not for each delivery.
    pub target: Result<Target, String>,
}

/// A moment in the life of a memory of webhooks.
#[derive(Clone, Debug, Default)]
pub struct AsOf {
    /// How many changes of the table had been reported. All copies of an answer share this, so that it
    /// can be raised when the answer is known to be still valid.
    changes: Arc<AtomicU32>,
    /// The age of the memory in milliseconds.
    pub millis: u64,
}

impl AsOf {
    /// After this many changes of the table.
    #[must_use]
    pub fn new(changes: u32, millis: u64) -> Self {
        Self { changes: Arc::new(AtomicU32::new(changes)), millis }
    }

    /// The number of changes of the table after which it was still valid.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// It is still valid after this many changes.
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

/// Webhooks that belong together: those of one account, or without an account those whose URLs have the
/// same host and port. One customer's many webhooks must not crowd out others.
///
/// Identified by a hash of its name: two groups with the same hash (one in 2⁶⁴) share capacity.
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
            // It never has a request under way.
            (None, Err(_)) => Self::of(&format!("webhook {id}")),
        }
    }
}

/// What a request needs to know of a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Made by [`read_url`].
    pub uri: Uri,
    /// The keys that sign the requests.
    pub keys: Keys,
    /// Most webhooks have none.
    pub settings: Option<Box<WebhookSettings>>,
}

/// The secrets of a webhook as registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// `None` if its requests aren't signed.
    pub current: Option<Secret>,
    /// The previous one, and when it expires.
    pub previous: Option<(Secret, UnixSeconds)>,
}

impl Webhook {
    /// A webhook as registered, which is untrusted input. It isn't paused.
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
        // The URL comes first: without a usable one, the other problems don't matter.
        let target = uri.and_then(|uri| Ok(Target { uri, keys: keys?, settings: settings? }));
        let account = columns.account.as_deref();
        let group = Group::of_webhook(id, account, &target);
        let (post_url, account) = (post_url.into(), account.map(Box::from));
        Self { id, post_url, account, group, is_paused: false, as_of: AsOf::default(), target }
    }

    /// A webhook whose row can't be read; `why` is PostgreSQL's message.
    #[must_use]
    pub fn unreadable(id: Uuid, why: &str) -> Self {
        let why = shown::line(why, MOST_OF_WORDS);
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

    /// Whether it may have this event, by its account.
    #[must_use]
    pub fn may_have(&self, event: &Event) -> bool {
        account::may_have(self.account.as_deref(), event.account.as_deref())
    }

    /// Its approximate memory in bytes.
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
    fn keys(&self) -> Result<Keys, BadSecret> {
        let key = |secret: &Secret| Key::parse(secret.expose());
        let previous = self.previous.as_ref().map(|(secret, ends)| Ok((key(secret)?, *ends)));
        Ok(Keys {
            current: self.current.as_ref().map(key).transpose()?,
            previous: previous.transpose()?,
        })
    }
}

/// A webhook's URL for a request, checked by [`check_url`].
///
/// # Errors
/// As for [`check_url`].
pub fn read_url(text: &str) -> Result<Uri, String> {
    let url = check_url(text)?;
    Uri::try_from(url.as_str()).map_err(|error| format!("unusable URL: {error}"))
}

/// Checks a webhook's URL as far as possible without a network: http or https, with a host, without a
/// user name, and not too long. The result is normalized as in browsers (WHATWG URL): an address in
/// decimal, octal or hexadecimal form becomes the usual one, which the address guard checks.
///
/// # Errors
/// What is wrong, in one line without the URL, which may hold a secret.
pub fn check_url(text: &str) -> Result<Url, String> {
    if text.chars().nth(MAX_URL_CHARS).is_some() {
        return Err(format!("unusable URL: longer than {MAX_URL_CHARS} characters"));
    }
    let mut url = Url::parse(text).map_err(|error| format!("unusable URL: {error}"))?;
    if url.as_str().len() > MAX_URL_CHARS {
        return Err(format!("unusable URL: longer than {MAX_URL_CHARS} characters once encoded"));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err("unusable URL: needs http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("unusable URL: a user name and password in it are not sent".to_owned());
    }
    if url.port() == Some(0) {
        return Err("unusable URL: nobody listens on port 0".to_owned());
    }
    // A fragment is never sent (RFC 9110, section 7.1).
    url.set_fragment(None);
    Ok(url)
}

/// Replaces a part that may be secret.
pub const HIDDEN: &str = "***";

/// Whether a part of the URL is hidden, or may be: its userinfo, query or fragment contains [`HIDDEN`].
#[must_use]
pub fn hides_part(url: &str) -> bool {
    let after = url.split_once("://").map_or(url, |(_, after)| after);
    let (place, tail) = after.split_at(after.find(['?', '#']).unwrap_or(after.len()));
    let authority = place.split('/').next().unwrap_or_default();
    let userinfo = authority.rsplit_once('@').map_or("", |(userinfo, _)| userinfo);
    tail.contains(HIDDEN) || userinfo.contains(HIDDEN)
}

/// A webhook's URL as registered, for people to recognize, without what may be secret: user name and
/// password, query and fragment become `***`. So do these parts of a text that isn't a usable URL.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    // A user name makes a URL unusable: in a usable one, an `@` belongs to the path or the query.
    let (start, rest) = if check_url(text).is_err()
        && let Some(at) = text.rfind('@')
    {
        let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let after = text.trim_start_matches(is_of_scheme);
        let scheme = match after.strip_prefix(':') {
            Some(rest) if rest.starts_with(['/', '\\']) => {
                let rest = rest.trim_start_matches(['/', '\\']);
                &text[..text.len() - rest.len()]
            }
            _ => "",
        };
        (format!("{scheme}{HIDDEN}"), &text[at.max(scheme.len())..])
    } else {
        (String::new(), text)
    };
    match rest.find(['?', '#']) {
        None => format!("{start}{rest}"),
        Some(end) => format!("{start}{}{HIDDEN}", &rest[..=end]),
    }
}

/// The form in which URLs are compared: two that lead to the same place have the same, however they are
/// written. An unusable URL is compared as it is.
#[must_use]
pub fn url_key(text: &str) -> String {
    check_url(text).map_or_else(|_| text.to_owned(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Value;
    use crate::domain::event::Properties;
    use proptest::prelude::*;

    #[test]
    fn webhooks_belong_to_their_account_else_to_their_host_and_port() {
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
        assert!(!same(("", None), ("", None)), "each unusable one is on its own");
    }

    #[test]
    fn a_url_needs_http_and_a_host_and_no_user() {
        for (good, normal) in [
            ("http://a", "http://a/"),
            ("HTTPS://a.B/c?d=e#f", "https://a.b/c?d=e"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
            ("http://127.1/", "http://127.0.0.1/"),
            ("http://0x7f000001/", "http://127.0.0.1/"),
            ("http://2130706433/", "http://127.0.0.1/"),
            ("http://017700000001/", "http://127.0.0.1/"),
            ("http://0177.0.0.1/", "http://127.0.0.1/"),
            ("http://0x7f.1/", "http://127.0.0.1/"),
            ("http://127.0.0.1./", "http://127.0.0.1/"),
            ("http://１２７.０.０.１/", "http://127.0.0.1/"),
            ("http://127。0。0。1/", "http://127.0.0.1/"),
            ("http://%31%32%37.0.0.1/", "http://127.0.0.1/"),
            ("http:\\\\127.0.0.1\\", "http://127.0.0.1/"),
            ("http:127.0.0.1", "http://127.0.0.1/"),
            (" http://127.0.\n0.1/ ", "http://127.0.0.1/"),
            ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
            ("http://LOCALHOST./", "http://localhost./"),
            ("http://ⓛocalhost/", "http://localhost/"),
        ] {
            assert_eq!(check_url(good).expect(good).as_str(), normal);
        }
        for bad in [
            "",
            "x",
            "/path",
            "ftp://a/",
            "http://",
            "http://u:p4ss@a/",
            "http://user@a/",
            "http://:p4ss@a/",
            "http://[fe80::1%25eth0]/",
            "http://[fe80::1%eth0]/",
            "http://256.0.0.1/",
            "http://1.2.3.4.5/",
            "http://0x100000000/",
            "http://127.0.0.1%00/",
            "http://a%2f@b/",
            "https:///",
            "file:///etc/passwd",
            "gopher://127.0.0.1/",
            "unix:/run/x",
            "http://a b/",
            "http://a:99999/",
            "http://a:0/",
            "http://[::1/",
            "mailto:x@y",
        ] {
            let error = check_url(bad).expect_err(bad);
            assert!(
                error.starts_with("unusable URL: ") && !error.contains("p4ss"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_url_that_no_receiver_can_be_expected_to_take_is_unusable() {
        let url = |length: usize| format!("http://a/{}", "x".repeat(length - 9));
        assert!(check_url(&url(MAX_URL_CHARS)).is_ok());
        // The second one is too long once it is encoded.
        for long in [url(MAX_URL_CHARS + 1), format!("http://a/{}", "é".repeat(2_000))] {
            let error = check_url(&long).expect_err("it is too long");
            assert!(error.starts_with("unusable URL: longer than 8192"), "{error}");
        }
    }

    #[test]
    fn a_webhook_takes_the_room_of_its_texts() {
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
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, shown) in [
            ("https://a.b/c?token=s3cret#f", "https://a.b/c?***"),
            ("https://a.b/c#s3cret", "https://a.b/c#***"),
            ("https://a.b/c", "https://a.b/c"),
            ("https://a.b/@me/in", "https://a.b/@me/in"),
            ("https://a.b/in?to=x@s3cret", "https://a.b/in?***"),
            ("https://u:s3cret@a.b/", "https://***@a.b/"),
            ("https://u:s3cret@a.b/?s3cret", "https://***@a.b/?***"),
            ("https://u:s3/cret?s3cret#s3cret@a.b/c", "https://***@a.b/c"),
            ("http:\\\\u:s3cret@a.b", "http:\\\\***@a.b"),
            ("s3cret:s3cret@a.b", "***@a.b"),
            ("ftp://a.b/?s3cret", "ftp://a.b/?***"),
            ("not a URL", "not a URL"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown);
            // Hiding it again changes nothing.
            assert_eq!(without_secrets(shown), shown);
        }
    }

    #[test]
    fn an_unusable_secret_makes_a_webhook_unusable_and_is_not_told() {
        let secrets = |current: &str| Secrets {
            current: Some(Secret::new(current.to_owned())),
            previous: None,
        };
        let webhook =
            Webhook::new(Uuid::nil(), "http://a/", &secrets("s3cret"), &Columns::default());
        let error = webhook.target.expect_err("it is no secret");
        assert!(error.contains("rotate-secret") && !error.contains("s3cret"), "{error}");
        let good = Key::secret_of([1; 32]);
        let secrets = secrets(good.expose());
        let webhook = Webhook::new(Uuid::nil(), "http://a/", &secrets, &Columns::default());
        assert!(webhook.target.expect("a target").keys.current.is_some());
    }

    #[test]
    fn an_unusable_setting_makes_a_webhook_unusable_and_the_remedy_is_said() {
        let columns = Columns { timeout_ms: Some("0".to_owned()), ..Columns::default() };
        let webhook = Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
        assert!(webhook.limits().is_none());
        let error = webhook.target.expect_err("no request can be made in no time");
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
            let event = event.expect("all of these are sound");
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

        #[test]
        fn no_url_makes_it_panic(text in "(http://)?.{0,40}") {
            let _ = (read_url(&text), without_secrets(&text));
        }
    }
}
