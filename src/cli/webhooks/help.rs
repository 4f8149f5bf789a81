//! What `--help` of `webhooks` prints below the options: the rest of a manual page.

pub(super) const ADD: &str = "\
Prints:
  The webhook's id, and the generated secret, which is not shown again; a secret
  from --secret-from is not shown. It warns on standard error if deliveries would
  be rejected (give it the ALLOW_NETWORKS of `run`, whose own setting counts for
  deliveries), if a pattern probably does not match what was meant, or if another
  webhook has the same URL and wants some of the same events.

Exit codes:
  0  added, also with a warning
  1  the URL or a pattern is invalid, or PostgreSQL refused or can't be reached
  2  usage or configuration

Examples:
  webhook-notifier webhooks add https://example.com/in 'user.*' order.paid
  webhook-notifier webhooks add https://example.com/in '*' --account acme
  webhook-notifier webhooks add https://example.com/in '*' --secret-from secret.txt

See also:
  webhook-notifier help webhook-settings
  webhook-notifier help egress
  webhook-notifier help receivers";

pub(super) const LIST: &str = "\
Prints:
  A table with id, state, URL and events; and, if any webhook has these, the
  account, the number of deliveries in backlogs, and since when it fails. With
  --json a list of objects. On a terminal the columns fit its width (ids are cut
  to what tells them apart), and a table longer than the screen goes through
  PAGER, or `less`; elsewhere nothing is cut. The query and fragment of a URL are
  shown as `***` without --reveal.

  The state is `failing` if the receiver fails and deliveries wait for it,
  `unusable` if all deliveries are rejected, and `warning` if a pattern can't
  match anything: `webhooks show` says why. `?` means that RabbitMQ doesn't say
  how many deliveries wait. Times are in UTC, in the form 2026-11-25T02:54:28Z;
  on a narrow terminal without the year and the seconds.

Exit codes:
  0  done, also if there is none
  1  PostgreSQL refused or can't be reached
  2  usage or configuration

Examples:
  webhook-notifier webhooks list
  webhook-notifier webhooks list --state failing --account acme
  webhook-notifier webhooks list --event order.paid --url example.com --json

See also:
  webhook-notifier help runbook";

pub(super) const EXPORT: &str = "\
Prints:
  The file, on standard output. If it is applied again, nothing changes. A webhook
  that can't be described in a file (a part of it is too large, or can't be read)
  is left out, and named on standard error.

Exit codes:
  0  done
  1  a webhook is left out; or PostgreSQL refused or can't be reached
  2  usage or configuration

Examples:
  webhook-notifier webhooks export > webhooks.toml
  webhook-notifier webhooks export --json --reveal | jq '.webhooks | length'

See also:
  webhook-notifier help webhook-file";

pub(super) const APPLY: &str = "\
The file is a list of webhooks, each with these keys:
  post_url, events       where its events go, and which events: both are required
  account, description, headers, timeout_ms, max_in_flight, rate_per_second,
  no_retry_status        its settings; one that is missing here is unset
  paused, disabled       true or false; if missing, it stays as it is; with
                         `disabled = true`, there may be a disabled_reason
  secret, secret_from    the secret, or a file with it, relative to this file; if
                         both are missing, the webhook keeps its secret, and a new
                         one gets one. After a change both sign for 24h
  id                     the webhook's id

`***` in a URL or as the value of a header stands for the webhook's present
value.

An entry with an id describes the webhook with that id, or a new one. An entry
without an id describes the webhook with the same URL and account; if there are
several, the one with the same events. If that is ambiguous, it is an error.

Prints:
  For each webhook that differs from the file a `+` (added), `~` (changed) or `-`
  (removed), and what differs; then the numbers. With --json an object. It says
  how many deliveries in backlogs are dropped with removed or disabled webhooks,
  and warns as `webhooks add` does.

Exit codes:
  0  the webhooks are as the file says, or with --dry-run would be
  1  somebody else has changed a webhook meanwhile, or PostgreSQL refused or
     can't be reached: nothing was changed, unless the last line says otherwise
  2  usage or configuration, or the file has errors: all are reported with their
     lines, and nothing was changed

Examples:
  webhook-notifier webhooks apply webhooks.toml --dry-run
  webhook-notifier webhooks apply webhooks.toml --prune
  printf '[[webhooks]]\\npost_url = \"https://example.com/in\"\\nevents = [\"*\"]\\n' |
    webhook-notifier webhooks apply -

See also:
  webhook-notifier help webhook-file";

pub(super) const SHOW: &str = "\
Prints:
  The webhook; with --json as an object. Its secret is not shown. A line for
  each of its backlogs: how many deliveries of which queue wait (`?` if RabbitMQ
  doesn't say), since when and why, and when the next attempt is due. If it has
  limits and several instances run, which of these keep the limits.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier webhooks show 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33

See also:
  webhook-notifier help webhook-settings
  webhook-notifier help backlogs";

/// For a command that drops deliveries.
macro_rules! webhook_dropped {
    ($example:literal) => {
        concat!(
            "\
Prints:
  The webhook after the change, or as it was before its removal; with --json as
  an object. Its secret is not shown. Before that, on standard error, how many
  deliveries are dropped: those in its backlogs, at once; and those that wait for
  their next attempt, when they are due. RabbitMQ can't count the latter for one
  webhook, so their number is that of the delivery log. With --dry-run only these
  numbers, and nothing changes.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or can't be reached
  2  usage or configuration

Examples:
  webhook-notifier webhooks ",
            $example,
            "
  webhook-notifier webhooks ",
            $example,
            " --dry-run

See also:
  webhook-notifier help webhook-settings"
        )
    };
}

pub(super) const TEST: &str = "\
Prints:
  The request, the response or the failure, and what to do about it; with --json
  an object. Secrets are shown as `***`.

Exit codes:
  0  the response was 2xx
  1  it was not, or there was none; no webhook has that id; or PostgreSQL refused
     or can't be reached
  2  usage or configuration

Example:
  webhook-notifier webhooks test 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33

See also:
  webhook-notifier help receivers
  webhook-notifier help egress";

/// For a command that shows or changes one webhook.
macro_rules! one_webhook {
    ($example:literal) => {
        concat!(
            "\
Prints:
  The webhook after the change; with --json as an object. Its secret is not
  shown.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier webhooks ",
            $example,
            "

See also:
  webhook-notifier help webhook-settings"
        )
    };
}

pub(super) const SET: &str = one_webhook!(
    "set 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --url https://example.com/new --timeout 3s"
);
pub(super) const REMOVE: &str = webhook_dropped!("remove 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const ENABLE: &str = one_webhook!("enable 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const PAUSE: &str = one_webhook!("pause 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const RESUME: &str = one_webhook!("resume 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const DISABLE: &str =
    webhook_dropped!("disable 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --reason 'moved away'");

pub(super) const ROTATE_SECRET: &str = "\
Prints:
  The webhook's id, and its new secret, which is not shown again.

Exit codes:
  0  done: requests are signed with the new secret, and until --keep is over with
     the old one, too
  1  no webhook has that id; or PostgreSQL refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier webhooks rotate-secret 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --keep 72h

See also:
  webhook-notifier help receivers";
