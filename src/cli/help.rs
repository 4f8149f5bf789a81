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
          set by systemd: `run` reports when it is ready, what it waits for,
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
          `run` stops consuming, finishes the requests in flight and returns the
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
  0  the queue has that type now, or had it already
  1  the queue is consumed, or has arguments of its own that would be lost; or
     RabbitMQ refused or can't be reached; or the command was interrupted: it says
     how many messages it has moved
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
  2  there is no such command or topic: it lists the existing ones

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
  An id may be shortened to its first characters, at least four, if no other id
  begins with them.

Exit codes:
  0  something is known about the event; or nothing is known, and the log holds
     only failures (DELIVERY_LOG=failures): then it says what that may mean
  1  nothing is known about the event or the webhook: it says what that may mean;
     or the id is that of a webhook, or ambiguous; or PostgreSQL refused or can't
     be reached
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
  says so, and continues when PostgreSQL answers.

Exit codes:
  0  the reader of its output has gone
  1  PostgreSQL refused, or the table does not exist
  2  usage or configuration

Example:
  webhook-notifier tail --failures

See also:
  webhook-notifier help runbook";
