//! Delivers JSON events from RabbitMQ to webhooks.
pub mod domain;
