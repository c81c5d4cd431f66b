//! The image configuration: what to run, in which environment, and the layers' diff-ids.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;
use crate::platform::Platform;

/// Largest configuration accepted, in bytes. Real ones are a few KiB; labels can make them large.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// Why bytes are not an image configuration.
#[derive(Debug, Error)]
pub enum ImageConfigError {
    /// More than [`MAX_CONFIG_BYTES`].
    #[error("image configuration of {0} bytes is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge(u64),
    /// Not JSON of the expected form.
    #[error("cannot parse the image configuration")]
    Json(#[source] serde_json::Error),
}

/// An OCI image configuration (`application/vnd.oci.image.config.v1+json`, or Docker's equal one).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture in Go's naming (`amd64`).
    #[serde(default)]
    pub architecture: String,
    /// Operating system in Go's naming (`linux`).
    #[serde(default)]
    pub os: String,
    /// CPU variant (`v8`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Creation time, RFC 3339, as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Execution parameters.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ExecConfig,
    /// The layers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
}

/// Execution parameters of an image. Absent and `null` mean empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    /// `KEY=value` lines.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Fixed beginning of the command line.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command line if there is no entry point.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// The signal by which its command wants to be ended, such as `SIGINT`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Directory to start in.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// User, as `user[:group]`, names or numbers.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// Layers of an image, bottom first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// Digests of the uncompressed layer tars, bottom first.
    #[serde(deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// When it is larger than [`MAX_CONFIG_BYTES`] or not JSON of this form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageConfigError> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ImageConfigError::TooLarge(bytes.len() as u64));
        }
        serde_json::from_slice(bytes).map_err(ImageConfigError::Json)
    }

    /// Returns the platform the image was built for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// Builders write `null` for empty lists and objects.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nulls_and_unknown_fields() {
        let text = br#"{"architecture":"amd64","os":"linux","x":[1],
            "config":{"Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"Labels":null,"Volumes":{"/v":{}}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[]}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(config.config.env, ["A=b"]);
        assert!(config.config.entrypoint.is_empty() && config.rootfs.diff_ids.is_empty());
        assert_eq!(config.platform().to_string(), "linux/amd64");
        assert_eq!(ImageConfig::parse(br#"{"config":null}"#).unwrap(), ImageConfig::default());
    }

    #[test]
    fn refuses_bad_diff_ids_and_non_json() {
        assert!(ImageConfig::parse(br#"{"rootfs":{"diff_ids":["sha256:xyz"]}}"#).is_err());
        assert!(ImageConfig::parse(b"<html>").is_err());
    }
}
