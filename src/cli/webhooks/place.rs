//! The URL and event types of a webhook as arguments, and warnings about them.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use uuid::Uuid;

use crate::cli::print_stderr;
use crate::config::Config;
use crate::domain::account;
use crate::domain::webhook::{
    Candidate, HIDDEN, Twins, check_pattern, doubt, hides_part, read_url, twins, url_key,
};
use crate::sender;
use crate::store::{ColumnChange, Store};

/// How long the look-up of a new webhook's host may take. Resolvers try again after five seconds, but an
/// operator waits for this, and it only leads to a warning.
const LOOK_UP: Duration = Duration::from_secs(3);

/// How many others with the same URL and events are reported.
const MOST_TWINS: usize = 3;

/// The URL and the event types to set.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct NewPlace {
    /// The new URL to POST the events to: http:// or https://
    #[arg(long)]
    url: Option<String>,
    /// An event type, exact, by prefix (`user.*`), or `*` (can be repeated); together these replace all
    /// its event types
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
}

impl NewPlace {
    /// For a new webhook.
    pub(super) fn of(url: String, events: Vec<String>) -> Self {
        Self { url: Some(url), events }
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    pub(super) fn events(&self) -> &[String] {
        &self.events
    }

    /// Checks the values.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(url) = &self.url {
            read_url(url).map_err(anyhow::Error::msg)?;
            if hides_part(url) {
                bail!(
                    "`{HIDDEN}` in a URL stands for a part that is not shown: give the complete URL"
                );
            }
        }
        self.events
            .iter()
            .try_for_each(|pattern| check_pattern(pattern))
            .map_err(anyhow::Error::msg)
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = ColumnChange> {
        let url = self.url.as_deref().map(ColumnChange::url);
        let events = (!self.events.is_empty()).then(|| ColumnChange::events(&self.events));
        url.into_iter().chain(events)
    }

    /// Warns about values that are probably not meant: a pattern, the given account, a URL that can't be
    /// reached, or the URL and events of another webhook.
    pub(super) fn warn(
        &self,
        id: Uuid,
        account: Option<&str>,
        is_other_account: bool,
        config: &Config,
        store: &Store,
    ) -> Result<()> {
        let doubts = self.events.iter().filter_map(|pattern| doubt(pattern));
        let doubts = doubts.chain(account.and_then(account::doubt));
        let uri = self.url.as_deref().and_then(|url| read_url(url).ok());
        let obstacle = uri.and_then(|uri| sender::obstacle(&uri, &config.allow_networks, LOOK_UP));
        let is_other = self.url.is_some() || !self.events.is_empty() || is_other_account;
        let twins = if is_other { self.twins(id, store)? } else { Vec::new() };
        for warning in doubts.chain(obstacle).chain(twins) {
            print_stderr(&format!("warning: {warning}"));
        }
        Ok(())
    }

    fn twins(&self, id: Uuid, store: &Store) -> Result<Vec<String>> {
        let Some(own) = store.list(Some(id))?.pop() else { return Ok(Vec::new()) };
        // All spellings of the URL: as given, as it is sent, and with or without the slash of an empty path.
        let key = url_key(&own.post_url);
        let mut spellings = vec![own.post_url.clone(), key.clone()];
        spellings.extend(key.strip_suffix('/').map(str::to_owned));
        let all = store.of_urls(&spellings)?;
        let candidates: Vec<_> = all
            .iter()
            .map(|webhook| Candidate {
                id: webhook.id,
                url: url_key(&webhook.post_url),
                account: webhook.account.as_deref(),
                events: &webhook.events,
            })
            .collect();
        let found = twins(&candidates, |it| it == id);
        Ok(found.iter().take(MOST_TWINS).map(Twins::warning).collect())
    }
}
