//! Reused threads: for requests behind which nothing should wait, and for the messages of stuck consumers.
//!
//! Each task was admitted to a queue's capacity before, or settles messages of a consumer. So the number of
//! threads is limited by the number of requests that may be in flight. A thread that has been idle for a while
//! ends.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// How long a thread waits for its next task. Starting one takes some tens of microseconds.
const IDLE: Duration = Duration::from_secs(15);

/// A task for a thread. It may return a farewell, which runs when the thread is free again, so that a task
/// which follows from it needs no additional thread.
pub type Task = Box<dyn FnOnce() -> Option<Farewell> + Send>;

/// Notifies another thread that a task is done.
pub type Farewell = Box<dyn FnOnce() + Send>;

/// The threads. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Workers(Arc<Mutex<Idle>>);

/// The idle threads. The last one is used first, so that surplus ones stay idle.
#[derive(Debug, Default)]
struct Idle {
    waiting: Vec<IdleWorker>,
    /// The number of the next thread.
    next: u64,
}

struct IdleWorker {
    thread: u64,
    tasks: Sender<Task>,
}

impl fmt::Debug for IdleWorker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IdleWorker").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Workers {
    /// Runs a task in another thread: an idle one, or a new one.
    ///
    /// # Errors
    /// The task, if no thread can be started.
    pub fn run(&self, task: Task) -> Result<(), Task> {
        let (mut task, number) = {
            let mut idle = self.lock();
            match idle.waiting.pop() {
                // Its channel has room for one task, and only the thread that took it off the list sends to it.
                Some(waiting) => match waiting.tasks.try_send(task) {
                    Ok(()) => return Ok(()),
                    Err(error) => (error.into_inner(), idle.number()),
                },
                None => (task, idle.number()),
            }
        };
        // A thread that can't be started would take its task with it, so the task is sent afterwards.
        let (sender, tasks) = bounded(1);
        let workers = self.clone();
        let body = {
            let sender = sender.clone();
            move || workers.work(number, &sender, &tasks)
        };
        let started = thread::Builder::new().name(format!("worker-{number}")).spawn(body);
        if started.is_ok() {
            match sender.try_send(task) {
                Ok(()) => return Ok(()),
                Err(error) => task = error.into_inner(),
            }
        }
        Err(task)
    }

    fn work(&self, thread: u64, sender: &Sender<Task>, tasks: &Receiver<Task>) {
        loop {
            let farewell = match tasks.recv_timeout(IDLE) {
                Ok(task) => task(),
                Err(_) if self.remove_idle(thread) => return,
                // Another thread has just chosen this one.
                Err(_) => continue,
            };
            self.lock().waiting.push(IdleWorker { thread, tasks: sender.clone() });
            if let Some(farewell) = farewell {
                farewell();
            }
        }
    }

    /// Removes an idle thread from the list, so that it gets no more tasks. False if it isn't on the list.
    fn remove_idle(&self, thread: u64) -> bool {
        let mut idle = self.lock();
        let at = idle.waiting.iter().position(|waiting| waiting.thread == thread);
        at.map(|at| idle.waiting.remove(at)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;

    #[test]
    fn tasks_run_concurrently_and_threads_are_reused() {
        let workers = Workers::default();
        let (sender, done) = bounded(100);
        for _ in 0..3 {
            let together = Arc::new(Barrier::new(9));
            for _ in 0..8 {
                let (together, sender) = (Arc::clone(&together), sender.clone());
                let task = Box::new(move || {
                    together.wait();
                    let name = thread::current().name().map(str::to_owned);
                    sender.send(name).expect("somebody listens");
                    None
                });
                assert!(workers.run(task).is_ok());
            }
            together.wait();
            let names: HashSet<_> = (0..8).map(|_| done.recv().expect("a name")).collect();
            assert_eq!(names.len(), 8);
            // All are idle again.
            while workers.lock().waiting.len() < 8 {
                thread::yield_now();
            }
        }
        assert_eq!(workers.lock().next, 8, "no more than are needed at a time");
    }
}
