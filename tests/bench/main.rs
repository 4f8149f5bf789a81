//! `make bench`: how fast the notifier is, and whom it delays.
//!
//! A black box: the release binary with a real RabbitMQ and a real PostgreSQL, and receivers that are
//! never the limit. For a ratio, both sides run alternately in one go, so that other load on the machine
//! affects both. Every published event must have arrived, once; a run that misses one fails. Where
//! receivers hang, fail or are far away, some scenarios end before everything has arrived: what is still
//! on its way then is late, and the figures show that. Figures are only reported: a busy machine may
//! miss any of them.

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
