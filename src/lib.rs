//! Delivers JSON events from RabbitMQ to webhooks.
pub mod config;
pub mod domain;
pub mod shutdown;
