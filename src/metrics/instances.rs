//! The instances that share the limits of webhooks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use prometheus::IntGauge;

use super::maker::MetricMaker;

/// The instances that are alive. The heartbeat's thread sets this; the status page reads it.
#[derive(Clone, Debug)]
pub struct InstancesState {
    count: IntGauge,
    now: Arc<Mutex<Current>>,
}

#[derive(Debug, Default)]
struct Current {
    names: Vec<String>,
    problem: Option<String>,
}

impl InstancesState {
    pub(super) fn new(make: &MetricMaker<'_>) -> Result<Self> {
        let count = make.gauge(
            "webhook_instances",
            "Instances that share the limits of webhooks, including this one; 0 while they are unknown",
            &[],
        )?;
        Ok(Self { count: count.with_label_values::<&str>(&[]), now: Arc::default() })
    }

    /// Sets the instances that are alive.
    pub fn set(&self, names: Vec<String>) {
        self.count.set(i64::try_from(names.len()).unwrap_or(i64::MAX));
        *self.lock() = Current { names, problem: None };
    }

    /// Records why the instances are unknown.
    pub fn set_unknown(&self, problem: &str) {
        self.count.set(0);
        *self.lock() = Current { names: Vec::new(), problem: Some(problem.to_owned()) };
    }

    /// The names of the instances that are alive, including this one; empty while they are unknown.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.clone()
    }

    /// Why the instances are unknown; `None` if they are known.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
