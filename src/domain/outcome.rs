//! What an attempt's response means, and what happens next.
//!
//! [`Response`] (raw facts) → [`Outcome`] (their meaning) → [`Decision`] (what next). A receiver's
//! failure is a value here, never an `Err`: errors are failures of our own infrastructure.

use std::time::{Duration, SystemTime};

use super::answer::Excerpt;
use super::retry::Schedule;
use super::statuses::Statuses;
use super::time::Span;

/// The longest `Retry-After` that is honoured. Without it, a receiver whose header mistakenly says "next
/// year" would get nothing until we restart.
pub const LONGEST_STAY: Duration = Duration::from_secs(3_600);

/// The result of one attempt, before it is interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The receiver answered.
    Status {
        /// The HTTP status code.
        code: u16,
        /// The header `Retry-After`, verbatim.
        retry_after: Option<String>,
        /// The beginning of the answer, if it was no success and answers are kept.
        excerpt: Option<Box<Excerpt>>,
    },
    /// The receiver didn't answer, or not in HTTP.
    NoAnswer {
        /// The kind of failure.
        reason: Reason,
        /// The error in words. Contains no secret.
        detail: String,
    },
    /// Nothing was sent because our own proxy failed. This says nothing about the receiver.
    NotSent {
        /// What failed, and where.
        detail: String,
    },
    /// No request was sent, because the webhook can't be used, or its address isn't allowed. It counts as an
    /// attempt.
    Refused {
        /// Why, and what to do.
        detail: String,
    },
}

impl Response {
    /// The HTTP status code, if there was an answer.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::NoAnswer { .. } | Self::NotSent { .. } | Self::Refused { .. } => None,
        }
    }

    /// Takes the excerpt out of the response. It doesn't affect decisions.
    pub fn take_excerpt(&mut self) -> Option<Box<Excerpt>> {
        match self {
            Self::Status { excerpt, .. } => excerpt.take(),
            Self::NoAnswer { .. } | Self::NotSent { .. } | Self::Refused { .. } => None,
        }
    }
}

/// Why an attempt failed: the fixed set of values of the metrics label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "their labels, below, say it")]
pub enum Reason {
    Status1xx,
    Status3xx,
    Status4xx,
    Status5xx,
    Gone,
    Timeout,
    Refused,
    Reset,
    Dns,
    Tls,
    Protocol,
    Rejected,
    Proxy,
    Io,
}

impl Reason {
    /// Every reason, so that each metric series exists from the start.
    pub const ALL: [Self; 14] = [
        Self::Status1xx,
        Self::Status3xx,
        Self::Status4xx,
        Self::Status5xx,
        Self::Gone,
        Self::Timeout,
        Self::Refused,
        Self::Reset,
        Self::Dns,
        Self::Tls,
        Self::Protocol,
        Self::Rejected,
        Self::Proxy,
        Self::Io,
    ];

    /// The metrics label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Status1xx => "status_1xx",
            Self::Status3xx => "status_3xx",
            Self::Status4xx => "status_4xx",
            Self::Status5xx => "status_5xx",
            Self::Gone => "gone",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Rejected => "rejected",
            Self::Proxy => "proxy",
            Self::Io => "io",
        }
    }

    fn of_status(code: u16) -> Self {
        match code {
            0..200 => Self::Status1xx,
            300..400 => Self::Status3xx,
            410 => Self::Gone,
            400..500 => Self::Status4xx,
            // 2xx is no failure. Codes from 600 on aren't HTTP, which is a fault of the receiver.
            _ => Self::Status5xx,
        }
    }
}

/// What a response means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has the event (2xx).
    Delivered,
    /// The attempt failed; another may succeed.
    Failed {
        /// The kind of failure.
        reason: Reason,
        /// The failure in words, for the log and the header `x-last-error`.
        detail: String,
        /// Whether the receiver seems overloaded: it answered 429 or 503 or not in time, or the connection
        /// was lost.
        is_overload: bool,
        /// The receiver's `Retry-After` (with 429, 502, 503 and 504 only), at most [`LONGEST_STAY`].
        retry_after: Option<Duration>,
    },
    /// No attempt will ever succeed.
    Hopeless {
        /// The kind of failure.
        reason: Reason,
        /// The failure in words.
        detail: String,
        /// The reason of the dead letter.
        dead: DeadReason,
    },
}

impl Outcome {
    /// The meaning of a response received at `now`.
    #[must_use]
    pub fn of(response: Response, now: SystemTime) -> Self {
        match response {
            Response::Status { code: 200..300, .. } => Self::Delivered,
            Response::Status { code: 410, .. } => Self::Hopeless {
                reason: Reason::Gone,
                detail: "status 410".to_owned(),
                dead: DeadReason::Gone,
            },
            Response::Status { code, retry_after, .. } => Self::Failed {
                reason: Reason::of_status(code),
                detail: format!("status {code}"),
                is_overload: matches!(code, 429 | 503),
                retry_after: retry_after
                    .filter(|_| matches!(code, 429 | 502..=504))
                    .and_then(|value| parse_retry_after(&value, now))
                    .map(|wanted| wanted.min(LONGEST_STAY)),
            },
            Response::NoAnswer { reason, detail } => {
                let is_overload = matches!(reason, Reason::Timeout | Reason::Reset);
                Self::Failed { reason, detail, is_overload, retry_after: None }
            }
            Response::NotSent { detail } => {
                let (reason, is_overload) = (Reason::Proxy, false);
                Self::Failed { reason, detail, is_overload, retry_after: None }
            }
            Response::Refused { detail } => {
                Self::Hopeless { reason: Reason::Rejected, detail, dead: DeadReason::Rejected }
            }
        }
    }

    /// The receiver's `Retry-After`.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed { retry_after, .. } => *retry_after,
            Self::Delivered | Self::Hopeless { .. } => None,
        }
    }
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds or an HTTP date. Anything else, and a date in
/// the past, is ignored.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number that doesn't fit into 64 bits means a very long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    httpdate::parse_http_date(value).ok()?.duration_since(now).ok()
}

/// Why a message ends in the dead-letter queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// The message isn't a valid event; see [`super::event::Malformed`].
    Malformed,
    /// Every attempt of the retry schedule failed.
    Exhausted,
    /// The receiver answered 410 Gone.
    Gone,
    /// The receiver answered with a status of NO_RETRY_STATUS or of its webhook's `no_retry_status`.
    Refused,
    /// The URL, the secret or a setting can't be used, or the address isn't allowed (ALLOW_NETWORKS,
    /// DENY_NETWORKS).
    Rejected,
    /// The delivery would have to wait again, but is older than DELIVERY_MAX_AGE.
    Expired,
    /// The webhook's account changed while the delivery waited.
    OtherAccount,
}

impl DeadReason {
    /// Every reason, so that each metric series exists from the start.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Exhausted,
        Self::Gone,
        Self::Refused,
        Self::Rejected,
        Self::Expired,
        Self::OtherAccount,
    ];

    /// The metrics label and the header `x-dead-reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Exhausted => "exhausted",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::OtherAccount => "other_account",
        }
    }
}

/// What happens to a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The delivery is done.
    Delivered,
    /// The delivery waits at the broker for this long, then gets another attempt.
    Park(Span),
    /// The delivery moves to the dead-letter queue.
    Dead(DeadReason),
}

/// Decides what follows from the outcome of attempt number `attempt` (the first is 1).
#[must_use]
pub fn decide(outcome: &Outcome, attempt: u32, schedule: &Schedule) -> Decision {
    match outcome {
        Outcome::Delivered => Decision::Delivered,
        Outcome::Hopeless { dead, .. } => Decision::Dead(*dead),
        Outcome::Failed { retry_after, .. } => schedule
            .delay_after(attempt, *retry_after)
            .map_or(Decision::Dead(DeadReason::Exhausted), Decision::Park),
    }
}

impl Decision {
    /// Extends the delay of a parked delivery to the time for which the receiver wants no requests.
    #[must_use]
    pub fn not_before(self, stay: Option<Duration>) -> Self {
        match (self, stay) {
            (Self::Park(delay), Some(stay)) => Self::Park(delay.max(stay.into())),
            (other, _) => other,
        }
    }

    /// Makes the delivery dead instead of retrying it if the status of the answer is one of `no_retry`.
    #[must_use]
    pub fn unless_refused(self, status: Option<u16>, no_retry: &Statuses) -> Self {
        match self {
            Self::Park(_) | Self::Dead(DeadReason::Exhausted)
                if status.is_some_and(|status| no_retry.contains(status)) =>
            {
                Self::Dead(DeadReason::Refused)
            }
            other => other,
        }
    }

    /// Makes a delivery that is older than `max_age` dead instead of parking it: retries have to end.
    #[must_use]
    pub fn unless_expired(self, age: Duration, max_age: Duration) -> Self {
        match self {
            Self::Park(_) if age > max_age => Self::Dead(DeadReason::Expired),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example in RFC 9110.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn status(code: u16, retry_after: Option<&str>) -> Outcome {
        let retry_after = retry_after.map(str::to_owned);
        Outcome::of(Response::Status { code, retry_after, excerpt: None }, now())
    }

    #[track_caller]
    fn check(outcome: &Outcome, attempt: u32, expected: Decision) {
        let schedule = "1s,10s,1m".parse().expect("a schedule");
        assert_eq!(decide(outcome, attempt, &schedule), expected);
    }

    fn park(delay: &str) -> Decision {
        Decision::Park(delay.parse().expect("a delay"))
    }

    #[test]
    fn every_status_has_its_decision() {
        for code in [200, 201, 204, 299] {
            check(&status(code, None), 1, Decision::Delivered);
        }
        for code in [100, 301, 302, 307, 400, 401, 404, 409, 429, 500, 503, 599, 999] {
            check(&status(code, None), 1, park("1s"));
            check(&status(code, None), 4, Decision::Dead(DeadReason::Exhausted));
        }
        check(&status(410, None), 1, Decision::Dead(DeadReason::Gone));
    }

    #[test]
    fn retry_after_counts_only_with_429_502_503_and_504() {
        for code in [429, 502, 503, 504] {
            check(&status(code, Some("12")), 1, park("10s"));
            check(&status(code, Some("Sun, 06 Nov 1994 08:50:37 GMT")), 1, park("1m"));
            check(&status(code, Some("99999999999999999999999")), 1, park("1m"));
            for more in ["3601", "7200", "86400", "99999999999999999999999"] {
                let Outcome::Failed { retry_after, .. } = status(code, Some(more)) else {
                    panic!("{code}")
                };
                assert_eq!(retry_after, Some(LONGEST_STAY), "{more}");
            }
        }
        check(&status(500, Some("5")), 1, park("1s"));
        for nonsense in ["", "-1", "soon", "1.5", "Sun, 06 Nov 1994 08:49:36 GMT"] {
            check(&status(503, Some(nonsense)), 1, park("1s"));
        }
    }

    #[test]
    fn an_attempt_without_an_answer_is_retried_and_one_that_is_not_allowed_is_dead() {
        let detail = "x".to_owned();
        let silent = Response::NoAnswer { reason: Reason::Timeout, detail: detail.clone() };
        check(&Outcome::of(silent, now()), 2, park("10s"));
        let refused = Outcome::of(Response::Refused { detail }, now());
        check(&refused, 1, Decision::Dead(DeadReason::Rejected));
    }

    #[test]
    fn only_a_status_without_retry_makes_a_delivery_dead_at_once() {
        let none: Statuses = "4xx,503".parse().expect("statuses");
        let schedule = "1s,10s".parse().expect("a schedule");
        for (code, attempt, expected) in [
            (400, 1, Decision::Dead(DeadReason::Refused)),
            (503, 1, Decision::Dead(DeadReason::Refused)),
            (404, 3, Decision::Dead(DeadReason::Refused)),
            (410, 1, Decision::Dead(DeadReason::Gone)),
            (500, 1, park("1s")),
            (500, 3, Decision::Dead(DeadReason::Exhausted)),
            (204, 1, Decision::Delivered),
        ] {
            let decision = decide(&status(code, None), attempt, &schedule);
            assert_eq!(decision.unless_refused(Some(code), &none), expected, "{code}");
            assert_eq!(decision.unless_refused(Some(code), &Statuses::default()), decision);
        }
        assert_eq!(park("1s").unless_refused(None, &none), park("1s"));
    }

    #[test]
    fn only_a_delivery_that_would_wait_again_expires() {
        let (day, hour) = (Duration::from_secs(86_400), Duration::from_secs(3_600));
        assert_eq!(park("1s").unless_expired(day, hour), Decision::Dead(DeadReason::Expired));
        assert_eq!(park("1s").unless_expired(hour, hour), park("1s"));
        assert_eq!(Decision::Delivered.unless_expired(day, hour), Decision::Delivered);
        let exhausted = Decision::Dead(DeadReason::Exhausted);
        assert_eq!(exhausted.unless_expired(day, hour), exhausted);
    }

    proptest! {
        #[test]
        fn only_2xx_is_delivered_and_everything_else_is_parked_or_dead(
            code: u16, attempt in 1_u32..9, retry_after in prop::option::of(".{0,20}"),
        ) {
            let schedule: Schedule = "1s,2s,4s".parse().expect("a schedule");
            let decision = decide(&status(code, retry_after.as_deref()), attempt, &schedule);
            prop_assert_eq!(decision == Decision::Delivered, (200..300).contains(&code));
            if let Decision::Park(delay) = decision {
                prop_assert!(schedule.distinct_delays().contains(&delay));
                prop_assert!(attempt <= 3);
            }
        }
    }
}
