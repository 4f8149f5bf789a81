//! The lane's own thread: it watches the lane's consumers, starts more, and ends some.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use amiquip::Channel;
use crossbeam_channel::{Receiver, select, unbounded};

use super::{ConsumerHandle, Crew};
use crate::broker::Link;
use crate::consumer::relief::{self, Relief, Returned};
use crate::consumer::{Ended, consume};
use crate::domain::growth::{Adjustment, Growth, INTERVAL, Observation};
use crate::domain::in_hand::{self, Ages};
use crate::pipeline::{Contention, Progress};
use crate::shutdown::{self, Trigger};

/// A lane that has been idle for this long isn't watched until it has work again.
const QUIET: Duration = Duration::from_secs(1);

/// How often an idle lane with surplus consumers is checked.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// A consumer as the lane's thread sees it.
struct CrewMember<'scope> {
    handle: Arc<ConsumerHandle>,
    reliefs: Vec<Arc<Relief>>,
    ages: Ages,
    surplus: Trigger,
    thread: ScopedJoinHandle<'scope, Ended>,
}

/// The lane's own thread, which starts and ends consumers.
pub(super) struct Watch<'scope, 'env> {
    crew: &'env Crew<'env>,
    scope: &'scope Scope<'scope, 'env>,
    link: &'env mut Link,
    growth: Growth,
    contention: Contention,
    /// The logged reason why no more consumers can be started.
    limited_by: Option<String>,
    members: Vec<CrewMember<'scope>>,
    /// Consumers that are about to end.
    leaving: Vec<CrewMember<'scope>>,
    /// Why the first consumer ended that wasn't asked to end.
    ended: Ended,
    begun: Instant,
    /// How long a message may wait to be begun.
    patience: Duration,
}

impl<'scope, 'env> Watch<'scope, 'env> {
    pub(super) fn new(
        crew: &'env Crew<'env>,
        scope: &'scope Scope<'scope, 'env>,
        link: &'env mut Link,
    ) -> Self {
        Self {
            crew,
            scope,
            link,
            growth: Growth::new(usize::from(crew.lane.capacity), Duration::ZERO),
            contention: Contention::default(),
            limited_by: None,
            members: Vec::new(),
            leaving: Vec::new(),
            ended: Ended::Asked,
            begun: Instant::now(),
            patience: in_hand::patience(crew.context.config.request_timeout),
        }
    }
}

impl Watch<'_, '_> {
    pub(super) fn run(&mut self, alarmed: &Receiver<()>) -> Ended {
        if let Err(problem) = self.start() {
            return Ended::Lost(problem);
        }
        let mut last = self.begun;
        // When it last had work.
        let mut active = self.begun;
        while !self.crew.shared.is_ending() {
            let now = Instant::now();
            let look = self.observe(last, now);
            if look.busy > 0 {
                active = now;
            }
            self.take_over();
            match self.growth.adjust(look, now.saturating_duration_since(self.begun)) {
                Adjustment::Keep => {}
                Adjustment::Start(more) => self.start_more(more),
                Adjustment::End(fewer) => self.end_some(fewer),
            }
            self.crew.context.metrics.lane(&self.crew.lane.queue).set_consumers(self.members.len());
            last = now;
            self.wait(now.saturating_duration_since(active) > QUIET, alarmed);
        }
        self.join()
    }

    /// Waits until the next check.
    fn wait(&self, is_quiet: bool, alarmed: &Receiver<()>) {
        let ending = &self.crew.ending;
        let shared = &self.crew.shared;
        if !is_quiet {
            let _ = ending.wait(INTERVAL);
            return;
        }
        shared.unwatched.store(true, Ordering::SeqCst);
        // A thread that took a message just before that didn't send an alarm.
        if self.members.iter().any(|member| member.handle.progress().message().is_some()) {
            shared.unwatched.store(false, Ordering::Relaxed);
            let _ = ending.wait(INTERVAL);
            return;
        }
        let never = self.members.len() == 1 && self.leaving.is_empty();
        let limit = if never { Duration::MAX } else { QUIET_INTERVAL };
        let limit = crossbeam_channel::after(limit.min(Duration::from_secs(3_600)));
        select! {
            recv(ending.receiver()) -> _ => {}
            recv(alarmed) -> _ => {}
            recv(limit) -> _ => {}
        }
        shared.unwatched.store(false, Ordering::Relaxed);
    }

    /// Observes the consumers, for [`Growth`] to decide how many there should be.
    fn observe(&mut self, last: Instant, now: Instant) -> Observation {
        let age = now.saturating_duration_since(self.begun);
        for member in &mut self.members {
            member.reliefs.retain(|relief| !relief.is_over());
            member.handle.update_ages(&mut member.ages, self.patience, age);
        }
        while let Some(at) = self.leaving.iter().position(|member| member.thread.is_finished()) {
            let member = self.leaving.swap_remove(at);
            self.note_end(member);
        }
        let handles = || self.members.iter().map(|member| member.handle.progress());
        let reliefs = || self.members.iter().flat_map(|member| &member.reliefs);
        let all = || handles().chain(reliefs().map(|relief| &relief.progress));
        if all().any(|one| one.may_be_stuck(now)) {
            let is_contended = self.contention.update(all(), now);
            all().for_each(|one| one.check_stuck(is_contended, now));
        } else {
            self.contention.forget();
        }
        let stuck = handles().filter(|progress| progress.is_stuck()).count();
        Observation {
            busy: handles().filter(|progress| progress.message().is_some()).count(),
            // While nothing can be parked, more consumers would only hold more messages.
            stuck: if self.crew.context.pipeline.can_park() { stuck } else { 0 },
            has_rested: handles().any(|progress| progress.has_rested(last, now)),
            done: self.crew.shared.done.load(Ordering::Relaxed),
        }
    }

    /// Makes sure that nothing waits for a stuck consumer: neither the rest of its event nor its prefetched
    /// messages.
    fn take_over(&mut self) {
        let workers = &self.crew.context.workers;
        let reliefs: usize = self.members.iter().map(|member| member.reliefs.len()).sum();
        let mut places = usize::from(self.crew.lane.capacity).saturating_sub(reliefs);
        for member in &mut self.members {
            let Some(message) = member.handle.progress().message() else { continue };
            let reliefs = member.reliefs.iter().map(|relief| &relief.progress);
            for progress in [member.handle.progress()].into_iter().chain(reliefs.clone()) {
                if let Some(event) = progress.rest_of_event()
                    && progress.is_stuck()
                {
                    // If no thread can be started, the rest waits until the consumer continues.
                    let _ = workers.run(Box::new(move || {
                        event.help();
                        None
                    }));
                }
            }
            let all_stuck =
                member.handle.progress().is_stuck() && reliefs.clone().all(Progress::is_stuck);
            if all_stuck && places > 0 && member.handle.has_messages() && member.handle.add_relief()
            {
                let relief = Arc::new(Relief::default());
                member.reliefs.push(Arc::clone(&relief));
                places -= 1;
                let shared = Arc::clone(&self.crew.shared);
                let task = relief::task(relief, shared, Arc::clone(&member.handle), message);
                if workers.run(task).is_err() {
                    // As above.
                    member.reliefs.pop();
                    member.handle.give_back(Returned::Over);
                }
            }
        }
    }

    fn start_more(&mut self, more: usize) {
        for _ in 0..more {
            if let Err(problem) = self.start() {
                // If the connection is lost, the consumers notice. Otherwise no more can be started for now.
                let count = self.members.len();
                let queue = &self.crew.lane.queue;
                if self.limited_by.as_ref() != Some(&problem) {
                    log::warn!("lane stays at {count} consumers queue={queue} cause={problem:?}");
                    self.limited_by = Some(problem);
                }
                self.growth.limit_to(count, self.begun.elapsed());
                return;
            }
            self.limited_by = None;
        }
    }

    /// Starts a consumer.
    fn start(&mut self) -> Result<(), String> {
        let crew = self.crew;
        let is_first = self.members.is_empty();
        let opened = crew.guard_start(is_first, || self.link.channel());
        let channel: Channel = opened.map_err(|error| self.link.unavailable(&error).to_string())?;
        let (returned, returns) = unbounded();
        let (trigger, surplus) = shutdown::channel();
        let handle = Arc::new(ConsumerHandle::new(returned));
        let name = format!("{}-{}", crew.lane.queue, self.members.len() + 1);
        let body = {
            let handle = Arc::clone(&handle);
            move || {
                // Even if it panics: the lane ends only after all of its consumers.
                let mut end_all = EndAll(Some(&crew.end));
                let ended = consume(crew, &channel, &handle, &returns, &surplus, is_first);
                // Dropping it waits for the broker's answer.
                crew.kill.guard_shared(&crew.ending, || drop(channel));
                if let Ended::Surplus = ended {
                    end_all.0 = None;
                } else {
                    crew.context.metrics.health().set_consuming(&crew.lane.queue, false);
                }
                ended
            }
        };
        // If the thread can't be started, the channel is dropped here, which waits for the broker's
        // answer.
        let thread = crew.kill.guard_shared(&crew.ending, || {
            thread::Builder::new().name(name).spawn_scoped(self.scope, body)
        });
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        self.members.push(CrewMember {
            handle,
            reliefs: Vec::new(),
            ages: Ages::default(),
            surplus: trigger,
            thread,
        });
        Ok(())
    }

    /// Ends some consumers, idle ones first.
    fn end_some(&mut self, fewer: usize) {
        self.members.sort_by_key(|member| member.handle.progress().message().is_none());
        for _ in 0..fewer.min(self.members.len().saturating_sub(1)) {
            let Some(member) = self.members.pop() else { return };
            member.surplus.fire();
            self.leaving.push(member);
        }
    }

    /// Waits for all consumers, and returns why they ended.
    fn join(&mut self) -> Ended {
        for member in
            std::mem::take(&mut self.members).into_iter().chain(std::mem::take(&mut self.leaving))
        {
            self.note_end(member);
        }
        std::mem::replace(&mut self.ended, Ended::Asked)
    }

    fn note_end(&mut self, member: CrewMember<'_>) {
        // A panic in one consumer is the lane's, and ends the process.
        let ended = member.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if matches!(self.ended, Ended::Asked) && !matches!(ended, Ended::Surplus) {
            self.ended = ended;
        }
    }
}

struct EndAll<'a>(Option<&'a Trigger>);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        if let Some(end) = self.0 {
            end.fire();
        }
    }
}
