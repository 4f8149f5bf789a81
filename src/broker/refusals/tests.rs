use super::*;
use crate::broker::Message;
use crate::broker::outgoing::Outgoing;
use crate::broker::publisher::Slip;
use crossbeam_channel::bounded;

fn span(text: &str) -> Span {
    text.parse().expect("a span")
}

fn delays() -> Vec<Span> {
    ["1s", "4s", "1m", "5m"].map(span).into()
}

/// A publication of that age, and the slip that keeps it wanted.
fn publication(message: Outgoing, ago: Duration) -> (Publication, Arc<Slip>) {
    let slip: Arc<Slip> = Arc::default();
    let now = Instant::now();
    let since = now.checked_sub(ago).expect("the machine is up for longer");
    let deadline = now + Duration::from_secs(60);
    let (confirmed, _) = bounded(1);
    let published_at = since;
    let publication =
        Publication { message, since, published_at, deadline, confirmed, slip: Arc::clone(&slip) };
    (publication, slip)
}

fn dead() -> Outgoing {
    Outgoing::dead(Message::default(), "q")
}

fn park(delay: &str) -> Outgoing {
    Outgoing::park(Message::default(), span(delay), "q")
}

#[test]
fn every_message_is_for_a_queue() {
    let webhook = uuid::Uuid::nil();
    for (message, queue) in [
        (park("1500ms"), "webhooks.wait.1500ms"),
        (Outgoing::park(Message::default(), span("1s"), "a.b"), "webhooks.wait.1s"),
        (Outgoing::hand_over(Message::default(), "a.b"), "a.b.retry"),
        (dead(), "q.dead"),
        (Outgoing::to_queue(Message::default(), "a.b"), "a.b"),
    ] {
        assert_eq!(message.queue(), queue);
    }
    let backlog = Outgoing::backlog(Message::default(), "a.b", webhook, "me");
    assert_eq!(backlog.queue(), format!("webhooks.backlog.a.b.{webhook}"));
}

#[test]
fn a_queue_that_refuses_is_shown_until_it_has_been_calm_and_its_messages_are_kept_in_order() {
    let mut refusals = Refusals::new(delays(), Vec::new());
    let board = refusals.board();
    let shown = || board.lock().expect("nobody panicked").clone();
    let (old, _old) = publication(dead(), Duration::from_secs(4));
    let (new, slip) = publication(dead(), Duration::from_secs(2));
    let (other, _other) = publication(park("1s"), Duration::ZERO);
    assert!(refusals.put_aside(old).is_some(), "nothing is known yet");
    let (old, _old) = publication(dead(), Duration::from_secs(4));
    refusals.refuse(vec![new]);
    assert!(slip.is_refused.load(Ordering::Relaxed));
    assert!(refusals.put_aside(other).is_some(), "another queue");
    assert!(refusals.put_aside(old).is_none());
    let now = Instant::now();
    refusals.forget_recovered(now);
    let Refusing { queue, since, messages, refused } = shown().remove(0);
    assert_eq!((queue.as_str(), messages, refused), ("q.dead", 2, 1));
    assert!(since.is_some());

    let probes = refusals.take_probes();
    assert_eq!(probes.len(), 1);
    assert!(now.saturating_duration_since(probes[0].since) >= Duration::from_secs(4));
    assert!(!refusals.is_trial_due(now + LATER), "its answer is to come");
    refusals.refuse(probes);
    assert!(refusals.is_trial_due(Instant::now() + SOON));
    assert_eq!(refusals.accept("q.dead").len(), 2);
    refusals.forget_recovered(Instant::now());
    assert!(shown()[0].since.is_some());
    refusals.forget_recovered(Instant::now() + CALM);
    assert_eq!((shown()[0].since, shown()[0].refused), (None, 2));
}

#[test]
fn messages_that_nobody_waits_for_are_dropped() {
    let mut refusals = Refusals::new(delays(), vec!["q".to_owned()]);
    let (kept, _slip) = publication(dead(), Duration::ZERO);
    refusals.refuse(vec![kept, publication(dead(), Duration::ZERO).0]);
    refusals.forget_recovered(Instant::now());
    assert_eq!(refusals.take_all().len(), 1);
}

#[test]
fn some_are_kept_for_seconds_and_the_others_are_rerouted_at_once() {
    let mut refusals = Refusals::new(delays(), Vec::new());
    let (publications, _slips): (Vec<_>, Vec<_>) =
        (0..20).map(|_| publication(dead(), Duration::ZERO)).unzip();
    refusals.refuse(publications);
    let now = Instant::now();
    assert_eq!(refusals.take_rerouted(now).len(), 20 - MOST_IN_HAND);
    assert!(refusals.take_rerouted(now).is_empty());
    assert_eq!(refusals.take_rerouted(now + IN_HAND).len(), MOST_IN_HAND);
}
