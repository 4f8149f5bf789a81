//! `webhooks apply`: changes the webhooks to match a file, in one transaction.

mod report;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use uuid::Uuid;

use self::report::ApplyReport;
use super::file::Source;
use super::{backlogs, new_secret};
use crate::cli::{Common, print, print_json, print_stderr, read};
use crate::config::Config;
use crate::domain::account;
use crate::domain::declared::{Existing, Field, FileProblem, Plan, Values, plan};
use crate::domain::settings::Column;
use crate::domain::webhook::{Candidate, Twins, doubt, read_url, twins, url_key};
use crate::sender;
use crate::store::{ApplyError, Store};

/// How long all look-ups of new URLs' hosts together may take.
const LOOK_UPS: Duration = Duration::from_secs(3);

/// How many problems are printed, how many warnings, and how many webhooks a line names.
const MOST_PROBLEMS: usize = 100;
const MOST_WARNINGS: usize = 20;
const MOST_NAMED: usize = 5;

#[derive(Debug, Args)]
pub(in crate::cli) struct Apply {
    /// The file, in TOML or JSON; `-` reads standard input
    file: PathBuf,
    /// Only print what would change
    #[arg(long)]
    dry_run: bool,
    /// Remove the webhooks that are not in the file; their waiting deliveries are dropped
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(Apply { file, dry_run, prune, common }: Apply) -> Result<ExitCode> {
    let config = read(&common.settings.0)?;
    let source = Source::read(&file)?;
    let (entries, mut problems) = source.entries();
    if entries.is_empty() && !problems.is_empty() {
        return Ok(refuse(&source, &problems));
    }
    let store = Store::new(&config)?;
    let known = store.declared()?;
    if entries.is_empty() && prune && !known.is_empty() {
        let what = format!("it lists no webhook: --prune would remove all {}", known.len());
        return Ok(refuse(&source, &[FileProblem { line: 0, what }]));
    }
    let mut plan = match plan(&entries, &known, prune, Uuid::new_v4) {
        Ok(plan) if problems.is_empty() => plan,
        planned => {
            problems.extend(planned.err().unwrap_or_default());
            problems.sort_by_key(|problem| problem.line);
            return Ok(refuse(&source, &problems));
        }
    };
    let mut secrets = 0;
    for added in plan.added.iter_mut().filter(|added| added.values.secret.is_none()) {
        added.values.secret = Some(new_secret()?);
        secrets += 1;
    }
    let losing = plan.losing();
    let waiting = match losing.is_empty() {
        true => Vec::new(),
        false => backlogs::find(&config, &store, |id| losing.contains(&id))?,
    };
    let report = ApplyReport { plan: &plan, waiting: &waiting, dry_run, secrets };
    // The file is applied even if the output can't be written.
    let shown = if common.output.json { Ok(()) } else { report.differences().try_for_each(print) };
    if !dry_run && !plan.is_empty() {
        let there = known.iter().map(|it| it.id).collect();
        store.apply(&plan, there).map_err(|error| not_carried_out(error, &file))?;
    }
    // Host names are looked up afterwards, so that the changes follow soon after the reading: the less time
    // between, the fewer conflicts with other changes.
    let mut warnings = warnings(&plan, &known);
    warnings.extend(rejections(&plan, &config));
    if prune {
        let flawed = known.iter().filter(|it| it.flaw.is_some() && plan.unlisted.contains(&it.id));
        warnings
            .extend(flawed.map(|it| format!("{} stays: it can't be described in a file", it.id)));
    }
    let more = warnings.len().saturating_sub(MOST_WARNINGS);
    warnings
        .iter()
        .take(MOST_WARNINGS)
        .for_each(|warning| print_stderr(&format!("warning: {warning}")));
    if more > 0 {
        print_stderr(&format!("warning: and {more} more"));
    }
    let shown = shown.and_then(|()| match common.output.json {
        true => print_json(&report.json(&warnings)),
        false => report.summary().try_for_each(print),
    });
    shown.context(match dry_run {
        true => "cannot print what would change",
        false => "the file is applied, but the changes can't be printed",
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints everything that is wrong with a file; exit code 2.
fn refuse(source: &Source, problems: &[FileProblem]) -> ExitCode {
    let name = &source.name;
    for FileProblem { line, what } in problems.iter().take(MOST_PROBLEMS) {
        let line = if *line > 0 { format!(":{line}") } else { String::new() };
        print_stderr(&format!("{name}{line}: {what}"));
    }
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        print_stderr(&format!("{name}: and {more} more problems"));
    }
    print_stderr("nothing was changed");
    ExitCode::from(2)
}

fn not_carried_out(error: ApplyError, file: &Path) -> anyhow::Error {
    match error {
        ApplyError::Store(error) => anyhow!("nothing was changed: {error}"),
        ApplyError::Unknown(error) => {
            anyhow!(
                "PostgreSQL failed at the commit, so either everything was changed or nothing; \
                 `webhooks apply {} --dry-run` says which: {error}",
                file.display()
            )
        }
        ApplyError::Changed(ids) => {
            let named: Vec<_> = ids.iter().take(MOST_NAMED).map(Uuid::to_string).collect();
            let more = ids.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            anyhow!(
                "nothing was changed: somebody else has changed {}{more} meanwhile; run the command again",
                named.join(", ")
            )
        }
    }
}

/// The webhooks that are new, or changed in one of these fields.
fn altered<'p>(plan: &'p Plan, fields: &'p [Field]) -> impl Iterator<Item = (Uuid, &'p Values)> {
    let added = plan.added.iter().map(|it| (it.id, &it.values));
    let is_concerned = |field| fields.contains(&field);
    let changed = plan
        .changed
        .iter()
        .filter(move |it| it.differences.iter().any(|difference| is_concerned(difference.field)))
        .map(|it| (it.id, &it.to));
    added.chain(changed)
}

/// Warnings about values that are valid but probably not meant.
fn warnings(plan: &Plan, known: &[Existing]) -> Vec<String> {
    let of_account = Field::Setting(Column::Account);
    let mut warnings = Vec::new();
    for (id, values) in altered(plan, &[Field::Events]) {
        warnings.extend(
            values.events.iter().filter_map(|it| doubt(it)).map(|doubt| format!("{id}: {doubt}")),
        );
    }
    for (id, values) in altered(plan, &[of_account]) {
        warnings.extend(
            values.account().and_then(account::doubt).map(|doubt| format!("{id}: {doubt}")),
        );
    }
    // All webhooks, as they are after the changes.
    let fields = [Field::PostUrl, Field::Events, of_account];
    let altered: HashMap<_, _> = altered(plan, &fields).collect();
    let is_removed: HashSet<_> = plan.removed.iter().map(|it| it.id).collect();
    let others =
        known.iter().filter(|it| !altered.contains_key(&it.id) && !is_removed.contains(&it.id));
    let all = altered
        .iter()
        .map(|(id, values)| (*id, *values))
        .chain(others.map(|it| (it.id, &it.values)));
    let mut candidates: Vec<_> = all
        .map(|(id, values)| Candidate {
            id,
            url: url_key(&values.post_url),
            account: values.account(),
            events: &values.events,
        })
        .collect();
    candidates.sort_by_key(|candidate| candidate.id);
    let found = twins(&candidates, |id| altered.contains_key(&id));
    warnings.extend(found.iter().map(Twins::warning));
    warnings
}

/// Warnings about new URLs whose addresses aren't allowed.
fn rejections(plan: &Plan, config: &Config) -> Vec<String> {
    let new = altered(plan, &[Field::PostUrl]);
    let (ids, urls): (Vec<_>, Vec<_>) =
        new.filter_map(|(id, values)| Some((id, read_url(&values.post_url).ok()?))).unzip();
    let found = sender::rejected(&urls, &config.allow_networks, LOOK_UPS);
    let warning = |(id, why): (Uuid, Option<String>)| {
        Some(format!("{id}: {}. {}", why?, sender::SETTING_OF_RUN))
    };
    ids.into_iter().zip(found).filter_map(warning).collect()
}
