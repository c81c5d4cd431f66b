//! Noticing that an image file was changed while a run used it.
//!
//! What is read of such a file is no longer what was planned: reads fail with EIO, or give other bytes. A file
//! that was replaced, by rename, is another matter: the run goes on with the old one.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An image file, and what it was like at the start.
#[derive(Debug)]
pub(crate) struct ImageWatch {
    file: File,
    path: PathBuf,
    state: State,
}

/// Length and time of the last write. The time of the last change of the inode also tells of links to it.
type State = (u64, i64, i64);

fn state(file: &File) -> Option<State> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

impl ImageWatch {
    /// Begins with the open image behind `descriptor`, which was found at `path`. `None` where it cannot be looked
    /// at: that must not fail a run.
    pub(crate) fn begin(descriptor: RawFd, path: &Path) -> Option<Self> {
        let file = File::from(situla_runtime::duplicate(descriptor).ok()?);
        let state = state(&file)?;
        Some(ImageWatch { file, path: path.to_owned(), state })
    }

    /// The file, if it has changed since, or cannot be looked at any more.
    pub(crate) fn changed(&self) -> Option<&Path> {
        (state(&self.file) != Some(self.state)).then_some(self.path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_change_is_one_of_the_file_and_not_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let new = || {
            std::fs::write(&path, b"image").unwrap();
            let file = File::options().write(true).read(true).open(&path).unwrap();
            let watch = ImageWatch::begin(file.as_raw_fd(), &path).unwrap();
            assert_eq!(watch.changed(), None);
            (file, watch)
        };
        let (file, watch) = new();
        std::fs::hard_link(&path, dir.path().join("other")).unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join("third")).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(watch.changed(), None, "its names alone");
        file.set_len(2).unwrap();
        assert_eq!(watch.changed(), Some(path.as_path()));
        let (mut file, watch) = new();
        // The clock of a file system has steps.
        file.write_all(b"other").unwrap();
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
        assert_eq!(watch.changed(), Some(path.as_path()));
    }
}
