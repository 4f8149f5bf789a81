//! Webhooks declared in a file: which row each entry means, and which changes it requires.
//!
//! A file states what a webhook should be, not what to do. A webhook doesn't have the settings that its
//! entry omits. Exceptions are the secret, and whether it is paused or disabled, which changes at run
//! time: if omitted, they stay as they are. `***` stands for a secret value that the webhook already has.
//! So a file without secrets can be shown to anybody, and changes none of them.

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
    /// The lines of its fields, by their names in the file.
    pub lines: BTreeMap<String, usize>,
    /// The fields that couldn't be read. They have been reported already.
    pub unread: BTreeSet<String>,
    /// The webhook's id, if the entry gives one.
    pub id: Option<Uuid>,
    /// The URL that gets its events.
    pub post_url: String,
    /// The patterns of the event types it wants.
    pub events: Vec<String>,
    /// Its headers. The value `***` keeps the present value.
    pub headers: SecretHeaders,
    /// Its other settings, as text.
    pub settings: BTreeMap<Column, String>,
    /// Whether it is paused; `None` keeps its state.
    pub paused: Option<bool>,
    /// Whether it is disabled; `None` keeps its state.
    pub disabled: Option<bool>,
    /// Why it is disabled.
    pub disabled_reason: Option<String>,
    /// The secret that signs its requests; `None` keeps the present one.
    pub secret: Option<Secret>,
}

/// A webhook as it is in the table.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Its id.
    pub id: Uuid,
    /// The version of its row, which any change of the row changes; `None` if the row can't be read.
    pub version: Option<String>,
    /// Its values.
    pub values: Values,
    /// Why a file can't express all of it; `None` if it can.
    pub flaw: Option<String>,
    /// Whether its headers can't be used or written to a file.
    pub has_odd_headers: bool,
}
