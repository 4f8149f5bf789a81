//! The scenario of a simulation: the webhooks, how their receivers behave, and the events. Constructed, or
//! drawn from a seed.

use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use super::TIMEOUT;
use crate::domain::outcome::Reason;
use crate::domain::time::Moment;

/// How a receiver answers.
#[derive(Clone, Debug)]
pub(super) enum Behaviour {
    /// Successfully, after a time within these bounds.
    Answers(Duration, Duration),
    /// Quickly, three times in ten with a 500.
    Flaky,
    /// Refuses connections.
    Refuses,
    /// Never answers.
    Hangs,
    /// As slowly as possible without failing, then once quickly, and so on. The rhythm is the one that
    /// harms other receivers most: the quick answer comes once it was slow for as long as one request
    /// takes.
    Alternates { until: Moment, is_armed: bool },
    /// Quickly, except during an outage.
    Down { from: Moment, until: Moment, how: Outage },
}

/// What happens to requests during an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outage {
    /// They are never answered.
    Hangs,
    /// They are answered with 503.
    Overloaded,
    /// They are answered with 500.
    Fails,
    /// They are answered with 429 and this `Retry-After`.
    StayAway(Duration),
}

/// The result of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) took: Duration,
    /// `None` if the receiver has the event.
    pub(super) failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) is_overload: bool,
    pub(super) retry_after: Option<Duration>,
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn between(rng: &mut Rng, least: Duration, most: Duration) -> Duration {
    let micros = |time: Duration| u64::try_from(time.as_micros()).expect("a short time");
    Duration::from_micros(rng.u64(micros(least)..=micros(most)))
}

fn failed(took: Duration, reason: Reason, is_overload: bool) -> Response {
    Response { took, failure: Some(Failure { reason, is_overload, retry_after: None }) }
}

impl Response {
    fn delivered(took: Duration) -> Self {
        Self { took, failure: None }
    }
}

impl Behaviour {
    pub(super) fn quick() -> Self {
        Self::Answers(ms(2), ms(6))
    }

    pub(super) fn alternates() -> Self {
        Self::Alternates { until: Moment::ZERO, is_armed: true }
    }

    /// Answers a request that begins at `now`.
    pub(super) fn answer(&mut self, rng: &mut Rng, now: Moment) -> Response {
        let quick = between(rng, ms(2), ms(6));
        match self {
            Self::Answers(least, most) => Response::delivered(between(rng, *least, *most)),
            Self::Flaky if rng.u32(..10) < 3 => failed(quick, Reason::Status5xx, false),
            Self::Refuses => failed(quick, Reason::Refused, false),
            Self::Hangs => failed(TIMEOUT, Reason::Timeout, true),
            Self::Alternates { until, is_armed } => {
                if *is_armed {
                    *until = now + ms(9_700);
                }
                *is_armed = !*is_armed && now >= *until;
                Response::delivered(if *is_armed { ms(3) } else { ms(9_700) })
            }
            Self::Down { from, until, how } if (*from..*until).contains(&now) => match *how {
                Outage::Hangs => failed(TIMEOUT, Reason::Timeout, true),
                Outage::Overloaded => failed(quick, Reason::Status5xx, true),
                Outage::Fails => failed(quick, Reason::Status5xx, false),
                Outage::StayAway(wanted) => {
                    let (reason, retry_after) = (Reason::Status4xx, Some(wanted));
                    let failure = Some(Failure { reason, is_overload: true, retry_after });
                    Response { took: quick, failure }
                }
            },
            Self::Flaky | Self::Down { .. } => Response::delivered(quick),
        }
    }

    fn drawn(rng: &mut Rng, which: usize, lasts: Duration) -> Self {
        match which {
            0 => Self::quick(),
            1 => {
                let usual = between(rng, ms(90), ms(500));
                Self::Answers(usual * 9 / 10, usual * 11 / 10)
            }
            2 => Self::Answers(ms(1_500), ms(8_000)),
            3 => Self::Flaky,
            4 => Self::Refuses,
            5 => Self::Hangs,
            6 => Self::alternates(),
            _ => {
                let from = between(rng, Duration::ZERO, lasts);
                let until = from + between(rng, ms(100), lasts);
                let stays = between(rng, ms(500), ms(20_000));
                let ways = [Outage::Hangs, Outage::Overloaded, Outage::Fails];
                let how = *rng.choice(&ways).expect("a way");
                let how = if rng.u32(..5) == 0 { Outage::StayAway(stays) } else { how };
                Self::Down { from, until, how }
            }
        }
    }
}

/// A webhook and its receiver.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub(super) behaviour: Behaviour,
    /// The number of its account or host.
    pub(super) group: usize,
    pub(super) max_in_flight: Option<NonZeroU32>,
}

impl Subscriber {
    pub(super) fn new(behaviour: Behaviour, group: usize) -> Self {
        Self { behaviour, group, max_in_flight: None }
    }
}

/// An event: when it arrives, in which queue, and for which webhooks.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) at: Moment,
    pub(super) queue: usize,
    pub(super) webhooks: Vec<usize>,
}

/// All that determines a run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) breaker: &'static str,
    /// The capacity of each queue.
    pub(super) capacities: Vec<usize>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) arrivals: Vec<Arrival>,
    /// From this time on every receiver answers quickly.
    pub(super) heals_at: Moment,
    /// When the run ends; `None` if it ends when no step is left.
    pub(super) ends_at: Option<Moment>,
    /// Whether some attempts are given back, and some stop waiting for a place.
    pub(super) is_restless: bool,
}

impl Scenario {
    /// One queue with the usual capacity, and receivers that never recover.
    pub(super) fn new(subscribers: Vec<Subscriber>, lasts: Duration) -> Self {
        Self {
            seed: 1,
            breaker: "5,1s,5m",
            capacities: vec![64],
            subscribers,
            arrivals: Vec::new(),
            heals_at: Moment::MAX,
            ends_at: Some(lasts),
            is_restless: false,
        }
    }

    /// Adds events for these webhooks in rotation, at this rate, from `from` until `until`.
    pub(super) fn with_steady(
        mut self,
        webhooks: Range<usize>,
        per_second: u32,
        (from, until): (Moment, Moment),
    ) -> Self {
        let mut at = from;
        for webhook in webhooks.cycle() {
            if at >= until {
                break;
            }
            self.arrivals.push(Arrival { at, queue: 0, webhooks: vec![webhook] });
            at += Duration::from_secs(1) / per_second;
        }
        self
    }

    /// Draws everything from the seed: the receivers, the events, and when they come.
    pub(super) fn drawn(seed: u64, has_usual_capacity: bool) -> Self {
        let rng = &mut Rng::with_seed(seed);
        let lasts = between(rng, ms(2_000), ms(30_000));
        // If several queues share the events, one with the usual capacity is seldom full.
        let choice: &[usize] = if has_usual_capacity { &[1, 1, 1, 2, 3] } else { &[1, 1, 2, 3] };
        let queues = *rng.choice(choice).expect("a number");
        let capacities = (0..queues).map(|_| match rng.usize(..4) {
            _ if has_usual_capacity => 64,
            0 => rng.usize(1..=128),
            1 => rng.usize(1..=16),
            _ => *rng.choice(&[1, 2, 3, 4, 5, 8, 64, 128]).expect("a capacity"),
        });
        let capacities: Vec<usize> = capacities.collect();
        // Only a few behaviours in each run: if all were mixed, the receivers that hang would hide the
        // effect of the others.
        let kinds: Vec<usize> = (0..rng.usize(1..=4)).map(|_| rng.usize(..8)).collect();
        let count = match rng.usize(..4) {
            0 | 1 if !has_usual_capacity => rng.usize(1..=8),
            0 | 2 => rng.usize(1..=80),
            _ => rng.usize(64..=128),
        };
        let groups = match rng.usize(..3) {
            0 => 1,
            1 => count.div_ceil(5),
            _ => count,
        };
        let mut subscribers = Vec::new();
        for n in 0..count {
            let which = *rng.choice(&kinds).expect("a behaviour");
            let behaviour = Behaviour::drawn(rng, which, lasts);
            let max_in_flight = NonZeroU32::new(rng.u32(1..=4)).filter(|_| rng.u32(..10) == 0);
            subscribers.push(Subscriber { behaviour, group: n % groups, max_in_flight });
        }
        let mut arrivals = Vec::new();
        let most = rng.usize(20..=if has_usual_capacity { 200 } else { 120 });
        let mut deliveries = 0;
        while deliveries < most {
            let begins = between(rng, Duration::ZERO, lasts);
            let queue = rng.usize(..capacities.len());
            let busy = rng.usize(..count);
            let events = rng.usize(1..=most / 2 + 1);
            let pattern = rng.usize(..4);
            for n in 0..events {
                let since = match pattern {
                    // A steady stream for any webhook, a burst, a stream for one busy webhook, or a few
                    // events that many webhooks want.
                    0 => {
                        lasts / u32::try_from(events).expect("few") * u32::try_from(n).expect("few")
                    }
                    2 => ms(5) * u32::try_from(n).expect("few"),
                    _ => Duration::ZERO,
                };
                let webhooks: Vec<usize> = match pattern {
                    2 => vec![busy],
                    3 => (0..count).filter(|_| rng.u32(..4) != 0).collect(),
                    _ => vec![rng.usize(..count)],
                };
                deliveries += webhooks.len().max(1);
                arrivals.push(Arrival { at: begins + since, queue, webhooks });
                if deliveries >= most {
                    break;
                }
            }
        }
        let is_restless = rng.bool();
        let last = arrivals.iter().map(|arrival| arrival.at).max().unwrap_or_default();
        let heals_at = last + between(rng, Duration::ZERO, ms(60_000));
        let breaker = if rng.u32(..10) == 0 { "off" } else { "5,1s,5m" };
        let ends_at = None;
        Self { seed, breaker, capacities, subscribers, arrivals, heals_at, ends_at, is_restless }
    }
}
