//! Matches the entries of a file to the webhooks of the table, and plans the changes.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::super::secret::Secret;
use super::super::settings::Column;
use super::super::shown;
use super::super::webhook::{HIDDEN, hides_part, url_key, without_secrets};
use super::{Difference, Existing, Field, FileEntry, SecretHeaders, Values};

/// The reason for disabling a webhook if the file gives none.
const USUAL_REASON: &str = "by hand";

/// How many webhooks a problem names, and how many characters of a URL it shows.
const MOST_NAMED: usize = 3;
const MOST_OF_URL: usize = 200;

/// A problem with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// The line, counted from 1; 0 stands for the whole file.
    pub line: usize,
    /// What is wrong and what to do, in one line, without secrets.
    pub what: String,
}

/// The changes that make the table match the file.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// New webhooks, in the order of the file.
    pub added: Vec<Addition>,
    /// Changed webhooks, in the order of the file.
    pub changed: Vec<Alteration>,
    /// Webhooks to remove.
    pub removed: Vec<Removal>,
    /// Webhooks that match the file already.
    pub unchanged: Vec<Uuid>,
    /// Webhooks that the file doesn't contain, and that stay.
    pub unlisted: Vec<Uuid>,
}

/// A webhook to register.
#[derive(Clone, Debug)]
pub struct Addition {
    /// Its new id.
    pub id: Uuid,
    /// Its values.
    pub values: Values,
}

/// A webhook to change.
#[derive(Clone, Debug)]
pub struct Alteration {
    /// Its id.
    pub id: Uuid,
    /// The version of the row that was read. If somebody else changes the row, its version changes.
    pub version: String,
    /// Its present values.
    pub from: Values,
    /// Its new values.
    pub to: Values,
    /// The differences, at least one.
    pub differences: Vec<Difference>,
}

/// A webhook to remove.
#[derive(Clone, Debug)]
pub struct Removal {
    /// Its id.
    pub id: Uuid,
    /// The version of the row, as in [`Alteration`].
    pub version: String,
    /// Its URL, without secrets.
    pub url: String,
}

impl Plan {
    /// Whether nothing has to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// The webhooks whose waiting deliveries are dropped, because they are removed or disabled.
    #[must_use]
    pub fn losing(&self) -> HashSet<Uuid> {
        let disabled =
            self.changed.iter().filter(|it| it.from.disabled.is_none() && it.to.disabled.is_some());
        let removed = self.removed.iter().map(|it| it.id);
        disabled.map(|it| it.id).chain(removed).collect()
    }
}

/// Plans the changes that make the table match the file. With `prune`, webhooks that are missing from
/// the file are removed, except those that a file can't express.
///
/// An entry with an id means the webhook with this id, or a new one. An entry without an id means the
/// webhook with the same URL and account. If there are several, it means the one with the same events. If
/// one entry and one webhook remain after that, they belong together.
///
/// # Errors
/// All problems of all entries.
pub fn plan(
    entries: &[FileEntry],
    known: &[Existing],
    prune: bool,
    new_id: impl FnMut() -> Uuid,
) -> Result<Plan, Vec<FileProblem>> {
    let mut problems = repeated(entries);
    let matched = matched(entries, known, &mut problems);
    let mut plan = Plan::default();
    let mut new_id = new_id;
    for (entry, known) in entries.iter().zip(&matched) {
        let (to, unclear) = wanted(entry, *known);
        problems
            .extend(unclear.into_iter().map(|(field, what)| problem(entry, Some(field), &what)));
        let of_field = |field: Field| {
            let found = field.problems(&to).into_iter();
            found.map(move |what| problem(entry, Some(field), &what)).collect::<Vec<_>>()
        };
        let is_read = |field: &Field| !entry.unread.contains(field.name());
        let Some(known) = known else {
            problems.extend(Field::all().filter(is_read).flat_map(of_field));
            plan.added.push(Addition { id: entry.id.unwrap_or_else(&mut new_id), values: to });
            continue;
        };
        let mut differences = known.values.differences(&to);
        let of_headers = Field::Setting(Column::Headers);
        if known.has_odd_headers && !differences.is_empty() {
            differences.retain(|difference| difference.field != of_headers);
            let from = "(unusable)".to_owned();
            differences.push(Difference { field: of_headers, from, to: of_headers.shown(&to) });
        }
        // Only changed fields are checked: a webhook may keep a value that wouldn't be accepted today.
        let fields = differences.iter().map(|difference| difference.field);
        problems.extend(fields.filter(is_read).flat_map(of_field));
        let (id, from) = (known.id, known.values.clone());
        match &known.version {
            _ if differences.is_empty() => plan.unchanged.push(id),
            Some(version) => {
                let version = version.clone();
                plan.changed.push(Alteration { id, version, from, to, differences });
            }
            None => problems.push(problem(entry, None, known.flaw.as_deref().unwrap_or_default())),
        }
    }
    let listed: HashSet<Uuid> = matched.iter().flatten().map(|known| known.id).collect();
    for known in known.iter().filter(|known| !listed.contains(&known.id)) {
        match (&known.version, &known.flaw) {
            (Some(version), None) if prune => plan.removed.push(Removal {
                id: known.id,
                version: version.clone(),
                url: without_secrets(&known.values.post_url),
            }),
            _ => plan.unlisted.push(known.id),
        }
    }
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok(plan) } else { Err(problems) }
}

/// Names an entry by its id or URL.
fn named(entry: &FileEntry) -> String {
    let url = shown::line(&without_secrets(&entry.post_url), MOST_OF_URL);
    match entry.id {
        Some(id) => format!("webhook {id}"),
        None if url.is_empty() => "a webhook without URL".to_owned(),
        None => format!("webhook {url}"),
    }
}

/// A problem with an entry, or with one of its fields.
fn problem(entry: &FileEntry, field: Option<Field>, what: &str) -> FileProblem {
    let line = field.and_then(|field| entry.lines.get(field.name())).copied();
    let field = field.map_or(String::new(), |field| format!("{}: ", field.name()));
    let what = format!("{}: {field}{what}", named(entry));
    FileProblem { line: line.unwrap_or(entry.line), what }
}

/// Reports the entries that mean the same webhook as an earlier entry.
fn repeated(entries: &[FileEntry]) -> Vec<FileProblem> {
    let mut problems = Vec::new();
    let mut ids: HashMap<Uuid, usize> = HashMap::new();
    let mut alike: HashMap<(String, Option<&str>, BTreeSet<&str>), &FileEntry> = HashMap::new();
    for entry in entries {
        let mut push = |what: String| problems.push(problem(entry, None, &what));
        if let Some(id) = entry.id
            && let Some(line) = ids.insert(id, entry.line)
        {
            push(format!("the same `id` as on line {line}"));
        }
        let (url, account) = key(entry);
        let events = entry.events.iter().map(String::as_str).collect();
        // Two entries with different ids may be equal otherwise, because two rows may be.
        if let Some(other) = alike.insert((url, account, events), entry)
            && (entry.id.is_none() || other.id.is_none())
            && !entry.post_url.is_empty()
        {
            let line = other.line;
            push(format!(
                "the same URL, account and events as on line {line}: remove one of them, or give each an `id`"
            ));
        }
    }
    problems
}

fn key(entry: &FileEntry) -> (String, Option<&str>) {
    (url_key(&entry.post_url), entry.settings.get(&Column::Account).map(String::as_str))
}

/// The webhook of each entry; `None` if it is new.
fn matched<'a>(
    entries: &[FileEntry],
    known: &'a [Existing],
    problems: &mut Vec<FileProblem>,
) -> Vec<Option<&'a Existing>> {
    let by_id: HashMap<Uuid, &Existing> = known.iter().map(|known| (known.id, known)).collect();
    let mut matched: Vec<Option<&Existing>> =
        entries.iter().map(|entry| by_id.get(&entry.id?).copied()).collect();
    let claimed: HashSet<Uuid> = matched.iter().flatten().map(|known| known.id).collect();
    // By URL and account: the entries without an id, and the unclaimed webhooks.
    type Left<'a> = (Vec<usize>, Vec<&'a Existing>);
    let mut left: HashMap<(String, Option<&str>), Left<'a>> = HashMap::new();
    for (at, entry) in entries.iter().enumerate() {
        if entry.id.is_none() {
            left.entry(key(entry)).or_default().0.push(at);
        }
    }
    if left.is_empty() {
        return matched;
    }
    for known in known.iter().filter(|known| !claimed.contains(&known.id)) {
        let key = (url_key(&known.values.post_url), known.values.account());
        if let Some((_, webhooks)) = left.get_mut(&key) {
            webhooks.push(known);
        }
    }
    let set = |events: &[String]| events.iter().cloned().collect::<BTreeSet<_>>();
    for (mut ours, theirs) in left.into_values() {
        // In reverse order, so that `pop` returns the oldest first.
        let mut by_events: HashMap<BTreeSet<String>, Vec<&Existing>> = HashMap::new();
        for known in theirs.iter().rev() {
            by_events.entry(set(&known.values.events)).or_default().push(known);
        }
        ours.retain(|at| {
            let same = by_events.get_mut(&set(&entries[*at].events)).and_then(Vec::pop);
            matched[*at] = same;
            same.is_none()
        });
        let mut rest = by_events.into_values().flatten();
        match (ours.as_slice(), rest.next(), rest.next()) {
            (_, None, _) => {}
            ([at], Some(one), None) => matched[*at] = Some(one),
            (ours, one, other) => {
                let ids: Vec<_> =
                    [one, other].into_iter().flatten().chain(rest).map(|it| it.id).collect();
                for at in ours {
                    problems.push(ambiguous(&entries[*at], &ids));
                }
            }
        }
    }
    matched
}

fn ambiguous(entry: &FileEntry, ids: &[Uuid]) -> FileProblem {
    let mut ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    ids.sort();
    let more = ids.len().saturating_sub(MOST_NAMED);
    ids.truncate(MOST_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let what = format!(
        "several webhooks have its URL and account: {}{more}; give it the `id` of the one that it means, or \
         a new UUID as `id` to register another webhook",
        ids.join(", ")
    );
    problem(entry, None, &what)
}

/// The values that the entry's webhook should have, and the fields that are unclear, with the problem.
fn wanted(entry: &FileEntry, known: Option<&Existing>) -> (Values, Vec<(Field, String)>) {
    let mut unclear = Vec::new();
    let had = known.map(|known| &known.values);
    let mut post_url = entry.post_url.clone();
    if hides_part(&post_url) {
        let is_its =
            |had: &&Values| had.post_url == post_url || without_secrets(&had.post_url) == post_url;
        match had.filter(is_its) {
            Some(had) => post_url.clone_from(&had.post_url),
            None => unclear.push((
                Field::PostUrl,
                "`***` stands for the webhook's present value, but no webhook has such a URL: write the whole \
                 URL, as `webhooks export --reveal` does, or give the `id` of the webhook that has it"
                    .to_owned(),
            )),
        }
    }
    let mut headers = SecretHeaders::new();
    for (name, value) in &entry.headers {
        let its = had.and_then(|had| had.headers.get(name));
        let value = match (value.expose(), its) {
            (HIDDEN, Some(its)) => its.clone(),
            (HIDDEN, None) => {
                let what = "`***` stands for the webhook's present value, but it has no header";
                let what = format!("{what} {}: write the value", shown::quoted(name));
                unclear.push((Field::Setting(Column::Headers), what));
                value.clone()
            }
            _ => value.clone(),
        };
        headers.insert(name.clone(), value);
    }
    let was_disabled = had.and_then(|had| had.disabled.clone());
    let disabled = match entry.disabled {
        Some(false) => None,
        Some(true) => {
            let reason = entry.disabled_reason.clone().or(was_disabled);
            Some(reason.unwrap_or_else(|| USUAL_REASON.to_owned()))
        }
        None => was_disabled,
    };
    let secret: Option<Secret> = entry.secret.clone().or_else(|| had?.secret.clone());
    let values = Values {
        post_url,
        events: entry.events.clone(),
        headers,
        settings: entry.settings.clone(),
        paused: entry.paused.unwrap_or_else(|| had.is_some_and(|had| had.paused)),
        disabled,
        secret,
    };
    (values, unclear)
}

#[cfg(test)]
mod tests;
