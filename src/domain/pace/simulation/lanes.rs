//! The consumers of a simulation, their messages, and the backlogs.

use super::*;

impl Simulation {
    pub(super) fn publish(&mut self, queue: usize, is_retry: bool, deliveries: Vec<usize>) {
        self.lanes[queue][usize::from(is_retry)].messages.push_back(self.messages.len());
        self.messages.push(Message { queue, is_retry, deliveries, left: 0 });
    }

    /// Lets idle consumers take the next messages of their lane.
    pub(super) fn consume(&mut self, queue: usize, is_retry: bool) {
        let lane = usize::from(is_retry);
        while self.lanes[queue][lane].busy < self.scenario.capacities[queue]
            && let Some(message) = self.lanes[queue][lane].messages.pop_front()
        {
            let deliveries = std::mem::take(&mut self.messages[message].deliveries);
            self.lanes[queue][lane].busy += 1;
            // One more for the event itself, so that the message stays until all have asked.
            self.messages[message].left = deliveries.len() + 1;
            for delivery in deliveries {
                self.deliveries[delivery].message = Some(message);
                let webhook = self.deliveries[delivery].webhook;
                if !is_retry && self.open.contains(&(queue, webhook)) {
                    self.backlogs[queue][webhook].deliveries.push_back(delivery);
                    self.release_delivery(delivery);
                } else if let Err(hold) = self.ask(delivery, false) {
                    self.enter_backlog(delivery, hold);
                }
            }
            self.release_message(message);
        }
    }

    /// Tells the delivery's consumer that it no longer has to hold the delivery.
    pub(super) fn release_delivery(&mut self, delivery: usize) {
        if let Some(message) = self.deliveries[delivery].message.take() {
            self.release_message(message);
        }
    }

    fn release_message(&mut self, message: usize) {
        let Message { queue, is_retry, ref mut left, .. } = self.messages[message];
        *left -= 1;
        if *left == 0 {
            self.lanes[queue][usize::from(is_retry)].busy -= 1;
        }
    }

    pub(super) fn enter_backlog(&mut self, delivery: usize, hold: Hold) {
        let Delivery { queue, webhook, .. } = self.deliveries[delivery];
        self.backlogs[queue][webhook].deliveries.push_back(delivery);
        self.open.insert((queue, webhook));
        self.note_hold(queue, webhook, hold);
        self.release_delivery(delivery);
    }

    pub(super) fn note_hold(&mut self, queue: usize, webhook: usize, hold: Hold) {
        self.holds[index_of(hold)] += 1;
        self.backlogs[queue][webhook].hold = hold;
        if !hold.remaining().is_zero() {
            self.schedule(self.now + hold.remaining(), Step::PauseEnds(webhook));
        }
    }

    pub(super) fn leave_backlog(&mut self, queue: usize, webhook: usize) {
        let deliveries = &mut self.backlogs[queue][webhook].deliveries;
        deliveries.pop_front();
        if deliveries.is_empty() {
            self.open.remove(&(queue, webhook));
        }
    }

    /// Asks again for the backlogs whose last reason for a refusal may be gone: for prompt receivers
    /// first, then for unproven, then for slow ones, in rotation. A backlog whose reason remains can't
    /// begin anyway, so it isn't asked for. [`Simulation::check`] verifies that.
    pub(super) fn offer(&mut self, change: Change) {
        self.rotation += 1;
        let (webhooks, rotation) = (self.models.len(), self.rotation);
        let mut candidates: Vec<(Class, usize, usize, usize)> = Vec::new();
        for (queue, webhook) in self.open.iter().copied() {
            let Backlog { waits, hold, .. } = self.backlogs[queue][webhook];
            let may = match hold {
                _ if waits => false,
                _ if webhook == change.webhook => true,
                Hold::Share | Hold::Group | Hold::Full => change.ended == Some(queue),
                Hold::Slow | Hold::Unproven => change.fewer == Some(queue),
                _ => false,
            };
            if may {
                let turn = (webhook + rotation) % webhooks;
                candidates.push((self.models[webhook].class, turn, queue, webhook));
            }
        }
        candidates.sort_unstable();
        while !candidates.is_empty() {
            candidates.retain(|&(_, _, queue, webhook)| {
                let head = self.backlogs[queue][webhook].deliveries.front().copied();
                let Some(head) = head else { return false };
                match self.ask(head, true) {
                    Ok(()) if self.backlogs[queue][webhook].waits => false,
                    Ok(()) => {
                        self.leave_backlog(queue, webhook);
                        true
                    }
                    Err(hold) => {
                        self.note_hold(queue, webhook, hold);
                        false
                    }
                }
            });
        }
    }
}
