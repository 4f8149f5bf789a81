//! `make bench`: how fast the notifier is, and whom it keeps waiting.
//!
//! A black box: the release binary against a real RabbitMQ and a real PostgreSQL, with receivers
//! that are never the limit. Where a figure is a ratio, both sides run in one go, one after the
//! other and over again, so that what the machine does besides meets both. Every event that was
//! published must have arrived, once; a run in which one has not fails. Where receivers hang, fail or
//! are far away, some scenarios end before all have what they should: what is still on its way then
//! is late, and the figures show it. Figures are only reported: a machine that is busy with
//! something else can miss any of them.

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
    // Cargo adds a flag of its own.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        // The other processes of a run are this binary too.
        Some(bare_loop::COMMAND) => bare_loop::run(&arguments[1..]),
        Some(raw_loop::COMMAND) => raw_loop::run(&arguments[1..]),
        _ => return scenarios::run(&arguments),
    }
    ExitCode::SUCCESS
}
