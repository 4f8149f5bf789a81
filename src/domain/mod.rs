//! The rules: pure functions and data, without I/O, clock or randomness.
//!
//! All decisions about events are made here, where tables and properties test them. The other modules
//! carry them out.

pub mod account;
pub mod address;
pub mod answer;
pub mod broker_names;
pub mod causes;
pub mod dead_letter;
pub mod declared;
pub mod delivery;
pub mod delivery_log;
pub mod depths;
pub mod diagnosis;
pub mod encoding;
pub mod event;
pub mod forwarding;
pub mod growth;
pub mod held;
pub mod in_hand;
pub mod instances;
pub mod intake;
pub mod limits;
pub mod notice;
pub mod outages;
pub mod outcome;
pub mod pace;
pub mod receiver;
pub mod retry;
pub mod secret;
pub mod settings;
pub mod shown;
pub mod signature;
pub mod statuses;
pub mod time;
pub mod time_budget;
pub mod trend;
pub mod unconfirmed;
pub mod vocabulary;
pub mod waiting;
pub mod webhook;
