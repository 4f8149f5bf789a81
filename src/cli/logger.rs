//! The logger: what it logs, and the format of its lines.

use std::io::Write;

use crate::domain::shown;

use super::MOST_OF_LINE;

/// The logger that RUST_LOG describes.
pub(super) fn logger(filter: &str) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder
        // We log the problems of these libraries ourselves, once and in our words. amiquip logs every clean
        // close as an internal error; RUST_LOG=amiquip=warn turns its lines on again.
        .filter_module("amiquip", log::LevelFilter::Off)
        .filter_module("mio", log::LevelFilter::Off)
        .filter_module("tiny_http", log::LevelFilter::Off)
        .filter_module("ureq", log::LevelFilter::Warn)
        .filter_module("ureq_proto", log::LevelFilter::Warn)
        .filter_module("rustls", log::LevelFilter::Warn)
        .filter_module("postgres", log::LevelFilter::Warn)
        .filter_module("tokio_postgres", log::LevelFilter::Warn)
        .parse_filters(filter)
        // The format of env_logger, except that each entry is one line, whatever it quotes.
        .format(|out, record| {
            let (time, level, target) = (out.timestamp_millis(), record.level(), record.target());
            let text = shown::line(&record.args().to_string(), MOST_OF_LINE);
            writeln!(out, "[{time} {level:<5} {target}] {text}")
        });
    builder
}

#[cfg(test)]
mod tests {
    use super::super::arguments::{Cli, Command};
    use super::*;
    use clap::Parser;
    use log::Log as _;
    use proptest::prelude::*;

    /// Whether this filter is accepted and lets one of the libraries that print passwords below the level
    /// `warn` log more than warnings.
    fn reveals_secrets(filter: &str) -> bool {
        let parsed = Cli::try_parse_from(["x", "run", &format!("--rust-log={filter}")]);
        let Ok(Cli { command: Command::Run(settings) }) = parsed else { panic!("{filter:?}") };
        let Ok(config) = settings.read() else { return false };
        let logger = logger(&config.rust_log).build();
        let targets = [
            "amiquip::io_loop",
            "postgres::client",
            "tokio_postgres::query",
            "ureq::unit",
            "ureq_proto",
        ];
        targets.iter().any(|target| {
            let said = log::Metadata::builder().target(target).level(log::Level::Info).build();
            logger.enabled(&said)
        })
    }

    #[test]
    fn a_filter_that_only_resembles_a_library_does_not_raise_its_level() {
        for filter in ["ureq:=trace", "ureq/x=trace", "ur=trace", "=trace", "trace", "post=trace"] {
            assert!(!reveals_secrets(filter), "{filter}");
        }
    }

    proptest! {
        #[test]
        fn no_filter_that_is_accepted_lets_a_library_print_secrets(
            parts in prop::collection::vec(
                "( ?(ureq|ureq_proto|tokio_postgres|amiquip|postgres|u|mio|)(::|:|/|_|x)?=)?(info|trace|warn|)",
                1..4,
            ),
        ) {
            let filter = parts.join(",");
            prop_assert!(!reveals_secrets(&filter), "{filter}");
        }
    }
}
