//! What is measured: the notifier or the bare loop, as a process of its own.

use std::{env, fmt, process::Command, str::FromStr};

use crate::{
    bare_loop,
    harness::{Process, SOON, Sandbox, Signal, notifier::Launch},
    report::Report,
};

/// The notifier's settings; those that are `None` keep their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The maximum number of requests in flight.
    pub(crate) capacity: Option<u16>,
    /// Each consumer's prefetch.
    pub(crate) prefetch: Option<u16>,
}

impl Setting {
    pub(crate) const DEFAULT: Self = Self { capacity: None, prefetch: None };

    pub(crate) const fn prefetch(prefetch: u16) -> Self {
        Self { prefetch: Some(prefetch), ..Self::DEFAULT }
    }

    pub(crate) const fn capacity(capacity: u16) -> Self {
        Self { capacity: Some(capacity), ..Self::DEFAULT }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match (self.capacity, self.prefetch) {
            (None, None) => "default configuration".to_owned(),
            (None, Some(prefetch)) => format!("prefetch {prefetch}"),
            (Some(capacity), None) => format!("capacity {capacity}"),
            (Some(capacity), Some(prefetch)) => format!("capacity {capacity}, prefetch {prefetch}"),
        })
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || match text.split_once('x') {
            None => Some(Self::prefetch(text.parse().ok()?)),
            Some((capacity, prefetch)) => Some(Self {
                capacity: Some(capacity.parse().ok()?),
                prefetch: Some(prefetch.parse().ok()?),
            }),
        };
        read().ok_or_else(|| "not PREFETCH or CAPACITYxPREFETCH, such as 64 or 128x64".to_owned())
    }
}

/// The bare loop's channels, and their prefetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    pub(crate) count: u16,
    pub(crate) prefetch: u16,
}

impl Channels {
    pub(crate) const ONE: Self = Self { count: 1, prefetch: 1 };
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}", self.count, self.prefetch))
    }
}

impl FromStr for Channels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (count, prefetch) = text.split_once('x')?;
            Some(Self { count: count.parse().ok()?, prefetch: prefetch.parse().ok()? })
        };
        read().ok_or_else(|| "not CHANNELSxPREFETCH, such as 4x64".to_owned())
    }
}

/// What is measured, and its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Notifier(Setting),
    BareLoop(Channels),
    /// An earlier version of the notifier: the binary that EARLIER names.
    Earlier(Setting),
}

/// Names the binary of [`Side::Earlier`].
pub(crate) const EARLIER: &str = "EARLIER";

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Notifier(_) => "notifier",
            Self::BareLoop(_) => "bare loop",
            Self::Earlier(_) => "earlier",
        })
    }
}

impl Side {
    /// Its setting, for the output.
    pub(crate) fn setting(self) -> String {
        match self {
            Self::Notifier(setting) | Self::Earlier(setting) => setting.to_string(),
            Self::BareLoop(channels) => channels.to_string(),
        }
    }
}

pub(crate) struct Subject {
    process: Process,
    side: Side,
}

impl Subject {
    /// Starts a process that consumes the sandbox's first queue and sends to this URL. The bare loop gets
    /// the URL as an argument, the notifier finds it in the table.
    pub(crate) fn start(side: Side, sandbox: &Sandbox, url: &str) -> Self {
        let process = match side {
            Side::Notifier(setting) => notifier(sandbox, setting).spawn(),
            Side::BareLoop(channels) => bare_loop(sandbox, channels, url),
            Side::Earlier(setting) => {
                // An older version may declare it with other arguments. The newer one replaces it again.
                sandbox.broker.delete_exchange("webhooks.retry");
                earlier(&notifier(sandbox, setting))
            }
        };
        Self { process, side }
    }

    /// Waits until it consumes.
    pub(crate) fn wait_ready(&mut self) {
        let line = match self.side {
            Side::Notifier(_) | Side::Earlier(_) => "ready: ",
            Side::BareLoop(_) => bare_loop::READY,
        };
        self.process.wait_stderr(SOON, line);
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it. A notifier must end with code 0 and leave no messages in its queues.
    pub(crate) fn stop(mut self, sandbox: &Sandbox, report: &mut Report) {
        if matches!(self.side, Side::BareLoop(_)) {
            self.process.kill();
            return;
        }
        self.process.signal(Signal::TERM);
        let exit = self.process.wait_exit(SOON);
        if exit.code != Some(0) {
            report.wrong(format!("the notifier ended with {:?}", exit.code));
        }
        for queue in &sandbox.queues {
            for queue in [queue.clone(), format!("{queue}.retry"), format!("{queue}.dead")] {
                let left = sandbox.broker.ready(&queue);
                if left != Some(0) {
                    report.wrong(format!("{queue} holds {left:?} messages at the end"));
                }
            }
        }
    }
}

/// Runs two cases, round by round. Their order alternates: otherwise a machine that slows down would look
/// like a difference between them.
pub(crate) fn in_turns<C: Copy, T>(
    rounds: usize,
    one: C,
    other: C,
    mut measure: impl FnMut(C) -> T,
) -> Vec<(T, T)> {
    let mut round = |n: usize| {
        if n.is_multiple_of(2) {
            let first = measure(one);
            (first, measure(other))
        } else {
            let second = measure(other);
            (measure(one), second)
        }
    };
    (0..rounds).map(&mut round).collect()
}

/// The notifier for the sandbox's first queue; otherwise with its default configuration.
pub(crate) fn notifier(sandbox: &Sandbox, setting: Setting) -> Launch {
    let queue = sandbox.queue();
    let queues = match setting.capacity {
        Some(capacity) => format!("{queue}={capacity}"),
        None => queue.to_owned(),
    };
    let launch = sandbox.notifier().env("QUEUES", queues);
    match setting.prefetch {
        Some(prefetch) => launch.env("PREFETCH_COUNT", prefetch.to_string()),
        None => launch,
    }
}

/// Launches the earlier binary with the same arguments and environment.
fn earlier(launch: &Launch) -> Process {
    let mut command = Command::new(env::var_os(EARLIER).expect("checked before"));
    command.args(launch.0.get_args()).env_clear();
    command.envs(launch.0.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Process::spawn(command)
}

fn bare_loop(sandbox: &Sandbox, channels: Channels, url: &str) -> Process {
    let executable = env::current_exe().expect("we run from a file");
    let mut command = Command::new(executable);
    command
        .args([bare_loop::COMMAND, &sandbox.servers.amqp_url, sandbox.queue(), url])
        .args([channels.count.to_string(), channels.prefetch.to_string()]);
    Process::spawn(command)
}
