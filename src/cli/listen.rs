//! `listen`: a receiver for demos and first steps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use anyhow::{Result, anyhow};
use serde::Serialize;
use tiny_http::{Method, Request, Response, Server};

use super::print;

/// Deliveries whose attempts are counted; beyond, counting starts over, so memory stays bounded.
const MOST_DELIVERIES: usize = 100_000;

#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    path: &'a str,
    attempt: u32,
    status: u16,
    webhook_id: &'a str,
    timestamp: &'a str,
    content_type: &'a str,
    body: &'a str,
}

/// Answers every POST, and prints a line for each, until it is killed.
pub(super) fn run(address: SocketAddr, fail_first: u32, status: u16, json: bool) -> Result<()> {
    let server = Server::http(address)
        .map_err(|error| anyhow!("cannot listen on {address}: {error}: choose another --addr"))?;
    let address = server.server_addr().to_ip().unwrap_or(address);
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
        if request.as_reader().read_to_end(&mut body).is_err() {
            continue;
        }
        let (path, id) = (request.url().to_owned(), header(&request, "webhook-id"));
        if attempts.len() >= MOST_DELIVERIES {
            attempts.clear();
        }
        let attempt = attempts.entry((path.clone(), id.clone())).or_default();
        *attempt += 1;
        let status = if *attempt <= fail_first { status } else { 200 };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            path: &path,
            attempt: *attempt,
            status,
            webhook_id: &id,
            timestamp: &header(&request, "webhook-timestamp"),
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
    let Line { path, attempt, status, webhook_id, body, .. } = line;
    let time = httpdate::fmt_http_date(SystemTime::now());
    let start: String = body.chars().take(120).collect();
    let more = if start.len() < body.len() { "…" } else { "" };
    format!("{time}  {status}  {path}  attempt {attempt}  {webhook_id}  {start:?}{more}")
}
