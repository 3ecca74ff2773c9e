//! The content of a manifests folder, and what changed in it since the last look.
//!
//! Owns the last good objects of every file and what was sent of them. Reads files; knows neither
//! inotify nor threads.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use fairlead_crds::NodeAgentConfig;

use super::{
    Change, FileError, ObjectId,
    parse::{self, Parsed},
};

/// A file written this shortly before it was read may be written again within one tick of the
/// file system's clock, with nothing to show for it but its content.
const RACY: Duration = Duration::from_secs(1);

/// What one look at the folder brought.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// What to send, in order.
    pub changes: Vec<Change>,
    /// What is wrong, all of it, whether new or not.
    pub errors: Vec<FileError>,
}

/// A folder and what is known of it.
pub(super) struct Folder {
    dir: PathBuf,
    node_name: Option<String>,
    files: BTreeMap<PathBuf, File>,
    /// The file that each object is taken from, while a second one may claim it too.
    holders: BTreeMap<ObjectId, PathBuf>,
    /// What the receiver knows.
    sent: BTreeMap<ObjectId, Change>,
    synced: bool,
    /// What was wrong at the last look, if there was one.
    errors: Option<Vec<FileError>>,
}

/// One file: `objects` is None until it was good once.
#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    content: Option<u64>,
    objects: Option<Vec<Parsed>>,
    errors: Vec<FileError>,
}

/// What tells an unchanged file without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Folder {
    pub fn new(dir: PathBuf, node_name: Option<String>) -> Self {
        Self {
            dir,
            node_name,
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            sent: BTreeMap::new(),
            synced: false,
            errors: None,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Looks at every file and says what changed. Without a folder nothing changes: a mount that
    /// is not there yet must not take all Services away.
    pub fn scan(&mut self) -> Scan {
        let paths = match list(&self.dir) {
            Ok(paths) => paths,
            Err(error) => {
                let message = format!("failed to read the manifests folder: {error}");
                return Scan { changes: Vec::new(), errors: vec![self.folder_error(message)] };
            }
        };
        let files_before = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        let mut touched = self.files.len() != files_before || self.errors.is_none();
        for path in paths {
            touched |= self.files.entry(path.clone()).or_default().refresh(&path);
        }
        if let (false, Some(errors)) = (touched, &self.errors) {
            return Scan { changes: Vec::new(), errors: errors.clone() };
        }

        let (wanted, errors) = self.merge();
        let mut changes = self.difference(&wanted);
        self.sent.retain(|id, _| wanted.contains_key(id) || id.gone().is_none());
        self.sent.extend(wanted);
        if !self.synced && errors.is_empty() {
            self.synced = true;
            changes.push(Change::Synced);
        }
        self.errors = Some(errors.clone());
        Scan { changes, errors }
    }

    /// One object an identity, out of all files, our own node and the configuration included.
    fn merge(&mut self) -> (BTreeMap<ObjectId, Change>, Vec<FileError>) {
        let mut errors: Vec<FileError> = self.files.values().flat_map(|file| file.errors.clone()).collect();
        let mut found: BTreeMap<&ObjectId, (&PathBuf, &Parsed)> = BTreeMap::new();
        for (path, file) in &self.files {
            for object in file.objects.iter().flatten() {
                match found.entry(&object.id) {
                    Entry::Vacant(entry) => {
                        entry.insert((path, object));
                    }
                    // Who has it keeps it, wherever the other one sorts.
                    Entry::Occupied(mut entry) if self.holders.get(&object.id) == Some(path) => {
                        let (other_path, other) = entry.insert((path, object));
                        errors.push(parse::duplicate(other_path, other, path, object.position));
                    }
                    Entry::Occupied(entry) => {
                        let (other_path, other) = entry.get();
                        errors.push(parse::duplicate(path, object, other_path, other.position));
                    }
                }
            }
        }
        let holders = found.iter().map(|(id, (path, _))| ((*id).clone(), (*path).clone())).collect();
        let mut wanted: BTreeMap<ObjectId, Change> =
            found.into_iter().map(|(id, (_, object))| (id.clone(), object.change.clone())).collect();
        self.holders = holders;

        // While a file was never good, it may hold what seems to be missing.
        let all_known = self.files.values().all(|file| file.objects.is_some());
        errors.extend(self.choose_node(&mut wanted, all_known));
        if all_known {
            wanted
                .entry(ObjectId::Config)
                .or_insert_with(|| Change::Config(NodeAgentConfig::default().into()));
        }
        (wanted, errors)
    }

    /// Leaves our own Node in `wanted` and takes the others out.
    fn choose_node(&self, wanted: &mut BTreeMap<ObjectId, Change>, all_known: bool) -> Option<FileError> {
        let names: Vec<String> = wanted
            .keys()
            .filter_map(|id| if let ObjectId::Node(name) = id { Some(name.to_string()) } else { None })
            .collect();
        let ours = match &self.node_name {
            Some(name) => names.iter().find(|n| *n == name),
            None if names.len() == 1 => names.first(),
            None => None,
        };
        wanted
            .retain(|id, _| !matches!(id, ObjectId::Node(name) if ours.is_none_or(|ours| **name != **ours)));
        if ours.is_some() {
            return None;
        }
        let message = match &self.node_name {
            None if names.len() > 1 => format!(
                "several Nodes ({}) and no name to choose by: say which one is this machine with --node-name",
                names.join(", ")
            ),
            _ if !all_known => return None,
            Some(name) if names.is_empty() => format!("no Node: add the Node {name} of this machine"),
            Some(name) => {
                format!("no Node {name}, only {}: add it, or correct --node-name", names.join(", "))
            }
            None => {
                "no Node: add the Node of this machine, with its addresses in status.addresses".to_owned()
            }
        };
        Some(self.folder_error(message))
    }

    /// From what was sent to what is wanted: what is gone first, to make room; then in the order
    /// in which one kind needs the other.
    fn difference(&self, wanted: &BTreeMap<ObjectId, Change>) -> Vec<Change> {
        let gone = self.sent.iter().filter_map(|(id, sent)| {
            let change = id.gone()?;
            (!wanted.contains_key(id) && change != *sent).then_some(change)
        });
        let changed = wanted.iter().filter_map(|(id, change)| match self.sent.get(id) {
            Some(sent) if sent == change => None,
            None if id.gone().as_ref() == Some(change) => None,
            _ => Some(change.clone()),
        });
        gone.chain(changed).collect()
    }

    fn folder_error(&self, message: String) -> FileError {
        FileError { file: self.dir.clone(), position: None, message }
    }
}

impl File {
    /// Reads and parses the file if it may have changed; the last good objects stay when it is
    /// broken now. True when its content or its errors are not what they were.
    fn refresh(&mut self, path: &Path) -> bool {
        self.try_refresh(path).unwrap_or_else(|error| {
            let message = format!("failed to read the file: {error}");
            let errors = vec![FileError { file: path.to_owned(), position: None, message }];
            let touched = self.errors != errors;
            *self = Self { objects: self.objects.take(), errors, ..Self::default() };
            touched
        })
    }

    fn try_refresh(&mut self, path: &Path) -> io::Result<bool> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            // Opening a pipe waits for its other end.
            return Err(io::Error::other("it is no regular file, remove it from the folder"));
        }
        let stamp = Stamp::of(&metadata);
        if self.stamp == Some(stamp) {
            return Ok(false);
        }
        let now = SystemTime::now();
        let bytes = fs::read(path)?;
        let settled = metadata.modified().is_ok_and(|m| now.duration_since(m).is_ok_and(|age| age > RACY));
        self.stamp = settled.then_some(stamp);

        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let content = hasher.finish();
        if self.content == Some(content) {
            return Ok(false);
        }
        self.content = Some(content);
        let parsed = match String::from_utf8(bytes) {
            Ok(text) => parse::parse(path, &text),
            Err(error) => Err(vec![FileError {
                file: path.to_owned(),
                position: None,
                message: format!("the file is not UTF-8 text: {error}"),
            }]),
        };
        match parsed {
            Ok(objects) => (self.objects, self.errors) = (Some(objects), Vec::new()),
            Err(errors) => self.errors = errors,
        }
        Ok(true)
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The manifests of a folder, by name. Hidden entries are left out, `..data` of a mounted
/// ConfigMap among them: its files appear beside it as links.
fn list(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest =
            path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
        if manifest && !hidden && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(paths)
}
