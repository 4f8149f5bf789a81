//! The rules one by one.

use std::num::NonZeroU32;

use super::*;
use crate::domain::instances::Instance;
use crate::domain::limits::Limit;
use crate::domain::outcome::Reason;

/// The only queue in most of these tests.
const QUEUE: usize = 0;

/// One queue's pace, its clock, and what is in flight.
struct Subject {
    pace: Pace,
    now: Moment,
    events: u32,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn id(webhook: u128) -> Uuid {
    Uuid::from_u128(webhook)
}

/// A request for an attempt to a webhook with a group of its own.
fn by(webhook: u128) -> Ask {
    let group = Group::of(&webhook.to_string());
    Ask { queue: QUEUE, webhook: id(webhook), group, limits: Limits::default(), is_head: false }
}

impl Subject {
    fn new(capacity: usize) -> Self {
        Self::with("5,1s,5m", [capacity])
    }

    fn with(breaker: &str, capacities: impl IntoIterator<Item = usize>) -> Self {
        let breaker = breaker.parse().expect("a breaker");
        Self { pace: Pace::new(capacities, breaker, 1_000), now: ms(1), events: 0 }
    }

    fn after(&mut self, millis: u64) -> &mut Self {
        self.now += ms(millis);
        self
    }

    #[track_caller]
    fn begin(&mut self, ask: Ask) -> Attempt {
        match self.pace.ask(ask, self.now) {
            Ok(Admission::Begins(attempt)) => attempt,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn waits(&mut self, ask: Ask) -> Ticket {
        match self.pace.ask(ask, self.now) {
            Ok(Admission::Waits(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// Why the attempt would be refused.
    fn hold(&mut self, ask: Ask) -> Option<Hold> {
        self.pace.clone().ask(ask, self.now).err()
    }

    fn deliver(&mut self, attempt: Attempt) -> Option<Transition> {
        self.pace.end(attempt, AttemptEnd::Delivered, 0.0, self.now)
    }

    /// Fails with a new event each time.
    fn fail(&mut self, attempt: Attempt) -> Option<Transition> {
        self.fail_by(attempt, false, None)
    }

    fn fail_by(
        &mut self,
        attempt: Attempt,
        is_overload: bool,
        retry_after: Option<u64>,
    ) -> Option<Transition> {
        self.events += 1;
        let event = &self.events.to_string();
        let retry_after = retry_after.map(Duration::from_secs);
        let reason = Reason::Status5xx;
        let ended = AttemptEnd::Failed { event, reason, status: None, is_overload, retry_after };
        self.pace.end(attempt, ended, 0.0, self.now)
    }

    /// One queue, and webhooks whose receivers have answered already.
    #[track_caller]
    fn proven(capacity: usize, webhooks: impl IntoIterator<Item = u128>) -> Self {
        let mut subject = Self::new(capacity);
        for webhook in webhooks {
            let attempt = subject.begin(by(webhook));
            subject.deliver(attempt);
        }
        subject
    }

    /// Makes a number of attempts at this interval, each of which fails at once.
    #[track_caller]
    fn fail_times(&mut self, times: u32, gap: u64) -> Option<Transition> {
        let mut last = None;
        for _ in 0..times {
            let attempt = self.after(gap).begin(by(1));
            last = self.fail(attempt);
        }
        last
    }

    fn class(&self, webhook: u128) -> Class {
        self.pace.receiver(id(webhook)).map_or(Class::Unproven, Receiver::class)
    }
}

#[test]
fn an_unproven_receiver_has_one_request_in_flight_until_its_first_answer() {
    let mut subject = Subject::new(64);
    let first = subject.begin(by(1));
    assert_eq!(subject.hold(by(1)), Some(Hold::Unproven));
    assert_eq!(subject.hold(by(2)), None);
    subject.after(3).fail(first);
    assert_eq!(subject.class(1), Class::Prompt, "a quick failure counts as an answer");
    let _ = subject.begin(by(1));
    assert_eq!(subject.hold(by(1)), None);
}

#[test]
fn a_request_that_takes_over_a_second_makes_its_receiver_slow_and_counts_as_such() {
    let mut subject = Subject::proven(64, [1]);
    let attempts = [subject.begin(by(1)), subject.after(500).begin(by(1))];
    subject.after(500);
    let counts = |subject: &mut Subject| subject.pace.in_use(QUEUE, subject.now).map(|(_, n)| n);
    assert_eq!(counts(&mut subject), [2, 0, 0], "neither takes over a second yet");
    assert_eq!(counts(subject.after(1)), [1, 0, 1], "the second one began later");
    assert_eq!(subject.class(1), Class::Slow);
    for attempt in attempts {
        subject.deliver(attempt);
    }
    assert_eq!(counts(&mut subject), [0, 0, 0]);
    assert_eq!(subject.class(1), Class::Slow, "for half a minute at least");
    for _ in 0..31 {
        let attempt = subject.after(1_000).begin(by(1));
        subject.deliver(attempt);
    }
    assert_eq!(subject.class(1), Class::Prompt);
}

#[test]
fn one_webhook_has_half_of_the_capacity_and_the_rest_goes_elsewhere() {
    let mut subject = Subject::proven(8, [1, 2]);
    let attempts: Vec<_> = (0..4).map(|_| subject.begin(by(1))).collect();
    assert_eq!(subject.hold(by(1)), Some(Hold::Share));
    assert_eq!(subject.hold(by(2)), None);
    for attempt in attempts {
        subject.deliver(attempt);
    }
    assert_eq!(subject.hold(by(1)), None);
}

#[test]
fn one_account_has_three_quarters_however_many_webhooks_it_has() {
    let mut subject = Subject::proven(16, 1..30);
    let ours = |webhook| Ask { group: Group::of("ours"), ..by(webhook) };
    let begun = (1..30).filter(|webhook| {
        let answer = subject.pace.ask(ours(*webhook), subject.now);
        matches!(answer, Ok(Admission::Begins(_)))
    });
    assert_eq!(begun.count(), 12);
    assert_eq!(subject.hold(ours(29)), Some(Hold::Group));
    assert_eq!(subject.hold(by(29)), None, "of another account");
}

#[test]
fn deliveries_wait_for_a_free_place_and_are_called_in_order() {
    let mut subject = Subject::proven(2, 1..6);
    let attempts = [subject.begin(by(1)), subject.begin(by(2))];
    let tickets = [3, 4, 5].map(|webhook| subject.waits(by(webhook)));
    assert_eq!(subject.hold(by(1)), Some(Hold::Share), "it has one already");
    assert_eq!(subject.hold(by(9)), Some(Hold::Full), "an unproven receiver doesn't wait");
    assert_eq!(subject.pace.call_next(subject.now), None);
    assert!(subject.pace.stop_waiting(tickets[1]));
    assert!(!subject.pace.stop_waiting(tickets[1]));
    for attempt in attempts {
        subject.deliver(attempt);
    }
    for ticket in [tickets[0], tickets[2]] {
        let called = subject.pace.call_next(subject.now).expect("there is a place");
        assert!(matches!(called, (called, Ok(_)) if called == ticket));
    }
    assert_eq!(subject.pace.call_next(subject.now), None);
    assert!(!subject.pace.has_waiting());
}

#[test]
fn a_waiting_delivery_is_refused_if_there_is_another_reason_when_it_is_called() {
    let mut subject = Subject::proven(2, [1, 2, 3]);
    let _ = subject.begin(by(1));
    let other = subject.begin(by(2));
    let [first, second] = [subject.waits(by(3)), subject.waits(by(3))];
    let called = |subject: &mut Subject| subject.pace.call_next(subject.now);
    subject.deliver(other);
    assert!(matches!(called(&mut subject), Some((ticket, Ok(_))) if ticket == first));
    assert_eq!(called(&mut subject), None);
    // The called one has a place now, so the other is over its share.
    let other = subject.pace.in_flight.keys().next().copied().expect("one is in flight");
    subject.deliver(Attempt { number: other, is_probe: false });
    assert_eq!(called(&mut subject), Some((second, Err(Hold::Share))));
}

#[test]
fn queues_share_the_state_of_receivers_but_no_capacity() {
    let mut subject = Subject::with("5,1s,5m", [1, 1]);
    let other = |webhook| Ask { queue: 1, ..by(webhook) };
    let attempt = subject.begin(by(1));
    assert_eq!(subject.hold(by(2)), Some(Hold::Unproven), "there is room for one");
    let elsewhere = subject.begin(other(2));
    assert_eq!(subject.after(1_001).hold(other(1)), Some(Hold::Slow), "it is slow there, too");
    subject.deliver(elsewhere);
    assert_eq!(subject.hold(other(1)), None);
    assert_eq!(subject.class(1), Class::Slow);
    subject.deliver(attempt);
}

#[test]
fn five_failures_over_at_least_a_second_open_the_breaker() {
    let mut subject = Subject::proven(64, [1]);
    assert_eq!(subject.fail_times(99, 10), None, "in 980 ms");
    assert_eq!(subject.fail_times(1, 50), Some(Transition::Open(ms(1_000))));
    assert_eq!(subject.hold(by(1)), Some(Hold::Breaker(ms(1_000))));
    assert_eq!(subject.after(999).hold(by(1)), Some(Hold::Breaker(ms(1))));

    let mut subject = Subject::proven(64, [1]);
    assert_eq!(subject.fail_times(4, 5_000), None, "four are too few");
    assert!(matches!(subject.fail_times(1, 5_000), Some(Transition::Open(_))));

    let mut subject = Subject::proven(64, [1]);
    for _ in 0..50 {
        assert_eq!(subject.fail_times(4, 1_000), None);
        let attempt = subject.begin(by(1));
        assert_eq!(subject.deliver(attempt), None, "a success resets the count");
    }
}

#[test]
fn a_probe_comes_after_a_quarter_of_the_outage_and_a_success_ends_it() {
    let mut subject = Subject::proven(64, [1]);
    let began = subject.now + ms(100);
    let mut opened = subject.fail_times(11, 100);
    let mut probes = 0;
    while subject.now < Duration::from_secs(7_200) {
        let Some(Transition::Open(pause)) = opened else { panic!("{opened:?}") };
        let outage = subject.now - began;
        let expected = (outage / 4).clamp(Duration::from_secs(1), Duration::from_secs(300));
        assert_eq!(pause, expected, "after {outage:?}");
        let millis = u64::try_from(pause.as_millis()).expect("it is short") + 1;
        let probe = subject.after(millis).begin(by(1));
        assert!(probe.is_probe);
        assert_eq!(subject.hold(by(1)), Some(Hold::Breaker(Duration::ZERO)), "one at a time");
        opened = subject.fail(probe);
        probes += 1;
    }
    assert!((40..=50).contains(&probes), "{probes} in two hours");
    let probe = subject.after(300_000).begin(by(1));
    assert_eq!(subject.deliver(probe), Some(Transition::Closed));
    let one = subject.begin(by(1));
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp), "it begins with one");
    subject.deliver(one);
    let two = [subject.begin(by(1)), subject.begin(by(1))];
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp));
    for attempt in two {
        subject.deliver(attempt);
    }
    let _ = [(); 8].map(|()| subject.begin(by(1)));
}

#[test]
fn the_time_that_we_wait_for_a_hanging_receiver_does_not_lengthen_the_pause() {
    let mut subject = Subject::proven(64, [1]);
    let attempts: Vec<_> = (0..6).map(|_| subject.begin(by(1))).collect();
    subject.after(10_000);
    let ends: Vec<_> = attempts.into_iter().filter_map(|attempt| subject.fail(attempt)).collect();
    assert_eq!(ends, [Transition::Open(ms(1_000))], "the sixth failure is no news");
}

#[test]
fn a_success_of_an_attempt_that_began_before_the_breaker_opened_closes_it() {
    let mut subject = Subject::proven(64, [1]);
    let attempt = subject.begin(by(1));
    assert!(matches!(subject.fail_times(11, 100), Some(Transition::Open(_))));
    assert_eq!(subject.deliver(attempt), Some(Transition::Closed));
    assert_eq!(subject.hold(by(1)), None);
}

#[test]
fn failures_of_a_single_event_never_open_the_breaker() {
    let mut subject = Subject::proven(64, [1]);
    let mut fail = |event| {
        let attempt = subject.after(1_000).begin(by(1));
        let (reason, is_overload, retry_after) = (Reason::Status5xx, false, None);
        let ended = AttemptEnd::Failed { event, reason, status: None, is_overload, retry_after };
        subject.pace.end(attempt, ended, 0.0, subject.now)
    };
    for _ in 0..50 {
        assert_eq!(fail("a"), None);
    }
    assert!(matches!(fail("b"), Some(Transition::Open(_))));
}

#[test]
fn a_breaker_that_is_off_never_opens() {
    let mut subject = Subject::with("off", [64]);
    assert_eq!(subject.fail_times(100, 1_000), None);
}

#[test]
fn if_a_probe_is_given_back_the_next_attempt_is_the_probe() {
    let mut subject = Subject::proven(64, [1]);
    subject.fail_times(11, 100);
    let probe = subject.after(1_000).begin(by(1));
    subject.pace.give_back(probe);
    assert!(subject.begin(by(1)).is_probe);
}

#[test]
fn overload_halves_the_requests_at_a_time_and_successes_raise_them_again() {
    let mut subject = Subject::proven(64, [1]);
    let mut attempts: Vec<_> = (0..8).map(|_| subject.begin(by(1))).collect();
    let attempt = attempts.pop().expect("eight of them");
    subject.after(5).fail_by(attempt, true, None);
    // Half of the eight may be in flight.
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp));
    for attempt in attempts.drain(..3) {
        subject.fail_by(attempt, true, None);
    }
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp), "sent together, they halve it once");
    subject.deliver(attempts.remove(0));
    let _ = [subject.begin(by(1)), subject.begin(by(1))];
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp), "one more, because all were used");
    for attempt in attempts {
        subject.deliver(attempt);
    }
    let _ = [(); 4].map(|()| subject.begin(by(1)));
    assert_eq!(subject.hold(by(1)), Some(Hold::Ramp), "and one more");
}

#[test]
fn retry_after_keeps_everything_away_from_the_receiver() {
    let mut subject = Subject::proven(64, [1]);
    let (first, second) = (subject.begin(by(1)), subject.begin(by(1)));
    subject.fail_by(first, false, Some(60));
    assert_eq!(subject.hold(by(1)), Some(Hold::StayAway(ms(60_000))));
    subject.fail_by(second, false, Some(1));
    assert_eq!(subject.hold(by(1)), Some(Hold::StayAway(ms(60_000))), "the longer one holds");
    let attempt = subject.after(60_000).begin(by(1));
    subject.fail_by(attempt, false, Some(u64::MAX));
    assert_eq!(subject.hold(by(1)), Some(Hold::StayAway(ms(3_600_000))), "an hour at most");
}

#[test]
fn a_webhooks_limit_holds_for_all_queues_and_reaching_it_is_no_fault() {
    let mut subject = Subject::with("5,1s,5m", [64, 64]);
    let limits = Limits { max_in_flight: NonZeroU32::new(1), ..Limits::default() };
    let ask = |queue| Ask { limits, queue, ..by(1) };
    let attempt = subject.begin(ask(0));
    assert!(matches!(subject.hold(ask(1)), Some(Hold::Limit(Limit::InFlight, _))));
    subject.deliver(attempt);
    assert_eq!(
        subject.pace.count(subject.now),
        ReceiverCounts { known: 1, ..ReceiverCounts::default() }
    );
    assert_eq!(subject.hold(ask(1)), None);
}

#[test]
fn a_healthy_receiver_that_can_answer_within_a_millisecond_is_near() {
    let mut subject = Subject::new(64);
    let is_near = |subject: &Subject| subject.pace.receiver(id(1)).is_some_and(Receiver::is_near);
    let attempt = subject.begin(by(1));
    assert!(!is_near(&subject), "it has not answered yet");
    subject.after(1).deliver(attempt);
    assert!(is_near(&subject));
    let attempt = subject.begin(by(1));
    subject.fail(attempt);
    assert!(!is_near(&subject), "it has failed");
    for n in 0..100 {
        let attempt = subject.begin(by(1));
        // This machine is busy, but now and then a request shows how near the receiver is.
        subject.after(if n % 10 == 0 { 1 } else { 5 }).deliver(attempt);
        assert!(n % 10 > 0 || is_near(&subject));
    }
    for _ in 0..100 {
        let attempt = subject.begin(by(1));
        subject.after(3).deliver(attempt);
    }
    assert!(!is_near(&subject), "it is three milliseconds away");
}

#[test]
fn an_ailment_says_what_is_wrong_and_since_when() {
    let mut subject = Subject::proven(64, [1, 2]);
    let ailment = |subject: &mut Subject, webhook: u128| {
        let now = subject.now;
        subject.pace.ailments(now).find(|(other, _)| *other == id(webhook)).map(|(_, found)| found)
    };
    assert_eq!(ailment(&mut subject, 1), None);
    let attempt = subject.begin(by(1));
    subject.after(400).fail(attempt);
    let found = ailment(subject.after(100), 1).expect("it is failing");
    assert_eq!((found.condition.label(), found.failures, found.lasted), ("failing", 1, ms(500)));
    let _ = subject.fail_times(5, 100);
    let found = ailment(subject.after(10), 1).expect("its breaker is open");
    assert_eq!(found.condition.label(), "open");
    assert_eq!(found.reason, Some(Reason::Status5xx));
    let probe = subject.after(5_000).begin(by(1));
    assert_eq!(ailment(&mut subject, 1).map(|a| a.condition.label()), Some("half_open"));
    subject.deliver(probe);
    assert_eq!(ailment(&mut subject, 1), None);

    let attempt = subject.begin(by(2));
    assert_eq!(ailment(subject.after(1_000), 2), None);
    let found = ailment(subject.after(2_000), 2).expect("it is slow");
    assert_eq!((found.condition.label(), found.lasted), ("slow", ms(2_000)));
    assert_eq!(
        subject.pace.count(subject.now),
        ReceiverCounts { known: 2, ailing: 1, slow: 1, broken: 0 }
    );
    subject.fail_by(attempt, false, Some(60));
    let found = ailment(&mut subject, 2).expect("it failed");
    assert_eq!(found.condition.label(), "stay_away");
}

#[test]
fn requests_in_flight_stay_counted_when_their_webhook_is_forgotten() {
    let mut subject = Subject::proven(64, [1]);
    let attempts = [subject.begin(by(1)), subject.begin(by(1))];
    subject.pace.forget(id(1));
    assert_eq!(subject.class(1), Class::Unproven);
    for attempt in attempts {
        subject.deliver(attempt);
    }
    assert_eq!(subject.pace.in_use(QUEUE, subject.now).map(|(_, n)| n), [0, 0, 0]);
    subject.pace.forget(id(1));
    assert!(subject.pace.receiver(id(1)).is_none());
}

#[test]
fn memory_is_bounded_and_receivers_with_requests_in_flight_are_kept() {
    let mut subject = Subject::new(64);
    let asked = subject.begin(by(u128::MAX));
    for webhook in 0..2_000 {
        let attempt = subject.begin(by(webhook));
        subject.fail(attempt);
    }
    assert!(subject.pace.receivers.len() <= 1_000);
    assert!(subject.pace.receiver(id(u128::MAX)).is_some());
    subject.deliver(asked);
}

/// The view of the first of two instances.
fn first_of_two() -> Instances {
    let instance = |n| Instance { id: id(n), queues: ["q".to_owned()].into() };
    Instances::new(id(1), vec![instance(1), instance(2)], Duration::from_secs(10))
}

#[test]
fn an_instance_has_its_part_of_a_webhooks_limits_or_all_or_nothing() {
    let mut subject = Subject::new(64);
    subject.pace.share_among(first_of_two());
    let at_most = |webhook, most| {
        let limits = Limits { max_in_flight: NonZeroU32::new(most), rate: None };
        Ask { limits, ..by(webhook) }
    };
    // How many may be in flight, and why the next is refused.
    let first_refused = |subject: &Subject, ask: Ask| {
        let mut subject = Subject { pace: subject.pace.clone(), ..*subject };
        if let Some(hold) = subject.hold(ask) {
            return (0, Some(hold));
        }
        let attempt = subject.begin(ask);
        subject.deliver(attempt);
        let mut in_flight = Vec::new();
        while subject.hold(ask).is_none() {
            in_flight.push(subject.begin(ask));
        }
        (in_flight.len(), subject.hold(ask))
    };
    let reached = Some(Hold::Limit(Limit::InFlight, Duration::ZERO));
    // Each of the two instances may send two of four.
    for webhook in 10..20 {
        assert_eq!(first_refused(&subject, at_most(webhook, 4)), (2, reached));
    }
    // One can't be shared: an instance has all or nothing.
    let elsewhere = (0, Some(Hold::Elsewhere));
    let (ours, others): (Vec<u128>, Vec<u128>) =
        (10..60).partition(|webhook| first_refused(&subject, at_most(*webhook, 1)) == (1, reached));
    assert!(ours.len() > 10 && others.len() > 10, "{ours:?} {others:?}");
    assert_eq!(first_refused(&subject, at_most(others[0], 1)), elsewhere);
    assert_eq!(subject.hold(by(others[0])), None, "without limits");

    // If there is a backlog, the sender has its part at once, and everything after a while.
    for webhook in [ours[0], others[0]] {
        subject.pace.add_backlog(id(webhook), subject.now);
    }
    assert_eq!(first_refused(&subject, at_most(others[0], 4)), elsewhere);
    assert_eq!(first_refused(&subject, at_most(ours[0], 4)), (2, reached));
    subject.after(12_999);
    assert_eq!(first_refused(&subject, at_most(ours[0], 4)), (2, reached));
    subject.after(1);
    assert_eq!(first_refused(&subject, at_most(ours[0], 4)), (4, reached));
    // What counts is since when the backlog has been known, however often it is reported.
    subject.pace.set_backlogs([id(ours[0]), id(ours[0])].into_iter(), subject.now);
    assert_eq!(first_refused(&subject, at_most(ours[0], 4)), (4, reached));
    assert_eq!(
        first_refused(&subject, at_most(others[0], 4)),
        (2, reached),
        "it has no backlog any more"
    );

    subject.pace.share_among(Instances::default());
    assert!(!subject.pace.is_sharing());
    assert_eq!(first_refused(&subject, at_most(others[0], 4)), (4, reached), "alone");
}
