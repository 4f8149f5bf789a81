//! Delivers JSON events from RabbitMQ queues to the webhooks that want them, and loses none.
//!
//! README.md tells operators what it does and guarantees. This page is for who reads the code.
//!
//! # The way of one event
//!
//! ```text
//! producer ──► high_priority ──► a lane's consumer ── who wants it? ── directory ◄── PostgreSQL
//!              medium_priority        │
//!              low_priority           ├─ POST to each ──► delivered
//!                                     ├─ not to be asked now ──► webhooks.backlog.<queue>.<webhook> ──► POST, in order
//!                                     ├─ failed ──► webhooks.wait.<delay> ──(expires)──► <queue>.retry ──► POST
//!                                     └─ hopeless or exhausted ──► <queue>.dead
//!              ack only when every delivery is delivered, parked or dead-lettered
//! ```
//!
//! 1. [`consumer`] runs a *lane*: one queue, one connection, and as many consumers as it needs by
//!    [`domain::growth`], each a channel and a thread. A consumer takes a message, and gives it to
//! 2. [`pipeline`], which reads the [`Event`](domain::event::Event), asks the [`directory`] which
//!    webhooks want it, and sees to a delivery for each: in this thread where the receiver is near,
//!    else in threads of [`workers`]. They also take over what waits behind a consumer that is stuck.
//! 3. [`receivers`] says whether a receiver is to have an attempt now. [`domain::pace`] shares the
//!    queue's capacity, [`domain::receiver`] knows how the receiver has been, and its webhook has
//!    [limits](domain::limits). What may not begin waits for a moment, or enters its receiver's backlog,
//!    in the order of its queue: [`domain::intake`]. [`backlogs`] sees to it that there is one.
//! 4. The [`sender`] POSTs, and tells what came back as a [`Response`](domain::outcome::Response).
//! 5. [`domain::outcome`] says what that means and [decides](domain::outcome::decide) what follows:
//!    delivered, parked for the next delay of the schedule, or dead.
//! 6. The [`broker`]'s publisher parks or dead-letters it, and promises its confirm. Where a queue takes
//!    nothing, it waits for it or finds another way.
//! 7. Back in the lane, the message is acked once all promises are kept; or handed back, if any of
//!    this could not be done.
//!
//! A delivery whose retry queue is gone goes to `webhooks.orphaned`. Which of all these queues are there
//! is looked at all the time: what is missing is made again, and what was lost with it is told.
//!
//! A parked delivery names one webhook and its attempt number, so a retry never touches a
//! neighbour. It waits at the broker, not in a thread: a wait queue's TTL is the timer, and its
//! dead-letter exchange brings the delivery into `<queue>.retry`, a lane of its own. A backlog is
//! consumed by a third lane, in order and as fast as its receiver may be asked: while that may not be
//! asked, nothing moves. All three use the same capacity: what a queue may have under way, its events,
//! retries and backlogs have together.
//!
//! What happened to a delivery on its way is told to the [`delivery_log`], for `why` and `tail`; that
//! never waits, and nothing is decided by it.
//!
//! Several instances share all of this, and the limits of webhooks: each writes down that it is alive
//! ([`instances`]), and [`domain::instances`] says who may send how much.
//!
//! What becomes of webhooks (they fail for long, are disabled, paused) and which deliveries die is told by
//! [`notices`], events of the notifier's own; they also disable what has failed for DISABLE_AFTER.
//!
//! What died is the operator's: [`dead_letters`] shows it, and sends it back through
//! `<queue>.retry`. How all this goes is counted in [`metrics`] and put into words by [`status`],
//! and [`admin`] shows both.
//!
//! # What always holds
//!
//! - A message is acked only when each of its deliveries has reached its receiver, or the broker
//!   has confirmed the message that carries it on. So a crash can repeat a POST, not lose one.
//! - An event reaches no webhook of another account ([`domain::account`]): not when its webhooks are looked
//!   up, nor when it has waited for one whose account has changed since.
//! - Attempts are counted in our own header (`x-attempt`), by what was tried. The broker's counters
//!   count its own troubles too.
//! - Whatever is under way for a queue was admitted to its capacity, and gives its place back when it
//!   ends, within REQUEST_TIMEOUT. Slow and unproven receivers can't fill it, so that a prompt one
//!   finds room by then.
//! - What stands in a row of a table is an error of its own webhook at worst: `store/row.rs` reads it.
//! - A receiver's failure is a value ([`domain::outcome::Outcome`]); an `Err` is our own
//!   infrastructure failing, and stops consuming until it works again.
//! - Whatever may hang has a limit: each module that waits says for how long, and why. A message is
//!   acked or handed back before RabbitMQ would take it back ([`domain::in_hand`]).
//! - Where a thread can't be had, what it was for is done by another one, or later: see [`threads`].
//! - Every wait without a limit of its own, and every backoff, is also a wait for [`shutdown`]; the
//!   others are over within SHUTDOWN_TIMEOUT or given up then. A thread that ends on its own ends
//!   the process.
//! - Other people's URLs lead where the [`sender`]'s resolver lets them
//!   ([`domain::address`]), and other people's words reach a log or a terminal only through
//!   [`domain::shown`]; secrets are a type ([`domain::secret::Secret`]) that prints as `***`.
//! - [`domain`] has no I/O, no clock and no randomness. amiquip is named in [`broker`] and
//!   [`consumer`] only, postgres and r2d2 in [`store`], ureq in [`sender`]. [`tls`] serves
//!   all three.
//!
//! # Where to change what
//!
//! | to change | begin at |
//! |---|---|
//! | what an answer means, and what follows | [`domain::outcome`] |
//! | who may have a request under way | [`domain::pace`]; what a receiver shows: [`domain::receiver`]; what its webhook allows: [`domain::limits`]; how much of that is this instance's: [`domain::instances`] |
//! | what waits, what goes to a backlog, and in which order | [`domain::intake`] |
//! | how a backlog is consumed | `consumer/backlogs.rs`; how much of it is in hand: `consumer/backlogs/supply.rs`; where RabbitMQ does not answer for one: `consumer/backlogs/unanswered.rs`; which instance consumes it: `consumer/backlogs/elsewhere.rs`; how it is made: `backlogs/keeper.rs`, found and removed: its folder |
//! | how many consumers a lane has | [`domain::growth`]; how they are started and ended: `consumer/crew.rs` |
//! | how instances know of each other | [`instances`], `store/instances.rs`; who is taken for dead: `domain/instances/roll.rs` |
//! | which deliveries of an event run beside each other | `pipeline/fan_out.rs` |
//! | how long a delivery waits | [`domain::retry`] |
//! | what is sent | `sender/request.rs`, [`domain::signature`], [`domain::settings`]; how ids and types stand in headers: [`domain::encoding`]; what of the producer's headers goes on: [`domain::forwarding`] |
//! | what of a failed answer is kept, and what is hidden in it | `sender/excerpt.rs`, [`domain::answer`] |
//! | how connections are used again, and what counts as an answer | `sender/exchange.rs`, `sender/head.rs`; the words for none: `sender/failure.rs` |
//! | where a webhook may lead | [`domain::address`]; how its name is looked up: [`lookup`]; how a proxy leads there: `sender/egress.rs` |
//! | who wants an event | [`domain::webhook`], [`directory`]; whose it is: [`domain::account`]; what is forgotten when webhooks change: `domain/webhook/scope.rs`, `sql/015_changes.sql` |
//! | what `why` concludes of a delivery | [`domain::diagnosis`]; in which words: `cli/why/words.rs`; what the log says: [`domain::delivery_log`] |
//! | how times are counted and written | [`domain::time`]; the clock is read by [`clock`] |
//! | what is told by `webhooks.events` | [`domain::notice`]; when: `store/conditions/untold.rs`; how: `notices/teller.rs`; which outages are known to all: `notices/watch.rs` |
//! | the tables | a new file in `sql/`; `store/schema.rs` lists it, and what `migrate` puts back; statements in [`store`] |
//! | exchanges and queues | `broker/topology.rs`; how they are made and looked for: `broker/declare.rs`; what is known of them: `broker/objects.rs`; the rights that they need: `broker/rights.rs` |
//! | how the broker is reached | `broker/connecting.rs` |
//! | what becomes of a message that its queue refuses | `broker/refusals.rs`; whose queue can't be had: `broker/routes.rs` |
//! | a setting | `config::SETTINGS`; tests then ask for its rows in the README and the template |
//! | a metric | [`metrics`], and its row in the README |
//! | what `/readyz` and `/healthz` answer | [`health`] |
//! | what the status page says | `status/advice.rs`; what receivers are called there, and how they are searched: `status/names.rs`; how it looks: `admin/page/` |
//! | how much of a URL is shown there | `domain/webhook/place.rs` |
//! | what a file of webhooks means, and what follows | [`domain::declared`]; how it is read and written: `cli/webhooks/file.rs`; how all of it is done or nothing: `store/declared.rs` |
//! | a command | its file in `cli/`; the arguments that commands share: `cli/arguments.rs`; which ids they take: `cli/ids.rs` |
//! | manual pages and completions, which are made of the arguments and the README | `cli/manual.rs` |
//! | how dead letters are read, and outlive it | `broker/browse.rs`, `broker/renewal.rs` |
//! | how a queue becomes one of another kind | `broker/moving.rs` |
//!
//! `tests/integration` has a file for each of these from the outside, against real servers, and
//! `layout.rs` there holds which module may use which.
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
