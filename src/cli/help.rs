//! What `--help` prints below the options, and `-h` doesn't: the rest of a manual page.

/// For the program as a whole, below its first steps.
pub(super) const PROGRAM: &str = "\
Environment:
  AMQP_URL, DATABASE_URL
          where RabbitMQ and PostgreSQL are, with the passwords
  QUEUES, REQUEST_TIMEOUT and the other settings
          `webhook-notifier run --help` lists them all with their defaults; each
          has a flag of the same name, which counts more
  WEBHOOK_SECRET
          what `listen` checks signatures by
  NO_COLOR
          where it is set, no colours on a terminal; elsewhere there are none
  NOTIFY_SOCKET, WATCHDOG_USEC
          set by systemd: `run` tells it when it is ready, what it waits for,
          that it lives, and that it stops

Files:
  /etc/webhook-notifier.env
          the settings of the installed service, in systemd's syntax: nothing is
          expanded, and quotes are optional; --env-file gives them to a command
  webhook-notifier.service
          its unit, in /usr/local/lib/systemd/system or where PREFIX has led it
  webhook-notifier@.service
          a further instance on the same machine, named by its METRICS_ADDR

Signals:
  SIGTERM, SIGINT
          `run` stops consuming, finishes the requests under way and gives the
          rest back to the broker, within SHUTDOWN_TIMEOUT; a second signal ends
          it at once, and loses nothing either

Exit codes:
  0    done; for `run`: stopped by a signal
  1    failed; the last line on standard error says why, and often what to do
  2    the command or the configuration makes no sense; nothing was opened
  130  a second SIGINT ended `run`; 143: a second SIGTERM

Examples:
  webhook-notifier check --env-file /etc/webhook-notifier.env
  webhook-notifier webhooks list --json | jq -r '.[].id'
  webhook-notifier dead-letters list --reason exhausted

See also:
  webhook-notifier(7), `webhook-notifier man guide`: guarantees, settings,
  metrics and what to do when
  systemctl(1), journalctl(1), systemd.exec(5), rabbitmqctl(8), psql(1)
  https://www.standardwebhooks.com, for what receivers get";

pub(super) const RUN: &str = "\
Prints:
  Its log, on standard error. From the line `ready: consuming ...` on events
  are delivered; the last one, `stopped: ...`, counts what was finished, parked
  and handed back.

Signals:
  SIGTERM or SIGINT stops it, within SHUTDOWN_TIMEOUT; a second one at once.

Exit codes:
  0    stopped by a signal
  1    refused by RabbitMQ or PostgreSQL; RabbitMQ not to be reached; metrics
       port taken; or a defect: the last ERROR line says which
  2    a setting can't be used; the line names it
  130  ended by a second SIGINT; 143: by a second SIGTERM

Example:
  QUEUES=high_priority=8,low_priority webhook-notifier run";

pub(super) const MIGRATE: &str = "\
Prints:
  The names of the steps that it took, what had been there before and was put
  back, or that there was nothing to do; and which webhooks had an account that
  was a label and decides now. It touches no row.

Exit codes:
  0  the tables are what this version needs
  1  PostgreSQL refused or is away
  2  usage or configuration

Example:
  webhook-notifier migrate --env-file /etc/webhook-notifier.env";

pub(super) const CHECK: &str = "\
Tries what `run` does at RabbitMQ in ways that it has to refuse, so that it makes
and takes nothing. RabbitMQ logs each as a channel error.

Prints:
  A line for each thing that `run` needs or does, which is tried on no row and
  no message: `ok` or `FAIL`, and what was found or what to do. A webhook that
  is enabled and can get nothing is a FAIL, too. With --json an object with `ok`, and `name`, `ok` and `detail` of
  each in `checks`.

Exit codes:
  0  `run` would work
  1  it would not: see the lines with FAIL
  2  usage or configuration

Example:
  webhook-notifier check --env-file /etc/webhook-notifier.env || echo 'not yet'";

pub(super) const PUBLISH: &str = "\
Prints:
  The events' ids, once the broker has confirmed them all; with --json a list.

Exit codes:
  0  the broker has them
  1  it has not, there is no such queue, or the event could only be
     dead-lettered
  2  usage or configuration

Examples:
  webhook-notifier publish high_priority --type user.created '{\"user\": 7}'
  webhook-notifier publish low_priority --account acme --count 1000";

pub(super) const LISTEN: &str = "\
Prints:
  Where it listens; then for each request a line with when, the answer, the path,
  the attempt, the event's id and whether the signature fits, and below it the
  body: JSON with a line for each member, whatever spaces were sent. With --json
  an object each, in one line, with the body as it was sent.

Exit codes:
  1  the address is taken
  2  usage

Example:
  WEBHOOK_SECRET=whsec_... webhook-notifier listen --fail-first 2";

pub(super) const QUEUES_MOVE: &str = "\
Prints:
  How many messages it has moved, and what it has made; with --json an object.
  A message is acked when the broker has confirmed that it is in its new place:
  whatever ends it, nothing is lost, and at most 32 are there twice. Headers,
  properties and the order stay. Bindings to exchanges of your own go with the
  old queue: `rabbitmqctl list_bindings` shows them.

Exit codes:
  0  it is a queue of that kind, also if it was before
  1  it is consumed, or has arguments of its own that would be lost, or the
     broker refused or is away, or it was interrupted: says how far it came
  2  usage or configuration

Examples:
  webhook-notifier queues move high_priority --dry-run
  webhook-notifier queues move high_priority --to quorum";

pub(super) const COMPLETIONS: &str = "\
Prints:
  A script for that shell. `make install` puts one where each shell finds it.

Exit codes:
  0  done
  2  usage

Examples:
  source <(webhook-notifier completions bash)
  webhook-notifier completions fish > ~/.config/fish/completions/webhook-notifier.fish";

pub(super) const MAN: &str = "\
Prints:
  The page in the language of man(1), which `man -l -` shows; with --into
  nothing. `make install` puts all pages where man finds them.

Exit codes:
  0  done
  1  a page can't be written
  2  usage

Examples:
  webhook-notifier man dead-letters replay | man -l -
  webhook-notifier man guide | man -l -
  webhook-notifier man --into /usr/local/share/man";

pub(super) const WHY: &str = "\
Prints:
  For each webhook that is concerned: whether it wants the event, what was tried
  when and what came back, where the delivery is now, and what to do. With
  --json an object. It knows what is in the delivery log, and looks through the
  dead-letter queues where that may say more. Of a failed attempt it has the
  answer's status line and the beginning of its body (DELIVERY_LOG_BODY).
  With --webhook and without an event: how many attempts succeeded and failed
  since then, by what, the first and the last, the slowest, and the longest time
  between two.
  Ids may be cut to a beginning, of four characters at least, that no other id
  has.

Exit codes:
  0  something is known of the event, or nothing and the log holds only failures
     (DELIVERY_LOG=failures): then it says what the log can't know
  1  nothing is known of the event or the webhook: it says what that can mean;
     or several ids begin so; or PostgreSQL refused or is away
  2  usage or configuration

Examples:
  webhook-notifier why ord-20261125-3
  webhook-notifier why ord-20261125-3 --type order.paid
  webhook-notifier why --webhook 6f1c4f0e --since 2h";

pub(super) const TAIL: &str = "\
Prints:
  A line for each entry of the delivery log, by whichever instance, within about
  a second; with --json an object each. Of a failed attempt what the receiver
  said (DELIVERY_LOG_BODY). Its ids can be given to `why` and the others, also
  where only their beginning is shown. While PostgreSQL is away it says so, and
  goes on when that answers.

Exit codes:
  0  nobody read it any more
  1  PostgreSQL refused, or the table is not there
  2  usage or configuration

Example:
  webhook-notifier tail --failures";

pub(super) const WEBHOOKS_ADD: &str = "\
Prints:
  The webhook's id, and the secret that it made, which nobody can see again; one
  that came by --secret-from is not shown. A warning on standard error where
  deliveries would be rejected (give it the ALLOW_NETWORKS that `run` has), a
  pattern hardly matches what was meant, or another webhook has the same URL and
  wants some of the same events.

Exit codes:
  0  added, also with a warning
  1  the URL or a pattern can't be, or PostgreSQL refused or is away
  2  usage or configuration

Examples:
  webhook-notifier webhooks add https://example.com/in 'user.*' order.paid
  webhook-notifier webhooks add https://example.com/in '*' --account acme
  webhook-notifier webhooks add https://example.com/in '*' --secret-from secret.txt";

pub(super) const WEBHOOKS_LIST: &str = "\
Prints:
  A table with id, state, URL and events, and with accounts, what waits in
  backlogs and since when it fails where there is any of these; with --json a
  list of objects. On a terminal it fits the columns (ids are cut then to what
  tells them apart), and what is longer than the screen goes through PAGER, or
  `less`; elsewhere nothing is cut. Query and fragment of URLs are `***` without
  --reveal.

  The state is `failing` where the receiver fails and deliveries wait for it,
  `unusable` where all deliveries are rejected, and `warning` where a pattern
  can match nothing: `webhooks show` says why. `?` stands for how much waits
  where RabbitMQ doesn't say.

Exit codes:
  0  done, also if there is none
  1  PostgreSQL refused or is away
  2  usage or configuration

Examples:
  webhook-notifier webhooks list
  webhook-notifier webhooks list --state failing --account acme
  webhook-notifier webhooks list --event order.paid --url example.com --json";

pub(super) const WEBHOOKS_EXPORT: &str = "\
Prints:
  The file, on standard output. Applied again it changes nothing. A webhook that
  no file can say (a part of it is too large, or can't be read) is left out, and
  named on standard error.

Exit codes:
  0  done
  1  a webhook is left out; or PostgreSQL refused or is away
  2  usage or configuration

Examples:
  webhook-notifier webhooks export > webhooks.toml
  webhook-notifier webhooks export --json --reveal | jq '.webhooks | length'";

pub(super) const WEBHOOKS_APPLY: &str = "\
The file is a list of webhooks, each with these keys:
  post_url, events       where its events go, and which: both have to be there
  account, description, headers, timeout_ms, max_in_flight, rate_per_second,
  no_retry_status        its settings; it has none that is not there
  paused, disabled       true or false; as it is where it is not there; with
                         `disabled = true` perhaps a disabled_reason
  secret, secret_from    what signs, or a file with it, beside this one; the one
                         that it has where neither is there; a new webhook gets
                         one then. After a change the old one signs too, for 24h
  id                     which webhook it is

`***` in a URL or as the value of a header is what the webhook has there.

An entry with an id is the webhook of that id, or a new one. One without is the
webhook of the same URL and account; of several, that of the same events. Where
that doesn't tell, it is an error.

Prints:
  For each webhook that is not as the file says a `+` (added), `~` (changed) or
  `-` (removed), and what; then how many. With --json an object. It tells how
  many deliveries are dropped with those that are removed or disabled, and warns
  as `webhooks add` does.

Exit codes:
  0  the webhooks are as the file says, or with --dry-run would be
  1  somebody else changed a webhook meanwhile, or PostgreSQL refused or is
     away: nothing was changed, or the last line says otherwise
  2  usage or configuration, or the file has errors: all are told, with their
     lines, and nothing was changed

Examples:
  webhook-notifier webhooks apply webhooks.toml --dry-run
  webhook-notifier webhooks apply webhooks.toml --prune
  printf '[[webhooks]]\\npost_url = \"https://example.com/in\"\\nevents = [\"*\"]\\n' |
    webhook-notifier webhooks apply -";

pub(super) const WEBHOOKS_SHOW: &str = "\
Prints:
  The webhook; with --json as an object. Its secret is not shown. A line for
  each of its backlogs: how many deliveries of which queue wait (`?` where
  RabbitMQ doesn't say), since when and why, and when the next attempt is due.
  Where it has limits and several instances run, which of them keep these.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or is away
  2  usage or configuration

Example:
  webhook-notifier webhooks show 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33";

/// For a command that drops deliveries.
macro_rules! webhook_dropped {
    ($example:literal) => {
        concat!(
            "\
Prints:
  The webhook as it is then, or was last; with --json as an object. Its secret
  is not shown. Before, on standard error, how many deliveries wait in its
  backlogs, which are dropped; with --dry-run only that, and nothing changes.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or is away
  2  usage or configuration

Examples:
  webhook-notifier webhooks ",
            $example,
            "
  webhook-notifier webhooks ",
            $example,
            " --dry-run"
        )
    };
}

pub(super) const WEBHOOKS_TEST: &str = "\
Prints:
  The request, and the answer or the failure, and what to do about that; with
  --json an object. Secrets are `***` in it.

Exit codes:
  0  the answer was 2xx
  1  it was not, or there was none; no webhook has that id; or PostgreSQL refused
     or is away
  2  usage or configuration

Example:
  webhook-notifier webhooks test 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33";

/// For a command that shows or changes one webhook.
macro_rules! one_webhook {
    ($example:literal) => {
        concat!(
            "\
Prints:
  The webhook as it is then, or was last; with --json as an object. Its secret
  is not shown.

Exit codes:
  0  done
  1  no webhook has that id; or PostgreSQL refused or is away
  2  usage or configuration

Example:
  webhook-notifier webhooks ",
            $example
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
  The webhook's id, and its new secret, which nobody can see again.

Exit codes:
  0  done: requests are signed with the new secret, and for --keep with the old
     one, too
  1  no webhook has that id; or PostgreSQL refused or is away
  2  usage or configuration

Example:
  webhook-notifier webhooks rotate-secret 6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33 --keep 72h";

pub(super) const DEAD_LETTERS_LIST: &str = "\
Prints:
  A table: how many, of which queue, why, for which webhook, how old, the last
  error, or what is malformed; with --json a list of objects. Waits while another
  command looks at the same queue. RabbitMQ 4 drops what was looked at 20 times,
  so each look replaces some of them by copies, for a second or so.

Exit codes:
  0  done, also if there is none
  1  the broker refused or is away
  2  usage or configuration

Example:
  webhook-notifier dead-letters list --newer-than 24h";

pub(super) const DEAD_LETTERS_SHOW: &str = "\
Prints:
  Queue, reason, last error or what is malformed, what the receiver answered last
  (x-last-status-line and x-last-body; DELIVERY_LOG_BODY), headers and body of
  each; with --json a list of objects.

Exit codes:
  0  done, also if there is none
  1  the broker refused or is away
  2  usage or configuration

Example:
  webhook-notifier dead-letters show --reason exhausted --limit 1";

/// For a command that removes dead letters.
macro_rules! dead_letters_moved {
    ($more:literal, $example:literal) => {
        concat!(
            "\
Prints:
  How many it was, or with --dry-run would be; with --json an object.
",
            $more,
            "
Exit codes:
  0  done, also if there was none
  1  a server refused or is away, or the command was interrupted: says how
     many were done; the others are still dead
  2  usage or configuration

Example:
  webhook-notifier dead-letters ",
            $example
        )
    };
}

pub(super) const DEAD_LETTERS_REPLAY: &str = dead_letters_moved!(
    "  Dead letters of webhooks that are disabled or deleted, malformed ones, and
  those whose queue is gone stay; how many, and what to do about them.
",
    "replay --reason exhausted --newer-than 24h --dry-run"
);
pub(super) const DEAD_LETTERS_PURGE: &str =
    dead_letters_moved!("", "purge --reason gone --older-than 720h");
