//! From a reference to the SIF file that lies there.

use situla_oci::{Descriptor, Digest, Document, MAX_INDEX_DEPTH, Platform, Reference, is_sif_layer};

use super::{SifTransferError, TITLE};
use crate::client::Client;
use crate::progress::Event;
use crate::source::ResolveError;

/// A SIF file that a registry has.
#[derive(Debug)]
pub(super) struct FoundSif {
    /// Digest of its manifest.
    pub(super) manifest: Digest,
    /// The file.
    pub(super) layer: Descriptor,
}

impl FoundSif {
    /// Finds the manifest of a SIF file and its layer. Some have an index over those of several architectures.
    pub(super) fn find(
        client: &Client,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Self, SifTransferError> {
        let named = || Box::new(reference.clone());
        let resolve = |source| SifTransferError::Resolve { reference: named(), source };
        let mut pinned = reference.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let fetched = client
                .fetch_manifest(&pinned)
                .map_err(|source| SifTransferError::Registry { reference: named(), source })?;
            let document =
                Document::parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(|source| {
                    resolve(ResolveError::Manifest { digest: fetched.digest.clone(), source })
                })?;
            match document {
                Document::Manifest(mut manifest) => {
                    let what = match manifest.layers.as_slice() {
                        [only] if is_sif_layer(&only.media_type) => {
                            let layer = manifest.layers.swap_remove(0);
                            return Ok(Self { manifest: fetched.digest, layer });
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

    /// What there is to fetch.
    pub(super) fn event(&self) -> Event {
        Event::Resolved { manifest: self.manifest.clone(), n_layers: 1, bytes: self.layer.size }
    }

    /// The name of the file, as whoever pushed it has said.
    pub(super) fn title(&self) -> Option<&str> {
        self.layer.annotation(TITLE)
    }
}
