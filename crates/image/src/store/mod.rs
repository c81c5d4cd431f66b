//! A user's image store: converted images by manifest digest, and which reference meant which.
//!
//! `images/sha256-….sqsh` are the images; a name there is complete. Beside each lies a small record.
//! `refs/` maps reference and platform to a digest. `leases/` holds who is converting what, so that one
//! process of several works and the others wait. Opening a present image takes no lock.

mod lease;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use situla_oci::{Digest, Platform, Reference};
use thiserror::Error;

pub use lease::Lease;

use crate::file_error::{Doing, FileError};
use crate::output::{Existing, PendingFile, write_atomically};
use crate::progress::Progress;

/// Version of the records in a store.
const RECORD_VERSION: u32 = 1;
/// Largest record read.
const MAX_RECORD: u64 = 64 * 1024;

/// Why the store failed.
#[derive(Debug, Error)]
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

/// An image store in a directory.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    options: StoreOptions,
}

/// A complete image in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of the image manifest.
    pub manifest_digest: Digest,
    /// SHA-256 of the file.
    pub rootfs_digest: Digest,
    /// The SquashFS file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ImageRecord {
    version: u32,
    manifest: Digest,
    rootfs: Digest,
    bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct RefRecord {
    version: u32,
    reference: Reference,
    platform: String,
    manifest: Digest,
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
    /// Opens the store in `dir`, making what is missing, readable by the owner only.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        for name in ["images", "refs", "leases", "tmp"] {
            let path = dir.join(name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| FileError { doing: Doing::CreateDirectory, path, source })?;
        }
        Ok(Self { dir: dir.to_owned(), options })
    }

    /// Finds a complete image. Takes no lock.
    ///
    /// # Errors
    /// When the store cannot be read; a missing image is `None`.
    pub fn get(&self, manifest: &Digest) -> Result<Option<StoredImage>, StoreError> {
        let path = self.image_path(manifest);
        let bytes = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::read(path)(source).into()),
        };
        // A missing, foreign or contradicting record means that the file is not what we published.
        let Some(record) = read_record::<ImageRecord>(&path.with_extension("json"))? else { return Ok(None) };
        if record.version != RECORD_VERSION || record.manifest != *manifest || record.bytes != bytes {
            return Ok(None);
        }
        Ok(Some(StoredImage { manifest_digest: record.manifest, rootfs_digest: record.rootfs, path, bytes }))
    }

    /// Returns what a reference meant when it was last pulled.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn lookup(&self, reference: &Reference, platform: &Platform) -> Result<Option<Digest>, StoreError> {
        let record = read_record::<RefRecord>(&self.ref_path(reference, platform))?;
        Ok(record
            .filter(|r| r.version == RECORD_VERSION && r.reference == *reference)
            .filter(|r| r.platform == platform.to_string())
            .map(|r| r.manifest))
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
        let record = RefRecord {
            version: RECORD_VERSION,
            reference: reference.clone(),
            platform: platform.to_string(),
            manifest: manifest.clone(),
        };
        write_record(&self.ref_path(reference, platform), &record)
    }

    /// Lists the complete images, sorted by digest.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        for name in list_dir(&self.dir.join("images"))? {
            let digest = name.strip_suffix(".sqsh").and_then(|stem| stem.replacen('-', ":", 1).parse().ok());
            if let Some(digest) = digest
                && let Some(image) = self.get(&digest)?
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| a.manifest_digest.cmp(&b.manifest_digest));
        Ok(images)
    }

    /// Lists what references meant, sorted by reference.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list_refs(&self) -> Result<Vec<(Reference, Digest)>, StoreError> {
        let mut refs = Vec::new();
        for name in list_dir(&self.dir.join("refs"))? {
            if let Some(record) = read_record::<RefRecord>(&self.dir.join("refs").join(name))? {
                refs.push((record.reference, record.manifest));
            }
        }
        refs.sort();
        Ok(refs)
    }

    /// Deletes an image. Whoever has it open keeps it.
    ///
    /// # Errors
    /// When it cannot be deleted; a missing one is no error.
    pub fn remove(&self, manifest: &Digest) -> Result<(), StoreError> {
        let path = self.image_path(manifest);
        for path in [path.clone(), path.with_extension("json")] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::write(path)(source).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until the image is there or is ours to make. What crashed processes left is removed.
    ///
    /// # Errors
    /// When the store fails, or another process takes too long.
    pub fn acquire(&self, manifest: &Digest, progress: &dyn Progress) -> Result<Acquired, StoreError> {
        let lease_path = self.dir.join("leases").join(format!("{}.lease", manifest.file_stem()));
        lease::acquire(self, manifest, &lease_path, progress)
    }

    /// Starts a file for the holder of a lease.
    pub(crate) fn create_file(&self, lease: &Lease) -> Result<PendingFile, StoreError> {
        let dir = self.dir.join("tmp");
        let file = PendingFile::create(&dir, &lease.manifest().file_stem());
        Ok(file.map_err(FileError::write(dir))?)
    }

    /// Publishes a finished file.
    pub(crate) fn publish(
        &self,
        lease: Lease,
        file: PendingFile,
        rootfs: Digest,
        bytes: u64,
    ) -> Result<StoredImage, StoreError> {
        let manifest = lease.manifest().clone();
        let path = self.image_path(&manifest);
        let record = ImageRecord { version: RECORD_VERSION, manifest: manifest.clone(), rootfs, bytes };
        // The record first: an image without one does not count.
        write_record(&path.with_extension("json"), &record)?;
        file.publish(&path, Existing::Replace).map_err(FileError::write(&path))?;
        drop(lease);
        Ok(StoredImage { manifest_digest: manifest, rootfs_digest: record.rootfs, path, bytes })
    }

    /// Removes temporary files without a living owner: they are made under a lease only, so one whose
    /// lease is gone was left by a crash. `ours` is the digest whose lease we just got.
    fn remove_leftovers(&self, ours: &Digest) -> Result<(), StoreError> {
        let tmp = self.dir.join("tmp");
        for name in list_dir(&tmp)? {
            let stem = name.trim_start_matches('.').split('.').next().unwrap_or_default();
            let lease = self.dir.join("leases").join(format!("{stem}.lease"));
            if stem == ours.file_stem() || !lease.exists() {
                // Its owner may remove it at the same time.
                let _ = fs::remove_file(tmp.join(&name));
            }
        }
        Ok(())
    }

    fn image_path(&self, manifest: &Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.sqsh", manifest.file_stem()))
    }

    fn ref_path(&self, reference: &Reference, platform: &Platform) -> PathBuf {
        let key = Digest::sha256(format!("{reference} {platform}").as_bytes());
        self.dir.join("refs").join(format!("{}.json", key.hex()))
    }
}

fn list_dir(path: &Path) -> Result<Vec<String>, StoreError> {
    let failed = || FileError::read(path);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed())? {
        // Names that are no text are not ours.
        if let Ok(name) = entry.map_err(failed())?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads a record; `None` if it is missing or no record of ours.
fn read_record<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    let failed = || FileError::read(path);
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => {
            io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut bytes).map_err(failed())?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed()(e).into()),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}

fn write_record(path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).map_err(io::Error::other);
    let written = bytes.and_then(|bytes| write_atomically(path, &bytes));
    Ok(written.map_err(FileError::write(path))?)
}
