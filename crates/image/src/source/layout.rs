//! Images in an OCI layout: `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`, in a directory or in
//! a tar archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use situla_oci::{Descriptor, Digest, Document, Index, MAX_MANIFEST_BYTES, ManifestError};
use thiserror::Error;

use super::archive::{Archive, ArchiveError};
use super::name::Which;
use super::{FetchedManifest, ImageSource, SourceError};
use crate::file_error::FileError;
use crate::flatten::LayerSource;

/// Annotation that holds an image's tag in the index of a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The file that says that this is a layout, and of which version (image specification, image-layout.md).
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
/// The file that lists the images.
pub(crate) const INDEX_FILE: &str = "index.json";

/// Why a layout cannot be used.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
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
    /// There is no `oci-layout`, or `index.json` is no index.
    #[error("'{}' is not an OCI image layout", path.display())]
    NotALayout {
        /// The directory or archive.
        path: PathBuf,
    },
    /// A version of the layout that this program does not know.
    #[error("OCI layout '{}' has version '{version}', which is not supported", path.display())]
    Version {
        /// The directory or archive.
        path: PathBuf,
        /// The version.
        version: String,
    },
    /// No image of that name.
    #[error("no image '{which}' in OCI layout '{}'", path.display())]
    NoSuchImage {
        /// The tag or digest.
        which: Which,
        /// The directory or archive.
        path: PathBuf,
    },
    /// Several images and no name given, or several of one name without platforms to tell them apart.
    #[error("OCI layout '{}' has {count} such images{}", path.display(), named(tags))]
    Ambiguous {
        /// The directory or archive.
        path: PathBuf,
        /// How many images it has.
        count: usize,
        /// Their tags, as far as they have some.
        tags: Vec<String>,
    },
}

fn named(tags: &[String]) -> String {
    if tags.is_empty() { String::new() } else { format!(": {}", tags.join(", ")) }
}

/// Most tags that a message lists.
const MAX_LISTED: usize = 20;

/// Where the files of a layout are.
#[derive(Debug, Clone)]
enum Files {
    Directory(PathBuf),
    Archive(Arc<Archive>),
}

impl Files {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(dir) => dir,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// The name of a file for messages.
    fn shown(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).exists(),
            Self::Archive(archive) => archive.has(name),
        }
    }

    /// Opens a file, and tells its size.
    fn open(&self, name: &str) -> Result<(u64, Box<dyn Read + Send + '_>), LayoutError> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let file = File::open(&path).map_err(FileError::read(&path))?;
                let size = file.metadata().map_err(FileError::read(path))?.len();
                Ok((size, Box::new(file)))
            }
            Self::Archive(archive) => {
                let section = archive.section(name)?;
                Ok((section.size(), Box::new(section)))
            }
        }
    }

    fn read_small(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        let (_, file) = self.open(name)?;
        let read = file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(FileError::read(self.shown(name)))?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(LayoutError::TooLarge { path: self.shown(name) });
        }
        Ok(bytes)
    }
}

/// What `oci-layout` holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// What the name of an image in a layout leads to.
#[derive(Debug, Clone)]
enum Top {
    /// One manifest or index.
    One(Descriptor),
    /// Several for different platforms, as an index of our own.
    Several(FetchedManifest),
}

/// One image of a layout.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    files: Files,
    top: Top,
}

impl LayoutImage {
    /// Opens a layout directory and finds an image in it.
    ///
    /// # Errors
    /// When the directory is no layout, or has no such image or several.
    pub fn open(dir: &Path, which: &Which) -> Result<Self, LayoutError> {
        Self::find(Files::Directory(dir.to_owned()), which)
    }

    /// Opens a layout in a tar archive and finds an image in it. An archive that is compressed as a whole is
    /// first decompressed into a file without a name in `scratch`.
    ///
    /// # Errors
    /// When the archive cannot be read or holds no layout, or the layout has no such image or several.
    pub fn open_archive(path: &Path, which: &Which, scratch: &Path) -> Result<Self, LayoutError> {
        Self::find(Files::Archive(Arc::new(Archive::open(path, scratch)?)), which)
    }

    fn find(files: Files, which: &Which) -> Result<Self, LayoutError> {
        let path = || files.path().to_owned();
        if !files.has(LAYOUT_FILE) || !files.has(INDEX_FILE) {
            // Also where the directory itself is missing, which the message of the system says best.
            if let Files::Directory(dir) = &files {
                std::fs::read_dir(dir).map_err(FileError::read(dir))?;
            }
            return Err(LayoutError::NotALayout { path: path() });
        }
        let layout: LayoutFile = serde_json::from_slice(&files.read_small(LAYOUT_FILE)?)
            .map_err(|_| LayoutError::NotALayout { path: path() })?;
        // Versions with the same first number are compatible (semantic versioning).
        if layout.image_layout_version.split('.').next() != Some("1") {
            let version: String = layout.image_layout_version.chars().take(40).collect();
            return Err(LayoutError::Version { path: path(), version });
        }
        let document = Document::parse(&files.read_small(INDEX_FILE)?, None)
            .map_err(|source| LayoutError::Index { path: files.shown(INDEX_FILE), source })?;
        let Document::Index(index) = document else { return Err(LayoutError::NotALayout { path: path() }) };
        let top = match which {
            Which::Only => choose(&files, which, index.manifests)?,
            Which::Tag(tag) => {
                let has_tag = |d: &Descriptor| d.annotation(REF_NAME) == Some(tag.as_str());
                choose(&files, which, index.manifests.into_iter().filter(has_tag).collect())?
            }
            Which::Digest(digest) => Top::One(by_digest(&files, which, digest, &index)?),
        };
        Ok(Self { files, top })
    }

    fn fetch(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        let bytes = self.files.read_small(&blob(&descriptor.digest)).map_err(SourceError::Layout)?;
        let content_type = (!descriptor.media_type.is_empty()).then(|| descriptor.media_type.clone());
        Ok(FetchedManifest { bytes, digest: descriptor.digest.clone(), content_type })
    }
}

/// The name of a blob's file.
pub(crate) fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Several images of one name are one image for several platforms, if they say for which.
fn choose(files: &Files, which: &Which, mut matching: Vec<Descriptor>) -> Result<Top, LayoutError> {
    let path = files.path().to_owned();
    match matching.len() {
        0 => Err(LayoutError::NoSuchImage { which: which.clone(), path }),
        1 => Ok(Top::One(matching.swap_remove(0))),
        count => {
            let mut tags: Vec<String> =
                matching.iter().filter_map(|d| d.annotation(REF_NAME).map(str::to_owned)).collect();
            tags.sort();
            tags.dedup();
            if tags.len() > 1 || matching.iter().any(|d| d.platform.is_none()) {
                tags.truncate(MAX_LISTED);
                return Err(LayoutError::Ambiguous { path, count, tags });
            }
            let index = Index { media_type: None, manifests: matching };
            let bytes = serde_json::to_vec(&index).unwrap_or_default();
            let digest = Digest::sha256(&bytes);
            Ok(Top::Several(FetchedManifest { bytes, digest, content_type: None }))
        }
    }
}

/// An image by its digest: also one that the index does not name, such as that of one platform.
fn by_digest(
    files: &Files,
    which: &Which,
    digest: &Digest,
    index: &Index,
) -> Result<Descriptor, LayoutError> {
    if let Some(listed) = index.manifests.iter().find(|d| d.digest == *digest) {
        return Ok(listed.clone());
    }
    let name = blob(digest);
    if !files.has(&name) {
        return Err(LayoutError::NoSuchImage { which: which.clone(), path: files.path().to_owned() });
    }
    let (size, _) = files.open(&name)?;
    Ok(Descriptor {
        media_type: String::new(),
        digest: digest.clone(),
        size,
        platform: None,
        annotations: None,
    })
}

impl LayerSource for LayoutImage {
    fn open_layer(&self, _what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        match self.files.open(&blob(&descriptor.digest)) {
            Ok((_, reader)) => Ok(reader),
            Err(error) => {
                let kind = match &error {
                    LayoutError::File(file) => file.source.kind(),
                    LayoutError::Archive(ArchiveError::Missing { .. }) => io::ErrorKind::NotFound,
                    _ => io::ErrorKind::Other,
                };
                Err(io::Error::new(kind, error))
            }
        }
    }
}

impl ImageSource for LayoutImage {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        match &self.top {
            Top::One(descriptor) => self.fetch(descriptor),
            Top::Several(index) => Ok(index.clone()),
        }
    }

    fn fetch_child(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        self.fetch(descriptor)
    }

    fn top_descriptor(&self) -> Option<&Descriptor> {
        match &self.top {
            Top::One(descriptor) => Some(descriptor),
            Top::Several(_) => None,
        }
    }
}
