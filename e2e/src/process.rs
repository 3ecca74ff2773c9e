//! Child processes of the rig: they never outlive it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the kernel kill the child when the thread that spawns it ends, so that not even a killed rig leaves
/// something running. Spawn from a thread that lives as long as the child shall.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    before_exec(command, || Ok(set_parent_process_death_signal(Some(Signal::KILL))?))
}

/// Runs `step` in the child between fork and exec. Only system calls belong there: no allocation, no lock.
pub(crate) fn before_exec(
    command: &mut Command,
    step: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> &mut Command {
    // SAFETY: every caller (this crate's few) passes a closure made of plain system calls, which is what
    // is allowed in the child of a process with several threads.
    unsafe { command.pre_exec(step) }
}

/// A child that is killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only when the child has already been reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that a thread of its own starts and reaps, so that it lives as long as this value and not as long as the
/// thread that made it ([`die_with_parent`]); killed when it goes out of scope.
#[derive(Debug)]
pub struct Kept {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<ExitStatus>>>,
    id: u32,
}

impl Kept {
    /// Starts `command`; returns its ends of the pipes that were asked for, too.
    pub fn spawn(mut command: Command) -> Result<(Self, Option<ChildStdin>, Option<ChildStdout>)> {
        let shown = shown(&command);
        die_with_parent(&mut command);
        let (stop, stopped) = mpsc::channel::<()>();
        let (sender, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return Err(io::ErrorKind::NotFound.into());
                }
            };
            let _ = sender.send(Ok((child.id(), child.stdin.take(), child.stdout.take())));
            // ends when the value does
            let _ = stopped.recv();
            // fails only when the child has already ended
            let _ = child.kill();
            child.wait()
        });
        let started = started.recv().context("the thread died")?;
        let (id, input, output) = started.with_context(|| format!("failed to start `{shown}`"))?;
        Ok((Self { stop: Some(stop), thread: Some(thread), id }, input, output))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Kills it, unless it has ended by itself, and tells how it ended.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.stop = None;
        let thread = self.thread.take().context("the child has been reaped")?;
        let status = thread.join().map_err(|_| anyhow!("the thread died"))?;
        status.context("failed to wait for the child")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // nobody is left to be told
            let _ = self.end();
        }
    }
}

/// Runs a command to its end and returns what it printed; its error output is the error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("failed to start `{shown}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed ({}): {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("failed to read what `{shown}` printed"))
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_brings_its_words_and_its_error_output() {
        let error = output_of(Command::new("sh").args(["-c", "echo no such table >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("no such table") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_kept_child_outlives_the_thread_that_made_it_and_not_its_value() {
        let spawn = || {
            let mut command = Command::new("sleep");
            command.arg("60");
            Kept::spawn(command).unwrap().0
        };
        let mut child = thread::spawn(spawn).join().unwrap();
        let proc_entry = format!("/proc/{}", child.id());
        thread::sleep(std::time::Duration::from_millis(100));
        assert!(std::path::Path::new(&proc_entry).exists());
        assert!(!child.end().unwrap().success());
        assert!(!std::path::Path::new(&proc_entry).exists());
    }

    #[test]
    fn a_program_that_is_not_there_is_no_child() {
        let error = Kept::spawn(Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
    }

    #[test]
    fn a_reaped_child_is_gone_after_its_scope() {
        let child = die_with_parent(Command::new("sleep").arg("60")).spawn().unwrap();
        let proc_entry = format!("/proc/{}", child.id());
        drop(Reaped(child));
        assert!(!std::path::Path::new(&proc_entry).exists());
    }
}
