//! The hooks of a runtime-spec document: `config.md`, "POSIX-platform Hooks".

use serde::{Deserialize, Serialize};

use crate::Text;

/// Programs of the host's that are run at stages of a container's life, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Hooks {
    /// As `create_runtime`, and before it; deprecated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// On the host, when namespaces and mounts are there and the host's root has not gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, with the host's root; after the above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// Inside, with the payload's rights, just before it begins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// On the host, when the payload has begun.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// On the host, when the payload has ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its absolute path.
    pub path: Text,
    /// Its arguments, the first of which is its name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub args: Vec<Text>,
    /// Its whole environment, as `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub env: Vec<Text>,
    /// Seconds after which it is ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeout: Option<u32>,
}
