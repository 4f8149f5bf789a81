//! Calls that the broker may refuse, one after another on the same connection.

use amiquip::Channel;

use super::Link;

/// RabbitMQ's counts for a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Messages that no consumer has in hand.
    pub ready: u32,
    /// Its consumers, on any connection.
    pub consumers: u32,
}

/// Makes calls on one channel of a connection. A refusal closes the channel, so the next call opens another.
/// Calls and drop may hang: use and drop it inside [`super::KillSwitch::guard`].
pub(super) struct Calls<'a> {
    link: &'a mut Link,
    channel: Option<Channel>,
}

impl<'a> Calls<'a> {
    pub(super) fn new(link: &'a mut Link) -> Self {
        Self { link, channel: None }
    }

    pub(super) fn address(&self) -> &str {
        &self.link.address
    }

    pub(super) fn call<T>(
        &mut self,
        call: impl FnOnce(&Channel) -> amiquip::Result<T>,
    ) -> amiquip::Result<T> {
        let channel = self.channel.take().map_or_else(|| self.link.channel(), Ok)?;
        let answer = call(&channel)?;
        self.channel = Some(channel);
        Ok(answer)
    }

    /// RabbitMQ's counts for a queue; `None` if there is no such queue.
    pub(super) fn queue(&mut self, name: &str) -> amiquip::Result<Option<QueueCounts>> {
        let count = |channel: &Channel| {
            let found = channel.queue_declare_passive(name)?;
            Ok(QueueCounts {
                ready: found.declared_message_count().unwrap_or(0),
                consumers: found.declared_consumer_count().unwrap_or(0),
            })
        };
        match self.call(count) {
            Err(error) if is_absent(&error) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Whether this exchange exists.
    pub(super) fn has_exchange(&mut self, name: &str) -> amiquip::Result<bool> {
        match self.call(|channel| channel.exchange_declare_passive(name).map(drop)) {
            Err(error) if is_absent(&error) => Ok(false),
            answer => answer.map(|()| true),
        }
    }
}

/// Whether the broker says that there is no such queue or exchange. It uses the same code for a queue that is
/// down, or whose node is: such a queue exists, with its messages.
pub(super) fn is_absent(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 404, message, .. }
        if message.contains("no queue ") || message.contains("no exchange "))
}

/// Whether the broker has refused a call. The connection lives on.
pub(super) fn is_refusal(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { .. })
}

/// Whether an object can't be declared because it exists with other arguments.
pub(super) fn has_other_arguments(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 406, message, .. }
        if message.contains("inequivalent arg"))
}

/// Whether the user lacks the permission for the call.
pub(super) fn is_forbidden(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 403, .. })
}
