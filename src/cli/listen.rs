//! `listen`: a receiver for demos and first steps.

use std::collections::HashMap;
use std::io::Read as _;
use std::time::SystemTime;

use anyhow::{Result, anyhow};
use serde::Serialize;
use tiny_http::{Method, Request, Response, Server};

use super::{Listen, Output, Usage, print};
use crate::domain::shown;
use crate::domain::signature::Key;

/// Deliveries whose attempts are counted; beyond, counting starts over, so memory stays bounded.
const MOST_DELIVERIES: usize = 100_000;

/// The largest body that is read: what MAX_EVENT_BYTES may be at most.
const MOST_BODY_BYTES: u64 = 128 << 20;

/// How much of a path and of an id is shown to people, in characters.
const MOST_SHOWN: usize = 255;

#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    path: &'a str,
    attempt: u32,
    status: u16,
    webhook_id: &'a str,
    /// Absent where there is no secret to check it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'a str>,
    timestamp: &'a str,
    content_type: &'a str,
    body: &'a str,
}

/// Answers every POST, and prints a line for each, until it is killed.
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
        // One byte more than is allowed tells whether there is more.
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
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let signature = key.as_ref().map(|key| {
            let signatures = header(&request, "webhook-signature");
            key.verify(&id, &timestamp, &signatures, &body, now.as_secs())
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
        let line = Line {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            path: &path,
            attempt: *attempt,
            status,
            webhook_id: &id,
            signature: signature.as_deref(),
            timestamp: &timestamp,
            content_type: &header(&request, "content-type"),
            body: &String::from_utf8_lossy(&body),
        };
        let text = if json { serde_json::to_string(&line)? } else { for_people(&line) };
        // First the line, then the answer: what was accepted has been shown.
        print(text)?;
        let _ = request.respond(Response::empty(status));
    }
    Ok(())
}

fn header(request: &Request, name: &'static str) -> String {
    let found = request.headers().iter().find(|header| header.field.equiv(name));
    found.map(|header| header.value.as_str().to_owned()).unwrap_or_default()
}

fn for_people(line: &Line<'_>) -> String {
    let Line { path, attempt, status, webhook_id, signature, body, .. } = line;
    let signature = signature.map(|checked| format!("  signature {checked}")).unwrap_or_default();
    let time = httpdate::fmt_http_date(SystemTime::now());
    // Whoever sends a request chooses what is in it.
    let (path, webhook_id) = (shown::line(path, MOST_SHOWN), shown::line(webhook_id, MOST_SHOWN));
    let start: String = body.chars().take(120).collect();
    let more = if start.len() < body.len() { "…" } else { "" };
    format!("{time}  {status}  {path}  attempt {attempt}  {webhook_id}{signature}  {start:?}{more}")
}
