//! Webhooks as a file declares them: which of the table each of them is, and what is to change.
//!
//! A file says what a webhook is to be, and not what to do. What it says nothing of, an entry's webhook does
//! not have; but for what changes while it runs (whether it is paused or disabled) and for secrets, which
//! stay as they are. `***` stands for a secret that the webhook has: a file without secrets can be shown to
//! anybody, and changes none of them.

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

/// What an entry of a file says of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileEntry {
    /// Where it begins in the file, from 1.
    pub line: usize,
    /// Where its parts stand that it has, by their names in the file.
    pub lines: BTreeMap<String, usize>,
    /// What of that has no meaning, which is told already.
    pub unread: BTreeSet<String>,
    /// Which webhook it is.
    pub id: Option<Uuid>,
    /// Where its events go.
    pub post_url: String,
    /// The patterns of the event types that it wants.
    pub events: Vec<String>,
    /// Its headers; those with the value `***` it has already.
    pub headers: SecretHeaders,
    /// Its other settings, as text.
    pub settings: BTreeMap<Column, String>,
    /// Whether it is paused; none: as it is.
    pub paused: Option<bool>,
    /// Whether it is disabled; none: as it is.
    pub disabled: Option<bool>,
    /// Why, where it is.
    pub disabled_reason: Option<String>,
    /// What signs its requests; none: what it has.
    pub secret: Option<Secret>,
}

/// A webhook as the table has it.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Its id.
    pub id: Uuid,
    /// What another change of its row would change; none where the row can't be read.
    pub version: Option<String>,
    /// What it is.
    pub values: Values,
    /// Why a file can't say all that it is, where that is so.
    pub flaw: Option<String>,
    /// Whether its headers are none that can be used or said.
    pub has_odd_headers: bool,
}
