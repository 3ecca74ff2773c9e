//! Runs a program and passes on what it prints; while it prints nothing, says that it still works.

use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_e2e::process::{Reaped, die_with_parent};

/// The longest the demo says nothing.
const SILENCE: Duration = Duration::from_secs(7);

/// Runs `command` to its end. `doing` is what it is said to be doing when it is silent.
pub fn run(command: &mut Command, doing: &str) -> Result<ExitStatus> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let program = command.get_program().to_owned();
    let child = die_with_parent(command).spawn();
    let mut child = Reaped(child.with_context(|| format!("failed to start {}", program.display()))?);
    let (out, err) = (child.0.stdout.take(), child.0.stderr.take());
    let heard = Mutex::new(Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| pass_on(out, io::stdout(), &heard));
        scope.spawn(|| pass_on(err, io::stderr(), &heard));
        loop {
            if let Some(status) = child.0.try_wait()? {
                return Ok(status);
            }
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.elapsed() > SILENCE {
                *heard = Instant::now();
                println!("      ... still {doing}, {} s so far", start.elapsed().as_secs());
            }
            drop(heard);
            thread::sleep(Duration::from_millis(50));
        }
    })
}

fn pass_on(from: Option<impl Read>, mut to: impl Write, heard: &Mutex<Instant>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        // nobody may be reading any more; the program's end is waited for all the same
        let _ = to.write_all(buffer.get(..read).unwrap_or_default()).and_then(|()| to.flush());
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_the_program_is_passed_on() {
        let status = run(Command::new("sh").args(["-c", "exit 3"]), "testing").unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
