//! Who wants which event, and what each receiver answers.
//!
//! All of it is a function of the seed and the arguments, never of the time or of earlier calls, so that
//! a seed determines a run. The plan says who is unreachable for a while, paused or deleted.

use std::time::Duration;

use fastrand::Rng;

use crate::harness::Reply;

/// The response time of [`Webhook::Far`]: the longest round trip on Earth.
const DISTANCE: Duration = Duration::from_millis(200);

/// Out of this many events in a row (20 s at the usual rate), [`Webhook::Outage`] refuses those of 4 s:
/// long enough that a circuit breaker opens, and short compared with the age at which a delivery
/// expires.
const OUTAGE_EVERY: usize = 2_000;
const OUTAGE_LENGTH: usize = 400;

/// The registered webhooks. Each has its own host and port, except the crowd, which shares one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Webhook {
    /// Always answers 200 at once, and wants every event: its failures can't cause a repeat.
    HealthyA,
    /// The same.
    HealthyB,
    /// Wants every event, and fails about every tenth.
    Flaky,
    /// Always answers 200, after [`DISTANCE`].
    Far,
    /// Fails at about 30 % of the first and second attempts.
    VeryFlaky,
    /// Wants few events; answers 503 to a series of them, and again at their second attempts. Since it has
    /// no success until a third attempt, 1.5 s later, its circuit breaker opens.
    Outage,
    /// Wants few events; never answers a first attempt.
    Hanging,
    /// Wants few events; doesn't answer the first attempt of about every second one, and all other attempts
    /// at once.
    Alternating,
    /// The crowd: four on one host that want few events. This one always answers at once.
    CrowdA,
    /// The same.
    CrowdB,
    /// Of the crowd, too; doesn't answer the first attempt of about every fourth event.
    CrowdC,
    /// The same.
    CrowdD,
    /// Wants few events; nothing listens at its URL.
    Dead,
    /// Wants every tenth event and answers at once, but the plan makes it answer 503 for some seconds.
    Away,
    /// Wants every tenth event and answers at once; the plan pauses it.
    Paused,
    /// Wants every tenth event and answers at once; the plan deletes it while it is away, and registers it
    /// again.
    Leaving,
}

/// The types of the events. Plain ones only go to the webhooks that want every event. Hanging ones are
/// rare: a hanging request occupies capacity for REQUEST_TIMEOUT, and at 250 events per second all of
/// them together should still use less than the half that slow receivers may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Plain,
    /// One in fifty: [`Webhook::Hanging`] wants these, too.
    Hangs,
    /// One in twenty: [`Webhook::Dead`] wants these, too.
    Dies,
    /// One in twenty: [`Webhook::Far`] and [`Webhook::VeryFlaky`] want these, too. The events that
    /// accumulate for the former during an outage of the broker exceed its share of the capacity, and are
    /// delivered share by share, with waits in between: if there were more of them, some would expire.
    Mixed,
    /// Three in a hundred: [`Webhook::Outage`] wants these, too. Each may fail twice, and while a circuit
    /// breaker is open each failure costs a pause: many of them would outlast the run.
    Breaks,
    /// One in a hundred: [`Webhook::Alternating`] wants these, too.
    Alternates,
    /// One in a hundred: the crowd's four want these, too.
    Crowds,
    /// One in ten: [`Webhook::Away`], [`Webhook::Paused`] and [`Webhook::Leaving`] want these, too.
    /// During each one's outage some dozens of them wait.
    Changes,
}

impl Webhook {
    pub(super) const ALL: [Self; 16] = [
        Self::HealthyA,
        Self::HealthyB,
        Self::Flaky,
        Self::Far,
        Self::VeryFlaky,
        Self::Outage,
        Self::Hanging,
        Self::Alternating,
        Self::CrowdA,
        Self::CrowdB,
        Self::CrowdC,
        Self::CrowdD,
        Self::Dead,
        Self::Away,
        Self::Paused,
        Self::Leaving,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HealthyA => "healthy-a",
            Self::HealthyB => "healthy-b",
            Self::Flaky => "flaky",
            Self::Far => "far",
            Self::VeryFlaky => "very-flaky",
            Self::Outage => "outage",
            Self::Hanging => "hanging",
            Self::Alternating => "alternating",
            Self::CrowdA => "crowd-a",
            Self::CrowdB => "crowd-b",
            Self::CrowdC => "crowd-c",
            Self::CrowdD => "crowd-d",
            Self::Dead => "dead",
            Self::Away => "away",
            Self::Paused => "paused",
            Self::Leaving => "leaving",
        }
    }

    /// Its host. Webhooks with the same host also share the port.
    pub(super) fn host(self) -> &'static str {
        match self {
            Self::CrowdA | Self::CrowdB | Self::CrowdC | Self::CrowdD => "crowd",
            alone => alone.name(),
        }
    }

    /// The only kind that it wants; `None`: it wants every event.
    fn only(self) -> Option<Kind> {
        match self {
            Self::HealthyA | Self::HealthyB | Self::Flaky => None,
            Self::Far | Self::VeryFlaky => Some(Kind::Mixed),
            Self::Outage => Some(Kind::Breaks),
            Self::Hanging => Some(Kind::Hangs),
            Self::Alternating => Some(Kind::Alternates),
            Self::CrowdA | Self::CrowdB | Self::CrowdC | Self::CrowdD => Some(Kind::Crowds),
            Self::Dead => Some(Kind::Dies),
            Self::Away | Self::Paused | Self::Leaving => Some(Kind::Changes),
        }
    }

    /// Its registered pattern.
    pub(super) fn events(self) -> &'static str {
        self.only().map_or("chaos.*", Kind::name)
    }

    pub(super) fn wants(self, kind: Kind) -> bool {
        self.only().is_none_or(|only| only == kind)
    }

    /// Whether its deliveries may become dead letters: it is never there, or fails so often that its
    /// circuit breaker allows fewer attempts than events arrive, and the others expire.
    pub(super) fn may_be_given_up(self) -> bool {
        matches!(self, Self::Hanging | Self::Dead)
    }

    /// Whether it never fails, and may always get requests.
    pub(super) fn is_healthy(self) -> bool {
        matches!(self, Self::HealthyA | Self::HealthyB | Self::Far | Self::CrowdA | Self::CrowdB)
    }

    /// Whether its first requests must arrive in the order of publishing. Not if it fails at random: if an
    /// attempt doesn't reach it, the retry can't be told from a first attempt.
    pub(super) fn keeps_order(self) -> bool {
        self.is_healthy() || matches!(self, Self::Away | Self::Paused | Self::Leaving)
    }
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::Plain,
        Self::Hangs,
        Self::Dies,
        Self::Mixed,
        Self::Breaks,
        Self::Alternates,
        Self::Crowds,
        Self::Changes,
    ];

    /// The most webhooks that want one event: the three that want every event, and the crowd.
    pub(super) const MOST_WEBHOOKS: usize = 7;

    /// The event type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "chaos.plain",
            Self::Hangs => "chaos.hangs",
            Self::Dies => "chaos.dies",
            Self::Mixed => "chaos.mixed",
            Self::Breaks => "chaos.breaks",
            Self::Alternates => "chaos.alternates",
            Self::Crowds => "chaos.crowds",
            Self::Changes => "chaos.changes",
        }
    }
}

/// What a seed decides about events and answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub(super) seed: u64,
}

impl Cast {
    /// The type of the event with this number.
    pub(super) fn kind(self, number: usize) -> Kind {
        match self.drawn(&[1, number]).u32(..100) {
            0..2 => Kind::Hangs,
            2..7 => Kind::Dies,
            7..12 => Kind::Mixed,
            12..15 => Kind::Breaks,
            15 => Kind::Alternates,
            16 => Kind::Crowds,
            17..27 => Kind::Changes,
            _ => Kind::Plain,
        }
    }

    /// The id of the event with this number.
    pub(super) fn id(self, number: usize) -> String {
        format!("{}-{number:06}", self.seed)
    }

    /// The number of the event with this id.
    pub(super) fn number(self, id: &str) -> Option<usize> {
        let (seed, number) = id.split_once('-')?;
        (seed.parse() == Ok(self.seed)).then(|| number.parse().ok())?
    }

    /// Which of `count` queues it is published to.
    pub(super) fn queue(self, number: usize, count: usize) -> usize {
        self.drawn(&[2, number]).usize(..count)
    }

    /// The answer to an attempt, counted from 1. The third is always answered with 200, so that only
    /// [`Webhook::Dead`] exhausts a schedule of four retries.
    pub(super) fn reply(self, webhook: Webhook, number: usize, attempt: usize) -> Reply {
        let mut drawn = self.drawn(&[3, webhook as usize, number, attempt]);
        let percent = drawn.u32(..100);
        match (webhook, attempt) {
            (Webhook::Far, _) => Reply::Slow(DISTANCE, 200),
            (Webhook::Hanging, 1) => Reply::Hang,
            (Webhook::Alternating, 1) if percent < 50 => Reply::Hang,
            (Webhook::CrowdC | Webhook::CrowdD, 1) if percent < 25 => Reply::Hang,
            (Webhook::VeryFlaky, 1 | 2) if percent < 30 => Reply::Status(500),
            (Webhook::Outage, 1 | 2) if self.is_out(number) => Reply::Status(503),
            (Webhook::Flaky, 1) if percent < 10 => failure(&mut drawn),
            (Webhook::Flaky, 2) if percent < 20 => failure(&mut drawn),
            _ => Reply::Status(200),
        }
    }

    /// Whether [`Webhook::Outage`] refuses this event: one series in each [`OUTAGE_EVERY`], with a
    /// random start.
    fn is_out(self, number: usize) -> bool {
        let start = self.drawn(&[4, number / OUTAGE_EVERY]).usize(..OUTAGE_EVERY - OUTAGE_LENGTH);
        (start..start + OUTAGE_LENGTH).contains(&(number % OUTAGE_EVERY))
    }

    /// Random numbers for these arguments.
    fn drawn(self, about: &[usize]) -> Rng {
        let mut seed = self.seed;
        for part in about {
            // A step of the generator between the parts decorrelates neighbouring numbers.
            seed = Rng::with_seed(seed ^ *part as u64).u64(..);
        }
        Rng::with_seed(seed)
    }
}

/// One of the ways in which [`Webhook::Flaky`] fails.
fn failure(drawn: &mut Rng) -> Reply {
    match drawn.u32(..200) {
        // Rarely, since it keeps all requests from that receiver for a second.
        0 => Reply::WithHeaders(503, vec![("retry-after", String::from("1"))]),
        1..100 => Reply::Status(503),
        _ => Reply::Reset,
    }
}

/// Whether the receiver has the event after this answer.
pub(super) fn accepts(reply: &Reply) -> bool {
    matches!(reply, Reply::Status(200) | Reply::Slow(_, 200))
}

#[track_caller]
fn assert_share(what: &str, expected: f64, holds: impl Fn(usize) -> bool) {
    let count = (0..20_000).filter(|number| holds(*number)).count();
    let share = f64::from(u32::try_from(count).expect("a small number")) / 20_000.0;
    assert!((share - expected).abs() <= 0.2 * expected, "{what}: {share}");
}

#[test]
fn each_kind_of_event_is_as_frequent_as_documented() {
    let cast = Cast { seed: 42 };
    for (kind, expected) in [
        (Kind::Plain, 0.73),
        (Kind::Hangs, 0.02),
        (Kind::Dies, 0.05),
        (Kind::Mixed, 0.05),
        (Kind::Breaks, 0.03),
        (Kind::Alternates, 0.01),
        (Kind::Crowds, 0.01),
        (Kind::Changes, 0.1),
    ] {
        assert_share(kind.name(), expected, |number| cast.kind(number) == kind);
    }
    assert_share("in the first queue", 1.0 / 3.0, |number| cast.queue(number, 3) == 0);
}

#[test]
fn receivers_fail_as_often_as_documented() {
    let cast = Cast { seed: 42 };
    for (webhook, first, second) in [
        (Webhook::HealthyA, 0.0, 0.0),
        (Webhook::HealthyB, 0.0, 0.0),
        (Webhook::Flaky, 0.1, 0.2),
        (Webhook::Far, 0.0, 0.0),
        (Webhook::VeryFlaky, 0.3, 0.3),
        (Webhook::Outage, 0.2, 0.2),
        (Webhook::Hanging, 1.0, 0.0),
        (Webhook::Alternating, 0.5, 0.0),
        (Webhook::CrowdA, 0.0, 0.0),
        (Webhook::CrowdB, 0.0, 0.0),
        (Webhook::CrowdC, 0.25, 0.0),
        (Webhook::CrowdD, 0.25, 0.0),
    ] {
        for (attempt, expected) in [(1, first), (2, second), (3, 0.0), (4, 0.0)] {
            let fails = |number| !accepts(&cast.reply(webhook, number, attempt));
            assert_share(&format!("{} at attempt {attempt}", webhook.name()), expected, fails);
        }
        assert_eq!(webhook.is_healthy(), (first, second) == (0.0, 0.0), "{webhook:?}");
    }
}

#[test]
fn an_outage_is_one_series_of_consecutive_events() {
    let cast = Cast { seed: 42 };
    for block in 0..10 {
        let numbers = block * OUTAGE_EVERY..(block + 1) * OUTAGE_EVERY;
        let out: Vec<usize> = numbers.filter(|number| cast.is_out(*number)).collect();
        assert_eq!(out.len(), OUTAGE_LENGTH);
        assert_eq!(out[OUTAGE_LENGTH - 1] - out[0], OUTAGE_LENGTH - 1);
    }
}

#[test]
fn a_reply_depends_only_on_the_seed_and_its_arguments() {
    for webhook in Webhook::ALL {
        for number in 0..100 {
            let reply = || format!("{:?}", Cast { seed: 7 }.reply(webhook, number, 1));
            assert_eq!(reply(), reply());
        }
    }
}

#[test]
fn no_kind_is_wanted_by_more_webhooks_than_the_bound_assumes() {
    let wanting = |kind| Webhook::ALL.into_iter().filter(move |webhook| webhook.wants(kind));
    let most = Kind::ALL.into_iter().map(|kind| wanting(kind).count()).max();
    assert_eq!(most, Some(Kind::MOST_WEBHOOKS));
}

#[test]
fn an_id_can_be_parsed_back_to_its_number() {
    let cast = Cast { seed: 42 };
    assert_eq!(cast.number(&cast.id(1_234_567)), Some(1_234_567));
    for unknown in ["", "42", "42-", "41-000001", "x-000001"] {
        assert_eq!(cast.number(unknown), None, "{unknown}");
    }
}
