//! A row for each combination of evidence that matters, and the conclusion.

use uuid::Uuid;

use super::*;
use crate::domain::delivery_log::What;
use crate::domain::held::Dropped;

const NOW: UnixMillis = 1_000_000_000;
const MINUTE: i64 = 60_000;

/// An entry about attempt 2 for an event from the queue `q`, a minute ago.
fn entry(what: What) -> LogEntry {
    LogEntry {
        at: NOW - MINUTE,
        event_id: "e".to_owned(),
        event_type: "order.paid".to_owned(),
        account: None,
        webhook_id: Some(Uuid::nil()),
        queue: "q".to_owned(),
        what,
        attempt: 2,
        status: None,
        reason: None,
        detail: String::new(),
        answer: None,
        ms: None,
        next_attempt_at: None,
        dead: None,
    }
}

/// An entry of a delivery that waits for this number of minutes from now on.
fn waits(minutes: i64) -> LogEntry {
    LogEntry { next_attempt_at: Some(NOW + minutes * MINUTE), ..entry(What::Failed) }
}

fn held(reason: &str) -> LogEntry {
    LogEntry { reason: Some(reason.to_owned()), ..entry(What::HeldBack) }
}

fn died(reason: &str) -> LogEntry {
    LogEntry { dead: Some(reason.to_owned()), ..entry(What::Failed) }
}

fn dropped(reason: &str) -> LogEntry {
    LogEntry { reason: Some(reason.to_owned()), ..entry(What::Dropped) }
}

fn letter(reason: &str) -> DeadLetter {
    DeadLetter {
        queue: "q".to_owned(),
        reason: reason.to_owned(),
        event_id: Some("e".to_owned()),
        event_type: Some("order.paid".to_owned()),
        account: None,
        webhook_id: Some(Uuid::nil()),
        attempts: Some(2),
        first_received_at: None,
        dead_at: Some(NOW - MINUTE),
        last_error: None,
        last_answer: None,
    }
}

fn of_a() -> Owner {
    Owner::Account("a".to_owned())
}

/// Evidence of nothing but an enabled webhook without an account that wants events of this type.
const NOTHING: Evidence<'_> = Evidence {
    entries: &[],
    dead_letter: None,
    dead_letters: DeadLettersSeen::All,
    registration: Registration::Enabled,
    interest: Interest::Matches,
    webhook_account: None,
    owner: &Owner::Unknown,
    was_unmatched: false,
    missing_from: None,
    backlog: None,
    now: NOW,
};

const DISABLED: Evidence<'_> = Evidence { registration: Registration::Disabled, ..NOTHING };
const DELETED: Evidence<'_> = Evidence { registration: Registration::Deleted, ..NOTHING };
/// The webhook belongs to account b.
const OF_B: Evidence<'_> = Evidence { webhook_account: Some("b"), ..NOTHING };

#[track_caller]
fn check(evidence: Evidence<'_>, conclusion: Conclusion, remedy: Remedy) {
    let diagnosis = Diagnosis::of(evidence);
    assert_eq!((diagnosis.conclusion, diagnosis.remedy), (conclusion, remedy), "{evidence:#?}");
}

#[test]
fn without_log_and_dead_letter_the_webhook_says_why() {
    let (nobody, a, b) = (Owner::Nobody, of_a(), Owner::Account("b".to_owned()));
    let unknown_type = |evidence| Evidence { interest: Interest::UnknownType, ..evidence };
    let matches_not = |evidence| Evidence { interest: Interest::MatchesNot, ..evidence };
    let unmatched = |evidence| Evidence { was_unmatched: true, ..evidence };
    let of = |owner, evidence| Evidence { owner, ..evidence };
    let set_account = || Remedy::SetAccount("a".to_owned());
    for (evidence, conclusion, remedy) in [
        (NOTHING, Conclusion::NothingLogged, Remedy::AskReceiver),
        (unknown_type(NOTHING), Conclusion::NeedsType, Remedy::GiveType),
        (unmatched(NOTHING), Conclusion::WantedOnlySince, Remedy::Publish),
        (unmatched(unknown_type(NOTHING)), Conclusion::WantedOnlySince, Remedy::Publish),
        (matches_not(NOTHING), Conclusion::NoPatternMatches, Remedy::ChangePatterns),
        (matches_not(unmatched(NOTHING)), Conclusion::NoPatternMatches, Remedy::ChangePatterns),
        (DISABLED, Conclusion::WasDisabled, Remedy::Enable),
        (unmatched(DISABLED), Conclusion::WasDisabled, Remedy::Enable),
        (unknown_type(DISABLED), Conclusion::WasDisabled, Remedy::Enable),
        (matches_not(DISABLED), Conclusion::NoPatternMatches, Remedy::ChangePatterns),
        (DELETED, Conclusion::NoSuchWebhook, Remedy::ListWebhooks),
        (unmatched(unknown_type(DELETED)), Conclusion::NoSuchWebhook, Remedy::ListWebhooks),
        // The account matters only if the type matches.
        (of(&a, OF_B), Conclusion::OthersEvent, set_account()),
        (of(&a, unknown_type(OF_B)), Conclusion::OthersEvent, set_account()),
        (of(&a, unmatched(OF_B)), Conclusion::OthersEvent, set_account()),
        (of(&nobody, OF_B), Conclusion::OthersEvent, Remedy::NameAccount),
        (of(&a, matches_not(OF_B)), Conclusion::NoPatternMatches, Remedy::ChangePatterns),
        (
            of(&a, Evidence { registration: Registration::Disabled, ..OF_B }),
            Conclusion::OthersEvent,
            set_account(),
        ),
        (of(&b, OF_B), Conclusion::NothingLogged, Remedy::AskReceiver),
        (of(&Owner::Unknown, OF_B), Conclusion::NothingLogged, Remedy::AskReceiver),
        (of(&a, NOTHING), Conclusion::NothingLogged, Remedy::AskReceiver),
    ] {
        check(evidence, conclusion, remedy);
    }
}

#[test]
fn a_successful_delivery_needs_nothing() {
    let entries = [waits(5), LogEntry { attempt: 3, ..entry(What::Delivered) }];
    for evidence in [NOTHING, DISABLED, DELETED, OF_B] {
        let delivered = Conclusion::Delivered { at: NOW - MINUTE, attempt: 3 };
        check(Evidence { entries: &entries, ..evidence }, delivered, Remedy::Nothing);
    }
}

#[test]
fn a_waiting_delivery_shows_until_when_and_what_happens_then() {
    let due = NOW + 5 * MINUTE;
    let (a, nobody) = (of_a(), Owner::Nobody);
    let waiting = [waits(5)];
    let wait = |evidence| Evidence { entries: &waiting, ..evidence };
    let waits = || Conclusion::Waits { attempt: 3, due };
    check(wait(NOTHING), waits(), Remedy::NothingUntil(due));
    check(wait(DISABLED), waits(), Remedy::EnableBefore);
    check(wait(DELETED), waits(), Remedy::NothingDroppedThen);
    check(wait(OF_B), waits(), Remedy::NothingUntil(due));
    let own = Some("a".to_owned());
    check(wait(Evidence { owner: &a, ..OF_B }), waits(), Remedy::SetAccountBefore(own));
    check(wait(Evidence { owner: &nobody, ..OF_B }), waits(), Remedy::SetAccountBefore(None));
    // It is dropped, whatever its account.
    let disabled = Evidence { registration: Registration::Disabled, owner: &a, ..OF_B };
    check(wait(disabled), waits(), Remedy::EnableBefore);

    let queue = || "webhooks.wait.1m".to_owned();
    let lost = Conclusion::LostWaiting { attempt: 3, due, queue: queue() };
    for evidence in [NOTHING, DISABLED, DELETED, Evidence { owner: &a, ..OF_B }] {
        let missing = Evidence { missing_from: Some("webhooks.wait.1m"), ..wait(evidence) };
        check(missing, lost.clone(), Remedy::PublishIfLost { queue: queue() });
    }
}

#[test]
fn an_overdue_delivery_shows_which_lane_to_check() {
    let due = NOW - 10 * MINUTE;
    let late = [LogEntry { at: due - MINUTE, next_attempt_at: Some(due), ..entry(What::Failed) }];
    let handed_over = [LogEntry { at: due, ..entry(What::HandedOver) }];
    let (overdue, origin) = (|| Conclusion::Overdue { attempt: 3, due }, || "q".to_owned());
    for entries in [&late, &handed_over] {
        for evidence in [NOTHING, DISABLED, DELETED, OF_B] {
            let evidence = Evidence { entries, ..evidence };
            check(evidence, overdue(), Remedy::CheckRetries { origin: origin() });
        }
    }
    // Its wait queue makes no difference any more.
    let missing = Evidence { entries: &late, missing_from: Some("w"), ..NOTHING };
    check(missing, overdue(), Remedy::CheckRetries { origin: origin() });
}

#[test]
fn a_delivery_in_a_backlog_shows_the_present_reason() {
    let (since, a) = (NOW - MINUTE, of_a());
    let in_backlog =
        |cause: &str| Conclusion::InBacklog { since, cause: cause.into(), place: None, next: None };
    // Without the state of the backlog, the logged reason counts.
    for (reason, remedy) in [
        ("breaker", Remedy::AwaitReceiver),
        ("retry_after", Remedy::AwaitReceiver),
        ("slow", Remedy::AwaitReceiver),
        ("behind", Remedy::AwaitReceiver),
        ("paused", Remedy::Resume),
        ("rate", Remedy::RaiseLimits),
        ("max_in_flight", Remedy::RaiseLimits),
        ("elsewhere", Remedy::RaiseLimits),
        ("sulking", Remedy::AwaitReceiver),
        ("", Remedy::AwaitReceiver),
    ] {
        let entries = [held(reason)];
        check(Evidence { entries: &entries, ..NOTHING }, in_backlog(reason), remedy);
    }
    let paused = [held("paused")];
    let hold = |evidence| Evidence { entries: &paused, ..evidence };
    let others = hold(Evidence { owner: &a, ..OF_B });
    check(others, in_backlog("paused"), Remedy::SetAccountBefore(Some("a".to_owned())));

    // The state of the backlog takes precedence.
    let next = NOW + MINUTE;
    let seen = |cause: &str, until, count| BacklogSeen { cause: cause.into(), until, count };
    for (backlog, place, asked_at, remedy) in [
        (
            seen("breaker", Some(next), Some((9, 3))),
            Some((4, 9)),
            Some(next),
            Remedy::AwaitReceiver,
        ),
        // The time has passed, or is now.
        (seen("rate", Some(NOW), Some((2, 0))), Some((1, 2)), None, Remedy::RaiseLimits),
        // More deliveries were ahead of it than there are: some have left meanwhile.
        (seen("paused", None, Some((2, 5))), Some((6, 6)), None, Remedy::Resume),
        (seen("sulking", None, None), None, None, Remedy::AwaitReceiver),
    ] {
        let cause = backlog.cause.clone();
        let conclusion = Conclusion::InBacklog { since, cause, place, next: asked_at };
        let evidence = Evidence { entries: &paused, backlog: Some(&backlog), ..NOTHING };
        check(evidence, conclusion, remedy);
    }

    // Nothing shows that it is still there.
    let backlog = seen("breaker", Some(next), Some((1, 0)));
    let conclusion =
        Conclusion::InHandOrDropped { since, cause: "breaker".into(), next: Some(next) };
    let evidence = Evidence { entries: &paused, backlog: Some(&backlog), ..NOTHING };
    check(evidence, conclusion, Remedy::PublishUnlessAttempted);

    let missing = hold(Evidence { missing_from: Some("webhooks.backlog.q.1"), ..NOTHING });
    let queue = "webhooks.backlog.q.1".to_owned();
    check(missing, Conclusion::LostBacklog { queue }, Remedy::Publish);
}

#[test]
fn a_backlog_is_dropped_with_its_webhook() {
    let entries = [held("breaker")];
    let since = NOW - MINUTE;
    for (evidence, why, remedy) in [
        (DISABLED, Dropped::Disabled, Remedy::EnableDropped),
        (DELETED, Dropped::Deleted, Remedy::RegisterDropped),
    ] {
        let evidence = Evidence { entries: &entries, ..evidence };
        let gone = Evidence { missing_from: Some("webhooks.backlog.q.1"), ..evidence };
        check(gone, Conclusion::DroppedWithBacklog { since, why }, remedy.clone());
        assert_eq!(Diagnosis::of(gone).rank(), 2);
        let drops = |is_there| Conclusion::DropsWithBacklog { since, why, is_there };
        let full = |count| BacklogSeen { cause: "breaker".into(), until: None, count };
        let there = full(Some((9, 3)));
        let there = Evidence { backlog: Some(&there), ..evidence };
        check(there, drops(true), Remedy::NothingDropped);
        // RabbitMQ didn't say.
        check(evidence, drops(false), remedy.clone());
        let unknown = full(None);
        check(Evidence { backlog: Some(&unknown), ..evidence }, drops(false), remedy);
    }
}

#[test]
fn a_dead_letter_is_replayed_once_its_cause_is_gone() {
    let replay = Remedy::Replay;
    let owner = of_a();
    for (reason, remedy) in [
        ("exhausted", replay(Before::Recovery)),
        ("gone", replay(Before::Recovery)),
        ("expired", replay(Before::Recovery)),
        ("refused", replay(Before::AskOwner)),
        ("rejected", replay(Before::Fix)),
        ("other_account", replay(Before::SetAccount("a".to_owned()))),
        ("orphaned", replay(Before::StartNotifier { origin: "q".to_owned() })),
        ("delivery_limit", replay(Before::RaiseDeliveryLimit)),
        ("maxlen", replay(Before::RaiseMaxLength)),
        ("malformed", Remedy::PublishMalformed),
        ("unknown", replay(Before::Recovery)),
        ("sulked", replay(Before::Recovery)),
    ] {
        let (entries, found) = ([died(reason)], letter(reason));
        let dead = |letter| Conclusion::Dead {
            at: NOW - MINUTE,
            cause: reason.into(),
            origin: "q".to_owned(),
            letter,
        };
        let logged = Evidence { entries: &entries, owner: &owner, ..NOTHING };
        let lies_there = Evidence { dead_letter: Some(&found), ..logged };
        check(lies_there, dead(LetterIs::There), remedy.clone());
        // Without the log, the dead letter says it.
        check(Evidence { entries: &[], ..lies_there }, dead(LetterIs::There), remedy.clone());
        let unknown = Evidence { dead_letters: DeadLettersSeen::NotAll, ..logged };
        check(unknown, dead(LetterIs::Unknown), remedy);
        check(logged, dead(LetterIs::Gone), Remedy::PublishUnlessReplayed);
        let gone = Evidence { dead_letters: DeadLettersSeen::QueueGone, ..logged };
        check(gone, dead(LetterIs::GoneWithQueue), Remedy::Publish);
        // A dead letter that was found is there, even if others couldn't be read.
        let found = Evidence { dead_letter: Some(&found), ..unknown };
        assert!(matches!(
            Diagnosis::of(found).conclusion,
            Conclusion::Dead { letter: LetterIs::There, .. }
        ));
    }
}

#[test]
fn a_dead_letter_is_replayed_only_to_an_enabled_webhook() {
    for reason in ["exhausted", "refused", "orphaned", "other_account", "malformed", "sulked"] {
        let (entries, found) = ([died(reason)], letter(reason));
        for (evidence, remedy) in
            [(DELETED, Remedy::Register), (DISABLED, Remedy::Replay(Before::Enable))]
        {
            let evidence = Evidence { entries: &entries, dead_letter: Some(&found), ..evidence };
            assert_eq!(Diagnosis::of(evidence).remedy, remedy, "{reason}");
        }
    }
    // The event names no account to which the webhook could be moved.
    let (entries, found) = ([died("other_account")], letter("other_account"));
    for owner in [&Owner::Nobody, &Owner::Unknown] {
        let evidence = Evidence { entries: &entries, dead_letter: Some(&found), owner, ..NOTHING };
        assert_eq!(Diagnosis::of(evidence).remedy, Remedy::NameAccountOrPurge);
    }
}

#[test]
fn an_orphaned_dead_letter_overrides_the_wait_in_the_log() {
    let waiting = [waits(5)];
    let due = NOW + 5 * MINUTE;
    let state = |letter: &DeadLetter| {
        let evidence = Evidence { entries: &waiting, dead_letter: Some(letter), ..NOTHING };
        Diagnosis::of(evidence).state
    };
    let dead = |at, cause| Some(DeliveryState::Dead { at, reason: ReadWord::Known(cause) });
    assert_eq!(state(&letter("orphaned")), dead(NOW - MINUTE, DeathCause::Orphaned));
    let undated = DeadLetter { dead_at: None, ..letter("orphaned") };
    assert_eq!(state(&undated), dead(due, DeathCause::Orphaned));
    // It died earlier, and was replayed.
    let waits = Some(DeliveryState::Waiting { until: due, overdue: false });
    assert_eq!(state(&letter("exhausted")), waits);
    // Without a date and an entry, the time of death is unknown, and the present counts.
    let evidence = Evidence { dead_letter: Some(&undated), ..NOTHING };
    assert_eq!(Diagnosis::of(evidence).state, dead(NOW, DeathCause::Orphaned));
}

#[test]
fn a_dropped_delivery_has_to_be_published_again() {
    for (reason, why) in [
        ("deleted", ReadWord::Known(Dropped::Deleted)),
        ("disabled", ReadWord::Known(Dropped::Disabled)),
        ("archived", ReadWord::Unknown("archived".to_owned())),
    ] {
        let entries = [dropped(reason)];
        let conclusion = Conclusion::Dropped { at: NOW - MINUTE, why };
        for (evidence, remedy) in [
            (NOTHING, Remedy::PublishDropped),
            (DELETED, Remedy::RegisterDropped),
            (DISABLED, Remedy::EnableDropped),
        ] {
            check(Evidence { entries: &entries, ..evidence }, conclusion.clone(), remedy);
        }
    }
}

#[test]
fn deliveries_that_need_action_come_first() {
    let late = LogEntry { at: 0, next_attempt_at: Some(1), ..entry(What::Failed) };
    let logged =
        [died("gone"), late, dropped("deleted"), waits(5), held("breaker"), entry(What::Delivered)];
    let ranks = logged.map(|entry| Diagnosis::of(Evidence { entries: &[entry], ..NOTHING }).rank());
    assert_eq!(ranks, [0, 1, 2, 3, 3, 4]);
    assert_eq!(Diagnosis::of(NOTHING).rank(), 5);
    assert_eq!(Diagnosis::of(Evidence { owner: &of_a(), ..OF_B }).rank(), 6);
}

#[test]
fn the_log_or_the_dead_letter_says_which_account_owns_an_event() {
    let of = |account: &str| LogEntry { account: Some(account.to_owned()), ..entry(What::Failed) };
    let own = DeadLetter { account: Some("b".to_owned()), ..letter("gone") };
    let account = |account: &str| Owner::Account(account.to_owned());
    let (earlier, later) = (Some(NOW - 2 * MINUTE), Some(NOW));
    for (entries, letter, since, owner) in [
        (vec![], None, None, Owner::Unknown),
        (vec![of("a")], None, None, account("a")),
        (vec![of("a"), entry(What::Failed)], Some(&own), None, account("a")),
        (vec![entry(What::Failed)], Some(&own), None, account("b")),
        (vec![entry(What::Failed)], None, None, Owner::Nobody),
        (vec![entry(What::Failed)], None, earlier, Owner::Nobody),
        // The entry is older than the log's accounts.
        (vec![entry(What::Failed)], None, later, Owner::Unknown),
        (vec![entry(What::Failed)], Some(&letter("gone")), later, Owner::Nobody),
    ] {
        assert_eq!(Owner::of(&entries, letter, since), owner, "{entries:?} {letter:?} {since:?}");
    }
}

#[test]
fn a_webhook_with_an_account_may_not_get_events_of_others_or_of_nobody() {
    for (owner, webhook, is_kept) in [
        (of_a(), None, false),
        (of_a(), Some("a"), false),
        (of_a(), Some("b"), true),
        (Owner::Nobody, None, false),
        (Owner::Nobody, Some("a"), true),
        (Owner::Unknown, Some("a"), false),
        // This is the form in the log if the database's encoding lacks a character.
        (Owner::Account("%E6%97%A5".to_owned()), Some("日"), false),
        (Owner::Account("%E6%97%A5".to_owned()), Some("本"), true),
    ] {
        assert_eq!(owner.keeps_from(webhook), is_kept, "{owner:?} {webhook:?}");
    }
}
