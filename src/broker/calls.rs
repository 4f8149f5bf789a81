//! A series of calls that the broker may refuse.

use amiquip::Channel;

use super::Link;

/// What RabbitMQ counts of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Messages that no consumer has in hand.
    pub ready: u32,
    /// Its consumers, on any connection.
    pub consumers: u32,
}

/// Makes calls on one channel of a connection, and on another one after a refusal, which closes the
/// channel. A call may hang, and so may the drop: use it, and drop it, in [`super::KillSwitch::guard`].
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

    /// What RabbitMQ counts of a queue; `None` if there is no such queue.
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

    /// Whether there is such an exchange.
    pub(super) fn has_exchange(&mut self, name: &str) -> amiquip::Result<bool> {
        match self.call(|channel| channel.exchange_declare_passive(name).map(drop)) {
            Err(error) if is_absent(&error) => Ok(false),
            answer => answer.map(|()| true),
        }
    }
}

/// Whether the broker says that there is no such queue or exchange. The same code also says that a queue or
/// its node is down: such a queue exists, and so does what it holds.
pub(super) fn is_absent(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 404, message, .. }
        if message.contains("no queue ") || message.contains("no exchange "))
}

/// Whether the broker has refused a call. The connection lives on.
pub(super) fn is_refusal(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { .. })
}

/// Whether the user lacks the right to what was asked for.
pub(super) fn is_forbidden(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 403, .. })
}
