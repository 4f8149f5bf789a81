//! What `--help` prints below the options, and `-h` doesn't: the rest of a manual page.

/// For the program as a whole, below its first steps.
pub(super) const PROGRAM: &str = "\
Environment:
  AMQP_URL, DATABASE_URL
          the URLs of RabbitMQ and PostgreSQL, with the passwords
  QUEUES, REQUEST_TIMEOUT and the other settings
          `webhook-notifier run --help` lists them all with their defaults; each
          has a flag of the same name, which takes precedence
  WEBHOOK_SECRET
          the secret that `listen` checks signatures with
  NO_COLOR
          if set, no colours on a terminal; elsewhere there are never any
  NOTIFY_SOCKET, WATCHDOG_USEC
          set by systemd: `run` tells it when it is ready, what it waits for,
          that it is alive, and when it stops

Files:
  /etc/webhook-notifier.env
          the settings of the installed service, in systemd's syntax: nothing is
          expanded, and quotes are optional; other commands read it by --env-file
  webhook-notifier.service
          its unit, in /usr/local/lib/systemd/system, or under another PREFIX
  webhook-notifier@.service
          the unit of further instances on the same machine, each named by its
          METRICS_ADDR

Signals:
  SIGTERM, SIGINT
          `run` stops consuming, finishes the requests under way and returns the
          rest to RabbitMQ, within SHUTDOWN_TIMEOUT; a second signal ends it at
          once, which loses nothing either

Exit codes:
  0    done; for `run`: stopped by a signal
  1    failed; the last line on standard error says why, and often what to do
  2    the command or the configuration is invalid; nothing was connected
  130  a second SIGINT ended `run`; 143: a second SIGTERM

Examples:
  webhook-notifier check --env-file /etc/webhook-notifier.env
  webhook-notifier webhooks list --json | jq -r '.[].id'
  webhook-notifier dead-letters list --reason exhausted

See also:
  webhook-notifier help runbook
  webhook-notifier help, for all topics; webhook-notifier(7) has their texts
  systemctl(1), journalctl(1), systemd.exec(5), rabbitmqctl(8), psql(1)
  https://www.standardwebhooks.com, for what receivers get";

pub(super) const RUN: &str = "\
Prints:
  Its log, on standard error. After the line `ready: consuming ...` it delivers
  events; the last line, `stopped: ...`, counts the deliveries that were
  finished, parked and handed back.

Signals:
  SIGTERM or SIGINT stops it, within SHUTDOWN_TIMEOUT; a second one at once.

Exit codes:
  0    stopped by a signal
  1    RabbitMQ or PostgreSQL refused, RabbitMQ can't be reached, the metrics
       port is taken, or a bug: the last ERROR line says which
  2    a setting can't be used; the line names it
  130  ended by a second SIGINT; 143: by a second SIGTERM

Example:
  QUEUES=high_priority=8,low_priority webhook-notifier run

See also:
  webhook-notifier help configuration
  webhook-notifier help install
  webhook-notifier help guarantees";

pub(super) const MIGRATE: &str = "\
Prints:
  The names of the steps that it took, what was missing and was restored, or
  that there was nothing to do; and the webhooks with an account, if accounts
  were only labels before and now decide who gets an event. It changes no row.

Exit codes:
  0  the tables are as this version needs them
  1  PostgreSQL refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier migrate --env-file /etc/webhook-notifier.env

See also:
  webhook-notifier help postgresql
  webhook-notifier help upgrade";

pub(super) const CHECK: &str = "\
Tries what `run` does with RabbitMQ by requests that RabbitMQ has to refuse, so
that nothing is created or taken. RabbitMQ logs each as a channel error.

Prints:
  A line for each thing that `run` needs or does: `ok`, `warn` or `FAIL`, and
  what was found or what to do. It touches no row and no message.
  `warn`: `run` works, but probably not as you mean it: no webhook is enabled,
  the address of one is not allowed, an optional right or table is missing.
  `FAIL`: `run` would not work, or an enabled webhook can't get any event.
  With --json an object with `ok`, and in `checks` the `name`, `ok`, `level` (ok,
  warn, fail) and `detail` of each.

Exit codes:
  0  `run` would work, also if there are warnings
  1  it would not, or a webhook gets nothing: see the lines with FAIL
  2  usage or configuration

Example:
  webhook-notifier check --env-file /etc/webhook-notifier.env || echo 'not yet'

See also:
  webhook-notifier help rabbitmq
  webhook-notifier help postgresql";

pub(super) const PUBLISH: &str = "\
Prints:
  The events' ids, once RabbitMQ has confirmed all of them; with --json a list.

Exit codes:
  0  RabbitMQ has confirmed them
  1  it has not, there is no such queue, or the event would be dead-lettered as
     malformed
  2  usage or configuration

Examples:
  webhook-notifier publish high_priority --type user.created '{\"user\": 7}'
  webhook-notifier publish low_priority --account acme --count 1000

See also:
  webhook-notifier help events";

pub(super) const LISTEN: &str = "\
Prints:
  Where it listens; then for each request a line with the time, the answer, the
  path, the attempt, the event's id and whether the signature is valid, and below
  it the body: JSON is indented, whatever its spaces were. With --json an object
  for each, in one line, with the body as it was sent.

Exit codes:
  1  the address is taken
  2  usage

Example:
  WEBHOOK_SECRET=whsec_... webhook-notifier listen --fail-first 2

See also:
  webhook-notifier help receivers";

pub(super) const QUEUES_MOVE: &str = "\
Prints:
  How many messages it has moved, and what it has created; with --json an object.
  A message is acked after RabbitMQ has confirmed that it is in its new place:
  however the command ends, nothing is lost, and at most 32 messages are there
  twice. Headers, properties and the order are kept. Bindings to exchanges of your
  own are deleted with the old queue: `rabbitmqctl list_bindings` shows them.

Exit codes:
  0  the queue has that type, also if it had it before
  1  it is consumed, or has arguments of its own that would be lost, or RabbitMQ
     refused or can't be reached, or it was interrupted: says how far it came
  2  usage or configuration

Examples:
  webhook-notifier queues move high_priority --dry-run
  webhook-notifier queues move high_priority --to quorum

See also:
  webhook-notifier help rabbitmq";

pub(super) const COMPLETIONS: &str = "\
Prints:
  A script for that shell. `make install` installs one for each shell.

Exit codes:
  0  done
  2  usage

Examples:
  source <(webhook-notifier completions bash)
  webhook-notifier completions fish > ~/.config/fish/completions/webhook-notifier.fish

See also:
  webhook-notifier help install";

pub(super) const MAN: &str = "\
Prints:
  The page in the format of man(1), which `man -l -` shows; with --into nothing.
  `make install` puts all pages where man finds them.

Exit codes:
  0  done
  1  a page can't be written
  2  usage

Examples:
  webhook-notifier man dead-letters replay | man -l -
  webhook-notifier man guide | man -l -
  webhook-notifier man --into /usr/local/share/man

See also:
  webhook-notifier help install";

pub(super) const HELP: &str = "\
Prints:
  What `--help` of the command prints, or the topic, wrapped for the terminal;
  without a name all commands and topics. A topic that is longer than the screen
  goes through PAGER, or `less`. `man 7 webhook-notifier` has all topics.

Exit codes:
  0  done
  2  there is no such command or topic: it names those that there are

Examples:
  webhook-notifier help runbook
  webhook-notifier help dead-letters replay

See also:
  webhook-notifier help install";

pub(super) const WHY: &str = "\
Prints:
  For each webhook concerned: whether it wants the event, what was attempted when
  and with what result, where the delivery is now, and what to do. With --json an
  object. It reads the delivery log, and searches the dead-letter queues where
  these may say more. Of a failed attempt it shows the response's status line and
  the beginning of its body (DELIVERY_LOG_BODY).
  With --webhook and without an event: how many attempts succeeded and failed
  since then, for which reasons, the first and the last, the slowest, and the
  longest time between two.
  An id may be abbreviated to its first four characters or more, if no other id
  begins with them.

Exit codes:
  0  something is known about the event; or nothing is, but the log holds only
     failures (DELIVERY_LOG=failures): then it says what that may mean
  1  nothing is known about the event or the webhook: it says what that may mean;
     or the id is ambiguous; or PostgreSQL refused or can't be reached
  2  usage or configuration

Examples:
  webhook-notifier why ord-20261125-3
  webhook-notifier why ord-20261125-3 --type order.paid
  webhook-notifier why --webhook 6f1c4f0e --since 2h

See also:
  webhook-notifier help runbook";

pub(super) const TAIL: &str = "\
Prints:
  A line for each new entry of the delivery log, from all instances, within about
  a second; with --json an object each. Of a failed attempt it shows what the
  receiver answered (DELIVERY_LOG_BODY). `why` and the other commands take its
  ids, also where only the beginning is shown. If PostgreSQL can't be reached, it
  says so, and continues once PostgreSQL answers.

Exit codes:
  0  the reader of its output has gone
  1  PostgreSQL refused, or the table does not exist
  2  usage or configuration

Example:
  webhook-notifier tail --failures

See also:
  webhook-notifier help runbook";

pub(super) const WEBHOOKS_ADD: &str = "\
Prints:
  The webhook's id, and the generated secret, which is not shown again; a secret
  from --secret-from is not shown. It warns on standard error if deliveries would
  be rejected (give it the same ALLOW_NETWORKS as `run`), if a pattern probably
  does not match what was meant, or if another webhook has the same URL and wants
  some of the same events.

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

pub(super) const WEBHOOKS_LIST: &str = "\
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
  how many deliveries wait.

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

pub(super) const WEBHOOKS_EXPORT: &str = "\
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

pub(super) const WEBHOOKS_APPLY: &str = "\
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

`***` in a URL or as the value of a header means the webhook's present value.

An entry with an id describes the webhook with that id, or a new one. An entry
without an id describes the webhook with the same URL and account; if there are
several, the one with the same events. If that is ambiguous, it is an error.

Prints:
  For each webhook that differs from the file a `+` (added), `~` (changed) or `-`
  (removed), and what differs; then the numbers. With --json an object. It says
  how many deliveries are dropped with removed or disabled webhooks, and warns as
  `webhooks add` does.

Exit codes:
  0  the webhooks are as the file says, or with --dry-run would be
  1  somebody else changed a webhook meanwhile, or PostgreSQL refused or can't be
     reached: nothing was changed, unless the last line says otherwise
  2  usage or configuration, or the file has errors: all are reported with their
     lines, and nothing was changed

Examples:
  webhook-notifier webhooks apply webhooks.toml --dry-run
  webhook-notifier webhooks apply webhooks.toml --prune
  printf '[[webhooks]]\\npost_url = \"https://example.com/in\"\\nevents = [\"*\"]\\n' |
    webhook-notifier webhooks apply -

See also:
  webhook-notifier help webhook-file";

pub(super) const WEBHOOKS_SHOW: &str = "\
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
  deliveries wait in its backlogs and are dropped; with --dry-run only that, and
  nothing changes.

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

pub(super) const WEBHOOKS_TEST: &str = "\
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

pub(super) const WEBHOOKS_SET: &str = one_webhook!(
    "set 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --url https://example.com/new --timeout 3s"
);
pub(super) const WEBHOOKS_REMOVE: &str =
    webhook_dropped!("remove 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const WEBHOOKS_ENABLE: &str =
    one_webhook!("enable 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const WEBHOOKS_PAUSE: &str = one_webhook!("pause 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const WEBHOOKS_RESUME: &str =
    one_webhook!("resume 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33");
pub(super) const WEBHOOKS_DISABLE: &str =
    webhook_dropped!("disable 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --reason 'moved away'");

pub(super) const WEBHOOKS_ROTATE_SECRET: &str = "\
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

pub(super) const DEAD_LETTERS_LIST: &str = "\
Prints:
  A table: how many, of which queue, for what reason, for which webhook, how old,
  and the last error or what is malformed; with --json a list of objects. It waits
  while another command reads the same queue. RabbitMQ 4 drops a message that was
  read 20 times, so each command replaces some by copies, for a second or so.

Exit codes:
  0  done, also if there is none
  1  RabbitMQ refused or can't be reached
  2  usage or configuration

Example:
  webhook-notifier dead-letters list --newer-than 24h

See also:
  webhook-notifier help runbook";

pub(super) const DEAD_LETTERS_SHOW: &str = "\
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
  1  a server refused or can't be reached, or the command was interrupted: says
     how many were done; the others are still dead letters
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

pub(super) const DEAD_LETTERS_REPLAY: &str = dead_letters_moved!(
    "  Dead letters of disabled or deleted webhooks, malformed ones, and those whose
  queue is gone stay: it says how many, and what to do about them.
",
    "replay --reason exhausted --newer-than 24h --dry-run"
);
pub(super) const DEAD_LETTERS_PURGE: &str =
    dead_letters_moved!("", "purge --reason gone --older-than 720h");
