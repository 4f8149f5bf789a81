//! Delivers JSON events from RabbitMQ to webhooks.
pub mod admin;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod consumer;
pub mod domain;
pub mod metrics;
pub mod pipeline;
pub mod receivers;
pub mod sender;
pub mod shutdown;
pub mod store;
