//! Where paths of a site lie in the file system that is worked on: this machine, or a tree that will be one.
//!
//! In a tree a symbolic link leads where it would lead on the machine that the tree becomes: never out of it, into files
//! of the machine that is worked on. The directory of a path is therefore opened inside the tree, once, and what is done
//! to the path is done in that directory.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use situla_engine::{Links, open_inside};

/// The root that paths are looked up below.
#[derive(Clone, Debug)]
pub(crate) struct Root(Option<Arc<OwnedFd>>);

/// A path that this process can use, as long as it has this.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// What `path` names by its number.
    _open: Option<OwnedFd>,
}

impl Deref for Place {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Place {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Root {
    /// This machine.
    pub(crate) fn machine() -> Self {
        Root(None)
    }

    /// The tree at `path`; `/` is this machine.
    pub(crate) fn tree(path: &Path) -> io::Result<Self> {
        if path == Path::new("/") {
            return Ok(Root::machine());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(Some(Arc::new(openat(CWD, path, flags, Mode::empty())?))))
    }

    /// Whether it is this machine: then facts of the kernel count, and owners.
    pub(crate) fn is_machine(&self) -> bool {
        self.0.is_none()
    }

    /// Where a path of the site lies; a link that is its last part is not followed.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Place> {
        let Some(tree) = &self.0 else { return Ok(Place { path: path.to_owned(), _open: None }) };
        // The root has a name in itself.
        let (directory, name) = path.parent().zip(path.file_name()).unwrap_or((path, ".".as_ref()));
        let open =
            open_inside(tree.as_fd(), directory.as_os_str().as_bytes(), PATH_OF_DIRECTORY, Links::Follow)?;
        Ok(Place { path: name_of(&open).join(name), _open: Some(open) })
    }

    /// What is at a path of the site, at the end of all links.
    pub(crate) fn follow(&self, path: &Path) -> io::Result<Place> {
        let Some(tree) = &self.0 else { return Ok(Place { path: path.to_owned(), _open: None }) };
        let open = open_inside(tree.as_fd(), path.as_os_str().as_bytes(), OFlags::PATH, Links::Follow)?;
        Ok(Place { path: name_of(&open), _open: Some(open) })
    }

    /// The path of the site that a path leads to by its links.
    pub(crate) fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let found = fs::canonicalize(self.follow(path)?)?;
        let Some(tree) = &self.0 else { return Ok(found) };
        let top = fs::canonicalize(name_of(tree))?;
        let below = found.strip_prefix(&top).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Path::new("/").join(below))
    }

    /// Whether something is at a path, at the end of all links.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.follow(path).is_ok_and(|place| place.exists())
    }

    /// Whether a directory is.
    pub(crate) fn has_directory(&self, path: &Path) -> bool {
        self.follow(path).is_ok_and(|place| place.is_dir())
    }

    /// The bytes of a file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(self.follow(path)?)
    }

    /// The names in a directory.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        let entries = fs::read_dir(self.follow(path)?)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }
}

const PATH_OF_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// What an open file is called, for calls that take a path.
fn name_of(open: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_where_they_would_on_the_machine_that_the_tree_becomes() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for part in [tree.join("srv/slurm"), tree.join("etc"), outside.clone()] {
            fs::create_dir_all(part).unwrap();
        }
        fs::write(tree.join("srv/slurm/file"), "of the tree").unwrap();
        fs::write(outside.join("file"), "of the machine").unwrap();
        symlink("/srv/slurm", tree.join("etc/slurm")).unwrap();
        symlink("../../outside", tree.join("etc/above")).unwrap();
        symlink(&outside, tree.join("etc/outside")).unwrap();
        symlink("/etc/slurm/file", tree.join("etc/file")).unwrap();
        let root = Root::tree(&tree).unwrap();
        assert!(!root.is_machine() && Root::tree(Path::new("/")).unwrap().is_machine());
        for path in ["/etc/slurm/file", "/etc/file", "/../etc/./file"] {
            assert_eq!(root.read(Path::new(path)).unwrap(), b"of the tree", "{path}");
            assert_eq!(root.real(Path::new(path)).unwrap(), Path::new("/srv/slurm/file"), "{path}");
        }
        for path in ["/etc/above/file", "/etc/outside/file"] {
            assert!(root.read(Path::new(path)).is_err() && !root.has(Path::new(path)), "{path}");
            assert!(root.place(Path::new(path)).is_err(), "{path}");
        }
        fs::write(root.place(Path::new("/etc/slurm/new")).unwrap(), "x").unwrap();
        assert_eq!(fs::read(tree.join("srv/slurm/new")).unwrap(), b"x");
        // The last part is the link itself, for who removes or replaces it.
        assert!(root.place(Path::new("/etc/file")).unwrap().is_symlink());
        fs::remove_file(root.place(Path::new("/etc/file")).unwrap()).unwrap();
        assert!(root.has(Path::new("/srv/slurm/file")) && !root.has(Path::new("/etc/file")));
        assert!(root.has_directory(Path::new("/")) && !root.has_directory(Path::new("/etc/none")));
        assert_eq!(root.names(Path::new("/etc/slurm")).unwrap().len(), 2);
    }
}
