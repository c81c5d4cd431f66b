//! `situla prune`: out of the user's store what was not used for long, or is too much.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use situla_image::{Store, StoreEntry, StoreLimits, StorePruned};

use super::cache::{parse_age, parse_size};
use super::images::{described, failed, open_existing, print_json};
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, size};

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// Remove images from your store that were not used for long; those in use stay.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Remove those that were not used for this time, such as 30d or 12h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    older_than: Option<Duration>,
    /// Remove those that were not used for the longest time, until the rest has at most this size, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep_size: Option<u64>,
    /// Remove all that are not in use
    #[arg(long, conflicts_with_all = ["older_than", "keep_size"])]
    all: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prunes.
pub(crate) fn prune(arguments: &PruneArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &PruneArgs) -> Result<(), CommandError> {
    let context = Context::gather()?;
    let settings = &context.site.store;
    let store = open_existing(&context)?;
    let for_users = StoreLimits { bytes: settings.bytes(), age: settings.age() };
    let limits = limits(arguments, for_users, store.as_ref().is_some_and(Store::is_shared))?;
    let pruned = match store {
        Some(store) => store.prune(&limits, arguments.dry_run).map_err(failed)?,
        None => StorePruned::default(),
    };
    if arguments.json {
        let all = |entries: &[StoreEntry]| entries.iter().map(described).collect::<Vec<Value>>();
        return print_json(&json!({
            "schema": SCHEMA,
            "dry_run": arguments.dry_run,
            "removed": all(&pruned.removed),
            "in_use": all(&pruned.used),
            "bytes_left": pruned.bytes_left,
            "bytes_retired": pruned.bytes_retired,
        }));
    }
    data(&in_words(&pruned, arguments.dry_run))
}

/// What may stay: as the user says, else as the site does for the stores of users. What it keeps itself for all of them
/// goes when its administrator says so.
fn limits(
    arguments: &PruneArgs,
    for_users: StoreLimits,
    is_shared: bool,
) -> Result<StoreLimits, CommandError> {
    let of_site = if is_shared { StoreLimits::default() } else { for_users };
    match *arguments {
        PruneArgs { all: true, .. } => Ok(StoreLimits { bytes: Some(0), age: None }),
        PruneArgs { older_than: None, keep_size: None, .. } if of_site == StoreLimits::default() => {
            let message = "the site sets no limits for this store, and neither do you";
            Err(CommandError::usage(message, "use --older-than, --keep-size or --all"))
        }
        PruneArgs { older_than: None, keep_size: None, .. } => Ok(of_site),
        PruneArgs { older_than, keep_size, .. } => Ok(StoreLimits { bytes: keep_size, age: older_than }),
    }
}

pub(super) fn in_words(pruned: &StorePruned, dry_run: bool) -> String {
    let bytes = pruned.removed.iter().map(|entry| entry.image.bytes).fold(0, u64::saturating_add);
    let (n_removed, n_used, left) = (pruned.removed.len(), pruned.used.len(), size(pruned.bytes_left));
    let mut text = String::new();
    for entry in &pruned.removed {
        let name = entry.references.first().map_or_else(|| "-".to_owned(), ToString::to_string);
        let doing = if dry_run { "would remove" } else { "removed" };
        let image = &entry.image;
        text.push_str(&format!("{doing} {} {name} ({})\n", image.manifest_digest, size(image.bytes)));
    }
    let doing = if dry_run { "would remove" } else { "removed" };
    text.push_str(&format!("{doing} {n_removed} ({}), kept {n_used} in use, {left} left\n", size(bytes)));
    if pruned.bytes_retired > 0 {
        let retired = size(pruned.bytes_retired);
        text.push_str(&format!(
            "{retired} out of the site's store, kept for jobs that may still run from it\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_limits_count_before_the_sites() {
        let asked = |older_than, keep_size, all| PruneArgs {
            older_than: Option::map(older_than, Duration::from_secs),
            keep_size,
            all,
            dry_run: false,
            json: false,
        };
        let limits_of = |age, bytes| StoreLimits { age: Option::map(age, Duration::from_secs), bytes };
        let site = limits_of(Some(9), Some(8));
        for (arguments, of_site, want) in [
            (asked(None, None, true), site, limits_of(None, Some(0))),
            (asked(None, None, false), site, site),
            (asked(Some(1), None, false), site, limits_of(Some(1), None)),
            (asked(None, Some(2), false), site, limits_of(None, Some(2))),
        ] {
            assert_eq!(limits(&arguments, of_site, false).unwrap(), want, "{arguments:?}");
        }
        assert!(limits(&asked(None, None, false), StoreLimits::default(), false).is_err());
        // The site's own store is no user's.
        assert!(limits(&asked(None, None, false), site, true).is_err());
        assert_eq!(limits(&asked(Some(1), None, false), site, true).unwrap(), limits_of(Some(1), None));
    }
}
