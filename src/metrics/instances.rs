//! Which instances share the limits of webhooks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use prometheus::IntGauge;

use super::maker::Maker;

/// Shared by who knows the instances and who tells of them.
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
            "Instances that share the limits of webhooks, this one included; 0 while that is not known",
            &[],
        )?;
        Ok(Self { count: count.with_label_values::<&str>(&[]), now: Arc::default() })
    }

    /// These are alive.
    pub fn are(&self, names: Vec<String>) {
        self.count.set(i64::try_from(names.len()).unwrap_or(i64::MAX));
        *self.lock() = Now { names, problem: None };
    }

    /// It can't be known which are, and why.
    pub fn unknown(&self, problem: &str) {
        self.count.set(0);
        *self.lock() = Now { names: Vec::new(), problem: Some(problem.to_owned()) };
    }

    /// The names of those that are alive, this one included; none while they are not known.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.clone()
    }

    /// Why they can't be known.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
