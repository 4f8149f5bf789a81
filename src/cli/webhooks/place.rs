//! Where a webhook's events go, and which: as arguments, and what is doubtful about them.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use uuid::Uuid;

use crate::cli::complain;
use crate::config::Config;
use crate::domain::account;
use crate::domain::webhook::{
    Candidate, HIDDEN, Twins, check_pattern, doubt, hides_part, read_url, twins, url_key,
};
use crate::sender;
use crate::store::{ColumnChange, Store};

/// How long the look-up of a new webhook's host may take. Name servers are asked again after five
/// seconds, but somebody waits for this, and it is no more than a warning.
const LOOK_UP: Duration = Duration::from_secs(3);

/// How many others with the same URL and events are told.
const MOST_TWINS: usize = 3;

/// What of it is to be other than it was.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct NewPlace {
    /// Where to POST the events from now on: http:// or https://
    #[arg(long)]
    url: Option<String>,
    /// An event type, exact, by prefix (`user.*`), or `*` (can be repeated); together these replace all that
    /// it had
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
}

impl NewPlace {
    /// That of a new webhook.
    pub(super) fn of(url: String, events: Vec<String>) -> Self {
        Self { url: Some(url), events }
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    pub(super) fn events(&self) -> &[String] {
        &self.events
    }

    /// Says whether it can be.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(url) = &self.url {
            read_url(url).map_err(anyhow::Error::msg)?;
            if hides_part(url) {
                bail!("`{HIDDEN}` in a URL stands for what is not shown: give the whole URL");
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

    /// Warns of what is hardly meant: a pattern, the account that is given, a URL that can't be reached, another webhook of
    /// the same URL and events.
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
            complain(&format!("warning: {warning}"));
        }
        Ok(())
    }

    fn twins(&self, id: Uuid, store: &Store) -> Result<Vec<String>> {
        let Some(own) = store.list(Some(id))?.pop() else { return Ok(Vec::new()) };
        // However it may be written: as here, and as it is sent, with the slash of an empty path or without.
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
