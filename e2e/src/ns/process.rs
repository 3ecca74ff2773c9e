//! A program under test, running in a namespace, with its output in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Reaped, die_with_parent, shown};

/// A program running in a namespace; killed when it goes out of scope.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Reaped,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, appending what it prints to `<name>.log` in `logs`: a restarted program goes on in its log.
    pub(crate) fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = die_with_parent(command).spawn();
        let child = child.with_context(|| format!("failed to start {name} (`{}`)", shown(command)))?;
        Ok(Self { name: name.to_owned(), child: Reaped(child), log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child.0), signal)
            .with_context(|| format!("failed to signal {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.0.try_wait()?.is_none())
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.0.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} still ran after {:.1} s", self.name, limit.as_secs_f32());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it without warning (SIGKILL) and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// Asks it to end (SIGTERM) and waits until it does.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }
}
