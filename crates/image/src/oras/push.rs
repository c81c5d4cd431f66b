//! A SIF file into a registry, as it is.

use situla_oci::{Descriptor, Digest, SIF_CONFIG, SIF_LAYER};

use super::{SifTransferError, TITLE};
use crate::client::Client;
use crate::convert::hash_telling;
use crate::file_error::FileError;
use crate::image_file::ImageFile;
use crate::inspect::FileKind;
use crate::progress::{Event, Progress};
use crate::push::{From, PushError, PushTarget, Pushed, Sending, send_all, summed};
use crate::source::{MANIFEST_TYPE, descriptor, manifest_bytes};

/// The configuration of an artifact that needs none.
const NO_CONFIG: &[u8] = b"{}";

/// Pushes a SIF file as it is; the registry is told that it is called `title`.
///
/// # Errors
/// When the file is no SIF or cannot be read, or the registry does not take it.
pub fn push_sif(
    client: &Client,
    input: &ImageFile,
    title: &str,
    target: &PushTarget,
    progress: &dyn Progress,
) -> Result<Pushed, SifTransferError> {
    let (name, file) = (input.name(), input.file());
    if !matches!(input.kind(), Ok(FileKind::Sif)) {
        return Err(SifTransferError::NoSifFile { path: name.to_owned() });
    }
    progress.event(Event::ToRead { bytes: file.metadata().map_err(FileError::read(name))?.len() });
    let (digest, size) = hash_telling(file, 0, u64::MAX, progress).map_err(FileError::read(name))?;
    let config = descriptor(SIF_CONFIG, Digest::sha256(NO_CONFIG), NO_CONFIG.len() as u64);
    let annotations = Some([(TITLE.to_owned(), title.to_owned())].into());
    let layer = Descriptor { annotations, ..descriptor(SIF_LAYER, digest, size) };
    let manifest = manifest_bytes(&config, std::slice::from_ref(&layer));
    let manifest_digest = Digest::sha256(&manifest);
    progress.event(Event::Resolved { manifest: manifest_digest.clone(), n_layers: 1, bytes: size });
    let destination = client.destination(&target.route, None);
    let all = [
        Sending::new(From::File(file), &layer, name.display().to_string(), vec![0], progress),
        Sending::new(From::Memory(NO_CONFIG), &config, "the configuration".to_owned(), Vec::new(), progress),
    ];
    let pushed = || {
        let arrivals = send_all(&destination, &all)?;
        destination.put_manifest(target.tag.as_str(), MANIFEST_TYPE, &manifest, &manifest_digest)?;
        Ok(arrivals)
    };
    let arrivals = pushed().map_err(|error| SifTransferError::Push(PushError::at(target)(error)))?;
    Ok(summed(manifest_digest, 1, &all, &arrivals))
}
