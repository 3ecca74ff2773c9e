//! Container images as OCI archives (image-spec v1.1: `image-layout.md`, `manifest.md`, `config.md`), without Docker.
//!
//! The same files make the same bytes: entries are sorted, nothing carries a time. So an image's digest is known as
//! soon as its files are, and a pod can name the image by digest before any node has it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::machine::cache;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What an image is made of: one layer of programs and links, and what is run of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The name without tag or digest, with its domain: `fairlead.dev/rig/pause`.
    pub name: String,
    /// The content, by path without a leading slash. Folders that lead to an entry are made.
    pub files: BTreeMap<PathBuf, Content>,
    /// The program that is run, with its first arguments.
    pub entrypoint: Vec<String>,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An executable file with the content of this one.
    Program(PathBuf),
    /// A file.
    Text(String),
    /// A symbolic link.
    Link(PathBuf),
    /// A folder.
    Folder,
}

/// An image in an archive of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `name:dev`, for people.
    pub tag: String,
    /// `name@sha256:...`, for pods.
    pub reference: String,
    /// The OCI archive that holds it, under both names.
    pub archive: PathBuf,
}

impl Recipe {
    /// Writes the archive into `folder`, unless one of the same content is there.
    pub fn make(&self, folder: &Path) -> Result<Image> {
        let failed = || format!("failed to make the image {}", self.name);
        let built = Built::new(self).with_context(failed)?;
        let digest = built.manifest.digest();
        let short = digest.get(..12).unwrap_or(&digest);
        let base = self.name.rsplit('/').next().unwrap_or(&self.name);
        let place = cache::entry(folder, &format!("{base}-{short}"), |entry| {
            let file = fs::File::create(entry.join("image.tar"))?;
            Ok(built.write(self, &mut io::BufWriter::new(file))?)
        });
        Ok(Image {
            tag: self.tag(),
            reference: self.reference(&digest),
            archive: place.with_context(failed)?.join("image.tar"),
        })
    }

    fn tag(&self) -> String {
        format!("{}:dev", self.name)
    }

    fn reference(&self, digest: &str) -> String {
        format!("{}@sha256:{digest}", self.name)
    }

    /// The layer, as a tar stream.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut folders = BTreeMap::new();
        for path in self.files.keys() {
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                folders.insert(parent.to_owned(), Content::Folder);
            }
        }
        folders.extend(self.files.clone());
        let mut layer = tar::Builder::new(Vec::new());
        for (path, content) in &folders {
            match content {
                Content::Program(from) => {
                    let bytes =
                        fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
                    append(&mut layer, path, EntryType::Regular, 0o755, &bytes)?;
                }
                Content::Text(text) => {
                    append(&mut layer, path, EntryType::Regular, 0o644, text.as_bytes())?;
                }
                Content::Folder => append(&mut layer, path, EntryType::Directory, 0o755, &[])?,
                Content::Link(to) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    layer.append_link(&mut header, path, to)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

/// The parts of an image, each named by its digest.
struct Built {
    layer: Blob,
    config: Blob,
    manifest: Blob,
}

impl Built {
    fn new(recipe: &Recipe) -> Result<Self> {
        let layer = Blob(recipe.layer()?);
        let config = Blob::json(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": recipe.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            // the digest of the unpacked layer: ours is not compressed
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest())] },
        }))?;
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }))?;
        Ok(Self { layer, config, manifest })
    }

    /// The archive names the image twice: containerd knows an image by its names only, and finds none by a digest that
    /// is not part of one.
    fn write(&self, recipe: &Recipe, out: &mut impl Write) -> io::Result<()> {
        let named = |name: String| {
            let mut descriptor = self.manifest.descriptor(MANIFEST);
            if let Some(fields) = descriptor.as_object_mut() {
                fields.insert("platform".into(), json!({ "architecture": "amd64", "os": "linux" }));
                fields.insert("annotations".into(), json!({ "io.containerd.image.name": name }));
            }
            descriptor
        };
        let index = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [named(recipe.tag()), named(recipe.reference(&self.manifest.digest()))],
        }))?;
        let mut archive = tar::Builder::new(out);
        let mut file = |path: &str, bytes: &[u8]| {
            append(&mut archive, Path::new(path), EntryType::Regular, 0o644, bytes)
        };
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file("index.json", &index.0)?;
        for blob in [&self.config, &self.manifest, &self.layer] {
            file(&format!("blobs/sha256/{}", blob.digest()), &blob.0)?;
        }
        archive.into_inner()?.flush()
    }
}

struct Blob(Vec<u8>);

impl Blob {
    fn json(value: &serde_json::Value) -> io::Result<Self> {
        Ok(Self(serde_json::to_vec(value)?))
    }

    fn digest(&self) -> String {
        format!("{:x}", Sha256::digest(&self.0))
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest()), "size": self.0.len() })
    }
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    archive.append_data(&mut header(kind, mode, size), path, bytes)
}

/// A header that says nothing of who made it and when.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn recipe(program: &Path) -> Recipe {
        Recipe {
            name: "fairlead.dev/rig/traffic".into(),
            files: BTreeMap::from([
                ("bin/sh".into(), Content::Link("busybox".into())),
                ("bin/busybox".into(), Content::Program(program.to_owned())),
                ("etc/passwd".into(), Content::Text("root:x:0:0::/:/bin/sh\n".into())),
                ("tmp".into(), Content::Folder),
            ]),
            entrypoint: vec!["/bin/sh".into()],
        }
    }

    fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    fn read(image: &Image) -> BTreeMap<String, Vec<u8>> {
        entries(&fs::read(&image.archive).unwrap())
    }

    #[test]
    fn every_blob_is_named_by_what_it_holds_and_the_index_leads_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "ELF").unwrap();
        let image = recipe(&program).make(folder.path()).unwrap();
        let files = read(&image);
        let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&files[name]).unwrap();
        let blob = |descriptor: &serde_json::Value| {
            let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let bytes = &files[&format!("blobs/{name}")];
            assert_eq!(descriptor["size"], bytes.len());
            assert_eq!(name, format!("sha256/{}", Blob(bytes.clone()).digest()));
            name
        };

        let index = json("index.json");
        let manifest = json(&format!("blobs/{}", blob(&index["manifests"][0])));
        let config = json(&format!("blobs/{}", blob(&manifest["config"])));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.replace('/', ":"));
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/sh");
        let content = entries(&files[&format!("blobs/{layer}")]);
        let names: Vec<_> = content.keys().collect();
        assert_eq!(names, ["bin", "bin/busybox", "bin/sh", "etc", "etc/passwd", "tmp"]);
        assert_eq!(content["bin/busybox"], b"ELF");
    }

    #[test]
    fn the_image_can_be_named_by_tag_and_by_digest() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "ELF").unwrap();
        let image = recipe(&program).make(folder.path()).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&read(&image)["index.json"]).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        let names: Vec<_> =
            manifests.iter().map(|one| one["annotations"]["io.containerd.image.name"].clone()).collect();
        assert_eq!(names, [image.tag.as_str(), image.reference.as_str()]);
        let digest = manifests[0]["digest"].as_str().unwrap();
        assert_eq!(image.reference, format!("fairlead.dev/rig/traffic@{digest}"));
        assert_eq!(image.tag, "fairlead.dev/rig/traffic:dev");
    }

    #[test]
    fn the_same_files_make_the_same_digest_and_another_file_another() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (folder, content) in [(&one, "ELF"), (&two, "ELF")] {
            fs::write(folder.path().join("program"), content).unwrap();
        }
        let make = |folder: &Path| recipe(&folder.join("program")).make(folder).unwrap();
        let [first, second] = [make(one.path()), make(two.path())];
        assert_eq!(first.reference, second.reference);
        assert_eq!(fs::read(&first.archive).unwrap(), fs::read(&second.archive).unwrap());
        fs::write(two.path().join("program"), "FLE").unwrap();
        assert_ne!(make(two.path()).reference, first.reference);
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = recipe(Path::new("/no/such/program")).make(folder.path()).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
    }
}
