//! What the notifier's PostgreSQL user may do, and how an error from PostgreSQL is reported.

use url::Url;
use uuid::Uuid;

use crate::harness::{
    Event, Launch, Receiver, Reply, SOON, Sandbox, process::Finished, wait_until,
};
use crate::readme::manual;

/// A role for one test, with its schema as search path.
struct Role<'a> {
    sandbox: &'a Sandbox,
    name: String,
    url: String,
}

impl<'a> Role<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        let name = format!("{}_user", sandbox.queue());
        let password = Uuid::new_v4().simple().to_string();
        let schema = sandbox.queue().split('_').next().expect("a name");
        sandbox.database.run_script(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{password}';
             ALTER ROLE {name} SET search_path = {schema};
             GRANT USAGE ON SCHEMA {schema} TO {name}"
        ));
        let mut url = Url::parse(&sandbox.servers.database_url).expect("a URL");
        url.set_username(&name).expect("it has a host");
        url.set_password(Some(&password)).expect("it has a host");
        Self { sandbox, name, url: url.into() }
    }

    /// Runs statements, with the role's name instead of `notifier`.
    #[track_caller]
    fn run(&self, sql: &str) {
        self.sandbox.database.run_script(&sql.replace("TO notifier", &format!("TO {}", self.name)));
    }

    fn launch(&self, launch: Launch) -> Launch {
        launch.env("DATABASE_URL", &self.url)
    }

    #[track_caller]
    fn command(&self, arguments: &[&str]) -> Finished {
        self.launch(self.sandbox.launch(arguments)).spawn().finish(SOON)
    }

    #[track_caller]
    fn check_fails(&self, parts: &[&str]) {
        let finished = self.command(&["check"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        for part in parts {
            assert!(finished.stdout.contains(part), "no {part:?} in {finished:?}");
        }
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let name = &self.name;
        let sql = format!("DROP OWNED BY {name}; DROP ROLE {name}");
        // One of its connections may just be closing.
        let _ = postgres::Client::connect(self.sandbox.database.url(), postgres::NoTls)
            .and_then(|mut client| client.batch_execute(&sql));
    }
}

/// The statements that the manual gives, for a role named `notifier`.
fn documented_grants() -> String {
    let manual = manual("postgresql");
    let lines = manual.lines().filter(|line| line.starts_with("GRANT "));
    let tables: Vec<_> = lines.filter(|line| line.contains(" TO notifier;")).collect();
    assert!(tables.len() >= 2, "{tables:?}");
    tables.join("\n")
}

#[test]
fn the_documented_rights_are_enough_and_each_is_needed() {
    let sandbox = Sandbox::new();
    let role = Role::new(&sandbox);
    role.run(&documented_grants());
    let receiver = Receiver::answering(|request| {
        Reply::Status(if request.path == "/gone" { 410 } else { 200 })
    });
    let fine = sandbox.webhook(&receiver.url("/fine"), &["*"]);
    let gone = sandbox.webhook(&receiver.url("/gone"), &["*"]);
    let checked = role.command(&["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(!checked.stdout.contains("FAIL"), "{checked:?}");

    let notifier = role.launch(sandbox.notifier().env("DELIVERY_LOG", "all")).start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/fine", 1);
    let count = |sql: &str| -> i64 { sandbox.database.query(sql, &[])[0].get(0) };
    wait_until(SOON, "it is disabled", || {
        count("SELECT count(*) FROM webhooks WHERE disabled_at IS NOT NULL") == 1
    });
    wait_until(SOON, "both are logged", || count("SELECT count(*) FROM delivery_attempts") >= 2);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now() WHERE id = $1", &[&fine]);
    wait_until(SOON, "a backlog is made", || {
        sandbox.publish(&Event::new("order.paid"));
        count("SELECT count(*) FROM backlogs") == 1
    });
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL WHERE id = $1", &[&fine]);
    sandbox.wait_drained();
    assert_eq!(receiver.at("/gone").len(), 1, "{gone}");
    notifier.terminate();

    let rights = [
        ("UPDATE", "webhooks", "stays enabled"),
        ("INSERT", "backlogs", "no backlog can be created"),
        ("UPDATE", "backlogs", "no backlog can be created"),
        ("DELETE", "backlogs", "no backlog can be removed"),
        ("INSERT", "webhook_conditions", "webhooks.events does not report webhooks"),
        ("DELETE", "webhook_conditions", "webhooks.events does not report webhooks"),
        ("INSERT", "notifier_instances", "each instance keeps the limits of webhooks"),
        ("UPDATE", "notifier_instances", "each instance keeps the limits of webhooks"),
        ("DELETE", "notifier_instances", "each instance keeps the limits of webhooks"),
        ("SELECT", "notifier_instances", "each instance keeps the limits of webhooks"),
        ("INSERT", "delivery_attempts", "nothing is logged"),
        ("DELETE", "delivery_attempts", "grows without limit"),
        ("UPDATE", "delivery_attempts", "grows without limit"),
        ("SELECT", "webhooks", "permission denied for table webhooks"),
        ("SELECT", "backlogs", "permission denied for table backlogs"),
    ];
    for (right, table, expected) in rights {
        let name = &role.name;
        sandbox.database.run_script(&format!("REVOKE {right} ON {table} FROM {name}"));
        role.check_fails(&["FAIL", expected, "GRANT SELECT, UPDATE ON webhooks"]);
        role.run(&documented_grants());
    }
    assert_eq!(role.command(&["check"]).code, Some(0));
}

#[test]
fn a_read_only_user_and_a_read_only_database_fail_the_check() {
    let sandbox = Sandbox::new();
    let role = Role::new(&sandbox);
    role.run("GRANT SELECT ON webhooks, backlogs, delivery_attempts TO notifier");
    role.check_fails(&[
        "permission denied for table webhooks",
        "permission denied for table backlogs",
    ]);
    // It delivers nevertheless, and logs what it can't do.
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = role.launch(sandbox.notifier()).start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    notifier.wait_stderr(SOON, "until then no backlog can be created");
    let line = notifier.wait_stderr(SOON, "each instance keeps the limits of webhooks");
    assert!(line.contains("notifier_instances TO this user"), "{line}");
    notifier.terminate();

    role.run(&documented_grants());
    sandbox
        .database
        .run_script(&format!("ALTER ROLE {} SET default_transaction_read_only = on", role.name));
    role.check_fails(&["read-only transaction", "standby", "lead to the primary"]);
}

#[test]
fn an_error_from_postgresql_is_reported_as_what_it_is() {
    let sandbox = Sandbox::new();
    let role = Role::new(&sandbox);
    role.run(&documented_grants());
    let url = Url::parse(&role.url).expect("a URL");
    let place = format!("{}:{}{}", url.host().expect("one"), url.port().expect("one"), url.path());

    let full = format!("ALTER ROLE {} CONNECTION LIMIT 0", role.name);
    sandbox.database.run_script(&full);
    for arguments in [&["check"][..], &["webhooks", "list"], &["why", "e"], &["migrate"]] {
        let finished = role.command(arguments);
        let output = [finished.stdout, finished.stderr].concat();
        assert_eq!(finished.code, Some(1), "{arguments:?}: {output}");
        for part in ["too many connections", "max_connections", &place] {
            assert!(output.contains(part), "no {part:?} in {output}");
        }
        assert!(!output.contains("does not answer"), "{output}");
    }
    // It may be over soon, so the notifier waits.
    let mut notifier = role.launch(sandbox.notifier()).start_unready();
    let line = notifier.wait_stderr(SOON, "too many connections");
    assert!(line.contains("WARN") && !line.contains("does not answer"), "{line}");
    wait_until(SOON, "/readyz reports it", || {
        notifier.get("/readyz").body.contains("PostgreSQL answers with an error: too many")
    });
    sandbox.database.run_script(&format!("ALTER ROLE {} CONNECTION LIMIT -1", role.name));
    notifier.wait_stderr(SOON, "ready: ");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    notifier.terminate();

    for (break_it, repair_it, expected) in [
        (
            "ALTER TABLE webhooks RENAME TO hooks",
            "ALTER TABLE hooks RENAME TO webhooks",
            "run `webhook-notifier migrate`",
        ),
        (
            "REVOKE SELECT ON webhooks FROM notifier_role",
            "GRANT SELECT ON webhooks TO notifier_role",
            "GRANT SELECT, UPDATE ON webhooks",
        ),
    ] {
        sandbox.database.run_script(&break_it.replace("notifier_role", &role.name));
        let finished = role.command(&["webhooks", "list"]);
        for part in [expected, &place, "refuses"] {
            assert!(finished.stderr.contains(part), "no {part:?} in {finished:?}");
        }
        sandbox.database.run_script(&repair_it.replace("notifier_role", &role.name));
    }

    // Only if nothing answers.
    let refusing = Receiver::new().refusing_url().replace("http:", "postgres:");
    let launch = sandbox.launch(&["webhooks", "list"]).env("DATABASE_URL", refusing);
    let finished = launch.spawn().finish(SOON);
    assert!(finished.stderr.contains("does not answer"), "{finished:?}");
    assert!(finished.stderr.contains("PostgreSQL at 127.0.0."), "{finished:?}");
}
