//! The commands that remove dead letters: `replay` and `purge`.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use serde_json::json;
use uuid::Uuid;

use super::super::{Common, print, print_json};
use super::Act;
use crate::dead_letters::{self, DeadLetterScope, Replayed};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::store::Store;

/// How many webhooks a line names.
const MOST_NAMED: usize = 5;

pub(super) fn replay(scope: DeadLetterScope<'_>, act: Act, common: &Common) -> Result<()> {
    let store = Store::new(scope.config)?;
    let plan = dead_letters::replay_all(scope, &store, true, |_| ())?;
    let is_json = common.output.json;
    let count = plan.replayed;
    if act.dry_run || count == 0 {
        return match is_json {
            true => print_json(&replayed_json(&plan, 0)),
            false => print(lines(would(count, act, "replayed"), &plan)),
        };
    }
    if !is_json {
        // The command continues even if its output can't be written.
        let _ = print(would(count, act, "replayed"));
    }
    // At most as many as announced: dead letters that arrive later aren't meant.
    let scope = DeadLetterScope { limit: count, ..scope };
    let mut so_far = Progress::of(count, "replayed");
    let done = dead_letters::replay_all(scope, &store, false, |done| so_far.is(done.replayed));
    let done = done.with_context(|| so_far.when_ended())?;
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

/// Which dead letters stay, why, and what to do.
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

fn would(count: u64, act: Act, verb: &str) -> String {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    let would = if act.dry_run { "would be" } else { "to be" };
    format!("{count} {letters} {would} {verb}")
}

pub(super) fn purge(scope: DeadLetterScope<'_>, act: Act, common: &Common) -> Result<()> {
    let count = dead_letters::count(scope)?;
    let is_json = common.output.json;
    if act.dry_run || count == 0 {
        return match is_json {
            true => print_json(&json!({ "fitting": count, "purged": 0 })),
            false => print(would(count, act, "purged")),
        };
    }
    if !is_json {
        // As in `replay`.
        let _ = print(would(count, act, "purged"));
    }
    let scope = DeadLetterScope { limit: count, ..scope };
    let mut so_far = Progress::of(count, "purged");
    let purged = dead_letters::purge(scope, |done| so_far.is(done));
    let purged = purged.with_context(|| so_far.when_ended())?;
    match is_json {
        true => print_json(&json!({ "fitting": count, "purged": purged })),
        false => print(format_args!("{purged} purged")),
    }
}

/// The progress of a command: a status line on a terminal, and the message if the command ends early.
struct Progress {
    of: u64,
    verb: &'static str,
    done: u64,
    is_seen: bool,
}

impl Progress {
    fn of(of: u64, verb: &'static str) -> Self {
        Self { of, verb, done: 0, is_seen: io::stderr().is_terminal() }
    }

    fn is(&mut self, done: u64) {
        self.done = done;
        if self.is_seen {
            let mut err = io::stderr();
            let _ = write!(err, "\r{done} of {} ", self.of);
            if done >= self.of {
                let _ = writeln!(err);
            }
        }
    }

    fn when_ended(&self) -> String {
        let Self { of, verb, done, .. } = self;
        format!("{done} of {of} {verb}, the others are still dead letters")
    }
}
