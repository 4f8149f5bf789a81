//! The status page: one document that loads /status.json and shows it.
//!
//! It loads nothing from other servers. Its Content-Security-Policy allows only its own style and script, by their
//! hashes, and requests to its own origin. Other sites can't show it in a frame, nor read its data, since no answer
//! allows that (CORS).

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// The page, and its Content-Security-Policy.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) html: String,
    pub(super) policy: String,
}

/// Assembled once, at the first request.
pub(super) static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, script) = (include_str!("page/style.css"), include_str!("page/script.js"));
    let html = include_str!("page/page.html");
    Page {
        html: html.replace("{style}", style).replace("{script}", script),
        policy: format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            allowed(style),
            allowed(script)
        ),
    }
});

/// The source expression by which the policy allows this content: its hash.
fn allowed(content: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_complete_small_and_loads_nothing_from_elsewhere() {
        let html = &PAGE.html;
        assert!(!html.contains("{style}") && !html.contains("{script}"));
        assert!(html.len() < 60_000, "{} bytes", html.len());
        // A namespace's name is not an address that a browser loads.
        let html = html.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "//cdn", "@import", "url("] {
            assert!(!html.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn the_script_uses_no_function_that_turns_text_into_markup() {
        let script = include_str!("page/script.js");
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!script.contains(way), "{way}");
        }
    }
}
