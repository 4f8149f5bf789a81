//! Where every promised delivery ended: a pure function of a [`History`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::{
    cast::Webhook,
    history::{History, Moment, Published, Strike},
};

/// How many delivery examples are listed if something is wrong.
const EXAMPLES: usize = 10;

/// Requests within this time of each other may have been in flight together, and overtake each other:
/// on a busy machine threads wait for the CPU, and if the first packet of a connection is dropped, TCP sends
/// it again after a second (RFC 6298). It is far shorter than the minute that a delivery without a backlog
/// waits.
const TOGETHER: Duration = Duration::from_millis(1_500);

/// One delivery in this many may be out of order.
const ORDERED_PER_OVERTAKEN: usize = 1_000;

/// The result of a run.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) promised: usize,
    pub(super) unconfirmed: usize,
    /// How many requests the receivers got.
    pub(super) requests: usize,
    /// How many deliveries may have been deleted with their queue.
    pub(super) deleted: usize,
    /// How many requests arrived while their webhook was paused.
    pub(super) while_paused: usize,
    pub(super) rows: BTreeMap<Webhook, Row>,
    /// The most repeats that all faults together may cause.
    pub(super) bound: usize,
    /// When each event first reached any receiver.
    first_came: HashMap<usize, Moment>,
    /// Some of what is lost or unexplained, as text.
    pub(super) examples: Vec<String>,
}

/// The deliveries to one webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Deliveries of promised events. Each is counted in one of the next four.
    pub(super) promised: usize,
    pub(super) delivered: usize,
    /// Dead letters that were never delivered.
    pub(super) dead: usize,
    /// Dropped with their webhook.
    pub(super) dropped: usize,
    pub(super) lost: usize,
    /// Accepted again, or dead although accepted; including events that weren't promised.
    pub(super) repeats: usize,
    /// The repeats that no fault explains.
    pub(super) unexplained: usize,
    /// Accepted or dead although the webhook doesn't want such an event.
    pub(super) unwanted: usize,
    /// First requests whose order counts: none to a webhook that keeps no order, and none for events that
    /// were on their way when a fault struck that disturbs the order.
    pub(super) ordered: usize,
    /// Those of them that arrived after the first request for a later event of the same queue.
    pub(super) overtaken: usize,
}

/// How one delivery ended.
#[derive(Clone, Debug, Default)]
struct Ends {
    /// When its requests arrived.
    requests: Vec<Moment>,
    /// When it was accepted.
    accepted: Vec<Moment>,
    dead: usize,
}

impl Ledger {
    pub(super) fn of(history: &History) -> Self {
        let mut ends: HashMap<(usize, Webhook), Ends> = HashMap::new();
        for request in &history.requests {
            let ends = ends.entry((request.number, request.webhook)).or_default();
            ends.requests.push(request.at);
            if request.accepted {
                ends.accepted.push(request.at);
            }
        }
        for dead in &history.dead {
            ends.entry((dead.number, dead.webhook)).or_default().dead += 1;
        }
        let promised = history.events.iter().filter(|event| event.promised).count();
        let mut first_came = HashMap::new();
        for request in &history.requests {
            first_came.entry(request.number).or_insert(request.at);
        }
        let mut ledger = Self {
            promised,
            first_came,
            unconfirmed: history.events.len() - promised,
            requests: history.requests.len(),
            while_paused: while_paused(history),
            deleted: history.deleted,
            bound: history.strikes.iter().map(|strike| strike.bound(&history.requests)).sum(),
            ..Self::default()
        };
        for (number, event) in history.events.iter().enumerate() {
            for webhook in Webhook::ALL {
                let ends = ends.remove(&(number, webhook)).unwrap_or_default();
                let wanted = webhook.wants(event.kind);
                ledger.enter(history, number, webhook, &ends, wanted.then_some(event.promised));
            }
        }
        ledger.enter_order(history);
        // Deliveries of events that were never published.
        for ((number, webhook), ends) in ends {
            ledger.enter(history, number, webhook, &ends, None);
        }
        ledger
    }

    /// `promised` is `None` if there should be no such delivery.
    fn enter(
        &mut self,
        history: &History,
        number: usize,
        webhook: Webhook,
        ends: &Ends,
        promised: Option<bool>,
    ) {
        let row = self.rows.entry(webhook).or_default();
        let mut examples = Vec::new();
        if promised == Some(true) {
            row.promised += 1;
            match (ends.accepted.is_empty(), ends.dead) {
                (false, _) => row.delivered += 1,
                (true, 1..) => row.dead += 1,
                (true, 0) if history.departures.iter().any(|gone| gone.drops(number, webhook)) => {
                    row.dropped += 1;
                }
                (true, 0) => {
                    row.lost += 1;
                    examples.push("is lost".to_owned());
                }
            }
        }
        if promised.is_none() && (ends.dead > 0 || !ends.accepted.is_empty()) {
            row.unwanted += 1;
            examples.push("is not wanted there".to_owned());
        }
        if let [_, again @ ..] = ends.accepted.as_slice() {
            let first_came = self.first_came.get(&number).copied().unwrap_or_default();
            // It isn't known when it became a dead letter: this counts as after everything else.
            let died = (ends.dead > 0).then_some(Moment::MAX);
            for again in again.iter().copied().chain(died) {
                row.repeats += 1;
                if !history.explains(webhook, first_came, &ends.requests, again) {
                    row.unexplained += 1;
                    examples
                        .push(format!("was repeated without a cause at {again:.3?}: {ends:.3?}"));
                }
            }
        }
        for example in examples {
            self.add_example(number, webhook, &example);
        }
    }

    /// Counts the first requests that were overtaken: never by a request that may have been in flight at
    /// the same time.
    fn enter_order(&mut self, history: &History) {
        struct Lane {
            /// When requests arrived and for which events, in the order of their arrival.
            came: Vec<(Moment, usize)>,
            /// How many of these arrived too long ago to be still in flight.
            ended: usize,
            /// The highest number among the ended ones.
            highest: Option<usize>,
        }
        let mut seen = HashSet::new();
        let mut lanes: HashMap<(Webhook, usize), Lane> = HashMap::new();
        for request in &history.requests {
            let (number, webhook, at) = (request.number, request.webhook, request.at);
            let Some(event) = history.events.get(number) else { continue };
            if !webhook.keeps_order() || !seen.insert((number, webhook)) {
                continue;
            }
            let lane = lanes.entry((webhook, event.queue)).or_insert(Lane {
                came: Vec::new(),
                ended: 0,
                highest: None,
            });
            while let Some((before, number)) = lane.came.get(lane.ended)
                && *before + TOGETHER <= at
            {
                lane.highest = lane.highest.max(Some(*number));
                lane.ended += 1;
            }
            lane.came.push((at, number));
            if is_disturbed(history, event, at) {
                continue;
            }
            let row = self.rows.entry(webhook).or_default();
            row.ordered += 1;
            if let Some(later) = lane.highest.filter(|highest| *highest > number) {
                row.overtaken += 1;
                let published = event.at;
                let example = format!("of {published:.3?} came at {at:.3?}, after event {later}");
                self.add_example(number, webhook, &example);
            }
        }
    }

    fn add_example(&mut self, number: usize, webhook: Webhook, example: &str) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("event {number} at {}: {example}", webhook.name()));
        }
    }

    /// The sum over all webhooks.
    pub(super) fn total(&self, of: impl Fn(&Row) -> usize) -> usize {
        self.rows.values().map(of).sum()
    }

    /// The repeats at receivers that never fail which no fault explains: another receiver's failure must
    /// have caused them.
    pub(super) fn because_of_a_neighbour(&self) -> usize {
        let healthy = self.rows.iter().filter(|(webhook, _)| webhook.is_healthy());
        healthy.map(|(_, row)| row.unexplained).sum()
    }

    /// The dead letters whose receiver would have accepted them sooner or later.
    pub(super) fn given_up(&self) -> usize {
        let others = self.rows.iter().filter(|(webhook, _)| !webhook.may_be_given_up());
        others.map(|(_, row)| row.dead).sum()
    }

    /// What is wrong, one line each; empty for a good run.
    pub(super) fn problems(&self) -> Vec<String> {
        let repeats = self.total(|row| row.repeats);
        let mut problems = Vec::new();
        let mut must_be_zero = |count: usize, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        let lost = self.total(|row| row.lost).saturating_sub(self.deleted);
        must_be_zero(lost, "promised deliveries are lost, and were not deleted with their queue");
        must_be_zero(self.given_up(), "deliveries are dead that should have been made");
        must_be_zero(self.total(|row| row.unexplained), "repeats are not explained by a fault");
        must_be_zero(self.total(|row| row.unwanted), "deliveries were not wanted");
        must_be_zero(self.while_paused, "requests came while their webhook was paused");
        if repeats > self.bound {
            problems
                .push(format!("{repeats} repeats: the faults can cause at most {}", self.bound));
        }
        let (ordered, overtaken) = (self.total(|row| row.ordered), self.total(|row| row.overtaken));
        if overtaken * ORDERED_PER_OVERTAKEN > ordered {
            problems.push(format!("{overtaken} of {ordered} deliveries came out of order"));
        }
        problems
    }
}

fn while_paused(history: &History) -> usize {
    let of_paused = history.requests.iter().filter(|request| request.webhook == Webhook::Paused);
    let in_a_pause = |at: Moment| history.pauses.iter().any(|p| (p.from..p.to).contains(&at));
    of_paused.filter(|request| in_a_pause(request.at)).count()
}

/// Whether a fault that may change the order was in effect between an event's publishing and its
/// arrival.
fn is_disturbed(history: &History, event: &Published, came: Moment) -> bool {
    let disturbing = |strike: &&Strike| strike.fault.disturbs_order();
    let mut strikes = history.strikes.iter().filter(disturbing);
    strikes.any(|strike| strike.began <= came && event.at <= strike.recovered)
}
