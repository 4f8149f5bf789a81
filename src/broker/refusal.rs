//! Translates the broker's refusals of declarations into errors that name the remedy.

use super::BrokerError;

/// The error for an unusable queue, exchange or binding. It depends on the broker's text, because the broker
/// uses one code for different arguments and for a reached limit.
pub(super) fn failed(address: &str, name: &str, error: &amiquip::Error) -> BrokerError {
    let address = address.to_owned();
    let amiquip::Error::ServerClosedChannel { code, message, .. } = error else {
        return BrokerError::Unavailable { address, problem: error.to_string() };
    };
    let problem = match code {
        // 3.10: "queue limit in vhost '/' (5) is reached". Newer versions also have limits of the node and of
        // the cluster.
        406 if message.contains("limit") && message.contains("reached") => format!(
            "no room for {name:?} ({message}): raise the virtual host's max-queues, or the limit that \
             it names"
        ),
        406 if message.contains("inequivalent arg") => format!(
            "{name:?} exists with other arguments ({message}): empty it and delete it; then it is recreated"
        ),
        405 => {
            format!("{name:?} is exclusive to another connection ({message}): end that connection")
        }
        403 => format!(
            "no permission for {name:?} ({message}): grant the user configure, write and read permissions"
        ),
        404 => {
            let remedy = if is_away(error) {
                ": its messages are not lost; start that node. Then `queues move` makes it a quorum queue, \
                 which does not depend on one node"
            } else {
                ""
            };
            let problem = format!("{name:?} is not available ({message}){remedy}");
            return BrokerError::Unavailable { address, problem };
        }
        _ => format!("{name:?} can't be created ({message}): RabbitMQ's log may say more"),
    };
    BrokerError::Misconfigured { address, problem }
}

/// Whether the queue's only node is down. Then only the lane of this queue has to wait.
pub(super) fn is_away(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 404, message, .. }
        if message.contains("is down or inaccessible"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::calls::is_absent;

    #[test]
    fn the_remedy_depends_on_the_brokers_text() {
        for (code, message, expected) in [
            (
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (5) is reached",
                "max-queues",
            ),
            (
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in cluster (5) is reached",
                "the limit that it names",
            ),
            (
                406,
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/'",
                "empty it and delete it",
            ),
            (406, "PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q'", "RabbitMQ's log"),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access", "end that connection"),
            (403, "ACCESS_REFUSED - access to queue 'q' refused", "grant the user"),
            (
                404,
                "NOT_FOUND - queue 'q' process is stopped by supervisor",
                "stopped by supervisor",
            ),
            (
                404,
                "NOT_FOUND - home node 'b@host' of durable queue 'q' in vhost '/' is down or inaccessible",
                "start that node",
            ),
        ] {
            let error = amiquip::Error::ServerClosedChannel {
                channel_id: 1,
                code,
                message: message.to_owned(),
            };
            let said = failed("host", "q", &error).to_string();
            assert!(said.contains(expected) && said.contains(message), "{said}");
            assert_eq!(said.contains("delete it"), message.contains("inequivalent"), "{said}");
        }
    }

    #[test]
    fn a_queue_whose_node_is_down_exists_and_is_only_unavailable() {
        let error = |message: &str| amiquip::Error::ServerClosedChannel {
            channel_id: 1,
            code: 404,
            message: message.to_owned(),
        };
        let away = error(
            "NOT_FOUND - home node 'b@host' of durable queue 'q' in vhost '/' is down or inaccessible",
        );
        assert!(is_away(&away) && !is_absent(&away));
        assert!(matches!(failed("host", "q", &away), BrokerError::Unavailable { .. }));
        let absent = error("NOT_FOUND - no queue 'q' in vhost '/'");
        assert!(!is_away(&absent) && is_absent(&absent));
    }
}
