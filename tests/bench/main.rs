//! `make bench`: how fast the notifier is, and which receivers delay others.
//!
//! The release binary is measured from the outside, with a real RabbitMQ, a real PostgreSQL, and receivers
//! that are never the bottleneck. For a ratio, both sides run alternately, so that other load on the
//! machine affects both. A run fails unless every published event has arrived, once. If receivers hang,
//! fail or are far away, some scenarios end before everything has arrived: events that are missing then
//! are late, and the figures show that. A missed target doesn't fail the run: a busy machine may miss any.

#![expect(clippy::print_stdout, reason = "a benchmark is there to print")]

#[path = "../integration/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
mod harness;

mod settings;
mod scenarios;
mod subject;
mod bare_loop;
mod receiver;
mod raw_loop;
mod load;
mod neighbours;
mod queued;
mod readings;
mod order;
mod event;
mod measure;
mod profile;
mod report;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    // Cargo adds its own flag.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        // The other processes of a run are this binary, too.
        Some(bare_loop::COMMAND) => bare_loop::run(&arguments[1..]),
        Some(raw_loop::COMMAND) => raw_loop::run(&arguments[1..]),
        _ => return scenarios::run(&arguments),
    }
    ExitCode::SUCCESS
}
