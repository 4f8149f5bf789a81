//! The commands that remove dead letters: `replay` and `purge`.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use serde_json::json;
use uuid::Uuid;

use super::super::{Common, print, print_json};
use super::MoveOptions;
use crate::dead_letters::{self, DeadLetterScope, Replayed};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::store::Store;

/// How many webhooks a line names.
const MOST_NAMED: usize = 5;

pub(super) fn replay(
    scope: DeadLetterScope<'_>,
    options: MoveOptions,
    common: &Common,
) -> Result<()> {
    let store = Store::new(scope.config)?;
    let plan = dead_letters::replay_all(scope, &store, true, |_| ())?;
    let is_json = common.output.json;
    let count = plan.replayed;
    if options.dry_run || count == 0 {
        return match is_json {
            true => print_json(&replayed_json(&plan, 0)),
            false => print(lines(announcement(count, options, "replayed"), &plan)),
        };
    }
    if !is_json {
        // The command continues even if its output can't be written.
        let _ = print(announcement(count, options, "replayed"));
    }
    // At most as many as announced: dead letters that arrive later aren't meant.
    let scope = DeadLetterScope { limit: count, ..scope };
    let mut progress = DeadLetterProgress::of(count, "replayed");
    let done =
        dead_letters::replay_all(scope, &store, false, |done| progress.update(done.replayed));
    let done = done.with_context(|| progress.summary())?;
    // If it stopped because it had found as many as announced, the plan's counts of the others apply.
    let done =
        Replayed { replayed: done.replayed, ..if done.all() < plan.all() { plan } else { done } };
    match is_json {
        true => print_json(&replayed_json(&done, done.replayed)),
        false => print(lines(format!("{} replayed", done.replayed), &done)),
    }
}

fn replayed_json(done: &Replayed, replayed: u64) -> serde_json::Value {
    json!({
        "fitting": done.all(), "replayable": done.replayed, "replayed": replayed,
        "malformed": done.malformed, "disabled": done.disabled,
        "disabled_webhooks": done.disabled_webhooks, "deleted": done.deleted,
        "stranded": done.stranded, "missing_queues": done.missing,
    })
}

/// Conditions dead letters stay, why, and what to do.
fn remaining(done: &Replayed) -> impl Iterator<Item = String> {
    let stay = |count: u64| match count {
        1 => "1 stays dead".to_owned(),
        count => format!("{count} stay dead"),
    };
    let malformed = (done.malformed > 0).then(|| {
        format!(
            "{}, malformed: see `dead-letters show --reason malformed`, publish corrected events, and \
             purge these",
            stay(done.malformed)
        )
    });
    let disabled = (done.disabled > 0).then(|| {
        let webhooks: Vec<_> = done.disabled_webhooks.iter().map(Uuid::to_string).collect();
        let named = &webhooks[..webhooks.len().min(MOST_NAMED)];
        let more = match webhooks.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{}, webhook disabled: `webhook-notifier webhooks enable {}`{more}, then replay again; or \
             purge them",
            stay(done.disabled),
            named.join(" ")
        )
    });
    let deleted =
        (done.deleted > 0).then(|| format!("{}, webhook deleted: purge them", stay(done.deleted)));
    let stranded = (done.stranded > 0).then(|| {
        let missing: Vec<_> =
            done.missing.iter().map(|queue| shown::line(queue, MAX_NAME_BYTES)).collect();
        format!(
            "{}, no queue {}: start a notifier with its event queue in QUEUES, which creates it, then replay \
             again",
            stay(done.stranded),
            missing.join(", ")
        )
    });
    [malformed, disabled, deleted, stranded].into_iter().flatten()
}

fn lines(first: String, done: &Replayed) -> String {
    std::iter::once(first).chain(remaining(done)).collect::<Vec<_>>().join("\n")
}

fn announcement(count: u64, options: MoveOptions, verb: &str) -> String {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    let would = if options.dry_run { "would be" } else { "to be" };
    format!("{count} {letters} {would} {verb}")
}

pub(super) fn purge(
    scope: DeadLetterScope<'_>,
    options: MoveOptions,
    common: &Common,
) -> Result<()> {
    let count = dead_letters::count(scope)?;
    let is_json = common.output.json;
    if options.dry_run || count == 0 {
        return match is_json {
            true => print_json(&json!({ "fitting": count, "purged": 0 })),
            false => print(announcement(count, options, "purged")),
        };
    }
    if !is_json {
        // As in `replay`.
        let _ = print(announcement(count, options, "purged"));
    }
    let scope = DeadLetterScope { limit: count, ..scope };
    let mut progress = DeadLetterProgress::of(count, "purged");
    let purged = dead_letters::purge(scope, |done| progress.update(done));
    let purged = purged.with_context(|| progress.summary())?;
    match is_json {
        true => print_json(&json!({ "fitting": count, "purged": purged })),
        false => print(format_args!("{purged} purged")),
    }
}

/// The progress of a command: a status line on a terminal, and the message if the command ends early.
struct DeadLetterProgress {
    of: u64,
    verb: &'static str,
    done: u64,
    on_terminal: bool,
}

impl DeadLetterProgress {
    fn of(of: u64, verb: &'static str) -> Self {
        Self { of, verb, done: 0, on_terminal: io::stderr().is_terminal() }
    }

    fn update(&mut self, done: u64) {
        self.done = done;
        if self.on_terminal {
            let mut err = io::stderr();
            let _ = write!(err, "\r{done} of {} ", self.of);
            if done >= self.of {
                let _ = writeln!(err);
            }
        }
    }

    fn summary(&self) -> String {
        let Self { of, verb, done, .. } = self;
        format!("{done} of {of} {verb}, the others are still dead letters")
    }
}
