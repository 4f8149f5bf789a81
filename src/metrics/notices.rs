//! The state of notices, and the webhooks that the notifier disabled by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use uuid::Uuid;

use super::maker::MetricMaker;

/// Why the notifier disabled a webhook by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoDisabled {
    /// Its receiver answered 410.
    Gone,
    /// It has failed for DISABLE_AFTER.
    Failing,
}

impl AutoDisabled {
    const ALL: [Self; 2] = [Self::Gone, Self::Failing];

    /// The label in metrics and notices.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// The state of notices. The pipeline, the publisher and the status page share it.
#[derive(Clone, Debug)]
pub struct NoticesState {
    /// Notices that the broker has confirmed.
    pub published: IntCounter,
    /// Notices that were dropped: too many were waiting, or they were not confirmed.
    pub dropped: IntCounter,
    waiting: IntGauge,
    disabled: IntCounterVec,
    now: Arc<Mutex<Now>>,
}

#[derive(Debug, Default)]
struct Now {
    problem: Option<(Instant, String)>,
    recently_disabled: Vec<(Uuid, String)>,
}

impl NoticesState {
    pub(super) fn new(make: &MetricMaker<'_>) -> Result<Self> {
        let notices = make.counter(
            "webhook_notices_total",
            "Notices for webhooks.events, by result",
            &["result"],
        )?;
        let waiting =
            make.gauge("webhook_notices_waiting", "Notices that could not be published yet", &[])?;
        let disabled = make.counter(
            "webhook_auto_disabled_total",
            "Webhooks that this process disabled by itself, by reason",
            &["reason"],
        )?;
        for reason in AutoDisabled::ALL {
            disabled.with_label_values(&[reason.label()]);
        }
        Ok(Self {
            published: notices.with_label_values(&["published"]),
            dropped: notices.with_label_values(&["dropped"]),
            waiting: waiting.with_label_values::<&str>(&[]),
            disabled,
            now: Arc::default(),
        })
    }

    /// Counts a webhook that this process disabled.
    pub fn count_disabled(&self, reason: AutoDisabled) {
        self.disabled.with_label_values(&[reason.label()]).inc();
    }

    /// Sets how many notices wait to be published.
    pub fn set_waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Records why notices can't be published.
    pub fn set_problem(&self, problem: &str) {
        let mut now = self.lock();
        let since = now.problem.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        now.problem = Some((since, problem.to_owned()));
    }

    /// Records that notices can be published again.
    pub fn clear_problem(&self) {
        self.lock().problem = None;
    }

    /// For how long notices could not be published, and why; `None` if they can be.
    #[must_use]
    pub fn problem(&self) -> Option<(Duration, String)> {
        self.lock().problem.as_ref().map(|(since, problem)| (since.elapsed(), problem.clone()))
    }

    /// Sets which webhooks were disabled within the last day because they failed for DISABLE_AFTER, with the
    /// recorded reasons.
    pub fn set_recently_disabled(&self, webhooks: Vec<(Uuid, String)>) {
        self.lock().recently_disabled = webhooks;
    }

    /// The webhooks last given to [`NoticesState::set_recently_disabled`].
    #[must_use]
    pub fn recently_disabled(&self) -> Vec<(Uuid, String)> {
        self.lock().recently_disabled.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
