//! Events per second and CPU time per event, with all events in the queue before the start.
//!
//! Time and CPU time are measured after the first [`WARMING`] receipts, so that the start isn't included.

use std::{env, time::Duration};

use super::latency;
use crate::{
    harness::Sandbox,
    load,
    measure::processor_time,
    profile::Profile,
    raw_loop,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{Channels, EARLIER, Setting, Side, Subject, in_turns},
};

const KIND: &str = "invoice.paid";

/// A second or more for the faster side.
const EVENTS_BY_DEFAULT: u32 = 10_000;
/// About five seconds.
const EVENTS_TUNED: u32 = 75_000;
/// A second or two, for many settings or an earlier binary.
const EVENTS_BRIEFLY: u32 = 22_000;

/// The deliveries before the measurement, while connections are still being opened.
const WARMING: u32 = 500;

/// Far more than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One round of one side.
#[derive(Clone, Copy, Debug)]
struct Measured {
    per_second: f64,
    /// CPU time per event, in microseconds.
    processor: f64,
    requests_per_connection: f64,
}

pub(super) fn by_default(settings: &Settings, report: &mut Report) {
    let sides = (Side::Notifier(Setting::DEFAULT), Side::BareLoop(Channels::ONE));
    let rounds = compare(settings.rounds(21), sides, EVENTS_BY_DEFAULT, report);
    report.ratios(
        "default",
        &rounds,
        &[
            ("events/s", Target::AtLeast(2.2), |it| it.per_second),
            ("CPU µs per event", Target::None, |it| it.processor),
        ],
    );
}

pub(super) fn tuned(settings: &Settings, report: &mut Report) {
    // With the bare loop's number of connections.
    raw_loop::measure_receiver(Behaviour::Prompt, 4, 25_000);
    let sides = (Side::Notifier(settings.notifier), Side::BareLoop(settings.bare));
    let rounds = compare(settings.rounds(20), sides, EVENTS_TUNED, report);
    report.ratios(
        "tuned",
        &rounds,
        &[
            ("events/s", Target::AtLeast(0.90), |it| it.per_second),
            ("CPU µs per event", Target::AtMost(1.25), |it| it.processor),
            ("requests per connection", Target::None, |it| it.requests_per_connection),
        ],
    );
}

/// Compares with the binary that EARLIER names: a change may cost 3 %.
pub(super) fn since_earlier(settings: &Settings, report: &mut Report) {
    if env::var_os(EARLIER).is_none() {
        return report.wrong(format!("{EARLIER} is not set: it names the binary to compare with"));
    }
    for (name, setting, events, rounds) in [
        ("default", Setting::DEFAULT, EVENTS_BY_DEFAULT, 21),
        ("tuned", settings.notifier, EVENTS_BRIEFLY, 11),
    ] {
        let sides = (Side::Notifier(setting), Side::Earlier(setting));
        let rounds = compare(settings.rounds(rounds), sides, events, report);
        report.ratios(
            &format!("since earlier, {name}"),
            &rounds,
            &[
                ("events/s", Target::AtLeast(0.97), |it| it.per_second),
                ("CPU µs per event", Target::AtMost(1.03), |it| it.processor),
            ],
        );
    }
    latency::compare(settings.rounds(3), Side::Earlier(Setting::DEFAULT), latency::CALM, report);
}

/// Searches for the bare loop's best setting.
pub(super) fn search_bare(settings: &Settings, report: &mut Report) {
    let all = [1, 2, 4, 8]
        .into_iter()
        .flat_map(|count| [16, 64, 256].map(|prefetch| Channels { count, prefetch }));
    search(all.map(Side::BareLoop).collect(), settings, report);
}

/// Searches for the notifier's best setting.
pub(super) fn search_notifier(settings: &Settings, report: &mut Report) {
    let all = [1, 4, 16, 64, 256, 1024].map(Setting::prefetch);
    search(all.map(Side::Notifier).to_vec(), settings, report);
}

/// Measures all settings in turn, repeatedly, so that other load on the machine affects all of them.
fn search(sides: Vec<Side>, settings: &Settings, report: &mut Report) {
    println!("{EVENTS_BRIEFLY} queued events");
    let mut found = vec![Vec::new(); sides.len()];
    for _ in 0..settings.rounds(3) {
        for (side, found) in sides.iter().zip(&mut found) {
            found.push(measure(*side, EVENTS_BRIEFLY, report));
        }
    }
    for (side, found) in sides.iter().zip(&found) {
        report.figures(
            &format!("{side} {}", side.setting()),
            found,
            &[
                ("events/s", Target::None, |it: &Measured| it.per_second),
                ("CPU µs per event", Target::None, |it| it.processor),
            ],
        );
    }
}

/// Measures both sides alternately.
fn compare(
    rounds: usize,
    (ours, other): (Side, Side),
    events: u32,
    report: &mut Report,
) -> Vec<(Measured, Measured)> {
    println!(
        "{events} queued events; {ours}: {}, {other}: {} (bare loop: channels x prefetch)",
        ours.setting(),
        other.setting()
    );
    in_turns(rounds, ours, other, |side| measure(side, events, report))
}

fn measure(side: Side, events: u32, report: &mut Report) -> Measured {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..events, KIND);

    let subject = Subject::start(side, &sandbox, &receiver.url(0));
    log.wait(WARMING as usize, TIMEOUT);
    let profile = Profile::start(side, subject.id());
    let before = processor_time(subject.id());
    let complete = log.wait(events as usize, TIMEOUT);
    let used = processor_time(subject.id()) - before;
    drop(profile);

    let differences = log.differences(0..events);
    if !complete || !differences.are_none() {
        report.wrong(format!("{side} {}: {differences}", side.setting()));
    }
    subject.stop(&sandbox, report);
    let receipts = log.deliveries();
    let (Some(first), Some(last)) = (receipts.get(WARMING as usize - 1), receipts.last()) else {
        panic!("{side} delivered only {} events within {TIMEOUT:?}", receipts.len())
    };
    let elapsed = Duration::from_nanos(last.at - first.at);
    let counted = f64::from(events - WARMING);
    let measured = Measured {
        per_second: counted / elapsed.as_secs_f64(),
        processor: used.as_secs_f64() / counted * 1e6,
        requests_per_connection: f64::from(events) / log.connections() as f64,
    };
    println!(
        "  {side:9}  {:6.0} events/s  {:5.1} µs of CPU per event  {} connections",
        measured.per_second,
        measured.processor,
        log.connections()
    );
    measured
}
