//! `situla container`: containers whose files are kept on this node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use situla_engine::{EngineError, Swept, containers, read_own_files, sweep};
use situla_image::{ContainerPlace, Containers, ListedContainer, OutputFormat, Owners, Source, TreeError};

use super::convert::Conversion;
use super::images::print_json;
use super::pull::end_with;
use super::transfer::Transfer;
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, note, table};
use crate::progress::Show;
use crate::task::step_name;

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// List and remove containers that are kept on this node.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// List the containers that are kept on this node
    List(ListArgs),
    /// Remove containers that nobody runs in
    Rm(RmArgs),
    /// Remove the containers of jobs that are over
    Prune(PruneArgs),
    /// Write a container to a file (what `--container-save` starts)
    #[command(hide = true)]
    Save(SaveArgs),
}

/// List containers.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove containers.
#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Those of this job alone, by its number, or `global`
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Remove what jobs have left.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Count this job as over, though Slurm does not say so yet: for an epilog
    #[arg(long, value_name = "JOB")]
    job: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Save a container.
#[derive(Args, Debug)]
pub(crate) struct SaveArgs {
    /// End when this process does, which has started this one
    #[arg(long, value_name = "PID")]
    for_process: i32,
    /// The container's files
    root: PathBuf,
    /// The file to write
    target: PathBuf,
}

/// Runs one of the commands.
pub(crate) fn container(command: ContainerCommand) -> Result<ExitCode, CommandError> {
    match command {
        ContainerCommand::List(arguments) => list(&arguments),
        ContainerCommand::Rm(arguments) => rm(&arguments),
        ContainerCommand::Prune(arguments) => prune(&arguments),
        ContainerCommand::Save(arguments) => Ok(match save(arguments) {
            Ok(answer) => {
                data(&format!("{answer}\n"))?;
                ExitCode::SUCCESS
            }
            Err(error) => error.report_json(),
        }),
    }
}

fn failed(error: TreeError) -> CommandError {
    CommandError::trees(&error)
}

/// How a scope is shown: the number of its job, where it is of one.
fn job(place: &ContainerPlace) -> &str {
    let number = place.scope.strip_prefix("job-").and_then(|scope| scope.rsplit('-').next());
    // Behind it may stand how often it was requeued.
    let number = number.and_then(|number| number.split('.').next());
    number.unwrap_or(&place.scope)
}

/// A container without a name is its step's own.
fn shown(place: &ContainerPlace) -> &str {
    match place.name.strip_prefix('.') {
        Some(name) => name,
        None => &place.name,
    }
}

fn described(container: &ListedContainer) -> Value {
    let ListedContainer { place, record, is_used } = container;
    json!({
        "name": shown(place),
        "job": job(place).parse::<u32>().ok(),
        "node": place.node,
        "image": record.as_ref().map(|record| &record.image),
        "rootfs_digest": record.as_ref().map(|record| record.rootfs_digest.to_string()),
        "made_by": record.as_ref().map(|record| &record.made_by),
        "in_use": is_used,
    })
}

fn list(arguments: &ListArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let found = containers(&context.site, &context.host).list().map_err(failed)?;
    if arguments.json {
        let found: Vec<Value> = found.iter().map(described).collect();
        print_json(&json!({ "schema": SCHEMA, "containers": found }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["NAME", "JOB", "NODE", "IN USE", "IMAGE"].map(str::to_owned).to_vec()];
    for ListedContainer { place, record, is_used } in &found {
        let in_use = if *is_used { "yes" } else { "no" };
        let image = record.as_ref().map_or("(not complete)", |record| record.image.as_str());
        rows.push([shown(place), job(place), &place.node, in_use, image].map(str::to_owned).to_vec());
    }
    data(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn rm(arguments: &RmArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let containers = containers(&context.site, &context.host);
    let found = containers.list().map_err(failed)?;
    let errors = arguments.names.iter().filter_map(|name| {
        let is_meant = |place: &ContainerPlace| {
            shown(place) == name && arguments.job.as_ref().is_none_or(|wanted| job(place) == wanted)
        };
        let places = found.iter().map(|container| &container.place).filter(|place| is_meant(place));
        rm_one(&containers, name, &places.collect::<Vec<_>>()).err()
    });
    let errors: Vec<CommandError> = errors.collect();
    CommandError::all(errors).map_or(Ok(ExitCode::SUCCESS), Err)
}

fn rm_one(containers: &Containers, name: &str, places: &[&ContainerPlace]) -> Result<(), CommandError> {
    let place = match places {
        [place] => place,
        [] => {
            let message = format!("there is no container {name} on this machine");
            return Err(CommandError::usage(message, "`situla container list` shows which there are"));
        }
        several => {
            let jobs: Vec<&str> = several.iter().map(|place| job(place)).collect();
            let message = format!("several containers are called {name}: of {}", jobs.join(", "));
            return Err(CommandError::usage(message, "say which with --job"));
        }
    };
    match containers.remove(place).map_err(failed)? {
        true => Ok(()),
        false => Err(CommandError::refused(
            "bad-option",
            format!("somebody runs in the container {name} on {}", place.node),
            "wait for the end of the step, or cancel it",
        )),
    }
}

fn prune(arguments: &PruneArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let Swept { removed, used } =
        sweep(&context.host, &context.site, arguments.job).map_err(CommandError::engine)?;
    if arguments.json {
        let all = |places: &[ContainerPlace]| -> Vec<Value> {
            let one = |place: &ContainerPlace| json!({ "name": shown(place), "job": job(place), "node": place.node });
            places.iter().map(one).collect()
        };
        print_json(&json!({ "schema": SCHEMA, "removed": all(&removed), "in_use": all(&used) }))?;
        return Ok(ExitCode::SUCCESS);
    }
    data(&format!("removed {}, kept {} in use\n", removed.len(), used.len()))?;
    Ok(ExitCode::SUCCESS)
}

fn save(arguments: SaveArgs) -> Result<Value, CommandError> {
    // The process that has started this one reads signals by a descriptor, and has blocked them.
    situla_sys::set_signal_mask(&situla_sys::SignalMask::of([]))
        .map_err(|errno| CommandError::other(&errno, "setup-failed", None))?;
    // Before there are threads. Programs give their files modes by which their owner may not read them.
    read_own_files().map_err(|failure| CommandError::engine(EngineError::Runtime(failure)))?;
    end_with(arguments.for_process)?;
    let SaveArgs { root, target, .. } = arguments;
    // Other tasks have ended by now, and Slurm may not wait for this one.
    if std::env::var("SLURM_STEP_NUM_TASKS").is_ok_and(|tasks| tasks != "1") {
        note(&format!("situla: saving the container to {} ({})", target.display(), step_name()));
    }
    let conversion = Conversion {
        source: Source::Path(root),
        target: &target,
        format: OutputFormat::Sqsh,
        owners: Owners::Root,
        transfer: Transfer { overwrite: true, show: Show::Nothing, warn: true, ..Transfer::default() },
    };
    let (converted, _) = conversion.run()?;
    Ok(json!({
        "rootfs_digest": converted.rootfs_digest.to_string(),
        "bytes": converted.bytes.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shown_by_name_and_job() {
        for (scope, name, want) in [
            ("job-my-cluster-17", "a", ("a", "17")),
            ("job-my-cluster-17.2", "a", ("a", "17")),
            ("global", "b.c", ("b.c", "global")),
            ("job-c-3", ".step-3.0", ("step-3.0", "3")),
        ] {
            let place =
                ContainerPlace { scope: scope.to_owned(), node: "n".to_owned(), name: name.to_owned() };
            assert_eq!((shown(&place), job(&place)), want);
        }
    }
}
