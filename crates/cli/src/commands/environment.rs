//! `situla environment`: what an environment definition file says, with all that it inherits.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::command_error::CommandError;
use crate::output::data;
use crate::{Context, environment_file};

/// Version of what is printed here.
const SCHEMA: u32 = 1;

/// Arguments of `environment`.
#[derive(Debug, Args)]
pub(crate) struct EnvironmentArgs {
    /// The environment: a name that is looked for as NAME.toml, or the path of a file
    #[arg(value_name = "NAME|PATH")]
    name: String,
}

/// Prints the environment as JSON: what is inherited is in it, variables are replaced, and `files` has where it comes
/// from, the one that counts most last.
pub(crate) fn environment(arguments: &EnvironmentArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let edf = environment_file::load(&arguments.name, &context)?;
    let unknown: Vec<_> = edf
        .unknown
        .iter()
        .map(|(file, key)| json!({ "file": file.display().to_string(), "key": key }))
        .collect();
    let files: Vec<_> = edf.files.iter().map(|file| file.display().to_string()).collect();
    let value = json!({
        "schema": SCHEMA,
        "image": edf.image,
        "workdir": edf.workdir,
        "entrypoint": edf.entrypoint,
        "slurm": edf.slurm,
        "writable": edf.writable,
        "mounts": edf.mounts,
        "devices": edf.devices,
        "env": edf.env,
        "annotations": edf.annotations,
        "files": files,
        "unknown": unknown,
    });
    data(&format!("{value:#}\n"))?;
    Ok(ExitCode::SUCCESS)
}
