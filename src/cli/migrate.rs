//! `migrate`: creates the tables, and prints what it did.

use anyhow::Result;
use uuid::Uuid;

use super::{print, print_stderr, read};
use crate::config::ServerSettings;
use crate::store::{Labelled, Migrated, Store};

pub(super) fn run(settings: ServerSettings) -> Result<()> {
    let migrated = Store::new(&read(&settings.0)?)?.migrate()?;
    let Migrated { applied, restored, labelled } = &migrated;
    if applied.is_empty() && restored.is_empty() {
        print("nothing to do: the database is up to date")?;
    }
    if !applied.is_empty() {
        print(format_args!("applied: {}", applied.join(", ")))?;
    }
    if !restored.is_empty() {
        print(format_args!("restored what was missing: {}", restored.join(", ")))?;
    }
    if let Some(labelled) = labelled {
        print(of_labelled(labelled))?;
    }
    if restored.iter().any(|what| what == "column webhooks.account") {
        let lost = "the accounts were lost with that column: until you set them again, each \
                    webhook gets the events of all accounts";
        print_stderr(&format!("warning: {lost}"));
    }
    Ok(())
}

/// Says what changes for webhooks whose account was only a label before this version.
fn of_labelled(Labelled { count, named }: &Labelled) -> String {
    let (webhooks, has, gets) = match count {
        1 => ("webhook", "has", "it gets"),
        _ => ("webhooks", "have", "each gets"),
    };
    let mut ids: Vec<String> = named.iter().map(Uuid::to_string).collect();
    let more = count.saturating_sub(ids.len() as u64);
    if more > 0 {
        ids.push(format!("and {more} more"));
    }
    format!(
        "{count} {webhooks} {has} an account. It was a label until now. From now on {gets} the events of that \
         account only. An event names its account by the AMQP header `account`, or by `account` or \
         `account_id` in the body; deliveries that already wait, by the body only. To get every event \
         again: `webhooks set ID --unset account`. Concerned: {}",
        ids.join(", ")
    )
}
