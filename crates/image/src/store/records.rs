//! The small files of a store, and names in its directories.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use situla_oci::{Digest, Reference};

use super::StoreError;
use crate::file_error::FileError;
use crate::key::Recipe;
use crate::output::write_atomically;

/// Version of records that are written. Version 1 had no recipe.
pub(super) const RECORD_VERSION: u32 = 2;
/// Version of what references meant: unchanged since the first.
pub(super) const REF_VERSION: u32 = 1;
/// Largest record read.
const MAX_RECORD: u64 = 64 * 1024;
/// The most names that are read of a directory: more than any store has, and little enough to be kept in memory.
const MAX_NAMES: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) version: u32,
    pub(super) manifest: Digest,
    #[serde(default)]
    pub(super) recipe: Option<Recipe>,
    pub(super) rootfs: Digest,
    pub(super) bytes: u64,
    /// Of a SIF file, whose root file system is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sif: Option<Digest>,
    /// Operating system and architecture for which it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RefRecord {
    pub(super) version: u32,
    pub(super) reference: Reference,
    pub(super) platform: String,
    pub(super) manifest: Digest,
}

/// The names in a directory, none where it is not there.
pub(super) fn list_dir(path: &Path) -> Result<Vec<String>, StoreError> {
    let failed = || FileError::read(path);
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_NAMES) {
        // Names that are no text are not ours.
        if let Ok(name) = entry.map_err(failed())?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads a record; `None` if it is missing or no record of ours.
pub(super) fn read_record<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    let failed = || FileError::read(path);
    let mut bytes = Vec::new();
    // A pipe that somebody has put there must not hold anybody up.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    match fs::File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) if !file.metadata().is_ok_and(|metadata| metadata.is_file()) => return Ok(None),
        Ok(file) => {
            io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut bytes).map_err(failed())?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed()(e).into()),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}

pub(super) fn write_record(path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).map_err(io::Error::other);
    let written = bytes.and_then(|bytes| write_atomically(path, &bytes));
    Ok(written.map_err(FileError::write(path))?)
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::write(path)(e).into()),
        _ => Ok(()),
    }
}
