//! Images in an archive as `docker save` and `podman save` write it: `manifest.json` lists images by names,
//! each with the file of its configuration and those of its layers.
//!
//! The files have no descriptors. Those are made here: the digest of an uncompressed layer is its diff-id,
//! which the configuration states, and which is verified when the layer is read; compressed layers and
//! the configuration are hashed once. The manifest that results is the identity of the image here.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use situla_oci::{
    Algorithm, Descriptor, Digest, Hasher, ImageConfig, ImageConfigError, MAX_CONFIG_BYTES, MAX_LAYERS,
    MAX_MANIFEST_BYTES,
};
use thiserror::Error;

use super::archive::{Archive, ArchiveError};
use super::{FetchedManifest, ImageSource, SourceError};
use crate::file_error::FileError;
use crate::flatten::LayerSource;

/// The file that lists the images.
pub(crate) const LIST_FILE: &str = "manifest.json";
/// Types that a manifest of our own has.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why an archive of `docker save` cannot be used.
#[derive(Debug, Error)]
pub enum DockerArchiveError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no list of images, or it is malformed.
    #[error("'{}' is not an archive of docker save: {why}", path.display())]
    NotSaved {
        /// The archive.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The configuration is unusable.
    #[error("cannot use the image configuration in '{}'", path.display())]
    Config {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ImageConfigError,
    },
    /// No image of that name.
    #[error("no image '{name}' in '{}' (it has {})", path.display(), listed(names))]
    NoSuchImage {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
        /// The names that there are.
        names: Vec<String>,
    },
    /// Several images and no name given.
    #[error("'{}' has {count} images: {}", path.display(), listed(names))]
    Ambiguous {
        /// The archive.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names.
        names: Vec<String>,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none with a name".to_owned() } else { names.join(", ") }
}

/// Most names that a message lists.
const MAX_LISTED: usize = 20;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// One image of an archive of `docker save`.
#[derive(Debug)]
pub struct DockerArchiveImage {
    archive: Archive,
    manifest: FetchedManifest,
    /// The files of configuration and layers, by digest.
    files: HashMap<Digest, String>,
}

impl DockerArchiveImage {
    /// Opens an archive and finds the image `name`, or its only image. An archive that is compressed as a whole
    /// is first decompressed into a file without a name in `scratch`.
    ///
    /// # Errors
    /// When the archive cannot be read, is not of this kind, or has no such image or several.
    pub fn open(path: &Path, name: Option<&str>, scratch: &Path) -> Result<Self, DockerArchiveError> {
        let archive = Archive::open(path, scratch)?;
        let wrong = |why| DockerArchiveError::NotSaved { path: path.to_owned(), why };
        if !archive.has(LIST_FILE) {
            return Err(wrong("it has no manifest.json"));
        }
        let list = read_small(&archive, LIST_FILE, MAX_MANIFEST_BYTES)?;
        let list: Vec<Saved> =
            serde_json::from_slice(&list).map_err(|_| wrong("its manifest.json is malformed"))?;
        let saved = choose(path, &list, name)?;
        let config = read_small(&archive, &saved.config, MAX_CONFIG_BYTES)?;
        let parsed = ImageConfig::parse(&config)
            .map_err(|source| DockerArchiveError::Config { path: path.to_owned(), source })?;
        if saved.layers.len() > MAX_LAYERS {
            return Err(wrong("an image has too many layers"));
        }
        if parsed.rootfs.diff_ids.len() != saved.layers.len() {
            return Err(wrong("configuration and list name different numbers of layers"));
        }
        let mut files = HashMap::new();
        let mut layers = Vec::new();
        for (file, diff_id) in saved.layers.iter().zip(&parsed.rootfs.diff_ids) {
            let (digest, size) = describe(&archive, file, diff_id)?;
            files.insert(digest.clone(), file.clone());
            layers.push(descriptor(LAYER_TYPE, digest, size));
        }
        let config_digest = Digest::sha256(&config);
        files.insert(config_digest.clone(), saved.config.clone());
        let config = descriptor(CONFIG_TYPE, config_digest, config.len() as u64);
        let bytes = manifest_bytes(&config, &layers);
        let digest = Digest::sha256(&bytes);
        let manifest = FetchedManifest { bytes, digest, content_type: Some(MANIFEST_TYPE.to_owned()) };
        Ok(Self { archive, manifest, files })
    }
}

/// A descriptor without platform and annotations.
pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
}

/// A manifest; equal parts give equal bytes.
pub(crate) fn manifest_bytes(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers,
    });
    manifest.to_string().into_bytes()
}

fn choose<'l>(path: &Path, list: &'l [Saved], name: Option<&str>) -> Result<&'l Saved, DockerArchiveError> {
    let names = || list.iter().flat_map(|saved| saved.tags()).take(MAX_LISTED).cloned().collect();
    let path = path.to_owned();
    match (name, list) {
        (None, [only]) => Ok(only),
        (None, []) => Err(DockerArchiveError::NotSaved { path, why: "it holds no image" }),
        (None, _) => Err(DockerArchiveError::Ambiguous { path, count: list.len(), names: names() }),
        (Some(name), _) => {
            let wanted = full(name);
            let mut found = list.iter().filter(|saved| saved.tags().iter().any(|tag| full(tag) == wanted));
            match (found.next(), found.count()) {
                (Some(saved), 0) => Ok(saved),
                (None, _) => {
                    Err(DockerArchiveError::NoSuchImage { path, name: name.to_owned(), names: names() })
                }
                (Some(_), more) => {
                    Err(DockerArchiveError::Ambiguous { path, count: more + 1, names: names() })
                }
            }
        }
    }
}

/// A name with what may be left out: Docker leaves its own registry out when it saves, others do not.
fn full(name: &str) -> String {
    let after_slash = name.rsplit('/').next().unwrap_or(name);
    let name = if after_slash.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    let short = name.strip_prefix("docker.io/").unwrap_or(&name);
    short.strip_prefix("library/").unwrap_or(short).to_owned()
}

fn read_small(archive: &Archive, name: &str, limit: u64) -> Result<Vec<u8>, DockerArchiveError> {
    let section = archive.section(name)?;
    if section.size() > limit {
        let why = "its list of images or a configuration is too large";
        return Err(DockerArchiveError::NotSaved { path: archive.path().to_owned(), why });
    }
    let mut bytes = Vec::new();
    section.take(limit).read_to_end(&mut bytes).map_err(FileError::read(archive.path()))?;
    Ok(bytes)
}

/// Digest and size of a layer's file.
fn describe(archive: &Archive, file: &str, diff_id: &Digest) -> Result<(Digest, u64), DockerArchiveError> {
    let mut section = archive.section(file)?;
    let size = section.size();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    let mut first = true;
    loop {
        let n = match section.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(FileError::read(archive.path())(e).into()),
        };
        // A tar begins with a name; these bytes begin none.
        let compressed = [&[0x1f, 0x8b][..], &[0x28, 0xb5, 0x2f, 0xfd]];
        if first && !compressed.iter().any(|magic| buffer[..n].starts_with(magic)) {
            return Ok((diff_id.clone(), size));
        }
        first = false;
        hasher.update(&buffer[..n]);
    }
    Ok((if first { diff_id.clone() } else { hasher.finish() }, size))
}

impl LayerSource for DockerArchiveImage {
    fn open_layer(&self, what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{what} is not in the archive"));
        let name = self.files.get(&descriptor.digest).ok_or_else(missing)?;
        let failed = |error: ArchiveError| io::Error::other(DockerArchiveError::Archive(error));
        Ok(Box::new(self.archive.section(name).map_err(failed)?))
    }
}

impl ImageSource for DockerArchiveImage {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }

    fn fetch_child(&self, descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        let path = self.archive.path().to_owned();
        let which = super::Which::Digest(descriptor.digest.clone());
        Err(SourceError::Layout(super::LayoutError::NoSuchImage { which, path }))
    }
}
