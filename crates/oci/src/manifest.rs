//! Manifests, indexes and descriptors.
//!
//! A document is accepted only if it cannot be read in two ways: one that has both layers and manifests,
//! or whose own media type contradicts the transport's, is refused (a registry could otherwise show one
//! image to the policy and another to the runtime under the same digest).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;
use crate::media::MediaType;
use crate::platform::Platform;

/// Largest manifest or index accepted, in bytes (what the distribution specification asks registries to
/// accept, and what they cap at).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most entries of one index.
pub const MAX_INDEX_ENTRIES: usize = 4096;
/// Most layers of one image. Overlay-based engines stop at 128; squashing tools have made more.
pub const MAX_LAYERS: usize = 1024;
/// Deepest nesting of indexes followed when an image is resolved.
pub const MAX_INDEX_DEPTH: usize = 4;

/// Why bytes are not a usable manifest or index.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// More than [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge(u64),
    /// Not JSON of the expected form.
    #[error("cannot parse the manifest")]
    Json(#[source] serde_json::Error),
    /// Has both `layers` and `manifests`, or neither.
    #[error("manifest is ambiguous: it must have either layers or manifests")]
    Ambiguous,
    /// The document's `mediaType` and the transport's differ, or the shape is another one.
    #[error("manifest says it is '{inner}' but was delivered as '{outer}'")]
    TypeMismatch {
        /// What the document says or looks like.
        inner: String,
        /// What the transport said.
        outer: String,
    },
    /// Docker's obsolete schema 1, which has no content addresses.
    #[error("image uses the obsolete docker schema 1 manifest format")]
    Schema1,
    /// Too many layers or entries.
    #[error("manifest has {count} {what}, more than {max}")]
    TooMany {
        /// `layers` or `entries`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
}

/// A pointer to content: type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Platform, for entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// Tells whether the content is announced as an index.
    #[must_use]
    pub fn is_index(&self) -> bool {
        MediaType::parse(&self.media_type).is_some_and(MediaType::is_index)
    }

    /// Returns an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// An image manifest: one configuration and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Own media type, if the document says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of the artifact, for things that are no container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// An index (or manifest list): several manifests for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Own media type, if the document says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An image.
    Manifest(Manifest),
    /// A list of images.
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses a manifest or an index. `content_type` is what the transport said, if anything.
    ///
    /// # Errors
    /// When the bytes are too large, not JSON, ambiguous, of an obsolete form or have too many parts.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let is_index = match (shape.layers.is_some(), shape.manifests.is_some()) {
            (true, false) => false,
            (false, true) => true,
            _ => return Err(ManifestError::Ambiguous),
        };
        // Unknown and generic types (application/json) say nothing and so contradict nothing.
        for said in [shape.media_type.as_deref(), content_type].into_iter().flatten() {
            if MediaType::parse(said).is_some_and(|t| t.is_index() != is_index) {
                return Err(ManifestError::TypeMismatch {
                    inner: if is_index { "index" } else { "manifest" }.to_owned(),
                    outer: crate::digest::clip(said),
                });
            }
        }
        if is_index {
            let index: Index = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
            bounded("entries", index.manifests.len(), MAX_INDEX_ENTRIES)?;
            Ok(Self::Index(index))
        } else {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
            bounded("layers", manifest.layers.len(), MAX_LAYERS)?;
            Ok(Self::Manifest(manifest))
        }
    }
}

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), ManifestError> {
    if count > max { Err(ManifestError::TooMany { what, count, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn manifest_text() -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{D}","size":3,"urls":["x"]}},
               "layers":[{{"mediaType":"l","digest":"{D}","size":4}}],"new":{{}}}}"#
        )
    }

    #[test]
    fn parses_both_shapes() {
        let Document::Manifest(m) = Document::parse(manifest_text().as_bytes(), None).unwrap() else {
            panic!("manifest expected");
        };
        assert_eq!((m.config.size, m.layers[0].size), (3, 4));
        let text = format!(r#"{{"manifests":[{{"mediaType":"{OCI_INDEX}","digest":"{D}","size":9}}]}}"#);
        let Document::Index(i) = Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap() else {
            panic!("index expected");
        };
        assert!(i.manifests[0].is_index());
    }

    #[test]
    fn refuses_documents_with_two_readings() {
        let both = format!(r#"{{"config":{{"digest":"{D}","size":1}},"layers":[],"manifests":[]}}"#);
        assert!(matches!(Document::parse(both.as_bytes(), None), Err(ManifestError::Ambiguous)));
        assert!(matches!(Document::parse(b"{}", None), Err(ManifestError::Ambiguous)));
        let text = manifest_text();
        assert!(matches!(
            Document::parse(text.as_bytes(), Some(OCI_INDEX)),
            Err(ManifestError::TypeMismatch { .. })
        ));
        let lying = text.replacen('{', &format!(r#"{{"mediaType":"{OCI_INDEX}","#), 1);
        assert!(matches!(Document::parse(lying.as_bytes(), None), Err(ManifestError::TypeMismatch { .. })));
        // Doubled keys are a second reading too.
        let doubled = text.replacen('{', r#"{"layers":[],"#, 1);
        assert!(Document::parse(doubled.as_bytes(), None).is_err());
    }

    #[test]
    fn refuses_obsolete_oversized_and_malformed() {
        assert!(matches!(
            Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            Err(ManifestError::Schema1)
        ));
        let negative = manifest_text().replace("\"size\":4", "\"size\":-4");
        assert!(matches!(Document::parse(negative.as_bytes(), None), Err(ManifestError::Json(_))));
        let bad_digest = manifest_text().replace(D, "sha256:../../etc/passwd");
        assert!(matches!(Document::parse(bad_digest.as_bytes(), None), Err(ManifestError::Json(_))));
        let entry = format!(r#"{{"digest":"{D}","size":1}}"#);
        let many =
            format!(r#"{{"config":{entry},"layers":[{}]}}"#, vec![entry.as_str(); MAX_LAYERS + 1].join(","));
        assert!(matches!(Document::parse(many.as_bytes(), None), Err(ManifestError::TooMany { .. })));
        assert!(Document::parse(b"<html></html>", None).is_err());
    }
}
