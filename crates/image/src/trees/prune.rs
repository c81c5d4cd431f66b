//! Removing trees that nobody uses.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::time::{Duration, SystemTime};

use super::{CachedTree, Locking, TreeCache, TreeError, names};
use crate::file_error::FileError;

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
        // Processes that have outlived the one with the lease; nobody can come anew while it is locked.
        if mounted_trees().contains(&name) {
            return Ok(false);
        }
        let away = self.directory.join("trees").join(format!(".removed.{name}.{}", std::process::id()));
        fs::rename(&tree.path, &away).map_err(FileError::write(&tree.path))?;
        let _ = fs::remove_file(self.record_path(&name));
        let _ = fs::remove_file(self.lock_path(&name));
        fs::remove_dir_all(&away).map_err(FileError::write(&away))?;
        Ok(true)
    }

    /// Goes on where somebody was killed while he removed a tree.
    fn remove_begun(&self) {
        let trees = self.directory.join("trees");
        for entry in fs::read_dir(&trees).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".removed.") {
                // Whoever removes it at the same time does the same.
                let _ = fs::remove_dir_all(entry.path());
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
    table.lines().filter_map(|line| {
        let (_, rest) = line.split(' ').nth(3)?.split_once("/trees/")?;
        Some(rest.split('/').next().unwrap_or(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_found_in_tables_of_mounts() {
        let table = "22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw\n\
                     30 28 8:1 /var/tmp/situla-1/trees/sha256-aa / ro - ext4 /dev/sda1 rw\n\
                     31 30 8:1 /situla-1/trees/sha256-bb/etc /etc ro - ext4 /dev/sda1 rw\n\
                     short\n";
        assert_eq!(trees_in(table).collect::<Vec<_>>(), ["sha256-aa", "sha256-bb"]);
    }
}
