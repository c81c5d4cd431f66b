//! `apptainer cache list` and `clean`: Apptainer's names for what `situla images` and `situla prune` do.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use situla_image::{Place, StoreEntry, StoreLimits, StorePruned};

use super::images::{failed, look, open_existing};
use super::prune::in_words;
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, note, size, table};

/// The kind of what Apptainer makes of images from registries, and the only one that there is here.
const OUR_TYPE: &str = "oci-tmp";
/// The kinds that Apptainer has.
const TYPES: [&str; 8] = ["all", "library", OUR_TYPE, "shub", "blob", "net", "oras", "ipfs"];

/// Manage the images that were fetched.
#[derive(Debug, Subcommand)]
pub(crate) enum ApptainerCache {
    /// List the images
    List(ListArgs),
    /// Remove images that are not in use
    Clean(CleanArgs),
}

/// List the images.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// A line for each image
    #[arg(short, long)]
    verbose: bool,
    /// Kinds of files; those of registries are oci-tmp
    #[arg(short = 'T', long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = TYPES)]
    types: Vec<String>,
}

/// Remove images.
#[derive(Args, Debug)]
pub(crate) struct CleanArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove only what was not used for so many days
    #[arg(short = 'D', long, value_name = "DAYS", default_value_t = 0)]
    days: u64,
    /// Kinds of files; those of registries are oci-tmp
    #[arg(short = 'T', long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = TYPES)]
    types: Vec<String>,
}

/// Runs one of the commands.
pub(crate) fn apptainer_cache(command: &ApptainerCache) -> Result<ExitCode, CommandError> {
    match command {
        ApptainerCache::List(arguments) => list(arguments),
        ApptainerCache::Clean(arguments) => clean(arguments),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Whether images of registries are among the kinds that are asked for.
fn means_ours(types: &[String]) -> bool {
    types.is_empty() || types.iter().any(|name| name == "all" || name == OUR_TYPE)
}

fn list(arguments: &ListArgs) -> Result<(), CommandError> {
    let context = Context::gather()?;
    let store = look(&context)?.filter(|_| means_ours(&arguments.types));
    let mut entries = store.map(|store| store.entries().map_err(failed)).transpose()?.unwrap_or_default();
    entries.retain(|entry| entry.image.place == Place::Own);
    if arguments.verbose {
        let mut rows = vec![["NAME", "SIZE", "TYPE", "REFERENCE"].map(str::to_owned).to_vec()];
        rows.extend(entries.iter().map(|entry| {
            let name = entry.image.manifest_digest.hex().to_owned();
            let reference = entry.references.first().map(ToString::to_string).unwrap_or_default();
            vec![name, size(entry.image.bytes), OUR_TYPE.to_owned(), reference]
        }));
        data(&table(&rows))?;
    }
    data(&summary(&entries))
}

/// The two lines with which Apptainer ends: scripts read the size from the second.
fn summary(entries: &[StoreEntry]) -> String {
    let bytes = entries.iter().map(|entry| entry.image.bytes).fold(0, u64::saturating_add);
    let (n, size) = (entries.len(), size(bytes));
    format!(
        "There are {n} container file(s) using {size} and 0 oci blob file(s) using 0 B of space\n\
         Total space used: {size}\n"
    )
}

fn clean(arguments: &CleanArgs) -> Result<(), CommandError> {
    if !means_ours(&arguments.types) {
        return Ok(());
    }
    if !arguments.force && !arguments.dry_run && !is_confirmed()? {
        note("INFO:    Nothing was removed");
        return Ok(());
    }
    let limits = match arguments.days {
        0 => StoreLimits { bytes: Some(0), age: None },
        days => StoreLimits { bytes: None, age: Some(Duration::from_secs(days.saturating_mul(86400))) },
    };
    let pruned = match open_existing(&Context::gather()?)? {
        Some(store) => store.prune(&limits, arguments.dry_run).map_err(failed)?,
        None => StorePruned::default(),
    };
    data(&in_words(&pruned, arguments.dry_run))
}

fn is_confirmed() -> Result<bool, CommandError> {
    let mut input = std::io::stdin().lock();
    if !input.is_terminal() {
        return Err(CommandError::usage(
            "nobody is there to be asked whether images are to go",
            "use --force",
        ));
    }
    note("The images that you have fetched and that no job uses are removed. Go on? [y/N]");
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_are_not_here_have_nothing() {
        for (types, want) in [
            (&[][..], true),
            (&["all"], true),
            (&["oci-tmp"], true),
            (&["blob", "oci-tmp"], true),
            (&["blob", "library"], false),
        ] {
            let types: Vec<String> = types.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(means_ours(&types), want, "{types:?}");
        }
    }

    #[test]
    fn the_summary_is_as_scripts_expect_it() {
        let text = summary(&[]);
        assert_eq!(text.lines().last(), Some("Total space used: 0 B"));
        assert!(text.starts_with("There are 0 container file(s) using 0 B and"), "{text}");
    }
}
