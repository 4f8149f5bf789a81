//! What becomes of notices, and which webhooks the notifier has disabled by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use uuid::Uuid;

use super::maker::Maker;

/// Why the notifier has disabled a webhook by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoDisabled {
    /// Its receiver answered 410.
    Gone,
    /// It has failed for DISABLE_AFTER.
    Failing,
}

impl AutoDisabled {
    const ALL: [Self; 2] = [Self::Gone, Self::Failing];

    /// The metrics label, and what notices say.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// Shared by who makes notices, who publishes them and who tells how that goes.
#[derive(Clone, Debug)]
pub struct NoticesState {
    /// The broker has them.
    pub published: IntCounter,
    /// It has not: there were too many, or a queue refused them.
    pub dropped: IntCounter,
    waiting: IntGauge,
    disabled: IntCounterVec,
    now: Arc<Mutex<Now>>,
}

#[derive(Debug, Default)]
struct Now {
    problem: Option<(Instant, String)>,
    disabled_lately: Vec<(Uuid, String)>,
}

impl NoticesState {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let notices = make.counter(
            "webhook_notices_total",
            "Events of the notifier's own for webhooks.events, by what became of them",
            &["result"],
        )?;
        let waiting = make.gauge(
            "webhook_notices_waiting",
            "Events of the notifier's own that could not be published yet",
            &[],
        )?;
        let disabled = make.counter(
            "webhook_auto_disabled_total",
            "Webhooks that this process has disabled by itself, by reason",
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

    /// A webhook was disabled, by this process.
    pub fn disabled(&self, reason: AutoDisabled) {
        self.disabled.with_label_values(&[reason.label()]).inc();
    }

    /// So many wait to be published.
    pub fn wait(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// They can't be published.
    pub fn failed(&self, problem: &str) {
        let mut now = self.lock();
        let since = now.problem.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        now.problem = Some((since, problem.to_owned()));
    }

    /// They can.
    pub fn works(&self) {
        self.lock().problem = None;
    }

    /// For how long they can't be published, and why.
    #[must_use]
    pub fn problem(&self) -> Option<(Duration, String)> {
        self.lock().problem.as_ref().map(|(since, problem)| (since.elapsed(), problem.clone()))
    }

    /// Which webhooks were disabled within the last day because they had failed for so long, and why.
    pub fn set_disabled_lately(&self, webhooks: Vec<(Uuid, String)>) {
        self.lock().disabled_lately = webhooks;
    }

    /// The same, as they were when somebody last looked.
    #[must_use]
    pub fn disabled_lately(&self) -> Vec<(Uuid, String)> {
        self.lock().disabled_lately.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
