//! Whether a tree still has what it was made with.
//!
//! What cleans `/var/tmp` by age takes the files of a tree one by one: none of their times ever changes, since
//! they are read through mounts that are read-only. Whoever removes a name from a directory changes the time of
//! the directory's last change, which nobody can set back (inode(7)). So a record keeps these times for some
//! directories all over the tree: looking at them takes less than a millisecond, and a tree has as many files as
//! it likes. What removes a few files and spares all those directories is not noticed, nor is a file that
//! somebody changes: for that all of the tree would have to be read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{RECORD_VERSION, TreeCache, TreeError, TreeRecord, read_json};
use crate::file_error::FileError;

/// Directories that are looked at before each run: what cleans by age leaves none of them as it was, and they
/// must not be felt where nothing of the tree is in memory yet.
const MAX_MARKS: usize = 64;

/// A directory of a tree, as it was when the tree was complete.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Its path below the tree's root, which is empty for the root itself.
    path: PathBuf,
    /// When it was changed last: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Mark {
    fn of(tree: &Path, path: PathBuf) -> Option<Self> {
        let changed = changed(&tree.join(&path))?;
        Some(Mark { path, changed })
    }
}

fn changed(directory: &Path) -> Option<(i64, i64)> {
    let metadata = fs::symlink_metadata(directory).ok().filter(fs::Metadata::is_dir)?;
    Some((metadata.ctime(), metadata.ctime_nsec()))
}

/// The marks of a complete tree, which has its name: renaming changes the root.
pub(super) fn marks(tree: &Path) -> Result<Vec<Mark>, TreeError> {
    let mut with_files = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let directory = tree.join(&path);
        let failed = |error| TreeError::File(FileError::read(&directory)(error));
        let mut has_files = false;
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                waiting.push(path.join(entry.file_name()));
            } else {
                has_files = true;
            }
        }
        // A record is text.
        if has_files && path.to_str().is_some() && path != Path::new("") {
            with_files.push(path);
        }
    }
    // Evenly over the tree: files that were made first are the first to go.
    let step = with_files.len().div_ceil(MAX_MARKS - 1).max(1);
    let chosen = with_files.into_iter().step_by(step);
    Ok(std::iter::once(PathBuf::new()).chain(chosen).filter_map(|path| Mark::of(tree, path)).collect())
}

impl TreeCache {
    /// Whether the tree of this name is there, and nothing is known to be missing in it.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        let tree = self.tree(name);
        if !tree.is_dir() {
            return false;
        }
        // Records are as old as their trees, and go with them.
        let record: Option<TreeRecord> = read_json(&self.record_path(name));
        record.is_some_and(|record| {
            record.version == RECORD_VERSION
                && !record.marks.is_empty()
                && record.marks.iter().all(|mark| changed(&tree.join(&mark.path)) == Some(mark.changed))
        })
    }
}
