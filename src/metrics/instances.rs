//! The instances that share the limits of webhooks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use prometheus::IntGauge;

use super::maker::Maker;

/// The instances that are alive. The thread that knows them sets this; the status page reads it.
#[derive(Clone, Debug)]
pub struct InstancesState {
    count: IntGauge,
    now: Arc<Mutex<Now>>,
}

#[derive(Debug, Default)]
struct Now {
    names: Vec<String>,
    problem: Option<String>,
}

impl InstancesState {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let count = make.gauge(
            "webhook_instances",
            "Instances that share the limits of webhooks, this one included; 0 while they are not known",
            &[],
        )?;
        Ok(Self { count: count.with_label_values::<&str>(&[]), now: Arc::default() })
    }

    /// Sets the instances that are alive.
    pub fn are(&self, names: Vec<String>) {
        self.count.set(i64::try_from(names.len()).unwrap_or(i64::MAX));
        *self.lock() = Now { names, problem: None };
    }

    /// Records that the instances are not known, and why.
    pub fn unknown(&self, problem: &str) {
        self.count.set(0);
        *self.lock() = Now { names: Vec::new(), problem: Some(problem.to_owned()) };
    }

    /// The names of the instances that are alive, this one included; empty while they are not known.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.clone()
    }

    /// Why the instances are not known; `None` if they are.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
