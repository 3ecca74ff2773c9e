//! A cluster that outlives the command that brought it up: in a process of its own, found by its folder.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::node::{Kind, Stock};
use super::supervisor::Supervisor;
use super::wire::DESCRIPTION;
use super::{Cluster, claim, leftovers, programs};
use crate::machine::cache;
use crate::{packages, say};

const LOG: &str = "supervisor.log";

/// How long a supervisor may take to end; nodes are asked to end by themselves first.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Where a cluster is kept unless told otherwise.
pub fn default_folder() -> Result<PathBuf> {
    Ok(cache::folder()?.join("run/cluster"))
}

/// Makes ready what a cluster with nodes of these kinds is made of: here, where it can be seen and interrupted, and
/// not in the supervisor.
pub fn prepare(kinds: &[Kind], rig: &Path) -> Result<()> {
    packages::ensure(&[packages::TOOLS])?;
    if kinds.is_empty() {
        return programs::control_plane().map(drop);
    }
    let stock = Stock::ensure(&programs::ensure()?, rig)?;
    if kinds.contains(&Kind::Machine) { stock.ensure_machines() } else { Ok(()) }
}

/// Brings a cluster up in `folder` that runs until it is taken down. `rig` is the rig's program.
pub fn up(folder: &Path, rig: &Path) -> Result<Cluster> {
    if rustix::process::geteuid().as_raw() != 0 {
        bail!("a cluster needs root, for its namespaces: call the rig with sudo");
    }
    if let Some((owner, lives)) = claim::owner(folder)? {
        if lives {
            bail!("a cluster is up in {} already: `rig cluster down` takes it down", folder.display());
        }
        say(format_args!("removing what is left of an earlier cluster ({})", owner.id));
        down(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    if fs::read_dir(folder)?.next().is_some() {
        bail!(
            "{} is not empty: a cluster wants a folder of its own, and removes it in the end",
            folder.display()
        );
    }
    let log = folder.join(LOG);
    let output = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    let mut command = Command::new(rig);
    command.args(["cluster", "serve", "--state"]).arg(folder);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // a session of its own: neither the terminal's end nor its Ctrl-C is the cluster's
    let mut supervisor =
        crate::process::before_exec(&mut command, || Ok(rustix::process::setsid().map(drop)?))
            .spawn()
            .with_context(|| format!("failed to start {}", rig.display()))?;
    follow(&mut supervisor, folder, &log)?;
    Cluster::attach(folder)
}

/// Shows what the supervisor says until the cluster is up, or it ends.
fn follow(supervisor: &mut Child, folder: &Path, log: &Path) -> Result<()> {
    let mut log = File::open(log)?;
    loop {
        let up = folder.join(DESCRIPTION).exists();
        let ended = supervisor.try_wait()?;
        let mut said = Vec::new();
        log.read_to_end(&mut said)?;
        std::io::stderr().write_all(&said)?;
        if let Some(status) = ended {
            down(folder)?;
            bail!("the cluster did not come up ({status})");
        }
        if up {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Owns a cluster in `folder` until SIGTERM or SIGINT.
pub fn serve(folder: &Path) -> Result<()> {
    enum Event {
        Signal,
        Started(Result<Supervisor>),
    }
    let (sender, events) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("failed to listen for signals")?;
    let on_signal = sender.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = on_signal.send(Event::Signal);
        }
    });
    let place = folder.to_owned();
    thread::spawn(move || {
        sender.send(Event::Started(Supervisor::start(&place, Some(Path::new("/proc/self/exe")))))
    });
    let mut up = None;
    for event in events {
        match event {
            // a signal while it comes up: this process ends, and what was started dies with it
            Event::Signal => return up.map_or(Ok(()), Supervisor::stop),
            Event::Started(supervisor) => up = Some(supervisor?),
        }
    }
    Ok(())
}

/// Takes the cluster in `folder` down, also one whose supervisor was killed, and removes the folder. Says whether
/// there was any.
pub fn down(folder: &Path) -> Result<bool> {
    let Some((owner, mut lives)) = claim::owner(folder)? else { return Ok(false) };
    let start = Instant::now();
    let pid = i32::try_from(owner.pid).ok().and_then(Pid::from_raw).context("no process has such an id")?;
    let mut signal = Signal::TERM;
    while lives {
        // the lock says that it lives; it may end at any moment all the same
        let _ = kill_process(pid, signal);
        while lives && start.elapsed() < END_LIMIT {
            thread::sleep(Duration::from_millis(20));
            lives = claim::owner(folder)?.is_some_and(|(_, lives)| lives);
        }
        if lives {
            say(format_args!("the supervisor still runs after {} s: killing it", END_LIMIT.as_secs()));
            signal = Signal::KILL;
            thread::sleep(Duration::from_secs(1));
            lives = claim::owner(folder)?.is_some_and(|(_, lives)| lives);
        }
    }
    let whole = fs::canonicalize(folder)?;
    leftovers::sweep(&owner.id, &whole)?;
    fs::remove_dir_all(&whole).with_context(|| format!("failed to remove {}", whole.display()))?;
    Ok(true)
}
