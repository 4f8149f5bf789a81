//! Commands that read dead letters, and RabbitMQ's delivery limit.

use std::collections::BTreeMap;

use amiquip::AmqpValue;
use uuid::Uuid;

use super::{dead_letter, dead_letters, dead_letters_json, drain};
use crate::harness::{Event, LATER, SOON, Sandbox, Signal};

/// A dead-letter queue with the delivery limit that is RabbitMQ 4's default.
fn limited(sandbox: &Sandbox) {
    let arguments = [
        ("x-queue-type".to_owned(), AmqpValue::LongString("quorum".to_owned())),
        ("x-delivery-limit".to_owned(), AmqpValue::LongInt(20)),
    ];
    sandbox.broker.declare(&sandbox.dead_queue(), arguments.into()).expect("a fresh name");
    sandbox.notifier().start().terminate();
}

#[test]
fn each_read_copies_some_dead_letters_so_that_none_copies_them_all() {
    let sandbox = Sandbox::new();
    limited(&sandbox);
    copies_with_each_look(&sandbox);
}

/// Afterwards, what was read is at the queue's end.
#[test]
fn each_read_copies_some_dead_letters_also_where_the_queue_has_no_limit() {
    let sandbox = Sandbox::new();
    sandbox.notifier().start().terminate();
    copies_with_each_look(&sandbox);
}

#[track_caller]
fn copies_with_each_look(sandbox: &Sandbox) {
    const COUNT: usize = 2_000;
    let letters: Vec<_> =
        (0..COUNT).map(|_| dead_letter(sandbox, Uuid::nil(), "exhausted", 0)).collect();
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);

    // This many reads may happen before one copies all of them, where everything is copied at once.
    for _ in 0..13 {
        assert_eq!(dead_letters_json(sandbox, &["list"])[0]["count"], COUNT);
    }
    let left = sandbox.broker.take_all(&sandbox.dead_queue()).expect("it is there");
    let mut looks: BTreeMap<i64, usize> = BTreeMap::new();
    for message in &left {
        *looks.entry(message.number("x-delivery-count").unwrap_or(0)).or_default() += 1;
    }
    assert_eq!(left.len(), COUNT);
    assert!(looks.keys().all(|looks| *looks <= 13), "some are near the limit: {looks:?}");
    // Of those that any one read has copied.
    let most = looks.values().max().copied().unwrap_or(0);
    assert!(most <= COUNT / 4, "one look has copied {most}: {looks:?}");
}

/// Dead letters that were read fifteen times, more than a command copies in passing.
fn often_read(count: usize) -> (Sandbox, Vec<String>) {
    let sandbox = Sandbox::new();
    limited(&sandbox);
    // A first delivery has the header that it was published with.
    let looks = [("x-delivery-count".to_owned(), AmqpValue::LongLongInt(15))];
    let letters: Vec<_> =
        (0..count).map(|_| Event::new("order.paid").headers(looks.clone().into())).collect();
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);
    let mut ids: Vec<_> = letters.into_iter().map(|letter| letter.id).collect();
    ids.sort_unstable();
    (sandbox, ids)
}

#[test]
fn dead_letters_that_were_read_too_often_are_copied_after_the_answer() {
    let (sandbox, ids) = often_read(700);
    let finished = sandbox.command(&["dead-letters", "list"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("700  in total"), "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("this is the complete answer. Some dead letters were read so often"),
        "{finished:?}"
    );
    let finished = sandbox.command(&["dead-letters", "list"]);
    assert!(
        !finished.stderr.contains("this is the complete answer"),
        "all were renewed: {finished:?}"
    );
    let mut left = drain(&sandbox, &sandbox.dead_queue());
    left.sort_unstable();
    assert_eq!(left, ids);
}

#[test]
fn copying_can_be_interrupted_and_neither_loses_nor_duplicates_a_dead_letter() {
    let (sandbox, ids) = often_read(3_000);
    let mut list = sandbox.launch(&["dead-letters", "list"]).spawn();
    list.wait_stderr(SOON, "this is the complete answer");
    list.signal(Signal::INT);
    let finished = list.finish(LATER);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("3000  in total"), "{finished:?}");
    let mut left = drain(&sandbox, &sandbox.dead_queue());
    left.sort_unstable();
    assert_eq!(left, ids);
}

#[test]
fn a_malformed_dead_letter_is_shown_with_its_queue_and_what_is_wrong_with_it() {
    let sandbox = Sandbox::with_queues(2);
    let notifier = sandbox.notifier().start();
    let [first, second] = [&sandbox.queues[0], &sandbox.queues[1]];
    sandbox.broker.publish(first, &[Event::raw("{\"a\":1}").id("no-type")]);
    sandbox.broker.publish(second, &[Event::raw("[1]").kind("a.b").id("no-object")]);
    for queue in &sandbox.queues {
        let dead = format!("{queue}.dead");
        crate::harness::wait_until(SOON, "it is dead", || sandbox.broker.ready(&dead) == Some(1));
    }
    notifier.terminate();
    // As RabbitMQ leaves it there, or an operator by hand.
    sandbox.broker.publish(&format!("{first}.dead"), &[Event::raw("not JSON").id("by-hand")]);

    let list = dead_letters(&sandbox, &["list"]);
    let each = dead_letters(&sandbox, &["list", "--each"]);
    let show = dead_letters(&sandbox, &["show"]);
    let with = |text: &str, parts: &[&str]| {
        text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    };
    for (queue, id, error) in [
        (first, "no-type", "no event type"),
        (second, "no-object", "not a JSON object"),
        (first, "by-hand", "not a JSON object"),
    ] {
        assert!(with(&list, &[queue, error]), "no {queue}, {error} in {list}");
        assert!(with(&each, &[queue, id, error]), "no {queue}, {id}, {error} in {each}");
        let shown = show.split("\n\n").find(|part| part.contains(id));
        let shown = shown.unwrap_or_else(|| panic!("no {id} in {show}"));
        assert!(with(shown, &["queue ", queue]) && with(shown, &["error ", error]), "{shown}");
    }
}
