//! The encoding of names in request headers: characters that a header can't hold, and the percent sign,
//! are percent-encoded. Decoding yields exactly what the producer wrote.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// The ASCII characters that are encoded; all other characters are encoded anyway. A header can only hold
/// visible characters (RFC 9110, section 5.5), and loses spaces at its ends.
const NOT_IN_A_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// In an id the dot is encoded, too. The signature covers `id.timestamp.body`, so an id with a dot could
/// be read as a shorter id with another timestamp. Standard Webhooks forbids dots in ids.
const NOT_IN_AN_ID: &AsciiSet = &NOT_IN_A_HEADER.add(b'.');

/// An event id as it is sent in `webhook-id` and signed.
#[must_use]
pub fn header_of_id(id: &str) -> Cow<'_, str> {
    utf8_percent_encode(id, NOT_IN_AN_ID).into()
}

/// Any other name as it is sent in a header.
#[must_use]
pub fn header_of_name(name: &str) -> Cow<'_, str> {
    utf8_percent_encode(name, NOT_IN_A_HEADER).into()
}

/// The event id that a receiver sees as this `webhook-id`; `None` if both are the same text.
#[must_use]
pub fn id_of_header(text: &str) -> Option<String> {
    let id = percent_decode_str(text).decode_utf8().ok()?;
    (id != text && header_of_id(&id) == text).then(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_that_a_header_cannot_hold_and_dots_in_ids_are_encoded() {
        for (id, header) in [
            ("order-17_a:b~c", "order-17_a:b~c"),
            ("order 17", "order%2017"),
            ("bestellung-ü", "bestellung-%C3%BC"),
            ("evt.123", "evt%2E123"),
            ("50%", "50%25"),
            (" ", "%20"),
        ] {
            assert_eq!(header_of_id(id), header);
        }
        assert_eq!(header_of_name("user.created"), "user.created");
        assert_eq!(header_of_name("größe 100%"), "gr%C3%B6%C3%9Fe%20100%25");
        assert!(matches!(header_of_id("7f3b-plain"), Cow::Borrowed(_)));
        assert!(matches!(header_of_name("user.created"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_header_is_decoded_to_its_id() {
        assert_eq!(id_of_header("evt%2E123").as_deref(), Some("evt.123"));
        for same_or_none in ["order-17", "evt.123", "50%", "%ff", "%41", "%2e", ""] {
            assert_eq!(id_of_header(same_or_none), None, "{same_or_none}");
        }
    }

    proptest! {
        #[test]
        fn any_id_is_encoded_without_a_dot_and_decoded_again(
            id in "\\PC{1,60}|[!-~]{1,60}",
        ) {
            let header = header_of_id(&id);
            prop_assert!(header.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.'));
            prop_assert_eq!(id_of_header(&header).unwrap_or_else(|| header.to_string()), id);
        }
    }
}
