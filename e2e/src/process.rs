//! Child processes of the rig: they never outlive it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
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
    fn a_reaped_child_is_gone_after_its_scope() {
        let child = die_with_parent(Command::new("sleep").arg("60")).spawn().unwrap();
        let proc_entry = format!("/proc/{}", child.id());
        drop(Reaped(child));
        assert!(!std::path::Path::new(&proc_entry).exists());
    }
}
