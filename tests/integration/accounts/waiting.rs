//! A webhook's account changes while a delivery to it waits for a free place.

use super::*;
use crate::harness::{Notifier, Proxy};

/// A retry of an event of account `a` waits for a place, which `/slow` occupies.
struct Scene {
    sandbox: Sandbox,
    receiver: Receiver,
    id: Uuid,
    released: Arc<AtomicBool>,
    database: Proxy,
    notifier: Notifier,
}

impl Scene {
    #[track_caller]
    fn begin(prepare: &str) -> Self {
        let sandbox = Sandbox::new();
        let released = Arc::new(AtomicBool::new(false));
        let (may_end, fails_no_more) = (Arc::clone(&released), AtomicBool::new(false));
        let receiver = Receiver::answering(move |request| {
            if request.path == "/slow" {
                wait_until(LATER, "it is released", || may_end.load(Ordering::Relaxed));
            } else if !fails_no_more.swap(true, Ordering::Relaxed) {
                return Reply::Status(500);
            }
            Reply::Status(200)
        });
        let id = webhook(&sandbox, &receiver.url("/a"), &["order.paid"], Some("a"));
        sandbox.webhook(&receiver.url("/slow"), &["slow"]);
        sandbox.database.run_script(prepare);
        let database = Proxy::before(sandbox.database.url());
        let notifier = sandbox
            .notifier()
            .env("DATABASE_URL", database.url(sandbox.database.url()))
            .env("QUEUES", sandbox.one_at_a_time())
            .env("RETRY_SCHEDULE", "500ms,repeat")
            .env("CIRCUIT_BREAKER", "off")
            .start();
        if prepare.is_empty() {
            notifier.wait_listening();
        }
        sandbox.publish(&of(Event::new("order.paid"), text("a")));
        receiver.wait_at("/a", 1);
        // Now the whole capacity is in use, and the retry has to wait.
        sandbox.publish(&Event::new("slow"));
        receiver.wait_at("/slow", 1);
        let retries = sandbox.retry_queue();
        notifier.wait_metric("webhook_events_received_total", &[("queue", &retries)], 1.0);
        Self { sandbox, receiver, id, released, database, notifier }
    }

    fn change_account(&self) {
        set_account(&self.sandbox, self.id, Some("b"));
        let committed = Instant::now();
        // A change takes effect within a tenth of a second.
        wait_until(SOON, "the time is over", || committed.elapsed() > Duration::from_millis(500));
    }

    fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    #[track_caller]
    fn is_dead(&self) {
        let dead = [("reason", "other_account")];
        self.notifier.wait_metric("webhook_dead_letters_total", &dead, 1.0);
        assert_eq!(self.receiver.at("/a").len(), 1);
    }

    #[track_caller]
    fn place_is_free_again(self) {
        set_account(&self.sandbox, self.id, None);
        wait_until(SOON, "all is as it was", || {
            self.sandbox.publish(&Event::new("order.paid"));
            self.receiver.at("/a").len() > 1
        });
        self.notifier.terminate();
    }
}

#[test]
fn a_delivery_that_waited_for_capacity_obeys_the_present_account_of_its_webhook() {
    let scene = Scene::begin("");
    scene.change_account();
    scene.release();
    scene.is_dead();
    scene.place_is_free_again();
}

#[test]
fn without_notifications_a_delivery_that_waited_for_capacity_reads_the_account_again() {
    let scene = Scene::begin("DROP TRIGGER webhooks_updated ON webhooks");
    scene.change_account();
    scene.release();
    scene.is_dead();
    scene.place_is_free_again();
}

#[test]
fn a_delivery_whose_webhook_has_changed_is_not_sent_while_postgresql_is_away() {
    let scene = Scene::begin("");
    scene.change_account();
    scene.database.refuse();
    scene.release();
    // It is parked; or dead, if the directory has read the change before PostgreSQL went away.
    let (held, dead) = ([("reason", "interrupted")], [("reason", "other_account")]);
    wait_until(LATER, "it is parked or dead", || {
        let parked = scene.notifier.metric("webhook_deliveries_held_total", &held);
        parked + scene.notifier.metric("webhook_dead_letters_total", &dead) == 1.0
    });
    // Nor once PostgreSQL is back, before the first query.
    scene.database.thaw();
    scene.sandbox.publish(&Event::new("slow"));
    scene.receiver.wait_at_within(LATER, "/slow", 2);
    assert_eq!(scene.receiver.at("/a").len(), 1);
    scene.notifier.terminate();
}
