//! Making a tree: one process does, the others wait for it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use situla_oci::{Algorithm, Digest, Hasher};
use situla_squashfs::{Image, ReadOptions, Window};

use super::{Locking, MAX_TRIES, RECORD_VERSION, TreeCache, TreeError, TreeRecord, is_named, names, whole};
use crate::convert::ConvertError;
use crate::file_error::FileError;
use crate::identity::FileIdentity;
use crate::output::write_for_owner;
use crate::progress::{Event, Progress};
use crate::traces::Trace;
use crate::unpack::unpack;

/// Bytes that are hashed at once.
const CHUNK: usize = 1 << 20;

/// Whom somebody waits for.
const ANOTHER: &str = "another process on this node";

impl TreeCache {
    /// Makes sure that the tree of an image is there, and gives its digest. `part` is where the SquashFS lies in
    /// `image`, which `shown` names; `known` is its digest, where somebody has verified it.
    ///
    /// # Errors
    /// It cannot be made; nothing is left then.
    pub fn fill(
        &self,
        image: &File,
        part: (u64, u64),
        shown: &Path,
        known: Option<Digest>,
        n_threads: usize,
        progress: &dyn Progress,
    ) -> Result<Digest, TreeError> {
        self.create()?;
        let state = || image.metadata().map(|metadata| FileIdentity::of(&metadata, part));
        let before = state().map_err(FileError::read(shown))?;
        let digest = match known.or_else(|| self.find_digest(&before)) {
            Some(digest) => digest,
            None => self.hash(image, &before, shown, progress)?,
        };
        let name = digest.file_stem();
        let tree = self.tree(&name);
        let is_made = || self.is_whole(&name);
        let Some(_lock) = self.lock_to_make(&name, progress, is_made)? else { return Ok(digest) };
        self.remove_abandoned();
        // It has lost something: another one takes its place.
        self.set_aside(&name)?;
        self.remove_begun();
        progress.event(Event::Extracting);
        let place = Building::create(self, &name)?;
        let opened = image.try_clone().map_err(FileError::read(shown))?;
        let window = Window::new(opened, part.0, part.1);
        let squashfs = Image::open(window, ReadOptions::default())
            .map_err(|source| ConvertError::NotSquashfs { path: shown.to_owned(), source })
            .map_err(TreeError::Extract)?;
        let made = place.path.join("tree");
        let unpacked = unpack(&squashfs, shown, &made, n_threads, progress).map_err(TreeError::Extract)?;
        // What was read while it changed is no image, and its digest that of another one.
        if state().map_err(FileError::read(shown))? != before {
            return Err(TreeError::Changed { path: shown.to_owned() });
        }
        fs::rename(&made, &tree).map_err(FileError::write(&tree))?;
        let record = TreeRecord {
            version: RECORD_VERSION,
            name: shown.display().to_string(),
            bytes: unpacked.bytes,
            entries: unpacked.n_entries,
            marks: whole::marks(&tree)?,
        };
        // Without it the tree is no good: whoever finds it so makes it anew.
        write_json(&self.record_path(&name), &record)?;
        Ok(digest)
    }

    /// Locks `name` to make something; `None` where another process has made it, which `is_made` tells.
    ///
    /// Whoever waits does so for a shared lock: users of what is made have those, and nobody must wait for
    /// their end.
    fn lock_to_make(
        &self,
        name: &str,
        progress: &dyn Progress,
        is_made: impl Fn() -> bool,
    ) -> Result<Option<File>, TreeError> {
        for attempt in 0..MAX_TRIES {
            if let Some(lock) = self.try_lock(name, Locking::Exclusive)? {
                return Ok((!is_made()).then_some(lock));
            }
            if attempt == 0 && !is_made() {
                progress.event(Event::Waiting { holder: ANOTHER.to_owned() });
            }
            let waited = self.try_lock(name, Locking::SharedWaiting)?;
            if waited.is_some() && is_made() {
                return Ok(None);
            }
            // Damaged, and in use: those who use it keep it by its own lock, and nobody waits for their end.
            if waited.is_some_and(|lock| self.tree(name).is_dir() && is_named(&lock, &self.lock_path(name))) {
                let _ = fs::remove_file(self.lock_path(name));
            }
            // Its maker has failed. Of those who waited one can go on, if they do not all look all the time.
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(10))));
        }
        Err(TreeError::Lock { path: self.lock_path(name) })
    }

    /// Computes the digest of a part of a file, once.
    fn hash(
        &self,
        image: &File,
        identity: &FileIdentity,
        shown: &Path,
        progress: &dyn Progress,
    ) -> Result<Digest, TreeError> {
        let name = identity.lock_name();
        // Nobody has it for longer than he computes. A recent change is not remembered: then each computes.
        let lock = match self.try_lock(&name, Locking::Exclusive)? {
            Some(lock) => Some(lock),
            None => {
                progress.event(Event::Waiting { holder: ANOTHER.to_owned() });
                self.try_lock(&name, Locking::ExclusiveWaiting)?
            }
        };
        if let Some(digest) = self.find_digest(identity) {
            return Ok(digest);
        }
        let digest = hash_part(image, identity, shown)?;
        let remembered = self.identities().remember(identity, &digest);
        remembered.map_err(FileError::write(self.directory.join("identities")))?;
        // It was for this alone, and identities are many.
        let _ = fs::remove_file(self.lock_path(&name));
        drop(lock);
        Ok(digest)
    }

    /// Removes what processes that were killed have begun. Gives the processes that are at work.
    pub fn remove_abandoned(&self) -> Vec<u32> {
        // In another user's directory these names may lead anywhere.
        if self.expect_own().is_err() {
            return Vec::new();
        }
        let building = self.directory.join("building");
        let mut alive = Vec::new();
        for name in names(&building).unwrap_or_default() {
            let path = building.join(&name);
            let Ok(directory) = File::open(&path) else { continue };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // What cannot be removed now, the next one removes.
                let _ = fs::remove_dir_all(&path);
            } else {
                alive.extend(name.rsplit('.').nth(1).and_then(|pid| pid.parse::<u32>().ok()));
            }
        }
        self.remove_unrecorded();
        alive
    }
}

/// Computes the digest of a part of a file, which must not change meanwhile.
pub(crate) fn hash_part(image: &File, identity: &FileIdentity, shown: &Path) -> Result<Digest, TreeError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; CHUNK];
    let (mut offset, mut left) = identity.part();
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..length];
        image.read_exact_at(chunk, offset).map_err(FileError::read(shown))?;
        hasher.update(chunk);
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        offset = offset.saturating_add(length);
        left = left.saturating_sub(length);
    }
    let digest = hasher.finish();
    let now = image.metadata().map(|metadata| FileIdentity::of(&metadata, identity.part()));
    if now.map_err(FileError::read(shown))? != *identity {
        return Err(TreeError::Changed { path: shown.to_owned() });
    }
    Ok(digest)
}

/// A directory in which a tree is made; removed when dropped.
struct Building {
    path: PathBuf,
    _lock: File,
    _trace: Trace,
}

impl Building {
    fn create(cache: &TreeCache, name: &str) -> Result<Self, TreeError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let building = cache.directory.join("building");
        for _ in 0..MAX_TRIES {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = building.join(format!("{name}.{}.{serial}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                // Of a process of this number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(FileError::write(&path))?,
            }
            let trace = Trace::of(&path);
            let lock = File::open(&path).map_err(FileError::write(&path));
            // Somebody who cleans up may have come in between.
            if let Ok(lock) = lock
                && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && lock.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
                && path.is_dir()
            {
                return Ok(Building { path, _lock: lock, _trace: trace });
            }
        }
        Err(TreeError::Lock { path: building })
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Writes a small file completely or not at all. It is not synced: after a crash the node's cache may go.
pub(crate) fn write_json(path: &Path, record: &impl Serialize) -> Result<(), TreeError> {
    let pending = path.with_extension(format!("{}.new", std::process::id()));
    let bytes = serde_json::to_vec(record).map_err(io::Error::other);
    let written = bytes
        .and_then(|bytes| write_for_owner(&pending, &bytes))
        .and_then(|()| fs::rename(&pending, path))
        .inspect_err(|_| drop(fs::remove_file(&pending)));
    Ok(written.map_err(FileError::write(path))?)
}
