//! The checks at the broker: whether it answers, and whether `run` would be allowed to do what it does.

use super::{Finding, finding};
use crate::broker::{BrokerError, Flaw, Link, QueuePresence, Topology, find_flaws};
use crate::config::Config;
use crate::shutdown::Shutdown;

/// A line for each thing that `run` needs of RabbitMQ.
pub(super) fn findings(config: &Config, shutdown: &Shutdown) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut link = match Link::open(&config.amqp, config.connect_timeout, shutdown) {
        Ok(link) => link,
        Err(error) => return vec![finding("broker", Err(error))],
    };
    let tls = if config.amqp.tls.is_some() { ", by TLS" } else { "" };
    let detail = format!("RabbitMQ {} at {}{tls}", link.version(), config.amqp);
    findings.push(fine("broker", detail));
    match find_flaws(&mut link, config, shutdown) {
        Err(error) => findings.push(finding("rights", Err(error))),
        Ok(flaws) => {
            if flaws.iter().all(|flaw| flaw.subject != "rights") {
                findings.push(fine("rights", "all that `run` needs".to_owned()));
            }
            findings.extend(flaws.into_iter().map(|Flaw { subject, problem, is_fatal }| {
                finding(&subject, if is_fatal { Err(problem) } else { Ok(problem) })
            }));
        }
    }
    match Topology::of(config).check(&mut link, shutdown) {
        Err(error) => findings.push(finding("topology", Err(error))),
        Ok(queues) => {
            for QueuePresence { queue, messages } in queues {
                let name = format!("queue {queue}");
                // Its problem has been reported.
                if findings.iter().any(|finding| finding.name == name) {
                    continue;
                }
                let told = messages.map(|messages| match messages {
                    Some(messages) => format!("{messages} messages ready"),
                    None => "not there yet: `run` makes it".to_owned(),
                });
                findings.push(finding(&name, told));
            }
        }
    }
    link.close();
    findings
}

fn fine(name: &str, detail: String) -> Finding {
    finding(name, Ok::<_, BrokerError>(detail))
}
