//! The folder the agent follows: a copy of `e2e/demo`, edited as a person with an editor would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const ORIGINAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// The scheduler of all Services is chosen here.
pub const NETWORK: &str = "network.yaml";
/// The pods behind the Service are listed here.
pub const ENDPOINTS: &str = "web-endpoints.yaml";

/// A folder of manifests.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// Copies the checked-in manifests into `folder`.
    pub fn copy_to(folder: PathBuf) -> Result<Self> {
        for entry in fs::read_dir(ORIGINAL).with_context(|| format!("failed to list {ORIGINAL}"))? {
            let entry = entry?;
            fs::copy(entry.path(), folder.join(entry.file_name()))
                .with_context(|| format!("failed to copy {}", entry.path().display()))?;
        }
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an edit and returns the lines that changed, as a diff shows them.
    pub fn edit(&self, file: &str, edit: &[Edit<'_>]) -> Result<String> {
        let path = self.folder.join(file);
        let before =
            fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let mut after = before.clone();
        for edit in edit {
            after = edit.apply(&after).with_context(|| format!("failed to edit {file}"))?;
        }
        // A rename is what editors and kubelets do: the agent never sees half a file.
        let draft = path.with_extension("yaml.new");
        fs::write(&draft, &after)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(diff(file, &before, &after))
    }
}

/// A change of one line.
#[derive(Debug, Clone, Copy)]
pub enum Edit<'a> {
    /// Replaces the first by the second, which are parts of a line.
    Replace(&'a str, &'a str),
    /// Adds a line behind the one that begins with the first.
    AddBehind(&'a str, &'a str),
    /// Removes the line.
    Remove(&'a str),
}

impl Edit<'_> {
    fn apply(&self, text: &str) -> Result<String> {
        let (Self::Replace(part, _) | Self::AddBehind(part, _) | Self::Remove(part)) = *self;
        if text.matches(part).count() != 1 {
            bail!("{part:?} is not in the file exactly once");
        }
        let mut lines = Vec::new();
        for line in text.lines() {
            match *self {
                Self::Replace(old, new) => lines.push(line.replace(old, new)),
                Self::AddBehind(mark, new) if line.contains(mark) => {
                    lines.extend([line.to_owned(), new.to_owned()]);
                }
                Self::Remove(mark) if line.contains(mark) => {}
                Self::AddBehind(..) | Self::Remove(_) => lines.push(line.to_owned()),
            }
        }
        Ok(lines.join("\n") + "\n")
    }
}

/// The lines that only one of the texts has.
fn diff(file: &str, before: &str, after: &str) -> String {
    let only = |one: &str, other: &str, sign: &str| -> String {
        let missing = one.lines().filter(|line| !other.lines().any(|there| there == *line));
        missing.flat_map(|line| ["  ", sign, " ", line, "\n"]).collect()
    };
    format!("{file}:\n{}{}", only(before, after, "-"), only(after, before, "+"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "scheduler: rr\nendpoints:\n- {addresses: [10.0.0.1]}\n";

    #[test]
    fn lines_are_replaced_added_and_removed() {
        let edited = |edit: Edit<'_>| edit.apply(TEXT).unwrap();
        assert_eq!(edited(Edit::Replace(": rr", ": sh")), TEXT.replace("rr", "sh"));
        assert_eq!(
            edited(Edit::AddBehind("endpoints:", "- new")),
            TEXT.replace("endpoints:\n", "endpoints:\n- new\n")
        );
        assert_eq!(edited(Edit::Remove("10.0.0.1")), "scheduler: rr\nendpoints:\n");
    }

    #[test]
    fn an_edit_of_what_is_not_there_is_refused() {
        let error = Edit::Remove("10.0.0.2").apply(TEXT).unwrap_err().to_string();
        assert!(error.contains("10.0.0.2"), "{error}");
    }

    #[test]
    fn a_diff_shows_the_changed_lines() {
        assert_eq!(diff("f", TEXT, &TEXT.replace("rr", "sh")), "f:\n  - scheduler: rr\n  + scheduler: sh\n");
    }
}
