//! A receiver that can change its behaviour, and records which events it got in which order.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Event, LATER, Receiver, Reply, wait_until};

/// What it does with a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    /// Answers 200 after this time.
    Takes(Duration),
    /// Answers 200 once it has another manner.
    Holds,
    /// Answers with another status, at once.
    Refuses(u16),
}

impl Manner {
    pub(super) const AT_ONCE: Self = Self::Takes(Duration::ZERO);

    pub(super) fn takes(millis: u64) -> Self {
        Self::Takes(Duration::from_millis(millis))
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) id: String,
    /// When it was answered with 200; `None`: it is in flight, or was refused.
    pub(super) accepted_at: Option<Instant>,
}

#[derive(Debug)]
struct Book {
    manner: Manner,
    arrivals: Vec<Arrival>,
    in_flight: usize,
    most: usize,
}

pub(super) struct Customer {
    pub(super) receiver: Receiver,
    book: Arc<Mutex<Book>>,
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().expect("no holder panics")
}

impl Customer {
    pub(super) fn new(manner: Manner) -> Self {
        let book = Book { manner, arrivals: Vec::new(), in_flight: 0, most: 0 };
        let book = Arc::new(Mutex::new(book));
        let answering = Arc::clone(&book);
        let receiver = Receiver::answering(move |request| {
            let (manner, number) = {
                let mut book = lock(&answering);
                let arrival = Arrival { id: request.id().to_owned(), accepted_at: None };
                book.arrivals.push(arrival);
                book.in_flight += 1;
                book.most = book.most.max(book.in_flight);
                (book.manner, book.arrivals.len() - 1)
            };
            match manner {
                Manner::Takes(time) => thread::sleep(time),
                Manner::Holds => wait_until(LATER, "it answers", || {
                    !matches!(lock(&answering).manner, Manner::Holds)
                }),
                Manner::Refuses(_) => {}
            }
            let mut book = lock(&answering);
            book.in_flight -= 1;
            match manner {
                Manner::Takes(_) | Manner::Holds => {
                    book.arrivals[number].accepted_at = Some(Instant::now());
                    Reply::Status(200)
                }
                Manner::Refuses(status) => Reply::Status(status),
            }
        });
        Self { receiver, book }
    }

    pub(super) fn url(&self) -> String {
        self.receiver.url("/")
    }

    /// Sets what it does with requests from now on.
    pub(super) fn becomes(&self, manner: Manner) {
        lock(&self.book).manner = manner;
    }

    pub(super) fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.book).arrivals.clone()
    }

    pub(super) fn requests(&self) -> usize {
        lock(&self.book).arrivals.len()
    }

    pub(super) fn accepted(&self) -> usize {
        self.arrivals().iter().filter(|arrival| arrival.accepted_at.is_some()).count()
    }

    /// How many of these it has accepted, at least once.
    pub(super) fn accepted_of(&self, events: &[Event]) -> usize {
        let accepted = self.times_accepted();
        events.iter().filter(|event| accepted.contains_key(&event.id)).count()
    }

    /// The most requests in flight at a time so far.
    pub(super) fn most(&self) -> usize {
        lock(&self.book).most
    }

    /// Restarts that maximum with the requests that are in flight.
    pub(super) fn forget_most(&self) {
        let mut book = lock(&self.book);
        book.most = book.in_flight;
    }

    /// How often it has accepted each event.
    fn times_accepted(&self) -> HashMap<String, usize> {
        let mut times = HashMap::new();
        for arrival in self.arrivals() {
            if arrival.accepted_at.is_some() {
                *times.entry(arrival.id).or_default() += 1;
            }
        }
        times
    }

    #[track_caller]
    pub(super) fn wait_accepted(&self, limit: Duration, events: &[Event]) {
        let what = format!("all {} are accepted", events.len());
        let mut last = 0;
        let deadline = Instant::now() + limit;
        wait_until(limit, &what, || {
            last = self.accepted_of(events);
            let is_late = Instant::now() + Duration::from_millis(100) > deadline;
            assert!(
                last == events.len() || !is_late,
                "{last} of {} within {limit:?}",
                events.len()
            );
            last == events.len()
        });
    }

    /// How often it has accepted one of these again. Each must have been accepted.
    #[track_caller]
    pub(super) fn repeats(&self, events: &[Event]) -> usize {
        let accepted = self.times_accepted();
        let times = events.iter().map(|event| accepted.get(&event.id).copied().unwrap_or(0));
        let times: Vec<usize> = times.collect();
        let lost = times.iter().filter(|times| **times == 0).count();
        assert_eq!(lost, 0, "this many of {} events are lost", events.len());
        times.iter().sum::<usize>() - events.len()
    }

    #[track_caller]
    pub(super) fn assert_each_once(&self, events: &[Event]) {
        assert_eq!(self.repeats(events), 0, "accepted again");
    }

    /// Checks that those of these events that it accepted at their first request were sent in this
    /// order. A lane's consumers work in parallel: whenever an event is accepted, fewer than `at_once`
    /// earlier ones may still be in flight. These may take any time: on a busy machine one event may be
    /// overtaken by many others.
    #[track_caller]
    pub(super) fn assert_in_order(&self, events: &[Event], at_once: usize) {
        let numbers: HashMap<&str, usize> =
            events.iter().enumerate().map(|(n, event)| (event.id.as_str(), n)).collect();
        let mut seen = HashSet::new();
        let mut order: Vec<usize> = Vec::new();
        for arrival in self.arrivals() {
            let number = numbers.get(arrival.id.as_str()).copied();
            if seen.insert(arrival.id.clone())
                && arrival.accepted_at.is_some()
                && let Some(number) = number
            {
                order.push(number);
            }
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        let mut accepted: Vec<usize> = Vec::new();
        for number in &order {
            let before = sorted.binary_search(number).expect("it is among them");
            let place = accepted.partition_point(|other| other < number);
            accepted.insert(place, *number);
            let missing = before - place;
            assert!(
                missing < at_once,
                "{number} arrived before {missing} of the others: {order:?}"
            );
        }
    }
}
