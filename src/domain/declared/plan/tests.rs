use super::*;
use proptest::prelude::*;

use super::super::super::signature::SigningKey;

const ID: Uuid = Uuid::from_u128(1);

fn texts(events: &[&str]) -> Vec<String> {
    events.iter().map(|text| (*text).to_owned()).collect()
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn known(id: u128, url: &str, events: &[&str]) -> Existing {
    let values = Values { post_url: url.to_owned(), events: texts(events), ..Values::default() };
    Existing {
        id: Uuid::from_u128(id),
        version: Some(format!("v{id}")),
        values,
        flaw: None,
        has_odd_headers: false,
    }
}

fn of_account(mut known: Existing, account: &str) -> Existing {
    known.values.settings.insert(Column::Account, account.to_owned());
    known
}

fn entry(line: usize, id: Option<u128>, url: &str, events: &[&str]) -> FileEntry {
    let id = id.map(Uuid::from_u128);
    FileEntry { line, id, post_url: url.to_owned(), events: texts(events), ..FileEntry::default() }
}

/// The entry that `webhooks export` writes for a webhook.
fn exported(line: usize, known: &Existing) -> FileEntry {
    let Values { post_url, events, headers, settings, paused, disabled, .. } = &known.values;
    let hidden = |name: &String| (name.clone(), secret(HIDDEN));
    FileEntry {
        line,
        id: Some(known.id),
        post_url: without_secrets(post_url),
        events: events.clone(),
        headers: headers.keys().map(hidden).collect(),
        settings: settings.clone(),
        paused: paused.then_some(true),
        disabled: disabled.is_some().then_some(true),
        disabled_reason: disabled.clone().filter(|reason| !reason.is_empty()),
        ..FileEntry::default()
    }
}

fn planned(
    entries: &[FileEntry],
    known: &[Existing],
    prune: bool,
) -> Result<Plan, Vec<FileProblem>> {
    let mut last = 1_000;
    plan(entries, known, prune, || {
        last += 1;
        Uuid::from_u128(last)
    })
}

/// The ids of the plan: added, changed, removed, unchanged, not listed.
fn sorted(plan: &Plan) -> [Vec<u128>; 5] {
    let ids = |ids: &mut dyn Iterator<Item = Uuid>| {
        let mut ids: Vec<_> = ids.map(|id| id.as_u128()).collect();
        ids.sort_unstable();
        ids
    };
    [
        ids(&mut plan.added.iter().map(|it| it.id)),
        ids(&mut plan.changed.iter().map(|it| it.id)),
        ids(&mut plan.removed.iter().map(|it| it.id)),
        ids(&mut plan.unchanged.iter().copied()),
        ids(&mut plan.unlisted.iter().copied()),
    ]
}

#[track_caller]
fn check(entries: &[FileEntry], known: &[Existing], prune: bool, expected: [&[u128]; 5]) -> Plan {
    let plan = planned(entries, known, prune).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(sorted(&plan), expected.map(<[u128]>::to_vec), "{plan:?}");
    plan
}

#[track_caller]
fn refuse(entries: &[FileEntry], known: &[Existing], expected: &[(usize, &str)]) {
    let problems = planned(entries, known, false).expect_err("it has problems");
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, (line, says)) in problems.iter().zip(expected) {
        assert!(
            problem.line == *line && problem.what.contains(says),
            "no {says:?} in {problems:?}"
        );
        assert!(!problem.what.contains("s3cret"), "{problem:?}");
    }
}

#[test]
fn an_entry_with_an_id_means_the_webhook_with_this_id_or_a_new_one() {
    let table = [known(1, "http://a/", &["a"]), known(2, "http://b/", &["b"])];
    let plan = check(
        &[entry(1, Some(1), "http://c/", &["c"])],
        &table,
        false,
        [&[], &[1], &[], &[], &[2]],
    );
    let fields: Vec<_> = plan.changed[0].differences.iter().map(|it| it.field).collect();
    assert_eq!(fields, [Field::PostUrl, Field::Events]);
    assert_eq!(plan.changed[0].version, "v1");
    // It doesn't mean the webhook with the same URL and events.
    check(&[entry(1, Some(3), "http://a/", &["a"])], &table, true, [&[3], &[], &[1, 2], &[], &[]]);
}

#[test]
fn an_entry_without_an_id_means_the_webhook_with_the_same_url_and_account() {
    let a = || known(1, "http://a/", &["a"]);
    // The spelling of the URL and the order of the events make no difference.
    check(&[entry(1, None, "http://A:80/", &["a"])], &[a()], false, [&[], &[1], &[], &[], &[]]);
    let two = known(1, "http://a/", &["a", "b"]);
    check(&[entry(1, None, "http://a/", &["b", "a"])], &[two], false, [&[], &[], &[], &[1], &[]]);
    check(&[entry(1, None, "http://a/", &["b"])], &[a()], false, [&[], &[1], &[], &[], &[]]);
    check(&[entry(1, None, "http://b/", &["a"])], &[a()], true, [&[1_001], &[], &[1], &[], &[]]);
    // The same URL in another account is another webhook.
    let acmes = of_account(a(), "acme");
    check(&[entry(1, None, "http://a/", &["a"])], &[acmes], false, [&[1_001], &[], &[], &[], &[1]]);
    // Of several, it means the one with the same events; if one is left on each side, they match.
    let table = [a(), known(2, "http://a/", &["b"]), known(3, "http://a/", &["c"])];
    let of = |line, event| entry(line, None, "http://a/", &[event]);
    check(&[of(1, "b")], &table, false, [&[], &[], &[], &[2], &[1, 3]]);
    check(&[of(1, "b"), of(2, "a"), of(3, "d")], &table, false, [&[], &[3], &[], &[1, 2], &[]]);
    // A webhook that another entry names by id isn't matched.
    let first = entry(1, Some(1), "http://a/", &["a"]);
    let second = of(2, "b");
    check(&[first, second], &[a()], false, [&[1_001], &[], &[], &[1], &[]]);
}

#[test]
fn all_problems_of_all_entries_are_reported() {
    let table = [known(1, "http://a/", &["a"]), known(2, "http://a/", &["b"])];
    refuse(
        &[entry(3, None, "http://a/", &["c"])],
        &table,
        &[(3, "several webhooks have its URL and account")],
    );
    let lines = [("post_url", 11), ("events", 12)].map(|(name, line)| (name.to_owned(), line));
    let broken =
        FileEntry { lines: lines.into(), ..entry(10, None, "ftp://u:s3cret@a/", &["*.a", "a*"]) };
    let mut bad = entry(20, Some(1), "http://a/", &["a"]);
    for (column, text) in [
        (Column::TimeoutMs, "0"),
        (Column::RatePerSecond, "x"),
        (Column::NoRetryStatus, "200"),
        (Column::Account, ""),
        (Column::Description, "\0"),
    ] {
        bad.settings.insert(column, text.to_owned());
    }
    bad.headers.insert("host".to_owned(), secret("s3cret"));
    let twice = entry(30, Some(1), "http://c/", &["a"]);
    let alike =
        [entry(40, None, "http://d/", &["a", "b"]), entry(50, None, "http://D/", &["b", "a"])];
    let entries =
        [vec![broken, bad, twice], alike.to_vec(), vec![entry(60, None, "", &[])]].concat();
    let expected = [
        (11, "post_url: unusable URL"),
        (12, "\"*.a\" matches nothing"),
        (12, "\"a*\" matches nothing"),
        (20, "headers: a webhook can't set the header \"host\""),
        (20, "timeout_ms: "),
        (20, "rate_per_second: "),
        (20, "no_retry_status: "),
        (20, "description: contains a NUL"),
        (20, "account: "),
        (30, "the same `id` as on line 20"),
        (50, "as on line 40"),
        (60, "post_url: missing"),
        (60, "events: none"),
    ];
    refuse(&entries, &table, &expected);
    // Fields that couldn't be read have been reported already.
    let unread = BTreeSet::from(["post_url".to_owned(), "events".to_owned()]);
    assert!(planned(&[FileEntry { unread, ..entry(1, None, "", &[]) }], &[], false).is_ok());
}

#[test]
fn omitted_settings_are_removed_and_omitted_states_and_secrets_are_kept() {
    let mut has = known(1, "http://a/?s3cret", &["a"]);
    has.values.settings.insert(Column::TimeoutMs, "5".to_owned());
    has.values.settings.insert(Column::RatePerSecond, "1000".to_owned());
    has.values.headers.insert("x-a".to_owned(), secret("s3cret"));
    has.values.headers.insert("x-b".to_owned(), secret("s3cret"));
    has.values.paused = true;
    has.values.disabled = Some("gone".to_owned());
    has.values.secret = Some(SigningKey::secret_of([1; 32]));
    let mut says = entry(1, Some(1), "http://a/?***", &["a"]);
    says.settings.insert(Column::RatePerSecond, "1e3".to_owned());
    says.headers.insert("x-a".to_owned(), secret(HIDDEN));
    let table = [has.clone()];
    let plan = check(std::slice::from_ref(&says), &table, false, [&[], &[1], &[], &[], &[]]);
    let changed = &plan.changed[0];
    let shown: Vec<_> = changed
        .differences
        .iter()
        .map(|it| (it.field.name(), it.from.as_str(), it.to.as_str()))
        .collect();
    assert_eq!(shown, [("headers", "x-b: ***", ""), ("timeout_ms", "5", "")]);
    assert_eq!(changed.to.secret, has.values.secret);
    assert_eq!(changed.to.post_url, "http://a/?s3cret");
    assert!(plan.losing().is_empty());

    // What the file says takes precedence.
    let other = FileEntry {
        paused: Some(false),
        disabled: Some(false),
        secret: Some(SigningKey::secret_of([2; 32])),
        headers: SecretHeaders::from([("x-a".to_owned(), secret("another"))]),
        ..says
    };
    let plan = check(&[other], &table, false, [&[], &[1], &[], &[], &[]]);
    let names: Vec<_> = plan.changed[0].differences.iter().map(|it| it.field.name()).collect();
    assert_eq!(names, ["headers", "timeout_ms", "paused", "disabled", "secret"]);
    for difference in &plan.changed[0].differences {
        assert!(difference.from != difference.to, "{difference:?}");
        let text = format!("{difference:?}");
        assert!(
            !text.contains("s3cret") && !text.contains("another\"") && !text.contains("whsec_"),
            "{text}"
        );
    }
    let off = FileEntry { disabled: Some(true), ..entry(1, None, "http://b/", &["a"]) };
    let plan = check(&[off], &[known(1, "http://b/", &["a"])], false, [&[], &[1], &[], &[], &[]]);
    assert_eq!(plan.changed[0].to.disabled.as_deref(), Some("by hand"));
    assert_eq!(plan.losing(), HashSet::from([ID]));
}

#[test]
fn three_stars_stand_only_for_a_present_value() {
    let mut has = known(1, "http://a/?s3cret", &["a"]);
    has.values.headers.insert("x-a".to_owned(), secret("s3cret"));
    let hidden = "`***` stands for";
    for (id, url) in [
        (Some(1), "http://b/?***"),
        (Some(2), "http://a/?***"),
        (None, "http://b/?***"),
        (Some(1), "http://a/?***&v=2"),
        (Some(1), "http://a/?v=***"),
        (Some(1), "http://a/#***x"),
    ] {
        refuse(&[entry(1, id, url, &["a"])], std::slice::from_ref(&has), &[(1, hidden)]);
    }
    check(&[entry(1, None, "http://a/***/x", &["a"])], &[], false, [&[1_001], &[], &[], &[], &[]]);
    let literal = known(1, "http://a/?v=***", &["a"]);
    let same = entry(1, Some(1), "http://a/?v=***", &["a"]);
    check(&[same], &[literal], false, [&[], &[], &[], &[1], &[]]);
    let mut of_header = entry(1, Some(1), "http://a/?s3cret", &["a"]);
    of_header.headers.insert("x-b".to_owned(), secret(HIDDEN));
    refuse(&[of_header], &[has], &[(1, "no header \"x-b\"")]);
}

#[test]
fn a_webhook_that_a_file_cannot_express_is_not_removed_or_changed_by_accident() {
    let flawed = |version: Option<&str>| Existing {
        flaw: Some("its row is odd".to_owned()),
        version: version.map(str::to_owned),
        ..known(1, "", &[])
    };
    let other = || known(2, "http://b/", &["b"]);
    let says = || entry(1, Some(2), "http://b/", &["b"]);
    for version in [None, Some("v1")] {
        check(&[says()], &[flawed(version), other()], true, [&[], &[], &[], &[2], &[1]]);
    }
    let repaired = entry(1, Some(1), "http://a/", &["a"]);
    let table = [flawed(Some("v1"))];
    check(std::slice::from_ref(&repaired), &table, false, [&[], &[1], &[], &[], &[]]);
    refuse(&[repaired], &[flawed(None)], &[(1, "its row is odd")]);
}

proptest! {
    #[test]
    fn applying_an_export_changes_nothing_whatever_the_table_contains(
        rows in prop::collection::vec(
            (
                "http://[ab]/([?]s3cret)?|http://u:p@h/|x|",
                prop::collection::vec("[a*.]{0,3}", 0..3),
                prop::option::of("[0-9x]{0,2}"),
                prop::option::of("[a ]{0,2}"),
                any::<(bool, bool)>(),
            ),
            0..8,
        ),
        prune: bool,
    ) {
        let table: Vec<Existing> = rows.into_iter().zip(1..).map(|((url, events, number, account, (paused, off)), id)| {
            let mut known = known(id, &url, &[]);
            known.values.events = events;
            known.values.settings.extend(number.map(|number| (Column::TimeoutMs, number)));
            known.values.settings.extend(account.map(|account| (Column::Account, account)));
            known.values.paused = paused;
            known.values.disabled = off.then(String::new);
            known.values.headers.insert("X-Odd".to_lowercase(), secret("s3cret"));
            known
        }).collect();
        let entries: Vec<FileEntry> = table.iter().enumerate().map(|(at, known)| exported(at + 1, known)).collect();
        let plan = planned(&entries, &table, prune);
        let plan = plan.map_err(|problems| TestCaseError::fail(format!("{problems:?}")))?;
        prop_assert!(plan.is_empty(), "{:?}", plan);
        prop_assert_eq!(plan.unchanged.len(), table.len());
        prop_assert!(plan.unlisted.is_empty());
    }
}
