//! The line of deliveries that wait for an attempt.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};

use super::Receivers;
use crate::domain::intake::{Refusal, WaiterNumber};
use crate::domain::pace::{Attempt, Hold};
use crate::shutdown::Shutdown;

/// How long a delivery waits in its consumer for other requests to end before it goes to its receiver's
/// backlog: longer than most requests take, and short enough for its neighbours.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// The most of its patience that one wait uses up. If the whole machine was stopped, no request can have ended
/// meanwhile. Without this limit all waiting deliveries would then give up at once.
const LONGEST_STEP: Duration = Duration::from_millis(25);

/// The answer to a request for an attempt that wasn't refused.
#[derive(Debug)]
#[must_use]
pub enum Turn {
    /// It begins now.
    Begins(Attempt),
    /// It begins when it is called.
    Waits(InLine),
}

/// A waiting delivery.
#[derive(Debug)]
pub struct InLine {
    pub(super) number: WaiterNumber,
    pub(super) since: Instant,
    /// How much of its patience is used up.
    pub(super) spent: Duration,
    /// Whether its patience is over. Then it waits only if it needs nothing but capacity.
    pub(super) has_given_up: bool,
    pub(super) called: Receiver<Result<Attempt, Refusal>>,
}

impl InLine {
    /// Becomes ready when it is called.
    #[must_use]
    pub fn called(&self) -> &Receiver<Result<Attempt, Refusal>> {
        &self.called
    }
}

impl Receivers {
    /// Waits to be called, if necessary: for a moment or, if the capacity is used up, until there is room, for
    /// at most `limit`. Unless many others wait, that takes at most REQUEST_TIMEOUT.
    ///
    /// # Errors
    /// Why it can't begin; without an entry if the reason is shutdown or `limit`.
    pub fn wait(
        &self,
        answer: Turn,
        limit: Duration,
        shutdown: &Shutdown,
    ) -> Result<Attempt, Refusal> {
        let in_line = match answer {
            Turn::Begins(attempt) => return Ok(attempt),
            Turn::Waits(in_line) => in_line,
        };
        let mut lines = vec![((), in_line)];
        loop {
            if let Some(((), answer)) = self.wait_for_any(&mut lines, limit, limit, shutdown) {
                return answer;
            }
        }
    }

    /// Waits until one of several is called, as [`Receivers::wait`] does for one, each for at most `patience`.
    /// `None` if none is called within `limit`. If a thread waited for one after another, those that are called
    /// meanwhile would hold capacity that others need.
    pub fn wait_for_any<T>(
        &self,
        lines: &mut Vec<(T, InLine)>,
        limit: Duration,
        patience: Duration,
        shutdown: &Shutdown,
    ) -> Option<(T, Result<Attempt, Refusal>)> {
        let interrupted = Refusal { hold: Hold::Full, entry: None };
        let deadline = Instant::now() + limit;
        loop {
            let began = Instant::now();
            let has_to_give_up = |line: &InLine| !line.has_given_up && line.spent >= PATIENCE;
            for (_, line) in lines.iter_mut().filter(|(_, line)| has_to_give_up(line)) {
                line.has_given_up = true;
                let mut state = self.lock();
                let called = state.intake.give_up(line.number, self.now());
                state.tell(called);
            }
            let is_over = |(_, line): &(T, InLine)| line.since.elapsed() >= patience;
            if let Some(at) = lines.iter().position(is_over) {
                return Some(self.leave_line(lines.swap_remove(at)));
            }
            let next = |(_, line): &(T, InLine)| {
                let over = line.since + patience;
                if line.has_given_up { over } else { over.min(began + LONGEST_STEP) }
            };
            let until = lines.iter().map(next).chain([deadline]).min();
            let mut select = Select::new();
            for (_, line) in lines.iter() {
                select.recv(&line.called);
            }
            let stop = select.recv(shutdown.receiver());
            let called = match select.select_deadline(until.unwrap_or(deadline)) {
                Ok(operation) if operation.index() == stop => {
                    let _ = operation.recv(shutdown.receiver());
                    Some(None)
                }
                Ok(operation) => {
                    let at = operation.index();
                    Some(Some((at, operation.recv(&lines[at].1.called))))
                }
                Err(_) => None,
            };
            let spent = began.elapsed().min(LONGEST_STEP);
            lines.iter_mut().for_each(|(_, line)| line.spent += spent);
            match called {
                Some(Some((at, answer))) => {
                    let (who, _) = lines.swap_remove(at);
                    return Some((who, answer.unwrap_or(Err(interrupted))));
                }
                Some(None) => return lines.pop().map(|line| self.leave_line(line)),
                None if Instant::now() >= deadline => return None,
                None => {}
            }
        }
    }

    fn leave_line<T>(&self, (who, line): (T, InLine)) -> (T, Result<Attempt, Refusal>) {
        self.leave(line.number);
        // It may have been called just now.
        let interrupted = Refusal { hold: Hold::Full, entry: None };
        (who, line.called.try_recv().unwrap_or(Err(interrupted)))
    }

    /// Stops the wait of a backlog's first delivery. If it was called just now, gives back its attempt.
    pub fn stop_waiting(&self, in_line: &InLine) {
        self.leave(in_line.number);
        if let Ok(Ok(attempt)) = in_line.called.try_recv() {
            self.give_back(attempt);
        }
    }

    fn leave(&self, number: WaiterNumber) {
        let mut state = self.lock();
        state.waiting.remove(&number);
        state.intake.stop_waiting(number);
    }
}
