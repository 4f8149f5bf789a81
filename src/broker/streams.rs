//! Detects queues that are streams, which a notifier can't consume: nothing can be removed from a stream.

use amiquip::{AmqpValue, Channel, Consumer, ConsumerOptions};

/// The end of RabbitMQ's error about an argument that streams don't support.
const OF_A_STREAM: &str = "of queue type rabbit_stream_queue";

/// Consumes a queue, unless it is a stream: a stream delivers only later messages, and keeps them. It may
/// hang: call it in [`super::KillSwitch::guard`].
///
/// # Errors
/// amiquip's; [`why_not_consumed`] says what a refusal means.
pub fn consume_no_stream<'c>(channel: &'c Channel, queue: &str) -> amiquip::Result<Consumer<'c>> {
    // Other queues' default, which streams refuse.
    let arguments = [("x-priority".to_owned(), AmqpValue::LongInt(0))].into_iter().collect();
    channel.basic_consume(queue, ConsumerOptions { arguments, ..ConsumerOptions::default() })
}

/// Why a queue can't be consumed, with the remedy if it is a stream.
#[must_use]
pub fn why_not_consumed(error: &amiquip::Error) -> String {
    match error {
        amiquip::Error::ServerClosedChannel { code: 406, message, .. }
            if is_of_a_stream(message) =>
        {
            format!("it {STREAM}")
        }
        other => format!("cannot consume: {other}"),
    }
}

/// What is wrong with a queue that is a stream, and the remedy.
pub(super) const STREAM: &str = "is a stream, from which nothing can be removed: delete it, and create a \
                                 classic or a quorum queue of that name (`run` does)";

/// Whether RabbitMQ refused a consumer because the queue is a stream.
pub(super) fn is_of_a_stream(message: &str) -> bool {
    message.ends_with(OF_A_STREAM) || message.contains("prefetch count is not set for")
}
