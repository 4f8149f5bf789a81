//! What the notifier has done by itself, and what it can't tell.

use super::{Advice, Overall, counted, is_away, names, span};
use crate::domain::shown;
use crate::status::snapshot::{NoticesNow, Snapshot};

/// For how long notices must have waited before it is worth a word.
const WAITING_SECONDS: f64 = 30.0;

/// How much of RabbitMQ's words is shown, in characters.
const MOST_OF_PROBLEM: usize = 400;

/// Notices can't be published.
pub(super) fn of_notices(snapshot: &Snapshot) -> Option<Advice> {
    // Else that is said.
    let servers_answer = !is_away(snapshot.broker) && !is_away(snapshot.database);
    let problem = snapshot.notices_problem.as_ref().filter(|_| servers_answer);
    let NoticesNow { problem, lasted_seconds } =
        problem.filter(|problem| problem.lasted_seconds >= WAITING_SECONDS)?;
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "Nobody is told by `webhooks.events`, for {}: {}.",
            span(*lasted_seconds),
            shown::line(problem, MOST_OF_PROBLEM)
        ),
        remedy: "Deliveries go on. What it has to tell waits, as far as there is room; \
                 `webhook-notifier check` says which right is missing."
            .to_owned(),
    })
}

/// Webhooks that were disabled because they had failed for DISABLE_AFTER.
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
        remedy: "Its owner should know. Once its receiver is well, `webhook-notifier webhooks enable ID` \
                 gives it its events again; what had waited for it was dropped."
            .to_owned(),
    })
}
