//! Webhooks as a file declares them: which row each entry means, and what has to change.
//!
//! A file states what a webhook should be, not what to do. What an entry omits, its webhook doesn't
//! have. Exceptions are what changes at run time (paused, disabled) and secrets: omitted, they stay as
//! they are. `***` stands for the secret that the webhook already has, so a file without secrets can be
//! shown to anybody and changes none of them.

mod plan;
mod values;

pub use plan::{Addition, Alteration, FileProblem, Plan, Removal, plan};
pub use values::{Difference, Field, Values};

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::secret::Secret;
use super::settings::Column;

/// Headers by their names, in lower case.
pub type SecretHeaders = BTreeMap<String, Secret>;

/// An entry of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileEntry {
    /// The line where it begins, from 1.
    pub line: usize,
    /// The lines of its parts, by their names in the file.
    pub lines: BTreeMap<String, usize>,
    /// The parts that couldn't be read. They have been reported already.
    pub unread: BTreeSet<String>,
    /// The webhook's id, if the entry gives one.
    pub id: Option<Uuid>,
    /// Where its events go.
    pub post_url: String,
    /// The patterns of the event types it wants.
    pub events: Vec<String>,
    /// Its headers. The value `***` keeps the one it has.
    pub headers: SecretHeaders,
    /// Its other settings, as text.
    pub settings: BTreeMap<Column, String>,
    /// Whether it is paused; `None` keeps it as it is.
    pub paused: Option<bool>,
    /// Whether it is disabled; `None` keeps it as it is.
    pub disabled: Option<bool>,
    /// Why it is disabled.
    pub disabled_reason: Option<String>,
    /// The secret that signs its requests; `None` keeps the one it has.
    pub secret: Option<Secret>,
}

/// A webhook as it is in the table.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Its id.
    pub id: Uuid,
    /// The row's version, which any change of the row changes; `None` if the row can't be read.
    pub version: Option<String>,
    /// Its values.
    pub values: Values,
    /// Why a file can't express all of it, if so.
    pub flaw: Option<String>,
    /// Whether its headers can't be used or written to a file.
    pub has_odd_headers: bool,
}
