//! Delivers JSON events from RabbitMQ to webhooks.
pub mod config;
pub mod domain;
pub mod metrics;
pub mod receivers;
pub mod sender;
pub mod shutdown;
