//! Advice if instances don't share the limits of webhooks.

use super::{Advice, Overall};
use crate::domain::shown;
use crate::status::snapshot::Snapshot;

/// How many characters of PostgreSQL's message are shown.
const MOST_OF_PROBLEM: usize = 400;

/// The other instances are unknown.
pub(super) fn of_instances(snapshot: &Snapshot) -> Option<Advice> {
    let problem = snapshot.instances_problem.as_ref()?;
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "The other instances are not known, so each keeps `max_in_flight` and `rate_per_second` by \
             itself: {}.",
            shown::line(problem, MOST_OF_PROBLEM)
        ),
        remedy: "Deliveries go on, and a single instance is not affected. `webhook-notifier check` says \
                 what is missing."
            .to_owned(),
    })
}
