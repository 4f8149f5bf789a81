//! The conclusions of `why` in words.

mod remedy;

use uuid::Uuid;

use super::super::dead_letters::age;
use super::case::MOST_SHOWN;
use crate::broker::{ORPHANED, dead_queue};
use crate::domain::dead_letter::DeathCause;
use crate::domain::diagnosis::{Conclusion, LetterIs, Registration};
use crate::domain::held::{Dropped, Held};
use crate::domain::outcome::DeadReason;
use crate::domain::shown;
use crate::domain::time::{UnixMillis, rfc3339};
use crate::domain::vocabulary::ReadWord;

const OTHER_ACCOUNT: &str = DeadReason::OtherAccount.label();

/// How many characters of an unknown reason are shown.
const MOST_OF_REASON: usize = 40;

/// What the words need to know besides the conclusion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wording<'a> {
    pub(super) webhook: Uuid,
    /// The event's type; empty if it is not known.
    pub(super) event_type: &'a str,
    /// Why the webhook may not get the event; empty if it may.
    pub(super) not_its_own: &'a str,
    /// Why not all dead letters were read; empty if they were.
    pub(super) dead_letters_unknown: &'a str,
    /// When its webhook was disabled, if it is.
    pub(super) disabled_at: Option<&'a str>,
    pub(super) now: UnixMillis,
}

/// A registration, for people.
pub(super) fn registration(registration: Registration, disabled_reason: Option<&str>) -> String {
    match registration {
        Registration::Enabled => "enabled".to_owned(),
        Registration::Disabled => {
            let reason = disabled_reason.unwrap_or("no reason given");
            format!("disabled ({})", shown::line(reason, MOST_SHOWN))
        }
        Registration::Deleted => "not registered (any more)".to_owned(),
    }
}

impl Wording<'_> {
    /// Where the delivery is.
    pub(super) fn conclusion(&self, conclusion: &Conclusion) -> String {
        match conclusion {
            Conclusion::NoSuchWebhook => {
                "no webhook has this id, and nothing is logged for it".to_owned()
            }
            Conclusion::NoPatternMatches => {
                let event_type = shown::line(self.event_type, MOST_SHOWN);
                format!("not for it: none of its patterns matches {event_type}")
            }
            Conclusion::OthersEvent => format!("not for it: {}", self.not_its_own),
            Conclusion::WasDisabled => {
                "nothing is logged for it: disabled, it gets no events".to_owned()
            }
            Conclusion::WantedOnlySince => {
                "wants such an event now, but did not when this one came".to_owned()
            }
            Conclusion::NeedsType => {
                "nothing is logged for it, and the event's type is not known".to_owned()
            }
            Conclusion::NothingLogged => {
                "nothing is logged for it: delivered at its first attempt (DELIVERY_LOG=failures \
                 does not log those), or not yet wanted when it came, or not yet attempted"
                    .to_owned()
            }
            Conclusion::Delivered { at, attempt } => {
                format!("delivered at {}, by attempt {attempt}", rfc3339(*at))
            }
            Conclusion::Waits { attempt, due } => {
                let left = self.until(*due);
                format!("waits for attempt {attempt} at {} (in {left})", rfc3339(*due))
            }
            Conclusion::Overdue { attempt, due } => format!(
                "overdue: attempt {attempt} was due at {}, {} ago, and nothing was logged about it",
                rfc3339(*due),
                self.ago(*due)
            ),
            Conclusion::LostWaiting { attempt, due, queue } => format!(
                "lost, most likely: it should wait for attempt {attempt} at {} in {queue}, which is \
                 missing or empty: somebody has deleted or purged it",
                rfc3339(*due)
            ),
            Conclusion::InBacklog { since, cause, place, next } => {
                self.in_backlog(*since, cause, *place, *next)
            }
            Conclusion::InHandOrDropped { since, cause, next } => format!(
                "entered the backlog of its webhook at {}, in which no other delivery waits: either a \
                 notifier has it in hand ({}{}), or it was dropped while its webhook was disabled, or \
                 lost with the queue (`backlog lost` in a notifier's log)",
                rfc3339(*since),
                shown::line(cause.word(), MOST_OF_REASON),
                self.next(cause, *next),
            ),
            Conclusion::LostBacklog { queue } => format!(
                "lost: it waited in {queue}, which no longer exists: somebody has deleted that queue \
                 (`backlog lost` in a notifier's log), or its webhook was disabled for a while, \
                 which drops its backlog"
            ),
            Conclusion::DroppedWithBacklog { since, why } => {
                let (since, was) = (rfc3339(*since), self.unwanted(*why));
                format!(
                    "dropped: it waited in the backlog of its webhook since {since}, and was dropped \
                     with that backlog because its webhook was {was}"
                )
            }
            Conclusion::DropsWithBacklog { since, why, is_there } => {
                let (since, was) = (rfc3339(*since), self.unwanted(*why));
                match is_there {
                    true => format!(
                        "still in the backlog of its webhook, since {since}; a running notifier drops \
                         that backlog, because the webhook was {was}"
                    ),
                    false => format!(
                        "it entered the backlog of its webhook at {since}. The webhook was {was}, and \
                         its backlog is dropped with it; RabbitMQ does not say whether this has \
                         happened yet"
                    ),
                }
            }
            Conclusion::Dead { at, cause, origin, letter } => {
                self.dead(*at, cause, origin, *letter)
            }
            Conclusion::Dropped { at, why } => {
                let why = shown::line(why.word(), MOST_OF_REASON);
                format!("dropped at {}: its webhook was {why} then", rfc3339(*at))
            }
        }
    }

    /// What has become of the webhook, and when, as far as that is known.
    fn unwanted(&self, why: Dropped) -> String {
        let at = self.disabled_at.map(|at| format!(" at {}", shown::line(at, MOST_OF_REASON)));
        format!("{}{}", why.label(), at.unwrap_or_default())
    }

    /// How long ago that was.
    fn ago(&self, at: UnixMillis) -> String {
        age(Some(at), self.now)
    }

    /// How long it is until then.
    fn until(&self, at: UnixMillis) -> String {
        age(Some(self.now), at)
    }

    fn in_backlog(
        &self,
        since: UnixMillis,
        cause: &ReadWord<Held>,
        place: Option<(u64, u64)>,
        next: Option<UnixMillis>,
    ) -> String {
        let place = match place {
            Some((number, all)) => format!("about number {number} of {all} in"),
            None => "in".to_owned(),
        };
        format!(
            "{place} the backlog of its webhook, since {}, {} ago: {}{}",
            rfc3339(since),
            self.ago(since),
            shown::line(cause.word(), MOST_OF_REASON),
            self.next(cause, next),
        )
    }

    fn next(&self, cause: &ReadWord<Held>, next: Option<UnixMillis>) -> String {
        next.map_or_else(String::new, |next| {
            let is_probed = cause.known() == Some(Held::Breaker);
            let verb = if is_probed { "probed" } else { "asked again" };
            format!("; its receiver is {verb} at {} (in {})", rfc3339(next), self.until(next))
        })
    }

    fn dead(
        &self,
        at: UnixMillis,
        cause: &ReadWord<DeathCause>,
        origin: &str,
        letter: LetterIs,
    ) -> String {
        let queue = match cause.known() {
            Some(DeathCause::Orphaned) => ORPHANED.to_owned(),
            _ => shown::line(&dead_queue(origin), MOST_SHOWN),
        };
        let place = match letter {
            LetterIs::There => format!("it lies in {queue}"),
            LetterIs::Gone => format!(
                "it is no longer in {queue}: replayed, purged, or deleted with that queue (`queue lost` in \
                 the notifier's log)"
            ),
            LetterIs::GoneWithQueue => format!(
                "it lay in {queue}, which no longer exists: somebody has deleted that queue with its messages"
            ),
            LetterIs::Unknown => {
                let problem = shown::line(self.dead_letters_unknown, MOST_SHOWN);
                format!("whether it still lies in {queue} is not known ({problem})")
            }
        };
        format!(
            "dead since {}, {} ago, {}{}; {place}",
            rfc3339(at),
            self.ago(at),
            shown::line(cause.word(), MOST_OF_REASON),
            meaning(cause),
        )
    }
}

/// What a cause means, after its word.
fn meaning(cause: &ReadWord<DeathCause>) -> &'static str {
    match cause.known() {
        Some(DeathCause::Decided(reason)) => match reason {
            DeadReason::Exhausted => ": every attempt of the schedule failed",
            DeadReason::Gone => ": the receiver answered 410",
            DeadReason::Refused => {
                ": its answer is one of NO_RETRY_STATUS, or of its webhook's own"
            }
            DeadReason::Rejected => ": an unusable URL, secret or setting, or a forbidden address",
            DeadReason::Expired => ": older than DELIVERY_MAX_AGE",
            DeadReason::OtherAccount => {
                ": when it was due, its webhook belonged to another account"
            }
            DeadReason::Malformed => ": what was parked is not what the notifier wrote",
        },
        Some(DeathCause::Orphaned) => ": its retry queue was gone when it was due",
        Some(DeathCause::DeliveryLimit) => ": it came back to its queue too often",
        Some(DeathCause::MaxLength) => ": its queue held more than a policy allows",
        Some(DeathCause::Unstated) | None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDING: Wording<'_> = Wording {
        webhook: Uuid::nil(),
        event_type: "order.paid",
        not_its_own: "it is of account \"b\"",
        dead_letters_unknown: "no route",
        disabled_at: Some("1970-01-01T00:16:00Z"),
        now: 1_000_000,
    };

    #[test]
    fn what_another_version_wrote_is_told_in_its_word_which_does_no_harm() {
        let odd = "sulked\u{1b}[2J\n";
        let dead = Conclusion::Dead {
            at: 0,
            cause: odd.into(),
            origin: "q".to_owned(),
            letter: LetterIs::There,
        };
        assert_eq!(
            WORDING.conclusion(&dead),
            "dead since 1970-01-01T00:00:00Z, 16m ago, sulked\\u{1b}[2J\\n; it lies in q.dead"
        );
        let held = Conclusion::InBacklog { since: 0, cause: odd.into(), place: None, next: None };
        let dropped = Conclusion::Dropped { at: 0, why: odd.into() };
        for conclusion in [held, dropped] {
            let told = WORDING.conclusion(&conclusion);
            assert!(told.contains("sulked") && !told.contains(char::is_control), "{told:?}");
        }
    }

    #[test]
    fn what_was_dropped_with_a_backlog_is_told_with_the_time_as_far_as_it_is_known() {
        let dropped = |why| Conclusion::DroppedWithBacklog { since: 940_000, why };
        let rest = "dropped: it waited in the backlog of its webhook since 1970-01-01T00:15:40Z, and was \
                    dropped with that backlog because its webhook was";
        assert_eq!(
            WORDING.conclusion(&dropped(Dropped::Disabled)),
            format!("{rest} disabled at 1970-01-01T00:16:00Z")
        );
        let deleted = Wording { disabled_at: None, ..WORDING };
        assert_eq!(deleted.conclusion(&dropped(Dropped::Deleted)), format!("{rest} deleted"));
        let drops = |is_there| {
            let why = Dropped::Disabled;
            WORDING.conclusion(&Conclusion::DropsWithBacklog { since: 940_000, why, is_there })
        };
        assert!(drops(true).starts_with("still in the backlog"), "{}", drops(true));
        assert!(drops(false).contains("RabbitMQ does not say"), "{}", drops(false));
    }

    #[test]
    fn where_an_event_waits_is_told_as_far_as_it_is_known() {
        let told = |cause: Held, place, next| {
            WORDING.conclusion(&Conclusion::InBacklog {
                since: 940_000,
                cause: ReadWord::Known(cause),
                place,
                next,
            })
        };
        let rest = "the backlog of its webhook, since 1970-01-01T00:15:40Z, 1m ago";
        assert_eq!(told(Held::Paused, None, None), format!("in {rest}: paused"));
        assert_eq!(
            told(Held::Breaker, Some((2, 7)), Some(1_005_000)),
            format!(
                "about number 2 of 7 in {rest}: breaker; its receiver is probed at \
                 1970-01-01T00:16:45Z (in 5s)"
            )
        );
        let asked = told(Held::RetryAfter, None, Some(1_005_000));
        assert!(asked.contains("; its receiver is asked again at"), "{asked}");
    }
}
