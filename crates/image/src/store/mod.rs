//! Stores of converted images: the user's own, and one of the site that he can only read.
//!
//! `images/sha256-….sqsh` are the images, by manifest digest and recipe, and `images/sha256-….sif` those that are kept as they
//! came; a name there is complete. Beside each lies a small record. `refs/` maps reference and platform to a digest. `leases/` holds who is converting what, so
//! that one process of several works and the others wait. `uses/` holds who runs what. Opening a present image
//! takes no lock.

mod lease;
mod records;
mod room;
mod shelf;
mod tidy;
mod uses;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use situla_oci::{Digest, Platform, Reference};
use thiserror::Error;

pub use lease::Lease;
pub use room::RoomLeft;
pub(crate) use room::{least_size, require_of};
pub use tidy::{StoreEntry, StoreLimits, StorePruned};
pub use uses::{UseMark, User};

use crate::file_error::{Doing, FileError};
use crate::key::Recipe;
use crate::output::{Existing, PendingFile, make_directories};
use crate::progress::Progress;
use records::{ImageRecord, RECORD_VERSION, REF_VERSION, RefRecord, list_dir, read_record, write_record};
use shelf::{Shelf, manifest_of};

/// The directories of a store.
const DIRECTORIES: [&str; 5] = ["images", "refs", "leases", "tmp", "uses"];

/// Why the store failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Waiting for another process took too long.
    #[error("another process ({holder}) has been converting the image for over {} s", waited.as_secs())]
    Busy {
        /// Who holds the lease.
        holder: String,
        /// How long we waited.
        waited: Duration,
    },
    /// Others may look into the user's store, or exchange it, and that is not for this program to change.
    #[error("others may look into '{}' or change what is there", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// Everybody may write to the store of the site.
    #[error("everybody may write to '{}', the site's store of images", path.display())]
    OpenToAll {
        /// The directory.
        path: PathBuf,
    },
    /// The image is larger than what is left for it.
    #[error("'{}' has no room for the image: it takes about {needed} bytes, {left}", path.display())]
    NoRoom {
        /// The store.
        path: PathBuf,
        /// Estimate of what the image takes, in bytes.
        needed: u64,
        /// What there is.
        left: RoomLeft,
    },
}

/// Settings of a [`Store`].
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// A lease of another machine that shows no sign of life for this long is taken over. Holders give one
    /// every quarter of it.
    pub stale_after: Duration,
    /// Longest wait for another process.
    pub wait_limit: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { stale_after: Duration::from_secs(60), wait_limit: Duration::from_secs(3600) }
    }
}

/// A user's image store in a directory, and what he may read beside it.
#[derive(Debug, Clone)]
pub struct Store {
    own: Shelf,
    site: Option<Shelf>,
    options: StoreOptions,
}

/// In which store an image lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The user's own.
    Own,
    /// The site's, which its administrator fills and prunes.
    Site,
}

/// A complete image in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of the image manifest.
    pub manifest_digest: Digest,
    /// SHA-256 of the SquashFS.
    pub rootfs_digest: Digest,
    /// SHA-256 of the SIF file that the SquashFS is a part of, if it is.
    pub sif_digest: Option<Digest>,
    /// How it was made of the manifest.
    pub recipe: Recipe,
    /// The SquashFS or SIF file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// In which store it is.
    pub place: Place,
    /// When it was made, by the clock of the file system.
    pub made: Option<SystemTime>,
}

/// What is in a file that is to be published.
#[derive(Debug)]
pub(crate) struct Contents {
    /// SHA-256 of the SquashFS.
    pub(crate) rootfs: Digest,
    /// SHA-256 of the SIF file that the SquashFS is a part of, if it is.
    pub(crate) sif: Option<Digest>,
    /// Size of the file in bytes.
    pub(crate) bytes: u64,
}

/// Result of [`Store::acquire`].
#[derive(Debug)]
pub enum Acquired {
    /// The image is there.
    Present(StoredImage),
    /// The image is ours to make.
    Ours(Lease),
}

impl Store {
    /// Opens the store in `dir` for its owner, making what is missing, beside `site`, the store of the site, which need
    /// not be there on every machine and is only read.
    ///
    /// Nobody else may look into a user's store: images that were fetched with his credentials are for those who
    /// have such, too. If `dir` is the site's store its administrator opens it, to fill it for all.
    ///
    /// # Errors
    /// When a directory cannot be made, others may use it and that cannot be changed, or everybody may write to the
    /// site's store: an image there would be whose anybody wants it to be.
    pub fn open(dir: &Path, site: Option<&Path>, options: StoreOptions) -> Result<Self, StoreError> {
        let store = Self::look(dir, site, options)?;
        if !store.is_shared() && may_be_exchanged_below(dir)? {
            return Err(StoreError::NotPrivate { path: dir.to_owned() });
        }
        for path in DIRECTORIES.map(|name| dir.join(name)) {
            let failed = |source| FileError { doing: Doing::CreateDirectory, path: path.clone(), source };
            if !store.is_shared() {
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
                close_to_others(&path)?;
            } else if !path.is_dir() {
                make_directories(&path).map_err(failed)?;
                // Whatever the umask takes away: it is there for others.
                fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed)?;
            }
        }
        Ok(store)
    }

    /// The stores as they are, also where there is none: for reading.
    ///
    /// # Errors
    /// When everybody may write to the site's store.
    pub fn look(dir: &Path, site: Option<&Path>, options: StoreOptions) -> Result<Self, StoreError> {
        for path in
            site.into_iter().flat_map(|site| [site.to_owned(), site.join("images"), site.join("refs")])
        {
            if fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0) {
                return Err(StoreError::OpenToAll { path });
            }
        }
        let shelf = |dir: &Path, place| Shelf { dir: dir.to_owned(), place };
        let (own, site) = match site {
            Some(site) if is_same(site, dir) => (shelf(dir, Place::Site), None),
            site => (shelf(dir, Place::Own), site.map(|site| shelf(site, Place::Site))),
        };
        // An image in another user's store would be whatever he says it is.
        if own.place == Place::Own && fs::metadata(dir).is_ok_and(|metadata| !is_ours(&metadata)) {
            return Err(StoreError::NotPrivate { path: dir.to_owned() });
        }
        Ok(Self { own, site, options })
    }

    /// Fails where somebody else may have put other directories in the place of a user's own: what is removed there could be
    /// anything.
    fn expect_private(&self) -> Result<(), StoreError> {
        if self.is_shared() {
            return Ok(());
        }
        let is_private = |path: &PathBuf| match fs::symlink_metadata(path) {
            Ok(found) => found.is_dir() && is_ours(&found) && found.permissions().mode() & 0o022 == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let exchanged =
            DIRECTORIES.map(|name| self.own.dir.join(name)).into_iter().find(|path| !is_private(path));
        match exchanged {
            Some(path) => Err(StoreError::NotPrivate { path }),
            None if may_be_exchanged_below(&self.own.dir)? => {
                Err(StoreError::NotPrivate { path: self.own.dir.clone() })
            }
            None => Ok(()),
        }
    }

    /// Whether this is the site's store, in the hands of its administrator.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.own.place == Place::Site
    }

    fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        std::iter::once(&self.own).chain(&self.site)
    }

    /// Finds a complete image, in the user's own store first. Takes no lock.
    ///
    /// # Errors
    /// When the store cannot be read; a missing image is `None`.
    pub fn get(&self, manifest: &Digest, recipe: &Recipe) -> Result<Option<StoredImage>, StoreError> {
        self.shelves().find_map(|shelf| shelf.get(manifest, recipe).transpose()).transpose()
    }

    /// Returns what a reference meant when it was last pulled, by the user or for the site.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn lookup(&self, reference: &Reference, platform: &Platform) -> Result<Option<Digest>, StoreError> {
        self.shelves().find_map(|shelf| shelf.lookup(reference, platform).transpose()).transpose()
    }

    /// Remembers what a reference means.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn set_ref(
        &self,
        reference: &Reference,
        platform: &Platform,
        manifest: &Digest,
    ) -> Result<(), StoreError> {
        if self.own.lookup(reference, platform)?.as_ref() == Some(manifest) {
            // Most runs ask for what is there.
            return Ok(());
        }
        let record = RefRecord {
            version: REF_VERSION,
            reference: reference.clone(),
            platform: platform.to_string(),
            manifest: manifest.clone(),
        };
        write_record(&self.own.ref_path(reference, platform), &record)
    }

    /// Lists the complete images of all stores, sorted by digest.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        for shelf in self.shelves() {
            images.extend(shelf.list()?);
        }
        let key = |image: &StoredImage| (image.manifest_digest.clone(), image.place, image.path.clone());
        images.sort_by_key(key);
        Ok(images)
    }

    /// Lists what references meant, sorted by reference.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub fn list_refs(&self) -> Result<Vec<(Reference, Digest)>, StoreError> {
        let mut refs = Vec::new();
        for shelf in self.shelves() {
            refs.extend(shelf.refs()?.into_iter().map(|(_, reference, manifest)| (reference, manifest)));
        }
        refs.sort();
        refs.dedup();
        Ok(refs)
    }

    /// Waits until the image is there or is ours to make. What crashed processes left is removed.
    ///
    /// # Errors
    /// When the store fails, or another process takes too long.
    pub fn acquire(
        &self,
        manifest: &Digest,
        recipe: &Recipe,
        progress: &dyn Progress,
    ) -> Result<Acquired, StoreError> {
        lease::acquire(self, manifest, recipe, progress)
    }

    /// Takes away the lease of an image that is present, where its holder is known to be gone.
    pub(crate) fn forget_dead(&self, manifest: &Digest, recipe: &Recipe) -> Result<(), StoreError> {
        lease::forget_dead(self, manifest, recipe)
    }

    /// Starts a file for the holder of a lease. An image of about `needed` bytes must fit.
    pub(crate) fn create_file(&self, lease: &Lease, needed: u64) -> Result<PendingFile, StoreError> {
        let dir = self.own.dir.join("tmp");
        room::require(&dir, needed, None)?;
        let file = PendingFile::create(&dir, lease.stem()).map_err(FileError::write(&dir))?;
        let open = file.file().map_err(FileError::write(&dir))?;
        room::require(&dir, needed, Some(&open))?;
        Ok(file)
    }

    /// Publishes a finished file.
    pub(crate) fn publish(
        &self,
        lease: Lease,
        file: PendingFile,
        platform: &Platform,
        contents: Contents,
    ) -> Result<StoredImage, StoreError> {
        let (manifest, recipe) = (lease.manifest().clone(), *lease.recipe());
        let Contents { rootfs, sif, bytes } = contents;
        let path = self.own.image_path(lease.stem());
        let record = ImageRecord {
            version: RECORD_VERSION,
            manifest: manifest.clone(),
            recipe: Some(recipe),
            rootfs,
            bytes,
            sif,
            platform: Some(general(platform)),
        };
        // The record first: an image without one does not count.
        write_record(&path.with_extension("json"), &record)?;
        file.publish(&path, Existing::Replace).map_err(FileError::write(&path))?;
        drop(lease);
        let made = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let ImageRecord { rootfs: rootfs_digest, sif: sif_digest, .. } = record;
        let place = self.own.place;
        Ok(StoredImage {
            manifest_digest: manifest,
            rootfs_digest,
            sif_digest,
            recipe,
            path,
            bytes,
            place,
            made,
        })
    }

    /// Whether an image is known to be for a platform; the variant is a matter of its index.
    pub(crate) fn was_made_for(&self, image: &StoredImage, platform: &Platform) -> Result<bool, StoreError> {
        let record = read_record::<ImageRecord>(&image.path.with_extension("json"))?;
        Ok(record.and_then(|record| record.platform) == Some(general(platform)))
    }

    fn lease_path(&self, stem: &str) -> PathBuf {
        self.own.leases().join(format!("{stem}.lease"))
    }

    /// Removes temporary files without a living owner: they are made under a lease only, so one whose
    /// lease is gone was left by a crash. `ours` is the stem whose lease we just got.
    fn remove_leftovers(&self, ours: Option<&str>) -> Result<(), StoreError> {
        let tmp = self.own.dir.join("tmp");
        for name in list_dir(&tmp)? {
            let stem = tidy::stem_in(&name);
            // What is not ours stays, whoever has chosen a directory with other things in it as a store.
            if tidy::is_kept(&name) || manifest_of(stem).is_none() {
                continue;
            }
            if Some(stem) == ours || !self.lease_path(stem).exists() {
                // Its owner may remove it at the same time.
                let _ = fs::remove_file(tmp.join(&name));
            }
        }
        Ok(())
    }
}

/// Whether two paths lead to one directory: a store must not be taken for a user's own for the way to it.
fn is_same(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    a == b || matches!((id(a), id(b)), (Ok(a), Ok(b)) if a == b)
}

/// Whether something belongs to the user of this process.
fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

/// Takes from others what they may do with a directory.
fn close_to_others(path: &Path) -> Result<(), StoreError> {
    // Not through a link, and nothing of another user's: whoever has planted either would have us change what he likes.
    let metadata = fs::symlink_metadata(path).map_err(FileError::read(path))?;
    if !metadata.is_dir() || !is_ours(&metadata) {
        return Err(StoreError::NotPrivate { path: path.to_owned() });
    }
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(0o700)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(StoreError::NotPrivate { path: path.to_owned() })
        }
        Err(error) => Err(FileError::write(path)(error).into()),
    }
}

/// Whether others may put another directory in the place of one in `dir`, whatever the mode of that is.
fn may_be_exchanged_below(dir: &Path) -> Result<bool, StoreError> {
    let metadata = match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(FileError::read(dir))?,
    };
    let mode = metadata.permissions().mode();
    // In a sticky directory everybody has his own entries.
    Ok(mode & 0o022 != 0 && mode & 0o1000 == 0)
}

/// A platform without its variant.
fn general(platform: &Platform) -> String {
    format!("{}/{}", platform.os, platform.architecture)
}

/// Moves a directory of a store to another file system, so that nothing can be linked or renamed into it; `None`, and
/// a word about it, where there is no other one. It lasts as long as the result.
#[cfg(test)]
fn move_elsewhere(directory: &Path) -> Option<tempfile::TempDir> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let memory = Path::new("/dev/shm");
    let other = tempfile::tempdir_in(memory).ok().filter(|_| device(memory) != device(directory));
    if other.is_none() {
        assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "there is one file system");
        let _ = std::io::Write::write_all(&mut io::stderr(), b"skipped: there is one file system\n");
    }
    let other = other?;
    for entry in fs::read_dir(directory).ok()?.flatten() {
        fs::copy(entry.path(), other.path().join(entry.file_name())).ok()?;
    }
    fs::remove_dir_all(directory).ok()?;
    std::os::unix::fs::symlink(other.path(), directory).ok()?;
    Some(other)
}
