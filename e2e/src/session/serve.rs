//! The inside: process 1 of a place, and the process beside it that runs what the rig asks for.
//!
//! Process 1 does nothing but reap: whatever ends there may be any process's child, and waiting for any child and for
//! one's own do not go together in one process.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};

use super::wire::{Command, Event, Frame, MAX_PAYLOAD, PLACE, Request};

/// The PATH of everything that runs in a place.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long output may still come from children that outlive their command.
const LINGER: Duration = Duration::from_secs(2);

/// What a place is told of itself before it runs anything.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// Its name as a host.
    pub hostname: String,
    /// The folder of its kernel's modules.
    pub modules: Option<PathBuf>,
}

/// As process 1: reaps whatever ends until the server does, and returns its status. `server` has just been started.
pub fn reap_until_end(server: &Child) -> Result<std::process::ExitStatus> {
    let server = Pid::from_child(server);
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("failed to wait for any process")?
        else {
            continue;
        };
        if pid == server {
            return Ok(std::process::ExitStatus::from_raw(status.as_raw()));
        }
    }
}

/// Makes the place ready with `prepare`, then runs what is asked for on `requests` until that ends.
pub fn serve(
    requests: impl BufRead,
    frames: impl Write + Send + 'static,
    prepare: impl FnOnce(Preparation) -> Result<()>,
) -> Result<()> {
    let out = Out(Arc::new(Mutex::new(Box::new(frames))));
    let running: Running = Arc::default();
    let mut prepare = Some(prepare);
    for line in requests.lines() {
        let request = line.context("failed to read a request").and_then(|line| {
            serde_json::from_str(&line).with_context(|| format!("failed to understand the request {line}"))
        })?;
        match request {
            Request::Prepare { hostname, modules } => {
                let prepare = prepare.take().context("asked to prepare twice")?;
                let event = match prepare(Preparation { hostname, modules }) {
                    Ok(()) => Event::Ready,
                    Err(error) => Event::Failed(format!("{error:#}")),
                };
                out.send(PLACE, event)?;
            }
            Request::Run { id, command } => {
                let (out, running) = (out.clone(), Arc::clone(&running));
                thread::spawn(move || run(id, &command, &out, &running));
            }
            Request::Kill { id } => {
                for (_, group) in lock(&running).iter().filter(|(running, _)| *running == id) {
                    // it may have ended by itself
                    let _ = kill_process_group(*group, Signal::KILL);
                }
            }
        }
    }
    Ok(())
}

/// The commands that run, each with its process group.
type Running = Arc<Mutex<Vec<(u32, Pid)>>>;

#[derive(Clone)]
struct Out(Arc<Mutex<Box<dyn Write + Send>>>);

impl Out {
    fn send(&self, id: u32, event: Event) -> io::Result<()> {
        let mut out = lock(&self.0);
        Frame { id, event }.write(&mut *out)?;
        out.flush()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(id: u32, command: &Command, out: &Out, running: &Running) {
    let event = match run_to_end(id, command, out, running) {
        Ok(code) => Event::Exit(code),
        Err(error) => Event::Failed(format!("{error:#}")),
    };
    if let Err(error) = out.send(id, event) {
        eprintln!("rig: failed to say how {:?} ended: {error}", command.argv);
    }
}

fn run_to_end(id: u32, command: &Command, out: &Out, running: &Running) -> Result<i32> {
    let [program, args @ ..] = command.argv.as_slice() else { bail!("an empty command") };
    let mut process = std::process::Command::new(program);
    process.args(args).env_clear().env("PATH", PATH).env("HOME", "/root").envs(&command.env);
    process.current_dir(&command.cwd).process_group(0);
    let input = if command.input.is_empty() { Stdio::null() } else { Stdio::piped() };
    process.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = process.spawn();
    let mut child =
        spawned.with_context(|| format!("failed to start {program} in {}", command.cwd.display()))?;
    lock(running).push((id, Pid::from_child(&child)));
    let relays = [
        child.stdout.take().map(|from| relay(id, from, out, Event::Stdout)),
        child.stderr.take().map(|from| relay(id, from, out, Event::Stderr)),
    ];
    if let Some(mut stdin) = child.stdin.take() {
        // a command that does not want all of its input is no failure
        let _ = stdin.write_all(command.input.as_bytes());
    }
    let status = child.wait().context("failed to wait for the command");
    lock(running).retain(|(running, _)| *running != id);
    let status = status?;
    let deadline = Instant::now() + LINGER;
    while relays.iter().flatten().any(|relay| !relay.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

fn relay(
    id: u32,
    mut from: impl Read + Send + 'static,
    out: &Out,
    event: fn(Vec<u8>) -> Event,
) -> JoinHandle<()> {
    let out = out.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            if out.send(id, event(bytes)).is_err() {
                break;
            }
        }
    })
}
