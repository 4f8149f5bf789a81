//! The checks at the broker: whether it answers, and whether `run` would be allowed to do what it does.

use super::{Finding, Level};
use crate::broker::{Flaw, Link, Presence, Topology, look_for_flaws};
use crate::config::Config;
use crate::shutdown::Shutdown;

/// A finding for each thing that `run` needs from RabbitMQ.
pub(super) fn findings(config: &Config, shutdown: &Shutdown) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut link = match Link::open(&config.amqp, config.connect_timeout, shutdown) {
        Ok(link) => link,
        Err(error) => return vec![Finding::fail("broker", error)],
    };
    let tls = if config.amqp.tls.is_some() { ", by TLS" } else { "" };
    let detail = format!("RabbitMQ {} at {}{tls}", link.version(), config.amqp);
    findings.push(Finding::ok("broker", detail));
    match look_for_flaws(&mut link, config, shutdown) {
        Err(error) => findings.push(Finding::fail("rights", error)),
        Ok(flaws) => {
            if flaws.iter().all(|flaw| flaw.subject != "rights") {
                findings.push(Finding::ok("rights", "all that `run` needs"));
            }
            findings.extend(flaws.into_iter().map(|Flaw { subject, problem, is_fatal }| {
                Finding::new(&subject, if is_fatal { Level::Fail } else { Level::Warn }, problem)
            }));
        }
    }
    match Topology::of(config).look(&mut link, shutdown) {
        Err(error) => findings.push(Finding::fail("topology", error)),
        Ok(queues) => {
            for Presence { queue, messages } in queues {
                let name = format!("queue {queue}");
                // Its problem has been reported.
                if findings.iter().any(|finding| finding.name == name) {
                    continue;
                }
                let told = messages.map(|messages| match messages {
                    Some(messages) => format!("{messages} messages ready"),
                    None => "does not exist yet: `run` creates it".to_owned(),
                });
                findings.push(Finding::of(&name, told));
            }
        }
    }
    link.close();
    findings
}
