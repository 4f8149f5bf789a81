//! Puts a snapshot into words: what is wrong, and what to do about it.
//!
//! Text in backticks is something to type, or to search for in the log.

use serde::Serialize;

use super::snapshot::{LaneNow, LaneStatus, Server, Snapshot};

mod instances;
mod notices;
mod topology;

use instances::of_instances;
use notices::{of_disabled, of_notices};
use topology::{of_objects, of_orphaned};

/// How many queues a sentence names. The others are counted.
const MOST_NAMED: usize = 3;

/// How long changes must not have been reported before that is mentioned: longer than the directory takes to
/// reconnect.
const NO_CHANGES_SECONDS: f64 = 15.0;

/// How long no message must have come from a nonempty queue before that is mentioned.
const STALLED_SECONDS: f64 = 60.0;

/// A queue's deliveries are late if half of them arrive this long after their event. A few retries take less.
const LATE_SECONDS: f64 = 60.0;

/// From this many waiting events on, the cause is more than a short peak.
const MANY_EVENTS: i64 = 1_000;

/// If this many receivers fail or are slow at the same time, the cause is rarely theirs.
const MANY_RECEIVERS: usize = 3;

const ALARM_REMEDY: &str = "It continues by itself once RabbitMQ accepts messages again. Is RabbitMQ short of \
                            memory or disk? See `rabbitmq-diagnostics alarms`.";

/// The overall state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Overall {
    /// All is well.
    Well,
    /// It works, but somebody should look at something.
    Attention,
    /// Something does not work.
    Trouble,
}

/// A problem, or something worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// How bad it is: `Well` if it is only worth knowing.
    pub(super) state: Overall,
    /// What is wrong, as a sentence.
    pub(super) what: String,
    /// What to do, in sentences.
    pub(super) remedy: String,
}

/// The worst state, and all advice, the worst first.
pub(super) fn of(snapshot: &Snapshot) -> (Overall, Vec<Advice>) {
    let mut advice = Vec::new();
    if snapshot.is_stopping {
        let what = "It is stopping.".to_owned();
        let remedy =
            "Requests in flight are finished, the rest goes back to RabbitMQ; nothing is lost.";
        advice.push(Advice { state: Overall::Attention, what, remedy: remedy.to_owned() });
    } else {
        advice.extend(of_servers(snapshot));
        advice.extend(of_alarm(snapshot));
        advice.extend(of_egress(snapshot));
        advice.extend(of_refusals(snapshot));
        advice.extend(of_lanes(snapshot));
        advice.extend(of_stalled_lanes(snapshot));
        advice.extend(of_capacity(snapshot));
        advice.extend(of_lateness(snapshot));
    }
    advice.extend(of_directory(snapshot));
    advice.extend(of_objects(snapshot));
    advice.extend(of_orphaned(snapshot));
    advice.extend(of_dead_letters(snapshot));
    advice.extend(of_receivers(snapshot));
    advice.extend(of_disabled(snapshot));
    advice.extend(of_notices(snapshot));
    advice.extend(of_instances(snapshot));
    advice.extend(of_backlogs(snapshot));
    // The sort is stable: problems that are equally bad keep the order above.
    advice.sort_by_key(|advice| std::cmp::Reverse(advice.state));
    let worst = advice.first().map_or(Overall::Well, |advice| advice.state);
    (worst, advice)
}

fn of_servers(snapshot: &Snapshot) -> Vec<Advice> {
    let mut advice = Vec::new();
    if is_away(snapshot.broker) {
        let lasted = span(snapshot.broker.lasted_seconds);
        // Lanes notice the outage at different moments.
        let interrupted = snapshot.lanes.iter().filter(|lane| lane.state != LaneStatus::Consuming);
        let effect = match interrupted.collect::<Vec<_>>().as_slice() {
            [] => "the numbers of messages in queues are outdated".to_owned(),
            lanes => not_consumed(snapshot, lanes),
        };
        advice.push(trouble(
            format!("RabbitMQ has not answered for {lasted}: {effect}."),
            "Nothing is lost, and it connects again by itself. Is RabbitMQ running, and can it be \
             reached at AMQP_URL? `webhook-notifier check` says more.",
        ));
    }
    if is_away(snapshot.database) {
        let lasted = span(snapshot.database.lasted_seconds);
        let interrupted = lanes_in(snapshot, LaneStatus::NoDatabase);
        let effect = match interrupted.as_slice() {
            [] if is_away(snapshot.broker) => String::new(),
            [] => ": only events whose webhooks are cached are delivered".to_owned(),
            lanes => format!(": {}", not_consumed(snapshot, lanes)),
        };
        advice.push(match &snapshot.database_problem {
            None => trouble(
                format!("PostgreSQL has not answered for {lasted}{effect}."),
                "Nothing is lost, and it connects again by itself. Is PostgreSQL running, and can it \
                 be reached at DATABASE_URL? `webhook-notifier check` says more.",
            ),
            Some(problem) => trouble(
                format!("PostgreSQL has answered with an error for {lasted}{effect}."),
                &format!(
                    "Nothing is lost, and it asks again by itself. It says: {problem}. \
                     `webhook-notifier check` says more."
                ),
            ),
        });
    }
    advice
}

/// RabbitMQ delivers messages but accepts none. Once this interrupts a lane, [`of_lanes`] covers it.
fn of_alarm(snapshot: &Snapshot) -> Option<Advice> {
    let is_covered = [LaneStatus::NoConfirms, LaneStatus::Starting]
        .iter()
        .any(|state| !lanes_in(snapshot, *state).is_empty());
    let delivers = snapshot.broker.answers == Some(true);
    (snapshot.broker_accepts == Some(false) && delivers && !is_covered).then(|| {
        let what =
            "RabbitMQ accepts no messages: failed deliveries can't be parked, and block their lane.";
        trouble(what.to_owned(), ALARM_REMEDY)
    })
}

/// No request reaches any receiver.
fn of_egress(snapshot: &Snapshot) -> Option<Advice> {
    let egress = snapshot.egress_problem.as_ref()?;
    Some(trouble(
        format!(
            "No request has reached a receiver for {}: {}.",
            span(egress.lasted_seconds),
            egress.problem
        ),
        "Nothing is lost and no attempt is counted: deliveries wait for up to a minute and are sent \
         again. Is the proxy running, and is EGRESS_PROXY right? `webhook-notifier check` tests it.",
    ))
}

/// Some queues accept nothing, while others do.
fn of_refusals(snapshot: &Snapshot) -> Option<Advice> {
    if is_away(snapshot.broker) {
        return None;
    }
    let refusing = &snapshot.refusing;
    let longest = refusing.iter().map(|one| one.lasted_seconds).reduce(f64::max)?;
    let names = names(refusing.iter().map(|one| one.queue.as_str()));
    let verb = if refusing.len() == 1 { "has" } else { "have" };
    let messages: usize = refusing.iter().map(|one| one.messages).sum();
    let wait = match messages {
        0 => String::new(),
        _ => {
            let them = if refusing.len() == 1 { "it" } else { "them" };
            format!("; {} for {them}", counted(messages as u64, "message waits", "messages wait"))
        }
    };
    Some(trouble(
        format!("{names} {verb} accepted no messages for {}{wait}.", span(longest)),
        "Nothing is lost: publishing is repeated every second or two. Does a policy limit the queue's \
         length (`max-length`, see `rabbitmqctl list_policies`)? Does it have a leader (`rabbitmq-queues \
         quorum_status`)?",
    ))
}

/// Lanes that are interrupted for reasons which [`of_servers`] hasn't covered.
fn of_lanes(snapshot: &Snapshot) -> Vec<Advice> {
    if is_away(snapshot.broker) {
        return Vec::new();
    }
    let again = "It connects again by itself. A line `lane interrupted` in the log has the cause.";
    let rows = [
        (LaneStatus::NoBroker, "There has been no connection to RabbitMQ", again),
        (LaneStatus::NoDatabase, "PostgreSQL has not answered the lanes' queries", again),
        (LaneStatus::NoConfirms, "RabbitMQ has confirmed no message", ALARM_REMEDY),
        (
            LaneStatus::Starting,
            "It has been starting",
            "A start takes a second or two. If it takes longer, `webhook-notifier check` says what is \
             missing.",
        ),
    ];
    let of = |(state, cause, remedy): (LaneStatus, &str, &str)| {
        if state == LaneStatus::NoDatabase && is_away(snapshot.database) {
            return None;
        }
        let lanes = lanes_in(snapshot, state);
        let longest = lanes.iter().map(|lane| lane.lasted_seconds).reduce(f64::max)?;
        let effect = not_consumed(snapshot, &lanes);
        let what = format!("{cause} for {}: {effect}.", span(longest));
        let is_early = state == LaneStatus::Starting;
        let state = if is_early { Overall::Attention } else { Overall::Trouble };
        Some(Advice { state, what, remedy: remedy.to_owned() })
    };
    rows.into_iter().filter_map(of).collect()
}

/// A lane consumes and its queue isn't empty, but nothing arrives.
fn of_stalled_lanes(snapshot: &Snapshot) -> Option<Advice> {
    let is_stalled = |lane: &&LaneNow| {
        lane.state == LaneStatus::Consuming
            && lane.kind != "backlogs"
            && lane.lasted_seconds >= STALLED_SECONDS
            && lane.ready.is_some_and(|ready| ready > 0)
            && lane.rates.is_some_and(|rates| rates.received == 0.0)
    };
    let lanes: Vec<&LaneNow> = snapshot.lanes.iter().filter(is_stalled).collect();
    let waiting: i64 = lanes.iter().filter_map(|lane| lane.ready).sum();
    let queues = names(lanes.iter().map(|lane| lane.queue.as_str()));
    (!lanes.is_empty()).then(|| {
        let messages = counted(waiting.unsigned_abs(), "message waits", "messages wait");
        trouble(
            format!("{messages} in {queues}, and none has been received for a minute."),
            "Do other instances hold unacked messages of these queues? If no instance receives any, \
             restart the notifier, which is safe, and report this as a bug, with the log.",
        )
    })
}

/// The capacity is used up, and many events wait.
fn of_capacity(snapshot: &Snapshot) -> Option<Advice> {
    let is_used_up = |lane: &&LaneNow| {
        let waits = lane.ready.is_some_and(|ready| ready >= MANY_EVENTS);
        waits && lane.capacity.zip(lane.in_use).is_some_and(|(most, used)| used >= most)
    };
    let lanes: Vec<&LaneNow> = snapshot.lanes.iter().filter(is_used_up).collect();
    let waiting: i64 = lanes.iter().filter_map(|lane| lane.ready).sum();
    (!lanes.is_empty()).then(|| Advice {
        state: Overall::Attention,
        what: format!(
            "The capacity of {} is used up, and {}.",
            names(lanes.iter().map(|lane| lane.queue.as_str())),
            counted(waiting.unsigned_abs(), "event waits", "events wait")
        ),
        remedy: "Receivers answer more slowly than events arrive. A larger capacity (`QUEUES=name=N`) or \
                 another instance helps; `webhook-notifier webhooks list` shows which receivers are slow."
            .to_owned(),
    })
}

/// Most deliveries arrive long after their event.
fn of_lateness(snapshot: &Snapshot) -> Option<Advice> {
    let is_late = |lane: &&LaneNow| {
        lane.kind == "events" && lane.lag_p50.is_some_and(|lag| lag.is_above(LATE_SECONDS))
    };
    let lanes: Vec<&LaneNow> = snapshot.lanes.iter().filter(is_late).collect();
    (!lanes.is_empty()).then(|| Advice {
        state: Overall::Attention,
        what: format!(
            "Half of the deliveries of {} arrive over a minute late.",
            names(lanes.iter().map(|lane| lane.queue.as_str()))
        ),
        remedy:
            "After an outage or a burst of events this ends by itself, once the queue is empty. \
                 Otherwise events arrive faster than they are delivered: a larger capacity \
                 (`QUEUES=name=N`) or another instance helps."
                .to_owned(),
    })
}

/// Deliveries that wait for receivers, whatever the reason.
fn of_backlogs(snapshot: &Snapshot) -> Option<Advice> {
    let backlogs = snapshot.lanes.iter().filter(|lane| lane.kind == "backlogs");
    let waiting: i64 = backlogs.filter_map(|lane| lane.ready).sum();
    (waiting > 0).then(|| Advice {
        state: Overall::Well,
        what: format!(
            "{} in {}.",
            counted(waiting.unsigned_abs(), "delivery waits", "deliveries wait"),
            counted(snapshot.backlogs.filled.max(1) as u64, "backlog", "backlogs")
        ),
        remedy:
            "Nothing to do: each is sent in its turn, as soon as its receiver may get a request. \
                 `webhook-notifier webhooks show ID` says why they wait, and since when."
                .to_owned(),
    })
}

fn of_directory(snapshot: &Snapshot) -> Option<Advice> {
    let age = snapshot.directory_age_seconds;
    let known_cause = snapshot.is_stopping || snapshot.database.answers != Some(true);
    (age >= NO_CHANGES_SECONDS && !known_cause).then(|| Advice {
        state: Overall::Attention,
        what: format!("Notifications of changes to the webhooks have failed for {}.", span(age)),
        remedy: "Each event asks PostgreSQL instead, which is slower but correct. A line `directory \
                 bypassed` in the log has the cause, and so has `webhook-notifier check`: perhaps \
                 `webhook-notifier migrate` was not run after an upgrade, or a pooler in between assigns \
                 sessions per transaction."
            .to_owned(),
    })
}

fn of_dead_letters(snapshot: &Snapshot) -> Option<Advice> {
    let dead: i64 = snapshot.lanes.iter().filter_map(|lane| lane.dead).sum();
    (dead > 0).then(|| Advice {
        state: Overall::Attention,
        what: format!("{}.", counted(dead.unsigned_abs(), "dead letter", "dead letters")),
        remedy: "`webhook-notifier dead-letters list` counts them by reason and webhook; \
                 `dead-letters replay` sends them again, `dead-letters purge` deletes them."
            .to_owned(),
    })
}

fn of_receivers(snapshot: &Snapshot) -> Vec<Advice> {
    let (broken, ailing) = (snapshot.receivers.broken, snapshot.receivers.ailing);
    let known = snapshot.receivers.known;
    let mut advice = Vec::new();
    let are_many = ailing >= MANY_RECEIVERS && ailing * 4 >= known;
    if are_many {
        let what = format!("{ailing} of {known} receivers fail, are slow or are down.");
        let state = if ailing * 2 > known { Overall::Trouble } else { Overall::Attention };
        let remedy = "So many receivers rarely fail at once by chance. See the reasons for their failures \
                      in the log: dns, timeout and refused point to the network on our side (firewall, \
                      resolver), tls to an outdated CA or a wrong clock, proxy to `EGRESS_PROXY`, \
                      rejected to `ALLOW_NETWORKS` or `DENY_NETWORKS`, status_4xx perhaps to a change in \
                      a producer's events. Failed deliveries wait and are sent again.";
        advice.push(Advice { state, what, remedy: remedy.to_owned() });
    }
    if broken > 0 {
        let down = counted(broken as u64, "receiver is down", "receivers are down");
        let wait = if broken == 1 { "its deliveries wait" } else { "their deliveries wait" };
        advice.push(Advice {
            state: Overall::Attention,
            what: format!("{down}: {wait}."),
            remedy: "Nothing to do: each is probed until it answers. If one will not come back, \
                     `webhook-notifier webhooks disable ID` stops the probes, and drops the deliveries \
                     that wait for it."
                .to_owned(),
        });
    }
    if ailing > broken && !are_many {
        let others = ailing - broken;
        let fail =
            counted(others as u64, "receiver fails or is slow", "receivers fail or are slow");
        advice.push(Advice {
            state: Overall::Well,
            what: format!("{fail}."),
            remedy: "Nothing to do: failed deliveries are sent again, and other receivers don't wait for them."
                .to_owned(),
        });
    }
    advice
}

fn trouble(what: String, remedy: &str) -> Advice {
    Advice { state: Overall::Trouble, what, remedy: remedy.to_owned() }
}

fn is_away(server: Server) -> bool {
    server.answers == Some(false)
}

fn lanes_in(snapshot: &Snapshot, state: LaneStatus) -> Vec<&LaneNow> {
    snapshot.lanes.iter().filter(|lane| lane.state == state).collect()
}

/// The sentence's part that says that these lanes aren't consumed.
fn not_consumed(snapshot: &Snapshot, lanes: &[&LaneNow]) -> String {
    if lanes.len() == snapshot.lanes.len() {
        return "nothing is being consumed".to_owned();
    }
    let is = if lanes.len() == 1 { "is" } else { "are" };
    let names = names(lanes.iter().map(|lane| lane.queue.as_str()));
    format!("{names} {is} not being consumed")
}

/// A list of the first names, and the number of the others.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = all.len();
    let mut names: Vec<String> = all.take(MOST_NAMED).map(str::to_owned).collect();
    if count > MOST_NAMED {
        names.push(format!("{} more", count - MOST_NAMED));
    }
    let last = names.pop().unwrap_or_default();
    if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) }
}

/// A count with its noun, in groups of three digits.
fn counted(count: u64, one: &str, many: &str) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    format!("{} {}", groups.join(","), if count == 1 { one } else { many })
}

/// A duration, rounded to its largest suitable unit.
fn span(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an age")]
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{hours} h"),
        _ => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests;
