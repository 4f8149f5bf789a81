//! The URL of a webhook: checks it, shows it without secrets, and compares it with others.

use http::Uri;
use url::Url;

/// The longest URL, in characters. RFC 9110 (section 4.1) recommends that servers accept URIs of at least
/// 8,000 bytes.
pub const MAX_URL_CHARS: usize = 8_192;

/// Reads a webhook's URL for a request, after [`check_url`].
///
/// # Errors
/// As for [`check_url`].
pub fn read_url(text: &str) -> Result<Uri, String> {
    let url = check_url(text)?;
    Uri::try_from(url.as_str()).map_err(|error| format!("unusable URL: {error}"))
}

/// Checks a webhook's URL as far as that is possible without a network: it is http or https, has a host
/// and no user name, and isn't too long. The result is normalized as in browsers (WHATWG URL): an address
/// in decimal, octal or hexadecimal form gets the usual form, which the address guard checks.
///
/// # Errors
/// What is wrong, in one line without the URL, which may hold a secret.
pub fn check_url(text: &str) -> Result<Url, String> {
    if text.chars().nth(MAX_URL_CHARS).is_some() {
        return Err(format!("unusable URL: longer than {MAX_URL_CHARS} characters"));
    }
    let mut url = Url::parse(text).map_err(|error| format!("unusable URL: {error}"))?;
    if url.as_str().len() > MAX_URL_CHARS {
        return Err(format!("unusable URL: longer than {MAX_URL_CHARS} characters once encoded"));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err("unusable URL: needs http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("unusable URL: a user name or password in it would not be sent".to_owned());
    }
    if url.port() == Some(0) {
        return Err("unusable URL: no server can listen on port 0".to_owned());
    }
    // A fragment is never sent (RFC 9110, section 7.1).
    url.set_fragment(None);
    Ok(url)
}

/// Shown instead of a part that may be secret.
pub const HIDDEN: &str = "***";

/// Whether a part of the URL seems to be hidden: its userinfo, query or fragment contains [`HIDDEN`].
#[must_use]
pub fn hides_part(url: &str) -> bool {
    let after = url.split_once("://").map_or(url, |(_, after)| after);
    let (place, tail) = after.split_at(after.find(['?', '#']).unwrap_or(after.len()));
    let authority = place.split('/').next().unwrap_or_default();
    let userinfo = authority.rsplit_once('@').map_or("", |(userinfo, _)| userinfo);
    tail.contains(HIDDEN) || userinfo.contains(HIDDEN)
}

/// A webhook's URL for people, without parts that may be secret: user name and password, query and
/// fragment become `***`. The same parts are hidden if the text isn't a usable URL.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    // A user name makes a URL unusable, so in a usable one an `@` belongs to the path or the query.
    let (start, rest) = if check_url(text).is_err()
        && let Some(at) = text.rfind('@')
    {
        let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let after = text.trim_start_matches(is_of_scheme);
        let scheme = match after.strip_prefix(':') {
            Some(rest) if rest.starts_with(['/', '\\']) => {
                let rest = rest.trim_start_matches(['/', '\\']);
                &text[..text.len() - rest.len()]
            }
            _ => "",
        };
        (format!("{scheme}{HIDDEN}"), &text[at.max(scheme.len())..])
    } else {
        (String::new(), text)
    };
    match rest.find(['?', '#']) {
        None => format!("{start}{rest}"),
        Some(end) => format!("{start}{}{HIDDEN}", &rest[..=end]),
    }
}

/// The key by which URLs are compared: it is the same for two spellings of a URL. An unusable URL is
/// compared as it is.
#[must_use]
pub fn url_key(text: &str) -> String {
    check_url(text).map_or_else(|_| text.to_owned(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_needs_http_and_a_host_and_no_user() {
        for (good, normal) in [
            ("http://a", "http://a/"),
            ("HTTPS://a.B/c?d=e#f", "https://a.b/c?d=e"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
            ("http://127.1/", "http://127.0.0.1/"),
            ("http://0x7f000001/", "http://127.0.0.1/"),
            ("http://2130706433/", "http://127.0.0.1/"),
            ("http://017700000001/", "http://127.0.0.1/"),
            ("http://0177.0.0.1/", "http://127.0.0.1/"),
            ("http://0x7f.1/", "http://127.0.0.1/"),
            ("http://127.0.0.1./", "http://127.0.0.1/"),
            ("http://１２７.０.０.１/", "http://127.0.0.1/"),
            ("http://127。0。0。1/", "http://127.0.0.1/"),
            ("http://%31%32%37.0.0.1/", "http://127.0.0.1/"),
            ("http:\\\\127.0.0.1\\", "http://127.0.0.1/"),
            ("http:127.0.0.1", "http://127.0.0.1/"),
            (" http://127.0.\n0.1/ ", "http://127.0.0.1/"),
            ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
            ("http://LOCALHOST./", "http://localhost./"),
            ("http://ⓛocalhost/", "http://localhost/"),
        ] {
            assert_eq!(check_url(good).expect(good).as_str(), normal);
        }
        for bad in [
            "",
            "x",
            "/path",
            "ftp://a/",
            "http://",
            "http://u:p4ss@a/",
            "http://user@a/",
            "http://:p4ss@a/",
            "http://[fe80::1%25eth0]/",
            "http://[fe80::1%eth0]/",
            "http://256.0.0.1/",
            "http://1.2.3.4.5/",
            "http://0x100000000/",
            "http://127.0.0.1%00/",
            "http://a%2f@b/",
            "https:///",
            "file:///etc/passwd",
            "gopher://127.0.0.1/",
            "unix:/run/x",
            "http://a b/",
            "http://a:99999/",
            "http://a:0/",
            "http://[::1/",
            "mailto:x@y",
        ] {
            let error = check_url(bad).expect_err(bad);
            assert!(
                error.starts_with("unusable URL: ") && !error.contains("p4ss"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_url_that_is_too_long_is_unusable() {
        let url = |length: usize| format!("http://a/{}", "x".repeat(length - 9));
        assert!(check_url(&url(MAX_URL_CHARS)).is_ok());
        // The second one is too long once it is encoded.
        for long in [url(MAX_URL_CHARS + 1), format!("http://a/{}", "é".repeat(2_000))] {
            let error = check_url(&long).expect_err("it is too long");
            assert!(error.starts_with("unusable URL: longer than 8192"), "{error}");
        }
    }

    #[test]
    fn a_url_is_shown_without_parts_that_may_be_secret() {
        for (url, shown) in [
            ("https://a.b/c?token=s3cret#f", "https://a.b/c?***"),
            ("https://a.b/c#s3cret", "https://a.b/c#***"),
            ("https://a.b/c", "https://a.b/c"),
            ("https://a.b/@me/in", "https://a.b/@me/in"),
            ("https://a.b/in?to=x@s3cret", "https://a.b/in?***"),
            ("https://u:s3cret@a.b/", "https://***@a.b/"),
            ("https://u:s3cret@a.b/?s3cret", "https://***@a.b/?***"),
            ("https://u:s3/cret?s3cret#s3cret@a.b/c", "https://***@a.b/c"),
            ("http:\\\\u:s3cret@a.b", "http:\\\\***@a.b"),
            ("s3cret:s3cret@a.b", "***@a.b"),
            ("ftp://a.b/?s3cret", "ftp://a.b/?***"),
            ("not a URL", "not a URL"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown);
            // Hiding it again changes nothing.
            assert_eq!(without_secrets(shown), shown);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "(http://)?.{0,40}") {
            let _ = (read_url(&text), without_secrets(&text));
        }
    }
}
