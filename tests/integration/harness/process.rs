//! A child process whose output is kept line by line, and which never outlives its test.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{SOON, wait_for, wait_until};

pub(crate) struct Process {
    child: Child,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    /// The time since the wait began.
    pub(crate) took: Duration,
}

/// The whole output of a process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be started");
        let mut readers = Vec::new();
        let stdout = collect_lines(child.stdout.take().expect("piped"), &mut readers);
        let stderr = collect_lines(child.stderr.take().expect("piped"), &mut readers);
        Self { child, stdout, stderr, readers }
    }

    pub(crate) fn stdout(&self) -> Vec<String> {
        self.stdout.lock().expect("no reader panics").clone()
    }

    pub(crate) fn stderr(&self) -> Vec<String> {
        self.stderr.lock().expect("no reader panics").clone()
    }

    /// Waits for the first line on stderr that contains the text.
    #[track_caller]
    pub(crate) fn wait_stderr(&mut self, limit: Duration, text: &str) -> String {
        wait_for(limit, &format!("a line with {text:?} on stderr"), || {
            let is_running = self.is_running();
            if !is_running {
                self.join_readers();
            }
            let found = self.stderr().into_iter().find(|line| line.contains(text));
            assert!(
                found.is_some() || is_running,
                "it ended without a line with {text:?}: {:#?}",
                self.stderr()
            );
            found
        })
    }

    /// How many lines on stderr contain all of these.
    pub(crate) fn count_stderr(&self, parts: &[&str]) -> usize {
        let has_all = |line: &&String| parts.iter().all(|part| line.contains(part));
        self.stderr().iter().filter(has_all).count()
    }

    /// Waits for the first line on stdout that contains the text.
    #[track_caller]
    pub(crate) fn wait_stdout(&self, limit: Duration, text: &str) -> String {
        wait_for(limit, &format!("a line with {text:?} on stdout"), || {
            self.stdout().into_iter().find(|line| line.contains(text))
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB, threads, open files.
    pub(crate) fn resources(&self) -> [usize; 3] {
        let process = format!("/proc/{}", self.id());
        let status = fs::read_to_string(format!("{process}/status")).expect("it runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("{name} in {status}"))
        };
        let files = fs::read_dir(format!("{process}/fd")).expect("it runs").count();
        [value("VmRSS:"), value("Threads:"), files]
    }

    /// The names of its threads; the kernel cuts each after 15 bytes.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).expect("it runs");
        // A thread may end in between.
        let names = threads.filter_map(|thread| {
            fs::read_to_string(thread.expect("it runs").path().join("comm")).ok()
        });
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        let status = self.child.try_wait().expect("it is our child");
        status.is_none()
    }

    /// Sends a signal by a system call: on a busy machine, starting `kill` takes a while.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
    }

    /// SIGKILL, as after a crash or by the kernel's out-of-memory killer.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.wait_exit(SOON);
    }

    /// Waits until the process and its output have ended.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> Exit {
        let began = Instant::now();
        wait_until(limit, "the process has ended", || !self.is_running());
        let took = began.elapsed();
        let code = self.child.wait().expect("it is our child").code();
        self.join_readers();
        Exit { code, took }
    }

    /// Waits until all output of an ended process has been read.
    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("no reader panics");
        }
    }

    /// Waits for a command that ends by itself.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> Finished {
        let exit = self.wait_exit(limit);
        Finished {
            code: exit.code,
            stdout: self.stdout().join("\n"),
            stderr: self.stderr().join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- stderr of process {}:", self.child.id());
            eprintln!("{}\n---", self.stderr().join("\n"));
        }
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect_lines(
    stream: impl Read + Send + 'static,
    readers: &mut Vec<JoinHandle<()>>,
) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    readers.push(thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            sink.lock().expect("no reader panics").push(line);
        }
    }));
    lines
}
