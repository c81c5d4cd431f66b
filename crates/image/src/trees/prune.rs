//! Removing trees that nobody uses.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use situla_oci::Digest;

use super::{CachedTree, Locking, MAX_TRIES, TreeCache, TreeError, names};
use crate::file_error::FileError;

/// How the names of trees begin that are no longer at their place.
const REMOVED: &str = ".removed.";

/// What may stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeLimits {
    /// Bytes of all trees together; those that were not used for the longest time go first.
    pub bytes: Option<u64>,
    /// Time since the last use.
    pub age: Option<Duration>,
}

/// What pruning has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Trees that were removed.
    pub removed: Vec<CachedTree>,
    /// Trees that would have gone, but are in use.
    pub used: Vec<CachedTree>,
    /// Bytes of those that stay.
    pub bytes_left: u64,
}

impl TreeCache {
    /// Removes what is beyond the limits and not in use, and what killed processes have left. A cache that is
    /// empty then goes as well.
    ///
    /// # Errors
    /// The cache cannot be read or changed.
    pub fn prune(&self, limits: &TreeLimits) -> Result<Pruned, TreeError> {
        let mut pruned = Pruned::default();
        if !self.exists() {
            return Ok(pruned);
        }
        self.expect_own()?;
        self.remove_abandoned();
        self.remove_begun();
        self.remove_loose_records();
        let trees = self.list()?;
        let now = SystemTime::now();
        let mut bytes: u64 = trees.iter().map(|tree| tree.bytes).fold(0, u64::saturating_add);
        // The list begins with what was not used for the longest time.
        for tree in trees {
            let unused_for = now.duration_since(tree.used).unwrap_or_default();
            let is_old = limits.age.is_some_and(|age| unused_for > age);
            let is_too_much = limits.bytes.is_some_and(|limit| bytes > limit);
            if !is_old && !is_too_much {
                continue;
            }
            if self.remove(&tree.digest.file_stem(), |_| true)? {
                bytes = bytes.saturating_sub(tree.bytes);
                pruned.removed.push(tree);
            } else {
                pruned.used.push(tree);
            }
        }
        pruned.bytes_left = bytes;
        self.forget_identities(limits, now);
        self.remove_if_empty();
        Ok(pruned)
    }

    /// Removes a tree, if it still has what `is_due` asks for once nobody else can come; false where it has not, or is
    /// in use.
    fn remove(&self, name: &str, is_due: impl Fn(&str) -> bool) -> Result<bool, TreeError> {
        let Some(_lock) = self.try_lock(name, Locking::Exclusive)? else { return Ok(false) };
        // Those who have found it damaged have given its lock up, and its users have this one still.
        let own = self.lock_tree(name, FlockOperation::NonBlockingLockExclusive)?;
        if own.is_none() && self.tree(name).is_dir() {
            return Ok(false);
        }
        // Processes that have outlived the one with the lease; nobody can come anew while it is locked.
        if !is_due(name) || Mounted::look().has(name) {
            return Ok(false);
        }
        let away = self.set_aside(name)?;
        let _ = fs::remove_file(self.lock_path(name));
        if let Some(away) = away {
            fs::remove_dir_all(&away).map_err(FileError::write(&away))?;
        }
        Ok(true)
    }

    /// Removes trees whose makers were killed before they had written the record. A tree without one is no good to
    /// anybody, and nobody would ask how large or how old it is. One that is about to have its record is locked.
    pub(super) fn remove_unrecorded(&self) {
        let has_none = |name: &str| matches!(self.record_path(name).try_exists(), Ok(false));
        for name in names(&self.directory.join("trees")).unwrap_or_default() {
            let is_tree = name.replacen('-', ":", 1).parse::<Digest>().is_ok();
            if is_tree && has_none(&name) {
                // What cannot be removed now, the next one removes.
                let _ = self.remove(&name, has_none);
            }
        }
    }

    /// Removes records of which there is no tree, and those that were never finished.
    fn remove_loose_records(&self) {
        let records = self.directory.join("records");
        for file in names(&records).unwrap_or_default() {
            let name = file.split('.').next().unwrap_or_default();
            let is_loose = || file != format!("{name}.json") || !self.tree(name).is_dir();
            if !is_loose() {
                continue;
            }
            // Whoever makes a tree has its lock until he has written the record.
            let Ok(Some(_lock)) = self.try_lock(name, Locking::Exclusive) else { continue };
            if is_loose() {
                let _ = fs::remove_file(records.join(&file));
            }
            if !self.tree(name).is_dir() {
                let _ = fs::remove_file(self.lock_path(name));
            }
        }
    }

    /// Takes a tree out of its place, with its record, for whoever has its lock; gives where it is then.
    pub(super) fn set_aside(&self, name: &str) -> Result<Option<PathBuf>, TreeError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let tree = self.tree(name);
        // First: the next tree of this name must not be taken for the one that this is about.
        match fs::remove_file(self.record_path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::write(self.record_path(name))(error).into());
            }
            _ => {}
        }
        for _ in 0..MAX_TRIES {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let away = format!("{REMOVED}{name}.{}.{serial}", std::process::id());
            let away = self.directory.join("trees").join(away);
            match rustix::fs::rename(&tree, &away) {
                Ok(()) => return Ok(Some(away)),
                Err(Errno::NOENT) => return Ok(None),
                // Of a process of this number that was killed.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(FileError::write(&tree)(errno.into()).into()),
            }
        }
        Err(TreeError::Lock { path: tree })
    }

    /// Removes trees that have lost their place, once nobody uses them: damaged ones, and those of whoever was
    /// killed while he removed one.
    pub(super) fn remove_begun(&self) {
        let entries = fs::read_dir(self.directory.join("trees")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let names: Vec<String> = names.filter(|name| name.starts_with(REMOVED)).collect();
        if names.is_empty() {
            return;
        }
        let mounted = Mounted::look();
        for name in names {
            // Whoever removes it at the same time does the same.
            let lock = self.lock_tree(&name, FlockOperation::NonBlockingLockExclusive);
            if matches!(lock, Ok(Some(_))) && !mounted.has(&name) {
                let _ = fs::remove_dir_all(self.tree(&name));
            }
        }
    }

    /// Forgets digests of files that were computed long ago: they cost little, and are computed again. What is half
    /// written by a process that was killed goes, too.
    fn forget_identities(&self, limits: &TreeLimits, now: SystemTime) {
        let directory = self.directory.join("identities");
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let Some((name, _)) = file.to_str().and_then(|file| file.strip_prefix('.')?.split_once('.'))
            else {
                continue;
            };
            if let Ok(Some(_lock)) = self.try_lock(name, Locking::Exclusive) {
                let _ = fs::remove_file(entry.path());
                let _ = fs::remove_file(self.lock_path(name));
            }
        }
        let nothing_left = names(&self.directory.join("trees")).is_ok_and(|trees| trees.is_empty());
        for name in names(&directory).unwrap_or_default() {
            let path = directory.join(name);
            let age = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = age.ok().and_then(|modified| now.duration_since(modified).ok()).unwrap_or_default();
            if nothing_left || limits.age.is_some_and(|limit| age > limit) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn remove_if_empty(&self) {
        if names(&self.directory.join("trees")).is_ok_and(|trees| trees.is_empty()) {
            for name in names(&self.directory.join("locks")).unwrap_or_default() {
                // One that is held stays, and with it the directory.
                if let Ok(Some(_lock)) = self.try_lock(&name, Locking::Exclusive) {
                    let _ = fs::remove_file(self.lock_path(&name));
                }
            }
            for name in ["building", "identities", "records", "locks", "trees"] {
                // Fails where somebody has begun anew.
                let _ = fs::remove_dir(self.directory.join(name));
            }
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Trees that mounts of any process are made of.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    /// Those that are mounted themselves, by the names that they have now.
    bound: BTreeSet<String>,
    /// Those that lie below an overlay, by the names that they had when it was made.
    layered: BTreeSet<String>,
}

impl Mounted {
    /// Looks at all processes that let themselves be looked at.
    pub(super) fn look() -> Self {
        /// More than the table of any sensible process.
        const MAX_TABLE: u64 = 1 << 22;
        let (mut found, mut seen) = (Mounted::default(), BTreeSet::new());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| name.parse::<u32>().is_err()) {
                continue;
            }
            // Processes of one mount namespace have one table, as long as they have one root.
            let place = |name: &str| fs::read_link(entry.path().join(name)).ok();
            if let Some(namespace) = place("ns/mnt")
                && !seen.insert((namespace, place("root")))
            {
                continue;
            }
            let Ok(file) = fs::File::open(entry.path().join("mountinfo")) else { continue };
            let mut table = String::new();
            let _ = file.take(MAX_TABLE).read_to_string(&mut table);
            found.add(&table);
        }
        found
    }

    /// Adds what `/proc/PID/mountinfo` shows. The fourth field is what of a file system is mounted; of an overlay that is
    /// its own root, and only the name that the runtime has given it, the second field after the hyphen, says what lies below.
    fn add(&mut self, table: &str) {
        for line in table.lines() {
            if let Some(source) = line.split(' ').nth(3) {
                self.bound.extend(trees_in(source));
            }
            let mut of_file_system = line.split_once(" - ").map_or("", |(_, rest)| rest).split(' ');
            if of_file_system.next() == Some("overlay") {
                self.layered.extend(of_file_system.next().into_iter().flat_map(trees_in));
            }
        }
    }

    /// Whether a mount is made of what has this name below `trees/`. Which of several that had one name an overlay lies
    /// over is not known: then all count.
    pub(super) fn has(&self, name: &str) -> bool {
        let original = name.strip_prefix(REMOVED).map_or(name, |rest| rest.split('.').next().unwrap_or(rest));
        self.bound.contains(name) || self.layered.contains(original)
    }
}

/// The names of trees in a path: the cache may lie below a directory of this name, and an image may have one.
fn trees_in(path: &str) -> impl Iterator<Item = String> {
    path.split("/trees/").skip(1).map(|rest| rest.split('/').next().unwrap_or(rest).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_found_in_tables_of_mounts() {
        let mut mounted = Mounted::default();
        mounted.add(
            "22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw\n\
             30 28 8:1 /var/tmp/situla-1/trees/sha256-aa / ro - ext4 /dev/sda1 rw\n\
             31 30 8:1 /situla-1/trees/sha256-bb/etc /etc ro - ext4 /dev/sda1 rw\n\
             32 30 8:1 /data/trees/oak/situla-1/trees/sha256-cc/trees/x / ro - ext4 /dev/sda1 rw\n\
             33 30 8:1 /situla-1/trees/.removed.sha256-dd.7.0 / ro - ext4 /dev/sda1 rw\n\
             34 30 0:50 / / ro,nosuid master:1 - overlay /var/tmp/situla-1/trees/sha256-ee rw,lowerdir=/trees/no\n\
             35 30 0:51 / / ro - fuse /var/tmp/situla-1/trees/sha256-ff rw\n\
             short\n",
        );
        for name in [
            "sha256-aa",
            "sha256-bb",
            "oak",
            "sha256-cc",
            "x",
            ".removed.sha256-dd.7.0",
            "sha256-ee",
            // Since it was mounted it has lost its place.
            ".removed.sha256-ee.7.0",
        ] {
            assert!(mounted.has(name), "{name}");
        }
        for name in ["sha256-dd", ".removed.sha256-aa.7.0", ".removed.sha256-dd.7.1", "sha256-ff", "no"] {
            assert!(!mounted.has(name), "{name}");
        }
    }
}
