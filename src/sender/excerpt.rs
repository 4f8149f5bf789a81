//! The beginning of a failed answer, for people. No part of a successful answer is kept.
//!
//! Receivers often quote the request. Headers and URL parameters that may be secret become `***` in the excerpt.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Read;

use percent_encoding::percent_decode_str;

use super::head::status_line;
use crate::domain::answer::Excerpt;
use crate::domain::outcome::Response;
use crate::domain::webhook::Target;

/// How many bytes are read per byte kept: much of a page is white space.
const BYTES_FOR_ONE: usize = 4;

/// Values up to this length, in bytes, aren't hidden: they are common in texts, so hiding them would leave nothing
/// of an answer. The limit for parameters is higher, because many are numbers or years.
const MOST_PLAIN_OF_HEADER: usize = 3;
const MOST_PLAIN_OF_QUERY: usize = 5;

/// How many bytes of a status line are examined: more than the shown part plus the longest header value, which
/// may be at its end.
const MOST_OF_STATUS_LINE: usize = 8_192;

thread_local! {
    /// ureq doesn't provide the text after the status. It reads an answer in the thread that made the request.
    static STATUS_LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Keeps the status line of a head that has just arrived, unless it is a success.
pub(super) fn note_status_line(head: &[u8]) {
    let line = status_line(head);
    if line.get(b"HTTP/1.1 ".len()) != Some(&b'2') {
        STATUS_LINE.set(line[..line.len().min(MOST_OF_STATUS_LINE)].to_vec());
    }
}

/// Adds the beginning of the answer to the response: its status line, and `most` bytes of its body.
pub(super) fn with_excerpt(
    mut response: Response,
    target: &Target,
    body: &mut impl Read,
    most: usize,
) -> Response {
    if let Response::Status { excerpt, .. } = &mut response {
        let secrets = QuotedSecrets::of(target);
        let room = BYTES_FOR_ONE * most;
        let (body, _) = secrets.read(body, room, room);
        let status_line = STATUS_LINE.take();
        let status_line = secrets.hide(&String::from_utf8_lossy(&status_line));
        *excerpt = Some(Box::new(Excerpt::new(&status_line, &body, most)));
    }
    response
}

/// The secrets of a request that an answer may quote.
pub(super) struct QuotedSecrets(Vec<String>);

impl QuotedSecrets {
    pub(super) fn of(target: &Target) -> Self {
        let own = target.settings.iter().flat_map(|settings| settings.headers.iter());
        let of_headers = own.filter_map(|(_, value)| value.to_str().ok()).map(str::to_owned);
        let parameters = target.uri.query().unwrap_or_default().split('&');
        let of_query = parameters.flat_map(|parameter| {
            let value = parameter.split_once('=').map_or(parameter, |(_, value)| value);
            let plain = percent_decode_str(value).decode_utf8_lossy();
            let differs = plain != value;
            [Some(value.to_owned()), differs.then(|| plain.into_owned())].into_iter().flatten()
        });
        // Of `Bearer dG9w…`, receivers quote only the token.
        let of_headers = of_headers.flat_map(|value| {
            let token = value.split_once(' ').map(|(_, token)| token.to_owned());
            [Some(value), token].into_iter().flatten()
        });
        let of_headers = of_headers.filter(|value| value.len() > MOST_PLAIN_OF_HEADER);
        let of_query = of_query.filter(|value| value.len() > MOST_PLAIN_OF_QUERY);
        let mut secrets: Vec<String> =
            of_headers.chain(of_query).flat_map(|secret| spellings(&secret)).collect();
        // One may be a part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    pub(super) fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    /// The beginning of a body: reads at most `room` bytes, and returns at most `most` characters and whether
    /// there were more. If reading fails, returns the part before that.
    pub(super) fn read(&self, body: impl Read, room: usize, most: usize) -> (String, bool) {
        // Plus the rest of a secret that begins within the shown part.
        let longest = self.0.first().map_or(0, String::len);
        let room = room + longest;
        let mut bytes = Vec::new();
        let _ = body.take(room as u64).read_to_end(&mut bytes);
        let text = self.hide(&String::from_utf8_lossy(&bytes));
        let count = text.chars().count();
        // The end of the part that was read may be half a secret.
        let whole = if bytes.len() < room { count } else { count.saturating_sub(longest) };
        let is_cut = bytes.len() == room || count > most;
        (text.chars().take(whole.min(most)).collect(), is_cut)
    }
}

/// A text as it is, and as JSON and HTML write it.
fn spellings(text: &str) -> BTreeSet<String> {
    let json = serde_json::Value::from(text).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let html = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let html = html.replace('"', "&quot;");
    // As PHP does.
    let slashed = json.replace('/', "\\/");
    BTreeSet::from([
        text.to_owned(),
        json,
        slashed,
        html.replace('\'', "&#39;"),
        html.replace('\'', "&#039;"),
    ])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::secret::Secret;
    use crate::domain::settings::Columns;
    use crate::domain::webhook::{self, Webhook};

    fn target(url: &str, headers: &str) -> Target {
        let columns =
            Columns { headers: Some(Secret::new(headers.to_owned())), ..Columns::default() };
        let secrets = webhook::Secrets::default();
        Webhook::new(Uuid::nil(), url, &secrets, &columns).target.expect("it can be used")
    }

    fn said(target: &Target, head: &str, body: &str, most: usize) -> Excerpt {
        note_status_line(head.as_bytes());
        let response = Response::Status { code: 500, retry_after: None, excerpt: None };
        let mut response = with_excerpt(response, target, &mut body.as_bytes(), most);
        *response.take_excerpt().expect("there is one")
    }

    #[test]
    fn secrets_of_a_request_are_hidden_if_the_answer_quotes_them() {
        let target =
            target("https://example.com/in?token=s3%2Fcret&v=1", r#"{"x-key":"Bearer abc"}"#);
        let body = "no POST /in?token=s3%2Fcret&v=1 (s3/cret) with x-key: Bearer abc, v=1";
        let kept = said(&target, "HTTP/1.1 404 No s3/cret\r\n\r\n", body, 512);
        assert_eq!(kept.status_line, "HTTP/1.1 404 No ***");
        assert_eq!(kept.body, "no POST /in?token=***&v=1 (***) with x-key: ***, v=1");
        // Nor is half of it if the answer is cut.
        for most in 1..60 {
            let kept = said(&target, "HTTP/1.1 404 No\r\n\r\n", &"s3/cret ".repeat(99), most);
            assert!(!kept.body.contains("s3") && !kept.body.contains("cret"), "{}", kept.body);
        }
    }

    #[test]
    fn a_token_is_hidden_without_its_scheme_and_as_json_and_html_write_it() {
        let target = target("https://example.com/in", r#"{"authorization":"Bearer dG/9\"<x>=="}"#);
        let said_so = |body: &str| said(&target, "HTTP/1.1 401 No\r\n\r\n", body, 512).body;
        for quoted in [
            "invalid token dG/9\"<x>==",
            r#"{"got":"Bearer dG\/9\"<x>=="}"#,
            r#"{"got":"dG/9\"<x>=="}"#,
            "<p>dG/9&quot;&lt;x&gt;==</p>",
        ] {
            let kept = said_so(quoted);
            assert!(kept.contains("***") && !kept.contains("dG"), "{kept}");
        }
        let long = format!("{{\"authorization\":\"Bearer {}\"}}", "e".repeat(3_000));
        let target = self::target("https://example.com/in", &long);
        let head = format!("HTTP/1.1 500 Bad Bearer {}\r\n\r\n", "e".repeat(3_000));
        let kept = said(&target, &head, "", 512);
        assert_eq!(kept.status_line, "HTTP/1.1 500 Bad ***");
    }

    #[test]
    fn no_status_line_of_a_success_is_kept() {
        note_status_line(b"HTTP/1.1 503 Away\r\na: b\r\n\r\n");
        note_status_line(b"HTTP/1.1 204 Done\r\n\r\n");
        assert_eq!(STATUS_LINE.take(), b"HTTP/1.1 503 Away");
        note_status_line(b"\r\nHTTP/1.0 999\n\n");
        assert_eq!(STATUS_LINE.take(), b"HTTP/1.0 999");
    }
}
