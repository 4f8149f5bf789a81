//! The wall clock: only this module reads it.

use std::time::SystemTime;

use crate::domain::time::{self, UnixMillis};

/// The present time.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The present time as in messages, tables and JSON.
#[must_use]
pub fn unix_millis() -> UnixMillis {
    time::to_unix_millis(now())
}
