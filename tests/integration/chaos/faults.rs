//! Carries out a plan's steps: causes a fault, waits, repairs it, and waits until everything works again.

use std::{thread, time::Duration};

use uuid::Uuid;

use super::{
    bound::{CAPACITY, MOVED_UNNOTED, PREFETCH_COUNT, QUEUES, RETRY_SCHEDULE},
    cast::Webhook,
    ground::Pair,
    history::{Departure, Moment, Pause, Strike},
    plan::{Fault, Step},
    stage::Stage,
};
use crate::harness::{
    Event, SOON,
    servers::{End, Server},
};

/// How soon after the repair every notifier must be ready.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// How much later the first new event may arrive.
const FLOW_LIMIT: Duration = Duration::from_secs(30);

/// How long a cut waits for a message to interrupt, and the pause between two cuts.
const CUT_PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN_CUTS: Duration = Duration::from_millis(200);

/// The time until every notifier knows of a change to the table: each is notified at once, or reads it every
/// second.
const HEARD: Duration = Duration::from_millis(1_500);

/// How many deliveries another notifier leaves: more than RabbitMQ takes out of a wait queue at a time.
const STRANGERS: usize = 40;

/// When a fault struck, and when it was repaired.
pub(super) type Span = (Moment, Moment);

impl Stage {
    /// Waits for the quiet time before the fault, causes it, and waits for the recovery.
    pub(super) fn strike(&mut self, step: &Step) {
        if step.fault == Fault::WebhookPaused && !self.can_pause {
            eprintln!("no webhook is paused: the table has no column `paused_at`");
            return;
        }
        thread::sleep(step.peace);
        let began = self.now();
        let (struck, repaired) = match step.fault {
            Fault::NotifierKilled => self.replace(|stage| stage.kill(step.victim)),
            Fault::NotifierTerminated => self.replace(|stage| stage.terminate(step.victim)),
            Fault::ThreeNotifiers => self.join_and_end(step),
            Fault::BrokerKilled => self.restart(Server::Broker, End::Kill, step.broken),
            Fault::BrokerStopped => self.restart(Server::Broker, End::Stop, step.broken),
            Fault::PostgresKilled => self.restart(Server::Postgres, End::Kill, step.broken),
            Fault::BrokerFrozen | Fault::PostgresFrozen => self.freeze(step),
            Fault::MemoryAlarm => self.alarm(|_| thread::sleep(step.broken)),
            Fault::KilledInAlarm => self.alarm(|stage| {
                // During this time, it can't park failed deliveries.
                thread::sleep(step.broken);
                stage.kill(step.victim);
                stage.launch();
            }),
            Fault::Cut => self.cut(step.cuts),
            Fault::ReceiverAway => self.be_away(step.broken),
            Fault::WebhookPaused => self.pause(step.broken),
            Fault::WebhookDeleted => self.delete(step.broken),
            Fault::QueueRefuses => self.refuse(step),
            Fault::QueueDeleted => self.delete_queue(step.target),
            Fault::ExchangeDeleted => self.delete_exchange(step.target),
            Fault::StrangersLeft => self.leave_strangers(),
            Fault::NodeKilled
            | Fault::NodeStopped
            | Fault::NodeFrozen
            | Fault::NodeIsolated
            | Fault::RollingRestart
            | Fault::PrimaryKilled => self.strike_cluster(step),
        };
        let recovered = self.recover(step.fault, repaired);
        self.ground.close_frozen();
        self.strikes.push(Strike {
            fault: step.fault,
            cuts: step.cuts,
            notifiers: if step.fault == Fault::ThreeNotifiers { 3 } else { self.fleet.len() },
            began,
            struck,
            repaired,
            recovered,
        });
        eprintln!(
            "{:8.1} s  {:29} repaired after {:4.1} s, recovered after another {:4.1} s",
            struck.as_secs_f64(),
            step.fault.name(),
            (repaired - struck).as_secs_f64(),
            (recovered - repaired).as_secs_f64()
        );
    }

    /// Waits until every notifier is ready, and an event published after the repair has arrived from each
    /// queue: while no process has noticed the fault, readiness alone proves nothing. Returns when that was.
    fn recover(&mut self, fault: Fault, repaired: Moment) -> Moment {
        let first = self.producer.next_number();
        if !self.await_ready(READY_LIMIT) {
            let problem = format!("not ready within {READY_LIMIT:?}: {}", fault.name());
            self.problems.push(problem);
            self.await_ready(SOON);
        }
        let flows = |stage: &Self| {
            stage.receivers.have_reached(first) && stage.fleet.iter().all(|one| one.is_ready())
        };
        if !self.await_that(FLOW_LIMIT, flows) {
            let since = self.now() - repaired;
            self.problems.push(format!("no new event for {since:.1?} after: {}", fault.name()));
        }
        self.now()
    }

    fn replace(&mut self, end: impl FnOnce(&mut Self)) -> Span {
        let struck = self.now();
        end(self);
        let repaired = self.now();
        self.launch();
        (struck, repaired)
    }

    fn join_and_end(&mut self, step: &Step) -> Span {
        for _ in 0..2 {
            self.launch();
            if !self.await_ready(READY_LIMIT) {
                let problem = format!("one more notifier was not ready within {READY_LIMIT:?}");
                self.problems.push(problem);
            }
        }
        thread::sleep(step.broken);
        let struck = self.now();
        for kills in [step.kills, !step.kills] {
            if kills {
                self.kill(step.victim);
            } else {
                self.terminate(step.victim);
            }
        }
        (struck, self.now())
    }

    fn restart(&mut self, server: Server, end: End, broken: Duration) -> Span {
        let struck = self.now();
        let servers = &self.ground.pair().servers;
        servers.end(server, end);
        thread::sleep(broken);
        servers.start(server);
        (struck, self.now())
    }

    fn freeze(&mut self, step: &Step) -> Span {
        let Pair { to_broker, to_postgres, .. } = self.ground.pair();
        let proxy = match step.fault {
            Fault::BrokerFrozen => to_broker,
            _ => to_postgres,
        };
        let struck = self.now();
        proxy.freeze();
        thread::sleep(step.broken);
        proxy.thaw();
        (struck, self.now())
    }

    fn alarm(&mut self, meanwhile: impl FnOnce(&mut Self)) -> Span {
        let struck = self.now();
        self.ground.pair().servers.set_memory_watermark(0.000_001);
        meanwhile(self);
        self.ground.pair().servers.set_memory_watermark(0.6);
        (struck, self.now())
    }

    fn be_away(&mut self, broken: Duration) -> Span {
        let struck = self.now();
        self.receivers.go_away(Webhook::Away);
        thread::sleep(broken);
        self.receivers.come_back(Webhook::Away);
        (struck, self.now())
    }

    fn pause(&mut self, broken: Duration) -> Span {
        let struck = self.now();
        self.set_paused(Webhook::Paused, true);
        thread::sleep(HEARD);
        let from = self.now();
        thread::sleep(broken);
        self.pauses.push(Pause { from, to: self.now() });
        self.set_paused(Webhook::Paused, false);
        (struck, self.now())
    }

    /// Deletes the webhook, whose waiting deliveries are dropped, and registers it again.
    fn delete(&mut self, broken: Duration) -> Span {
        let webhook = Webhook::Leaving;
        let from = self.first_unaccepted(webhook);
        let struck = self.now();
        self.receivers.go_away(webhook);
        thread::sleep(broken);
        self.unregister(webhook);
        self.receivers.come_back(webhook);
        self.register(webhook);
        thread::sleep(HEARD);
        self.departures.push(Departure { webhook, from, to: self.producer.next_number() });
        (struck, self.now())
    }

    fn refuse(&mut self, step: &Step) -> Span {
        let origins = self.queues().join("|");
        let queues = match step.target % 3 {
            0 => format!("^({origins})[.]dead$"),
            1 => format!("^webhooks[.]wait[.]{}$", RETRY_SCHEDULE[0]),
            _ => format!("^webhooks[.]backlog[.]({origins})[.]"),
        };
        let struck = self.now();
        let policy = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
        let servers = &self.ground.pair().servers;
        servers.set_policy("/", "chaos", &queues, policy);
        thread::sleep(step.broken);
        servers.clear_policy("/", "chaos");
        (struck, self.now())
    }

    /// Deletes a queue with its messages, and perhaps those that RabbitMQ or a notifier had in hand.
    fn delete_queue(&mut self, target: usize) -> Span {
        let origin = self.queues()[target % QUEUES].clone();
        let (queue, in_hand) = match target % 3 {
            0 => (format!("webhooks.wait.{}", RETRY_SCHEDULE[0]), MOVED_UNNOTED),
            1 => (format!("{origin}.retry"), self.fleet.len() * CAPACITY * PREFETCH_COUNT),
            _ => (format!("{origin}.dead"), 0),
        };
        // Dead letters that were recorded before don't count as deleted with the queue.
        self.collect_dead();
        let struck = self.now();
        let deleted = self.broker().delete(&queue).expect("it is there");
        self.deleted += deleted as usize + in_hand;
        (struck, self.now())
    }

    fn delete_exchange(&mut self, target: usize) -> Span {
        let exchanges = ["webhooks.retry", "webhooks.wait", "webhooks.backlog"];
        let struck = self.now();
        self.broker().delete_exchange(exchanges[target % exchanges.len()]);
        (struck, self.now())
    }

    fn leave_strangers(&mut self) -> Span {
        let struck = self.now();
        let queue = format!("{}_left", self.queues()[0]);
        let parked = |_| Event::new("stranger").parked(&queue, Uuid::new_v4());
        let strangers: Vec<Event> = (0..STRANGERS).map(parked).collect();
        let key = format!("{}.{queue}", RETRY_SCHEDULE[0]);
        self.broker().publish_to("webhooks.wait", &key, &strangers);
        self.strangers.extend(strangers.into_iter().map(|event| event.id));
        (struck, self.now())
    }

    fn cut(&mut self, cuts: u32) -> Span {
        let struck = self.now();
        for _ in 0..cuts {
            self.ground.pair().to_broker.cut_in_a_message(CUT_PATIENCE);
            thread::sleep(BETWEEN_CUTS);
        }
        (struck, self.now())
    }
}
