//! The words of the domain that are labels.

pub use crate::domain::held::{Dropped, Held};
