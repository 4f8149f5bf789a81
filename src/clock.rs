//! The wall clock. Only this module reads it.

use std::time::SystemTime;

use crate::domain::time::{self, UnixMillis};

/// The current time.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The current time in milliseconds, as in messages, tables and JSON.
#[must_use]
pub fn unix_millis() -> UnixMillis {
    time::to_unix_millis(now())
}
