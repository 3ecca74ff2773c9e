//! The manifests folder as a source of objects.
//!
//! Owns one thread, which waits for inotify, lets a burst of events come to rest, looks at the
//! folder and sends what changed. inotify only says when to look; what changed is decided by
//! looking, so a lost event costs time and nothing else.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tracing::{error, info, warn};

use super::{
    Change, FileError, SourceError, SourceHealth, SourceStatus,
    folder::{Folder, Scan},
};

/// A burst is over when nothing happened for this long ...
const QUIET: Duration = Duration::from_millis(20);
/// ... and is not waited for longer than this.
const PATIENCE: Duration = Duration::from_millis(200);
/// inotify does not see what happens behind a link, nor what another host does on a shared file
/// system, so the folder is looked at now and then all the same.
const LOOK: Duration = Duration::from_secs(10);
/// The same while there is no folder to watch.
const LOOK_UNWATCHED: Duration = Duration::from_millis(250);

/// Why the folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// The folder cannot be read.
    #[error("failed to read the manifests folder {}: {hint}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What to do.
        hint: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread.
    #[error("failed to start the thread that watches the manifests folder")]
    Thread(#[source] io::Error),
}

/// A running source. Dropping it ends its thread.
pub struct Manifests {
    health: SourceHealth,
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    Event,
    FolderGone,
    Stop,
}

impl Manifests {
    /// Starts to watch `dir` and sends what is in it, in batches. `node_name` says which Node is
    /// this machine; without it there may be one Node only.
    ///
    /// The source ends when it is dropped or when nobody receives any more. The channel may be one
    /// that carries other things as well.
    pub fn start<T: From<Vec<Change>> + Send + 'static>(
        dir: &Path,
        node_name: Option<String>,
        changes: Sender<T>,
    ) -> Result<Self, ManifestsError> {
        check(dir)?;
        let health = SourceHealth::default();
        let (wake, events) = channel();
        let watch = Watch::new(dir, wake.clone());
        let worker = Worker {
            folder: Folder::new(dir.to_owned(), node_name),
            watch,
            events,
            changes,
            health: health.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || worker.run())
            .map_err(ManifestsError::Thread)?;
        Ok(Self { health, wake, thread: Some(thread) })
    }

    /// The status of the source, which outlives it.
    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        // A thread that has ended already does not hear it.
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!(bug = true, "the manifests thread panicked");
        }
    }
}

/// Reads the folder once: everything in it, ending with `Synced`, or everything that is wrong.
pub fn load(dir: &Path, node_name: Option<String>) -> Result<Vec<Change>, Vec<FileError>> {
    let Scan { changes, errors } = Folder::new(dir.to_owned(), node_name).scan();
    if errors.is_empty() { Ok(changes) } else { Err(errors) }
}

fn check(dir: &Path) -> Result<(), ManifestsError> {
    fs::read_dir(dir).map(drop).map_err(|source| ManifestsError::Folder {
        dir: dir.to_owned(),
        hint: match source.kind() {
            io::ErrorKind::NotFound => "make it, or name another one",
            io::ErrorKind::NotADirectory => "name the folder, not a file in it",
            _ => "see that it can be listed",
        },
        source,
    })
}

struct Worker<T> {
    folder: Folder,
    watch: Watch,
    events: Receiver<Wake>,
    changes: Sender<T>,
    health: SourceHealth,
}

impl<T: From<Vec<Change>>> Worker<T> {
    fn run(mut self) {
        loop {
            // Watch before looking, so that nothing falls between the two.
            let watched = self.watch.ensure();
            let scan = self.folder.scan();
            if !scan.changes.is_empty() && self.changes.send(scan.changes.into()).is_err() {
                return;
            }
            self.report(scan.errors);
            if !self.wait(if watched { LOOK } else { LOOK_UNWATCHED }) {
                return;
            }
        }
    }

    /// Waits until the next look is due. False when there is to be none.
    fn wait(&mut self, longest: Duration) -> bool {
        let mut until = longest;
        let mut deadline = None;
        loop {
            match self.events.recv_timeout(until) {
                Ok(Wake::Event) => {}
                Ok(Wake::FolderGone) => self.watch.forget(),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
            let left = deadline
                .get_or_insert_with(|| Instant::now() + PATIENCE)
                .saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            until = QUIET.min(left);
        }
    }

    /// Publishes the status and logs what is new in it.
    fn report(&self, errors: Vec<FileError>) {
        let before = self.health.get().errors;
        let errors: Vec<_> = errors.into_iter().map(SourceError::File).collect();
        for error in errors.iter().filter(|error| !before.contains(error)) {
            let SourceError::File(FileError { file, position, message }) = error else { continue };
            let (line, column) = position.map(|p| (p.line, p.column)).unzip();
            error!(file = %file.display(), line, column, "manifest is not usable, its last good state stays: {message}");
        }
        if errors.is_empty() && !before.is_empty() {
            info!(dir = %self.folder.dir().display(), "all manifests are usable again");
        }
        self.health.set(SourceStatus { synced: self.folder.synced(), errors, ..SourceStatus::default() });
    }
}

/// The inotify watch on the folder, which follows the folder when it is made anew.
struct Watch {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode that are watched.
    watched: Option<(u64, u64)>,
}

impl Watch {
    fn new(dir: &Path, wake: Sender<Wake>) -> Self {
        let folder = dir.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reason = match event {
                Ok(event) if is_reading(event.kind) => return,
                Ok(event) if event.kind.is_remove() && event.paths.contains(&folder) => Wake::FolderGone,
                // An error, or an overflow of the queue, is a reason to look as well.
                _ => Wake::Event,
            };
            // Nobody listens any more: the source is ending.
            let _ = wake.send(reason);
        })
        .inspect_err(|error| {
            warn!(%error, "no inotify (see fs.inotify.max_user_instances): looking at the manifests folder again and again");
        })
        .ok();
        Self { dir: dir.to_owned(), watcher, watched: None }
    }

    /// Watches what the path leads to now. False while that cannot be done.
    fn ensure(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let now = fs::metadata(&self.dir).ok().map(|m| (m.dev(), m.ino()));
        if now.is_some() && now == self.watched {
            return true;
        }
        // Fails when the kernel has dropped the watch with the folder.
        let _ = watcher.unwatch(&self.dir);
        self.watched = None;
        if now.is_some() && watcher.watch(&self.dir, RecursiveMode::NonRecursive).is_ok() {
            self.watched = now;
        }
        self.watched.is_some()
    }

    /// The folder was deleted, and the kernel's watch with it. One made anew may well have the
    /// same inode number.
    fn forget(&mut self) {
        self.watched = None;
    }
}

/// True for events that our own reading causes.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
