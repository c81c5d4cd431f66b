//! `situla rm`: images out of the user's store.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use situla_image::{Place, Scheme, Store, StoreEntry};
use situla_oci::{Algorithm, Digest, Reference};

use super::images::{described, failed, open_existing, print_json};
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, size};
use crate::registries;

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;

/// Fewest digits by which an image is named: less are typing mistakes.
const FEWEST_DIGITS: usize = 6;

/// Remove images from your store.
#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Remove also what is in use; jobs on other machines may fail then
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A reference that was pulled, or a manifest digest, or the beginning of one as `situla images` shows it
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Removes images.
pub(crate) fn rm(arguments: &RmArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &RmArgs) -> Result<(), CommandError> {
    let context = Context::gather()?;
    let store = open_existing(&context)?;
    let entries =
        store.as_ref().map(|store| store.entries().map_err(failed)).transpose()?.unwrap_or_default();
    // Whoever fills the site's store, and named it as his own, may take something out of it.
    let ours = if store.as_ref().is_some_and(Store::is_shared) { Place::Site } else { Place::Own };
    // All are found before any goes.
    let mut chosen: Vec<&StoreEntry> = Vec::new();
    for text in &arguments.images {
        let short = |name: &str| registries::parse(name).ok().map(|named| named.reference);
        for entry in find(&entries, ours, text, &short)? {
            if !chosen.contains(&entry) {
                chosen.push(entry);
            }
        }
    }
    let (mut removed, mut errors) = (Vec::<&StoreEntry>::new(), Vec::new());
    for entry in chosen {
        let Some(store) = &store else { continue };
        match store.remove(&entry.image, arguments.force) {
            Ok(true) => removed.push(entry),
            Ok(false) => errors.push(in_use(entry)),
            Err(error) => errors.push(failed(error)),
        }
    }
    if let Some(error) = CommandError::all(errors) {
        return Err(error);
    }
    if arguments.json {
        let removed: Vec<Value> = removed.into_iter().map(described).collect();
        return print_json(&json!({ "schema": SCHEMA, "removed": removed }));
    }
    for entry in removed {
        data(&format!("removed {} ({})\n", entry.image.manifest_digest, size(entry.image.bytes)))?;
    }
    Ok(())
}

fn in_use(entry: &StoreEntry) -> CommandError {
    let users: Vec<String> =
        entry.users.iter().map(|user| format!("process {} on {}", user.pid, user.host)).collect();
    let by = if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) };
    CommandError::refused(
        "setup-failed",
        format!("{} is in use{by}", entry.image.manifest_digest),
        "wait for its end, or use --force",
    )
}

/// The images of the store at `ours` that `text` names: all that were made of one manifest. `short` tells what a name
/// without a registry means.
fn find<'a>(
    entries: &'a [StoreEntry],
    ours: Place,
    text: &str,
    short: &dyn Fn(&str) -> Option<Reference>,
) -> Result<Vec<&'a StoreEntry>, CommandError> {
    let name = Scheme::split(text).map_or(text, |(_, name)| name);
    let of_algorithm = |algorithm: Algorithm| {
        let hex = name.strip_prefix(algorithm.name())?.strip_prefix(':')?;
        Some((Some(algorithm), hex))
    };
    let (algorithm, hex) = Algorithm::ALL.into_iter().find_map(of_algorithm).unwrap_or((None, name));
    let is_hex = hex.len() >= FEWEST_DIGITS && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digest: Option<Digest> = name.parse().ok();
    let reference = Reference::parse(name).ok().or_else(|| short(name));
    let matches = |entry: &&StoreEntry| {
        let manifest = &entry.image.manifest_digest;
        digest.as_ref() == Some(manifest)
            || is_hex
                && manifest.hex().starts_with(hex)
                && algorithm.is_none_or(|algorithm| algorithm == manifest.algorithm())
            || reference.as_ref().is_some_and(|reference| entry.references.contains(reference))
    };
    let found: Vec<&StoreEntry> = entries.iter().filter(matches).collect();
    let Some(first) = found.first() else {
        return Err(CommandError::refused(
            "image-missing",
            format!("{text} is not in your store"),
            "`situla images` lists what is there",
        ));
    };
    if found.iter().any(|entry| entry.image.manifest_digest != first.image.manifest_digest) {
        return Err(CommandError::usage(
            format!("{text} is the beginning of several digests"),
            "write more of it; `situla images --json` shows all of them",
        ));
    }
    let own: Vec<&StoreEntry> = found.into_iter().filter(|entry| entry.image.place == ours).collect();
    if own.is_empty() {
        return Err(CommandError::refused(
            "setup-failed",
            format!("{text} is in the site's store"),
            "its administrator removes it there, with SITULA_STORE set to that directory",
        ));
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use situla_image::{ConvertOptions, Recipe, StoredImage};

    use super::*;

    fn entry(content: &str, reference: &str, place: Place) -> StoreEntry {
        let image = StoredImage {
            manifest_digest: Digest::sha256(content.as_bytes()),
            rootfs_digest: Digest::sha256(b"rootfs"),
            sif_digest: None,
            recipe: Recipe::of(&ConvertOptions::default()),
            path: "/images/x.sqsh".into(),
            bytes: 1,
            place,
            made: None,
        };
        let references = vec![reference.parse().unwrap()];
        StoreEntry { image, references, last_used: None, users: Vec::new() }
    }

    #[test]
    fn images_are_named_by_reference_or_digest() {
        let entries = [
            entry("a", "r.example/a:1", Place::Own),
            entry("a", "r.example/a:1", Place::Site),
            entry("b", "r.example/b:1", Place::Own),
            entry("c", "r.example/c:1", Place::Site),
        ];
        let a = Digest::sha256(b"a");
        let short = |name: &str| (name == "a:1").then(|| "r.example/a:1".parse().unwrap());
        for text in [
            "r.example/a:1",
            "docker://r.example/a:1",
            "oras://r.example/a:1",
            "a:1",
            "docker://a:1",
            a.hex(),
        ] {
            let found = find(&entries, Place::Own, text, &short).unwrap();
            assert_eq!(found, [&entries[0]], "{text}");
        }
        for text in [&a.to_string(), &a.hex()[..12]] {
            let found = find(&entries, Place::Own, text, &short).unwrap();
            assert_eq!(found, [&entries[0]], "{text}");
        }
        for (text, message) in [
            ("r.example/a:2", "not in your store"),
            (&a.hex()[..5], "not in your store"),
            ("ffffffffffff", "not in your store"),
            ("b:1", "not in your store"),
            ("r.example/c:1", "site's store"),
        ] {
            let json = find(&entries, Place::Own, text, &short).unwrap_err().to_json();
            assert!(json["message"].as_str().unwrap().contains(message), "{text}: {json}");
            assert!(!json["remedy"].is_null(), "{json}");
        }
        let mut long = entry("d", "r.example/d:1", Place::Own);
        long.image.manifest_digest = format!("sha512:{}", "d5".repeat(64)).parse().unwrap();
        let with_long = [entries[0].clone(), long];
        for text in ["sha512:d5d5d5d5", "d5d5d5d5"] {
            let found = find(&with_long, Place::Own, text, &short).unwrap();
            assert_eq!(found, [&with_long[1]], "{text}");
        }
        for text in ["sha256:d5d5d5d5".to_owned(), format!("sha512:{}", &a.hex()[..12])] {
            let json = find(&with_long, Place::Own, &text, &short).unwrap_err().to_json();
            assert!(json["message"].as_str().unwrap().contains("not in your store"), "{text}: {json}");
        }
        // Their administrator's commands are about the site's.
        assert_eq!(find(&entries, Place::Site, "r.example/c:1", &short).unwrap(), [&entries[3]]);
    }
}
