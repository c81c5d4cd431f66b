//! Extracted images, kept in a directory of one user on one node, by the digest of their SquashFS.
//!
//! | path | content |
//! |---|---|
//! | `trees/<alg>-<hex>` | the file tree; complete, since it gets its name by rename |
//! | `records/<alg>-<hex>.json` | its size, how it was called, and by what it is known to be whole |
//! | `locks/<alg>-<hex>` | flock(2): shared by whoever runs from the tree, exclusive to make or remove it; its time is that of the last use |
//! | `identities/STATE.json` | the digest of a file in a state, so that it is computed once |
//! | `building/` | trees being made, each in a directory that its maker has locked |
//!
//! Locks are the kernel's: those of a killed process have gone. Nothing here is ever changed, so that whoever has a
//! lease has what he asked for; nothing is removed while somebody has one, or a process has it mounted. A lease is
//! a lock of the tree's directory as well: that keeps systemd-tmpfiles away (tmpfiles.d(5)), and stays with a tree
//! that was found damaged and has made room for a new one.

pub(crate) mod fill;
mod prune;
mod whole;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use situla_oci::Digest;
use thiserror::Error;

use crate::convert::ConvertError;
use crate::file_error::FileError;
use crate::identity::{FileIdentity, Identities};

pub use prune::{Pruned, TreeLimits};

/// Version of the records.
const RECORD_VERSION: u32 = 1;

/// Largest record read.
const MAX_RECORD: u64 = 64 * 1024;

/// How often a lock is tried that somebody else removes meanwhile.
const MAX_TRIES: u32 = 100;

/// Why the cache failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory is not the user's alone.
    #[error("'{}' is not a directory that only you can write to", path.display())]
    NotOwn {
        /// The directory.
        path: PathBuf,
    },
    /// What the users' directories lie in is missing.
    #[error("there is no directory '{}' for extracted images on this node", path.display())]
    NoPlace {
        /// The directory.
        path: PathBuf,
    },
    /// The image cannot be extracted.
    #[error("cannot extract the image")]
    Extract(#[source] ConvertError),
    /// The image is another one by now.
    #[error("'{}' has changed while it was extracted", path.display())]
    Changed {
        /// The image.
        path: PathBuf,
    },
    /// There is a container, and nothing is known of it.
    #[error("'{}' has files of a container, and its record cannot be read or is of another version", path.display())]
    Unknown {
        /// The directory.
        path: PathBuf,
    },
    /// Others make and remove the same tree all the time.
    #[error("cannot lock '{}'", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct TreeRecord {
    version: u32,
    /// The image as it was called when the tree was made.
    name: String,
    /// Bytes of regular files.
    bytes: u64,
    entries: u64,
    /// Directories by which damage is noticed.
    #[serde(default)]
    marks: Vec<whole::Mark>,
}

/// A cache of extracted images in a directory.
#[derive(Clone, Debug)]
pub struct TreeCache {
    directory: PathBuf,
}

/// The right to use a tree; given back when dropped, and in all processes that have inherited it.
#[derive(Debug)]
pub struct TreeLease {
    path: PathBuf,
    lock: File,
    directory: File,
}

impl TreeLease {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What keeps it: whoever has these open has the lease.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.lock.as_fd(), self.directory.as_fd()]
    }
}

/// A tree in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedTree {
    /// Digest of the image's SquashFS.
    pub digest: Digest,
    /// The directory.
    pub path: PathBuf,
    /// The image as it was called when the tree was made.
    pub name: String,
    /// Bytes of regular files.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether it is in use.
    pub is_used: bool,
}

impl TreeCache {
    /// The cache in `directory`, which need not exist.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        TreeCache { directory }
    }

    /// Makes the directories, for the owner alone. What they lie in must be there: made here it would be the
    /// first user's, and closed to all others.
    ///
    /// # Errors
    /// They cannot be made, or are somebody else's: the place may be one where everybody may write.
    pub fn create(&self) -> Result<(), TreeError> {
        create_own(&self.directory)?;
        for name in ["trees", "records", "locks", "identities", "building"] {
            let path = self.directory.join(name);
            make_for_owner(&path).map_err(FileError::write(&path))?;
        }
        Ok(())
    }

    fn expect_own(&self) -> Result<(), TreeError> {
        expect_own(&self.directory)
    }

    fn exists(&self) -> bool {
        self.directory.symlink_metadata().is_ok()
    }

    fn tree(&self, name: &str) -> PathBuf {
        self.directory.join("trees").join(name)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.directory.join("locks").join(name)
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.directory.join("records").join(format!("{name}.json"))
    }

    fn identities(&self) -> Identities {
        Identities::new(self.directory.join("identities"))
    }

    /// The digest of a file in a state, where it was computed before.
    #[must_use]
    pub fn find_digest(&self, identity: &FileIdentity) -> Option<Digest> {
        self.expect_own().ok()?;
        self.identities().find(identity)
    }

    /// Takes a lease of a tree; `None` where it is not there, is being made or removed, or has lost something.
    ///
    /// # Errors
    /// The cache cannot be used.
    pub fn lease(&self, digest: &Digest) -> Result<Option<TreeLease>, TreeError> {
        if !self.exists() {
            return Ok(None);
        }
        self.expect_own()?;
        let name = digest.file_stem();
        let path = self.tree(&name);
        // Looked at again under the lock.
        if !path.is_dir() {
            return Ok(None);
        }
        let Some(lock) = self.try_lock(&name, Locking::Shared)? else { return Ok(None) };
        let Some(directory) = self.lock_tree(&name, FlockOperation::LockShared)? else { return Ok(None) };
        // Nobody who respects locks can take something away any more.
        if !self.is_whole(&name) {
            return Ok(None);
        }
        // The order of removal suffers where it cannot be set, and nothing else.
        let _ = lock.set_modified(SystemTime::now());
        Ok(Some(TreeLease { path, lock, directory }))
    }

    /// Locks the directory of a tree itself; `None` where it is not there, or is locked and not waited for. A
    /// shared lock is waited for: whoever cleans up by age has it for as long as he works on this tree.
    fn lock_tree(&self, name: &str, operation: FlockOperation) -> Result<Option<File>, TreeError> {
        let path = self.tree(name);
        let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let directory = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::read(&path)(error).into()),
        };
        loop {
            match flock(&directory, operation) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(FileError::read(&path)(errno.into()).into()),
            }
        }
        Ok(is_named(&directory, &path).then_some(directory))
    }

    /// Takes a lock at once, or not.
    fn try_lock(&self, name: &str, how: Locking) -> Result<Option<File>, TreeError> {
        let path = self.lock_path(name);
        for _ in 0..MAX_TRIES {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default())
                .open(&path)
                .map_err(FileError::write(&path))?;
            let operation = match how {
                Locking::Shared => FlockOperation::NonBlockingLockShared,
                Locking::Exclusive => FlockOperation::NonBlockingLockExclusive,
                Locking::SharedWaiting => FlockOperation::LockShared,
                Locking::ExclusiveWaiting => FlockOperation::LockExclusive,
            };
            match flock(&file, operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(FileError::write(&path)(errno.into()).into()),
            }
            // Whoever removes a tree removes its lock: one that has no name any more protects nothing.
            if is_named(&file, &path) {
                return Ok(Some(file));
            }
        }
        Err(TreeError::Lock { path })
    }

    /// Lists the trees, the one that was used last at the end.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn list(&self) -> Result<Vec<CachedTree>, TreeError> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        self.expect_own()?;
        let mounted = prune::Mounted::look();
        let mut found = Vec::new();
        for name in names(&self.directory.join("trees"))? {
            let Some(digest) = name.replacen('-', ":", 1).parse::<Digest>().ok() else { continue };
            let record: Option<TreeRecord> = read_json(&self.record_path(&name));
            let record = record.filter(|record| record.version == RECORD_VERSION);
            let lock = self.lock_path(&name);
            let used = fs::metadata(&lock).and_then(|metadata| metadata.modified());
            found.push(CachedTree {
                digest,
                path: self.tree(&name),
                name: record.as_ref().map_or_else(String::new, |record| record.name.clone()),
                bytes: record.map_or(0, |record| record.bytes),
                used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                is_used: mounted.has(&name) || self.is_leased(&name)?,
            });
        }
        found.sort_by(|a, b| (a.used, &a.digest).cmp(&(b.used, &b.digest)));
        Ok(found)
    }

    fn is_leased(&self, name: &str) -> Result<bool, TreeError> {
        // For the moment of looking somebody who wants to run from it finds it locked, and waits.
        Ok(self.try_lock(name, Locking::Exclusive)?.is_none()
            || self.lock_tree(name, FlockOperation::NonBlockingLockExclusive)?.is_none())
    }
}

/// Makes a directory in which nobody but its owner looks, where it is not there.
pub(crate) fn make_for_owner(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// The same of a directory that lies where everybody may write.
pub(crate) fn create_own(path: &Path) -> Result<(), TreeError> {
    make_for_owner(path).map_err(|error| match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(parent)) => TreeError::NoPlace { path: parent.to_owned() },
        _ => FileError::write(path)(error).into(),
    })?;
    expect_own(path)
}

/// Fails where a directory is not the user's alone.
pub(crate) fn expect_own(path: &Path) -> Result<(), TreeError> {
    let metadata = fs::symlink_metadata(path).map_err(FileError::read(path))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if own && metadata.is_dir() && metadata.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(TreeError::NotOwn { path: path.to_owned() })
    }
}

/// How a lock is taken.
#[derive(Clone, Copy, Debug)]
enum Locking {
    Shared,
    Exclusive,
    /// As soon as nobody has it for himself alone.
    SharedWaiting,
    /// As soon as nobody has it.
    ExclusiveWaiting,
}

/// Whether an open file still has this name.
pub(crate) fn is_named(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (named.dev(), named.ino())
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The names in a directory that do not begin with a dot.
pub(crate) fn names(directory: &Path) -> Result<BTreeSet<String>, TreeError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(FileError::read(directory))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

#[cfg(test)]
mod tests;
