//! Which image a Plan is for.

use serde::{Deserialize, Serialize};

/// How surely the bytes of the rootfs are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "digest")]
pub enum RootfsIdentity {
    /// Hashed by us when it was made or imported: the digest of the file.
    Verified(String),
    /// Nobody has hashed this file yet; starting does not wait for it.
    Unverified,
}

/// The identity of an image, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// What the user asked for, letter by letter.
    pub requested: String,
    /// Digest of the registry's manifest: known for what was pulled, and for files of ours, which
    /// carry their manifest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub manifest_digest: Option<String>,
    /// Digest of the image configuration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config_digest: Option<String>,
    /// Digest of the root file system.
    pub rootfs: RootfsIdentity,
}
