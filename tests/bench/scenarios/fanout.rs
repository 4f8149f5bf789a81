//! The cost of a delivery if ten webhooks want each event, compared with one webhook, at the same number of
//! deliveries.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::processor_time,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{Setting, Side, Subject, in_turns},
};

const WEBHOOKS: u32 = 10;
const DELIVERIES: u32 = 30_000;
const KIND: &str = "price.changed";

/// Deliveries before the measurement.
const WARMING: u32 = 1_000;

/// Far more than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{DELIVERIES} deliveries, of events that {WEBHOOKS} webhooks or one webhook want");
    // If tuned, an event for one webhook costs a third of what it costs by default.
    for (setting, target) in
        [(Setting::DEFAULT, Target::AtMost(1.0)), (settings.notifier, Target::None)]
    {
        println!("{setting}");
        let rounds = in_turns(settings.rounds(5), WEBHOOKS, 1, |webhooks| {
            measure(webhooks, setting, report)
        });
        report.ratios(
            &format!("fanout, {setting}"),
            &rounds,
            &[
                ("CPU µs per delivery", target, |round| round.0),
                ("deliveries/s", Target::None, |round| round.1),
            ],
        );
    }
}

/// Microseconds of CPU time per delivery, and deliveries per second.
fn measure(webhooks: u32, setting: Setting, report: &mut Report) -> (f64, f64) {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receivers = (0..webhooks).map(|webhook| {
        let receiver = Receiver::start(Behaviour::Prompt, &log);
        sandbox.webhook(&receiver.url(webhook), &[KIND]);
        receiver
    });
    let receivers: Vec<_> = receivers.collect();
    let events = DELIVERIES / webhooks;
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..events, KIND);

    let side = Side::Notifier(setting);
    let subject = Subject::start(side, &sandbox, &receivers[0].url(0));
    log.wait(WARMING as usize, TIMEOUT);
    let before = processor_time(subject.id());
    let complete = log.wait(DELIVERIES as usize, TIMEOUT);
    let used = processor_time(subject.id()) - before;

    let expected = (0..events).flat_map(|event| (0..webhooks).map(move |webhook| (event, webhook)));
    let differences = log.differences_by_delivery(expected);
    if !complete || !differences.are_none() {
        report.wrong(format!("fanout, {webhooks} webhooks: {differences}"));
    }
    subject.stop(&sandbox, report);
    let deliveries = log.deliveries();
    let (Some(first), Some(last)) = (deliveries.get(WARMING as usize - 1), deliveries.last())
    else {
        panic!("only {} deliveries within {TIMEOUT:?}", deliveries.len())
    };
    let counted = f64::from(DELIVERIES - WARMING);
    let per_second = counted / Duration::from_nanos(last.at - first.at).as_secs_f64();
    let processor = used.as_secs_f64() / counted * 1e6;
    println!(
        "  {webhooks:2} webhooks  {per_second:6.0} deliveries/s  {processor:5.1} µs of CPU per delivery"
    );
    (processor, per_second)
}
