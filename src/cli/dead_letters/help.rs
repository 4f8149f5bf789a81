//! What `--help` of `dead-letters` prints below the options: the rest of a manual page.

pub(super) const LIST: &str = "\
Prints:
  A table: how many, of which queue, for what reason, for which webhook, how old,
  and the last error or what is malformed; with --json a list of objects. It waits
  while another command reads the same queue. RabbitMQ 4 drops a message that was
  read 20 times, so each command replaces some messages by copies, which takes a
  second or so.

Exit codes:
  0  done, also if there is none
  1  RabbitMQ refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier dead-letters list --newer-than 24h

See also:
  webhook-notifier help runbook";

pub(super) const SHOW: &str = "\
Prints:
  For each: queue, reason, the last error or what is malformed, the receiver's
  last response (x-last-status-line and x-last-body; see DELIVERY_LOG_BODY),
  headers and body; with --json a list of objects.

Exit codes:
  0  done, also if there is none
  1  RabbitMQ refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier dead-letters show --reason exhausted --limit 1

See also:
  webhook-notifier help runbook";

/// For a command that removes dead letters.
macro_rules! dead_letters_moved {
    ($more:literal, $example:literal) => {
        concat!(
            "\
Prints:
  How many there were, or with --dry-run would be; with --json an object.
",
            $more,
            "
Exit codes:
  0  done, also if there was none
  1  a server refused or can't be reached, or the command was interrupted: it
     says how many were done; the others are still dead letters
  2  usage or configuration

Example:
  webhook-notifier dead-letters ",
            $example,
            "

See also:
  webhook-notifier help runbook"
        )
    };
}

pub(super) const REPLAY: &str = dead_letters_moved!(
    "  Dead letters of disabled or deleted webhooks, malformed ones, and those whose
  queue does not exist stay dead: it says how many, and what to do about them.
",
    "replay --reason exhausted --newer-than 24h --dry-run"
);
pub(super) const PURGE: &str = dead_letters_moved!("", "purge --reason gone --older-than 720h");
