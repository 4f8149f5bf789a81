//! Black-box tests of `webhook-notifier`: the real binary with a real RabbitMQ, a real PostgreSQL and
//! the tests' own HTTP receivers.
//!
//! `make test` starts the servers and runs the tests. Each test has its own queues and schema, so they
//! run in parallel. No test is ever skipped: without the servers they fail.

mod harness;

mod delivery;
mod retries;
mod outcomes;
mod retry_after;
mod no_retry;
mod signatures;
mod headers;
mod given_secrets;
mod webhook_file;
mod webhook_list;
mod settings;
mod accounts;
mod trials;
mod receivers;
mod failures;
mod hostile;
mod reuse;
mod answers;
mod large_bodies;
mod addresses;
mod egress;
mod malformed;
mod input;
mod terminal;
mod dead_letters;
mod queues;
mod delivery_log;
mod notices;
mod why;
mod why_webhook;
mod excerpts;
mod ids;
mod shutdown;
mod connections;
mod limits;
mod broker_rights;
mod tls;
mod faults;
mod refusals;
mod causes;
mod chaos;
mod database;
mod migrations;
mod rows;
mod restored;
mod rights;
mod hosts;
mod pooler;
mod backlogs;
mod backlog_table;
mod backlog_commands;
mod directory;
mod changes;
mod topology;
mod observability;
mod monitoring;
mod admin;
mod status;
mod page;
mod states;
mod configuration;
mod shells;
mod commands;
mod service;
mod secrets;
mod layout;
mod dependencies;
mod readme;
