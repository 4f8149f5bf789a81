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

/// How much later than the longest delay of RETRY_SCHEDULE the next attempt may come. If none was made for
/// longer, the next failure begins a new outage: a webhook without events isn't failing.
const SLACK: Duration = Duration::from_secs(3_600);

/// Compares the receivers of this process with the table, and updates the table.
#[derive(Debug)]
pub(super) struct OutageWatch {
    store: Arc<Store>,
    receivers: Arc<Receivers>,
    state: NoticesState,
    disable_after: Option<Duration>,
    /// The longest time between two attempts of one outage.
    gap: Duration,
    outages: Outages,
    grain: Grain,
    /// Whether webhooks may have changed since changes were last counted.
    have_changed: bool,
    /// The logged causes why `update`, `count_unannounced` and `upkeep` failed.
    update_causes: Causes,
    count_causes: Causes,
    upkeep_causes: Causes,
}

impl OutageWatch {
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
            update_causes: Causes::default(),
            count_causes: Causes::default(),
            upkeep_causes: Causes::default(),
        }
    }

    /// How often to update the table.
    pub(super) fn tick(&self) -> Duration {
        self.grain.tick
    }

    /// Records that webhooks may have changed.
    pub(super) fn note_changes(&mut self) {
        self.have_changed = true;
    }

    /// Records successes, disables the webhooks that have failed for too long, and then records failures. In
    /// this order, a webhook is disabled only if it was due by the table already at the previous update; since
    /// then the other notifiers had time to record a success.
    pub(super) fn update(&mut self) {
        let updated = self.update_table();
        report(&mut self.update_causes, "conditions of webhooks not recorded", updated);
    }

    fn update_table(&mut self) -> Result<(), StoreError> {
        if self.disable_after.is_some() {
            self.store.record_rest(self.grain.tick)?;
        }
        let failing = self.store.failing_webhooks()?;
        let successes = self.receivers.successes(failing.iter().map(|(webhook, _)| *webhook));
        let since: HashMap<Uuid, Duration> = failing.into_iter().collect();
        let is_later = |(webhook, ago): &(Uuid, Duration)| since.get(webhook) > Some(ago);
        let successes: Vec<_> = successes.into_iter().filter(is_later).collect();
        if !successes.is_empty() {
            self.store.record_successes(&successes)?;
        }
        self.disable()?;
        let (all, now) = self.receivers.outages();
        let due = self.outages.due(all, now);
        if !due.is_empty() {
            let failing: Vec<Failing> = due.iter().map(|one| failing_at(one, now)).collect();
            self.store.record_failures(&failing, self.grain.most_before, self.gap)?;
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
            self.state.count_disabled(AutoDisabled::Failing);
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
    pub(super) fn count_unannounced(&mut self) -> Result<usize, ()> {
        let counted = self.store.count_unannounced(self.have_changed);
        if counted.is_ok() {
            self.have_changed = false;
        }
        let count = counted.as_ref().map_or(0, |count| usize::try_from(*count).unwrap_or(0));
        let is_known = counted.is_ok();
        report(&mut self.count_causes, "changes of webhooks not announced", counted.map(drop));
        if is_known { Ok(count) } else { Err(()) }
    }

    /// Deletes the rows of ended conditions, and reads which disabled webhooks the status page shows.
    pub(super) fn upkeep(&mut self) {
        let recent = self.store.forget_conditions().and_then(|()| self.store.recently_disabled());
        let done = recent.map(|recent| {
            let of = recent.into_iter().map(|one| (one.webhook, one.reason));
            self.state.set_recently_disabled(of.collect());
        });
        report(&mut self.upkeep_causes, "conditions of webhooks not cleaned up", done);
    }
}

/// Logs each cause of a failure once, and its end. An outage of PostgreSQL is logged elsewhere.
fn report(causes: &mut Causes, what: &str, done: Result<(), StoreError>) {
    match done {
        Ok(()) => {
            if causes.end().is_some() {
                log::info!("resolved: {what}");
            }
        }
        Err(error) if error.is_temporary() => log::debug!("{what}: {error}"),
        Err(error) => {
            let cause = error.to_string();
            if causes.is_news(&cause) {
                log::warn!(
                    "{what} cause={cause:?}: until then DISABLE_AFTER and the notices of \
                     webhooks.events wait; deliveries go on"
                );
            }
        }
    }
}

/// The record of an outage, with its times as ages.
fn failing_at((webhook, outage): &(Uuid, Outage), now: Moment) -> Failing {
    let ago = |at: Moment| now.saturating_sub(at);
    Failing {
        webhook: *webhook,
        since: ago(outage.since),
        failed: ago(outage.failed_at),
        opened: outage.opened_at.map(ago),
    }
}
