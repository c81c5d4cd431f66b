//! One specification: its text, and what its devices ask for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::cdi::error::CdiError;
use crate::cdi::name::{is_device, is_kind};
use crate::cdi::yaml;

/// Bytes of a specification. Those of nodes with many partitioned accelerators have some hundred thousand.
pub const MAX_SPEC: usize = 4 << 20;

/// The major versions of the specification that are understood.
const VERSIONS: [&str; 2] = ["0", "1"];

/// In which form a specification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiSpec {
    /// `VENDOR/CLASS` of all its devices.
    pub(crate) kind: String,
    /// What each asks for, by name.
    pub(crate) devices: BTreeMap<String, Edits>,
    /// What any of them asks for, too.
    pub(crate) common: Edits,
}

/// What is to be changed of a container. Fields that nobody knows here are kept, to be refused where they matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Edits {
    pub(crate) env: Vec<String>,
    pub(crate) device_nodes: Vec<Node>,
    pub(crate) mounts: Vec<FileMount>,
    pub(crate) hooks: Vec<NamedHook>,
    #[serde(flatten)]
    pub(crate) others: BTreeMap<String, Value>,
}

/// A device node. Its numbers, owner and mode are for engines that make nodes; here it is the host's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) host_path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileMount {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    #[serde(default)]
    pub(crate) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedHook {
    pub(crate) hook_name: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<String>,
    #[serde(default)]
    pub(crate) timeout: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    cdi_version: String,
    kind: String,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

impl CdiSpec {
    /// Reads a specification.
    ///
    /// # Errors
    /// It is none, or one of a version that is not known.
    pub fn parse(text: &str, syntax: Syntax) -> Result<Self, CdiError> {
        let wrong = |message: String| CdiError::Spec { message };
        if text.len() > MAX_SPEC {
            return Err(wrong(format!("it has more than {MAX_SPEC} bytes")));
        }
        let flaw = |error: serde_json::Error| wrong(error.to_string());
        let value = match syntax {
            Syntax::Json => serde_json::from_str(text).map_err(flaw)?,
            Syntax::Yaml => yaml::parse(text).map_err(wrong)?,
        };
        let document = serde_json::from_value(without_nulls(value)).map_err(flaw)?;
        let Document { cdi_version, kind, devices, container_edits } = document;
        let major = cdi_version.trim_start_matches('v').split('.').next().unwrap_or_default();
        if !VERSIONS.contains(&major) {
            return Err(wrong(format!("cdiVersion {cdi_version:?} is not known")));
        }
        if !is_kind(&kind) {
            return Err(wrong(format!("kind {kind:?} is no VENDOR/CLASS")));
        }
        let mut spec = CdiSpec { kind, devices: BTreeMap::new(), common: container_edits };
        for Device { name, container_edits } in devices {
            if !is_device(&name) {
                return Err(wrong(format!("{name:?} is no name of a device")));
            }
            if spec.devices.insert(name.clone(), container_edits).is_some() {
                return Err(wrong(format!("it has two devices {name}")));
            }
        }
        Ok(spec)
    }
}

/// Tools write an empty list as null, and in YAML as nothing at all.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
