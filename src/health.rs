//! The health of the process: which lanes consume, which servers answer, which threads have ended. `/readyz`,
//! `/healthz`, the messages to the supervisor and the status page report it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod contact;
mod lane;

pub use contact::{Answers, Contact};
pub use lane::{Interruption, LaneState};

use lane::LaneHealth;

/// The state of the process and of the servers that it needs.
#[derive(Debug)]
pub struct Health {
    /// By the queue that the lane consumes.
    lanes: BTreeMap<String, LaneHealth>,
    broker: Contact,
    database: Contact,
    /// The threads that ended unexpectedly.
    ended: Mutex<Vec<String>>,
    /// Whether it was logged that all lanes consume.
    is_announced: AtomicBool,
}

impl Health {
    /// `queues` are the queues that the lanes consume.
    #[must_use]
    pub fn new(queues: impl IntoIterator<Item = String>) -> Self {
        Self {
            lanes: queues.into_iter().map(|queue| (queue, LaneHealth::new())).collect(),
            broker: Contact::new(),
            database: Contact::new(),
            ended: Mutex::default(),
            is_announced: AtomicBool::new(false),
        }
    }

    /// Sets whether a lane consumes its queue. Logs when all of them do for the first time.
    pub fn set_consuming(&self, queue: &str, consumes: bool) {
        match consumes {
            true => self.lane_health(queue).begin(),
            false => self.lane_health(queue).end(),
        }
        let all = self.lanes.values().all(LaneHealth::is_consuming);
        if all && !self.is_announced.swap(true, Ordering::Relaxed) {
            let queues: Vec<&str> = self.lanes.keys().map(String::as_str).collect();
            log::info!("ready: consuming {}", queues.join(", "));
        }
    }

    /// Sets why a lane does not consume its queue.
    pub fn set_interruption(&self, queue: &str, why: Interruption) {
        self.lane_health(queue).explain(why);
    }

    /// The state of the lane that consumes this queue, and for how long it has been in it.
    #[must_use]
    pub fn lane(&self, queue: &str) -> (LaneState, Duration) {
        self.lane_health(queue).now()
    }

    /// Whether RabbitMQ answers the monitor, on a connection of its own.
    #[must_use]
    pub fn broker(&self) -> &Contact {
        &self.broker
    }

    /// Whether PostgreSQL answers.
    #[must_use]
    pub fn database(&self) -> &Contact {
        &self.database
    }

    /// Records that a thread ended unexpectedly.
    pub fn thread_ended(&self, name: &str) {
        self.ended().push(name.to_owned());
    }

    /// The names of the threads that ended unexpectedly.
    #[must_use]
    pub fn ended_threads(&self) -> Vec<String> {
        self.ended().clone()
    }

    /// What is not ready, a line for each; empty if the process is ready.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let lanes = self.lanes.iter().filter(|(_, lane)| !lane.is_consuming());
        let mut problems: Vec<String> =
            lanes.map(|(queue, _)| format!("lane {queue} is not consuming")).collect();
        if !self.database.is_up() {
            problems.push(match self.database.problem() {
                None => "PostgreSQL does not answer".to_owned(),
                Some(problem) => format!("PostgreSQL answers with an error: {problem}"),
            });
        }
        problems
    }

    fn lane_health(&self, queue: &str) -> &LaneHealth {
        &self.lanes[queue]
    }

    fn ended(&self) -> MutexGuard<'_, Vec<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_names_what_is_missing() {
        let health = Health::new(["a".to_owned(), "b".to_owned()]);
        health.set_consuming("b", true);
        assert_eq!(health.not_ready(), ["lane a is not consuming", "PostgreSQL does not answer"]);
        health.set_consuming("a", true);
        health.database().answered();
        assert!(health.not_ready().is_empty());
        health.set_consuming("b", false);
        assert_eq!(health.not_ready(), ["lane b is not consuming"]);
    }
}
