//! Advice about queues, exchanges and bindings that somebody deleted or that can't be used, and about orphaned
//! deliveries.

use super::{Advice, Overall, counted, is_away, span, trouble};
use crate::domain::shown;
use crate::status::snapshot::{ObjectNow, Snapshot};

/// How many queues, exchanges and bindings are mentioned at most.
const MOST_OBJECTS: usize = 8;

/// How many characters of a name and of RabbitMQ's message are shown.
const MOST_OF_NAME: usize = 255;
const MOST_OF_PROBLEM: usize = 400;

/// Queues, exchanges and bindings that can't be used, or were lost within the last hour.
pub(super) fn of_objects(snapshot: &Snapshot) -> Vec<Advice> {
    // While RabbitMQ is away, their state is unknown.
    let objects = snapshot.objects.iter().filter(|_| !is_away(snapshot.broker));
    let mut advice = Vec::new();
    for ObjectNow { kind, name, is_there, problem, lost_seconds, messages } in objects {
        let name = shown::line(name, MOST_OF_NAME);
        if let Some(problem) = problem {
            advice.push(trouble(
                format!("The {kind} {name} can't be used: {}.", shown::line(problem, MOST_OF_PROBLEM)),
                "Until that is fixed, messages go elsewhere: deliveries that should wait there go to \
                 another wait queue, and dead letters go to `webhooks.orphaned`. A retry queue is not \
                 consumed.",
            ));
        } else if let Some(ago) = lost_seconds {
            let with = match *kind {
                "queue" => {
                    let messages = counted((*messages).into(), "message", "messages");
                    format!(", with {messages} in it when they were last counted")
                }
                _ => String::new(),
            };
            let ago = span(*ago);
            let what = format!("The {kind} {name} was deleted {ago} ago{with}.");
            let remedy = "It is created again. Who may delete queues and exchanges there, or does a \
                          policy set `expires`? A line with ` lost ` in the log says what a queue held: \
                          those messages are gone, so publish their events again.";
            let state = if *is_there { Overall::Attention } else { Overall::Trouble };
            advice.push(Advice { state, what, remedy: remedy.to_owned() });
        }
    }
    advice.truncate(MOST_OBJECTS);
    advice
}

pub(super) fn of_orphaned(snapshot: &Snapshot) -> Option<Advice> {
    let orphaned = snapshot.orphaned.filter(|orphaned| *orphaned > 0)?;
    Some(Advice {
        state: Overall::Attention,
        what: format!(
            "{}.",
            counted(orphaned.unsigned_abs(), "orphaned delivery", "orphaned deliveries")
        ),
        remedy: "Their retry queue did not exist when they were due: they are in `webhooks.orphaned`. \
                 `webhook-notifier dead-letters list` says from which queues they came. Once a notifier \
                 with these queues in QUEUES runs, `dead-letters replay` sends them again."
            .to_owned(),
    })
}
