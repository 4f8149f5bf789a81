//! The labels by which people know webhooks: URL and account.

use uuid::Uuid;

use super::row::{self, MOST_OF_ACCOUNT};
use super::{Store, StoreError};
use crate::domain::webhook::MAX_URL_CHARS;

/// The URL and account of a webhook, by which people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The webhook's id.
    pub id: Uuid,
    /// Its URL; empty if its row can't be read.
    pub url: Box<str>,
    /// Its account, if it has one.
    pub account: Option<Box<str>>,
}

impl Store {
    /// The labels of these webhooks, in any order. Deleted ones are missing in the result.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn labels(&self, ids: &[Uuid]) -> Result<Vec<Label>, StoreError> {
        let ids = ids.to_vec();
        let columns = [
            "id".to_owned(),
            row::text("post_url", MAX_URL_CHARS),
            row::text("account", MOST_OF_ACCOUNT),
        ];
        let columns = columns.join(", ");
        self.query(move |client| {
            let read = |row: &postgres::Row| {
                let url = row::some(row, "post_url")?.unwrap_or_default().into();
                let account = row::some(row, "account")?.map(String::into_boxed_str);
                Ok(Label { id: row.try_get("id")?, url, account })
            };
            let unreadable =
                |id, _: &str, _: row::Switches| Label { id, url: Box::default(), account: None };
            row::each(client, &columns, &ids, read, unreadable)
        })
    }
}
