//! The wall clock: the one place that reads it.

use std::time::SystemTime;

use crate::domain::time::{self, UnixMillis};

/// What time it is.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// What time it is, as messages, tables and JSON have it.
#[must_use]
pub fn unix_millis() -> UnixMillis {
    time::to_unix_millis(now())
}
