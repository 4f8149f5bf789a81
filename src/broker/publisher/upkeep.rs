//! What the publisher does besides publishing: evaluates the broker's answers, and retries refused messages.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{CONFIRM_TIMEOUT, Confirming, Publication, PublisherThread, Session, TRIAL};
use crate::broker::SETUP_TIMEOUT;

impl PublisherThread {
    /// Evaluates the answers that a channel has received. Returns the messages that can be published again.
    pub(super) fn evaluate(&mut self, channel: &mut Confirming) -> Vec<Publication> {
        for backlog in channel.gone.drain(..) {
            // Its receiver outlives this thread.
            let _ = self.gone.send(backlog);
        }
        for publication in channel.unconfirmed.unrouted() {
            self.refusals.returned(&publication.message.queue());
        }
        self.refusals.refuse(channel.unconfirmed.take_refused());
        channel.accepted.drain(..).flat_map(|queue| self.refusals.accept(&queue)).collect()
    }

    /// Records that a message was confirmed.
    pub(super) fn note_confirm(&mut self, session: &mut Session) {
        session.confirmed_at = Instant::now();
        self.end_interruption();
        if std::mem::take(&mut session.is_overdue) {
            self.able.store(true, Ordering::Relaxed);
            log::info!("RabbitMQ confirms messages again");
        }
    }

    fn end_interruption(&mut self) {
        if self.causes.end().is_some() {
            log::info!("publishing again: connected to RabbitMQ at {}", self.amqp);
        }
    }

    /// Does what depends only on the clock.
    pub(super) fn tick(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let now = Instant::now();
        if session.since.elapsed() > SETUP_TIMEOUT {
            self.end_interruption();
        }
        self.read_replaced(session)?;
        self.reroute_unanswered(session, now)?;
        for publication in session.main.take_unrouted(now) {
            self.publish(&mut session.main, publication);
        }
        for publication in self.refusals.take_rerouted(now) {
            self.publish(&mut session.main, publication);
        }
        if !session.is_blocked && self.refusals.is_trial_due(now) {
            self.retry_refused(session)?;
        }
        let channels = || session.replaced.iter().chain([&session.main]);
        let unconfirmed = || channels().flat_map(|channel| channel.unconfirmed.iter());
        // During an alarm nothing is confirmed, whichever queue it is for.
        let is_blocked = session.is_blocked;
        let is_late = |publication: &&Publication| !is_blocked && publication.is_late(now);
        self.refusals.note_late(unconfirmed().filter(is_late));
        let is_any_late = unconfirmed().any(|publication| publication.is_late(now));
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

    /// Reroutes the messages of queues that don't answer, and goes on with a fresh channel. The old channel is
    /// closed once its other messages are confirmed; the broker then drops the messages for those queues.
    fn reroute_unanswered(
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
            self.refusals.silence(channel.take_unanswered(confirmed_at, now), now);
        }
        let unanswered = session.main.take_unanswered(confirmed_at, now);
        if unanswered.is_empty() {
            return Ok(());
        }
        self.refusals.silence(unanswered, now);
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

    /// Reads the confirms of channels that were replaced, and closes those without outstanding ones.
    fn read_replaced(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let kill = session.link.kill_switch();
        for mut channel in std::mem::take(&mut session.replaced) {
            let before = channel.unconfirmed.len();
            let is_open = channel.take_confirms();
            if channel.unconfirmed.len() < before {
                self.note_confirm(session);
            }
            for publication in self.evaluate(&mut channel) {
                session.main.publish(publication);
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

    /// Publishes one refused message of each queue on a fresh channel, because RabbitMQ keeps refusing a
    /// channel that it has refused once. If it accepts one of them, the fresh channel replaces the main one.
    fn retry_refused(&mut self, session: &mut Session) -> Result<(), Option<String>> {
        let mut fresh = self.open_channel(session)?;
        for publication in self.refusals.take_probes() {
            fresh.publish(publication);
        }
        let deadline = Instant::now() + TRIAL;
        while !fresh.unconfirmed.is_empty() && fresh.broken.is_none() {
            match fresh.confirms.recv_deadline(deadline) {
                Ok(confirm) => fresh.confirmed(confirm),
                Err(_) => break,
            }
        }
        if fresh.accepted.is_empty() {
            // Messages without an answer may get one later.
            session.replaced.push(fresh);
        } else {
            let again = self.evaluate(&mut fresh);
            session.replaced.push(std::mem::replace(&mut session.main, fresh));
            self.note_confirm(session);
            for publication in again {
                session.main.publish(publication);
            }
        }
        self.read_replaced(session)
    }
}
