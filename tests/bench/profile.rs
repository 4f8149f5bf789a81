//! PERF=FILE: profiles each side with perf, into FILE.notifier and FILE.bare-loop. Each round overwrites
//! the profiles of the one before. Profiling slows both sides down: ignore the figures.

use std::{
    env,
    process::{Child, Command, Stdio},
};

use crate::subject::Side;

/// Records until it is dropped.
pub(crate) struct Profile(Option<Child>);

impl Profile {
    /// Records this process, if PERF is set.
    pub(crate) fn start(side: Side, pid: u32) -> Self {
        let Some(file) = env::var("PERF").ok().filter(|file| !file.is_empty()) else {
            return Self(None);
        };
        let file = match side {
            Side::Notifier(_) => format!("{file}.notifier"),
            Side::BareLoop(_) => format!("{file}.bare-loop"),
            Side::Earlier(_) => format!("{file}.earlier"),
        };
        // A prime number of samples per second coincides with no other period.
        let perf = Command::new("perf")
            .args(["record", "-F", "997", "-g", "-o", &file, "-p", &pid.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(Some(perf.expect("PERF needs `perf`")))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if let Some(mut perf) = self.0.take() {
            // At SIGINT, perf writes its file.
            let _ = Command::new("kill").args(["-s", "INT", &perf.id().to_string()]).status();
            let _ = perf.wait();
        }
    }
}
