//! `situla images`: what is in the user's store.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::pull::{open_store, store_directory};
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, size, table};

/// Hexadecimal digits of a digest that tell images of one store apart.
const SHORT_DIGEST: usize = 12;

/// List the images in your store.
#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the images.
pub(crate) fn images(arguments: &ImagesArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    // Looking must not make a store.
    let (stored, names) = if store_directory(&context)?.exists() {
        let store = open_store(&context)?;
        let failed = |error| CommandError::store(&error);
        (store.list().map_err(failed)?, store.list_refs().map_err(failed)?)
    } else {
        (Vec::new(), Vec::new())
    };
    let mut rows = vec![["REFERENCE", "MANIFEST", "SIZE", "PATH"].map(str::to_owned).to_vec()];
    let mut values = Vec::new();
    for image in stored {
        let mut references: Vec<String> = names
            .iter()
            .filter(|(_, manifest)| *manifest == image.manifest_digest)
            .map(|(reference, _)| reference.to_string())
            .collect();
        values.push(json!({
            "references": references,
            "manifest_digest": image.manifest_digest.to_string(),
            "rootfs_digest": image.rootfs_digest.to_string(),
            "bytes": image.bytes,
            "path": image.path.to_string_lossy(),
        }));
        if references.is_empty() {
            // Its name means another image by now.
            references.push("-".to_owned());
        }
        let short: String = image.manifest_digest.hex().chars().take(SHORT_DIGEST).collect();
        for reference in references {
            let path = image.path.display().to_string();
            rows.push(vec![reference, short.clone(), size(image.bytes), path]);
        }
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&values)
            .map_err(|error| CommandError::other(&error, "setup-failed", None))?;
        data(&format!("{text}\n"))?;
    } else {
        rows[1..].sort();
        data(&table(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
}
