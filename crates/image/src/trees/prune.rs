//! Removing trees that nobody uses.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

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
        let trees = self.list()?;
        if !self.exists() {
            return Ok(pruned);
        }
        self.remove_abandoned();
        self.remove_begun();
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
            if self.remove(&tree)? {
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

    /// Removes a tree; false where it is in use.
    fn remove(&self, tree: &CachedTree) -> Result<bool, TreeError> {
        let name = tree.digest.file_stem();
        let Some(_lock) = self.try_lock(&name, Locking::Exclusive)? else { return Ok(false) };
        // Those who have found it damaged have given its lock up, and its users have this one still.
        let own = self.lock_tree(&name, FlockOperation::NonBlockingLockExclusive)?;
        if own.is_none() && tree.path.is_dir() {
            return Ok(false);
        }
        // Processes that have outlived the one with the lease; nobody can come anew while it is locked.
        if mounted_trees().contains(&name) {
            return Ok(false);
        }
        let away = self.set_aside(&name)?;
        let _ = fs::remove_file(self.lock_path(&name));
        if let Some(away) = away {
            fs::remove_dir_all(&away).map_err(FileError::write(&away))?;
        }
        Ok(true)
    }

    /// Takes a tree out of its place, with its record, for whoever has its lock; gives where it is then.
    pub(super) fn set_aside(&self, name: &str) -> Result<Option<PathBuf>, TreeError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let tree = self.tree(name);
        for _ in 0..MAX_TRIES {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let away = format!("{REMOVED}{name}.{}.{serial}", std::process::id());
            let away = self.directory.join("trees").join(away);
            match rustix::fs::rename(&tree, &away) {
                Ok(()) => {
                    let _ = fs::remove_file(self.record_path(name));
                    return Ok(Some(away));
                }
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
        let mounted = mounted_trees();
        for name in names {
            // Whoever removes it at the same time does the same.
            let lock = self.lock_tree(&name, FlockOperation::NonBlockingLockExclusive);
            if matches!(lock, Ok(Some(_))) && !mounted.contains(&name) {
                let _ = fs::remove_dir_all(self.tree(&name));
            }
        }
    }

    /// Forgets digests of files that were computed long ago: they cost little, and are computed again.
    fn forget_identities(&self, limits: &TreeLimits, now: SystemTime) {
        let directory = self.directory.join("identities");
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

/// The names of trees that are mounted, by any process that lets itself be looked at.
pub(super) fn mounted_trees() -> BTreeSet<String> {
    /// More than the table of any sensible process.
    const MAX_TABLE: u64 = 1 << 22;
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
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
        found.extend(trees_in(&table).map(str::to_owned));
    }
    found
}

/// The names of trees in `/proc/PID/mountinfo`: its fourth field is what of a file system is mounted.
fn trees_in(table: &str) -> impl Iterator<Item = &str> {
    let sources = table.lines().filter_map(|line| line.split(' ').nth(3));
    // The cache may lie below a directory of this name, and an image may have one.
    sources
        .flat_map(|source| source.split("/trees/").skip(1))
        .map(|rest| rest.split('/').next().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_found_in_tables_of_mounts() {
        let table = "22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw\n\
                     30 28 8:1 /var/tmp/situla-1/trees/sha256-aa / ro - ext4 /dev/sda1 rw\n\
                     31 30 8:1 /situla-1/trees/sha256-bb/etc /etc ro - ext4 /dev/sda1 rw\n\
                     32 30 8:1 /data/trees/oak/situla-1/trees/sha256-cc/trees/x / ro - ext4 /dev/sda1 rw\n\
                     short\n";
        let found: Vec<_> = trees_in(table).collect();
        assert_eq!(found, ["sha256-aa", "sha256-bb", "oak", "sha256-cc", "x"]);
    }
}
