//! Runs simulations: random scenarios, for which only the invariants are checked, and constructed ones,
//! for which latency and throughput are checked too.

use std::ops::Range;

use super::scenario::{Behaviour, Outage};
use super::*;

impl Simulation {
    /// The latencies of these webhooks' deliveries that arrived at `from` or later.
    fn latencies(&self, webhooks: &Range<usize>, from: Moment) -> Vec<Duration> {
        let counts = |done: &&Success| webhooks.contains(&done.webhook) && done.arrived >= from;
        self.delivered.iter().filter(counts).map(|done| done.at - done.arrived).collect()
    }

    /// The number of deliveries for these webhooks.
    fn wanted(&self, webhooks: &Range<usize>) -> usize {
        let of_event = |arrival: &Arrival| {
            arrival.webhooks.iter().filter(|webhook| webhooks.contains(webhook)).count()
        };
        self.scenario.arrivals.iter().map(of_event).sum()
    }

    /// The successes per second from the start until the last success.
    fn rate(&self, webhooks: &Range<usize>) -> f64 {
        let of_these = self.delivered.iter().filter(|done| webhooks.contains(&done.webhook));
        let last = of_these.clone().map(|done| done.at).max().expect("a success");
        of_these.count() as f64 / last.as_secs_f64()
    }
}

/// The given percentile of the values.
fn percentile(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort_unstable();
    let last = values.len().checked_sub(1).expect("a value");
    values[(values.len() * percent / 100).min(last)]
}

fn subscribers(
    count: usize,
    behaviour: &Behaviour,
    group: impl Fn(usize) -> usize,
) -> Vec<Subscriber> {
    (0..count).map(|n| Subscriber::new(behaviour.clone(), group(n))).collect()
}

/// Runs the seed PACE_SEED, or else PACE_RUNS seeds, or else `runs` seeds.
fn run_seeds(runs: u64, has_usual_capacity: bool) {
    let number = |text: Option<&str>| text.map(|text| text.parse().expect("a number"));
    let seeds = match number(option_env!("PACE_SEED")) {
        Some(seed) => seed..seed + 1,
        None => 0..number(option_env!("PACE_RUNS")).unwrap_or(runs),
    };
    let are_all = seeds == (0..runs);
    let (mut full, mut refused, mut holds) = (0, 0, [0; 9]);
    for seed in seeds {
        let run = Simulation::new(Scenario::drawn(seed, has_usual_capacity)).run();
        full += usize::from(run.scenario.capacities.contains(&run.peak));
        refused += run.refused_when_called;
        for (all, count) in holds.iter_mut().zip(run.holds) {
            *all += count;
        }
    }
    // A case that never occurs isn't tested.
    let all_happens = full > 10 && refused > 10 && holds.iter().all(|count| *count > 10);
    assert!(!are_all || all_happens, "{full} were full, {refused} refused when called, {holds:?}");
}

#[test]
fn the_invariants_hold_in_random_scenarios() {
    run_seeds(1_000, false);
}

#[test]
fn the_invariants_hold_in_random_scenarios_with_the_usual_capacity() {
    run_seeds(1_000, true);
}

/// Adds healthy webhooks to others. Both get a number of events per second, in rotation.
fn beside(
    mut others: Vec<Subscriber>,
    per_second: u32,
    (count, healthy_per_second): (usize, u32),
) -> (Scenario, Range<usize>) {
    let (lasts, first) = (ms(45_000), others.len());
    others.extend(subscribers(count, &Behaviour::quick(), |n| first + n));
    let healthy = first..others.len();
    let scenario = Scenario::new(others, lasts)
        .with_steady(0..first, per_second, (ms(0), lasts))
        .with_steady(healthy.clone(), healthy_per_second, (ms(1), lasts - ms(1_000)));
    (scenario, healthy)
}

/// One event per second that a hundred webhooks want. The receivers of 60 of them hang.
fn sixty_of_a_hundred_hang(have_one_host: bool, is_mixed: bool) -> (Scenario, Range<usize>) {
    let group = |n: usize| if have_one_host { 0 } else { n };
    let mut all = subscribers(60, &Behaviour::Hangs, group);
    all.extend(subscribers(40, &Behaviour::quick(), |n| group(60 + n)));
    let mut webhooks: Vec<usize> = (0..100).collect();
    if is_mixed {
        fastrand::Rng::with_seed(1).shuffle(&mut webhooks);
    }
    let mut scenario = Scenario::new(all, ms(60_000));
    let arrival = |n: u64| Arrival { at: ms(n * 1_000), queue: 0, webhooks: webhooks.clone() };
    scenario.arrivals = (0..59).map(arrival).collect();
    (scenario, 60..100)
}

/// Checks that all deliveries to healthy receivers succeed, each within `longest`, and that 99 % of those
/// after the first 20 s take at most `usual`.
fn check_healthy(
    case: &str,
    (scenario, healthy): (Scenario, Range<usize>),
    (usual, longest): (Duration, Duration),
) {
    let run = Simulation::new(scenario).run();
    let all = run.latencies(&healthy, ms(0));
    assert_eq!(all.len(), run.wanted(&healthy), "{case}: some were not delivered");
    let p99 = percentile(run.latencies(&healthy, ms(20_000)), 99);
    let most = percentile(all, 100);
    assert!(p99 <= usual && most <= longest, "{case}: p99 {p99:?}, {most:?} at most");
}

#[test]
fn healthy_receivers_are_served_promptly_beside_hanging_and_slow_ones() {
    // Many requests at a time wait for the remaining places, and at first no receiver is proven.
    let times = (ms(10), TIMEOUT + ms(2_000));
    for (have_one_host, is_mixed) in [(false, false), (true, false), (false, true), (true, true)] {
        let case = format!("60 of 100 hang, on one host: {have_one_host}, mixed: {is_mixed}");
        check_healthy(&case, sixty_of_a_hundred_hang(have_one_host, is_mixed), times);
    }
    // As fast as without the others: a healthy receiver takes at most 6 ms.
    let times = (ms(6), ms(6));
    for (webhooks, hosts) in [(4, 1), (40, 40), (100, 100)] {
        for per_second in [15, 200] {
            let others = subscribers(webhooks, &Behaviour::alternates(), |n| n % hosts);
            let case = format!("{webhooks} alternate on {hosts} hosts at {per_second}/s");
            check_healthy(&case, beside(others, per_second, (1, 30)), times);
        }
    }
    let others = subscribers(500, &Behaviour::Hangs, |n| n);
    check_healthy("500 hang, at 50/s", beside(others, 50, (20, 100)), times);
    let away = Behaviour::Down { from: ms(20_000), until: ms(35_000), how: Outage::Hangs };
    let others = subscribers(64, &away, |_| 0);
    check_healthy("a provider's host begins to hang", beside(others, 100, (1, 30)), times);
    let slow = subscribers(1, &Behaviour::Answers(ms(2_000), ms(2_000)), |n| n);
    check_healthy("one takes 2 s, at 20/s", beside(slow, 20, (1, 30)), times);
}

#[test]
fn far_receivers_get_the_throughput_of_their_share_of_the_capacity() {
    let far = |millis| Behaviour::Answers(ms(millis), ms(millis));
    let at_once = |webhook| Arrival { at: ms(0), queue: 0, webhooks: vec![webhook] };
    let both = vec![Subscriber::new(far(200), 0), Subscriber::new(Behaviour::quick(), 1)];
    let mut scenario = Scenario::new(both, ms(30_000)).with_steady(1..2, 50, (ms(0), ms(29_000)));
    scenario.arrivals.extend((0..4_000).map(|_| at_once(0)));
    // It has 32 of 64 places.
    let rate = Simulation::new(scenario.clone()).run().rate(&(0..1));
    assert!((155.0..=160.0).contains(&rate), "{rate}/s of 160/s");
    check_healthy("one far", (scenario, 1..2), (ms(6), ms(6)));

    let mut scenario = Scenario::new(subscribers(20, &far(100), |n| n), ms(60_000));
    scenario.arrivals = (0..6_000).map(|n| at_once(n % 20)).collect();
    let rate = Simulation::new(scenario).run().rate(&(0..20));
    assert!((600.0..=640.0).contains(&rate), "{rate}/s of 640/s");
}

/// Runs events at random times, at this mean rate, for a receiver that fails 30 % of the time.
fn flaky(seed: u64, per_second: u32, seconds: u32) -> Simulation {
    let mut scenario = Scenario::new(subscribers(1, &Behaviour::Flaky, |n| n), ms(1_000) * seconds);
    let drawn = &mut fastrand::Rng::with_seed(seed);
    let at = |_| Duration::from_micros(drawn.u64(..u64::from(seconds) * 1_000_000));
    let arrival = |at| Arrival { at, queue: 0, webhooks: vec![0] };
    scenario.arrivals = (0..per_second * seconds).map(at).map(arrival).collect();
    scenario.seed = seed;
    Simulation::new(scenario).run()
}

/// By chance several failures come in a row, but at 20/s or more not for a whole second.
#[test]
fn a_receiver_that_fails_three_times_in_ten_gets_every_attempt_when_it_is_due() {
    for (per_second, seconds) in [(20, 200), (100, 60)] {
        let run = flaky(1, per_second, seconds);
        // Until its first answer it gets only one request at a time.
        let made = run.made.iter().filter(|made| made.due > ms(1_000));
        let latest = made.map(|made| made.began - made.due).max();
        assert_eq!((run.models[0].outages, latest), (0, Some(ms(0))), "at {per_second}/s");
        let share = run.delivered.len() as f64 / run.deliveries.len() as f64;
        assert!(share > 0.98, "only {share} at {per_second}/s; the others wait for a retry");
    }
}

/// At lower rates a second without a success sometimes happens by chance, and delays attempts a little.
#[test]
fn a_flaky_receiver_with_few_requests_has_few_and_short_delays() {
    for per_second in [1, 2, 5, 10] {
        let run = flaky(1, per_second, 600);
        let delays = run.made.iter().map(|made| made.began - made.due);
        let late = delays.clone().filter(|delay| *delay > ms(10)).count();
        let latest = delays.max().expect("an attempt");
        assert!(late * 100 <= run.made.len() * 3, "{late} of {}", run.made.len());
        assert!(latest <= ms(8_000), "{latest:?} at {per_second}/s");
    }
}

/// Checks an outage: few attempts are made meanwhile, the first one soon after its end, and the waiting
/// deliveries follow as fast as possible.
#[track_caller]
fn check_outage(how: Outage, (from, lasted): (Moment, Duration), per_second: u32, seed: u64) {
    let until = from + lasted;
    let ends = until + lasted / 2 + ms(40_000);
    let mut scenario =
        Scenario::new(subscribers(1, &Behaviour::Down { from, until, how }, |n| n), ends);
    scenario = scenario.with_steady(0..1, per_second, (ms(0), until));
    scenario.seed = seed;
    let run = Simulation::new(scenario).run();
    let case = format!("{how:?} from {from:?} for {lasted:?}, {per_second}/s, seed {seed}");

    let attempts = run.made.iter().map(|made| made.began);
    let noticed = attempts.clone().find(|at| *at >= until).expect("a probe");
    let most = match how {
        Outage::Hangs => (lasted / 4).max(ms(1_000)) + TIMEOUT,
        _ => lasted / 4 + ms(1_000),
    };
    assert!(noticed - until <= most, "{case}: noticed after {:?}, {most:?}", noticed - until);
    let settled = from + ms(30_000);
    let probes = attempts.filter(|at| (settled..until).contains(at)).count();
    assert!(probes <= 40, "{case}: {probes} probes");

    let waited = run.made.iter().filter(|made| made.due <= until);
    let last = waited.clone().map(|made| made.began).max().expect("an attempt");
    let drained = last.saturating_sub(until);
    // Slow receivers have half of the capacity, and a group half of that: 16 requests at a time, each of
    // which takes at most 6 ms.
    let most = most + ms(1_000) + ms(6) * u32::try_from(waited.count()).expect("few") / 16;
    assert!(drained <= most, "{case}: its backlog took {drained:?}, not {most:?}");
    let concluded = run.delivered.len() + run.dead;
    assert_eq!(concluded, run.deliveries.len(), "{case}: some deliveries did not end");
}

#[test]
fn a_recovery_is_noticed_within_a_quarter_of_the_outage_and_the_backlog_follows_at_once() {
    for how in [Outage::Hangs, Outage::Overloaded, Outage::Fails] {
        for (seconds, per_second) in [(3, 50), (10, 50), (60, 20), (600, 2), (3_600, 1)] {
            check_outage(how, (ms(10_000), ms(seconds * 1_000)), per_second, 1);
        }
        for seed in 0..30 {
            let drawn = &mut fastrand::Rng::with_seed(seed);
            let from = ms(drawn.u64(5_000..10_000));
            let lasted = ms(drawn.u64(500..100_000));
            let per_second = *drawn.choice(&[5, 20, 50]).expect("a rate");
            check_outage(how, (from, lasted), per_second, seed);
        }
    }
}
