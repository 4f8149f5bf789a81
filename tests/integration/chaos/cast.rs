//! Who wants which event, and what each receiver answers.
//!
//! All of it is a function of the seed and of what it is asked about, never of the time or of what
//! came before, so that a seed stands for one run.

use fastrand::Rng;

use crate::harness::Reply;

/// The webhooks that are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Webhook {
    /// Answers 200 at once, always, and wants every event, as the next one does: what they get twice
    /// is not their doing.
    HealthyA,
    HealthyB,
    /// Wants every event, and fails at about every tenth.
    Flaky,
    /// Wants few; never answers the first attempt.
    Hanging,
    /// Wants few; nobody listens there.
    Dead,
}

/// The types of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Plain,
    /// One in fifty: [`Webhook::Hanging`] wants these too.
    Hangs,
    /// One in twenty: [`Webhook::Dead`] wants these too.
    Dies,
}

impl Webhook {
    pub(super) const ALL: [Self; 5] =
        [Self::HealthyA, Self::HealthyB, Self::Flaky, Self::Hanging, Self::Dead];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HealthyA => "healthy-a",
            Self::HealthyB => "healthy-b",
            Self::Flaky => "flaky",
            Self::Hanging => "hanging",
            Self::Dead => "dead",
        }
    }

    /// As it is registered.
    pub(super) fn events(self) -> &'static str {
        match self {
            Self::HealthyA | Self::HealthyB | Self::Flaky => "chaos.*",
            Self::Hanging => "chaos.hangs",
            Self::Dead => "chaos.dies",
        }
    }

    pub(super) fn wants(self, kind: Kind) -> bool {
        match self {
            Self::HealthyA | Self::HealthyB | Self::Flaky => true,
            Self::Hanging => kind == Kind::Hangs,
            Self::Dead => kind == Kind::Dies,
        }
    }

    /// Whether its deliveries may die: it is never there, or fails so often that its circuit breaker
    /// lets fewer attempts through than events come, and the rest grows too old.
    pub(super) fn may_be_given_up(self) -> bool {
        matches!(self, Self::Hanging | Self::Dead)
    }

    /// Whether it never fails.
    pub(super) fn is_healthy(self) -> bool {
        matches!(self, Self::HealthyA | Self::HealthyB)
    }
}

impl Kind {
    /// The most webhooks that want one event.
    pub(super) const MOST_WEBHOOKS: usize = 4;

    /// The event type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "chaos.plain",
            Self::Hangs => "chaos.hangs",
            Self::Dies => "chaos.dies",
        }
    }
}

/// What a seed decides about events and answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub(super) seed: u64,
}

impl Cast {
    /// The type of the event with that number.
    pub(super) fn kind(self, number: usize) -> Kind {
        match self.drawn(&[1, number]).u32(..100) {
            0..2 => Kind::Hangs,
            2..7 => Kind::Dies,
            _ => Kind::Plain,
        }
    }

    /// The event id.
    pub(super) fn id(self, number: usize) -> String {
        format!("{}-{number:06}", self.seed)
    }

    /// The number of the event with that id.
    pub(super) fn number(self, id: &str) -> Option<usize> {
        let (seed, number) = id.split_once('-')?;
        (seed.parse() == Ok(self.seed)).then(|| number.parse().ok())?
    }

    /// Which of so many queues it is published to.
    pub(super) fn queue(self, number: usize, count: usize) -> usize {
        self.drawn(&[2, number]).usize(..count)
    }

    /// The answer to an attempt, of which the first is 1. The third is always answered 200, so that
    /// only [`Webhook::Dead`] exhausts a schedule of four retries.
    pub(super) fn reply(self, webhook: Webhook, number: usize, attempt: usize) -> Reply {
        let mut drawn = self.drawn(&[3, webhook as usize, number, attempt]);
        let fails = match (webhook, attempt) {
            (Webhook::Hanging, 1) => return Reply::Hang,
            (Webhook::Flaky, 1) => drawn.u32(..10) == 0,
            (Webhook::Flaky, 2) => drawn.u32(..5) == 0,
            _ => false,
        };
        match drawn.u32(..200) {
            _ if !fails => Reply::Status(200),
            // Rarely: it keeps everything away from that receiver for a second.
            0 => Reply::WithHeaders(503, vec![("retry-after", String::from("1"))]),
            1..100 => Reply::Status(503),
            _ => Reply::Reset,
        }
    }

    /// Random numbers for just this.
    fn drawn(self, about: &[usize]) -> Rng {
        let mut seed = self.seed;
        for part in about {
            // A few steps of the generator between the parts keep neighbours apart.
            seed = Rng::with_seed(seed ^ *part as u64).u64(..);
        }
        Rng::with_seed(seed)
    }
}

#[test]
fn kinds_and_failures_are_as_frequent_as_they_are_said_to_be() {
    let cast = Cast { seed: 42 };
    let share = |holds: &dyn Fn(usize) -> bool| {
        let count = (0..20_000).filter(|number| holds(*number)).count();
        f64::from(u32::try_from(count).expect("a small number")) / 20_000.0
    };
    let is_ok = |reply| matches!(reply, Reply::Status(200));
    let failing = share(&|number| !is_ok(cast.reply(Webhook::Flaky, number, 1)));
    for (what, share, expected) in [
        ("hanging", share(&|number| cast.kind(number) == Kind::Hangs), 0.02),
        ("dying", share(&|number| cast.kind(number) == Kind::Dies), 0.05),
        ("in the first queue", share(&|number| cast.queue(number, 3) == 0), 1.0 / 3.0),
        ("failing", failing, 0.1),
    ] {
        assert!((share - expected).abs() < 0.2 * expected, "{what}: {share}");
    }
    assert!((0..1_000).all(|number| is_ok(cast.reply(Webhook::Flaky, number, 3))));
    assert!((0..1_000).all(|number| is_ok(cast.reply(Webhook::HealthyA, number, 1))));
}

#[test]
fn no_kind_has_more_webhooks_than_the_bound_counts_on() {
    for kind in [Kind::Plain, Kind::Hangs, Kind::Dies] {
        let count = Webhook::ALL.iter().filter(|webhook| webhook.wants(kind)).count();
        assert!(count <= Kind::MOST_WEBHOOKS, "{kind:?}: {count}");
    }
}

#[test]
fn an_id_leads_back_to_its_number() {
    let cast = Cast { seed: 42 };
    assert_eq!(cast.number(&cast.id(1_234_567)), Some(1_234_567));
    for stranger in ["", "42", "42-", "41-000001", "x-000001"] {
        assert_eq!(cast.number(stranger), None, "{stranger}");
    }
}
