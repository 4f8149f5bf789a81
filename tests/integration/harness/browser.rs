//! Chromium, which shows what a page renders to.

use std::process::Command;

use super::{LATER, Process};

/// The page's markup after its scripts have run for three seconds of page time, and what it wrote
/// to the console, including errors and violations of the page's policy.
#[track_caller]
pub(crate) fn rendered(url: &str) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("chromium");
    command
        // Root needs this, and these pages are our own.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        // It should connect to nothing but our servers.
        .args(["--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url);
    let finished = Process::spawn(command).finish(LATER);
    assert_eq!(finished.code, Some(0), "chromium: {}", finished.stderr);
    let console = finished.stderr.lines().filter(|line| line.contains(":CONSOLE"));
    (finished.stdout.clone(), console.map(str::to_owned).collect())
}
