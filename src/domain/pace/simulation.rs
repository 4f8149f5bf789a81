//! All rules together under random conditions: receivers, events and capacities are drawn from a seed, a
//! virtual clock jumps from one step to the next, and the invariants are checked after each step.
//!
//! `PACE_SEED=7` runs only that seed, `PACE_RUNS=100000` that many seeds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;

use super::*;

mod book;
mod cast;

use book::{Book, Bounds, Expected, Tally, Verdict, half, three_quarters};
use cast::{Absence, Arrival, Failure, Kind, Plan, Response, Role, ms};

/// REQUEST_TIMEOUT
const TIMEOUT: Duration = Duration::from_secs(10);

/// RETRY_SCHEDULE, in seconds.
const SCHEDULE: [u64; 5] = [1, 2, 4, 8, 16];

/// A request counts with the slow once it has been under way for longer than [`SLOW`].
const LATE: Duration = SLOW.saturating_add(Duration::from_micros(1));

/// No run needs as many steps. One that does is in an endless loop.
const MOST_STEPS: u64 = 2_000_000;

/// Gives each reason for a refusal a number.
fn number_of(hold: Hold) -> usize {
    match hold {
        Hold::Share => 0,
        Hold::Group => 1,
        Hold::Slow => 2,
        Hold::Unproven => 3,
        Hold::Ramp => 4,
        Hold::Full => 5,
        Hold::Breaker(_) => 6,
        Hold::StayAway(_) => 7,
        Hold::Limit(..) => 8,
        Hold::Behind | Hold::Paused => panic!("the pace knows no backlogs: {hold:?}"),
        Hold::Elsewhere => panic!("there is one instance"),
    }
}

/// One event to one webhook.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    webhook: usize,
    queue: usize,
    event: usize,
    /// How many attempts failed.
    failed: usize,
    /// When its next attempt should begin.
    due: Moment,
    /// The message of its lane that it is part of, while a consumer holds that message.
    message: Option<usize>,
}

/// What a consumer takes from its lane: an event with its deliveries, or a retry.
#[derive(Clone, Debug)]
struct Message {
    queue: usize,
    is_retry: bool,
    deliveries: Vec<usize>,
    /// How many of its deliveries the consumer still holds.
    left: usize,
}

/// Messages in order, and up to as many consumers as there are places.
#[derive(Clone, Debug, Default)]
struct Lane {
    messages: VecDeque<usize>,
    busy: usize,
}

/// The deliveries that a receiver couldn't take.
#[derive(Clone, Debug)]
struct Backlog {
    deliveries: VecDeque<usize>,
    /// Whether its head waits for a place.
    waits: bool,
    /// Why its head was refused.
    hold: Hold,
}

/// A request under way.
#[derive(Debug)]
struct Request {
    attempt: Attempt,
    delivery: usize,
    queue: usize,
    webhook: usize,
    began: Moment,
    /// The class of its receiver at its begin, and the class it counts with now.
    began_as: Class,
    class: Class,
    is_probe: bool,
    /// `None` if the attempt isn't made after all.
    response: Option<Response>,
}

/// A delivery that waits for a place, in order.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    delivery: usize,
    is_head: bool,
}

/// The next thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrives(usize),
    RetryIsDue(usize),
    Ends(u64),
    IsLate(u64),
    StopsWaiting(usize),
    PauseEnds(usize),
}

/// What changed for those that were refused.
#[derive(Clone, Copy, Debug)]
struct Change {
    webhook: usize,
    /// A request ended that used this queue's capacity.
    ended: Option<usize>,
    /// This queue has fewer unproven or slow requests under way.
    fewer: Option<usize>,
}

/// An attempt that was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    began: Moment,
    due: Moment,
}

/// A delivery that succeeded.
#[derive(Clone, Copy, Debug)]
struct Delivered {
    webhook: usize,
    arrived: Moment,
    at: Moment,
}

struct Simulation {
    plan: Plan,
    bounds: Option<Bounds>,
    drawn: fastrand::Rng,
    pace: Pace,
    groups: Vec<Group>,
    now: Moment,
    steps: BinaryHeap<Reverse<(Moment, u64, Step)>>,
    scheduled: u64,
    done: u64,
    deliveries: Vec<Delivery>,
    messages: Vec<Message>,
    /// Each queue's lanes: events, and retries.
    lanes: Vec<[Lane; 2]>,
    backlogs: Vec<Vec<Backlog>>,
    /// The backlogs that hold something, by queue and webhook.
    open: BTreeSet<(usize, usize)>,
    rotation: usize,
    under_way: BTreeMap<u64, Request>,
    began: u64,
    /// The requests that may become late, in the order of their begin.
    early: VecDeque<u64>,
    books: Vec<Book>,
    tallies: Vec<Tally>,
    waiting: Vec<VecDeque<Waiting>>,
    /// Since when the first waiting delivery is the first.
    first_since: Vec<Moment>,
    made: Vec<Made>,
    delivered: Vec<Delivered>,
    dead: usize,
    peak: usize,
    /// How many waiting deliveries were refused when they were called.
    refused_when_called: usize,
    /// How often each reason for a refusal was given.
    holds: [usize; 9],
}

impl Simulation {
    fn new(plan: Plan) -> Self {
        let breaker: Breaker = plan.breaker.parse().expect("a breaker");
        let (shortest, longest) = (ms(1_000), ms(300_000));
        let bounds = (plan.breaker != "off").then_some(Bounds { failures: 5, shortest, longest });
        let (queues, webhooks) = (plan.capacities.len(), plan.roles.len());
        let groups = plan.roles.iter().map(|role| role.group + 1).max().unwrap_or(0);
        let backlog = Backlog { deliveries: VecDeque::new(), waits: false, hold: Hold::Full };
        let mut simulation = Self {
            bounds,
            drawn: fastrand::Rng::with_seed(plan.seed),
            pace: Pace::new(plan.capacities.iter().copied(), breaker, 10_000),
            groups: plan.roles.iter().map(|role| Group::of(&role.group.to_string())).collect(),
            now: Moment::ZERO,
            steps: BinaryHeap::new(),
            scheduled: 0,
            done: 0,
            deliveries: Vec::new(),
            messages: Vec::new(),
            lanes: vec![Default::default(); queues],
            backlogs: vec![vec![backlog; webhooks]; queues],
            open: BTreeSet::new(),
            rotation: 0,
            under_way: BTreeMap::new(),
            began: 0,
            early: VecDeque::new(),
            books: vec![Book::default(); webhooks],
            tallies: vec![Tally::new(groups, webhooks); queues],
            waiting: vec![VecDeque::new(); queues],
            first_since: vec![Moment::ZERO; queues],
            made: Vec::new(),
            delivered: Vec::new(),
            dead: 0,
            peak: 0,
            refused_when_called: 0,
            holds: [0; 9],
            plan,
        };
        for n in 0..simulation.plan.arrivals.len() {
            simulation.schedule(simulation.plan.arrivals[n].at, Step::Arrives(n));
        }
        simulation
    }

    #[track_caller]
    fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let Plan { seed, capacities, ends_at, .. } = &self.plan;
            // A plan drawn from a seed has no end of its own.
            let name = if ends_at.is_none() { "PACE_SEED" } else { "seed" };
            panic!(
                "{name}={seed}, capacities {capacities:?}, {} webhooks, at {:?}: {}",
                self.books.len(),
                self.now,
                what()
            );
        }
    }

    fn schedule(&mut self, at: Moment, step: Step) {
        self.scheduled += 1;
        self.steps.push(Reverse((at, self.scheduled, step)));
    }

    /// Runs until nothing is left to happen, or until the plan's end.
    fn run(mut self) -> Self {
        while let Some(Reverse((at, _, step))) = self.steps.pop() {
            if self.plan.ends_at.is_some_and(|end| at >= end) {
                return self;
            }
            self.now = at;
            self.done += 1;
            self.require(self.done < MOST_STEPS, || "it goes round in circles".to_owned());
            self.note_late();
            self.take(step);
            for queue in 0..self.lanes.len() {
                self.consume(queue, false);
                self.consume(queue, true);
            }
            if self.steps.peek().is_none_or(|Reverse((next, ..))| *next > at) {
                self.check();
            }
        }
        self.check_end();
        self
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Arrives(event) => {
                let Arrival { at, queue, ref webhooks } = self.plan.arrivals[event];
                let first = self.deliveries.len();
                let delivery = |webhook: &usize| {
                    let (webhook, message) = (*webhook, None);
                    Delivery { webhook, queue, event, failed: 0, due: at, message }
                };
                self.deliveries.extend(webhooks.iter().map(delivery));
                let deliveries = (first..self.deliveries.len()).collect();
                self.publish(queue, false, deliveries);
            }
            Step::RetryIsDue(delivery) => {
                self.publish(self.deliveries[delivery].queue, true, vec![delivery]);
            }
            Step::Ends(number) => self.end(number),
            Step::IsLate(number) => {
                if let Some(Request { queue, webhook, .. }) = self.under_way.get(&number) {
                    let (webhook, fewer) = (*webhook, Some(*queue));
                    self.offer(Change { webhook, ended: None, fewer });
                }
            }
            Step::StopsWaiting(delivery) => self.stop_waiting(delivery),
            Step::PauseEnds(webhook) => self.offer(Change { webhook, ended: None, fewer: None }),
        }
    }

    fn publish(&mut self, queue: usize, is_retry: bool, deliveries: Vec<usize>) {
        self.lanes[queue][usize::from(is_retry)].messages.push_back(self.messages.len());
        self.messages.push(Message { queue, is_retry, deliveries, left: 0 });
    }

    /// Idle consumers take the next messages of their lane.
    fn consume(&mut self, queue: usize, is_retry: bool) {
        let lane = usize::from(is_retry);
        while self.lanes[queue][lane].busy < self.plan.capacities[queue]
            && let Some(message) = self.lanes[queue][lane].messages.pop_front()
        {
            let deliveries = std::mem::take(&mut self.messages[message].deliveries);
            self.lanes[queue][lane].busy += 1;
            // One more, for the event itself.
            self.messages[message].left = deliveries.len() + 1;
            for delivery in deliveries {
                self.deliveries[delivery].message = Some(message);
                let webhook = self.deliveries[delivery].webhook;
                if !is_retry && self.open.contains(&(queue, webhook)) {
                    self.backlogs[queue][webhook].deliveries.push_back(delivery);
                    self.let_go(delivery);
                } else if let Err(hold) = self.ask(delivery, false) {
                    self.put_by(delivery, hold);
                }
            }
            self.release(message);
        }
    }

    /// The delivery's consumer no longer has to hold it.
    fn let_go(&mut self, delivery: usize) {
        if let Some(message) = self.deliveries[delivery].message.take() {
            self.release(message);
        }
    }

    fn release(&mut self, message: usize) {
        let Message { queue, is_retry, ref mut left, .. } = self.messages[message];
        *left -= 1;
        if *left == 0 {
            self.lanes[queue][usize::from(is_retry)].busy -= 1;
        }
    }

    fn put_by(&mut self, delivery: usize, hold: Hold) {
        let Delivery { queue, webhook, .. } = self.deliveries[delivery];
        self.backlogs[queue][webhook].deliveries.push_back(delivery);
        self.open.insert((queue, webhook));
        self.note_hold(queue, webhook, hold);
        self.let_go(delivery);
    }

    fn note_hold(&mut self, queue: usize, webhook: usize, hold: Hold) {
        self.holds[number_of(hold)] += 1;
        self.backlogs[queue][webhook].hold = hold;
        if !hold.remaining().is_zero() {
            self.schedule(self.now + hold.remaining(), Step::PauseEnds(webhook));
        }
    }

    fn verdict(&self, queue: usize, webhook: usize) -> Verdict {
        let Role { group, max_in_flight, .. } = self.plan.roles[webhook];
        let of_webhook = |tally: &Tally| tally.webhooks[webhook];
        let under_way = self.tallies.iter().map(of_webhook).sum();
        let (capacity, whose) = (self.plan.capacities[queue], (group, webhook, under_way));
        let (book, tally) = (&self.books[webhook], &self.tallies[queue]);
        let is_limited = max_in_flight.is_some_and(|most| under_way >= most.get() as usize);
        let mut verdict = Verdict::on(book, tally, capacity, whose, self.now);
        verdict.is_limited = is_limited;
        verdict.may_yield = max_in_flight.is_some() && self.tallies.len() > 1;
        verdict
    }

    /// Asks for an attempt of a backlog's head (`is_head`) or of a delivery that a consumer holds. The
    /// simulation's own books say what the answer must be.
    fn ask(&mut self, delivery: usize, is_head: bool) -> Result<(), Hold> {
        let Delivery { webhook, queue, .. } = self.deliveries[delivery];
        let role = &self.plan.roles[webhook];
        let ask = Ask {
            queue,
            webhook: Uuid::from_u128(webhook as u128),
            group: self.groups[webhook],
            limits: Limits { max_in_flight: role.max_in_flight, rate: None },
            is_head,
        };
        let verdict = self.verdict(queue, webhook);
        let asked = self.pace.ask(ask, self.now);
        let is_right = match &asked {
            Ok(Admission::Begins(_)) => verdict.begins(),
            Ok(Admission::Waits(_)) => verdict.waits(),
            Err(hold) => verdict.is_refused_for(*hold),
        };
        self.require(is_right, || {
            format!("asked for webhook {webhook} by queue {queue}: {asked:?}, but {verdict:?}")
        });
        match asked? {
            Admission::Begins(attempt) => self.begin(delivery, attempt),
            Admission::Waits(ticket) => {
                if self.waiting[queue].is_empty() {
                    self.first_since[queue] = self.now;
                }
                self.waiting[queue].push_back(Waiting { ticket, delivery, is_head });
                self.backlogs[queue][webhook].waits |= is_head;
                if self.plan.is_restless && self.drawn.u32(..10) == 0 {
                    let leaves = self.now + ms(self.drawn.u64(..3_000));
                    self.schedule(leaves, Step::StopsWaiting(delivery));
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, delivery: usize, attempt: Attempt) {
        let Delivery { webhook, queue, due, .. } = self.deliveries[delivery];
        let (capacity, tally) = (self.plan.capacities[queue], &self.tallies[queue]);
        let class = self.books[webhook].class;
        self.require(tally.used < capacity, || format!("queue {queue} has no place left"));
        let others = tally.slow + tally.unproven;
        let has_room = match class {
            Class::Prompt => true,
            Class::Slow => tally.slow < half(capacity) && others < three_quarters(capacity),
            Class::Unproven => others < three_quarters(capacity),
        };
        self.require(has_room, || format!("{class:?} began beside {tally:?}"));
        let is_probe = self.books[webhook].begins();
        self.require(is_probe == attempt.is_probe, || format!("a probe? {is_probe}"));
        let now = self.now;
        let response = if self.plan.is_restless && self.drawn.u32(..100) == 0 {
            None
        } else if now >= self.plan.heals_at {
            Some(Kind::quick().answer(&mut self.drawn, now))
        } else {
            Some(self.plan.roles[webhook].kind.answer(&mut self.drawn, now))
        };
        self.tallies[queue].add(class, self.plan.roles[webhook].group, webhook);
        self.peak = self.peak.max(self.tallies[queue].used);
        self.made.push(Made { began: now, due });
        let number = self.began;
        self.began += 1;
        let took = response.map_or(ms(1), |response| response.took);
        self.schedule(now + took, Step::Ends(number));
        if took > SLOW {
            self.schedule(now + LATE, Step::IsLate(number));
        }
        self.early.push_back(number);
        let (began, began_as) = (now, class);
        let request = Request {
            attempt,
            delivery,
            queue,
            webhook,
            began,
            began_as,
            class,
            is_probe,
            response,
        };
        self.under_way.insert(number, request);
    }

    /// Requests that have taken over a second count as slow.
    fn note_late(&mut self) {
        while let Some(number) = self.early.front().copied() {
            if let Some(request) = self.under_way.get_mut(&number) {
                if self.now < request.began + LATE {
                    break;
                }
                let Request { queue, webhook, began, .. } = *request;
                let was = std::mem::replace(&mut request.class, Class::Slow);
                let group = self.plan.roles[webhook].group;
                self.tallies[queue].remove(was, group, webhook);
                self.tallies[queue].add(Class::Slow, group, webhook);
                self.books[webhook].is_late(began + SLOW);
            }
            self.early.pop_front();
        }
    }

    fn end(&mut self, number: u64) {
        let request = self.under_way.remove(&number).expect("it is under way");
        let Request { attempt, delivery, queue, webhook, began, class, is_probe, .. } = request;
        let of_webhook = |tally: &Tally| tally.webhooks[webhook];
        let under_way: usize = self.tallies.iter().map(of_webhook).sum();
        self.tallies[queue].remove(class, self.plan.roles[webhook].group, webhook);
        if let Some(Response { failure, .. }) = request.response {
            self.conclude(delivery, failure);
            let event = self.deliveries[delivery].event;
            let how = (began, is_probe, under_way);
            let expected = self.books[webhook].ends(how, (event, failure), self.bounds, self.now);
            let event = event.to_string();
            let ended = match failure {
                None => AttemptEnd::Delivered,
                Some(Failure { reason, is_overload, retry_after }) => AttemptEnd::Failed {
                    event: &event,
                    reason,
                    status: None,
                    is_overload,
                    retry_after,
                },
            };
            let transition = self.pace.end(attempt, ended, self.drawn.f64(), self.now);
            let is_right = match (expected, transition) {
                (Expected::Nothing, None) | (Expected::Closes, Some(Transition::Closed)) => true,
                (Expected::Opens(least, most), Some(Transition::Open(pause))) => {
                    self.books[webhook].opens(self.now + pause);
                    (least..=most).contains(&pause)
                }
                _ => false,
            };
            self.require(is_right, || {
                format!("webhook {webhook}: {transition:?}, but {expected:?}")
            });
        } else {
            self.books[webhook].is_given_back(is_probe);
            self.pace.give_back(attempt);
            self.try_again_after(delivery, ms(1_000));
        }
        self.let_go(delivery);
        self.call();
        let fewer = (class != Class::Prompt).then_some(queue);
        self.offer(Change { webhook, ended: Some(queue), fewer });
    }

    fn conclude(&mut self, delivery: usize, failure: Option<Failure>) {
        let Delivery { webhook, event, ref mut failed, .. } = self.deliveries[delivery];
        if failure.is_none() {
            let (arrived, at) = (self.plan.arrivals[event].at, self.now);
            self.delivered.push(Delivered { webhook, arrived, at });
            return;
        }
        *failed += 1;
        match SCHEDULE.get(*failed - 1) {
            Some(seconds) => self.try_again_after(delivery, Duration::from_secs(*seconds)),
            None => self.dead += 1,
        }
    }

    fn try_again_after(&mut self, delivery: usize, delay: Duration) {
        self.deliveries[delivery].due = self.now + delay;
        self.schedule(self.now + delay, Step::RetryIsDue(delivery));
    }

    /// Calls the waiting deliveries until no place is free or none waits.
    fn call(&mut self) {
        while let Some((ticket, called)) = self.pace.call_next(self.now) {
            let is_first =
                |line: &VecDeque<Waiting>| line.front().is_some_and(|first| first.ticket == ticket);
            let queue = self.waiting.iter().position(is_first);
            self.require(queue.is_some(), || format!("{ticket:?} was called before its turn"));
            let queue = queue.expect("it waits");
            let Waiting { delivery, is_head, .. } =
                self.waiting[queue].pop_front().expect("it waits");
            self.check_first(queue);
            self.first_since[queue] = self.now;
            let webhook = self.deliveries[delivery].webhook;
            let verdict = self.verdict(queue, webhook);
            let is_right = match called {
                Ok(_) => verdict.begins(),
                Err(hold) => verdict.is_refused_for(hold),
            };
            self.require(is_right, || {
                format!("called webhook {webhook} by queue {queue}: {called:?}, but {verdict:?}")
            });
            if is_head {
                self.backlogs[queue][webhook].waits = false;
            }
            match called {
                Ok(attempt) => {
                    if is_head {
                        self.leave_backlog(queue, webhook);
                        // The next head hasn't asked yet.
                        self.backlogs[queue][webhook].hold = Hold::Full;
                    }
                    self.begin(delivery, attempt);
                }
                Err(hold) => {
                    self.refused_when_called += 1;
                    if is_head {
                        self.note_hold(queue, webhook, hold);
                    } else {
                        self.put_by(delivery, hold);
                    }
                }
            }
        }
    }

    fn leave_backlog(&mut self, queue: usize, webhook: usize) {
        let deliveries = &mut self.backlogs[queue][webhook].deliveries;
        deliveries.pop_front();
        if deliveries.is_empty() {
            self.open.remove(&(queue, webhook));
        }
    }

    fn stop_waiting(&mut self, delivery: usize) {
        let Delivery { queue, webhook, .. } = self.deliveries[delivery];
        let has = |waiting: &Waiting| waiting.delivery == delivery;
        let Some(at) = self.waiting[queue].iter().position(has) else { return };
        let Waiting { ticket, is_head, .. } = self.waiting[queue].remove(at).expect("it waits");
        let left = self.pace.leave(ticket);
        let again = self.pace.leave(ticket);
        self.require(left && !again, || format!("{ticket:?} left: {left}, and again: {again}"));
        if at == 0 {
            self.first_since[queue] = self.now;
        }
        if is_head {
            self.backlogs[queue][webhook].waits = false;
        } else {
            self.put_by(delivery, Hold::Full);
        }
        self.offer(Change { webhook, ended: None, fewer: None });
    }

    /// Offers again the backlogs whose reason for being refused may be gone: the prompt first, then the
    /// unproven, then the slow, in rotation. While the reason for a backlog's last refusal remains,
    /// nothing else can help it, so it isn't asked for. [`Simulation::check`] verifies that.
    fn offer(&mut self, change: Change) {
        self.rotation += 1;
        let (webhooks, rotation) = (self.books.len(), self.rotation);
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
                candidates.push((self.books[webhook].class, turn, queue, webhook));
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

    fn check_first(&self, queue: usize) {
        let lasted = self.now - self.first_since[queue];
        self.require(lasted <= TIMEOUT, || format!("first in queue {queue} for {lasted:?}"));
    }

    /// The invariants, checked whenever everything of one moment has happened.
    fn check(&mut self) {
        let groups = self.plan.roles.iter().map(|role| role.group + 1).max().unwrap_or(0);
        for queue in 0..self.tallies.len() {
            let capacity = self.plan.capacities[queue];
            let mut tally = Tally::new(groups, self.books.len());
            let mut begun_by_others = 0;
            for request in self.under_way.values().filter(|request| request.queue == queue) {
                let group = self.plan.roles[request.webhook].group;
                tally.add(request.class, group, request.webhook);
                begun_by_others += usize::from(request.began_as != Class::Prompt);
            }
            self.require(tally == self.tallies[queue], || "the simulation miscounts".to_owned());
            let Tally { used, slow, unproven, .. } = tally;
            let counted = self.pace.in_use(queue, self.now).map(|(_, count)| count);
            let are_right = counted == [used - slow - unproven, unproven, slow];
            self.require(are_right, || format!("{counted:?} in queue {queue}, but {tally:?}"));
            self.require(used <= capacity, || format!("{used} under way in queue {queue}"));
            self.require(begun_by_others <= three_quarters(capacity), || {
                format!("{begun_by_others} in queue {queue} began for others than the prompt")
            });
            let is_full = used == capacity;
            let waits = !self.waiting[queue].is_empty();
            self.require(is_full || !waits, || format!("they wait for a free place of {queue}"));
            let lanes_wait = self.lanes[queue].iter().any(|lane| !lane.messages.is_empty());
            self.require(is_full || !lanes_wait, || format!("lane {queue} stands, with room"));
            if waits {
                self.check_first(queue);
            }
        }
        // If there are hundreds of backlogs, only now and then.
        if self.open.len() < 64 || self.done.is_multiple_of(16) {
            self.check_backlogs();
        }
        self.require(
            self.pace.has_waiting() == self.waiting.iter().any(|line| !line.is_empty()),
            || "does somebody wait?".to_owned(),
        );
    }

    /// No capacity is idle while a backlog could use it.
    fn check_backlogs(&self) {
        for (queue, webhook) in self.open.iter().copied() {
            let Backlog { waits, hold, .. } = self.backlogs[queue][webhook];
            let verdict = self.verdict(queue, webhook);
            let yields = matches!(hold, Hold::Limit(_, wait) if !wait.is_zero());
            let could = !yields && (verdict.begins() || verdict.waits() && !verdict.is_limited);
            self.require(waits || !could, || {
                format!("webhook {webhook} of queue {queue} is held by {hold:?}, but {verdict:?}")
            });
        }
    }

    /// The invariants when nothing is left to happen.
    fn check_end(&mut self) {
        let lanes = self.lanes.iter().flatten();
        let held = lanes.map(|lane| lane.messages.len() + lane.busy).sum::<usize>();
        let (under_way, waiting) = (self.under_way.len(), self.waiting.iter().flatten().count());
        self.require(held + self.open.len() + under_way + waiting == 0, || {
            format!("for ever: {held} in lanes, {:?}, {under_way} under way, {waiting}", self.open)
        });
        let concluded = self.delivered.len() + self.dead;
        let all = self.deliveries.len();
        self.require(concluded == all, || format!("{concluded} of {all} came to an end"));
        let fresh = Pace::new(self.plan.capacities.iter().copied(), self.pace.breaker, 0);
        let [left, nothing] = [&self.pace, &fresh].map(|pace| format!("{:?}", pace.queues));
        self.require(left == nothing && self.pace.under_way.is_empty(), || left);
        for webhook in 0..self.books.len() {
            let receiver = self.pace.receiver(Uuid::from_u128(webhook as u128));
            let is_busy = receiver.is_some_and(Receiver::is_busy);
            self.require(!is_busy, || format!("webhook {webhook} is still busy"));
        }
    }
}

impl Simulation {
    /// The latencies of these webhooks' deliveries that arrived from then on.
    fn latencies(&self, webhooks: &Range<usize>, from: Moment) -> Vec<Duration> {
        let counts = |done: &&Delivered| webhooks.contains(&done.webhook) && done.arrived >= from;
        self.delivered.iter().filter(counts).map(|done| done.at - done.arrived).collect()
    }

    /// The number of deliveries for these webhooks.
    fn wanted(&self, webhooks: &Range<usize>) -> usize {
        let of_event = |arrival: &Arrival| {
            arrival.webhooks.iter().filter(|webhook| webhooks.contains(webhook)).count()
        };
        self.plan.arrivals.iter().map(of_event).sum()
    }

    /// Successes per second until the last one.
    fn rate(&self, webhooks: &Range<usize>) -> f64 {
        let of_these = self.delivered.iter().filter(|done| webhooks.contains(&done.webhook));
        let last = of_these.clone().map(|done| done.at).max().expect("a success");
        of_these.count() as f64 / last.as_secs_f64()
    }
}

/// The given percentile of the values.
fn percentile(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort_unstable();
    let last = values.len().checked_sub(1).expect("a value");
    values[(values.len() * percent / 100).min(last)]
}

fn roles(count: usize, kind: &Kind, group: impl Fn(usize) -> usize) -> Vec<Role> {
    (0..count).map(|n| Role::new(kind.clone(), group(n))).collect()
}

/// Runs `runs` seeds, or the one in PACE_SEED, or as many as PACE_RUNS says.
fn run_seeds(runs: u64, has_usual_capacity: bool) {
    let number = |text: Option<&str>| text.map(|text| text.parse().expect("a number"));
    let seeds = match number(option_env!("PACE_SEED")) {
        Some(seed) => seed..seed + 1,
        None => 0..number(option_env!("PACE_RUNS")).unwrap_or(runs),
    };
    let are_all = seeds == (0..runs);
    let (mut full, mut refused, mut holds) = (0, 0, [0; 9]);
    for seed in seeds {
        let run = Simulation::new(Plan::drawn(seed, has_usual_capacity)).run();
        full += usize::from(run.plan.capacities.contains(&run.peak));
        refused += run.refused_when_called;
        for (all, count) in holds.iter_mut().zip(run.holds) {
            *all += count;
        }
    }
    // A case that never happens isn't tested.
    let all_happens = full > 10 && refused > 10 && holds.iter().all(|count| *count > 10);
    assert!(!are_all || all_happens, "{full} were full, {refused} refused when called, {holds:?}");
}

#[test]
fn whatever_happens_the_rules_hold_and_nobody_waits_for_ever() {
    run_seeds(1_000, false);
}

#[test]
fn whatever_happens_the_rules_hold_with_the_usual_capacity() {
    run_seeds(1_000, true);
}

/// Sends the other receivers a number of events per second in rotation, and healthy ones their own
/// beside them.
fn beside(
    mut others: Vec<Role>,
    per_second: u32,
    (count, healthy_per_second): (usize, u32),
) -> (Plan, Range<usize>) {
    let (lasts, first) = (ms(45_000), others.len());
    others.extend(roles(count, &Kind::quick(), |n| first + n));
    let healthy = first..others.len();
    let plan = Plan::new(others, lasts)
        .with_steady(0..first, per_second, (ms(0), lasts))
        .with_steady(healthy.clone(), healthy_per_second, (ms(1), lasts - ms(1_000)));
    (plan, healthy)
}

/// An event per second that a hundred webhooks want, 60 of which hang.
fn sixty_of_a_hundred_hang(have_one_host: bool, is_mixed: bool) -> (Plan, Range<usize>) {
    let group = |n: usize| if have_one_host { 0 } else { n };
    let mut all = roles(60, &Kind::Hangs, group);
    all.extend(roles(40, &Kind::quick(), |n| group(60 + n)));
    let mut webhooks: Vec<usize> = (0..100).collect();
    if is_mixed {
        fastrand::Rng::with_seed(1).shuffle(&mut webhooks);
    }
    let mut plan = Plan::new(all, ms(60_000));
    let arrival = |n: u64| Arrival { at: ms(n * 1_000), queue: 0, webhooks: webhooks.clone() };
    plan.arrivals = (0..59).map(arrival).collect();
    (plan, 60..100)
}

/// All deliveries to healthy receivers are made, each within `longest`. Of those that come after the
/// first 20 s, 99 % take at most `usual`.
fn check_healthy(
    case: &str,
    (plan, healthy): (Plan, Range<usize>),
    (usual, longest): (Duration, Duration),
) {
    let run = Simulation::new(plan).run();
    let all = run.latencies(&healthy, ms(0));
    assert_eq!(all.len(), run.wanted(&healthy), "{case}: so many were made of so many");
    let p99 = percentile(run.latencies(&healthy, ms(20_000)), 99);
    let most = percentile(all, 100);
    assert!(p99 <= usual && most <= longest, "{case}: p99 {p99:?}, {most:?} at most");
}

#[test]
fn the_healthy_are_served_whoever_hangs_beside_them() {
    // Many requests at a time queue for the remaining places. At first no receiver is proven.
    let times = (ms(10), TIMEOUT + ms(2_000));
    for (have_one_host, is_mixed) in [(false, false), (true, false), (false, true), (true, true)] {
        let case = format!("60 of 100 hang, on one host: {have_one_host}, mixed: {is_mixed}");
        check_healthy(&case, sixty_of_a_hundred_hang(have_one_host, is_mixed), times);
    }
    // As if they were alone: they take at most 6 ms.
    let times = (ms(6), ms(6));
    for (webhooks, hosts) in [(4, 1), (40, 40), (100, 100)] {
        for per_second in [15, 200] {
            let others = roles(webhooks, &Kind::alternates(), |n| n % hosts);
            let case = format!("{webhooks} alternate on {hosts} hosts at {per_second}/s");
            check_healthy(&case, beside(others, per_second, (1, 30)), times);
        }
    }
    let others = roles(500, &Kind::Hangs, |n| n);
    check_healthy("500 hang, at 50/s", beside(others, 50, (20, 100)), times);
    let away = Kind::Away { from: ms(20_000), until: ms(35_000), how: Absence::Hangs };
    let others = roles(64, &away, |_| 0);
    check_healthy("a provider's host begins to hang", beside(others, 100, (1, 30)), times);
    let slow = roles(1, &Kind::Answers(ms(2_000), ms(2_000)), |n| n);
    check_healthy("one takes 2 s, at 20/s", beside(slow, 20, (1, 30)), times);
}

#[test]
fn the_far_get_what_their_share_of_the_capacity_can_do() {
    let far = |millis| Kind::Answers(ms(millis), ms(millis));
    let at_once = |webhook| Arrival { at: ms(0), queue: 0, webhooks: vec![webhook] };
    let both = vec![Role::new(far(200), 0), Role::new(Kind::quick(), 1)];
    let mut plan = Plan::new(both, ms(30_000)).with_steady(1..2, 50, (ms(0), ms(29_000)));
    plan.arrivals.extend((0..4_000).map(|_| at_once(0)));
    // 32 of 64 places.
    let rate = Simulation::new(plan.clone()).run().rate(&(0..1));
    assert!((155.0..=160.0).contains(&rate), "{rate}/s of 160/s");
    check_healthy("one far", (plan, 1..2), (ms(6), ms(6)));

    let mut plan = Plan::new(roles(20, &far(100), |n| n), ms(60_000));
    plan.arrivals = (0..6_000).map(|n| at_once(n % 20)).collect();
    let rate = Simulation::new(plan).run().rate(&(0..20));
    assert!((600.0..=640.0).contains(&rate), "{rate}/s of 640/s");
}

/// A receiver that fails 30 % of the time, with random events at this mean rate.
fn flaky(seed: u64, per_second: u32, seconds: u32) -> Simulation {
    let mut plan = Plan::new(roles(1, &Kind::Flaky, |n| n), ms(1_000) * seconds);
    let drawn = &mut fastrand::Rng::with_seed(seed);
    let at = |_| Duration::from_micros(drawn.u64(..u64::from(seconds) * 1_000_000));
    let arrival = |at| Arrival { at, queue: 0, webhooks: vec![0] };
    plan.arrivals = (0..per_second * seconds).map(at).map(arrival).collect();
    plan.seed = seed;
    Simulation::new(plan).run()
}

/// Failures in a row happen by chance, but not for a whole second at a rate of 20/s or more.
#[test]
fn a_receiver_that_fails_three_times_in_ten_gets_every_attempt_when_it_is_due() {
    for (per_second, seconds) in [(20, 200), (100, 60)] {
        let run = flaky(1, per_second, seconds);
        // Until its first answer it has one request under way.
        let made = run.made.iter().filter(|made| made.due > ms(1_000));
        let latest = made.map(|made| made.began - made.due).max();
        assert_eq!((run.books[0].outages, latest), (0, Some(ms(0))), "at {per_second}/s");
        let share = run.delivered.len() as f64 / run.deliveries.len() as f64;
        assert!(share > 0.98, "{share} at {per_second}/s, the rest waits for its retry");
    }
}

/// At lower rates, a second without a success sometimes happens by chance, and costs a second or two.
#[test]
fn a_flaky_receiver_that_is_seldom_asked_has_few_attempts_put_off_and_not_for_long() {
    for per_second in [1, 2, 5, 10] {
        let run = flaky(1, per_second, 600);
        let delays = run.made.iter().map(|made| made.began - made.due);
        let late = delays.clone().filter(|delay| *delay > ms(10)).count();
        let latest = delays.max().expect("an attempt");
        assert!(late * 100 <= run.made.len() * 3, "{late} of {}", run.made.len());
        assert!(latest <= ms(8_000), "{latest:?} at {per_second}/s");
    }
}

/// A receiver is away for a while. Few attempts are made meanwhile; the first one comes soon after its
/// return, and the waiting deliveries follow as fast as possible.
#[track_caller]
fn check_absence(how: Absence, (from, lasted): (Moment, Duration), per_second: u32, seed: u64) {
    let until = from + lasted;
    let ends = until + lasted / 2 + ms(40_000);
    let mut plan = Plan::new(roles(1, &Kind::Away { from, until, how }, |n| n), ends);
    plan = plan.with_steady(0..1, per_second, (ms(0), until));
    plan.seed = seed;
    let run = Simulation::new(plan).run();
    let case = format!("{how:?} from {from:?} for {lasted:?}, {per_second}/s, seed {seed}");

    let attempts = run.made.iter().map(|made| made.began);
    let noticed = attempts.clone().find(|at| *at >= until).expect("a probe");
    let most = match how {
        Absence::Hangs => (lasted / 4).max(ms(1_000)) + TIMEOUT,
        _ => lasted / 4 + ms(1_000),
    };
    assert!(noticed - until <= most, "{case}: noticed after {:?}, {most:?}", noticed - until);
    let settled = from + ms(30_000);
    let probes = attempts.filter(|at| (settled..until).contains(at)).count();
    assert!(probes <= 40, "{case}: {probes} probes");

    let waited = run.made.iter().filter(|made| made.due <= until);
    let last = waited.clone().map(|made| made.began).max().expect("an attempt");
    let drained = last.saturating_sub(until);
    // The slow have half of the capacity, and a group half of that: 16 at a time, each at most 6 ms.
    let most = most + ms(1_000) + ms(6) * u32::try_from(waited.count()).expect("few") / 16;
    assert!(drained <= most, "{case}: its backlog was left after {drained:?}, {most:?}");
    let concluded = run.delivered.len() + run.dead;
    assert_eq!(concluded, run.deliveries.len(), "{case}: so many came to an end of so many");
}

#[test]
fn who_returns_is_noticed_after_a_quarter_of_its_absence_and_gets_its_backlog_at_once() {
    for how in [Absence::Hangs, Absence::Overloaded, Absence::Fails] {
        for (seconds, per_second) in [(3, 50), (10, 50), (60, 20), (600, 2), (3_600, 1)] {
            check_absence(how, (ms(10_000), ms(seconds * 1_000)), per_second, 1);
        }
        for seed in 0..30 {
            let drawn = &mut fastrand::Rng::with_seed(seed);
            let from = ms(drawn.u64(5_000..10_000));
            let lasted = ms(drawn.u64(500..100_000));
            let per_second = *drawn.choice(&[5, 20, 50]).expect("a rate");
            check_absence(how, (from, lasted), per_second, seed);
        }
    }
}
