//! The running source: a real folder, inotify, a thread.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    super::{Change, Manifests, SourceStatus, load, manifests::ManifestsError},
    NODE, names, service, write,
};

const PATIENCE: Duration = Duration::from_secs(5);

struct Running {
    source: Manifests,
    changes: Receiver<Vec<Change>>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let (sender, changes) = channel();
        let source = Manifests::start(dir, None, sender).unwrap();
        Self { source, changes }
    }

    /// Receives until these changes have come, and no others.
    fn expect(&self, wanted: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.changes.recv_timeout(left) {
                Ok(batch) => got.extend(names(&batch)),
                Err(error) => panic!("{error}: wanted {wanted:?}, got {got:?}"),
            }
        }
        assert_eq!(got, wanted);
    }

    fn expect_status(&self, what: &str, good: impl Fn(&SourceStatus) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !good(&self.source.health().get()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.source.health().get());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A folder with a node and Service `a`, watched and sent.
fn started() -> (TempDir, Running) {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "node.yaml", NODE);
    write(dir.path(), "a.yaml", &service("a", "10.96.0.1"));
    let running = Running::start(dir.path());
    running.expect(&["+ServiceNetwork", "+Node node-a", "+Service default/a", "Synced"]);
    (dir, running)
}

#[test]
fn what_is_written_is_sent_well_before_the_next_slow_look() {
    let (dir, running) = started();
    let start = Instant::now();
    write(dir.path(), "b.yaml", &service("b", "10.96.0.2"));
    running.expect(&["+Service default/b"]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    running.expect(&["-Service default/a"]);
}

#[test]
fn a_burst_is_one_batch() {
    let (dir, running) = started();
    for i in 0..20 {
        write(dir.path(), &format!("s{i:02}.yaml"), &service(&format!("s{i:02}"), "10.96.1.1"));
    }
    let batch = running.changes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(batch.len(), 20);
}

#[test]
fn a_burst_without_end_is_not_waited_for() {
    let (dir, running) = started();
    let start = Instant::now();
    let mut i = 0;
    while running.changes.try_recv().is_err() {
        i += 1;
        write(dir.path(), "b.yaml", &service("b", &format!("10.96.{}.{}", i / 250, i % 250 + 1)));
        std::thread::sleep(Duration::from_millis(5));
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn an_editor_that_renames_over_is_seen() {
    let (dir, running) = started();
    write(dir.path(), ".a.yaml.swp", &service("a", "10.96.0.9"));
    fs::rename(dir.path().join(".a.yaml.swp"), dir.path().join("a.yaml")).unwrap();
    running.expect(&["+Service default/a"]);
}

#[test]
fn a_config_map_that_swaps_its_link_is_seen() {
    let dir = TempDir::new().unwrap();
    let version = |name: &str, ip: &str| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        write(&folder, "node.yaml", NODE);
        write(&folder, "a.yaml", &service("a", ip));
        symlink(name, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version("..2026_01", "10.96.0.1");
    for file in ["node.yaml", "a.yaml"] {
        symlink(format!("..data/{file}"), dir.path().join(file)).unwrap();
    }
    let running = Running::start(dir.path());
    running.expect(&["+ServiceNetwork", "+Node node-a", "+Service default/a", "Synced"]);
    version("..2026_02", "10.96.0.2");
    fs::remove_dir_all(dir.path().join("..2026_01")).unwrap();
    running.expect(&["+Service default/a"]);
}

#[test]
fn a_folder_made_anew_is_watched_again() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    write(&dir, "node.yaml", NODE);
    write(&dir, "a.yaml", &service("a", "10.96.0.1"));
    let running = Running::start(&dir);
    running.expect(&["+ServiceNetwork", "+Node node-a", "+Service default/a", "Synced"]);

    // Moved away whole: what was sent stays, and the error is said.
    fs::rename(&dir, parent.path().join("elsewhere")).unwrap();
    running.expect_status("the folder is missing", |s| s.synced && s.errors.len() == 1);
    fs::rename(parent.path().join("elsewhere"), &dir).unwrap();
    running.expect_status("the folder is back", |s| s.errors.is_empty());
    write(&dir, "b.yaml", &service("b", "10.96.0.2"));
    running.expect(&["+Service default/b"]);

    // Deleted and made anew, maybe with the same inode number.
    for round in 0..3 {
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        write(&dir, "node.yaml", NODE);
        let name = format!("c{round}");
        write(&dir, "c.yaml", &service(&name, "10.96.0.3"));
        let wanted = format!("+Service default/{name}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let batch =
                running.changes.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap();
            if names(&batch).contains(&wanted) {
                break;
            }
        }
        running.expect_status("all is well again", |s| s.errors.is_empty());
        let start = Instant::now();
        write(&dir, "c.yaml", &service(&name, "10.96.0.4"));
        running.expect(&[&wanted]);
        assert!(start.elapsed() < Duration::from_secs(2), "watched again: {:?}", start.elapsed());
    }
}

#[test]
fn a_broken_file_is_in_the_status_until_it_is_mended() {
    let (dir, running) = started();
    running.expect_status("all is well", |s| s.synced && s.errors.is_empty());
    write(dir.path(), "a.yaml", "kind: [");
    running.expect_status("a.yaml is broken", |s| {
        s.synced && s.errors.iter().any(|e| e.to_string().contains("a.yaml:"))
    });
    write(dir.path(), "a.yaml", &service("a", "10.96.0.2"));
    running.expect(&["+Service default/a"]);
    running.expect_status("all is well again", |s| s.synced && s.errors.is_empty());
}

#[test]
fn dropping_the_source_ends_its_thread() {
    let (_dir, running) = started();
    let Running { source, changes } = running;
    drop(source);
    assert!(changes.recv().is_err(), "the sender is gone with the thread");
}

#[test]
fn a_missing_folder_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let (sender, _changes) = channel::<Vec<Change>>();
    let Err(error) = Manifests::start(&dir.path().join("nowhere"), None, sender) else { panic!() };
    assert!(matches!(error, ManifestsError::Folder { .. }));
    assert!(error.to_string().ends_with("nowhere: make it, or name another one"), "{error}");
}

#[test]
fn loading_once_gives_all_or_every_error() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "node.yaml", NODE);
    write(dir.path(), "a.yaml", &service("a", "10.96.0.1"));
    let changes = load(dir.path(), None).unwrap();
    assert_eq!(names(&changes), ["+ServiceNetwork", "+Node node-a", "+Service default/a", "Synced"]);

    write(dir.path(), "b.yaml", "kind: [");
    write(dir.path(), "c.yaml", "{apiVersion: v1, kind: Pod}");
    assert_eq!(load(dir.path(), None).unwrap_err().len(), 2);
    assert_eq!(load(&dir.path().join("nowhere"), None).unwrap_err().len(), 1);
}
