//! The content of a request: its headers, its signature and its body.

use std::time::SystemTime;

use http::{HeaderName, HeaderValue, header::CONTENT_TYPE};
use ureq::RequestBuilder;
use ureq::typestate::WithBody;

use super::Sender;
use crate::domain::delivery::Headers;
use crate::domain::encoding::{header_of_id, header_of_name};
use crate::domain::event::{Event, without_byte_order_mark};
use crate::domain::shown;
use crate::domain::time::to_unix_seconds;
use crate::domain::webhook::{Target, Webhook};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static WEBHOOK_EVENT_TYPE: HeaderName = HeaderName::from_static("webhook-event-type");
static WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("webhook-attempt");
static WEBHOOK_ACCOUNT: HeaderName = HeaderName::from_static("webhook-account");

/// The content of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The webhook to send to.
    pub webhook: &'a Webhook,
    /// Becomes `webhook-id` and `webhook-event-type`.
    pub event: &'a Event,
    /// Becomes `webhook-attempt`: the number of this attempt of its delivery, from 1.
    pub attempt: u32,
    /// The headers of the producer's message, some of which are forwarded.
    pub headers: &'a Headers,
    /// The producer's content type; JSON if there is none.
    pub content_type: Option<&'a str>,
    /// The producer's bytes.
    pub body: &'a [u8],
    /// Becomes `webhook-timestamp`: the time of this attempt.
    pub at: SystemTime,
}

impl Request<'_> {
    /// The request as it is signed and sent.
    pub(super) fn as_sent(self) -> Self {
        Self { body: without_byte_order_mark(self.body), ..self }
    }
}

impl Sender {
    /// The request without its body, signed for the body.
    pub(super) fn prepare(
        &self,
        target: &Target,
        request: Request<'_>,
    ) -> RequestBuilder<WithBody> {
        let at = to_unix_seconds(request.at);
        let id = header_of_id(&request.event.id);
        // A producer's content type is ignored if it can't be a header's value.
        let content_type = request
            .content_type
            .filter(|text| !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~')))
            .unwrap_or("application/json");
        let mut post = self
            .agents
            .of(&target.uri)
            .post(&target.uri)
            .header(CONTENT_TYPE, content_type)
            .header(&WEBHOOK_ID, &*id)
            .header(&WEBHOOK_TIMESTAMP, at)
            .header(&WEBHOOK_EVENT_TYPE, &*header_of_name(&request.event.event_type))
            .header(&WEBHOOK_ATTEMPT, number(request.attempt));
        if let Some(signature) = target.keys.sign(&id, at, request.body) {
            post = post.header(&WEBHOOK_SIGNATURE, signature);
        }
        if let Some(account) = &request.event.account {
            post = post.header(&WEBHOOK_ACCOUNT, &*header_of_name(account));
        }
        let own = target.settings.as_ref().map_or(&[][..], |settings| &settings.headers[..]);
        for (name, value) in own {
            post = post.header(name, value);
        }
        post = self.with_forwarded(post, request, own);
        if let Some(timeout) = target.settings.as_ref().and_then(|settings| settings.timeout) {
            let timeout = timeout.min(self.request_timeout);
            post = post.config().timeout_global(Some(timeout)).build();
        }
        post
    }

    /// Adds the forwarded headers. The webhook's own headers take precedence.
    fn with_forwarded(
        &self,
        mut post: RequestBuilder<WithBody>,
        request: Request<'_>,
        own: &[(HeaderName, HeaderValue)],
    ) -> RequestBuilder<WithBody> {
        let forwarded = self.forwarding.of(request.headers);
        for (name, value) in forwarded.headers {
            if own.iter().all(|(other, _)| *other != name) {
                post = post.header(name, value);
            }
        }
        for (name, why) in forwarded.left_out {
            let id = shown::word(&request.event.id);
            log::debug!("header not forwarded event={id} header={name} because={why:?}");
        }
        post
    }
}

/// The number of an attempt as a header. Nearly all are 1, for which nothing is allocated.
fn number(attempt: u32) -> HeaderValue {
    match attempt {
        1 => HeaderValue::from_static("1"),
        other => other.into(),
    }
}
