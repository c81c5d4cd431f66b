//! Where images come from, and how a source becomes one verified manifest and configuration.

mod archive;
mod directory;
mod docker_archive;
mod layout;
mod name;
mod scheme;

use std::io::Read;

use situla_oci::{
    Descriptor, Digest, Document, ImageConfig, ImageConfigError, MAX_CONFIG_BYTES, MAX_INDEX_DEPTH,
    MAX_MANIFEST_BYTES, Manifest, ManifestError, Platform, PlatformError, is_sif_layer,
};
use thiserror::Error;

pub use archive::ArchiveError;
pub(crate) use directory::walk;
pub use directory::{DirectoryError, Owners};
pub(crate) use docker_archive::{
    CONFIG_TYPE, LAYER_TYPE, LIST_FILE, MANIFEST_TYPE, descriptor, manifest_bytes,
};
pub use docker_archive::{DockerArchiveError, DockerArchiveImage};
pub(crate) use layout::{INDEX_FILE, LAYOUT_FILE, REF_NAME, blob};
pub use layout::{LayoutError, LayoutImage};
pub use name::{Source, SourceNameError, Which};
pub(crate) use name::{split_name, which};
pub use scheme::Scheme;

use crate::client::ClientError;
use crate::flatten::LayerSource;
use crate::image_parts::ImageParts;
use crate::verify::{VerifiedReader, VerifyError};

/// A manifest or index as delivered.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// Exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// Media type the source said.
    pub content_type: Option<String>,
}

/// Why a source did not deliver.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A registry.
    #[error(transparent)]
    Registry(ClientError),
    /// A layout, in a directory or an archive.
    #[error(transparent)]
    Layout(LayoutError),
}

/// One image in a registry, a layout, an archive, …
pub trait ImageSource: LayerSource {
    /// Fetches the manifest or index that the image's name points to.
    ///
    /// # Errors
    /// When it cannot be had.
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError>;

    /// Fetches a manifest or index that an index lists; the caller checks its digest.
    ///
    /// # Errors
    /// When it cannot be had.
    fn fetch_child(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError>;

    /// Returns the descriptor of what [`ImageSource::fetch_top`] gives, if the source has one that the bytes
    /// must be checked against. (A registry's client checks by itself.)
    fn top_descriptor(&self) -> Option<&Descriptor> {
        None
    }
}

/// Why an image cannot be resolved.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The source did not deliver.
    #[error(transparent)]
    Source(SourceError),
    /// Bytes are not those promised.
    #[error("{0}")]
    Verify(Box<VerifyError>),
    /// A manifest is unusable.
    #[error("cannot use manifest {digest}")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// No manifest fits the platform.
    #[error(transparent)]
    Platform(Box<PlatformError>),
    /// A SIF file as an artifact.
    #[error("it is a SIF file, not an image of layers")]
    IsSif,
    /// Indexes within indexes without end.
    #[error("indexes are nested more than {MAX_INDEX_DEPTH} deep")]
    TooDeep,
    /// A manifest or configuration is announced larger than allowed.
    #[error("{what} of {size} bytes is too large")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Announced size.
        size: u64,
    },
    /// The configuration cannot be read from the source.
    #[error("cannot fetch the image configuration")]
    FetchConfig(#[source] std::io::Error),
    /// The configuration is unusable.
    #[error("cannot use image configuration {digest}")]
    Config {
        /// Its digest.
        digest: Digest,
        /// The cause.
        #[source]
        source: ImageConfigError,
    },
}

/// The verified manifest of an image: with it, it is known which image it is.
#[derive(Debug)]
pub(crate) struct FoundManifest {
    /// Its digest: the identity of the image.
    pub(crate) digest: Digest,
    /// What it says.
    pub(crate) manifest: Manifest,
    bytes: Vec<u8>,
}

impl FoundManifest {
    /// Fetches the configuration and looks whether it is for `platform`.
    pub(crate) fn complete(
        self,
        source: &dyn ImageSource,
        platform: &Platform,
    ) -> Result<ImageParts, ResolveError> {
        let (config_bytes, config) = fetch_config(source, &self.manifest.config)?;
        let actual = config.platform();
        let says_platform = !actual.os.is_empty() && !actual.architecture.is_empty();
        if says_platform && (actual.os != platform.os || actual.architecture != platform.architecture) {
            let error = PlatformError::NoMatch { wanted: platform.clone(), available: actual.to_string() };
            return Err(ResolveError::Platform(Box::new(error)));
        }
        let FoundManifest { digest, manifest, bytes } = self;
        Ok(ImageParts { digest, manifest_bytes: bytes, manifest, config_bytes, config })
    }
}

/// Finds the manifest for `platform` and its configuration, everything verified.
///
/// # Errors
/// When something cannot be had, is not what its digest says, or does not fit the platform.
pub fn resolve(source: &dyn ImageSource, platform: &Platform) -> Result<ImageParts, ResolveError> {
    find_manifest(source, platform)?.complete(source, platform)
}

/// Finds the manifest for `platform`. One that no index names may still be for another: its configuration says.
pub(crate) fn find_manifest(
    source: &dyn ImageSource,
    platform: &Platform,
) -> Result<FoundManifest, ResolveError> {
    let mut fetched = source.fetch_top().map_err(ResolveError::Source)?;
    if let Some(descriptor) = source.top_descriptor() {
        verify_manifest(descriptor, &fetched)?;
    }
    for _ in 0..MAX_INDEX_DEPTH {
        let document = Document::parse(&fetched.bytes, fetched.content_type.as_deref())
            .map_err(|source| ResolveError::Manifest { digest: fetched.digest.clone(), source })?;
        let index = match document {
            Document::Manifest(manifest) => {
                if manifest.layers.iter().any(|layer| is_sif_layer(&layer.media_type)) {
                    return Err(ResolveError::IsSif);
                }
                let FetchedManifest { bytes, digest, .. } = fetched;
                return Ok(FoundManifest { digest, manifest, bytes });
            }
            Document::Index(index) => index,
        };
        let chosen = platform.select(&index).map_err(|e| ResolveError::Platform(Box::new(e)))?;
        if chosen.size > MAX_MANIFEST_BYTES {
            return Err(ResolveError::TooLarge { what: "manifest", size: chosen.size });
        }
        fetched = source.fetch_child(chosen).map_err(ResolveError::Source)?;
        verify_manifest(chosen, &fetched)?;
        fetched.digest = chosen.digest.clone();
    }
    Err(ResolveError::TooDeep)
}

fn verify_manifest(descriptor: &Descriptor, fetched: &FetchedManifest) -> Result<(), ResolveError> {
    let what = format!("manifest {}", descriptor.digest);
    let mut verified = VerifiedReader::new(what, descriptor, fetched.bytes.as_slice());
    std::io::copy(&mut verified, &mut std::io::sink()).map(|_| ()).map_err(fetch_error)
}

fn fetch_error(error: std::io::Error) -> ResolveError {
    match VerifyError::in_io(&error) {
        Some(error) => ResolveError::Verify(Box::new(error.clone())),
        None => ResolveError::FetchConfig(error),
    }
}

fn fetch_config(
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<(Vec<u8>, ImageConfig), ResolveError> {
    if descriptor.size > MAX_CONFIG_BYTES {
        return Err(ResolveError::TooLarge { what: "image configuration", size: descriptor.size });
    }
    let what = format!("image configuration {}", descriptor.digest);
    let raw = source.open_layer(&what, descriptor).map_err(fetch_error)?;
    let mut bytes = Vec::new();
    VerifiedReader::new(what, descriptor, raw).read_to_end(&mut bytes).map_err(fetch_error)?;
    let config = ImageConfig::parse(&bytes)
        .map_err(|source| ResolveError::Config { digest: descriptor.digest.clone(), source })?;
    Ok((bytes, config))
}
