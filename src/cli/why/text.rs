//! The answer in words, for a terminal of 80 to 100 columns.

use uuid::Uuid;

use super::super::paint;
use super::Answer;
use super::case::{Case, MOST_SHOWN, Registration};
use crate::domain::calendar::rfc3339;
use crate::domain::delivery::UnixMillis;
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::history::{Entry, What};
use crate::domain::shown;

/// Where a text is wrapped, in characters.
const WIDTH: usize = 96;

/// How many webhooks are shown.
const MOST_CASES: usize = 20;

/// How many webhooks of other accounts are shown.
const MOST_OTHERS: usize = 3;

/// How many entries of a delivery are shown: its first and its last ones.
const FIRST_ENTRIES: usize = 3;
const LAST_ENTRIES: usize = 12;

/// All of it.
pub(super) fn for_people(answer: &Answer, webhook: Option<Uuid>) -> String {
    let mut page = Page::default();
    let name = |text: &str| shown::line(text, MAX_NAME_BYTES);
    page.labelled("event", &name(&answer.event_id));
    if let Some(event_type) = &answer.event_type {
        page.labelled("type", &name(event_type));
    }
    if let Some(account) = &answer.account {
        page.labelled("account", &name(account));
    }
    if !answer.other_accounts.is_empty() {
        let others: Vec<_> = answer.other_accounts.iter().map(|it| shown::quoted(it)).collect();
        let others = shown::line(&others.join(", "), MOST_SHOWN);
        page.labelled("", &format!("events of {others} have this id, too: choose by --account"));
    }
    if !answer.queues.is_empty() {
        let queues: Vec<_> = answer.queues.iter().map(|queue| name(queue)).collect();
        page.labelled("queue", &queues.join(", "));
    }
    if let Some(at) = answer.unmatched_at {
        unmatched(&mut page, answer, at);
    }
    for letter in &answer.malformed {
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
            "if it only was too large, raise MAX_EVENT_BYTES and `dead-letters replay --reason \
             malformed`; else mend it and publish it again",
        );
    }
    if !answer.known {
        unknown(&mut page, answer);
    }
    // Those of other accounts, of which nothing is to be told, come last.
    let (others, concerned): (Vec<_>, Vec<_>) =
        answer.webhooks.iter().partition(|case| case.state.is_none() && case.not_its_own.is_some());
    for (cases, most, what) in
        [(concerned, MOST_CASES, ""), (others, MOST_OTHERS, " of other accounts")]
    {
        for case in cases.iter().take(most) {
            page.blank();
            show(&mut page, case);
        }
        if let Some(more) = cases.len().checked_sub(most).filter(|more| *more > 0) {
            page.blank();
            let told = format!("{more} more webhooks{what}: choose by --webhook ID, or --json");
            page.labelled("", &told);
        }
    }
    if answer.webhooks.is_empty() && webhook.is_none() && answer.event_type.is_some() {
        nobody(&mut page, answer);
    }
    if answer.truncated {
        page.blank();
        page.labelled("", "the log has more of it than was read: choose by --webhook ID");
    }
    page.0.join("\n")
}

fn unmatched(page: &mut Page, answer: &Answer, at: UnixMillis) {
    page.blank();
    page.labelled("now", &format!("dropped at {}: no webhook wanted it", rfc3339(at)));
    let wants = |case: &&Case| !case.patterns.is_empty();
    let wanted_now = answer.webhooks.iter().filter(wants).any(|case| case.not_its_own.is_none());
    page.labelled(
        "to do",
        if wanted_now {
            "publish it again: those below would want it today"
        } else if answer.webhooks.iter().any(|case| wants(&case)) {
            "those below want this type, and are of other accounts: see there"
        } else {
            "if somebody should get it: `webhooks add URL TYPE`, or change the `events` of a \
             webhook; then publish it again, since what nobody wants is not kept"
        },
    );
}

fn nobody(page: &mut Page, answer: &Answer) {
    page.blank();
    page.labelled("webhooks", "none wants this type today");
    for near in &answer.near {
        let pattern = shown::line(&near.pattern, MOST_SHOWN);
        page.labelled("", &format!("nearly: `{pattern}` of {}", near.webhook_id));
    }
}

/// What it may mean that nothing is known of an event.
pub(super) fn may_be(log_begins_at: Option<UnixMillis>) -> Vec<String> {
    let begins = match log_begins_at {
        None => "the log is empty".to_owned(),
        Some(at) => format!("the log begins at {}", rfc3339(at)),
    };
    [
        "it was delivered at its first attempt: DELIVERY_LOG=failures, the default, logs no such \
         delivery; the receiver's own log has its `webhook-id`"
            .to_owned(),
        "no webhook wanted it: only DELIVERY_LOG=all logs that; `--type TYPE` says who wants such \
         an event"
            .to_owned(),
        "it was never received: not published, or still in its queue; `webhook-notifier check` \
         says how many wait there"
            .to_owned(),
        "the id is another one: it is the AMQP `message-id`, else the body's `id`, else made by \
         the notifier"
            .to_owned(),
        format!("it is older than DELIVERY_LOG_KEEP, or DELIVERY_LOG was off: {begins}"),
    ]
    .into()
}

fn unknown(page: &mut Page, answer: &Answer) {
    page.blank();
    let dead = match &answer.dead_letters_unknown {
        None => "nor does it lie in a dead-letter queue".to_owned(),
        Some(problem) => format!(
            "and whether it lies in a dead-letter queue is not known ({})",
            shown::line(problem, MOST_SHOWN)
        ),
    };
    page.labelled("unknown", &format!("the log has nothing of it, {dead}. It may be that"));
    for reason in &answer.may_be {
        page.item(reason);
    }
}

fn show(page: &mut Page, case: &Case) {
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
        (Some(_), Some(account)) => format!(", but it is of account {}", shown::quoted(account)),
        _ => String::new(),
    };
    let state = match case.registration {
        Registration::Enabled => "enabled".to_owned(),
        Registration::Disabled => {
            let reason = case.disabled_reason.as_deref().unwrap_or("no reason given");
            format!("disabled ({})", shown::line(reason, MOST_SHOWN))
        }
        Registration::Deleted => "not registered (any more)".to_owned(),
    };
    page.labelled("", &format!("{state}{wants}{but}"));
    timeline(page, &case.entries);
    let errors = case.entries.iter().rev().map(|entry| entry.detail.as_str());
    let of_letter = case.dead_letter.as_ref().and_then(|letter| letter.last_error.as_deref());
    // A bare status stands in the table.
    let mut telling = errors.chain(of_letter).filter(|error| !error.is_empty());
    if let Some(error) = telling.next().filter(|error| !error.starts_with("status ")) {
        page.labelled("error", &shown::line(error, MOST_SHOWN));
    }
    page.labelled("now", &case.now);
    page.labelled("to do", &case.to_do);
}

fn timeline(page: &mut Page, entries: &[Entry]) {
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

fn row(entry: &Entry) -> String {
    let Entry { at, attempt, what, status, reason, ms, next_attempt_at, dead, .. } = entry;
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

/// Lines, wrapped.
#[derive(Default)]
struct Page(Vec<String>);

impl Page {
    fn blank(&mut self) {
        self.0.push(String::new());
    }

    fn line(&mut self, line: String) {
        self.0.push(line);
    }

    fn labelled(&mut self, label: &str, text: &str) {
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
