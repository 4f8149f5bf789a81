//! The report of `webhooks apply` about its changes.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::super::backlogs::{ShownBacklog, Sum, grouped};
use crate::domain::declared::{Alteration, Difference, Field, Plan, Values};
use crate::domain::shown;
use crate::domain::webhook::without_secrets;

/// How many characters of a URL are printed.
const MOST_OF_URL: usize = 300;

pub(super) struct ApplyReport<'a> {
    pub(super) plan: &'a Plan,
    /// The backlogs of the webhooks that lose their waiting deliveries.
    pub(super) waiting: &'a [ShownBacklog],
    pub(super) dry_run: bool,
    /// How many new webhooks got a generated secret.
    pub(super) secrets: usize,
}

impl ApplyReport<'_> {
    /// A paragraph for each webhook that differs from the file.
    pub(super) fn differences(&self) -> impl Iterator<Item = String> {
        let Plan { added, changed, removed, .. } = self.plan;
        let url = |url: &str| shown::line(&without_secrets(url), MOST_OF_URL);
        let added = added.iter().map(move |it| {
            let rest = Field::all().skip(1).filter_map(|field| {
                let text = field.shown(&it.values);
                (!text.is_empty()).then(|| format!("\n    {:15}  {text}", field.name()))
            });
            format!("+ {}  {}{}", it.id, url(&it.values.post_url), rest.collect::<String>())
        });
        let changed = changed.iter().map(move |it| {
            let Alteration { id, from, differences, .. } = it;
            let lines = differences.iter().map(|Difference { field, from, to }| {
                let or =
                    |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
                format!("\n    {:15}  {} -> {}", field.name(), or(from), or(to))
            });
            let loss = self.loss(*id).map_or(String::new(), |loss| format!("\n    {loss}"));
            format!("~ {id}  {}{}{loss}", url(&from.post_url), lines.collect::<String>())
        });
        let removed = removed.iter().map(move |it| {
            let loss = self.loss(it.id).map_or(String::new(), |loss| format!("\n    {loss}"));
            format!("- {}  {}{loss}", it.id, url(&it.url))
        });
        added.chain(changed).chain(removed)
    }

    /// What is dropped with a webhook, if anything.
    fn loss(&self, id: Uuid) -> Option<String> {
        let will = if self.dry_run { "would" } else { "will" };
        Sum::of(self.waiting.iter().filter(|backlog| backlog.webhook == id))?.loss(will)
    }

    /// The summary lines.
    pub(super) fn summary(&self) -> impl Iterator<Item = String> {
        let Plan { added, changed, removed, unchanged, unlisted } = self.plan;
        let of = |count: usize| grouped(count as u64);
        let webhooks = |count: usize| match count {
            1 => "1 webhook".to_owned(),
            count => format!("{} webhooks", of(count)),
        };
        let first = if self.plan.is_empty() {
            let is = if unchanged.len() == 1 { "is" } else { "are" };
            format!("nothing to change: {} {is} as the file says", webhooks(unchanged.len()))
        } else {
            let counts = [added.len(), changed.len(), removed.len()].into_iter();
            let words = match self.dry_run {
                true => ["to add", "to change", "to remove"],
                false => ["added", "changed", "removed"],
            };
            let told = counts.zip(words).filter(|(count, _)| *count > 0);
            let told: Vec<_> = told.map(|(count, word)| format!("{} {word}", of(count))).collect();
            let end = if self.dry_run { "; nothing was changed" } else { "" };
            format!("{}, {} unchanged{end}", told.join(", "), of(unchanged.len()))
        };
        let lost = Sum::of(self.waiting.iter());
        let will = if self.dry_run { "would" } else { "will" };
        let lost = lost.and_then(|sum| sum.loss_of("their", will));
        let lost = lost.map(|loss| format!("all together: {loss}"));
        let lost = lost.filter(|_| self.plan.losing().len() > 1);
        let secrets = (self.secrets > 0 && !self.dry_run).then(|| {
            let (given, is) = match self.secrets {
                1 => ("1 new webhook was given a secret".to_owned(), "is"),
                count => (format!("{} new webhooks were given secrets", of(count)), "are"),
            };
            format!("{given}, which {is} not shown: `webhooks export --reveal` shows all")
        });
        let unlisted = (!unlisted.is_empty()).then(|| {
            let (are, them) = if unlisted.len() == 1 { ("is", "it") } else { ("are", "them") };
            let webhooks = webhooks(unlisted.len());
            let stay = if unlisted.len() == 1 { "stays" } else { "stay" };
            format!(
                "{webhooks} of the table {are} not in the file, and {stay} (--prune removes {them})"
            )
        });
        [Some(first), lost, secrets, unlisted].into_iter().flatten()
    }

    pub(super) fn json(&self, warnings: &[String]) -> Value {
        let Plan { added, changed, removed, unchanged, unlisted } = self.plan;
        let shown = |values: &Values| {
            let fields = Field::all().filter_map(|field| {
                let text = field.shown(values);
                (!text.is_empty()).then(|| (field.name().to_owned(), json!(text)))
            });
            fields.collect::<Map<_, _>>()
        };
        let added = added.iter().map(|it| {
            let mut values = shown(&it.values);
            values.insert("id".to_owned(), json!(it.id));
            Value::Object(values)
        });
        let changed = changed.iter().map(|it| {
            let changes = it.differences.iter().map(|Difference { field, from, to }| {
                (field.name().to_owned(), json!({ "from": from, "to": to }))
            });
            json!({
                "id": it.id,
                "post_url": without_secrets(&it.from.post_url),
                "changes": changes.collect::<Map<_, _>>(),
                "backlogs": self.backlogs(it.id),
            })
        });
        let removed = removed
            .iter()
            .map(|it| json!({ "id": it.id, "post_url": it.url, "backlogs": self.backlogs(it.id) }));
        json!({
            "dry_run": self.dry_run,
            "added": added.collect::<Vec<_>>(),
            "changed": changed.collect::<Vec<_>>(),
            "removed": removed.collect::<Vec<_>>(),
            "unchanged": unchanged.len(),
            "not_in_file": unlisted.len(),
            "warnings": warnings,
        })
    }

    /// The backlogs that are dropped with a webhook.
    fn backlogs(&self, id: Uuid) -> Vec<&ShownBacklog> {
        self.waiting.iter().filter(|backlog| backlog.webhook == id).collect()
    }
}
