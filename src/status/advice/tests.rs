//! The advice for each snapshot.

use super::*;
use crate::domain::trend::Bound;
use crate::status::snapshot::{
    BacklogsNow, Counted, DisabledNow, EgressNow, NoticesNow, ObjectNow, Rates, ReceiversNow,
    RefusingNow, Trend,
};

/// Two queues, all well.
fn well() -> Snapshot {
    let server = Server { answers: Some(true), lasted_seconds: 100.0 };
    let lane = |origin: &str, is_retry: bool| LaneNow {
        queue: format!("{origin}{}", if is_retry { ".retry" } else { "" }),
        origin: origin.to_owned(),
        kind: if is_retry { "retries" } else { "events" },
        consumers: 1,
        state: LaneStatus::Consuming,
        lasted_seconds: 100.0,
        ready: Some(5),
        growth_per_second: None,
        empty_in_seconds: None,
        dead: (!is_retry).then_some(0),
        in_flight: 0,
        capacity: (!is_retry).then_some(64),
        in_use: (!is_retry).then_some(0),
        received: 0,
        delivered: 0,
        failed: 0,
        held: Counted::new(),
        died: Counted::new(),
        rates: None,
        lag_p50: None,
        lag_p99: None,
        queue_lag_p50: None,
        queue_lag_p99: None,
        trend: Trend { delivered: Vec::new(), failed: Vec::new() },
    };
    let lanes = ["high", "low"].map(|origin| [lane(origin, false), lane(origin, true)]);
    Snapshot {
        version: "1",
        host: "h".to_owned(),
        pid: 1,
        uptime_seconds: 100.0,
        is_stopping: false,
        state: Overall::Well,
        advice: Vec::new(),
        broker: server,
        database: server,
        database_problem: None,
        directory_age_seconds: 0.0,
        broker_accepts: Some(true),
        egress_problem: None,
        notices_problem: None,
        instances: vec!["h:9090".to_owned()],
        instances_problem: None,
        disabled_lately: Vec::new(),
        refusing: Vec::new(),
        depths_age_seconds: Some(1.0),
        lanes: lanes.concat(),
        waiting: Vec::new(),
        orphaned: Some(0),
        dropped: Counted::new(),
        refusals: 0,
        objects: Vec::new(),
        backlogs: BacklogsNow { filled: 0, webhooks: 0, matching: 0, listed: Vec::new() },
        receivers: ReceiversNow {
            known: 20,
            ailing: 0,
            broken: 0,
            matching: 0,
            listed: Vec::new(),
        },
        sample_ages_seconds: Vec::new(),
    }
}

/// Ailing and broken receivers, of 21.
fn receivers(ailing: usize, broken: usize) -> ReceiversNow {
    ReceiversNow { known: 21, ailing, broken, matching: ailing, listed: Vec::new() }
}

fn interrupt(snapshot: &mut Snapshot, lanes: std::ops::Range<usize>, state: LaneStatus) {
    for lane in &mut snapshot.lanes[lanes] {
        (lane.state, lane.lasted_seconds) = (state, 12.7);
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Snapshot), state: Overall, expected: &[&str]) {
    let mut snapshot = well();
    change(&mut snapshot);
    let (worst, advice) = of(&snapshot);
    let what: Vec<_> = advice.iter().map(|advice| advice.what.as_str()).collect();
    assert_eq!((worst, what.as_slice()), (state, expected));
    assert!(advice.iter().all(|advice| advice.remedy.matches('`').count() % 2 == 0));
}

#[test]
fn without_anything_wrong_all_is_well() {
    check(|_| {}, Overall::Well, &[]);
    // Long queues alone are no problem.
    check(|snapshot| snapshot.lanes[0].ready = Some(100_000), Overall::Well, &[]);
}

#[test]
fn a_server_that_is_away_is_named_once_with_the_effect() {
    let away = Server { answers: Some(false), lasted_seconds: 12.7 };
    check(
        |snapshot| {
            snapshot.broker = away;
            interrupt(snapshot, 0..4, LaneStatus::NoBroker);
        },
        Overall::Trouble,
        &["RabbitMQ has not answered for 12 s: nothing is being consumed."],
    );
    check(
        |snapshot| {
            snapshot.database = away;
            interrupt(snapshot, 2..3, LaneStatus::NoDatabase);
            snapshot.directory_age_seconds = 20.0;
        },
        Overall::Trouble,
        &["PostgreSQL has not answered for 12 s: low is not being consumed."],
    );
    check(
        |snapshot| snapshot.database = away,
        Overall::Trouble,
        &[
            "PostgreSQL has not answered for 12 s: only events whose webhooks are cached are delivered.",
        ],
    );
    check(
        |snapshot| {
            snapshot.database = away;
            snapshot.database_problem = Some("no such table".to_owned());
        },
        Overall::Trouble,
        &[
            "PostgreSQL has answered with an error for 12 s: only events whose webhooks are cached are delivered.",
        ],
    );
    check(
        |snapshot| {
            (snapshot.broker, snapshot.database) = (away, away);
            interrupt(snapshot, 0..4, LaneStatus::NoBroker);
        },
        Overall::Trouble,
        &[
            "RabbitMQ has not answered for 12 s: nothing is being consumed.",
            "PostgreSQL has not answered for 12 s.",
        ],
    );
    check(
        |snapshot| snapshot.broker = away,
        Overall::Trouble,
        &["RabbitMQ has not answered for 12 s: the numbers of messages in queues are outdated."],
    );
}

#[test]
fn a_proxy_that_lets_nothing_through_is_trouble() {
    let problem = "the proxy p:3128 (EGRESS_PROXY) cannot be reached: no answer in time".to_owned();
    let egress = EgressNow { problem, lasted_seconds: 12.7 };
    check(
        |snapshot| snapshot.egress_problem = Some(egress),
        Overall::Trouble,
        &["No request has reached a receiver for 12 s: the proxy p:3128 (EGRESS_PROXY) cannot be \
             reached: no answer in time."],
    );
}

#[test]
fn an_alarm_is_trouble_and_mentioned_once() {
    check(
        |snapshot| snapshot.broker_accepts = Some(false),
        Overall::Trouble,
        &["RabbitMQ accepts no messages: failed deliveries can't be parked, and block their lane."],
    );
    check(
        |snapshot| {
            snapshot.broker_accepts = Some(false);
            interrupt(snapshot, 0..1, LaneStatus::NoConfirms);
        },
        Overall::Trouble,
        &["RabbitMQ has confirmed no message for 12 s: high is not being consumed."],
    );
}

#[test]
fn queues_that_accept_nothing_are_trouble_and_named() {
    let refusing = |queue: &str, messages, lasted_seconds| RefusingNow {
        queue: queue.to_owned(),
        messages,
        lasted_seconds,
    };
    check(
        |snapshot| snapshot.refusing = vec![refusing("high.dead", 3, 12.7)],
        Overall::Trouble,
        &["high.dead has accepted no messages for 12 s; 3 messages wait for it."],
    );
    check(
        |snapshot| {
            snapshot.refusing = vec![refusing("high.dead", 0, 12.7), refusing("a", 0, 130.0)];
        },
        Overall::Trouble,
        &["high.dead and a have accepted no messages for 2 min."],
    );
}

#[test]
fn lanes_that_do_not_consume_are_named_with_the_cause() {
    check(
        |snapshot| interrupt(snapshot, 0..2, LaneStatus::NoBroker),
        Overall::Trouble,
        &["There has been no connection to RabbitMQ for 12 s: high and high.retry are not \
           being consumed."],
    );
    check(
        |snapshot| interrupt(snapshot, 1..4, LaneStatus::NoConfirms),
        Overall::Trouble,
        &["RabbitMQ has confirmed no message for 12 s: high.retry, low and low.retry are not \
           being consumed."],
    );
    check(
        |snapshot| {
            snapshot.lanes = [well().lanes, well().lanes].concat();
            interrupt(snapshot, 0..5, LaneStatus::NoDatabase);
        },
        Overall::Trouble,
        &["PostgreSQL has not answered the lanes' queries for 12 s: high, high.retry, low \
           and 2 more are not being consumed."],
    );
}

#[test]
fn a_start_and_a_stop_are_not_trouble() {
    check(
        |snapshot| {
            snapshot.broker.answers = None;
            interrupt(snapshot, 0..4, LaneStatus::Starting);
        },
        Overall::Attention,
        &["It has been starting for 12 s: nothing is being consumed."],
    );
    check(
        |snapshot| {
            snapshot.is_stopping = true;
            interrupt(snapshot, 0..4, LaneStatus::NoBroker);
        },
        Overall::Attention,
        &["It is stopping."],
    );
}

#[test]
fn trouble_comes_first_then_attention_then_information() {
    check(
        |snapshot| {
            snapshot.receivers = receivers(5, 3);
            snapshot.lanes[0].dead = Some(1_200);
            snapshot.lanes[2].dead = Some(34);
            snapshot.directory_age_seconds = 400.0;
            interrupt(snapshot, 0..4, LaneStatus::NoConfirms);
        },
        Overall::Trouble,
        &[
            "RabbitMQ has confirmed no message for 12 s: nothing is being consumed.",
            "Notifications of changes to the webhooks have failed for 6 min.",
            "1,234 dead letters.",
            "3 receivers are down: their deliveries wait.",
            "2 receivers fail or are slow.",
        ],
    );
    check(|snapshot| snapshot.lanes[0].dead = Some(1), Overall::Attention, &["1 dead letter."]);
    check(
        |snapshot| snapshot.receivers = receivers(1, 1),
        Overall::Attention,
        &["1 receiver is down: its deliveries wait."],
    );
    // A single failure is no reason to act.
    check(
        |snapshot| snapshot.receivers = receivers(1, 0),
        Overall::Well,
        &["1 receiver fails or is slow."],
    );
}

#[test]
fn a_consuming_lane_that_receives_nothing_from_its_nonempty_queue_is_trouble() {
    let still = Rates { received: 0.0, delivered: 0.0, failed: 0.0 };
    check(
        |snapshot| {
            snapshot.lanes[0].rates = Some(still);
            snapshot.lanes[1].rates = Some(still);
        },
        Overall::Trouble,
        &["10 messages wait in high and high.retry, and none has been received for a minute."],
    );
    let quiet = |snapshot: &mut Snapshot| {
        snapshot.lanes[0].rates = Some(still);
        snapshot.lanes[0].ready = Some(0);
        snapshot.lanes[1].rates = Some(Rates { received: 0.1, ..still });
        (snapshot.lanes[2].rates, snapshot.lanes[2].lasted_seconds) = (Some(still), 10.0);
        (snapshot.lanes[3].rates, snapshot.lanes[3].ready) = (Some(still), None);
    };
    check(quiet, Overall::Well, &[]);
}

#[test]
fn used_up_capacity_late_deliveries_and_backlogs_are_mentioned() {
    let used_up = |ready| {
        move |snapshot: &mut Snapshot| {
            snapshot.lanes[2].in_use = Some(64);
            snapshot.lanes[2].ready = Some(ready);
        }
    };
    let expected = "The capacity of low is used up, and 6,000 events wait.";
    check(used_up(6_000), Overall::Attention, &[expected]);
    check(used_up(999), Overall::Well, &[]);
    let late = |bound: Bound| {
        move |snapshot: &mut Snapshot| snapshot.lanes[0].lag_p50 = Some(bound.into())
    };
    let expected = "Half of the deliveries of high arrive over a minute late.";
    check(late(Bound::AtMost(120.0)), Overall::Attention, &[expected]);
    check(late(Bound::Above(60.0)), Overall::Attention, &[expected]);
    check(late(Bound::AtMost(60.0)), Overall::Well, &[]);
    check(
        |snapshot| {
            (snapshot.lanes[3].kind, snapshot.lanes[3].ready) = ("backlogs", Some(20_001));
            snapshot.backlogs.filled = 2;
        },
        Overall::Well,
        &["20,001 deliveries wait in 2 backlogs."],
    );
}

#[test]
fn deleted_and_unusable_objects_are_named() {
    let object = |is_there, problem: Option<&str>, lost_seconds| ObjectNow {
        kind: "queue",
        name: "webhooks.wait.1m".to_owned(),
        is_there,
        problem: problem.map(str::to_owned),
        lost_seconds,
        messages: 1_200,
    };
    let lost = "The queue webhooks.wait.1m was deleted 12 s ago, with 1,200 messages in it when they were \
                    last counted.";
    let objects = |objects| move |snapshot: &mut Snapshot| snapshot.objects = objects;
    check(objects(vec![object(true, None, Some(12.3))]), Overall::Attention, &[lost]);
    check(objects(vec![object(false, None, Some(12.3))]), Overall::Trouble, &[lost]);
    check(
        objects(vec![object(false, Some("it is classic"), Some(12.3))]),
        Overall::Trouble,
        &["The queue webhooks.wait.1m can't be used: it is classic."],
    );
    check(
        |snapshot| snapshot.orphaned = Some(33),
        Overall::Attention,
        &["33 orphaned deliveries."],
    );
}

#[test]
fn many_receivers_that_fail_together_need_attention() {
    let of = |known, ailing| {
        move |snapshot: &mut Snapshot| {
            snapshot.receivers =
                ReceiversNow { known, ailing, broken: 0, matching: ailing, listed: Vec::new() };
        }
    };
    check(of(100, 60), Overall::Trouble, &["60 of 100 receivers fail, are slow or are down."]);
    check(of(100, 25), Overall::Attention, &["25 of 100 receivers fail, are slow or are down."]);
    check(of(100, 24), Overall::Well, &["24 receivers fail or are slow."]);
    check(of(2, 2), Overall::Well, &["2 receivers fail or are slow."]);
}

#[test]
fn spans_have_their_largest_suitable_unit() {
    let spans = [0.2, 119.0, 120.0, 7_199.0, 7_200.0, 172_799.0, 172_800.0].map(span);
    assert_eq!(spans, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
}

#[test]
fn disabled_webhooks_and_unpublished_notices_are_mentioned() {
    let mut snapshot = well();
    let disabled = |n: u128| DisabledNow {
        webhook: uuid::Uuid::from_u128(n),
        reason: "no success for 5d (DISABLE_AFTER)".to_owned(),
    };
    snapshot.disabled_lately = vec![disabled(1)];
    let (state, advice) = of(&snapshot);
    assert_eq!((state, advice.len()), (Overall::Attention, 1));
    let said = &advice[0].what;
    assert!(
        said.starts_with("1 webhook was disabled within the last day, no success for 5d"),
        "{said}"
    );
    assert!(said.contains("00000000-0000-0000-0000-000000000001"), "{said}");

    snapshot.disabled_lately.clear();
    let problem = "ACCESS_REFUSED".to_owned();
    snapshot.notices_problem = Some(NoticesNow { problem, lasted_seconds: 60.0 });
    let (state, advice) = of(&snapshot);
    assert_eq!((state, advice.len()), (Overall::Attention, 1));
    assert!(advice[0].what.contains("60 s: ACCESS_REFUSED"), "{advice:?}");
    snapshot.broker.answers = Some(false);
    assert!(
        of(&snapshot).1.iter().all(|one| !one.what.contains("webhooks.events")),
        "the broker is the cause"
    );
}

#[test]
fn unknown_instances_are_mentioned_with_the_cause() {
    let mut snapshot = well();
    snapshot.instances.clear();
    snapshot.instances_problem = Some("relation \"notifier_instances\" does not exist".to_owned());
    let (state, advice) = of(&snapshot);
    assert_eq!((state, advice.len()), (Overall::Attention, 1));
    let said = &advice[0].what;
    assert!(said.ends_with("by itself: relation \"notifier_instances\" does not exist."), "{said}");
}
