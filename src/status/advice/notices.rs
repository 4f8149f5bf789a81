//! Advice about notices that can't be published, and webhooks that the notifier disabled by itself.

use super::{Advice, Overall, counted, is_away, names, span};
use crate::domain::shown;
use crate::status::snapshot::{NoticesNow, Snapshot};

/// How long notices must have waited before that is mentioned.
const WAITING_SECONDS: f64 = 30.0;

/// How many characters of RabbitMQ's message are shown.
const MOST_OF_PROBLEM: usize = 400;

/// Notices can't be published.
pub(super) fn of_notices(snapshot: &Snapshot) -> Option<Advice> {
    // If a server doesn't answer, that is mentioned already.
    let servers_answer = !is_away(snapshot.broker) && !is_away(snapshot.database);
    let problem = snapshot.notices_problem.as_ref().filter(|_| servers_answer);
    let NoticesNow { problem, lasted_seconds } =
        problem.filter(|problem| problem.lasted_seconds >= WAITING_SECONDS)?;
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "Nothing could be published to `webhooks.events` for {}: {}.",
            span(*lasted_seconds),
            shown::line(problem, MOST_OF_PROBLEM)
        ),
        remedy:
            "Deliveries go on. The notices wait, and are dropped if too many do. `webhook-notifier \
                 check` says which permission is missing."
                .to_owned(),
    })
}

/// Webhooks that were disabled because they failed for DISABLE_AFTER.
pub(super) fn of_disabled(snapshot: &Snapshot) -> Option<Advice> {
    let disabled = &snapshot.disabled_lately;
    let reason = &disabled.first()?.reason;
    let ids: Vec<String> = disabled.iter().map(|one| one.webhook.to_string()).collect();
    let many = counted(disabled.len() as u64, "webhook was", "webhooks were");
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "{many} disabled within the last day, {reason}: {}.",
            names(ids.iter().map(String::as_str))
        ),
        remedy:
            "Tell its owner. Once its receiver works again, `webhook-notifier webhooks enable ID` \
                 gives it new events; the deliveries that had waited for it were dropped."
                .to_owned(),
    })
}
