//! Who is told of changes.

use crossbeam_channel::{Receiver, Sender, bounded};

/// A kind of change, for subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Any webhook.
    Webhooks,
    /// The set of backlogs.
    Backlogs,
    /// The set of instances.
    Instances,
}

/// A subscriber to changes.
pub(super) struct Subscriber {
    sender: Sender<Change>,
    /// The other end of the same channel, to see what hasn't been received yet.
    pub(super) untaken: Receiver<Change>,
}

impl Subscriber {
    /// Has room for one change of each kind: changes of a kind are merged until they are received.
    pub(super) fn new() -> Self {
        let (sender, untaken) = bounded(3);
        Self { sender, untaken }
    }

    /// Never waits. The caller holds the lock, so nobody else sends meanwhile.
    pub(super) fn tell(&self, change: Change) {
        let untaken: Vec<Change> = self.untaken.try_iter().collect();
        let others = untaken.into_iter().filter(|other| *other != change);
        for told in others.chain([change]) {
            // There is room, since everything was taken out.
            let _ = self.sender.try_send(told);
        }
    }
}
