//! The invariants of a simulation: after each step, and at its end.

use super::*;

impl Simulation {
    /// Checks that the first waiting delivery of a queue gets a place within REQUEST_TIMEOUT.
    pub(super) fn check_first(&self, queue: usize) {
        let lasted = self.now - self.first_since[queue];
        self.require(lasted <= TIMEOUT, || format!("first in queue {queue} for {lasted:?}"));
    }

    /// Checks the invariants once all steps of one moment are done.
    pub(super) fn check(&mut self) {
        let groups = self
            .scenario
            .subscribers
            .iter()
            .map(|subscriber| subscriber.group + 1)
            .max()
            .unwrap_or(0);
        for queue in 0..self.usages.len() {
            let capacity = self.scenario.capacities[queue];
            let mut usage = Usage::new(groups, self.models.len());
            let mut begun_by_others = 0;
            for request in self.in_flight.values().filter(|request| request.queue == queue) {
                let group = self.scenario.subscribers[request.webhook].group;
                usage.add(request.class, group, request.webhook);
                begun_by_others += usize::from(request.began_as != Class::Prompt);
            }
            self.require(usage == self.usages[queue], || "the simulation miscounts".to_owned());
            let Usage { used, slow, unproven, .. } = usage;
            let counted = self.pace.in_use(queue, self.now).map(|(_, count)| count);
            let are_right = counted == [used - slow - unproven, unproven, slow];
            self.require(are_right, || format!("{counted:?} in queue {queue}, but {usage:?}"));
            self.require(used <= capacity, || format!("{used} in flight in queue {queue}"));
            self.require(begun_by_others <= three_quarters(capacity), || {
                format!(
                    "{begun_by_others} requests of queue {queue} began for receivers not prompt"
                )
            });
            let is_full = used == capacity;
            let waits = !self.waiting[queue].is_empty();
            self.require(is_full || !waits, || {
                format!("deliveries of queue {queue} wait although a place is free")
            });
            let lanes_wait = self.lanes[queue].iter().any(|lane| !lane.messages.is_empty());
            self.require(is_full || !lanes_wait, || {
                format!("messages of queue {queue} wait although a place is free")
            });
            if waits {
                self.check_first(queue);
            }
        }
        // With many backlogs this check is expensive, so it isn't made each time.
        if self.open.len() < 64 || self.done.is_multiple_of(16) {
            self.check_backlogs();
        }
        self.require(
            self.pace.has_waiting() == self.waiting.iter().any(|line| !line.is_empty()),
            || "has_waiting is wrong".to_owned(),
        );
    }

    /// Checks that no capacity is idle while a backlog could use it.
    fn check_backlogs(&self) {
        for (queue, webhook) in self.open.iter().copied() {
            let Backlog { waits, hold, .. } = self.backlogs[queue][webhook];
            let obstacles = self.obstacles(queue, webhook);
            let yields = matches!(hold, Hold::Limit(_, wait) if !wait.is_zero());
            let could =
                !yields && (obstacles.begins() || obstacles.waits() && !obstacles.is_limited);
            self.require(waits || !could, || {
                format!("webhook {webhook} of queue {queue} is held by {hold:?}, but {obstacles:?}")
            });
        }
    }

    /// Checks the invariants at the end, when no step is left.
    pub(super) fn check_end(&mut self) {
        let lanes = self.lanes.iter().flatten();
        let held = lanes.map(|lane| lane.messages.len() + lane.busy).sum::<usize>();
        let (in_flight, waiting) = (self.in_flight.len(), self.waiting.iter().flatten().count());
        self.require(held + self.open.len() + in_flight + waiting == 0, || {
            format!(
                "left forever: {held} in lanes, backlogs {:?}, {in_flight} in flight, {waiting} waiting",
                self.open
            )
        });
        let concluded = self.delivered.len() + self.dead;
        let all = self.deliveries.len();
        self.require(concluded == all, || format!("only {concluded} of {all} deliveries ended"));
        let fresh = Pace::new(self.scenario.capacities.iter().copied(), self.pace.breaker, 0);
        let [left, nothing] = [&self.pace, &fresh].map(|pace| format!("{:?}", pace.queues));
        self.require(left == nothing && self.pace.in_flight.is_empty(), || left);
        for webhook in 0..self.models.len() {
            let receiver = self.pace.receiver(Uuid::from_u128(webhook as u128));
            let is_busy = receiver.is_some_and(Receiver::is_busy);
            self.require(!is_busy, || format!("webhook {webhook} is still busy"));
        }
    }
}
