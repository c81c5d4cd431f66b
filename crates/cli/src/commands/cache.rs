//! `situla cache`: extracted images on this node.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use situla_engine::tree_directory;
use situla_image::{CachedTree, TreeCache, TreeError, TreeLimits};
use situla_oci::Digest;

use super::pull::end_with;
use crate::Context;
use crate::command_error::CommandError;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, size, table};
use crate::progress::{Meter, Show};
use crate::resources::resources;

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// List and remove images that were extracted on this node.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the extracted images of this node
    List(ListArgs),
    /// Remove extracted images that are not in use
    Prune(PruneArgs),
    /// Extract the image that is standard input (what `--rootfs extract` starts)
    #[command(hide = true)]
    Fill(FillArgs),
}

/// List extracted images.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove extracted images.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Remove those that were not used for the longest time, until the rest has at most this size, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Remove those that were not used for this time, such as 30d or 12h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    age: Option<Duration>,
    /// Remove all
    #[arg(long, conflicts_with_all = ["size", "age"])]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Extract an image.
#[derive(Args, Debug)]
pub(crate) struct FillArgs {
    /// End when this process does, which has started this one
    #[arg(long, value_name = "PID")]
    for_process: i32,
    /// First byte of the SquashFS
    #[arg(long)]
    offset: u64,
    /// Its length
    #[arg(long)]
    length: u64,
    /// Its digest, where that is known
    #[arg(long)]
    digest: Option<Digest>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// The cache
    directory: PathBuf,
    /// The image's name
    image: PathBuf,
}

/// Runs one of the commands.
pub(crate) fn cache(command: CacheCommand) -> Result<ExitCode, CommandError> {
    match command {
        CacheCommand::List(arguments) => list(&arguments),
        CacheCommand::Prune(arguments) => prune(&arguments),
        CacheCommand::Fill(arguments) => Ok(match fill(&arguments) {
            Ok(digest) => {
                data(&format!("{}\n", json!({ "digest": digest.to_string() })))?;
                ExitCode::SUCCESS
            }
            Err(error) => error.report_json(),
        }),
    }
}

fn open(context: &Context) -> TreeCache {
    TreeCache::new(tree_directory(&context.site, &context.host))
}

fn failed(error: TreeError) -> CommandError {
    CommandError::trees(&error)
}

fn described(tree: &CachedTree) -> Value {
    let used = tree.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "rootfs_digest": tree.digest.to_string(),
        "image": tree.name,
        "path": tree.path.to_string_lossy(),
        "bytes": tree.bytes,
        "last_used": used,
        "in_use": tree.is_used,
    })
}

fn print_json(value: &Value) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    data(&format!("{text}\n"))
}

fn list(arguments: &ListArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let trees = open(&context).list().map_err(failed)?;
    if arguments.json {
        let trees: Vec<Value> = trees.iter().map(described).collect();
        print_json(&json!({ "schema": SCHEMA, "trees": trees }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["DIGEST", "SIZE", "LAST USE", "IN USE", "IMAGE"].map(str::to_owned).to_vec()];
    for tree in trees {
        let short: String = tree.digest.hex().chars().take(12).collect();
        let ago = SystemTime::now().duration_since(tree.used).unwrap_or_default().as_secs();
        let in_use = if tree.is_used { "yes" } else { "no" };
        rows.push(vec![short, size(tree.bytes), super::instance::age(ago), in_use.to_owned(), tree.name]);
    }
    data(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn prune(arguments: &PruneArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let settings = &context.site.rootfs;
    let limits = match arguments {
        PruneArgs { all: true, .. } => TreeLimits { bytes: Some(0), age: None },
        PruneArgs { size: None, age: None, .. } => {
            let limits = TreeLimits { bytes: settings.cache_bytes(), age: settings.cache_age() };
            if limits == TreeLimits::default() {
                let message = "the site sets no limits, and neither do you";
                return Err(CommandError::usage(message, "use --size, --age or --all"));
            }
            limits
        }
        PruneArgs { size, age, .. } => TreeLimits { bytes: *size, age: *age },
    };
    let pruned = open(&context).prune(&limits).map_err(failed)?;
    if arguments.json {
        let all = |trees: &[CachedTree]| trees.iter().map(described).collect::<Vec<_>>();
        print_json(&json!({
            "schema": SCHEMA,
            "removed": all(&pruned.removed),
            "in_use": all(&pruned.used),
            "bytes_left": pruned.bytes_left,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bytes = pruned.removed.iter().map(|tree| tree.bytes).fold(0, u64::saturating_add);
    let (n_removed, n_used, left) = (pruned.removed.len(), pruned.used.len(), size(pruned.bytes_left));
    data(&format!("removed {n_removed} ({}), kept {n_used} in use, {left} left\n", size(bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn fill(arguments: &FillArgs) -> Result<Digest, CommandError> {
    end_with(arguments.for_process)?;
    remove_temporaries_on_signal();
    let image = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let image = image.map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    let context = Context::gather()?;
    let cache = TreeCache::new(arguments.directory.clone());
    let show = if arguments.quiet { Show::Nothing } else { Show::Suitable };
    let name = arguments.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let meter = Meter::start(show, &format!("extracting {name}: "));
    // Too little memory for a conversion may be enough for this.
    let n_threads = resources().map_or(1, |resources| resources.n_threads);
    let part = (arguments.offset, arguments.length);
    let digest = cache
        .fill(&image, part, &arguments.image, arguments.digest.clone(), n_threads, &meter)
        .map_err(failed)?;
    drop(meter);
    let settings = &context.site.rootfs;
    let limits = TreeLimits { bytes: settings.cache_bytes(), age: settings.cache_age() };
    if limits != TreeLimits::default() {
        // The new one must not go before it is used.
        let _lease = cache.lease(&digest).map_err(failed)?;
        cache.prune(&limits).map_err(failed)?;
    }
    Ok(digest)
}

/// `20G`, `500M` or a number of bytes; in steps of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    scaled(text, |unit| units.iter().find(|(name, _)| *name == unit).map(|(_, bits)| 1 << bits))
        .ok_or_else(|| "write a number of bytes, or such as 500M, 20G or 1T".to_owned())
}

/// `30d`, `12h`, `5m`, or a number of seconds.
pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    let units = [('S', 1), ('M', 60), ('H', 3600), ('D', 86400), ('W', 604_800)];
    scaled(text, |unit| units.iter().find(|(name, _)| *name == unit).map(|(_, seconds)| *seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "write a number of seconds, or such as 12h, 30d or 4w".to_owned())
}

/// A number with a unit, which is one letter of any case.
fn scaled(text: &str, unit: impl Fn(char) -> Option<u64>) -> Option<u64> {
    let last = text.chars().last()?.to_ascii_uppercase();
    let (number, factor) = match last.is_ascii_digit() {
        true => (text, 1),
        false => (&text[..text.len() - text.chars().last()?.len_utf8()], unit(last)?),
    };
    // Signs and the like are numbers for parse.
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_have_units() {
        for (text, want) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("2k", Some(2048)),
            ("3G", Some(3 << 30)),
            ("1T", Some(1 << 40)),
            ("99999999999T", None),
            ("+1", None),
            ("-1", None),
            ("G", None),
            ("", None),
            ("1X", None),
            ("1ü", None),
        ] {
            assert_eq!(parse_size(text).ok(), want, "{text}");
        }
        for (text, want) in [("60", Some(60)), ("5m", Some(300)), ("30d", Some(2_592_000)), ("1y", None)] {
            assert_eq!(parse_age(text).ok().map(|age| age.as_secs()), want, "{text}");
        }
    }
}
