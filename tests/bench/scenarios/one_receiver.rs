//! One receiver with some behaviour under a steady load, and a healthy one next to it.

use std::{sync::Arc, time::Duration};

use crate::{
    harness::Sandbox,
    load,
    measure::now,
    neighbours::{self, Neighbours, OTHERS},
    receiver::{Behaviour, Log, Receiver},
    report::Report,
    subject::{self, Setting},
};

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) behaviour: Behaviour,
    /// The type of its events.
    pub(super) kind: &'static str,
    pub(super) per_second: u32,
    pub(super) seconds: u32,
    pub(super) neighbour_per_second: u32,
    /// How long the healthy receiver is measured alone.
    pub(super) alone_seconds: u32,
    /// How long the last event may take.
    pub(super) timeout: Duration,
}

/// What happened with the default configuration.
pub(super) struct Results {
    pub(super) receiver: Receiver,
    pub(super) log: Arc<Log>,
    /// Whether everything was delivered before the timeout.
    pub(super) complete: bool,
    /// When the wait for the last event ended.
    pub(super) ended: u64,
    pub(super) breaker_openings: f64,
    /// The healthy receiver's 99th percentile, next to this one and alone.
    pub(super) healthy_p99: (f64, f64),
}

impl Case {
    pub(super) const fn events(&self) -> u32 {
        self.per_second * self.seconds
    }

    pub(super) fn measure(&self, report: &mut Report) -> Results {
        let (setting, neighbour_rate) = (Setting::DEFAULT, self.neighbour_per_second);
        let alone = neighbours::alone(1, neighbour_rate, self.alone_seconds, setting, report);
        let sandbox = Sandbox::new();
        let log = Log::new();
        let receiver = Receiver::start(self.behaviour, &log);
        sandbox.webhook(&receiver.url(0), &[self.kind]);
        let mut neighbours = Neighbours::start(&sandbox, 1);
        let notifier = subject::notifier(&sandbox, setting).start();
        neighbours.prove(&sandbox);

        let events = OTHERS..OTHERS + self.events();
        let (_, published) = neighbours.load_beside(&sandbox, neighbour_rate, || {
            let address = |number| (number < events.end).then_some((sandbox.queue(), self.kind));
            load::steadily_from(OTHERS, &sandbox.servers.amqp_url, self.per_second, address)
        });
        let beside = neighbours.observe("beside it", published, report).latency;
        let complete = log.wait(events.len(), self.timeout);
        let ended = now();
        let breaker_openings =
            notifier.metric("webhook_circuit_breaker_transitions_total", &[("state", "open")]);
        report.require_no_repeats(self.name, log.differences(events));
        // It may hold events that wait for their next attempt; they are deleted with their queue.
        notifier.kill();
        let healthy_p99 = (beside.p99, alone.p99);
        Results { receiver, log, complete, ended, breaker_openings, healthy_p99 }
    }
}
