//! One file: its keys, and what their values must be.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use crate::error::EdfError;
use crate::expand::is_name;

/// The content of one file, nothing expanded or inherited yet.
#[derive(Debug, Default)]
pub(crate) struct RawFile {
    pub(crate) bases: Vec<String>,
    pub(crate) image: Option<String>,
    pub(crate) workdir: Option<String>,
    pub(crate) entrypoint: Option<bool>,
    pub(crate) writable: Option<bool>,
    pub(crate) slurm: Option<bool>,
    pub(crate) mounts: Vec<String>,
    pub(crate) devices: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Keys that nobody knows.
    pub(crate) unknown: Vec<String>,
}

/// How deep tables of annotations may be.
const MAX_DEPTH: usize = 32;

impl RawFile {
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Self, EdfError> {
        let syntax = |message: String| EdfError::Syntax { file: file.to_owned(), message };
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            syntax(format!("{place}{}", error.message()))
        })?;
        let mut raw = RawFile::default();
        for (key, value) in table {
            let wants = |what: &str| syntax(format!("{key} must be {what}"));
            match key.as_str() {
                "base_environment" => {
                    raw.bases = match value {
                        Value::String(base) => vec![base],
                        value => strings(value).ok_or_else(|| wants("a name or a list of names"))?,
                    };
                }
                "image" => raw.image = Some(string(value).ok_or_else(|| wants("a string"))?),
                "workdir" => raw.workdir = Some(string(value).ok_or_else(|| wants("a string"))?),
                "entrypoint" => {
                    raw.entrypoint = Some(value.as_bool().ok_or_else(|| wants("true or false"))?);
                }
                "slurm" => raw.slurm = Some(value.as_bool().ok_or_else(|| wants("true or false"))?),
                "writable" => raw.writable = Some(value.as_bool().ok_or_else(|| wants("true or false"))?),
                "mounts" => raw.mounts = strings(value).ok_or_else(|| wants("a list of strings"))?,
                "devices" => raw.devices = strings(value).ok_or_else(|| wants("a list of strings"))?,
                "env" => {
                    let Value::Table(table) = value else { return Err(wants("a table of strings")) };
                    for (name, value) in table {
                        let value =
                            string(value).ok_or_else(|| syntax(format!("env.{name} must be a string")))?;
                        if !is_name(&name) {
                            return Err(syntax(format!("env has {name:?}, which names no variable")));
                        }
                        raw.env.insert(name, value);
                    }
                }
                "annotations" => {
                    let Value::Table(table) = value else { return Err(wants("a table")) };
                    flatten(String::new(), table, MAX_DEPTH, &mut raw.annotations)
                        .ok_or_else(|| wants("a table that is less deep"))?;
                }
                _ => raw.unknown.push(key),
            }
        }
        Ok(raw)
    }
}

fn string(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.contains('\0') => Some(text),
        _ => None,
    }
}

fn strings(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(string).collect(),
        _ => None,
    }
}

/// Nested tables as keys with dots in them; what is no string is written as TOML writes it.
fn flatten(prefix: String, table: Table, depth: usize, found: &mut BTreeMap<String, String>) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    for (key, value) in table {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => flatten(key, table, depth, found)?,
            Value::String(text) => drop(found.insert(key, text)),
            other => drop(found.insert(key, other.to_string())),
        }
    }
    Some(())
}
