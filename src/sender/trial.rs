//! An attempt for people to examine: the same request as for a delivery, and its result.

use http::HeaderMap;

use super::excerpt::QuotedSecrets;
use super::{ACCEPT, Request, Sender, USER_AGENT, answered, no_answer};
use crate::domain::outcome::Response;

/// A header as text.
type Header = (String, String);

/// The request and its result. The values of the webhook's own headers are shown as `***`. In the answer, these
/// and the URL's parameters are hidden too.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The request's headers; none if the webhook can't be used.
    pub headers: Vec<Header>,
    /// The response as a delivery would evaluate it.
    pub response: Response,
    /// The headers and body of the answer.
    pub answer: Option<ShownAnswer>,
}

/// The headers and body of an answer.
#[derive(Clone, Debug)]
pub struct ShownAnswer {
    /// All its headers.
    pub headers: Vec<Header>,
    /// The beginning of its body.
    pub body: String,
    /// Whether the body was longer.
    pub is_cut: bool,
}

impl Sender {
    /// Makes an attempt as [`Sender::post`] does, and keeps `most` characters of the answer's body.
    #[must_use]
    pub fn try_out(&self, request: Request<'_>, most: usize) -> Trial {
        let request = request.as_sent();
        let target = match &request.webhook.target {
            Ok(target) => target,
            Err(detail) => {
                let response = Response::Refused { detail: detail.clone() };
                return Trial { headers: Vec::new(), response, answer: None };
            }
        };
        let secrets = QuotedSecrets::of(target);
        let prepared = self.prepare(target, request);
        let mut headers = prepared.headers_ref().map(shown).unwrap_or_default();
        // Those that the client adds.
        let authority = target.uri.authority().map(ToString::to_string).unwrap_or_default();
        headers.push(("host".to_owned(), authority));
        headers.push(("content-length".to_owned(), request.body.len().to_string()));
        for (name, value) in [("user-agent", USER_AGENT), ("accept", ACCEPT)] {
            if !headers.iter().any(|(other, _)| other == name) {
                headers.push((name.to_owned(), value.to_owned()));
            }
        }
        let mut response = match prepared.send(request.body) {
            Ok(response) => response,
            Err(error) => {
                let response = no_answer(error, self.limits(target));
                return Trial { headers, response, answer: None };
            }
        };
        // The status has decided.
        let (body, is_cut) = secrets.read(response.body_mut().as_reader(), 4 * most, most);
        let received = shown(response.headers());
        let received =
            received.into_iter().map(|(name, value)| (name, secrets.hide(&value))).collect();
        let answer = Some(ShownAnswer { headers: received, body, is_cut });
        Trial { headers, response: answered(&response), answer }
    }
}

/// Headers as text, with sensitive values hidden.
fn shown(headers: &HeaderMap) -> Vec<Header> {
    let shown = |value: &http::HeaderValue| match value.is_sensitive() {
        true => "***".to_owned(),
        false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    headers.iter().map(|(name, value)| (name.to_string(), shown(value))).collect()
}
