//! The customers' servers: an HTTP server for each host, with a path for each webhook, which answers
//! according to the [`Cast`] and records the requests.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::{
    bound::QUEUES,
    cast::{Cast, Webhook, accepts},
    history::Request,
};
use crate::harness::{Receiver, Reply, receiver};

pub(super) struct Receivers {
    /// By host.
    receivers: BTreeMap<&'static str, Receiver>,
    seen: Arc<Seen>,
}

struct Seen {
    cast: Cast,
    began: Instant,
    requests: Mutex<Vec<Request>>,
    /// Those that answer 503 now.
    away: Mutex<HashSet<Webhook>>,
    /// By queue, one more than the highest number that a healthy receiver accepted.
    newest: [AtomicUsize; QUEUES],
    /// The number of requests to none of our paths or for none of our events.
    strays: AtomicUsize,
}

impl Receivers {
    pub(super) fn start(cast: Cast, began: Instant) -> Self {
        let seen = Arc::new(Seen {
            cast,
            began,
            requests: Mutex::default(),
            away: Mutex::default(),
            newest: Default::default(),
            strays: AtomicUsize::default(),
        });
        let mut receivers = BTreeMap::new();
        for webhook in Webhook::ALL {
            receivers.entry(webhook.host()).or_insert_with(|| {
                let answering = Arc::clone(&seen);
                Receiver::forgetful(move |request| answering.answer(request))
            });
        }
        Self { receivers, seen }
    }

    /// The webhook's URL.
    pub(super) fn url(&self, webhook: Webhook) -> String {
        let receiver = &self.receivers[webhook.host()];
        match webhook {
            Webhook::Dead => receiver.refusing_url(),
            _ => receiver.url(&format!("/{}", webhook.name())),
        }
    }

    /// All requests so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().expect("no holder panics").clone()
    }

    /// The requests after the first `count`.
    pub(super) fn requests_since(&self, count: usize) -> Vec<Request> {
        self.seen.requests.lock().expect("no holder panics")[count..].to_vec()
    }

    /// Whether an event with at least that number has arrived from each queue.
    pub(super) fn have_reached(&self, number: usize) -> bool {
        self.seen.newest.iter().all(|newest| newest.load(Ordering::SeqCst) > number)
    }

    /// Makes a receiver answer 503 until it [comes back](Self::come_back).
    pub(super) fn go_away(&self, webhook: Webhook) {
        self.seen.away.lock().expect("no holder panics").insert(webhook);
    }

    pub(super) fn come_back(&self, webhook: Webhook) {
        self.seen.away.lock().expect("no holder panics").remove(&webhook);
    }

    pub(super) fn strays(&self) -> usize {
        self.seen.strays.load(Ordering::SeqCst)
    }
}

impl Seen {
    fn answer(&self, request: &receiver::Request) -> Reply {
        let path = request.path.trim_start_matches('/');
        let webhook = Webhook::ALL.into_iter().find(|webhook| webhook.name() == path);
        let (Some(webhook), Some(number)) = (webhook, self.cast.number(request.id())) else {
            self.strays.fetch_add(1, Ordering::SeqCst);
            return Reply::Status(404);
        };
        let is_away = self.away.lock().expect("no holder panics").contains(&webhook);
        let reply = match is_away {
            true => Reply::Status(503),
            false => self.cast.reply(webhook, number, request.attempt),
        };
        let accepted = accepts(&reply);
        let at = request.at.duration_since(self.began);
        let seen = Request { number, webhook, at, accepted };
        self.requests.lock().expect("no holder panics").push(seen);
        if webhook == Webhook::HealthyA {
            let newest = &self.newest[self.cast.queue(number, QUEUES)];
            newest.fetch_max(number + 1, Ordering::SeqCst);
        }
        reply
    }
}
