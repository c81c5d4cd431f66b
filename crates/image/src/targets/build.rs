//! The configuration of an image that is made of one root file system.

use std::path::Path;

use serde_json::{Value, json};
use situla_oci::{Digest, MAX_CONFIG_BYTES, Platform};
use situla_squashfs::{Image, ReadOptions};

use super::SaveError;
use crate::additions::CONFIG_PATH;
use crate::convert::ConvertError;
use crate::image_file::ImageFile;
use crate::inspect::inspect_file;

/// What a new image says about itself, but for its layer.
#[derive(Debug)]
pub(crate) struct Description {
    config: Value,
}

impl Description {
    /// That of an image file: the configuration that it carries, or what a SIF says beside its root file system.
    pub(crate) fn of_file(input: &ImageFile, image: &Image) -> Result<Self, SaveError> {
        let limit = usize::try_from(MAX_CONFIG_BYTES).unwrap_or(usize::MAX);
        let carried = image.read_file(CONFIG_PATH, limit).map_err(not_squashfs(input.name()))?;
        // It comes from the image, which anybody may have made: one that makes no sense says nothing.
        let carried = carried.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        if let Some(config) = carried.filter(Value::is_object) {
            return Ok(Self { config });
        }
        let found = inspect_file(input, false, None, &()).map_err(SaveError::Image)?;
        let native = Platform::native().architecture;
        let sif = found.sif.map(|sif| sif.architecture).filter(|name| *name != "unknown");
        let architecture = sif.map_or(native, str::to_owned);
        Ok(Self::new(&architecture, found.config.map(|config| json!(config)).unwrap_or_else(|| json!({}))))
    }

    /// That of a directory, which says nothing.
    pub(crate) fn of_directory() -> Self {
        Self::new(&Platform::native().architecture, json!({}))
    }

    fn new(architecture: &str, config: Value) -> Self {
        Self { config: json!({ "architecture": architecture, "os": "linux", "config": config }) }
    }

    /// The configuration of an image with this one layer.
    pub(crate) fn config(mut self, diff_id: &Digest) -> Vec<u8> {
        self.config["rootfs"] = json!({ "type": "layers", "diff_ids": [diff_id] });
        if let Some(fields) = self.config.as_object_mut() {
            // How the layers of another image came about says nothing about this one.
            fields.remove("history");
            fields.entry("os").or_insert_with(|| json!("linux"));
            fields.entry("architecture").or_insert_with(|| json!(Platform::native().architecture));
        }
        self.config.to_string().into_bytes()
    }
}

/// Opens the root file system of an image file.
pub(crate) fn open_root(input: &ImageFile) -> Result<Image, SaveError> {
    let (_, window) = input.root_window().map_err(SaveError::Image)?;
    let file = input.try_clone()?;
    Image::open(window.over(file), ReadOptions::default()).map_err(not_squashfs(input.name()))
}

pub(crate) fn not_squashfs(path: &Path) -> impl FnOnce(situla_squashfs::Error) -> SaveError {
    |source| SaveError::Image(ConvertError::NotSquashfs { path: path.to_owned(), source })
}
