//! The properties of a moved message: which are kept, and which have to be left out.

use amiquip::AmqpProperties;

use crate::domain::broker_names::header::{BCC, CC, DELIVERY_COUNT};

/// Which of the producer's properties were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// `user-id`: RabbitMQ accepts it only from the user of that name.
    pub(super) user: bool,
    /// The headers `CC` and `BCC`: they would send copies to other queues once more.
    pub(super) copies: bool,
}

/// The properties with which the user `own_user` publishes a message again.
pub(super) fn carried(properties: &AmqpProperties, own_user: &str) -> (AmqpProperties, LeftOut) {
    let mut carried = AmqpProperties::default();
    let mut left_out = LeftOut::default();
    macro_rules! keep {
        ($($property:ident $with:ident),*) => {
            $(if let Some(value) = properties.$property() {
                carried = carried.$with(value.clone());
            })*
        };
    }
    keep!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        delivery_mode with_delivery_mode,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        expiration with_expiration,
        message_id with_message_id,
        timestamp with_timestamp,
        type_ with_type_,
        app_id with_app_id,
        cluster_id with_cluster_id
    );
    if let Some(headers) = properties.headers() {
        let mut headers = headers.clone();
        // RabbitMQ's count of redeliveries by the queue that the message leaves.
        headers.remove(DELIVERY_COUNT);
        let copies = [CC, BCC].map(|name| headers.remove(name));
        left_out.copies = copies.iter().any(Option::is_some);
        carried = carried.with_headers(headers);
    }
    match properties.user_id() {
        Some(user) if user == own_user => carried = carried.with_user_id(user.clone()),
        user => left_out.user = user.is_some(),
    }
    (carried, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amiquip::{AmqpValue, FieldTable};

    fn headers(names: &[&str]) -> FieldTable {
        names.iter().map(|name| ((*name).to_owned(), AmqpValue::LongInt(1))).collect()
    }

    #[test]
    fn all_properties_are_kept_but_the_brokers_count_and_those_that_would_send_copies() {
        let plain = AmqpProperties::default()
            .with_content_type("application/json".to_owned())
            .with_delivery_mode(2)
            .with_message_id("e1".to_owned())
            .with_type_("order.paid".to_owned())
            .with_timestamp(7);
        let cases: [(&[&str], &[&str], bool); 4] = [
            (&["account", "x-death"], &["account", "x-death"], false),
            (&["account", DELIVERY_COUNT], &["account"], false),
            (&["CC", "account"], &["account"], true),
            (&["BCC"], &[], true),
        ];
        for (names, stay, copies) in cases {
            let given = plain.clone().with_headers(headers(names));
            let expected = plain.clone().with_headers(headers(stay));
            let left_out = LeftOut { user: false, copies };
            assert_eq!(carried(&given, "me"), (expected, left_out), "{names:?}");
        }
    }

    #[test]
    fn a_user_id_is_kept_only_if_it_is_our_own() {
        let own = AmqpProperties::default().with_user_id("me".to_owned());
        assert_eq!(carried(&own, "me"), (own.clone(), LeftOut::default()));
        let left_out = LeftOut { user: true, copies: false };
        assert_eq!(carried(&own, "other"), (AmqpProperties::default(), left_out));
    }
}
