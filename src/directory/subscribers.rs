//! The subscribers that are notified of changes.

use crossbeam_channel::{Receiver, Sender, bounded};

/// A kind of change that subscribers are notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// A webhook was added, changed or removed.
    Webhooks,
    /// A backlog was added or removed, is closing, or was reopened.
    Backlogs,
    /// An instance was added or removed.
    Instances,
}

/// A subscriber to changes.
pub(super) struct Subscriber {
    sender: Sender<TableChange>,
    /// The other end of the same channel: changes that the subscriber hasn't received yet.
    pub(super) pending: Receiver<TableChange>,
}

impl Subscriber {
    /// A subscriber whose channel has room for one change of each kind. Changes of a kind are merged until they
    /// are received.
    pub(super) fn new() -> Self {
        let (sender, pending) = bounded(3);
        Self { sender, pending }
    }

    /// Adds a change to the pending ones. Never waits. The caller holds the lock, so nobody else sends meanwhile.
    pub(super) fn notify(&self, change: TableChange) {
        let pending: Vec<TableChange> = self.pending.try_iter().collect();
        let others = pending.into_iter().filter(|other| *other != change);
        for change in others.chain([change]) {
            // There is room, since all pending changes were taken out.
            let _ = self.sender.try_send(change);
        }
    }
}
