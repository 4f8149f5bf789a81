//! Notices: the notifier's own events, which tell operators and owners what happened to a webhook.
//!
//! A notice has the form of an event, so that webhooks can deliver it too. It contains nothing that may
//! be a secret: of a URL only the host, of a failure only the status.

use serde::Serialize;
use uuid::Uuid;

use super::account;
use super::broker_names::header::NOTICE;
use super::delivery::{Delivery, Headers, Value};
use super::time::{self, UnixMillis};

use super::outcome::DeadReason;
use super::webhook::read_url;

/// The version of `data`. It is raised when a field is removed or changes its meaning, not when one is
/// added.
const VERSION: u32 = 1;

/// The beginning of the reason for disabling a webhook that failed for too long.
pub const NO_SUCCESS: &str = "no success for ";

/// The reason for disabling a webhook whose receiver is gone.
pub const GONE: &str = "410 Gone";

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// The receiver's circuit breaker has been open for ten minutes.
    Failing,
    /// A receiver that was reported as failing has accepted a delivery.
    Recovered,
    /// The webhook gets no events any more.
    Disabled,
    /// The webhook gets its events again.
    Enabled,
    /// The webhook's deliveries wait.
    Paused,
    /// The webhook's deliveries no longer wait.
    Resumed,
    /// A delivery has become a dead letter.
    Dead,
}

impl NoticeKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Failing,
        Self::Recovered,
        Self::Disabled,
        Self::Enabled,
        Self::Paused,
        Self::Resumed,
        Self::Dead,
    ];

    /// The event type, which is also the routing key.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Failing => "webhook.failing",
            Self::Recovered => "webhook.recovered",
            Self::Disabled => "webhook.disabled",
            Self::Enabled => "webhook.enabled",
            Self::Paused => "webhook.paused",
            Self::Resumed => "webhook.resumed",
            Self::Dead => "delivery.dead",
        }
    }
}

/// Whether an event is a notice: by its header, or by its type in case somebody moved it without its
/// headers. The death of a notice produces no notice, because the chain might never end.
#[must_use]
pub fn is_notice(event_type: &str, headers: &Headers) -> bool {
    headers.contains_key(NOTICE) || NoticeKind::ALL.iter().any(|kind| kind.label() == event_type)
}

/// A notice, ready to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The event id.
    pub id: String,
    /// What it is about.
    pub kind: NoticeKind,
    /// The account of its webhook, if there is one and the notice may name it.
    pub account: Option<Box<str>>,
    /// The event's body, in JSON.
    pub body: Vec<u8>,
}

/// The webhook that a notice is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The account as in the table.
    pub account: Option<String>,
    /// The URL as in the table.
    pub post_url: String,
}

/// The details of a notice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[expect(
    missing_docs,
    reason = "they are the fields of the body, which src/manual/notices.md explains"
)]
pub enum NoticeDetails {
    Failing {
        #[serde(serialize_with = "time::serialize")]
        failing_since: UnixMillis,
        #[serde(serialize_with = "time::serialize")]
        last_failed_at: UnixMillis,
    },
    Recovered {
        #[serde(serialize_with = "time::serialize_option")]
        recovered_at: Option<UnixMillis>,
    },
    Disabled {
        disabled_at: Option<String>,
        cause: &'static str,
    },
    Paused {
        paused_at: Option<String>,
    },
    Dead(Death),
    /// The webhook was enabled or resumed, which has no details.
    Nothing {},
}

/// A delivery that has become a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Death {
    event_id: String,
    event_type: String,
    queue: String,
    reason: &'static str,
    attempts: u32,
    last_status: Option<u16>,
    #[serde(serialize_with = "time::serialize")]
    received_at: UnixMillis,
    #[serde(serialize_with = "time::serialize")]
    died_at: UnixMillis,
    /// The event's account. Other accounts must not learn of the event.
    #[serde(skip)]
    account: Option<Box<str>>,
}

impl Death {
    /// Describes the death of a delivery of an event from the queue `origin`.
    #[must_use]
    pub fn of(delivery: &Delivery, reason: DeadReason, origin: &str, at: UnixMillis) -> Self {
        Self {
            event_id: delivery.event.id.clone(),
            event_type: delivery.event.event_type.clone(),
            queue: origin.to_owned(),
            reason: reason.label(),
            attempts: delivery.attempts,
            last_status: status_in(&delivery.last_error),
            received_at: delivery.first_received_at,
            died_at: at,
            account: delivery.event.account.clone(),
        }
    }
}

/// The status in an error. The rest of the error is for the operator only.
fn status_in(error: &str) -> Option<u16> {
    let rest = error.strip_prefix("status ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Why a webhook is disabled, as a label. The operator's own words aren't disclosed.
#[must_use]
pub fn cause(reason: Option<&str>) -> &'static str {
    match reason {
        Some(GONE) => "gone",
        Some(reason) if reason.starts_with(NO_SUCCESS) => "failing",
        _ => "operator",
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    r#type: &'static str,
    version: u32,
    #[serde(serialize_with = "time::serialize")]
    timestamp: UnixMillis,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    webhook_id: Uuid,
    /// `None` if the URL can't be used.
    host: Option<String>,
    #[serde(flatten)]
    about: &'a NoticeDetails,
}

impl Notice {
    /// Makes a notice about a webhook. `subject` is `None` if it has been deleted since.
    #[must_use]
    pub fn new(
        id: String,
        kind: NoticeKind,
        at: UnixMillis,
        webhook_id: Uuid,
        subject: Option<&Subject>,
        about: &NoticeDetails,
    ) -> Self {
        let account = subject.and_then(|subject| disclosed_account(subject, about));
        let host = subject.and_then(|subject| host_of(&subject.post_url));
        let body = Body {
            id: &id,
            r#type: kind.label(),
            version: VERSION,
            timestamp: at,
            account: account.as_deref(),
            data: Data { webhook_id, host, about },
        };
        // Texts and numbers only: this can't fail.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        Self { id, kind, account, body }
    }

    /// The AMQP headers of its message.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let mut headers =
            Headers::from([(NOTICE.to_owned(), Value::Text(self.kind.label().to_owned()))]);
        if let Some(account) = &self.account {
            headers.insert("account".to_owned(), Value::Text(account.to_string()));
        }
        headers
    }
}

/// The webhook's account, unless the notice is about an event of another account. In that case the
/// webhook belonged to the other account before.
fn disclosed_account(Subject { account, .. }: &Subject, about: &NoticeDetails) -> Option<Box<str>> {
    let account = account.as_deref().filter(|account| account::check(account).is_ok())?;
    match about {
        NoticeDetails::Dead(death) if death.account.as_deref() != Some(account) => None,
        _ => Some(account.into()),
    }
}

/// The host and port of a URL. Its user, path and query may be secrets.
fn host_of(url: &str) -> Option<String> {
    let uri = read_url(url).ok()?;
    let host = uri.host()?;
    Some(uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{self, Event, Properties};

    const AT: UnixMillis = 1_764_039_268_123;

    fn subject(account: Option<&str>) -> Subject {
        let post_url = "https://example.com:8443/hooks/s3cret?token=s3cret".to_owned();
        Subject { account: account.map(str::to_owned), post_url }
    }

    fn death(account: Option<&str>) -> NoticeDetails {
        let delivery = Delivery {
            event: Event {
                id: "e1".to_owned(),
                event_type: "order.paid".to_owned(),
                account: account.map(Into::into),
            },
            webhook_id: Uuid::nil(),
            attempts: 3,
            first_received_at: AT - 1_000,
            last_error: "status 503 s3cret".to_owned(),
            last_answer: None,
            not_before: None,
        };
        NoticeDetails::Dead(Death::of(&delivery, DeadReason::Exhausted, "low", AT))
    }

    fn notice(kind: NoticeKind, subject: &Subject, about: &NoticeDetails) -> Notice {
        Notice::new("n1".to_owned(), kind, AT, Uuid::nil(), Some(subject), about)
    }

    #[test]
    fn a_notice_is_an_event_without_secrets() {
        let notice = notice(NoticeKind::Dead, &subject(Some("acme")), &death(Some("acme")));
        let body = String::from_utf8(notice.body.clone()).expect("JSON");
        assert_eq!(
            body,
            r#"{"id":"n1","type":"delivery.dead","version":1,"timestamp":"2025-11-25T02:54:28.123Z","account":"acme","data":{"webhook_id":"00000000-0000-0000-0000-000000000000","host":"example.com:8443","event_id":"e1","event_type":"order.paid","queue":"low","reason":"exhausted","attempts":3,"last_status":503,"received_at":"2025-11-25T02:54:27.123Z","died_at":"2025-11-25T02:54:28.123Z"}}"#
        );
        let event = Event::read(Properties::default(), &notice.body, 1 << 20, String::new);
        let event = event.expect("an event");
        assert_eq!((event.id.as_str(), event.event_type.as_str()), ("n1", "delivery.dead"));
        assert_eq!(event.account.as_deref(), Some("acme"));
    }

    #[test]
    fn a_notice_names_an_account_only_if_webhook_and_event_belong_to_it() {
        let told = |of_webhook, of_event| {
            notice(NoticeKind::Dead, &subject(of_webhook), &death(of_event)).account
        };
        assert_eq!(told(Some("acme"), Some("acme")).as_deref(), Some("acme"));
        assert_eq!(told(Some("acme"), Some("other")), None);
        assert_eq!(told(Some("acme"), None), None);
        assert_eq!(told(None, Some("acme")), None, "it is the operator's webhook");
        let paused = NoticeDetails::Paused { paused_at: None };
        let of = |account| notice(NoticeKind::Paused, &subject(account), &paused).account;
        assert_eq!(of(Some("acme")).as_deref(), Some("acme"));
        assert_eq!(of(Some("")), None, "no event can belong to it");
        let gone =
            Notice::new("n".to_owned(), NoticeKind::Dead, AT, Uuid::nil(), None, &death(None));
        assert!(gone.account.is_none() && gone.body.starts_with(b"{\"id\":\"n\""));
    }

    #[test]
    fn a_notice_is_recognized_by_its_header_or_its_type() {
        let header = Headers::from([(NOTICE.to_owned(), Value::Text(String::new()))]);
        assert!(is_notice("order.paid", &header));
        assert!(is_notice("delivery.dead", &Headers::new()));
        assert!(is_notice("webhook.failing", &Headers::new()));
        assert!(!is_notice("webhook.other", &Headers::new()));
        for kind in NoticeKind::ALL {
            assert!(event::check_event_type(kind.label()).is_ok());
        }
    }

    #[test]
    fn a_cause_is_a_label_and_never_the_operators_words() {
        assert_eq!(cause(Some("410 Gone")), "gone");
        assert_eq!(cause(Some("no success for 5d (DISABLE_AFTER)")), "failing");
        assert_eq!(cause(Some("they don't pay")), "operator");
        assert_eq!(cause(None), "operator");
    }
}
