//! SIF files in registries, as Apptainer and Singularity push and pull them by `oras://`: an artifact with an empty
//! configuration and the file as its one layer. The file stays as it is, with its signatures.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use situla_oci::{
    Descriptor, Digest, Document, MAX_INDEX_DEPTH, Platform, Reference, SIF_CONFIG, SIF_LAYER, is_sif_layer,
};
use thiserror::Error;

use crate::client::{Client, ClientError};
use crate::convert::ConvertOptions;
use crate::convert::{
    ConvertError, create_output, existing, hash_telling, let_readers_execute, refuse_existing,
};
use crate::file_error::FileError;
use crate::inspect::{FileKind, kind_of};
use crate::progress::{Event, Progress};
use crate::push::{From, PushError, PushTarget, Pushed, Sending, send_all, summed};
use crate::source::{MANIFEST_TYPE, ResolveError, descriptor, manifest_bytes};
use crate::verify::VerifiedReader;

/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";
/// The configuration of an artifact that needs none.
const NO_CONFIG: &[u8] = b"{}";

/// A SIF file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledSif {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Digest of the file.
    pub file_digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why a SIF file was not fetched or pushed.
#[derive(Debug, Error)]
pub enum SifTransferError {
    /// The registry does not deliver.
    #[error("cannot pull '{reference}'")]
    Registry {
        /// The reference.
        reference: Box<Reference>,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// The reference does not lead to a usable artifact.
    #[error("cannot pull '{reference}'")]
    Resolve {
        /// The reference.
        reference: Box<Reference>,
        /// The cause.
        #[source]
        source: ResolveError,
    },
    /// The reference leads to something else.
    #[error("'{reference}' is no SIF file, but {what}")]
    NotASif {
        /// The reference.
        reference: Box<Reference>,
        /// What it is.
        what: &'static str,
    },
    /// The file does not arrive, or is not what was promised.
    #[error("cannot fetch '{reference}'")]
    Copy {
        /// The reference.
        reference: Box<Reference>,
        /// The cause; a failed verification or request is inside.
        #[source]
        source: io::Error,
    },
    /// The file to be pushed is no SIF.
    #[error("'{}' is no SIF file", path.display())]
    NoSifFile {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(ConvertError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(PushError),
}

impl<E: Into<ConvertError>> std::convert::From<E> for SifTransferError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// Pushes a SIF file as it is.
///
/// # Errors
/// When the file is no SIF or cannot be read, or the registry does not take it.
pub fn push_sif(
    client: &Client,
    path: &Path,
    target: &PushTarget,
    progress: &dyn Progress,
) -> Result<Pushed, SifTransferError> {
    let file = File::open(path).map_err(FileError::read(path))?;
    if !matches!(kind_of(path, &file), Ok(FileKind::Sif)) {
        return Err(SifTransferError::NoSifFile { path: path.to_owned() });
    }
    progress.event(Event::ToRead { bytes: file.metadata().map_err(FileError::read(path))?.len() });
    let (digest, size) = hash_telling(&file, 0, u64::MAX, progress).map_err(FileError::read(path))?;
    let config = descriptor(SIF_CONFIG, Digest::sha256(NO_CONFIG), NO_CONFIG.len() as u64);
    // The name alone: others need not know where it lay.
    let title = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let annotations = Some([(TITLE.to_owned(), title)].into());
    let layer = Descriptor { annotations, ..descriptor(SIF_LAYER, digest, size) };
    let manifest = manifest_bytes(&config, std::slice::from_ref(&layer));
    let manifest_digest = Digest::sha256(&manifest);
    progress.event(Event::Resolved { manifest: manifest_digest.clone(), n_layers: 1, bytes: size });
    let destination = client.destination(&target.route, None);
    let all = [
        Sending::new(From::File(&file), &layer, path.display().to_string(), vec![0], progress),
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

/// Fetches a SIF file and writes it to `out`, as it is.
///
/// # Errors
/// When it cannot be had, is no SIF or not what its digest promises, or `out` cannot be written.
pub fn pull_sif(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    out: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<PulledSif, SifTransferError> {
    refuse_existing(out, options)?;
    let (manifest_digest, layer) = find_sif(client, reference, platform)?;
    let manifest = manifest_digest.clone();
    progress.event(Event::Resolved { manifest, n_layers: 1, bytes: layer.size });
    let pending = create_output(out, existing(options))?;
    let mut file = pending.file().map_err(FileError::write(out))?;
    let blob = client.open_blob(reference, &layer, "the SIF file");
    let registry = |source| SifTransferError::Registry { reference: Box::new(reference.clone()), source };
    let mut verified = VerifiedReader::new("the SIF file", &layer, blob.map_err(registry)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = verified.read(&mut buffer);
        let copy = |source| SifTransferError::Copy { reference: Box::new(reference.clone()), source };
        match read.map_err(copy)? {
            0 => break,
            n => {
                file.write_all(&buffer[..n]).map_err(FileError::write(out))?;
                progress.event(Event::Fetched { layer_idx: 0, bytes: n as u64 });
            }
        }
    }
    let what = "a file of another kind that is called one";
    if !matches!(kind_of(out, &file), Ok(FileKind::Sif)) {
        return Err(SifTransferError::NotASif { reference: Box::new(reference.clone()), what });
    }
    progress.event(Event::LayerDone { layer_idx: 0 });
    let_readers_execute(&file).map_err(FileError::write(out))?;
    pending.publish(out, existing(options)).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => ConvertError::Exists { path: out.to_owned() },
        _ => FileError::write(out)(source).into(),
    })?;
    Ok(PulledSif { manifest_digest, file_digest: layer.digest, bytes: layer.size })
}

/// Finds the manifest of a SIF file and its layer. Some have an index over those of several architectures.
fn find_sif(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Digest, Descriptor), SifTransferError> {
    let named = || Box::new(reference.clone());
    let resolve = |source| SifTransferError::Resolve { reference: named(), source };
    let mut pinned = reference.clone();
    for _ in 0..MAX_INDEX_DEPTH {
        let fetched = client
            .fetch_manifest(&pinned)
            .map_err(|source| SifTransferError::Registry { reference: named(), source })?;
        let document = Document::parse(&fetched.bytes, fetched.content_type.as_deref())
            .map_err(|source| resolve(ResolveError::Manifest { digest: fetched.digest.clone(), source }))?;
        match document {
            Document::Manifest(mut manifest) => {
                let what = match manifest.layers.as_slice() {
                    [only] if is_sif_layer(&only.media_type) => {
                        return Ok((fetched.digest, manifest.layers.swap_remove(0)));
                    }
                    _ => "an image of layers, which docker:// fetches, or another artifact",
                };
                return Err(SifTransferError::NotASif { reference: named(), what });
            }
            Document::Index(index) => {
                let chosen = platform.select(&index);
                let chosen = chosen.map_err(|error| resolve(ResolveError::Platform(Box::new(error))))?;
                pinned = reference.with_digest(chosen.digest.clone());
            }
        }
    }
    Err(resolve(ResolveError::TooDeep))
}
