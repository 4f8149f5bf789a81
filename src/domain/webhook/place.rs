//! A short form of a webhook's URL, by which people recognize it.

use super::check_url;

/// How many characters are shown: enough to tell a customer's webhooks apart.
const MOST_SHOWN: usize = 120;

/// A path segment of at least this length may be a key rather than a word.
const LENGTH_OF_KEY: usize = 16;

/// How many characters of such a segment are shown.
const SHOWN_OF_KEY: usize = 4;

/// The host, port and path of a webhook's URL, in visible ASCII and `…`. Scheme, user, password, query
/// and fragment are omitted. Path segments that look like keys, as some providers use them, are cut. If
/// the URL can't be used, the result is the reason.
#[must_use]
pub fn place(url: &str) -> String {
    let url = match check_url(url) {
        Ok(url) => url,
        Err(problem) => return problem,
    };
    let mut place = url.host_str().unwrap_or_default().to_owned();
    if let Some(port) = url.port() {
        place.push_str(&format!(":{port}"));
    }
    for part in url.path().split('/').filter(|part| !part.is_empty()) {
        place.push('/');
        match part.get(..SHOWN_OF_KEY).filter(|_| may_be_key(part)) {
            Some(beginning) => place.extend([beginning, "…"]),
            None => place.push_str(part),
        }
    }
    if let Some((end, _)) = place.char_indices().nth(MOST_SHOWN) {
        place.truncate(end);
        place.push('…');
    }
    place
}

/// Whether a path segment may be a secret: it is long and doesn't consist of words.
fn may_be_key(part: &str) -> bool {
    // Each percent-encoded byte counts as a letter.
    let mut pieces = part.split('%');
    let first = pieces.next().unwrap_or_default().to_owned();
    let part = pieces.fold(first, |part, piece| part + "x" + piece.get(2..).unwrap_or_default());
    let count = |is: fn(&char) -> bool| part.chars().filter(is).count();
    let digits = count(char::is_ascii_digit);
    let is_mixed = count(char::is_ascii_uppercase) > 1 && count(char::is_ascii_lowercase) > 1;
    let longest = part.split(['-', '_', '.']).map(str::len).max().unwrap_or_default();
    part.len() >= LENGTH_OF_KEY && (digits > 2 || is_mixed || longest >= 2 * LENGTH_OF_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_is_host_port_and_path_without_secrets() {
        for (url, shown) in [
            ("https://hooks.example.com/", "hooks.example.com"),
            ("https://hooks.example.com:8443/in?key=s3cret#f", "hooks.example.com:8443/in"),
            ("HTTP://Example.com:80//a//b/", "example.com/a/b"),
            ("http://[::1]:9/x", "[::1]:9/x"),
            ("https://bücher.example/ü", "xn--bcher-kva.example/%C3%BC"),
            (
                "https://a.example/order-events-v2-production/in",
                "a.example/order-events-v2-production/in",
            ),
            (
                "https://hooks.slack.com/services/T0001/B0002/Xa8Q2bTn7Yk3Lm9Zr4Wc6Ve1",
                "hooks.slack.com/services/T0001/B0002/Xa8Q…",
            ),
            ("https://a.example/1f467980-3217-4c7f-8a67-1b7f5a5ab101", "a.example/1f46…"),
            ("https://a.example/qwertyuiopasdfghjklzxcvbnmqwertyui", "a.example/qwer…"),
            ("https://a.example/QxTyBnMoPlKiUjHy", "a.example/QxTy…"),
            (
                "https://u:s3cret@a.b/",
                "unusable URL: a user name or password in it would not be sent",
            ),
            ("http://a/<script>alert(1)</script>", "a/%3Cscript%3Ealert(1)%3C/script%3E"),
            ("http://a/Zahlungsübersicht-%E4%BD%A0", "a/Zahlungs%C3%BCbersicht-%E4%BD%A0"),
            ("ftp://a/", "unusable URL: needs http:// or https://"),
        ] {
            assert_eq!(place(url), shown);
        }
        assert_eq!(place(&format!("http://a/{}", "b/".repeat(500))).chars().count(), 121);
    }

    proptest! {
        #[test]
        fn a_place_is_short_and_plain_whatever_the_url(
            url in "(https?://)?[a-z.:@/?#é\u{202e}<>\"&%0-9 ]{0,200}", secret in "[a-z0-9]{8}",
        ) {
            let shown = place(&url);
            prop_assert!(shown.chars().count() <= 121, "{}", shown);
            let is_plain = |c: char| c == '…' || c.is_ascii_graphic() || c == ' ';
            prop_assert!(shown.chars().all(is_plain), "{:?}", shown);
            for url in [format!("http://a/b?{secret}"), format!("http://{secret}@b/")] {
                prop_assert!(!place(&url).contains(&secret));
            }
        }
    }
}
