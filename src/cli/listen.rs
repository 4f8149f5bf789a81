//! `listen`: a receiver for demos and first steps.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use clap::Args;
use serde::Serialize;
use serde::de::IgnoredAny;
use tiny_http::{Method, Request, Response, Server};

use super::{Output, Usage, paint, print};
use crate::clock;
use crate::domain::shown;
use crate::domain::signature::Key;
use crate::domain::time::{self, UnixMillis, to_unix_millis, to_unix_seconds};

/// The most deliveries whose attempts are counted. Beyond that, counting starts again from none, so that
/// memory stays bounded.
const MOST_DELIVERIES: usize = 100_000;

/// The largest body that is read: the maximum of MAX_EVENT_BYTES.
const MOST_BODY_BYTES: u64 = 128 << 20;

/// How many bytes of a body are printed.
const MOST_OF_BODY: usize = 64 << 10;

/// How many characters of a body that isn't JSON are printed.
const MOST_OF_TEXT: usize = 1_000;

/// How many characters of a path and of an id are printed.
const MOST_SHOWN: usize = 255;

#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Where to listen; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    addr: SocketAddr,
    /// Answer the first N attempts of each delivery with --status
    #[arg(long, default_value_t = 0, value_name = "N")]
    fail_first: u32,
    /// The status of the attempts that --fail-first fails
    #[arg(long, default_value_t = 503)]
    status: u16,
    /// Check signatures, and answer 401 to requests that this secret did not sign; prefer the variable to
    /// the flag, which `ps` shows
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true, value_name = "WHSEC")]
    secret: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct ReceivedRequest<'a> {
    #[serde(serialize_with = "time::serialize")]
    at: UnixMillis,
    path: &'a str,
    attempt: u32,
    status: u16,
    webhook_id: &'a str,
    /// Absent if no secret is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'a str>,
    timestamp: &'a str,
    content_type: &'a str,
    body: &'a str,
}

/// Answers and prints every POST until it is killed.
pub(super) fn run(options: Listen) -> Result<()> {
    let Listen { addr, fail_first, status, secret, output: Output { json } } = options;
    let key = secret.as_deref().map(Key::parse).transpose();
    let key = key.map_err(|error| Usage(format!("--secret: {error}")))?;
    let server = Server::http(addr)
        .map_err(|error| anyhow!("cannot listen on {addr}: {error}: choose another --addr"))?;
    let address = server.server_addr().to_ip().unwrap_or(addr);
    print(if json {
        serde_json::json!({ "listening": format!("http://{address}/") }).to_string()
    } else {
        format!("listening on http://{address}/ (any path); Ctrl-C ends it")
    })?;
    let mut attempts: HashMap<(String, String), u32> = HashMap::new();
    for mut request in server.incoming_requests() {
        if *request.method() != Method::Post {
            let _ =
                request.respond(Response::from_string("POST events here\n").with_status_code(405));
            continue;
        }
        let mut body = Vec::new();
        // One byte beyond the limit shows that there is more.
        let read = request.as_reader().take(MOST_BODY_BYTES + 1).read_to_end(&mut body);
        match read {
            Ok(read) if read as u64 <= MOST_BODY_BYTES => {}
            Ok(_) => {
                let refusal = Response::from_string("too large\n").with_status_code(413);
                let _ = request.respond(refusal);
                continue;
            }
            Err(_) => continue,
        }
        let (path, id) = (request.url().to_owned(), header(&request, "webhook-id"));
        let timestamp = header(&request, "webhook-timestamp");
        let now = clock::now();
        let signature = key.as_ref().map(|key| {
            let signatures = header(&request, "webhook-signature");
            key.verify(&id, &timestamp, &signatures, &body, to_unix_seconds(now))
        });
        if attempts.len() >= MOST_DELIVERIES {
            attempts.clear();
        }
        let attempt = attempts.entry((path.clone(), id.clone())).or_default();
        *attempt += 1;
        let status = match signature {
            Some(Err(_)) => 401,
            _ if *attempt <= fail_first => status,
            _ => 200,
        };
        let signature = signature.map(|checked| match checked {
            Ok(()) => "valid".to_owned(),
            Err(bad) => format!("invalid: {bad}"),
        });
        let line = ReceivedRequest {
            at: to_unix_millis(now),
            path: &path,
            attempt: *attempt,
            status,
            webhook_id: &id,
            signature: signature.as_deref(),
            timestamp: &timestamp,
            content_type: &header(&request, "content-type"),
            body: &String::from_utf8_lossy(&body),
        };
        let text = if json { shown::json(&serde_json::to_string(&line)?) } else { as_text(&line) };
        // Print first, then answer: every accepted event has been shown.
        print(text)?;
        let _ = request.respond(Response::empty(status));
    }
    Ok(())
}

fn header(request: &Request, name: &'static str) -> String {
    let found = request.headers().iter().find(|header| header.field.equiv(name));
    found.map(|header| header.value.as_str().to_owned()).unwrap_or_default()
}

fn as_text(line: &ReceivedRequest<'_>) -> String {
    let ReceivedRequest { at, path, attempt, status, webhook_id, signature, body, .. } = line;
    let signature = signature.map(|checked| format!("  signature {checked}")).unwrap_or_default();
    let time = time::rfc3339(*at);
    let status = if *status < 300 { paint::good(status) } else { paint::bad(status) };
    // The sender chooses what a request contains.
    let (path, webhook_id) = (shown::line(path, MOST_SHOWN), shown::line(webhook_id, MOST_SHOWN));
    let body = body_as_text(body);
    format!("{time}  {status}  {path}  attempt {attempt}  {webhook_id}{signature}\n{body}")
}

/// The body, indented below its request.
fn body_as_text(body: &str) -> String {
    let shown = match serde_json::from_str::<IgnoredAny>(body) {
        Ok(_) => shown::json(&indented(body, MOST_OF_BODY)),
        Err(_) if body.is_empty() => "(no body)".to_owned(),
        Err(_) => {
            let start: String = body.chars().take(MOST_OF_TEXT).collect();
            format!("{start:?}{}", if start.len() < body.len() { "…" } else { "" })
        }
    };
    shown.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// A JSON document with one member per line, up to `most` bytes. Names, numbers, texts and their order
/// stay as they were sent, which a parser would not guarantee.
fn indented(document: &str, most: usize) -> String {
    let mut out = String::with_capacity(document.len().min(most));
    let mut depth = 0;
    let mut rest = document.chars().peekable();
    while let Some(c) = rest.next() {
        if out.len() > most {
            out.push_str(&format!("\n… ({} bytes: --json prints all)", document.len()));
            break;
        }
        let new_line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        };
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '"' => {
                out.push(c);
                let mut is_escaped = false;
                for c in rest.by_ref() {
                    out.push(c);
                    if c == '"' && !is_escaped {
                        break;
                    }
                    is_escaped = c == '\\' && !is_escaped;
                }
            }
            '{' | '[' => {
                out.push(c);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                match rest.next_if(|c| matches!(c, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth -= 1;
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn a_document_has_a_line_for_each_member_and_says_what_it_said() {
        let sent = r#"{"b":1.0e5,"a" : [1,{"c":"x,: {\\\"}"}], "n":{ },"b":[]}"#;
        let shown = "{\n  \"b\": 1.0e5,\n  \"a\": [\n    1,\n    {\n      \"c\": \"x,: {\\\\\\\"}\"\n    }\n  ],\n  \
                     \"n\": {},\n  \"b\": []\n}";
        assert_eq!(indented(sent, 1_000), shown);
        let long = format!("[{}1]", "1,".repeat(1_000));
        let cut = indented(&long, 100);
        assert!(cut.len() < 200 && cut.ends_with("… (2003 bytes: --json prints all)"), "{cut}");
        assert_eq!(body_as_text("a\r\nb"), "  \"a\\r\\nb\"");
    }

    proptest! {
        #[test]
        fn whatever_is_shown_means_what_was_sent(texts: Vec<String>, number: i64) {
            let sent = serde_json::json!({ "texts": texts, "more": { "number": number, "none": [] } });
            let read: Value = serde_json::from_str(&indented(&sent.to_string(), usize::MAX)).expect("JSON");
            prop_assert_eq!(read, sent);
        }
    }
}
