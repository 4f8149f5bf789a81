//! `webhooks list`: a line for each webhook, with its state.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use clap::Args;
use uuid::Uuid;

use super::MOST_SHOWN;
use super::backlogs::{self, ShownBacklog, Sum};
use super::shown::{Shown, WebhookState, redacted};
use crate::cli::{Common, pager, print_json, read};
use crate::domain::shown;
use crate::domain::webhook::matching_patterns;
use crate::store::{Registered, Store};

/// How many characters of the reason for disabling a webhook are printed.
const MOST_OF_REASON: usize = 60;

/// How many characters of an account are printed.
const MOST_OF_ACCOUNT: usize = 40;

/// The fewest characters of an id that are printed if there isn't room for all.
const LEAST_OF_ID: usize = 8;

/// The fewest characters of an account that are printed if there isn't room for all.
const LEAST_OF_ACCOUNT: usize = 10;

/// The fewest characters of URL and events, however narrow the terminal is.
const LEAST_OF_TEXT: usize = 10;

/// The characters of URL and events together for which times and accounts are shortened.
const ROOM_FOR_TEXT: usize = 60;

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    /// Only those in this state
    #[arg(long)]
    state: Option<WebhookState>,
    /// Only those of this account
    #[arg(long)]
    account: Option<String>,
    /// Only those that want events of this type
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// Only those whose URL contains this text, ignoring case
    #[arg(long, value_name = "TEXT")]
    url: Option<String>,
    /// Show complete URLs, with parts that may be secret: query, fragment, user name and password
    #[arg(long)]
    reveal: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(List { state, account, event, url, reveal, common }: List) -> Result<()> {
    let config = read(&common.settings.0)?;
    let store = Store::new(&config)?;
    let mut list = match account {
        None => store.list(None)?,
        Some(account) => store.of_account(&account)?,
    };
    if let Some(event) = event {
        let patterns: HashSet<String> = matching_patterns(&event).into_iter().collect();
        list.retain(|webhook| webhook.events.iter().any(|pattern| patterns.contains(pattern)));
    }
    if let Some(text) = url.map(|text| text.to_lowercase()) {
        list.retain(|webhook| webhook.post_url.to_lowercase().contains(&text));
    }
    let ids: HashSet<_> = list.iter().map(|webhook| webhook.id).collect();
    let mut waiting: HashMap<Uuid, Vec<ShownBacklog>> = HashMap::new();
    for backlog in backlogs::find(&config, &store, |id| ids.contains(&id))? {
        waiting.entry(backlog.webhook).or_default().push(backlog);
    }
    let list: Vec<Registered> = list.into_iter().map(|webhook| redacted(webhook, reveal)).collect();
    let failing = store.failing_since()?;
    let mut listed: Vec<_> = list
        .iter()
        .map(|webhook| {
            let backlogs = waiting.get(&webhook.id).map_or(&[][..], Vec::as_slice);
            Shown::of(webhook, backlogs, failing.get(&webhook.id).map(String::as_str))
        })
        .collect();
    listed.retain(|it| state.is_none_or(|state| it.state == state));
    if common.output.json {
        print_json(&listed)
    } else {
        pager::page(&table(&listed, pager::columns()))
    }
}

/// A column: its heading and its cells.
struct ListColumn {
    head: &'static str,
    cells: Vec<String>,
    is_number: bool,
}

impl ListColumn {
    fn of(head: &'static str, cells: impl Iterator<Item = String>) -> Self {
        Self { head, cells: cells.collect(), is_number: false }
    }

    fn width(&self) -> usize {
        let widths = self.cells.iter().map(|cell| cell.chars().count());
        widths.max().unwrap_or(0).max(self.head.chars().count())
    }

    /// Cuts cells to this many characters.
    fn cut(&mut self, most: usize) {
        for cell in &mut self.cells {
            if cell.chars().count() > most {
                *cell = shown::line(cell, most.saturating_sub(1));
            }
        }
    }
}

/// The table. It has columns for accounts and for deliveries that wait, if there are any. If it is too wide
/// for the terminal, ids and other texts are cut, so that each webhook has one line.
fn table(listed: &[Shown<'_>], terminal: Option<usize>) -> String {
    let of = |text: fn(&Shown<'_>) -> String| listed.iter().map(text);
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let account =
        |it: &Shown<'_>| it.webhook.account.as_deref().map(|it| shown::line(it, MOST_OF_ACCOUNT));
    let mut columns = vec![
        ListColumn::of("ID", of(|it| it.webhook.id.to_string())),
        ListColumn::of("STATE", of(|it| it.state.label())),
    ];
    if listed.iter().any(|it| it.webhook.account.is_some()) {
        columns.push(ListColumn::of("ACCOUNT", listed.iter().map(|it| or(account(it)))));
    }
    if listed.iter().any(|it| !it.backlogs.is_empty()) {
        let figure = |it: &Shown<'_>| or(Sum::of(it.backlogs.iter()).map(Sum::figure));
        let waiting = ListColumn::of("WAITING", listed.iter().map(figure));
        columns.push(ListColumn { is_number: true, ..waiting });
    }
    if listed.iter().any(|it| it.failing_since.is_some()) {
        let since = |it: &Shown<'_>| or(it.failing_since.map(str::to_owned));
        columns.push(ListColumn::of("FAILING SINCE", listed.iter().map(since)));
    }
    columns.push(ListColumn::of("URL", of(|it| shown::line(&it.webhook.post_url, MOST_SHOWN))));
    columns.push(ListColumn::of(
        "EVENTS",
        of(|it| shown::line(&it.webhook.events.join(" "), MOST_SHOWN)),
    ));
    let reason = |it: &Shown<'_>| {
        let reason =
            it.webhook.disabled_reason.as_deref().filter(|_| it.state == WebhookState::Disabled);
        reason.map(|reason| shown::line(reason, MOST_OF_REASON))
    };
    if listed.iter().any(|it| reason(it).is_some()) {
        columns
            .push(ListColumn::of("REASON", listed.iter().map(|it| reason(it).unwrap_or_default())));
    }
    if let Some(terminal) = terminal {
        fit(&mut columns, terminal);
    }
    let widths: Vec<_> = columns.iter().map(ListColumn::width).collect();
    let line = |texts: Vec<&str>| {
        let cells = texts.iter().zip(&widths).zip(&columns).map(|((text, width), column)| {
            let width = *width;
            if column.is_number { format!("{text:>width$}") } else { format!("{text:width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(columns.iter().map(|column| column.head).collect());
    let rows =
        (0..listed.len()).map(|at| line(columns.iter().map(|it| it.cells[at].as_str()).collect()));
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

fn total(columns: &[ListColumn]) -> usize {
    columns.iter().map(|column| column.width() + 2).sum::<usize>().saturating_sub(2)
}

/// Narrows a table that is too wide: cuts the ids first, then drops reasons. If that leaves little room for
/// URLs and events, it shortens times and cuts accounts. Finally it cuts URLs and events.
fn fit(columns: &mut Vec<ListColumn>, terminal: usize) {
    let is_too_wide = |columns: &[ListColumn]| total(columns) > terminal;
    let lacks_room = |columns: &[ListColumn]| {
        let [.., url, events] = columns else { return false };
        let wanted = url.width() + events.width();
        let room = (terminal + wanted).saturating_sub(total(columns));
        room < wanted.min(ROOM_FOR_TEXT)
    };
    let named = |columns: &mut [ListColumn], head: &str, cut: &dyn Fn(&mut ListColumn)| {
        columns.iter_mut().filter(|column| column.head == head).for_each(cut);
    };
    if is_too_wide(columns) {
        named(columns, "ID", &|column| {
            let most = distinct(&column.cells);
            column.cells.iter_mut().for_each(|id| id.truncate(most));
        });
    }
    if is_too_wide(columns) {
        columns.retain(|column| column.head != "REASON");
    }
    if lacks_room(columns) {
        named(columns, "FAILING SINCE", &|column| {
            column.head = "FAILING";
            // Without the year and the seconds: `11-25T02:54Z`.
            let short = |time: &String| Some(format!("{}Z", time.get(5..16)?));
            column
                .cells
                .iter_mut()
                .for_each(|time| *time = short(time).unwrap_or_else(|| time.clone()));
        });
    }
    if lacks_room(columns) {
        named(columns, "ACCOUNT", &|column| column.cut(LEAST_OF_ACCOUNT));
    }
    let excess = total(columns).saturating_sub(terminal);
    if excess > 0
        && let [.., url, events] = columns.as_mut_slice()
    {
        let room = (url.width() + events.width()).saturating_sub(excess);
        // Events get a third of the room. If one column doesn't need its part, the other gets it.
        let of_events = (room / 3).max(room.saturating_sub(url.width())).max(LEAST_OF_TEXT);
        let of_events = of_events.min(events.width());
        events.cut(of_events);
        url.cut(room.saturating_sub(of_events).max(LEAST_OF_TEXT));
    }
}

/// How many characters distinguish these ids.
fn distinct(ids: &[String]) -> usize {
    let mut sorted: Vec<&str> = ids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let in_common =
        |pair: &[&str]| pair[0].bytes().zip(pair[1].bytes()).take_while(|(a, b)| a == b).count();
    let most = sorted.windows(2).map(in_common).max().unwrap_or(0);
    (most + 1).max(LEAST_OF_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(n: u128, url: &str, account: Option<&str>) -> Registered {
        Registered {
            id: Uuid::from_u128(n << 96 | n),
            post_url: url.to_owned(),
            events: vec!["user.*".to_owned(), "order.paid".to_owned(), "invoice.sent".to_owned()],
            account: account.map(str::to_owned),
            ..Registered::default()
        }
    }

    #[test]
    fn a_table_fits_the_terminal_and_is_whole_elsewhere() {
        let long = format!("https://customer.example.com/{}", "in/".repeat(40));
        let webhooks = [
            registered(0x1234_5678, &long, Some("an account of some length")),
            registered(0x1234_5679, "https://a.b/", None),
        ];
        let backlogs = [ShownBacklog::example("2026-11-25T02:54:28Z", Some(12_345))];
        let listed = [Shown::of(&webhooks[0], &backlogs, None), Shown::of(&webhooks[1], &[], None)];
        let whole = table(&listed, None);
        assert!(whole.contains(&long) && whole.contains(&webhooks[0].id.to_string()), "{whole}");
        assert!(
            whole.contains("FAILING SINCE") && whole.contains("2026-11-25T02:54:28Z"),
            "{whole}"
        );
        for terminal in [80, 100, 160] {
            let table = table(&listed, Some(terminal));
            let widest = table.lines().map(|line| line.chars().count()).max();
            assert!(widest.is_some_and(|widest| widest <= terminal), "{terminal}:\n{table}");
            assert_eq!(table.lines().count(), 3, "{table}");
            for part in ["12345678 ", "12345679 ", "12,345", "failing", "enabled", "…"] {
                assert!(table.contains(part), "no {part:?} in\n{table}");
            }
            let since = if terminal < 160 { "11-25T02:54Z" } else { "2026-11-25T02:54:28Z" };
            assert!(table.contains(since), "no {since:?} in\n{table}");
        }
        assert_eq!(table(&listed[1..], Some(120)), table(&listed[1..], None));
        assert_eq!(table(&[], Some(80)), "ID  STATE  URL  EVENTS");
        let disabled = Registered {
            disabled_at: Some("2026-11-25T02:54:28Z".to_owned()),
            disabled_reason: Some("status 410".to_owned()),
            ..webhooks[1].clone()
        };
        let listed = [Shown::of(&disabled, &[], None)];
        for (terminal, expected) in [(None, true), (Some(80), true), (Some(75), false)] {
            assert_eq!(table(&listed, terminal).contains("status 410"), expected, "{terminal:?}");
        }
    }

    #[test]
    fn ids_are_as_long_as_it_takes_to_tell_them_apart() {
        let ids = |last: &[&str]| {
            last.iter().map(|end| format!("00000000-0000-{end}")).collect::<Vec<_>>()
        };
        assert_eq!(distinct(&ids(&["0001", "0002"])), "00000000-0000-0001".len());
        assert_eq!(distinct(&["a".repeat(36), "b".repeat(36)]), LEAST_OF_ID);
        assert_eq!(distinct(&[]), LEAST_OF_ID);
    }
}
