//! The answer in words, for a terminal of 80 to 100 columns.

use uuid::Uuid;

use super::super::paint;
use super::case::{Case, MOST_SHOWN};
use super::{Story, words};
use crate::domain::answer::Excerpt;
use crate::domain::delivery_log::{Extent, LogEntry, What};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::domain::time::{UnixMillis, rfc3339};

/// The width at which text is wrapped, in characters.
const WIDTH: usize = 96;

/// How many webhooks are printed.
const MOST_CASES: usize = 20;

/// How many webhooks of other accounts are printed.
const MOST_OTHERS: usize = 3;

/// How many entries of a delivery are printed: the first and the last ones.
const FIRST_ENTRIES: usize = 3;
const LAST_ENTRIES: usize = 12;

/// The whole answer.
pub(super) fn as_text(story: &Story, webhook: Option<Uuid>) -> String {
    let mut page = PlainPage::default();
    let name = |text: &str| shown::line(text, MAX_NAME_BYTES);
    page.labelled("event", &name(&story.event_id));
    if let Some(event_type) = &story.event_type {
        page.labelled("type", &name(event_type));
    }
    if let Some(account) = &story.account {
        page.labelled("account", &name(account));
    }
    if !story.other_accounts.is_empty() {
        let others: Vec<_> = story.other_accounts.iter().map(|it| shown::quoted(it)).collect();
        let others = shown::line(&others.join(", "), MOST_SHOWN);
        page.labelled("", &format!("events of {others} have this id, too: choose by --account"));
    }
    if !story.queues.is_empty() {
        let queues: Vec<_> = story.queues.iter().map(|queue| name(queue)).collect();
        page.labelled("queue", &queues.join(", "));
    }
    if let Some(at) = story.unmatched_at {
        show_unmatched(&mut page, story, at);
    }
    for letter in &story.malformed {
        let error = letter.last_error.as_deref().unwrap_or("of an unknown reason");
        page.blank();
        page.labelled(
            "now",
            &format!(
                "malformed, in {}.dead: {}",
                name(&letter.queue),
                shown::line(error, MOST_SHOWN)
            ),
        );
        page.labelled(
            "to do",
            "if it was only too large, raise MAX_EVENT_BYTES and `dead-letters replay --reason \
             malformed`; otherwise correct it and publish it again",
        );
    }
    if !story.known {
        show_unknown(&mut page, story);
    }
    // Webhooks of other accounts that did not get the event come last.
    let (others, concerned): (Vec<_>, Vec<_>) =
        story.webhooks.iter().partition(|case| case.state.is_none() && case.not_its_own.is_some());
    for (cases, most, what) in
        [(concerned, MOST_CASES, ""), (others, MOST_OTHERS, " of other accounts")]
    {
        for case in cases.iter().take(most) {
            page.blank();
            show_case(&mut page, case);
        }
        if let Some(more) = cases.len().checked_sub(most).filter(|more| *more > 0) {
            page.blank();
            let told = format!("{more} more webhooks{what}: choose by --webhook ID, or --json");
            page.labelled("", &told);
        }
    }
    if story.webhooks.is_empty() && webhook.is_none() && story.event_type.is_some() {
        show_no_webhook(&mut page, story);
    }
    if story.truncated {
        page.blank();
        page.labelled(
            "",
            "the log has more entries of this event than were read: choose by --webhook ID",
        );
    }
    page.text()
}

fn show_unmatched(page: &mut PlainPage, story: &Story, at: UnixMillis) {
    page.blank();
    page.labelled("now", &format!("dropped at {}: no webhook wanted it", rfc3339(at)));
    let wants = |case: &&Case| !case.patterns.is_empty();
    let wanted_now = story.webhooks.iter().filter(wants).any(|case| case.not_its_own.is_none());
    page.labelled(
        "to do",
        if wanted_now {
            "publish it again: the webhooks below want it now"
        } else if story.webhooks.iter().any(|case| wants(&case)) {
            "the webhooks below want this type, but belong to other accounts"
        } else {
            "if a webhook should get it: `webhooks add URL TYPE`, or change the `events` of a \
             webhook; then publish it again, since unmatched events are not kept"
        },
    );
}

fn show_no_webhook(page: &mut PlainPage, story: &Story) {
    page.blank();
    page.labelled("webhooks", "none wants this type now");
    for near in &story.near {
        let pattern = shown::line(&near.pattern, MOST_SHOWN);
        page.labelled("", &format!("nearly: `{pattern}` of {}", near.webhook_id));
    }
}

/// The possible reasons if nothing is known of an event. `webhooks`: those whose ids begin like the given
/// id.
pub(super) fn may_be(
    log: Extent,
    log_begins_at: Option<UnixMillis>,
    webhooks: &[Uuid],
) -> Vec<String> {
    let of_webhook = webhooks
        .iter()
        .map(|id| format!("it is the beginning of a webhook's id: {}", ask_for(*id)));
    let begins = match log_begins_at {
        None => "the log is empty".to_owned(),
        Some(at) => format!("the log begins at {}", rfc3339(at)),
    };
    let not_logged = [
        "it was delivered, to each webhook at the first attempt: the receiver's own log has its \
         `webhook-id`"
            .to_owned(),
        "no webhook wanted it: `--type TYPE` says who wants such an event".to_owned(),
    ];
    let of_any = [
        "it was never received: not published, or still in its queue; `webhook-notifier check` \
         says how many wait there"
            .to_owned(),
        "its first request is in flight: ask again later".to_owned(),
        "its id is another one: the AMQP `message-id`, otherwise the body's `id`, otherwise one that the \
         notifier has generated"
            .to_owned(),
    ];
    let older = match log {
        Extent::Off => format!("it was logged, and DELIVERY_LOG is off since: {begins}"),
        Extent::Failures => {
            format!("it is older than DELIVERY_LOG_KEEP, or DELIVERY_LOG was off: {begins}")
        }
        Extent::All => {
            format!("it is older than DELIVERY_LOG_KEEP, or DELIVERY_LOG was not `all`: {begins}")
        }
    };
    let not_logged = not_logged.into_iter().filter(|_| log != Extent::All);
    of_webhook.chain(not_logged).chain(of_any).chain([older]).collect()
}

/// How to ask for a webhook instead of an event.
fn ask_for(webhook: Uuid) -> String {
    format!("`webhook-notifier why --webhook {webhook}` says how its deliveries went")
}

fn show_unknown(page: &mut PlainPage, story: &Story) {
    page.blank();
    if let [webhook] = story.webhooks_with_this_id.as_slice()
        && story.may_be.is_empty()
    {
        let told = "no event has this id, but a webhook has";
        return page.labelled("unknown", &format!("{told}: {}", ask_for(*webhook)));
    }
    let dead = match &story.dead_letters_unknown {
        None => "and it is in no dead-letter queue".to_owned(),
        Some(problem) => format!(
            "and whether it is in a dead-letter queue is not known ({})",
            shown::line(problem, MOST_SHOWN)
        ),
    };
    match story.no_failure {
        true => page.labelled(
            "now",
            &format!(
                "nothing went wrong with it, as far as is known. The log holds only what fails or waits \
                 (DELIVERY_LOG=failures) and has nothing of it, {dead}. One of these is the \
                 case, but the log can't tell which:"
            ),
        ),
        false => page.labelled(
            "unknown",
            &format!("the log (DELIVERY_LOG={}) has nothing of it, {dead}. It may be that", story.log),
        ),
    }
    for reason in &story.may_be {
        page.item(reason);
    }
}

fn show_case(page: &mut PlainPage, case: &Case) {
    let url = case.url.as_deref().unwrap_or_default();
    page.labelled("webhook", &format!("{} {url}", case.webhook_id));
    let list = |patterns: &[String]| {
        let quoted: Vec<String> = patterns.iter().map(|pattern| format!("`{pattern}`")).collect();
        shown::line(&quoted.join(" "), MOST_SHOWN)
    };
    let wants = match (case.patterns.as_slice(), case.events.as_slice()) {
        ([], []) => String::new(),
        ([], all) => format!("; has the patterns {}", list(all)),
        (matching, _) => format!("; wants it by {}", list(matching)),
    };
    let but = match (&case.not_its_own, &case.account) {
        (Some(_), Some(account)) => {
            format!(", but it belongs to account {}", shown::quoted(account))
        }
        _ => String::new(),
    };
    let state = words::registration(case.registration, case.disabled_reason.as_deref());
    page.labelled("", &format!("{state}{wants}{but}"));
    show_timeline(page, &case.entries);
    let errors = case.entries.iter().rev().map(|entry| entry.detail.as_str());
    let of_letter = case.dead_letter.as_ref().and_then(|letter| letter.last_error.as_deref());
    // A mere status is in the table.
    let mut details = errors.chain(of_letter).filter(|error| !error.is_empty());
    if let Some(error) = details.next().filter(|error| !error.starts_with("status ")) {
        page.labelled("error", &shown::line(error, MOST_SHOWN));
    }
    show_answer(page, case);
    page.labelled("now", &case.now);
    page.labelled("to do", &case.to_do);
}

/// The receiver's last answer, if it didn't accept the event.
fn show_answer(page: &mut PlainPage, case: &Case) {
    let logged = case.entries.iter().rev().find_map(|entry| {
        let answer = entry.answer.as_deref()?;
        Some((answer, format!(" (attempt {})", entry.attempt)))
    });
    let of_letter = || {
        let answer = case.dead_letter.as_ref()?.last_answer.as_ref()?;
        Some((answer, String::new()))
    };
    if let Some((Excerpt { status_line, body }, attempt)) = logged.or_else(of_letter) {
        page.labelled("answer", &format!("{status_line}{attempt}"));
        if !body.is_empty() {
            page.labelled("", &broken(body));
        }
    }
}

fn show_timeline(page: &mut PlainPage, entries: &[LogEntry]) {
    if entries.is_empty() {
        return;
    }
    page.line(format!(
        "  {:20}  {:>3}  {:11}  {:12}  {:>7}  NEXT",
        "TIME", "ATT", "WHAT", "ANSWER", "MS"
    ));
    let skipped = entries.len().saturating_sub(FIRST_ENTRIES + LAST_ENTRIES);
    for (n, entry) in entries.iter().enumerate() {
        if skipped > 0 && n == FIRST_ENTRIES {
            page.line(format!("  … {skipped} more: --json has them"));
        }
        if skipped == 0 || !(FIRST_ENTRIES..FIRST_ENTRIES + skipped).contains(&n) {
            page.line(row(entry));
        }
    }
}

fn row(entry: &LogEntry) -> String {
    let LogEntry { at, attempt, what, status, reason, ms, next_attempt_at, dead, .. } = entry;
    let answer = match status {
        Some(status) => format!("status {status}"),
        None => shown::line(reason.as_deref().unwrap_or("-"), 40),
    };
    let ms = ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
    let next = match (next_attempt_at, dead) {
        (_, Some(reason)) => format!("dead: {}", shown::line(reason, 40)),
        (Some(next), _) => rfc3339(*next),
        (None, None) if *what == What::HandedOver => "at once".to_owned(),
        (None, None) if *what == What::HeldBack => "backlog".to_owned(),
        (None, None) => "-".to_owned(),
    };
    let (at, what) = (rfc3339(*at), what.label());
    format!("  {at}  {attempt:>3}  {what:11}  {answer:12}  {ms:>7}  {next}")
}

/// Wrapped lines.
#[derive(Default)]
pub(super) struct PlainPage(Vec<String>);

impl PlainPage {
    pub(super) fn text(&self) -> String {
        self.0.join("\n")
    }

    pub(super) fn blank(&mut self) {
        self.0.push(String::new());
    }

    pub(super) fn line(&mut self, line: String) {
        self.0.push(line);
    }

    pub(super) fn labelled(&mut self, label: &str, text: &str) {
        let first = self.0.len();
        self.wrapped(&format!("{label:8}  "), text);
        if let Some(line) = self.0.get_mut(first).filter(|_| !label.is_empty()) {
            line.replace_range(..label.len(), &paint::heading(label));
        }
    }

    fn item(&mut self, text: &str) {
        self.wrapped("          - ", text);
    }

    fn wrapped(&mut self, start: &str, text: &str) {
        let indent = start.chars().count();
        let mut line = start.to_owned();
        let mut width = indent;
        for word in text.split(' ') {
            let length = word.chars().count();
            if width > indent && width + length > WIDTH {
                self.0.push(std::mem::replace(&mut line, " ".repeat(indent)).trim_end().to_owned());
                width = indent;
            }
            line += word;
            line.push(' ');
            width += length + 1;
        }
        self.0.push(line.trim_end().to_owned());
    }
}

/// Breaks long words so that they fit in a line after a label: a receiver's answer may be one word.
pub(super) fn broken(text: &str) -> String {
    let words = text.split(' ').flat_map(|word| pieces(word, WIDTH - 10));
    words.collect::<Vec<_>>().join(" ")
}

fn pieces(word: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(word);
    std::iter::from_fn(move || {
        let word = rest?;
        let (piece, more) = match word.char_indices().nth(most) {
            Some((at, _)) => (&word[..at], Some(&word[at..])),
            None => (word, None),
        };
        rest = more;
        Some(piece)
    })
}
