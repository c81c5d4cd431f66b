//! An image as far as it is known before its layers are fetched.

use situla_oci::{Digest, ImageConfig, Manifest};

use crate::layer::{Entry, EntryKind};
use crate::tree::Meta;

/// Verified manifest and configuration, with the exact bytes they were parsed from.
#[derive(Debug, Clone)]
pub struct ImageParts {
    /// Digest of the image manifest: the identity of the image.
    pub digest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration's bytes.
    pub config_bytes: Vec<u8>,
    /// The configuration.
    pub config: ImageConfig,
}

/// Something put into a tree beside the image's own content.
#[derive(Debug, Clone)]
pub struct Addition {
    /// Name, type and metadata.
    pub entry: Entry,
    /// Content of a regular file; its size is the entry's.
    pub content: Vec<u8>,
}

impl Addition {
    /// A directory owned by root.
    #[must_use]
    pub fn directory(path: &str, mode: u16) -> Self {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::Directory,
            meta: Meta::root_owned(mode),
        };
        Self { entry, content: Vec::new() }
    }

    /// A regular file owned by root.
    #[must_use]
    pub fn file(path: &str, mode: u16, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        let kind = EntryKind::File { size: content.len() as u64 };
        Self { entry: Entry { path: path.as_bytes().to_vec(), kind, meta: Meta::root_owned(mode) }, content }
    }

    /// A symbolic link owned by root.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::Symlink { target: target.as_bytes().to_vec() },
            meta: Meta::root_owned(0o777),
        };
        Self { entry, content: Vec::new() }
    }
}
