//! The installation as a service: its files, how systemd judges the units, and what the notifier
//! reports to a supervisor.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::harness::{
    Event, Proxy, Receiver, SOON, Sandbox, Signal, holds_for,
    process::Finished,
    service::{Installation, Service},
    wait_until,
};

const ENV_FILE: &str = "/etc/webhook-notifier.env";
const UNIT: &str = "webhook-notifier";

/// Two signs of life are due in this time.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The highest exposure that systemd's own analysis may report, on its scale from 0 to 100 (it prints a
/// tenth of that): what remains is needed for TCP.
const MOST_EXPOSURE: &str = "15";

fn succeed(finished: &Finished) {
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// The files of an installation.
fn expected_files() -> Vec<(String, u32)> {
    let own = [
        (ENV_FILE, 0o640),
        ("/usr/local/bin/webhook-notifier", 0o755),
        ("/usr/local/lib/systemd/system/webhook-notifier.service", 0o644),
        ("/usr/local/lib/systemd/system/webhook-notifier@.service", 0o644),
        ("/usr/local/share/webhook-notifier/webhook-notifier.env", 0o644),
    ];
    let mut files: Vec<_> = own.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect();
    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/monitoring");
    for entry in fs::read_dir(monitoring).into_iter().flatten() {
        let path = entry.expect("it can be read").path();
        if path
            .extension()
            .is_some_and(|extension| ["yml", "json", "md"].iter().any(|it| extension == *it))
        {
            let name = path.file_name().expect("a file").display();
            files.push((format!("/usr/local/share/webhook-notifier/{name}"), 0o644));
        }
    }
    files.sort();
    files
}

/// The manual, and the completions for shells.
fn is_of_manual(name: &str) -> bool {
    let folders = ["man", "bash-completion", "zsh", "fish"];
    folders.iter().any(|folder| name.starts_with(&format!("/usr/local/share/{folder}/")))
}

#[test]
fn an_installation_is_these_files_and_keeps_an_edited_environment_file() {
    let installation = Installation::new();
    let (manual, others): (Vec<_>, Vec<_>) =
        installation.files().into_iter().partition(|(name, _)| is_of_manual(name));
    assert_eq!(others, expected_files());
    assert!(manual.len() > 30, "{manual:?}");
    assert!(manual.iter().all(|(_, mode)| *mode == 0o644), "{manual:?}");
    for file in [
        "man/man1/webhook-notifier.1",
        "man/man1/webhook-notifier-why.1",
        "man/man7/webhook-notifier.7",
        "bash-completion/completions/webhook-notifier",
        "zsh/site-functions/_webhook-notifier",
        "fish/vendor_completions.d/webhook-notifier.fish",
    ] {
        let file = (format!("/usr/local/share/{file}"), 0o644);
        assert!(manual.contains(&file), "no {file:?} in {manual:?}");
    }

    let env_file = installation.path(ENV_FILE);
    let edited = "AMQP_URL=amqp://broker/\n#QUEUES=a\n";
    fs::write(&env_file, edited).expect("it is ours");
    let again = installation.make(&["install"]);
    succeed(&again);
    assert_eq!(installation.files().len(), manual.len() + others.len());
    assert_eq!(fs::read_to_string(&env_file).expect("it is there"), edited);
    // The settings that the file lacks.
    let line = again.stderr.lines().find(|line| line.contains("stays as it is"));
    let line = line.unwrap_or_else(|| panic!("{again:?}"));
    assert!(line.contains("DATABASE_URL") && !line.contains("AMQP_URL"), "{line}");
    assert!(!line.contains("QUEUES"), "{line}");

    let gone = installation.make(&["uninstall"]);
    succeed(&gone);
    assert_eq!(installation.files(), [(ENV_FILE.to_owned(), 0o640)]);
    assert!(gone.stderr.contains(&format!("kept {}", env_file.display())), "{gone:?}");
    assert_eq!(fs::read_to_string(&env_file).expect("it is there"), edited);
}

#[test]
fn another_prefix_has_its_units_where_systemd_looks_for_them() {
    let installation = Installation::empty();
    succeed(&installation.make(&["install", "PREFIX=/opt/notifier"]));
    let unit = installation.path("/etc/systemd/system/webhook-notifier.service");
    let unit = fs::read_to_string(unit).expect("it is there");
    assert!(unit.contains("\nExecStart=/opt/notifier/bin/webhook-notifier run\n"), "{unit}");
    assert!(installation.path("/opt/notifier/bin/webhook-notifier").is_file());
    succeed(&installation.make(&["uninstall", "PREFIX=/opt/notifier"]));
    assert_eq!(installation.files(), [(ENV_FILE.to_owned(), 0o640)]);
}

#[test]
fn if_no_service_can_run_the_targets_say_what_to_do() {
    // Only what changes nothing, if one is running.
    let finished = Installation::empty().make(&["status"]);
    let remedies = ["sudo make install", "run --env-file"];
    assert!(
        finished.code == Some(0) || remedies.iter().any(|remedy| finished.stderr.contains(remedy)),
        "{finished:?}"
    );
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_and_little_exposed() {
    let installation = Installation::new();
    // The targets that the units refer to.
    let system = installation.path("/usr/lib/systemd");
    fs::create_dir_all(&system).expect("it is ours");
    let copied = Command::new("cp").args(["-r", "/usr/lib/systemd/system"]).arg(&system).status();
    assert!(copied.expect("there is a `cp`").success());
    let root = format!("--root={}", installation.root().display());
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").arg(&root).args(arguments).output();
        let output = output.expect("scripts/test.sh installs systemd-analyze");
        let problems = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), problems, printed)
    };
    for unit in ["webhook-notifier.service", "webhook-notifier@.service"] {
        // Any warning about this unit counts; the others concern the system's units.
        let (success, problems, _) =
            analyze(&["verify", "--man=no", "--recursive-errors=no", unit]);
        assert!(success, "{unit}: {problems}");
        let threshold = format!("--threshold={MOST_EXPOSURE}");
        let (success, problems, printed) =
            analyze(&["security", "--offline=true", "--no-pager", &threshold, unit]);
        assert!(success, "{unit}: {problems}{printed}");
    }
}

/// An installation whose environment file leads to the sandbox.
fn install(sandbox: &Sandbox, variables: &[(&str, &str)]) -> Installation {
    let installation = Installation::new();
    let queues = sandbox.queues.join(",");
    let own = [
        ("AMQP_URL", sandbox.servers.amqp_url.as_str()),
        ("DATABASE_URL", sandbox.database.url()),
        ("QUEUES", &queues),
        ("METRICS_ADDR", "127.0.0.1:0"),
        ("ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    installation.configure(&[&own[..], variables].concat());
    installation
}

/// SIGTERM, as `systemctl stop` sends it. Returns what it reports to its supervisor from then on.
#[track_caller]
fn stop(mut service: Service) -> Vec<String> {
    service.notifier.signal(Signal::TERM);
    let stopping = service.wait_heard(0, "STOPPING=1") - 1;
    let exit = service.notifier.wait_exit(SOON);
    assert_eq!(exit.code, Some(0), "{:?}", service.reported());
    service.reported().split_off(stopping)
}

#[test]
fn a_supervisor_is_told_of_readiness_life_and_stop_and_can_restart_it_after_a_kill() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let installation = install(&sandbox, &[("SHUTDOWN_TIMEOUT", "90s")]);
    let unit = installation.unit(UNIT);
    assert_eq!(unit.value("Type"), "notify");
    assert_eq!(unit.value("NotifyAccess"), "main");
    let mut service = installation.start(UNIT, WATCHDOG);

    service.wait_heard(0, "READY=1");
    assert!(service.notifier.is_ready(), "{}", service.notifier.get("/readyz").body);
    assert_eq!(sandbox.broker.consumers(sandbox.queue()), Some(1));
    service.wait_heard(0, "STATUS=ready");
    service.wait_alive(3);

    assert_eq!(unit.value("Restart"), "always");
    service.notifier.signal(Signal::KILL);
    assert_eq!(service.notifier.wait_exit(SOON).code, None);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let service = installation.start(UNIT, WATCHDOG);
    service.wait_heard(0, "READY=1");
    assert_eq!(receiver.wait_at("/", 1)[0].id(), event.id);

    let stopping = stop(service);
    assert!(stopping.contains(&"EXTEND_TIMEOUT_USEC=95000000".to_owned()), "{stopping:?}");
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn a_stopped_process_gives_no_sign_of_life() {
    let sandbox = Sandbox::new();
    let installation = install(&sandbox, &[]);
    let service = installation.start(UNIT, WATCHDOG);
    service.wait_alive(2);
    service.notifier.signal(Signal::STOP);
    // What it had sent has been received by then.
    let mut reported = (service.reported().len(), Instant::now());
    wait_until(SOON, "it is silent for longer than the watchdog waits", || {
        if service.reported().len() != reported.0 {
            reported = (service.reported().len(), Instant::now());
        }
        reported.1.elapsed() > 2 * WATCHDOG
    });
    service.notifier.signal(Signal::CONT);
    service.wait_alive(2);
    stop(service);
}

#[test]
fn the_loss_of_the_broker_changes_the_status_and_does_not_end_the_process() {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let url = proxy.url(&sandbox.servers.amqp_url);
    let installation = install(&sandbox, &[("AMQP_URL", &url), ("AMQP_RETRY_DELAY", "100ms")]);
    let service = installation.start(UNIT, WATCHDOG);
    let ready = service.wait_heard(0, "STATUS=ready");

    proxy.refuse();
    let lane = format!("STATUS=waiting: lane {} is not consuming", sandbox.queue());
    let away = service.wait_heard(ready, &lane);
    service.wait_alive(2);
    proxy.thaw();
    service.wait_heard(away, "STATUS=ready");
    assert_eq!(service.count("READY=1"), 1);
    stop(service);
}

#[test]
fn a_silent_database_delays_the_start_but_never_the_signs_of_life() {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(sandbox.database.url());
    proxy.refuse();
    let installation = install(&sandbox, &[("DATABASE_URL", &proxy.url(sandbox.database.url()))]);
    let service = installation.start(UNIT, WATCHDOG);
    service.wait_heard(0, "EXTEND_TIMEOUT_USEC=");
    service.wait_heard(0, "STATUS=waiting: ");
    holds_for(3 * WATCHDOG, "it is not ready", || service.count("READY=1") == 0);
    service.wait_alive(2);
    assert_eq!(service.notifier.get("/healthz").status, 200);

    proxy.thaw();
    let ready = service.wait_heard(0, "READY=1");
    proxy.freeze();
    service.wait_heard(ready, "STATUS=waiting: ");
    service.wait_alive(6);
    proxy.close_frozen();
    proxy.thaw();
    service.wait_heard(ready, "STATUS=ready");
    stop(service);
}

#[test]
fn an_invalid_configuration_is_not_restarted() {
    let sandbox = Sandbox::new();
    let installation = install(&sandbox, &[("PREFETCH_COUNT", "0")]);
    let unit = installation.unit(UNIT);
    let finished = installation.launch(&unit).spawn().finish(SOON);
    assert_eq!(unit.value("RestartPreventExitStatus"), finished.code.unwrap_or(0).to_string());
    assert_eq!(finished.code, Some(2), "{finished:?}");
}

#[test]
fn an_upgrade_side_by_side_neither_loses_nor_repeats_an_event() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let installation = install(&sandbox, &[]);
    let mut events = Vec::new();
    let mut publish = || {
        let new: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
        sandbox.broker.publish(sandbox.queue(), &new);
        events.extend(new);
    };
    let start = |unit: &str| {
        let service = installation.start(unit, WATCHDOG);
        service.wait_heard(0, "READY=1");
        service
    };
    let old = start(UNIT);
    publish();
    succeed(&installation.make(&["install"]));
    let beside = start("webhook-notifier@127.0.0.1:0");
    publish();
    stop(old);
    publish();
    let new = start(UNIT);
    publish();
    stop(beside);
    publish();
    receiver.wait_at("/", events.len());
    sandbox.wait_drained();
    stop(new);
    for event in &events {
        assert_eq!(receiver.of("/", event).len(), 1, "{}", event.id);
    }
}

/// What is percent-encoded in a URL's password; what may stay unencoded does.
const SPECIAL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'$').remove(b'\'').remove(b';');

/// A PostgreSQL login for a test; dropped with this.
struct Login<'a> {
    sandbox: &'a Sandbox,
    name: String,
}

impl<'a> Login<'a> {
    fn new(sandbox: &'a Sandbox, password: &str) -> Self {
        // The sandbox's queues begin with its schema's name.
        let name = sandbox.queue().to_owned();
        let (schema, _) = name.split_once('_').expect("a lane follows");
        let quoted = password.replace('\'', "''");
        sandbox.database.run_script(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{quoted}';
             GRANT USAGE ON SCHEMA {schema} TO {name};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name};"
        ));
        Self { sandbox, name }
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        let name = &self.name;
        self.sandbox.database.run_script(&format!("DROP OWNED BY {name}; DROP ROLE {name};"));
    }
}

#[test]
fn a_command_uses_the_services_settings_whatever_the_password() {
    let sandbox = Sandbox::new();
    let password = "p$a%s`s # \"w'o\\rd;";
    let login = Login::new(&sandbox, password);
    let encoded = utf8_percent_encode(password, SPECIAL);
    let url = Url::parse(sandbox.database.url()).expect("a URL");
    let (_, server) = url.as_str().split_once('@').expect("a login");
    let url = format!("postgres://{}:{encoded}@{server}", login.name);
    assert!(url.contains("p$a%25s") && url.contains("%20%23"), "{url}");
    let double: String = url.replace('\\', "\\\\").replace('$', "\\$").replace('`', "\\`");
    let installation = Installation::empty();
    let file = installation.path("/env");
    let named = file.to_str().expect("text");
    let check = |arguments: &[&str]| {
        let arguments = [&["check", "--env-file", named], arguments].concat();
        // Neither server is there, and neither is contacted.
        let nowhere = "postgres://nobody@127.0.0.1:1/none";
        sandbox.launch(&arguments).env("DATABASE_URL", nowhere).spawn().finish(SOON)
    };
    for (quoting, value) in [("none", url.clone()), ("double", format!("\"{double}\" "))] {
        fs::write(&file, format!("# as the service has it\nDATABASE_URL={value}\n"))
            .expect("it is ours");
        let finished = check(&[]);
        assert_eq!(finished.code, Some(0), "{quoting}: {finished:?}");
    }
    let finished = check(&["--database-url", "postgres://nobody@127.0.0.1:1/none"]);
    assert_eq!(finished.code, Some(1), "a flag counts more: {finished:?}");
    let made = installation.make(&["check", &format!("ENV_FILE={named}")]);
    let database = made.stdout.lines().find(|line| line.contains("database "));
    assert!(database.is_some_and(|line| line.starts_with("ok")), "{made:?}");

    fs::remove_file(&file).expect("it is ours");
    let finished = check(&[]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains(named), "{finished:?}");
}
