//! Simulates all rules together under random conditions. Receivers, events and capacities are drawn from a
//! seed, a virtual clock jumps from one step to the next, and the invariants are checked after each step.
//!
//! `PACE_SEED=7` runs only that seed, `PACE_RUNS=100000` that many seeds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::*;

mod invariants;
mod lanes;
mod model;
mod scenario;

use model::{Bounds, Expected, Model, Obstacles, Usage, half, three_quarters};
use scenario::{Arrival, Behaviour, Failure, Response, Scenario, Subscriber, ms};

/// The simulated REQUEST_TIMEOUT.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The simulated RETRY_SCHEDULE, in seconds.
const SCHEDULE: [u64; 5] = [1, 2, 4, 8, 16];

/// A request counts as slow once it has been in flight for this long: longer than [`SLOW`].
const LATE: Duration = SLOW.saturating_add(Duration::from_micros(1));

/// No run needs this many steps, unless it is in an endless loop.
const MOST_STEPS: u64 = 2_000_000;

/// The index of a reason for a refusal in [`Simulation::holds`].
fn index_of(hold: Hold) -> usize {
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
        Hold::Behind | Hold::Paused => panic!("only the intake knows backlogs: {hold:?}"),
        Hold::Elsewhere => panic!("there is only one instance"),
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
    /// When its next attempt is due.
    due: Moment,
    /// The message to which it belongs, while a consumer holds that message.
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

/// Messages in order, and how many consumers have one. A lane has as many consumers as its queue has
/// places.
#[derive(Clone, Debug, Default)]
struct Lane {
    messages: VecDeque<usize>,
    busy: usize,
}

/// The deliveries of one webhook from one queue that wait because they were refused.
#[derive(Clone, Debug)]
struct Backlog {
    deliveries: VecDeque<usize>,
    /// Whether its head waits for a place.
    waits: bool,
    /// Why its head was refused.
    hold: Hold,
}

/// A request in flight.
#[derive(Debug)]
struct RequestInFlight {
    attempt: Attempt,
    delivery: usize,
    queue: usize,
    webhook: usize,
    began: Moment,
    /// The class of its receiver when it began, and the class with which it is counted now.
    began_as: Class,
    class: Class,
    is_probe: bool,
    /// `None` if the attempt isn't made, but given back.
    response: Option<Response>,
}

/// A delivery that waits for a place.
#[derive(Clone, Copy, Debug)]
struct WaitingDelivery {
    ticket: Ticket,
    delivery: usize,
    is_head: bool,
}

/// A scheduled step of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrives(usize),
    RetryIsDue(usize),
    Ends(u64),
    IsLate(u64),
    StopsWaiting(usize),
    PauseEnds(usize),
}

/// A change after which refused deliveries may begin.
#[derive(Clone, Copy, Debug)]
struct Change {
    webhook: usize,
    /// The queue whose capacity was used by a request that has ended.
    ended: Option<usize>,
    /// The queue that has fewer requests in flight to unproven or slow receivers.
    fewer: Option<usize>,
}

/// An attempt that was made.
#[derive(Clone, Copy, Debug)]
struct MadeAttempt {
    began: Moment,
    due: Moment,
}

/// A delivery that succeeded.
#[derive(Clone, Copy, Debug)]
struct Success {
    webhook: usize,
    arrived: Moment,
    at: Moment,
}

struct Simulation {
    scenario: Scenario,
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
    /// The two lanes of each queue: for events and for retries.
    lanes: Vec<[Lane; 2]>,
    backlogs: Vec<Vec<Backlog>>,
    /// The backlogs that hold something, by queue and webhook.
    open: BTreeSet<(usize, usize)>,
    rotation: usize,
    in_flight: BTreeMap<u64, RequestInFlight>,
    began: u64,
    /// The requests that don't count as slow yet, in the order in which they began.
    early: VecDeque<u64>,
    models: Vec<Model>,
    usages: Vec<Usage>,
    waiting: Vec<VecDeque<WaitingDelivery>>,
    /// For each queue, since when its first waiting delivery has been the first.
    first_since: Vec<Moment>,
    made: Vec<MadeAttempt>,
    delivered: Vec<Success>,
    dead: usize,
    peak: usize,
    /// How many waiting deliveries were refused when they were called.
    refused_when_called: usize,
    /// How often each reason for a refusal occurred, by [`index_of`].
    holds: [usize; 9],
}

impl Simulation {
    fn new(scenario: Scenario) -> Self {
        let breaker: Breaker = scenario.breaker.parse().expect("a breaker");
        let (shortest, longest) = (ms(1_000), ms(300_000));
        let bounds =
            (scenario.breaker != "off").then_some(Bounds { failures: 5, shortest, longest });
        let (queues, webhooks) = (scenario.capacities.len(), scenario.subscribers.len());
        let groups =
            scenario.subscribers.iter().map(|subscriber| subscriber.group + 1).max().unwrap_or(0);
        let backlog = Backlog { deliveries: VecDeque::new(), waits: false, hold: Hold::Full };
        let mut simulation = Self {
            bounds,
            drawn: fastrand::Rng::with_seed(scenario.seed),
            pace: Pace::new(scenario.capacities.iter().copied(), breaker, 10_000),
            groups: scenario
                .subscribers
                .iter()
                .map(|subscriber| Group::of(&subscriber.group.to_string()))
                .collect(),
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
            in_flight: BTreeMap::new(),
            began: 0,
            early: VecDeque::new(),
            models: vec![Model::default(); webhooks],
            usages: vec![Usage::new(groups, webhooks); queues],
            waiting: vec![VecDeque::new(); queues],
            first_since: vec![Moment::ZERO; queues],
            made: Vec::new(),
            delivered: Vec::new(),
            dead: 0,
            peak: 0,
            refused_when_called: 0,
            holds: [0; 9],
            scenario,
        };
        for n in 0..simulation.scenario.arrivals.len() {
            simulation.schedule(simulation.scenario.arrivals[n].at, Step::Arrives(n));
        }
        simulation
    }

    #[track_caller]
    fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let Scenario { seed, capacities, ends_at, .. } = &self.scenario;
            // A scenario drawn from a seed has no end of its own.
            let name = if ends_at.is_none() { "PACE_SEED" } else { "seed" };
            panic!(
                "{name}={seed}, capacities {capacities:?}, {} webhooks, at {:?}: {}",
                self.models.len(),
                self.now,
                what()
            );
        }
    }

    fn schedule(&mut self, at: Moment, step: Step) {
        self.scheduled += 1;
        self.steps.push(Reverse((at, self.scheduled, step)));
    }

    /// Runs until no step is left, or until the end of the scenario.
    fn run(mut self) -> Self {
        while let Some(Reverse((at, _, step))) = self.steps.pop() {
            if self.scenario.ends_at.is_some_and(|end| at >= end) {
                return self;
            }
            self.now = at;
            self.done += 1;
            self.require(self.done < MOST_STEPS, || "endless loop".to_owned());
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
                let Arrival { at, queue, ref webhooks } = self.scenario.arrivals[event];
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
                if let Some(RequestInFlight { queue, webhook, .. }) = self.in_flight.get(&number) {
                    let (webhook, fewer) = (*webhook, Some(*queue));
                    self.offer(Change { webhook, ended: None, fewer });
                }
            }
            Step::StopsWaiting(delivery) => self.stop_waiting(delivery),
            Step::PauseEnds(webhook) => self.offer(Change { webhook, ended: None, fewer: None }),
        }
    }

    fn obstacles(&self, queue: usize, webhook: usize) -> Obstacles {
        let Subscriber { group, max_in_flight, .. } = self.scenario.subscribers[webhook];
        let of_webhook = |usage: &Usage| usage.webhooks[webhook];
        let in_flight = self.usages.iter().map(of_webhook).sum();
        let (capacity, whose) = (self.scenario.capacities[queue], (group, webhook, in_flight));
        let (model, usage) = (&self.models[webhook], &self.usages[queue]);
        let is_limited = max_in_flight.is_some_and(|most| in_flight >= most.get() as usize);
        let mut obstacles = Obstacles::of(model, usage, capacity, whose, self.now);
        obstacles.is_limited = is_limited;
        obstacles.may_yield = max_in_flight.is_some() && self.usages.len() > 1;
        obstacles
    }

    /// Asks for an attempt for the head of a backlog (`is_head`) or for a delivery that a consumer holds,
    /// and checks the answer against the models.
    fn ask(&mut self, delivery: usize, is_head: bool) -> Result<(), Hold> {
        let Delivery { webhook, queue, .. } = self.deliveries[delivery];
        let subscriber = &self.scenario.subscribers[webhook];
        let ask = Ask {
            queue,
            webhook: Uuid::from_u128(webhook as u128),
            group: self.groups[webhook],
            limits: Limits { max_in_flight: subscriber.max_in_flight, rate: None },
            is_head,
        };
        let obstacles = self.obstacles(queue, webhook);
        let asked = self.pace.ask(ask, self.now);
        let is_right = match &asked {
            Ok(Admission::Begins(_)) => obstacles.begins(),
            Ok(Admission::Waits(_)) => obstacles.waits(),
            Err(hold) => obstacles.is_refused_for(*hold),
        };
        self.require(is_right, || {
            format!("asked for webhook {webhook} by queue {queue}: {asked:?}, but {obstacles:?}")
        });
        match asked? {
            Admission::Begins(attempt) => self.begin(delivery, attempt),
            Admission::Waits(ticket) => {
                if self.waiting[queue].is_empty() {
                    self.first_since[queue] = self.now;
                }
                self.waiting[queue].push_back(WaitingDelivery { ticket, delivery, is_head });
                self.backlogs[queue][webhook].waits |= is_head;
                if self.scenario.is_restless && self.drawn.u32(..10) == 0 {
                    let leaves = self.now + ms(self.drawn.u64(..3_000));
                    self.schedule(leaves, Step::StopsWaiting(delivery));
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, delivery: usize, attempt: Attempt) {
        let Delivery { webhook, queue, due, .. } = self.deliveries[delivery];
        let (capacity, usage) = (self.scenario.capacities[queue], &self.usages[queue]);
        let class = self.models[webhook].class;
        self.require(usage.used < capacity, || format!("queue {queue} has no free place"));
        let others = usage.slow + usage.unproven;
        let has_room = match class {
            Class::Prompt => true,
            Class::Slow => usage.slow < half(capacity) && others < three_quarters(capacity),
            Class::Unproven => others < three_quarters(capacity),
        };
        self.require(has_room, || format!("a {class:?} request began, but {usage:?}"));
        let is_probe = self.models[webhook].begins();
        self.require(is_probe == attempt.is_probe, || {
            format!("{attempt:?}, but it should be a probe: {is_probe}")
        });
        let now = self.now;
        let response = if self.scenario.is_restless && self.drawn.u32(..100) == 0 {
            None
        } else if now >= self.scenario.heals_at {
            Some(Behaviour::quick().answer(&mut self.drawn, now))
        } else {
            Some(self.scenario.subscribers[webhook].behaviour.answer(&mut self.drawn, now))
        };
        self.usages[queue].add(class, self.scenario.subscribers[webhook].group, webhook);
        self.peak = self.peak.max(self.usages[queue].used);
        self.made.push(MadeAttempt { began: now, due });
        let number = self.began;
        self.began += 1;
        let took = response.map_or(ms(1), |response| response.took);
        self.schedule(now + took, Step::Ends(number));
        if took > SLOW {
            self.schedule(now + LATE, Step::IsLate(number));
        }
        self.early.push_back(number);
        let (began, began_as) = (now, class);
        let request = RequestInFlight {
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
        self.in_flight.insert(number, request);
    }

    /// Counts requests that have taken over a second as slow.
    fn note_late(&mut self) {
        while let Some(number) = self.early.front().copied() {
            if let Some(request) = self.in_flight.get_mut(&number) {
                if self.now < request.began + LATE {
                    break;
                }
                let RequestInFlight { queue, webhook, began, .. } = *request;
                let was = std::mem::replace(&mut request.class, Class::Slow);
                let group = self.scenario.subscribers[webhook].group;
                self.usages[queue].remove(was, group, webhook);
                self.usages[queue].add(Class::Slow, group, webhook);
                self.models[webhook].is_late(began + SLOW);
            }
            self.early.pop_front();
        }
    }

    fn end(&mut self, number: u64) {
        let request = self.in_flight.remove(&number).expect("it is in flight");
        let RequestInFlight { attempt, delivery, queue, webhook, began, class, is_probe, .. } =
            request;
        let of_webhook = |usage: &Usage| usage.webhooks[webhook];
        let in_flight: usize = self.usages.iter().map(of_webhook).sum();
        self.usages[queue].remove(class, self.scenario.subscribers[webhook].group, webhook);
        if let Some(Response { failure, .. }) = request.response {
            self.conclude(delivery, failure);
            let event = self.deliveries[delivery].event;
            let how = (began, is_probe, in_flight);
            let expected = self.models[webhook].ends(how, (event, failure), self.bounds, self.now);
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
                    self.models[webhook].opens(self.now + pause);
                    (least..=most).contains(&pause)
                }
                _ => false,
            };
            self.require(is_right, || {
                format!("webhook {webhook}: {transition:?}, but {expected:?}")
            });
        } else {
            self.models[webhook].is_given_back(is_probe);
            self.pace.give_back(attempt);
            self.try_again_after(delivery, ms(1_000));
        }
        self.release_delivery(delivery);
        self.call();
        let fewer = (class != Class::Prompt).then_some(queue);
        self.offer(Change { webhook, ended: Some(queue), fewer });
    }

    fn conclude(&mut self, delivery: usize, failure: Option<Failure>) {
        let Delivery { webhook, event, ref mut failed, .. } = self.deliveries[delivery];
        if failure.is_none() {
            let (arrived, at) = (self.scenario.arrivals[event].at, self.now);
            self.delivered.push(Success { webhook, arrived, at });
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
            let is_first = |line: &VecDeque<WaitingDelivery>| {
                line.front().is_some_and(|first| first.ticket == ticket)
            };
            let queue = self.waiting.iter().position(is_first);
            self.require(queue.is_some(), || format!("{ticket:?} was called out of order"));
            let queue = queue.expect("it waits");
            let WaitingDelivery { delivery, is_head, .. } =
                self.waiting[queue].pop_front().expect("it waits");
            self.check_first(queue);
            self.first_since[queue] = self.now;
            let webhook = self.deliveries[delivery].webhook;
            let obstacles = self.obstacles(queue, webhook);
            let is_right = match called {
                Ok(_) => obstacles.begins(),
                Err(hold) => obstacles.is_refused_for(hold),
            };
            self.require(is_right, || {
                format!("called webhook {webhook} by queue {queue}: {called:?}, but {obstacles:?}")
            });
            if is_head {
                self.backlogs[queue][webhook].waits = false;
            }
            match called {
                Ok(attempt) => {
                    if is_head {
                        self.leave_backlog(queue, webhook);
                        // The new head hasn't asked yet.
                        self.backlogs[queue][webhook].hold = Hold::Full;
                    }
                    self.begin(delivery, attempt);
                }
                Err(hold) => {
                    self.refused_when_called += 1;
                    if is_head {
                        self.note_hold(queue, webhook, hold);
                    } else {
                        self.enter_backlog(delivery, hold);
                    }
                }
            }
        }
    }

    fn stop_waiting(&mut self, delivery: usize) {
        let Delivery { queue, webhook, .. } = self.deliveries[delivery];
        let has = |waiting: &WaitingDelivery| waiting.delivery == delivery;
        let Some(at) = self.waiting[queue].iter().position(has) else { return };
        let WaitingDelivery { ticket, is_head, .. } =
            self.waiting[queue].remove(at).expect("it waits");
        let left = self.pace.stop_waiting(ticket);
        let again = self.pace.stop_waiting(ticket);
        self.require(left && !again, || format!("{ticket:?} left: {left}, left twice: {again}"));
        if at == 0 {
            self.first_since[queue] = self.now;
        }
        if is_head {
            self.backlogs[queue][webhook].waits = false;
        } else {
            self.enter_backlog(delivery, Hold::Full);
        }
        self.offer(Change { webhook, ended: None, fewer: None });
    }
}

mod tests;
