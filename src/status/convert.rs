//! Converts the states of other modules to the parts of the snapshot.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::names::ReceiverName;
use super::snapshot::{
    Counted, DisabledNow, LaneStatus, NoticesNow, ReceiverNow, RefusingNow, Server, seconds,
};
use crate::domain::account::MAX_ACCOUNT_BYTES;
use crate::domain::receiver::{Ailment, Class, Next};
use crate::domain::shown;
use crate::health::{Answers, Interruption, LaneState};
use crate::metrics::{LiveValues, Metrics, Refusing};

pub(super) fn notices_problem(metrics: &Metrics) -> Option<NoticesNow> {
    let (lasted, problem) = metrics.notices().problem()?;
    Some(NoticesNow { problem, lasted_seconds: seconds(lasted) })
}

pub(super) fn disabled_lately(metrics: &Metrics) -> Vec<DisabledNow> {
    let of = |(webhook, reason): (Uuid, String)| DisabledNow {
        webhook,
        reason: shown::line(&reason, MAX_ACCOUNT_BYTES),
    };
    metrics.notices().recently_disabled().into_iter().map(of).collect()
}

/// The sums of several lanes' counts, bucket by bucket.
pub(super) fn summed(counts: impl Iterator<Item = Vec<u64>>) -> Vec<u64> {
    counts.fold(Vec::new(), |mut all, some| {
        all.resize(all.len().max(some.len()), 0);
        all.iter_mut().zip(some).for_each(|(all, count)| *all += count);
        all
    })
}

/// The counts by label, without zeros.
pub(super) fn counted(counts: impl IntoIterator<Item = (&'static str, u64)>) -> Counted {
    counts.into_iter().filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
}

pub(super) fn refusing_now(live: &LiveValues) -> Vec<RefusingNow> {
    let of = |refusing: &Refusing| {
        let since = refusing.since?;
        Some(RefusingNow {
            queue: refusing.queue.clone(),
            messages: refusing.messages,
            lasted_seconds: seconds(since.elapsed()),
        })
    };
    live.refusing.iter().filter_map(of).collect()
}

pub(super) fn receiver_now(
    webhook: Uuid,
    name: ReceiverName,
    class: Class,
    ailment: Option<Ailment>,
) -> ReceiverNow {
    let ReceiverName { account, place } = name;
    let well = ReceiverNow {
        webhook,
        account,
        place,
        condition: if class == Class::Unproven { "unproven" } else { "well" },
        failures: 0,
        reason: None,
        status: None,
        lasted_seconds: None,
        is_probed: false,
        next_in_seconds: None,
    };
    let Some(ailment) = ailment else { return well };
    let Ailment { condition, failures, reason, status, lasted, next } = ailment;
    ReceiverNow {
        condition: condition.label(),
        failures,
        reason: reason.map(|reason| reason.label()),
        status,
        lasted_seconds: Some(seconds(lasted)),
        is_probed: next == Next::Probing,
        next_in_seconds: match next {
            Next::After(rest) => Some(seconds(rest)),
            Next::Probing | Next::WithNextDelivery => None,
        },
        ..well
    }
}

pub(super) fn server((answers, lasted): (Answers, Duration)) -> Server {
    let answers = match answers {
        Answers::Unasked => None,
        Answers::Yes => Some(true),
        Answers::No => Some(false),
    };
    Server { answers, lasted_seconds: seconds(lasted) }
}

impl From<LaneState> for LaneStatus {
    fn from(state: LaneState) -> Self {
        match state {
            LaneState::Starting => Self::Starting,
            LaneState::Consuming => Self::Consuming,
            LaneState::Interrupted(Interruption::Broker) => Self::NoBroker,
            LaneState::Interrupted(Interruption::Confirms) => Self::NoConfirms,
            LaneState::Interrupted(Interruption::Database) => Self::NoDatabase,
        }
    }
}
