//! A SIF file out of a registry, as it is: to a file, or for whoever makes something else of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use situla_oci::{Digest, Platform, Reference};

use super::SifTransferError;
use super::found::FoundSif;
use crate::client::Client;
use crate::convert::{
    ConvertError, ConvertOptions, create_output, existing, let_readers_execute, refuse_existing,
};
use crate::file_error::FileError;
use crate::image_file::ImageFile;
use crate::inspect::{FileKind, kind_of};
use crate::output::PendingFile;
use crate::progress::{Event, Progress};
use crate::source::Scheme;
use crate::store::require_of;
use crate::verify::VerifiedReader;

/// A SIF file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSif {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Digest of the file.
    pub file_digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A SIF file that was fetched and has no name here.
#[derive(Debug)]
pub struct FetchedSif {
    /// What the file was called where it came from; else the last part of the reference.
    pub title: String,
    /// The file.
    pub file: ImageFile,
}

/// Fetches a SIF file and writes it to `out`, as it is.
///
/// # Errors
/// When it cannot be had, is no SIF or not what its digest promises, or `out` cannot be written.
pub fn save_sif(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    out: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<SavedSif, SifTransferError> {
    refuse_existing(out, options)?;
    let found = FoundSif::find(client, reference, platform)?;
    progress.event(found.event());
    let pending = create_output(out, existing(options))?;
    require_room(&found, &pending, out)?;
    let file = fetch_into(client, reference, &found, &pending, out, progress)?;
    let_readers_execute(&file).map_err(FileError::write(out))?;
    pending.publish(out, existing(options)).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => ConvertError::Exists { path: out.to_owned() },
        _ => FileError::write(out)(source).into(),
    })?;
    let FoundSif { manifest, layer } = found;
    Ok(SavedSif { manifest_digest: manifest, file_digest: layer.digest, bytes: layer.size })
}

/// Fetches a SIF file into one without a name in `scratch`, for whoever makes something else of it.
///
/// # Errors
/// As [`save_sif`].
pub fn fetch_sif(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<FetchedSif, SifTransferError> {
    let found = FoundSif::find(client, reference, platform)?;
    progress.event(found.event());
    let pending = PendingFile::create_scratch(scratch, "sif").map_err(FileError::write(scratch))?;
    require_room(&found, &pending, scratch)?;
    fetch_into(client, reference, &found, &pending, scratch, progress)?;
    let name = format!("{}{reference}", Scheme::Oras);
    let last = || reference.repository().as_str().rsplit('/').next().unwrap_or_default().to_owned();
    let title = found.title().map_or_else(last, str::to_owned);
    let file = ImageFile::fetched(name.into(), found.manifest, platform.clone(), pending)?;
    Ok(FetchedSif { title, file })
}

/// Fails before the first byte where the file cannot become as large as it will.
fn require_room(found: &FoundSif, pending: &PendingFile, place: &Path) -> Result<(), SifTransferError> {
    let file = pending.file().map_err(FileError::write(place))?;
    require_of(&file, place, found.layer.size).map_err(SifTransferError::Store)
}

/// Fetches the bytes, all of which are held against their digest; `place` is where `pending` lies.
pub(super) fn fetch_into(
    client: &Client,
    reference: &Reference,
    found: &FoundSif,
    pending: &PendingFile,
    place: &Path,
    progress: &dyn Progress,
) -> Result<File, SifTransferError> {
    let named = || Box::new(reference.clone());
    let mut file = pending.file().map_err(FileError::write(place))?;
    let blob = client.open_blob(reference, &found.layer, "the SIF file");
    let blob = blob.map_err(|source| SifTransferError::Registry { reference: named(), source })?;
    let mut verified = VerifiedReader::new("the SIF file", &found.layer, blob);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let copy = |source| SifTransferError::Copy { reference: named(), source };
        match verified.read(&mut buffer).map_err(copy)? {
            0 => break,
            n => {
                file.write_all(&buffer[..n]).map_err(FileError::write(place))?;
                progress.event(Event::Fetched { layer_idx: 0, bytes: n as u64 });
            }
        }
    }
    if !matches!(kind_of(place, &file), Ok(FileKind::Sif)) {
        let what = "a file of another kind that is called one";
        return Err(SifTransferError::NotASif { reference: named(), what });
    }
    progress.event(Event::LayerDone { layer_idx: 0 });
    Ok(file)
}
