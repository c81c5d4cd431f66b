//! Manifests, indexes and configurations that anybody may have written. Shared by the tests of this crate and the fuzz
//! target.
//!
//! Invariant: whatever the bytes are, parsing returns, with a result or an error. What is accepted is bounded, means
//! the same whatever the transport says of its type, and is accepted again as it is written by us.

use situla_oci::{Document, ImageConfig, MAX_INDEX_ENTRIES, MAX_LAYERS, Platform};

/// What transports say.
const TYPES: [&str; 6] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/json",
    "text/html; charset=utf-8",
];

/// Parses a document in every way; tells whether it is one.
pub(crate) fn document(data: &[u8]) -> bool {
    let parsed = Document::parse(data, None);
    for content_type in TYPES {
        match (Document::parse(data, Some(content_type)), &parsed) {
            (Ok(with), Ok(without)) => assert!(with == *without, "{content_type} changes the meaning"),
            (Ok(_), Err(error)) => panic!("{content_type} makes a document of what is none: {error}"),
            (Err(_), _) => {}
        }
    }
    let config = ImageConfig::parse(data);
    if let Ok(config) = &config {
        let _ = config.platform();
    }
    let written = match &parsed {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= MAX_LAYERS);
            serde_json::to_vec(manifest)
        }
        Ok(Document::Index(index)) => {
            assert!(index.manifests.len() <= MAX_INDEX_ENTRIES);
            if let Ok(chosen) = Platform::native().select(index) {
                assert!(index.manifests.contains(chosen), "what is chosen is in the index");
            }
            serde_json::to_vec(index)
        }
        Err(_) => return config.is_ok(),
    };
    let written = written.unwrap_or_else(|error| panic!("a document cannot be written: {error}"));
    match (Document::parse(&written, None), &parsed) {
        (Ok(again), Ok(before)) => assert!(again == *before, "a document changes by being written"),
        (again, _) => panic!("a document of ours is refused: {again:?}"),
    }
    true
}
