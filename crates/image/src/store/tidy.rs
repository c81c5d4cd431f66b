//! Looking through a store: what there is and when it was used, what is damaged, and removing it.
//!
//! An image is removed in steps that a crash may interrupt anywhere: it is moved out of its place, so that no run
//! finds it any more, then marks of runs are looked for once more, then it goes. While that happens its lease is
//! held, so that nobody makes it meanwhile. Between the two steps it has a name of its own, under which nothing is
//! swept unseen: whoever gets the lease next puts it back, since a run may have begun in between.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use situla_oci::{Digest, Reference};

use super::lease::{Lease, holders, try_take};
use super::records::{list_dir, remove_file};
use super::shelf::{manifest_of, stem};
use super::uses::{ABANDONED_AFTER, User, Uses};
use super::{Store, StoreError, StoredImage};
use crate::convert::hash_telling;
use crate::file_error::FileError;
use crate::key::Recipe;
use crate::output::temporary_name;
use crate::progress::Progress;

/// How long an image of a shared store stays out of its place before it is removed: nobody leaves marks there, and
/// the jobs of any node may run from it. So each is held to be in use for as long as a mark of another machine counts.
const RETIRED_FOR: Duration = ABANDONED_AFTER;

/// The end of the name of a retired image.
const RETIRED: &str = "retired";

/// The end of the name of an image that was taken out of its place, before its marks were looked for again.
const LEAVING: &str = "leaving";

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
    pub fn verify(&self, image: &StoredImage, progress: &dyn Progress) -> Result<bool, StoreError> {
        let failed = || FileError::read(&image.path);
        let file = File::open(&image.path).map_err(failed())?;
        let (digest, bytes) = hash_telling(&file, 0, u64::MAX, progress).map_err(failed())?;
        let stored = image.sif_digest.as_ref().unwrap_or(&image.rootfs_digest);
        Ok(digest == *stored && bytes == image.bytes)
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
        let away = self.take_out(image)?;
        // Where that cannot be told it goes back as well.
        let again = if force { Ok(false) } else { is_used() };
        if !matches!(again, Ok(false)) {
            // A run has begun between the two looks. One that has missed it meanwhile has it made anew.
            match fs::rename(&away, &image.path) {
                // It was gone before.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(FileError::write(&image.path))?,
            }
            return again.map(|_| false);
        }
        // Without its record nobody would put it back.
        remove_file(&image.path.with_extension("json"))?;
        if self.is_shared() && !force {
            let retired = self.own.dir.join("tmp").join(temporary_name(&stem, RETIRED));
            match fs::rename(&away, &retired) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(FileError::write(&retired))?,
            }
        } else {
            remove_file(&away)?;
        }
        remove_file(&self.own.dir.join("uses").join(&stem))?;
        self.forget_refs(&image.manifest_digest)?;
        Ok(true)
    }

    fn try_lease(&self, image: &StoredImage) -> Result<Option<Lease>, StoreError> {
        // By the name of its files, which an earlier version may have chosen: what is in `tmp` is judged by that.
        try_take(self, stem_of(image), &image.manifest_digest, &image.recipe)
    }

    /// Takes an image out of its place; tells where it is now.
    fn take_out(&self, image: &StoredImage) -> Result<PathBuf, StoreError> {
        let away = self.own.dir.join("tmp").join(temporary_name(&stem_of(image), LEAVING));
        match fs::rename(&image.path, &away) {
            // Somebody else was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(away),
            other => Ok(other.map(|()| away).map_err(FileError::write(&image.path))?),
        }
    }

    /// Puts back what a crash has left on its way out; the caller has the lease of `stem`. What cannot go back,
    /// because its place is taken or its record is gone, is removed unless a run may be using it.
    pub(super) fn settle_leaving(&self, stem: &str) -> Result<(), StoreError> {
        let tmp = self.own.dir.join("tmp");
        for name in list_dir(&tmp)?.iter().filter(|name| is_leaving(name) && stem_in(name) == stem) {
            let (away, place) = (tmp.join(name), self.own.image_path(stem));
            if place.with_extension("json").exists() && !place.exists() {
                match fs::hard_link(&away, &place) {
                    Ok(()) => {
                        remove_file(&away)?;
                        continue;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    // There are file systems without hard links. The lease keeps others from making the image.
                    Err(_) => {
                        fs::rename(&away, &place).map_err(FileError::write(&place))?;
                        continue;
                    }
                }
            }
            if self.is_shared() {
                let retired = tmp.join(temporary_name(stem, RETIRED));
                fs::rename(&away, &retired).map_err(FileError::write(&retired))?;
            } else if !Uses::read(&self.own.dir)?.users.contains_key(stem) {
                remove_file(&away)?;
            }
        }
        Ok(())
    }

    /// Settles all that crashes have left on its way out and nobody is at work on.
    fn settle_all_leaving(&self) -> Result<(), StoreError> {
        let names = list_dir(&self.own.dir.join("tmp"))?;
        let stems: BTreeSet<&str> =
            names.iter().filter(|name| is_leaving(name)).map(|n| stem_in(n)).collect();
        for stem in stems {
            let Some(manifest) = manifest_of(stem) else { continue };
            // Nothing is made under this lease, so the recipe does not matter.
            let lease = try_take(self, stem.to_owned(), &manifest, &Recipe::unwritten())?;
            if lease.is_some() {
                self.settle_leaving(stem)?;
            }
        }
        Ok(())
    }

    /// Removes what killed processes of this machine were making, and their leases; nobody's work is waited for. Gives the
    /// processes that are at work.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn remove_abandoned(&self) -> Result<Vec<u32>, StoreError> {
        if !self.own.leases().is_dir() {
            return Ok(Vec::new());
        }
        self.expect_private()?;
        let (dead, alive) = holders(self)?;
        for stem in dead {
            let Some(manifest) = manifest_of(&stem) else { continue };
            // Nothing is made under this lease, so the recipe does not matter.
            let Some(_lease) = try_take(self, stem.clone(), &manifest, &Recipe::unwritten())? else {
                continue;
            };
            self.settle_leaving(&stem)?;
            self.remove_leftovers(Some(&stem))?;
            let image = self.own.image_path(&stem);
            // Where that cannot be told it stays.
            if matches!(image.try_exists(), Ok(false)) {
                // It is written before the image.
                remove_file(&image.with_extension("json"))?;
            }
        }
        Ok(alive)
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
        if !dry_run {
            self.settle_all_leaving()?;
        }
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

/// Whether this is the name of an image that is kept though it is not in its place.
pub(super) fn is_kept(name: &str) -> bool {
    is_retired(name) || is_leaving(name)
}

fn is_retired(name: &str) -> bool {
    name.rsplit('.').next() == Some(RETIRED)
}

fn is_leaving(name: &str) -> bool {
    name.rsplit('.').next() == Some(LEAVING)
}

/// The stem in the name of a temporary file.
pub(super) fn stem_in(name: &str) -> &str {
    name.trim_start_matches('.').split('.').next().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::convert::ConvertOptions;
    use crate::process_identity::realm;
    use crate::store::{Acquired, Contents, StoreOptions, UseMark};

    fn open(dir: &Path) -> Store {
        Store::open(&dir.join("store"), None, StoreOptions::default()).unwrap()
    }

    fn put(store: &Store) -> StoredImage {
        let (manifest, recipe) = (Digest::sha256(b"m"), Recipe::of(&ConvertOptions::default()));
        let Acquired::Ours(lease) = store.acquire(&manifest, &recipe, &()).unwrap() else { panic!("empty") };
        let file = store.create_file(&lease, 5).unwrap();
        file.file().unwrap().write_all(b"image").unwrap();
        let contents = Contents { rootfs: Digest::sha256(b"image"), sif: None, bytes: 5 };
        store.publish(lease, file, &situla_oci::Platform::native(), contents).unwrap()
    }

    const ALL: StoreLimits = StoreLimits { bytes: Some(0), age: None };

    #[test]
    fn a_removal_that_was_killed_takes_no_image_from_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let (store, other) = (open(dir.path()), open(dir.path()));
        let image = put(&store);
        // Killed before the second look; meanwhile a run has begun, and somebody else makes an image.
        let away = store.take_out(&image).unwrap();
        let run = UseMark::make(&image.path).unwrap();
        other.remove_leftovers(None).unwrap();
        assert_eq!(fs::read(&away).unwrap(), b"image");
        let pruned = other.prune(&ALL, false).unwrap();
        assert_eq!((pruned.removed.len(), pruned.used.len()), (0, 1));
        assert_eq!(fs::read(&image.path).unwrap(), b"image");
        drop(run);
        // Without a run it goes all the same, also past the lease of the one that was killed.
        store.take_out(&image).unwrap();
        let (boot, namespace) = realm();
        let dead = serde_json::json!({
            "realm": format!("{boot} {namespace}"), "host": "here", "pid": std::process::id(), "started": 1, "serial": 0,
        });
        fs::write(store.lease_path(&stem_of(&image)), dead.to_string()).unwrap();
        assert_eq!(other.prune(&ALL, false).unwrap().removed.len(), 1);
        for part in ["images", "tmp", "leases"] {
            assert_eq!(list_dir(&dir.path().join("store").join(part)).unwrap(), [""; 0], "{part}");
        }
    }

    #[test]
    fn what_a_killed_process_was_making_goes_and_what_others_make_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        assert_eq!(store.remove_abandoned().unwrap(), [0; 0]);
        let (boot, namespace) = realm();
        let holder = |started: u64| {
            serde_json::json!({
                "realm": format!("{boot} {namespace}"), "host": "here", "pid": std::process::id(), "started": started,
                "serial": 0,
            })
        };
        let of = |bytes: &[u8]| Digest::sha256(bytes).file_stem();
        let part = |part: &str| list_dir(&dir.path().join("store").join(part)).unwrap();
        // Killed between the record and the image.
        let (dead, alive) = (of(b"dead"), of(b"alive"));
        for (stem, started) in
            [(&dead, 1), (&alive, crate::process_identity::start_time(std::process::id()).unwrap())]
        {
            fs::write(store.lease_path(stem), holder(started).to_string()).unwrap();
            fs::write(store.own.image_path(stem).with_extension("json"), "{}").unwrap();
            fs::write(dir.path().join("store/tmp").join(format!(".{stem}.1.0.part")), "half").unwrap();
        }
        assert_eq!(store.remove_abandoned().unwrap(), [std::process::id()]);
        assert_eq!(part("leases"), [format!("{alive}.lease")]);
        assert_eq!(part("images"), [format!("{alive}.json")]);
        assert_eq!(part("tmp"), [format!(".{alive}.1.0.part")]);
        // Neither a pipe in the place of a lease nor a directory that leads elsewhere is taken for what it is called.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            store.lease_path(&of(b"pipe")),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(store.remove_abandoned().unwrap(), [std::process::id()]);
        remove_file(&store.lease_path(&of(b"pipe"))).unwrap();
        let (tmp, elsewhere) = (dir.path().join("store/tmp"), dir.path().join("elsewhere"));
        fs::rename(&tmp, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &tmp).unwrap();
        let refused = store.remove_abandoned().unwrap_err();
        assert!(matches!(refused, StoreError::NotPrivate { .. }), "{refused}");
        fs::remove_file(&tmp).unwrap();
        fs::rename(&elsewhere, &tmp).unwrap();
        // An image that was published is not taken away with its maker's lease.
        let image = put(&store);
        fs::write(store.lease_path(&stem_of(&image)), holder(1).to_string()).unwrap();
        store.remove_abandoned().unwrap();
        assert_eq!(store.get(&image.manifest_digest, &image.recipe).unwrap().unwrap().path, image.path);
        assert_eq!(part("leases"), [format!("{alive}.lease")]);
    }

    #[test]
    fn whoever_wants_an_image_on_its_way_out_has_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let image = put(&store);
        store.take_out(&image).unwrap();
        let acquired = store.acquire(&image.manifest_digest, &image.recipe, &()).unwrap();
        let Acquired::Present(back) = acquired else { panic!("it is there") };
        assert_eq!((back.path, fs::read(&image.path).unwrap()), (image.path.clone(), b"image".to_vec()));
        // Where it was made anew the old one stays as long as somebody may read it.
        let away = store.take_out(&image).unwrap();
        fs::write(&image.path, b"image").unwrap();
        let run = UseMark::make(&image.path).unwrap();
        store.prune(&StoreLimits::default(), false).unwrap();
        assert!(away.exists());
        drop(run);
        store.prune(&StoreLimits::default(), false).unwrap();
        assert!(!away.exists() && image.path.exists());
    }

    #[test]
    fn an_image_is_leased_by_the_name_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let image = put(&store);
        // As the first version of the store has named it.
        let stem = image.manifest_digest.file_stem();
        let old = store.own.image_path(&stem);
        fs::rename(&image.path, &old).unwrap();
        let record = serde_json::json!({
            "version": 1, "manifest": image.manifest_digest, "rootfs": image.rootfs_digest, "bytes": image.bytes,
        });
        fs::write(old.with_extension("json"), record.to_string()).unwrap();
        remove_file(&image.path.with_extension("json")).unwrap();
        let image = store.list().unwrap().remove(0);
        assert_eq!(image.path, old);
        let lease = try_take(&store, stem, &image.manifest_digest, &image.recipe).unwrap().unwrap();
        assert!(!store.remove(&image, false).unwrap(), "somebody is at work on it");
        drop(lease);
        assert!(store.remove(&image, false).unwrap());
    }
}
