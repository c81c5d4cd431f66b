//! Images in an OCI layout directory: `index.json` and `blobs/<algorithm>/<hex>`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use situla_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, ManifestError, Tag};
use thiserror::Error;

use super::{FetchedManifest, ImageSource, SourceError};
use crate::file_error::FileError;
use crate::flatten::LayerSource;

/// Annotation that holds an image's tag in the index of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why a layout directory cannot be used.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A manifest file is larger than allowed.
    #[error("'{}' is larger than {MAX_MANIFEST_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// `index.json` is malformed.
    #[error("cannot use '{}'", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// `index.json` is no index.
    #[error("'{}' is not an OCI image layout", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// No image of that name.
    #[error("no image '{tag}' in OCI layout '{}'", path.display())]
    NoSuchTag {
        /// The tag.
        tag: String,
        /// The directory.
        path: PathBuf,
    },
    /// Several images and no name given.
    #[error("OCI layout '{}' has {count} images; name one with a tag", path.display())]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// How many images it has.
        count: usize,
    },
}

/// One image of a layout directory.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    dir: PathBuf,
    top: Descriptor,
}

impl LayoutImage {
    /// Opens a layout and finds the image `tag`, or its only image.
    ///
    /// # Errors
    /// When the directory is no layout or has no such image.
    pub fn open(dir: &Path, tag: Option<&Tag>) -> Result<Self, LayoutError> {
        let path = dir.join("index.json");
        let bytes = read_small(&path)?;
        let document = Document::parse(&bytes, None)
            .map_err(|source| LayoutError::Index { path: path.clone(), source })?;
        let Document::Index(index) = document else {
            return Err(LayoutError::NotALayout { path: dir.to_owned() });
        };
        let mut matching: Vec<&Descriptor> = index
            .manifests
            .iter()
            .filter(|d| tag.is_none_or(|tag| d.annotation(REF_NAME) == Some(tag.as_str())))
            .collect();
        match (matching.len(), tag) {
            // Two entries of one name are the same image for two platforms at best; the first is taken, as
            // other tools do.
            (1, _) | (2.., Some(_)) => Ok(Self { dir: dir.to_owned(), top: matching.swap_remove(0).clone() }),
            (0, Some(tag)) => Err(LayoutError::NoSuchTag { tag: tag.to_string(), path: dir.to_owned() }),
            (count, None) => Err(LayoutError::Ambiguous { path: dir.to_owned(), count }),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn fetch(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        let bytes = read_small(&self.blob_path(&descriptor.digest)).map_err(SourceError::Layout)?;
        let content_type = (!descriptor.media_type.is_empty()).then(|| descriptor.media_type.clone());
        Ok(FetchedManifest { bytes, digest: descriptor.digest.clone(), content_type })
    }
}

impl LayerSource for LayoutImage {
    fn open_layer(&self, _what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let path = self.blob_path(&descriptor.digest);
        let file = File::open(&path).map_err(|source| {
            io::Error::new(source.kind(), LayoutError::File(FileError::read(path)(source)))
        })?;
        Ok(Box::new(file))
    }
}

impl ImageSource for LayoutImage {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        self.fetch(&self.top)
    }

    fn fetch_child(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        self.fetch(descriptor)
    }

    fn top_descriptor(&self) -> Option<&Descriptor> {
        Some(&self.top)
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = Vec::new();
    let read = |file: File| file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    File::open(path).and_then(read).map_err(FileError::read(path))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(LayoutError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}
