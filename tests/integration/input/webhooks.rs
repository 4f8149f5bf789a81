//! What is registered: URLs, patterns, secrets; and signatures of requests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use uuid::Uuid;
use webhook_notifier::domain::{
    secret::Secret,
    settings::Columns,
    signature::{SigningKey, SigningKeys},
    webhook::{Secrets, Webhook, check_pattern, check_url, matching_patterns},
};

use super::{cases, changed_text, check_example, expect_one_line, fault_of, texts};

/// What is true of every accepted URL: above all, the client reads it as the guard did.
#[track_caller]
fn check_accepted_url(text: &str) {
    let url = check_url(text).expect("it was accepted");
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
    let host = url.host_str().expect("it has a host");
    assert!(!host.is_empty() && host.is_ascii(), "{url}");
    assert!(url.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{url}");
    assert_eq!(check_url(url.as_str()), Ok(url.clone()), "a normalized URL is not changed");
    match Webhook::new(Uuid::nil(), text, &Secrets::default(), &Columns::default()).target {
        Ok(target) => {
            assert_eq!(target.uri.host(), Some(host), "{url}");
            assert_eq!(target.uri.port_u16(), url.port(), "{url}");
            assert_eq!(target.uri.scheme_str(), Some(url.scheme()));
            let authority = target.uri.authority().expect("it has a host").as_str();
            assert!(!authority.contains('@'), "{authority}");
        }
        Err(refusal) => expect_one_line(&refusal),
    }
}

#[test]
fn each_example_of_a_url_is_what_its_name_says() {
    for (name, text) in texts("urls") {
        if check_example(&name, check_url(&text)).is_some() {
            check_accepted_url(&text);
        }
    }
}

#[test]
fn each_example_of_a_secret_is_what_its_name_says() {
    for (name, text) in texts("secrets") {
        if let Some(key) = check_example(&name, SigningKey::parse(&text)) {
            assert_eq!(format!("{key:?}"), "***");
        }
    }
}

// The example of the specification's reference libraries.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const AT: u64 = 1_614_265_330;
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const CODE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

#[test]
fn each_example_of_a_signature_is_what_its_name_says() {
    let key = SigningKey::parse(SECRET).expect("a secret");
    for (name, text) in texts("signatures") {
        check_example(&name, key.verify(ID, &AT.to_string(), &text, BODY, AT));
    }
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn whatever_comes_as_a_url_is_http_to_a_host_or_refused_without_it(
        text in prop_oneof![changed_text("urls"), "(http://)?\\PC{0,40}"],
    ) {
        match check_url(&text) {
            Ok(_) => check_accepted_url(&text),
            Err(refusal) => expect_one_line(&refusal),
        }
    }

    #[test]
    fn a_pattern_is_refused_or_found_by_a_type_that_it_matches(text in any::<String>()) {
        match check_pattern(&text) {
            Err(refusal) => expect_one_line(&refusal),
            Ok(()) => {
                let typical = text.replace('*', "x");
                prop_assert!(matching_patterns(&typical).contains(&text), "{text:?}");
            }
        }
    }

    #[test]
    fn whatever_comes_as_a_secret_is_one_spelling_of_its_key_or_refused(
        text in prop_oneof![
            changed_text("secrets"),
            any::<String>(),
            prop::collection::vec(any::<u8>(), 0..80)
                .prop_map(|key| format!("whsec_{}", STANDARD.encode(key))),
        ],
    ) {
        match SigningKey::parse(&text) {
            Ok(key) => {
                let code = text.strip_prefix("whsec_").expect("it has the prefix");
                let bytes = STANDARD.decode(code).expect("it is base64");
                prop_assert!((24..=64).contains(&bytes.len()));
                prop_assert_eq!(STANDARD.encode(bytes), code);
                prop_assert_eq!(format!("{key:?}"), "***");
            }
            Err(refusal) => {
                expect_one_line(&refusal);
                prop_assert!(text.len() < 12 || !refusal.to_string().contains(&text));
            }
        }
        // As a webhook's secret, it isn't disclosed either.
        let current = Some(Secret::new(text.clone()));
        let secrets = Secrets { current, previous: None };
        let webhook = Webhook::new(Uuid::nil(), "http://h/", &secrets, &Columns::default());
        if let Err(refusal) = webhook.target {
            prop_assert_eq!(fault_of(&refusal), None);
            prop_assert!(text.len() < 12 || !refusal.contains(&text));
        }
    }

    #[test]
    fn of_all_that_resembles_a_signature_only_the_signature_is_one(
        text in changed_text("signatures"), id in "[!-~]{1,20}", at: u64,
    ) {
        let key = SigningKey::parse(SECRET).expect("a secret");
        let holds_it = text.split(' ').any(|one| one == CODE);
        let (at_time, at_another) = (AT.to_string(), at.to_string());
        let verified = key.verify(ID, &at_time, &text, BODY, AT);
        prop_assert_eq!(verified.is_ok(), holds_it);
        if let Err(refusal) = verified {
            expect_one_line(&refusal);
        }
        // It isn't valid for another event or another time.
        prop_assert!(key.verify(&id, &at_time, &text, BODY, AT).is_err());
        prop_assert!(at == AT || key.verify(ID, &at_another, &text, BODY, at).is_err());
        let keys = SigningKeys { current: Some(key), previous: None };
        prop_assert_eq!(keys.sign(ID, AT, BODY), Some(CODE.to_owned()));
    }
}
