//! What the publisher does besides publishing: it learns what became of messages, and tries again what
//! was refused.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{CONFIRM_TIMEOUT, Confirming, PublisherThread, Request, Session, TRIAL};
use crate::broker::SETUP_TIMEOUT;

impl PublisherThread {
    /// Passes on what a channel has learned. Returns what can be published again.
    pub(super) fn heard(&mut self, channel: &mut Confirming) -> Vec<Request> {
        for backlog in channel.gone.drain(..) {
            // Its receiver outlives this thread.
            let _ = self.gone.send(backlog);
        }
        for request in channel.unconfirmed.unrouted() {
            self.refusals.returned(&request.message.queue());
        }
        self.refusals.refuse(channel.unconfirmed.take_refused());
        channel.accepted.drain(..).flat_map(|queue| self.refusals.accept(&queue)).collect()
    }

    pub(super) fn has_confirmed(&mut self, session: &mut Session) {
        session.confirmed_at = Instant::now();
        self.works_again();
        if std::mem::take(&mut session.is_overdue) {
            self.able.store(true, Ordering::Relaxed);
            log::info!("RabbitMQ confirms messages again");
        }
    }

    fn works_again(&mut self) {
        if self.causes.end().is_some() {
            log::info!("publishing again: connected to RabbitMQ at {}", self.amqp);
        }
    }

    /// Does what depends on the clock only.
    pub(super) fn tick(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let now = Instant::now();
        if session.since.elapsed() > SETUP_TIMEOUT {
            self.works_again();
        }
        self.listen_to_replaced(session)?;
        self.give_up_on_silent_queues(session, now)?;
        for request in session.main.take_unrouted(now) {
            self.publish(&mut session.main, request);
        }
        for request in self.refusals.send_elsewhere(now) {
            self.publish(&mut session.main, request);
        }
        if !session.is_blocked && self.refusals.is_trial_due(now) {
            self.try_again(session)?;
        }
        let channels = || session.replaced.iter().chain([&session.main]);
        let unconfirmed = || channels().flat_map(|channel| channel.unconfirmed.iter());
        // During an alarm nothing is confirmed, whichever queue it is for.
        let is_blocked = session.is_blocked;
        let is_late = |request: &&Request| !is_blocked && request.is_late(now);
        self.refusals.note_late(unconfirmed().filter(is_late));
        let is_any_late = unconfirmed().any(|request| request.is_late(now));
        let nothing_comes = session.confirmed_at.elapsed() >= CONFIRM_TIMEOUT;
        if is_any_late && nothing_comes && !std::mem::replace(&mut session.is_overdue, true) {
            self.able.store(false, Ordering::Relaxed);
            log::warn!("RabbitMQ has confirmed no message for {CONFIRM_TIMEOUT:?}");
        }
        session.main.forget_unwanted(now);
        session.replaced.iter_mut().for_each(|channel| channel.forget_unwanted(now));
        self.refusals.forget_recovered(now);
        Ok(())
    }

    /// Sends the messages of queues that don't answer another way, and goes on with a fresh channel. The old
    /// channel is closed once its other messages are confirmed; that drops what it holds for those queues.
    fn give_up_on_silent_queues(
        &mut self,
        session: &mut Session,
        now: Instant,
    ) -> Result<(), Option<String>> {
        // During an alarm nothing is confirmed, whichever queue it is for.
        if session.is_blocked {
            return Ok(());
        }
        let confirmed_at = session.confirmed_at;
        for channel in &mut session.replaced {
            self.refusals.silence(channel.take_unheard(confirmed_at, now), now);
        }
        let unheard = session.main.take_unheard(confirmed_at, now);
        if unheard.is_empty() {
            return Ok(());
        }
        self.refusals.silence(unheard, now);
        let fresh = self.open_channel(session)?;
        session.replaced.push(std::mem::replace(&mut session.main, fresh));
        Ok(())
    }

    fn open_channel(&self, session: &mut Session) -> Result<Confirming, Option<String>> {
        let kill = session.link.kill_switch();
        let routes = Some(self.routes());
        let opened =
            kill.guard(SETUP_TIMEOUT, None, || Confirming::open(&mut session.link, routes));
        opened.map_err(|error| Some(error.to_string()))
    }

    /// Takes the confirms of channels that were replaced, and closes those that owe none.
    fn listen_to_replaced(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let kill = session.link.kill_switch();
        for mut channel in std::mem::take(&mut session.replaced) {
            let before = channel.unconfirmed.len();
            let is_open = channel.take_confirms();
            if channel.unconfirmed.len() < before {
                self.has_confirmed(session);
            }
            for request in self.heard(&mut channel) {
                session.main.publish(request);
            }
            session.main.unconfirmed.keep_unrouted(channel.unconfirmed.take_unrouted());
            let problem = channel.broken.take();
            if channel.unconfirmed.is_empty() && is_open && problem.is_none() {
                let _ = channel.into_unconfirmed(&kill);
                continue;
            }
            session.replaced.push(channel);
            if !is_open || problem.is_some() {
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Publishes one refused message of each queue on a fresh channel: RabbitMQ remembers that it has refused
    /// a channel. If it takes one of them, the fresh channel replaces the other.
    fn try_again(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let mut fresh = self.open_channel(session)?;
        for request in self.refusals.probes() {
            fresh.publish(request);
        }
        let deadline = Instant::now() + TRIAL;
        while !fresh.unconfirmed.is_empty() && fresh.broken.is_none() {
            match fresh.confirms.recv_deadline(deadline) {
                Ok(confirm) => fresh.confirmed(confirm),
                Err(_) => break,
            }
        }
        if fresh.accepted.is_empty() {
            // What has no answer yet may get one later.
            session.replaced.push(fresh);
        } else {
            let again = self.heard(&mut fresh);
            session.replaced.push(std::mem::replace(&mut session.main, fresh));
            self.has_confirmed(session);
            for request in again {
                session.main.publish(request);
            }
        }
        self.listen_to_replaced(session)
    }
}
