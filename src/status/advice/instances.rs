//! That limits are not kept together.

use super::{Advice, Overall};
use crate::domain::shown;
use crate::status::snapshot::Snapshot;

/// How much of PostgreSQL's words is shown, in characters.
const MOST_OF_PROBLEM: usize = 400;

/// Which instances there are can't be known.
pub(super) fn of_instances(snapshot: &Snapshot) -> Option<Advice> {
    let problem = snapshot.instances_problem.as_ref()?;
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "Which other instances there are is not known, so each keeps `max_in_flight` and `rate_per_second` \
             by itself: {}.",
            shown::line(problem, MOST_OF_PROBLEM)
        ),
        remedy: "Deliveries go on; with one instance nothing else follows. `webhook-notifier check` says what \
                 is missing."
            .to_owned(),
    })
}
