//! Image references, digests, manifests and platforms of the OCI specifications.
//!
//! Pure data and text: nothing here does I/O. Every parser takes bytes that a stranger may have
//! written, bounds them, and tolerates fields it does not know.

mod config;
mod digest;
mod manifest;
mod media;
mod platform;
mod reference;
mod registries;

pub use config::{ExecConfig, ImageConfig, ImageConfigError, MAX_CONFIG_BYTES, RootFs};
pub use digest::{Algorithm, Digest, DigestError, DigestWriter, Hasher};
pub use manifest::{
    Descriptor, Document, Index, MAX_INDEX_DEPTH, MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_BYTES,
    Manifest, ManifestError,
};
pub use media::{LayerKind, MANIFEST_ACCEPT, MediaType, SIF_CONFIG, SIF_LAYER, is_sif_layer};
pub use platform::{Platform, PlatformError};
pub use reference::{Defaults, EnrootReference, Reference, ReferenceError, Registry, Repository, Tag};
pub use registries::{CredentialHelper, MAX_REGISTRIES_BYTES, NameError, Place, Registries, RegistriesError};
