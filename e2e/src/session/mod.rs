//! Commands in a place that the rig has made: a machine, or the namespaces of a node. Several run at once.
//!
//! ```text
//!   rig: Session  ── requests (prepare, run, kill) ──>  process 1 of the place: reaps
//!                 <─ frames (output, how it ended) ──   └─ the server: runs commands
//! ```
//!
//! A place that ends, ends its session: every command that waits then fails, with what the place's maker knows of it.

pub mod serve;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

pub use wire::{Command, Event};
use wire::{Frame, PLACE, Request};

/// How a command ended: its exit code, or 128 + n for signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus(pub i32);

impl ExitStatus {
    /// Whether the command ended with 0.
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            code @ 129.. => write!(f, "signal {}", code - 128),
            code => write!(f, "exit code {code}"),
        }
    }
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// The rig's end. Clones are the same one.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    input: Mutex<Box<dyn Write + Send>>,
    commands: Mutex<Commands>,
}

#[derive(Default)]
struct Commands {
    last: u32,
    /// Who waits for what; none once the place has ended.
    waiting: Option<BTreeMap<u32, Sender<Event>>>,
    /// Why it ended, if it did not just end.
    why: Option<String>,
}

impl Commands {
    fn ended(&self) -> anyhow::Error {
        match &self.why {
            Some(why) => anyhow!("what the place says cannot be read: {why}"),
            None => anyhow!("the place has ended"),
        }
    }
}

impl Session {
    /// Opens a session over the place's ends.
    pub fn open(input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Self {
        let commands = Commands { waiting: Some(BTreeMap::new()), ..Commands::default() };
        let shared = Arc::new(Shared { input: Mutex::new(Box::new(input)), commands: Mutex::new(commands) });
        let reader = Arc::clone(&shared);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let why = loop {
                match Frame::read(&mut output) {
                    Ok(Some(frame)) => reader.pass_on(frame),
                    Ok(None) => break None,
                    Err(error) => break Some(error.to_string()),
                }
            };
            let mut commands = lock(&reader.commands);
            commands.why = why;
            commands.waiting = None;
        });
        Self { shared }
    }

    /// Makes the place fit for commands; what [`Running::until_ready`] waits for.
    pub fn prepare(&self, preparation: serve::Preparation) -> Result<Running> {
        let serve::Preparation { hostname, modules } = preparation;
        self.ask(|_| PLACE, |_| Request::Prepare { hostname, modules })
    }

    /// Starts a command.
    pub fn start(&self, command: &Command) -> Result<Running> {
        let number = |commands: &mut Commands| {
            commands.last += 1;
            commands.last
        };
        self.ask(number, |id| Request::Run { id, command: command.clone() })
    }

    /// Runs a command to its end, and kills it when it takes longer than `limit`.
    pub fn run(&self, command: &Command, limit: Duration) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let running = self.start(command)?;
        let status = running.until_exit(limit, |event| match event {
            Event::Stdout(bytes) => stdout.extend(bytes),
            Event::Stderr(bytes) => stderr.extend(bytes),
            _ => {}
        });
        let status = status.with_context(|| format!("failed to run `{}`", command.argv.join(" ")))?;
        let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Output { status, stdout, stderr })
    }

    fn ask(
        &self,
        number: impl FnOnce(&mut Commands) -> u32,
        request: impl FnOnce(u32) -> Request,
    ) -> Result<Running> {
        let (sender, events) = mpsc::channel();
        let id = {
            let mut commands = lock(&self.shared.commands);
            let id = number(&mut commands);
            let Some(waiting) = commands.waiting.as_mut() else { return Err(commands.ended()) };
            waiting.insert(id, sender);
            id
        };
        self.shared.send(&request(id))?;
        Ok(Running { id, events, shared: Arc::clone(&self.shared) })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl Shared {
    fn send(&self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut input = lock(&self.input);
        input.write_all(&line).and_then(|()| input.flush()).context("failed to reach the place")
    }

    fn pass_on(&self, Frame { id, event }: Frame) {
        let mut commands = lock(&self.commands);
        let Some(waiting) = commands.waiting.as_mut() else { return };
        let last = matches!(event, Event::Exit(_) | Event::Failed(_));
        if let Some(sender) = waiting.get(&id) {
            // nobody waits any more: the command was left to itself
            let _ = sender.send(event);
        }
        if last {
            waiting.remove(&id);
        }
    }
}

/// A command that was started.
pub struct Running {
    id: u32,
    events: Receiver<Event>,
    shared: Arc<Shared>,
}

impl Running {
    /// The next event; none when `deadline` passes first, an error when the place ends.
    pub fn next(&self, deadline: Instant) -> Result<Option<Event>> {
        match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(lock(&self.shared.commands).ended()),
        }
    }

    /// Waits until the place can run commands.
    pub fn until_ready(&self, limit: Duration) -> Result<()> {
        match self.next(Instant::now() + limit)? {
            Some(Event::Ready) => Ok(()),
            Some(Event::Failed(why)) => bail!(why),
            Some(other) => bail!("the place began with {other:?}"),
            None => bail!("not up after {} s", limit.as_secs()),
        }
    }

    /// Waits for the command's end, with its output to `sink` as it comes; kills it at its time limit.
    pub fn until_exit(&self, limit: Duration, mut sink: impl FnMut(Event)) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(deadline)? {
                Some(Event::Exit(code)) => return Ok(ExitStatus(code)),
                Some(Event::Failed(why)) => bail!(why),
                Some(event) => sink(event),
                None => {
                    self.kill()?;
                    bail!("the command still ran after {} s", limit.as_secs())
                }
            }
        }
    }

    /// Kills the command and what it has started.
    pub fn kill(&self) -> Result<()> {
        self.shared.send(&Request::Kill { id: self.id })
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A place within this process.
    fn place() -> Session {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let requests = BufReader::new(theirs.try_clone().unwrap());
        thread::spawn(move || serve::serve(requests, theirs, |_| Ok(())));
        Session::open(ours.try_clone().unwrap(), ours)
    }

    fn sh(script: &str) -> Command {
        Command::new(["sh", "-c", script])
    }

    #[test]
    fn a_command_brings_its_output_apart_and_its_status() {
        let output = place().run(&sh("echo out; echo err >&2; exit 3"), LIMIT).unwrap();
        let expected =
            Output { status: ExitStatus(3), stdout: "out\n".to_owned(), stderr: "err\n".to_owned() };
        assert_eq!(output, expected);
    }

    #[test]
    fn a_command_reads_its_input() {
        let command = Command { input: "a line\n".into(), ..Command::new(["cat"]) };
        assert_eq!(place().run(&command, LIMIT).unwrap().stdout, "a line\n");
    }

    #[test]
    fn short_commands_pass_beside_a_long_stream() {
        let session = place();
        let stream = session.start(&sh("while :; do echo tick; sleep 0.01; done")).unwrap();
        for _ in 0..3 {
            assert_eq!(session.run(&sh("echo short"), LIMIT).unwrap().stdout, "short\n");
        }
        assert!(matches!(stream.next(Instant::now() + LIMIT).unwrap(), Some(Event::Stdout(_))));
        stream.kill().unwrap();
        assert_eq!(stream.until_exit(LIMIT, |_| ()).unwrap(), ExitStatus(128 + 9));
    }

    #[test]
    fn a_command_over_its_time_is_killed_with_what_it_started() {
        let session = place();
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid.display());
        let error = session.run(&sh(&script), Duration::from_millis(300)).unwrap_err();
        assert!(format!("{error:#}").contains("still ran"), "{error:#}");
        let process = format!("/proc/{}/stat", std::fs::read_to_string(pid).unwrap().trim());
        // a zombie is as good as gone: this process is not the one that reaps it
        let gone = || std::fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
        crate::eventually("the child is gone", LIMIT, gone).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = place().run(&Command::new(["no-such-program"]), LIMIT).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program"), "{error:#}");
    }

    #[test]
    fn commands_fail_when_their_place_ends() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = Session::open(std::io::sink(), ours);
        let running = session.start(&sh("true")).unwrap();
        drop(theirs);
        let error = running.until_exit(LIMIT, |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the place has ended");
        assert!(session.start(&sh("true")).is_err());
    }

    #[test]
    fn an_exit_status_tells_a_signal_from_a_code() {
        assert_eq!(ExitStatus(3).to_string(), "exit code 3");
        assert_eq!(ExitStatus(128 + 9).to_string(), "signal 9");
        assert!(ExitStatus(0).success());
    }
}
