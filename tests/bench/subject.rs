//! What is measured: the notifier, or the bare loop, as a process of its own.

use std::{env, fmt, process::Command, str::FromStr};

use crate::{
    bare_loop,
    harness::{Process, SOON, Sandbox, notifier::Launch},
};

/// How many consumers, and how many messages the broker hands each ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) consumers: u16,
    pub(crate) prefetch: u16,
}

impl Setting {
    pub(crate) const DEFAULT: Self = Self { consumers: 1, prefetch: 1 };
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}", self.consumers, self.prefetch))
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (consumers, prefetch) = text.split_once('x')?;
            Some(Self { consumers: consumers.parse().ok()?, prefetch: prefetch.parse().ok()? })
        };
        read().ok_or_else(|| format!("{text} is not CONSUMERSxPREFETCH, such as 4x64"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Notifier,
    BareLoop,
    /// The notifier as it was: the binary that EARLIER names.
    Earlier,
}

/// Names the binary of [`Side::Earlier`].
pub(crate) const EARLIER: &str = "EARLIER";

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Notifier => "notifier",
            Self::BareLoop => "bare loop",
            Self::Earlier => "earlier",
        })
    }
}

pub(crate) struct Subject {
    process: Process,
    side: Side,
}

impl Subject {
    /// Starts one that consumes the sandbox's first queue. Both send to this URL: the bare loop as
    /// it is told so, the notifier as it finds it in the table.
    pub(crate) fn start(side: Side, sandbox: &Sandbox, setting: Setting, url: &str) -> Self {
        let process = match side {
            Side::Notifier => notifier(sandbox, setting).spawn(),
            Side::BareLoop => bare_loop(sandbox, setting, url),
            Side::Earlier => earlier(&notifier(sandbox, setting)),
        };
        Self { process, side }
    }

    /// Waits until it consumes.
    pub(crate) fn wait_ready(&mut self) {
        let line = match self.side {
            Side::Notifier | Side::Earlier => "ready: ",
            Side::BareLoop => bare_loop::READY,
        };
        self.process.wait_stderr(SOON, line);
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it. What is wrong with its end, or with what it left.
    pub(crate) fn stop(mut self, sandbox: &Sandbox) -> Vec<String> {
        if self.side == Side::BareLoop {
            self.process.kill();
            return Vec::new();
        }
        self.process.signal("TERM");
        let exit = self.process.wait_exit(SOON);
        let mut wrong = Vec::new();
        if exit.code != Some(0) {
            wrong.push(format!("the notifier ended with {:?}", exit.code));
        }
        for queue in &sandbox.queues {
            for queue in [queue.clone(), format!("{queue}.retry"), format!("{queue}.dead")] {
                let left = sandbox.broker.ready(&queue);
                if left != Some(0) {
                    wrong.push(format!("{queue} holds {left:?} messages at the end"));
                }
            }
        }
        wrong
    }
}

/// The notifier and another side, round by round. Who is first takes turns, or a machine that is
/// slowing down would look like a difference.
pub(crate) fn in_turns<T>(
    rounds: usize,
    other: Side,
    mut measure: impl FnMut(Side) -> T,
) -> Vec<(T, T)> {
    let mut round = |n: usize| {
        if n.is_multiple_of(2) {
            let ours = measure(Side::Notifier);
            (ours, measure(other))
        } else {
            let its = measure(other);
            (measure(Side::Notifier), its)
        }
    };
    (0..rounds).map(&mut round).collect()
}

/// The notifier for the first queue of the sandbox; the rest of its configuration is the default.
pub(crate) fn notifier(sandbox: &Sandbox, setting: Setting) -> Launch {
    let Setting { consumers, prefetch } = setting;
    sandbox
        .notifier()
        .env("QUEUES", format!("{}={consumers}", sandbox.queue()))
        .env("PREFETCH_COUNT", prefetch.to_string())
}

/// The same call of the other binary.
fn earlier(launch: &Launch) -> Process {
    let mut command = Command::new(env::var_os(EARLIER).expect("looked at before"));
    command.args(launch.0.get_args()).env_clear();
    command.envs(launch.0.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Process::spawn(command)
}

fn bare_loop(sandbox: &Sandbox, setting: Setting, url: &str) -> Process {
    let executable = env::current_exe().expect("we run from a file");
    let mut command = Command::new(executable);
    command
        .args([bare_loop::COMMAND, &sandbox.servers.amqp_url, sandbox.queue(), url])
        .args([setting.consumers.to_string(), setting.prefetch.to_string()]);
    Process::spawn(command)
}
