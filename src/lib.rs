//! Delivers JSON events from RabbitMQ queues to the webhooks that want them, and loses none.
//!
//! `src/manual` tells operators what it does and guarantees; README.md is the front page. This page is for
//! readers of the code.
//!
//! # The way of one event
//!
//! ```text
//! producer ──► high_priority ──► a lane's consumer ── who wants it? ── directory ◄── PostgreSQL
//!              medium_priority        │
//!              low_priority           ├─ POST to each ──► delivered
//!                                     ├─ gets no request now ──► webhooks.backlog.<queue>.<webhook> ──► POST, in order
//!                                     ├─ failed ──► webhooks.wait.<delay> ──(expires)──► <queue>.retry ──► POST
//!                                     └─ hopeless or exhausted ──► <queue>.dead
//!              ack only when every delivery is delivered, parked or dead-lettered
//! ```
//!
//! 1. [`consumer`] runs a *lane*: one queue, one connection, and as many consumers as [`domain::growth`]
//!    says, each a channel and a thread. A consumer takes a message, and passes it to
//! 2. [`pipeline`], which reads the [`Event`](domain::event::Event), asks the [`directory`] which
//!    webhooks want it, and makes a delivery for each: in this thread if the receiver is close,
//!    otherwise in threads of [`workers`]. These also take over messages behind a consumer that is
//!    stuck.
//! 3. [`receivers`] decides whether a receiver gets an attempt now. [`domain::pace`] shares the queue's
//!    capacity, [`domain::receiver`] knows the receiver's condition, and its webhook has
//!    [limits](domain::limits). A delivery that may not begin waits for a moment, or enters its
//!    receiver's backlog, in the order of its queue: [`domain::intake`]. [`backlogs`] creates the backlog's queue.
//! 4. The [`sender`] POSTs, and returns the result as a [`Response`](domain::outcome::Response).
//! 5. [`domain::outcome`] says what that means and [decides](domain::outcome::decide) what follows:
//!    delivered, parked for the schedule's next delay, or dead.
//! 6. The [`broker`]'s publisher parks or dead-letters it, and returns a promise of RabbitMQ's confirm.
//!    If a queue accepts no messages, the publisher waits or uses another queue.
//! 7. The lane acks the message once all promises are kept. If any of this could not be done, it hands
//!    the message back.
//!
//! A delivery whose retry queue is missing goes to `webhooks.orphaned`. All these queues are checked
//! continually: a missing one is created again, and the loss of its messages is logged.
//!
//! A parked delivery names one webhook and its attempt number, so a retry never affects another webhook.
//! It waits at the broker, not in a thread: a wait queue's TTL is the timer, and its dead-letter
//! exchange routes the delivery to `<queue>.retry`, which has its own lane. A third lane consumes the
//! backlogs, in order and as fast as their receivers may get requests: until then, nothing moves. All
//! three share one capacity, the limit of requests in flight for a queue.
//!
//! The [`delivery_log`] records what happens to a delivery, for `why` and `tail`; it never delays a
//! delivery, and decides nothing.
//!
//! Several instances share all of this, and the limits of webhooks: each records that it is alive
//! ([`instances`]), and [`domain::instances`] says who may send how much.
//!
//! [`notices`] publishes the notifier's own events about webhooks (they fail for long, are disabled,
//! paused) and deliveries that die; it also disables what has failed for DISABLE_AFTER.
//!
//! Dead letters are the operator's: [`dead_letters`] shows them, and sends them back through
//! `<queue>.retry`. [`metrics`] counts what happens, [`status`] puts it into words, and [`admin`] serves
//! both.
//!
//! # What always holds
//!
//! - A message is acked only when each of its deliveries has reached its receiver, or the broker has
//!   confirmed the message that carries it on. So a crash can repeat a POST, but not lose one.
//! - An event reaches no webhook of another account ([`domain::account`]): neither when its webhooks are
//!   looked up, nor after it has waited for one whose account has changed meanwhile.
//! - Our own header (`x-attempt`) counts the attempts that were made. The broker's counters also count
//!   the broker's own failures.
//! - Each request in flight has a place in its queue's capacity, and releases it when it ends, within
//!   REQUEST_TIMEOUT. Slow and unproven receivers can't use all of it, so a prompt receiver gets a place by
//!   then.
//! - Whatever a table's row contains, it affects at most its own webhook: `store/row.rs` reads it.
//! - A receiver's failure is a value ([`domain::outcome::Outcome`]); an `Err` is a failure of our own
//!   infrastructure, and stops consuming until that works again.
//! - Everything that may hang has a time limit: each module that waits documents how long, and why. A
//!   message is acked or handed back before RabbitMQ would take it back ([`domain::in_hand`]).
//! - If no thread can be started, another thread does its work, or it is done later: see [`threads`].
//! - Every wait without its own limit, and every backoff, ends on [`shutdown`]; the others end within
//!   SHUTDOWN_TIMEOUT or are given up then. A thread that ends unexpectedly ends the process.
//! - Untrusted URLs only lead where the [`sender`]'s resolver allows ([`domain::address`]), and
//!   untrusted text reaches a log or a terminal only through [`domain::shown`]; secrets have a type
//!   ([`domain::secret::Secret`]) that prints as `***`.
//! - [`domain`] has no I/O, no clock and no randomness. Only [`broker`] and [`consumer`] use amiquip,
//!   only [`store`] uses postgres and r2d2, and only [`sender`] uses ureq. [`tls`] serves all three.
//!
//! # Where to change what
//!
//! | to change | start at |
//! |---|---|
//! | what an answer means, and what happens next | [`domain::outcome`] |
//! | which receivers get a request now | [`domain::pace`]; the receiver's condition: [`domain::receiver`]; its circuit breaker and the probes: `domain/receiver/breaker.rs`; its webhook's limits: [`domain::limits`]; this instance's share of them: [`domain::instances`] |
//! | which deliveries wait, which go to a backlog, and in which order | [`domain::intake`]; what the backlogs hold: `domain/intake/contents.rs` |
//! | how a backlog is consumed | `consumer/backlogs.rs`; how much of it is in hand: `consumer/backlogs/supply.rs`; if RabbitMQ does not answer about it: `consumer/backlogs/unanswered.rs`; which instance consumes it: `consumer/backlogs/elsewhere.rs` |
//! | how a backlog is created | `backlogs/keeper/creation.rs`; how it is found: `backlogs/keeper/search.rs`; how it is removed: `backlogs/keeper/removal.rs`, when: `consumer/backlogs/upkeep.rs` |
//! | how many consumers a lane has | [`domain::growth`]; how they start and stop: `consumer/crew.rs` |
//! | how instances know of each other | [`instances`], `store/instances.rs`; which of them are alive: `domain/instances/roll.rs` |
//! | which deliveries of an event run concurrently | `pipeline/fan_out.rs` |
//! | how long a failed delivery waits for its next attempt | [`domain::retry`] |
//! | what a request contains | `sender/request.rs`, [`domain::signature`], [`domain::settings`]; how headers encode ids and types: [`domain::encoding`]; which of the producer's headers are forwarded: [`domain::forwarding`] |
//! | how much of a failed answer is kept, and what is redacted | `sender/excerpt.rs`, [`domain::answer`] |
//! | how many idle connections a receiver keeps | `sender.rs`, `sender/agents.rs` |
//! | how connections are reused, and what counts as an answer | `sender/exchange.rs`, `sender/head.rs`; the messages if there is none: `sender/failure.rs` |
//! | which addresses a webhook may have | [`domain::address`]; how its host is looked up: [`lookup`]; how a proxy reaches it: `sender/egress.rs` |
//! | which webhooks want an event | [`domain::webhook`], [`directory`]; the event's account: [`domain::account`]; what the directory forgets when webhooks change: `domain/webhook/scope.rs`, `sql/015_changes.sql` |
//! | what `why` concludes about a delivery | [`domain::diagnosis`]; its wording: `cli/why/words.rs`, and that of the remedies: `cli/why/words/remedy.rs`; the entries of the log: [`domain::delivery_log`] |
//! | how times are represented and printed | [`domain::time`]; in SQL: `store/time.rs`; the only reader of the wall clock: [`clock`] |
//! | what `webhooks.events` publishes | [`domain::notice`]; when: `store/conditions/unannounced.rs`; how: `notices/publisher.rs`; how all instances record since when a receiver fails: `notices/watch.rs` |
//! | the tables | a new file in `sql/`, listed in `store/schema/migrations.rs`; what `migrate` restores: `store/schema/tables.rs`; how rows are read: `store/row.rs`; statements: [`store`] |
//! | exchanges and queues | `broker/topology.rs`; how they are declared and checked: `broker/declare.rs`; their known state: `broker/objects.rs`; the permissions that they need: `broker/rights.rs` |
//! | how we connect to the broker | `broker/connecting.rs`; how a lost connection is noticed: `broker/link.rs`, `broker/guard.rs` |
//! | what happens to a message if its queue refuses it | `broker/refusals.rs`; if its queue is unusable: `broker/routes.rs` |
//! | a setting | `config::SETTINGS`; tests then require its rows in `src/manual/configuration.md` and `scripts/webhook-notifier.env` |
//! | a metric | [`metrics`], and its row in `src/manual/metrics.md` |
//! | an alert | `scripts/monitoring/prometheus-rules.yml`, its cases in `prometheus-rules.test.yml`, and its row in `src/manual/alerts.md` |
//! | what `/readyz` and `/healthz` report | [`health`] |
//! | what the status page says | `status/advice.rs`; how it names and finds receivers: `status/names.rs`; how it looks: `admin/page/` |
//! | how much of a URL the status page shows | `domain/webhook/place.rs` |
//! | what a file of webhooks means, and which changes it requires | [`domain::declared`]; how it is read and written: `cli/webhooks/file.rs`; how all changes are made in one transaction: `store/declared.rs` |
//! | a command | its file in `cli/`; what its `--help` says below the options: `cli/help.rs`, `cli/webhooks/help.rs`, `cli/dead_letters/help.rs`; the arguments that commands share: `cli/arguments.rs`; the ids that they accept: `cli/ids.rs` |
//! | the operators' manual | a topic in `src/manual`, listed in `cli/topics.rs` for `help` and the manual page |
//! | manual pages and completions, generated from the arguments and the manual | `cli/manual.rs` |
//! | how dead letters are read without losing them | `broker/browse.rs`, `broker/renewal.rs` |
//! | how a queue changes its kind | `broker/moving.rs` |
//!
//! `tests/integration` tests each of these from the outside, against real servers. Its `layout.rs` checks
//! which module may use which.
//!
//! # The modules, in reading order

pub mod cli;
pub mod app;
pub mod consumer;
pub mod pipeline;
pub mod domain;
pub mod sender;
pub mod receivers;
pub mod backlogs;
pub mod workers;
pub mod delivery_log;
pub mod notices;
pub mod instances;
pub mod directory;
pub mod store;
pub mod broker;
pub mod lookup;
pub mod dead_letters;
pub mod admin;
pub mod supervisor;
pub mod status;
pub mod metrics;
pub mod health;
pub mod shutdown;
pub mod clock;
pub mod threads;
pub mod config;
pub mod tls;
