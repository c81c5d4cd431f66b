//! SIF files in registries, as Apptainer and Singularity push and pull them by `oras://`: an artifact with an empty
//! configuration and the file as its one layer. The file stays as it is, with its signatures: in a file, in the store,
//! and on its way to another registry.

mod fetch;
mod found;
mod pull;
mod push;

use std::io;
use std::path::PathBuf;

use situla_oci::Reference;
use thiserror::Error;

pub use fetch::{FetchedSif, SavedSif, fetch_sif, save_sif};
pub use pull::pull_sif;
pub use push::push_sif;

use crate::client::ClientError;
use crate::convert::ConvertError;
use crate::push::PushError;
use crate::source::ResolveError;
use crate::store::StoreError;

/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";
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
    /// The store failed.
    #[error("image store failed")]
    Store(#[source] StoreError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(PushError),
}

impl<E: Into<ConvertError>> From<E> for SifTransferError {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}
