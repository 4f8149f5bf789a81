//! Healthy receivers next to those that a scenario is about, with their own webhooks and event types,
//! under a steady load: to measure how the others affect them.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    harness::{Notifier, Sandbox},
    load::{self, Producer, Published},
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::Report,
    subject::{self, Setting},
};

/// How long the last of their events may take. A missing event counts with this latency.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The neighbours' events have numbers below this one, all other events from it on.
pub(crate) const OTHERS: u32 = 1_000_000_000;

/// The latencies of their events, and how many didn't arrive in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    pub(crate) latency: Latency,
    pub(crate) missing: usize,
}

pub(crate) struct Neighbours {
    log: Arc<Log>,
    kinds: Vec<String>,
    proven: u32,
    /// The number of their next event.
    next: AtomicU32,
    _receivers: Vec<Receiver>,
}

impl Neighbours {
    pub(crate) fn start(sandbox: &Sandbox, count: u32) -> Self {
        let log = Log::new();
        let kinds: Vec<_> = (0..count).map(|number| format!("neighbour.{number}")).collect();
        let register = |(number, kind): (u32, &String)| {
            let receiver = Receiver::start(Behaviour::Prompt, &log);
            sandbox.webhook(&receiver.url(number), &[kind]);
            receiver
        };
        let receivers = (0..).zip(&kinds).map(register).collect();
        Self { log, kinds, proven: 0, next: AtomicU32::new(0), _receivers: receivers }
    }

    /// Sends an event to each and waits for it, so that the notifier knows that they answer.
    pub(crate) fn prove(&mut self, sandbox: &Sandbox) {
        let mut producer = Producer::open(&sandbox.servers.amqp_url);
        for (number, kind) in (0..).zip(&self.kinds) {
            producer.publish(sandbox.queue(), number, kind);
            self.proven = number + 1;
        }
        self.next.store(self.proven, Ordering::Release);
        producer.settle();
        assert!(
            self.log.wait(self.kinds.len(), PATIENCE),
            "the healthy receivers get their first events"
        );
    }

    /// Publishes to them in turn while `goes_on` is true, which gets the count so far. May be called
    /// again.
    pub(crate) fn load(
        &self,
        sandbox: &Sandbox,
        per_second: u32,
        mut goes_on: impl FnMut(u32) -> bool,
    ) -> Published {
        let first = self.next.load(Ordering::Acquire);
        let address = |number: u32| {
            let kind = &self.kinds[number as usize % self.kinds.len()];
            goes_on(number - first).then_some((sandbox.queue(), kind.as_str()))
        };
        let url = &sandbox.servers.amqp_url;
        let published = load::steadily_from(first, url, per_second, address);
        self.next.store(first + published.count, Ordering::Release);
        published
    }

    /// The same while something else happens.
    pub(crate) fn load_beside<T>(
        &self,
        sandbox: &Sandbox,
        per_second: u32,
        other: impl FnOnce() -> T,
    ) -> (T, Published) {
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let load =
                scope.spawn(|| self.load(sandbox, per_second, |_| !end.load(Ordering::Acquire)));
            let result = other();
            end.store(true, Ordering::Release);
            (result, load.join().expect("publishing does not fail"))
        })
    }

    /// Waits for the events that haven't arrived yet, and returns the latencies under the load.
    /// `published` has the largest delay of a publish; `case` names the case in reports.
    pub(crate) fn observe(
        &self,
        case: &str,
        published: Published,
        report: &mut Report,
    ) -> Observed {
        let end = self.next.load(Ordering::Acquire);
        self.log.wait(end as usize, PATIENCE);
        let differences = self.log.differences(0..end);
        report.require_no_repeats(&format!("healthy receivers, {case}"), differences);
        let missing = differences.missing;
        let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        let deliveries = self.log.deliveries();
        let under_load = deliveries.iter().filter(|delivery| delivery.event >= self.proven);
        let latencies = under_load.map(|delivery| delivery.latency());
        let latency = Latency::of(latencies.chain(iter::repeat_n(patience, missing)));
        println!("  healthy, {case}: {latency}  ({published}; {missing} of {end} missing)");
        Observed { latency, missing }
    }
}

/// Their latencies without other receivers.
pub(crate) fn alone(
    count: u32,
    per_second: u32,
    seconds: u32,
    setting: Setting,
    report: &mut Report,
) -> Latency {
    alone_and_idle(count, per_second, seconds, setting, report, |_| ()).0
}

/// The same, and what `measure_idle` measures afterwards, while the notifier is idle.
pub(crate) fn alone_and_idle<T>(
    count: u32,
    per_second: u32,
    seconds: u32,
    setting: Setting,
    report: &mut Report,
    measure_idle: impl FnOnce(&Notifier) -> T,
) -> (Latency, T) {
    let sandbox = Sandbox::new();
    let mut neighbours = Neighbours::start(&sandbox, count);
    let notifier = subject::notifier(&sandbox, setting).start();
    neighbours.prove(&sandbox);
    let published = neighbours.load(&sandbox, per_second, |sent| sent < per_second * seconds);
    let observed = neighbours.observe("alone", published, report);
    if observed.missing > 0 {
        report.wrong(format!("healthy receivers, alone: {} events missing", observed.missing));
    }
    let idle = measure_idle(&notifier);
    notifier.terminate();
    (observed.latency, idle)
}
