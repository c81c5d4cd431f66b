//! Looking through a store: what there is and when it was used, what is damaged, and removing it.
//!
//! An image is removed in steps that a crash may interrupt anywhere: it is moved out of its place, so that no run
//! finds it any more, then marks of runs are looked for once more, then it goes. While that happens its lease is
//! held, so that nobody makes it meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use situla_oci::{Digest, Reference};

use super::lease::try_create;
use super::records::{list_dir, remove_file};
use super::shelf::{manifest_of, stem};
use super::uses::{User, Uses};
use super::{Store, StoreError, StoredImage};
use crate::convert::hash_from;
use crate::file_error::FileError;
use crate::output::temporary_name;

/// How long an image of a shared store stays out of its place before it is removed: nobody leaves marks there, and
/// the jobs of any node may run from it.
const RETIRED_FOR: Duration = Duration::from_secs(30 * 86400);

/// The end of the name of a retired image.
const RETIRED: &str = "retired";

/// Longer than an image takes to be published, between its record and itself.
const BEING_PUBLISHED: Duration = Duration::from_secs(3600);

/// An image, and what is known about its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreEntry {
    /// The image.
    pub image: StoredImage,
    /// References that mean it.
    pub references: Vec<Reference>,
    /// When it was used last, or made; not known of the site's images.
    pub last_used: Option<SystemTime>,
    /// Who may be using it.
    pub users: Vec<User>,
}

/// What may stay in a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of all images together; those that were not used for the longest time go first.
    pub bytes: Option<u64>,
    /// Time since the last use.
    pub age: Option<Duration>,
}

/// What pruning has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorePruned {
    /// Images that were removed.
    pub removed: Vec<StoreEntry>,
    /// Images that would have gone, but are in use.
    pub used: Vec<StoreEntry>,
    /// Bytes of those that stay.
    pub bytes_left: u64,
    /// Bytes of images of a shared store that are out of their place and not removed yet.
    pub bytes_retired: u64,
}

impl Store {
    /// Lists the images of all stores with their use, the one that was used last at the end.
    ///
    /// # Errors
    /// A store cannot be read.
    pub fn entries(&self) -> Result<Vec<StoreEntry>, StoreError> {
        Ok(self.used_entries()?.0)
    }

    fn used_entries(&self) -> Result<(Vec<StoreEntry>, Uses), StoreError> {
        let refs = self.list_refs()?;
        let is_readable = self.own.dir.join("uses").is_dir();
        let uses = if is_readable { Uses::read(&self.own.dir)? } else { Uses::default() };
        let mut entries: Vec<StoreEntry> = Vec::new();
        for image in self.list()? {
            let stem = stem_of(&image);
            let references = refs.iter().filter(|(_, manifest)| *manifest == image.manifest_digest);
            let references = references.map(|(reference, _)| reference.clone()).collect();
            let is_own = image.path.starts_with(&self.own.dir);
            let last = uses.last.get(&stem).copied().max(image.made).filter(|_| is_own);
            let users = uses.users.get(&stem).filter(|_| is_own).cloned().unwrap_or_default();
            entries.push(StoreEntry { image, references, last_used: last, users });
        }
        entries.sort_by(|a, b| (a.last_used, &a.image.path).cmp(&(b.last_used, &b.image.path)));
        Ok((entries, uses))
    }

    /// Whether an image holds the bytes that were stored; reads all of it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn verify(&self, image: &StoredImage) -> Result<bool, StoreError> {
        let failed = || FileError::read(&image.path);
        let file = File::open(&image.path).map_err(failed())?;
        let (digest, bytes) = hash_from(&file, 0).map_err(failed())?;
        Ok(digest == image.rootfs_digest && bytes == image.bytes)
    }

    /// Removes an image of the store itself and, if it was the last of its manifest, what references meant it. False
    /// where it is in use; `force` removes it nevertheless, and a job of another machine may fail then.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, image: &StoredImage, force: bool) -> Result<bool, StoreError> {
        let stem = stem_of(image);
        // Somebody makes it, and it is about to be used.
        let Some(_lease) = self.try_lease(image)? else { return Ok(false) };
        let is_used = || Uses::read(&self.own.dir).map(|uses| uses.users.contains_key(&stem));
        if !force && is_used()? {
            return Ok(false);
        }
        let suffix = if self.is_shared() && !force { RETIRED } else { "tmp" };
        let away = self.own.dir.join("tmp").join(temporary_name(&stem, suffix));
        match fs::rename(&image.path, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(FileError::write(&image.path))?,
        }
        // Where that cannot be told it goes back as well.
        let again = if force { Ok(false) } else { is_used() };
        if !matches!(again, Ok(false)) {
            // A run has begun between the two looks. One that has missed it meanwhile has it made anew.
            fs::rename(&away, &image.path).map_err(FileError::write(&image.path))?;
            return again.map(|_| false);
        }
        if suffix != RETIRED {
            remove_file(&away)?;
        }
        remove_file(&image.path.with_extension("json"))?;
        remove_file(&self.own.dir.join("uses").join(&stem))?;
        self.forget_refs(&image.manifest_digest)?;
        Ok(true)
    }

    fn try_lease(&self, image: &StoredImage) -> Result<Option<super::Lease>, StoreError> {
        try_create(self, &image.manifest_digest, &image.recipe)
    }

    /// Removes what references meant a manifest of which there is no image.
    fn forget_refs(&self, manifest: &Digest) -> Result<(), StoreError> {
        for shelf in self.shelves() {
            if !shelf.of_manifest(manifest)?.is_empty() {
                return Ok(());
            }
        }
        for (path, _, meant) in self.own.refs()? {
            if meant == *manifest {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Removes images that are beyond the limits and not in use, and what killed processes have left. The site's images
    /// stay, unless this is the site's store. With `dry_run` nothing is changed.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn prune(&self, limits: &StoreLimits, dry_run: bool) -> Result<StorePruned, StoreError> {
        let mut pruned = StorePruned::default();
        let (mut entries, uses) = self.used_entries()?;
        entries.retain(|entry| entry.image.path.starts_with(&self.own.dir));
        let now = uses.now.unwrap_or_else(SystemTime::now);
        let mut bytes: u64 = entries.iter().map(|entry| entry.image.bytes).fold(0, u64::saturating_add);
        // The list begins with what was not used for the longest time.
        for entry in entries {
            let unused_for =
                entry.last_used.and_then(|last| now.duration_since(last).ok()).unwrap_or_default();
            let is_old = limits.age.is_some_and(|age| unused_for > age);
            let is_too_much = limits.bytes.is_some_and(|limit| bytes > limit);
            if !is_old && !is_too_much {
                continue;
            }
            let goes = if dry_run { entry.users.is_empty() } else { self.remove(&entry.image, false)? };
            if goes {
                bytes = bytes.saturating_sub(entry.image.bytes);
                pruned.removed.push(entry);
            } else {
                pruned.used.push(entry);
            }
        }
        pruned.bytes_left = bytes;
        pruned.bytes_retired = self.sweep(&uses, now, dry_run)?;
        Ok(pruned)
    }

    /// Removes what belongs to no image; gives the bytes of retired images that have to stay.
    fn sweep(&self, uses: &Uses, now: SystemTime, dry_run: bool) -> Result<u64, StoreError> {
        let mut retired = 0_u64;
        let tmp = self.own.dir.join("tmp");
        for name in list_dir(&tmp)?.iter().filter(|name| is_retired(name)) {
            let path = tmp.join(name);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            // Its removal from its place was the last change of the inode; its content keeps its time.
            let since = u64::try_from(metadata.ctime()).unwrap_or_default();
            let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)).unwrap_or(now);
            if now.duration_since(since).unwrap_or_default() > RETIRED_FOR && !dry_run {
                remove_file(&path)?;
            } else {
                retired = retired.saturating_add(metadata.len());
            }
        }
        if dry_run {
            return Ok(retired);
        }
        self.remove_leftovers(None)?;
        for path in &uses.dead {
            remove_file(path)?;
        }
        let present: BTreeSet<String> = self.own.list()?.iter().map(stem_of).collect();
        for stem in uses.last.keys().filter(|stem| !present.contains(*stem)) {
            remove_file(&self.own.dir.join("uses").join(stem))?;
        }
        self.remove_incomplete(&present, now)?;
        let meant: BTreeSet<Digest> = self.list()?.into_iter().map(|image| image.manifest_digest).collect();
        for (path, _, manifest) in self.own.refs()? {
            // One of the last hour may be of an image that is about to be seen.
            if !meant.contains(&manifest) && age_of(&path, now).is_some_and(|age| age > BEING_PUBLISHED) {
                remove_file(&path)?;
            }
        }
        Ok(retired)
    }

    /// Removes images without a record that agrees with them, and records without an image.
    fn remove_incomplete(&self, present: &BTreeSet<String>, now: SystemTime) -> Result<(), StoreError> {
        let images = self.own.images();
        for name in list_dir(&images)? {
            let path = images.join(&name);
            let stem = name.split('.').next().unwrap_or_default();
            if present.contains(stem) || manifest_of(stem).is_none() || self.lease_path(stem).exists() {
                continue;
            }
            if age_of(&path, now).is_some_and(|age| age > BEING_PUBLISHED) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether this is the name of a retired image.
pub(super) fn is_retired(name: &str) -> bool {
    name.rsplit('.').next() == Some(RETIRED)
}

fn age_of(path: &Path, now: SystemTime) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Some(now.duration_since(modified).unwrap_or_default())
}

/// The stem of an image's file, whatever version of the store has named it.
fn stem_of(image: &StoredImage) -> String {
    let named = image.path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    named.unwrap_or_else(|| stem(&image.manifest_digest, &image.recipe))
}
