//! Records since when receivers have been failing, for all notifiers, and disables those that have
//! failed for too long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::config::Config;
use crate::domain::causes::Causes;
use crate::domain::notice::NO_SUCCESS;
use crate::domain::outages::{Grain, Outages};
use crate::domain::receiver::Outage;
use crate::domain::time::{Moment, Span, rfc3339};
use crate::metrics::{AutoDisabled, NoticesState};
use crate::receivers::Receivers;
use crate::store::{Failing, Store, StoreError};

/// The next attempt may come this much later than the longest delay of RETRY_SCHEDULE. If none was made
/// for longer, an outage begins anew: a webhook without events isn't failing.
const SLACK: Duration = Duration::from_secs(3_600);

/// Watches the receivers of this process, and the table.
#[derive(Debug)]
pub(super) struct Watch {
    store: Arc<Store>,
    receivers: Arc<Receivers>,
    state: NoticesState,
    disable_after: Option<Duration>,
    /// The longest time between two attempts of one outage.
    gap: Duration,
    outages: Outages,
    grain: Grain,
    have_changed: bool,
    /// The logged causes for failing at each of the three tasks.
    not_noted: Causes,
    not_counted: Causes,
    not_kept: Causes,
}

impl Watch {
    pub(super) fn new(
        config: &Config,
        store: Arc<Store>,
        receivers: Arc<Receivers>,
        state: NoticesState,
    ) -> Self {
        let grain = Grain::of(config.disable_after);
        Self {
            store,
            receivers,
            state,
            disable_after: config.disable_after,
            gap: config.retry_schedule.longest().get() + SLACK,
            outages: Outages::new(grain.grain),
            grain,
            have_changed: true,
            not_noted: Causes::default(),
            not_counted: Causes::default(),
            not_kept: Causes::default(),
        }
    }

    /// How often to look.
    pub(super) fn tick(&self) -> Duration {
        self.grain.tick
    }

    /// Webhooks may have changed.
    pub(super) fn has_heard(&mut self) {
        self.have_changed = true;
    }

    /// Records what happened to receivers since the last look, and disables those that have failed for
    /// too long. In this order: what is due by the table has been due at least since the last look, and
    /// other notifiers have recorded their successes since.
    pub(super) fn look(&mut self) {
        let looked = self.look_once();
        told(&mut self.not_noted, "conditions of webhooks not noted", looked);
    }

    fn look_once(&mut self) -> Result<(), StoreError> {
        if self.disable_after.is_some() {
            self.store.note_rest(self.grain.tick)?;
        }
        let failing = self.store.failing_webhooks()?;
        let successes = self.receivers.successes(failing.iter().map(|(webhook, _)| *webhook));
        let since: HashMap<Uuid, Duration> = failing.into_iter().collect();
        let is_later = |(webhook, ago): &(Uuid, Duration)| since.get(webhook) > Some(ago);
        let successes: Vec<_> = successes.into_iter().filter(is_later).collect();
        if !successes.is_empty() {
            self.store.note_successes(&successes)?;
        }
        self.disable()?;
        let (all, now) = self.receivers.outages();
        let due = self.outages.due(all, now);
        if !due.is_empty() {
            let failing: Vec<Failing> = due.iter().map(|one| failing_at(one, now)).collect();
            self.store.note_failures(&failing, self.grain.most_before, self.gap)?;
            self.outages.note_written(&due, now);
        }
        Ok(())
    }

    fn disable(&mut self) -> Result<(), StoreError> {
        let Some(after) = self.disable_after else { return Ok(()) };
        let reason = format!("{NO_SUCCESS}{} (DISABLE_AFTER)", Span::from(after));
        let disabled = self.store.disable_failing(after, &reason)?;
        let is_any = !disabled.is_empty();
        for (webhook, since) in disabled {
            let since = rfc3339(since);
            log::warn!(
                "webhook disabled webhook={webhook} reason={reason:?} failing_since={since}: its waiting \
                 deliveries are dropped; `webhooks enable {webhook}` enables it again"
            );
            self.state.disabled(AutoDisabled::Failing);
            self.receivers.forget(webhook);
            self.have_changed = true;
        }
        if is_any {
            // The status page names them.
            self.upkeep();
        }
        Ok(())
    }

    /// How many changes haven't been announced.
    pub(super) fn count_untold(&mut self) -> Result<usize, ()> {
        let counted = self.store.count_untold(self.have_changed);
        if counted.is_ok() {
            self.have_changed = false;
        }
        let count = counted.as_ref().map_or(0, |count| usize::try_from(*count).unwrap_or(0));
        let is_known = counted.is_ok();
        told(&mut self.not_counted, "changes of webhooks not told", counted.map(drop));
        if is_known { Ok(count) } else { Err(()) }
    }

    /// Forgets conditions that have ended, and reads what the status page shows.
    pub(super) fn upkeep(&mut self) {
        let kept = self.store.forget_conditions().and_then(|()| self.store.disabled_lately());
        let learned = kept.map(|lately| {
            let of = lately.into_iter().map(|one| (one.webhook, one.reason));
            self.state.set_disabled_lately(of.collect());
        });
        told(&mut self.not_kept, "conditions of webhooks not kept", learned);
    }
}

/// Logs each cause once. An outage of PostgreSQL is logged elsewhere.
fn told(causes: &mut Causes, what: &str, done: Result<(), StoreError>) {
    match done {
        Ok(()) => {
            if causes.end().is_some() {
                log::info!("resolved: {what}");
            }
        }
        Err(error) if error.is_passing() => log::debug!("{what}: {error}"),
        Err(error) => {
            let cause = error.to_string();
            if causes.is_news(&cause) {
                log::warn!(
                    "{what} cause={cause:?}: DISABLE_AFTER and the notices of webhooks.events wait for \
                     that; deliveries go on"
                );
            }
        }
    }
}

fn failing_at((webhook, outage): &(Uuid, Outage), now: Moment) -> Failing {
    let ago = |at: Moment| now.saturating_sub(at);
    Failing {
        webhook: *webhook,
        since: ago(outage.since),
        failed: ago(outage.failed_at),
        opened: outage.opened_at.map(ago),
    }
}
