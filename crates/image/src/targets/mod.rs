//! Images to where other tools expect them: an OCI layout, or an archive as `docker save` writes it.
//!
//! What comes as an OCI image is brought over as it is: an OCI layout gets the very bytes of manifest,
//! configuration and layers, so that the image keeps its digests; a Docker archive gets the layers
//! decompressed, as Docker writes them. A file or directory becomes an image of one layer.
//! Everything is verified on the way, and equal input gives equal bytes.

mod build;
mod built;
mod docker_archive;
mod layer;
mod layout;
mod packed;
mod save;
mod tar;

use std::fmt;
use std::io;
use std::path::PathBuf;

use situla_oci::{Digest, Tag};
use thiserror::Error;

pub use built::BuiltImage;
pub(crate) use built::FromStart;
pub use layer::LayerWriteError;
pub use packed::PackedImage;
pub use save::{refuse_taken, save_directory, save_file, save_image};

use crate::convert::ConvertError;
use crate::file_error::FileError;
use crate::source::{LayoutError, ResolveError, SourceNameError, Which};

/// Where an image is brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An OCI layout directory, and the tag that the image gets there.
    Layout(PathBuf, Option<Tag>),
    /// An archive as `docker save` writes it, and the name that the image gets there.
    DockerArchive(PathBuf, Option<String>),
}

impl Target {
    /// Understands `oci:DIR[:TAG]` and `docker-archive:FILE[:NAME:TAG]`; all else is no target of this kind.
    ///
    /// # Errors
    /// When what should be a tag is none.
    pub fn parse(text: &str) -> Result<Option<Self>, SourceNameError> {
        if let Some(rest) = text.strip_prefix("oci:") {
            return match crate::source::which(text, rest)? {
                (path, Which::Only) => Ok(Some(Self::Layout(path, None))),
                (path, Which::Tag(tag)) => Ok(Some(Self::Layout(path, Some(tag)))),
                // The digest is what comes out, not what one asks for.
                (_, Which::Digest(_)) => Err(SourceNameError::Kind("oci:DIR@DIGEST")),
            };
        }
        Ok(text.strip_prefix("docker-archive:").map(|rest| {
            let (path, name) = crate::source::split_name(rest);
            Self::DockerArchive(path, name)
        }))
    }

    /// The directory or file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Layout(path, _) | Self::DockerArchive(path, _) => path,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(path, None) => write!(f, "oci:{}", path.display()),
            Self::Layout(path, Some(tag)) => write!(f, "oci:{}:{}", path.display(), tag.as_str()),
            Self::DockerArchive(path, None) => write!(f, "docker-archive:{}", path.display()),
            Self::DockerArchive(path, Some(name)) => write!(f, "docker-archive:{}:{name}", path.display()),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedImage {
    /// Digest of the image manifest. A Docker archive holds none; it is that of the source, or the one that
    /// reading the archive here gives.
    pub manifest_digest: Digest,
    /// Number of layers.
    pub n_layers: usize,
    /// Bytes of configuration and layers, whether they were there before or not.
    pub bytes: u64,
}

/// Why an image cannot be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The source's name does not lead to a usable image.
    #[error(transparent)]
    Resolve(ResolveError),
    /// The file or directory is no usable image.
    #[error(transparent)]
    Image(ConvertError),
    /// The layout that is written to cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The image cannot be written as a layer.
    #[error(transparent)]
    Layer(LayerWriteError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A layer or configuration does not arrive, or is not what was promised.
    #[error("cannot copy {what}")]
    Copy {
        /// Which one.
        what: String,
        /// The cause; a failed verification or request is inside.
        #[source]
        source: io::Error,
    },
    /// A layer's uncompressed bytes are not those that the configuration names.
    #[error("{what} has the diff-id {actual} instead of {expected}")]
    DiffId {
        /// Which one.
        what: String,
        /// As the configuration says.
        expected: Digest,
        /// As it is.
        actual: Digest,
    },
    /// The image has another number of layers than its configuration names.
    #[error("the image has {layers} layers, but its configuration names {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Diff-ids of the configuration.
        diff_ids: usize,
    },
    /// The file, or an image of that tag in the layout, is there already.
    #[error("'{0}' exists already")]
    Exists(String),
    /// A directory that is no layout, and not empty.
    #[error("'{}' is neither an OCI layout nor empty", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// The name is none that an archive may give an image.
    #[error("'{0}' is not a name for an image in a Docker archive")]
    Name(String),
}
