//! The rules: pure functions and data, without I/O, clock or randomness.
//!
//! Every decision about an event is made here, tested by table and by property, and carried out by the
//! modules around this one.

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
pub mod effort;
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
pub mod trend;
pub mod unconfirmed;
pub mod vocabulary;
pub mod waiting;
pub mod webhook;
