//! `situla images`: what is in the stores, and whether it is still what was put there.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};
use situla_engine::store_places;
use situla_image::{Event, Place, Progress, Store, StoreEntry, StoreOptions};

use super::pull::own_store;
use crate::Context;
use crate::command_error::CommandError;
use crate::output::{data, size, table};
use crate::progress::{Meter, Show};

/// Hexadecimal digits of a digest that tell images of one store apart.
const SHORT_DIGEST: usize = 12;

/// List the images in your store and the site's.
#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    /// Read every image and compare it with its digest; fails if one is damaged
    #[arg(long)]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the images.
pub(crate) fn images(arguments: &ImagesArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.json => Ok(error.report_json()),
        result => result,
    }
}

fn run(arguments: &ImagesArgs) -> Result<ExitCode, CommandError> {
    let context = Context::gather()?;
    let Some(store) = look(&context)? else {
        let text = if arguments.json { "[]\n".to_owned() } else { table(&[heading(arguments.verify)]) };
        return data(&text).map(|()| ExitCode::SUCCESS);
    };
    let mut entries = store.entries().map_err(failed)?;
    // For people by name below, for programs by digest.
    entries.sort_by(|a, b| a.image.manifest_digest.cmp(&b.image.manifest_digest));
    let (mut rows, mut values, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    let show = if arguments.json || !arguments.verify { Show::Nothing } else { Show::Suitable };
    let meter = Meter::start(show, "");
    meter.event(Event::ToRead { bytes: entries.iter().map(|entry| entry.image.bytes).sum() });
    for entry in &entries {
        let is_whole = match arguments.verify {
            true => Some(store.verify(&entry.image, &meter).map_err(failed)?),
            false => None,
        };
        if is_whole == Some(false) {
            damaged.push(entry.image.path.display().to_string());
        }
        let mut value = described(entry);
        if let Some(is_whole) = is_whole {
            value["verified"] = is_whole.into();
        }
        values.push(value);
        rows.extend(described_rows(entry, is_whole));
    }
    drop(meter);
    if arguments.json {
        print_json(&Value::from(values))?;
    } else {
        rows.sort();
        rows.insert(0, heading(arguments.verify));
        data(&table(&rows))?;
    }
    if damaged.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let error = CommandError::refused(
        "digest-mismatch",
        format!("changed since it was stored: {}", damaged.join(", ")),
        "remove it with `situla rm DIGEST`, pull it again, and check the disk it is on",
    );
    // With --json the values have said so.
    if arguments.json { Ok(error.end_told()) } else { Err(error) }
}

fn heading(verify: bool) -> Vec<String> {
    let columns = ["REFERENCE", "MANIFEST", "SIZE", "LAST USE", "IN USE", "STORE"];
    let verified = verify.then_some("VERIFIED");
    columns.into_iter().chain(verified).chain(["PATH"]).map(str::to_owned).collect()
}

/// A row for each reference of an image.
fn described_rows(entry: &StoreEntry, is_whole: Option<bool>) -> Vec<Vec<String>> {
    let mut references: Vec<String> = entry.references.iter().map(ToString::to_string).collect();
    if references.is_empty() {
        // Its name means another image by now.
        references.push("-".to_owned());
    }
    let image = &entry.image;
    let short: String = image.manifest_digest.hex().chars().take(SHORT_DIGEST).collect();
    let ago = |last: SystemTime| SystemTime::now().duration_since(last).unwrap_or_default().as_secs();
    let last = entry.last_used.map_or_else(|| "-".to_owned(), |last| super::instance::age(ago(last)));
    let in_use = match (image.place, entry.users.len()) {
        (Place::Site, _) => "-".to_owned(),
        (Place::Own, 0) => "no".to_owned(),
        (Place::Own, n) => n.to_string(),
    };
    let row = |reference: String| {
        let cells = [reference, short.clone(), size(image.bytes), last.clone(), in_use.clone()];
        let cells = cells.into_iter().chain([place(image.place).to_owned()]);
        let verified = is_whole.map(|is_whole| if is_whole { "yes" } else { "DAMAGED" }.to_owned());
        cells.chain(verified).chain([image.path.display().to_string()]).collect()
    };
    references.into_iter().map(row).collect()
}

/// An image for programs.
pub(crate) fn described(entry: &StoreEntry) -> Value {
    let seconds = |time: Option<SystemTime>| {
        time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
    };
    let image = &entry.image;
    let users: Vec<Value> =
        entry.users.iter().map(|user| json!({ "host": user.host, "pid": user.pid })).collect();
    json!({
        "references": entry.references.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "manifest_digest": image.manifest_digest.to_string(),
        "rootfs_digest": image.rootfs_digest.to_string(),
        "recipe": image.recipe,
        "bytes": image.bytes,
        "path": image.path.to_string_lossy(),
        "store": place(image.place),
        "made": seconds(image.made),
        "last_used": seconds(entry.last_used),
        "users": users,
    })
}

/// The name of a store.
pub(crate) fn place(place: Place) -> &'static str {
    match place {
        Place::Own => "user",
        Place::Site => "site",
    }
}

/// The stores as they are: looking must not make one. `None` where there is no place for any.
pub(crate) fn look(context: &Context) -> Result<Option<Store>, CommandError> {
    let places = store_places(&context.site, &context.host);
    let Some(own) = places.own.as_ref().or(places.site.as_ref()) else { return Ok(None) };
    Store::look(own, places.site.as_deref(), StoreOptions::default()).map(Some).map_err(failed)
}

/// The user's store for changes; `None` where it has not been made yet.
pub(crate) fn open_existing(context: &Context) -> Result<Option<Store>, CommandError> {
    let own = own_store(context)?;
    if !own.join("images").exists() {
        return Ok(None);
    }
    super::pull::open_store(context).map(Some)
}

pub(crate) fn failed(error: situla_image::StoreError) -> CommandError {
    CommandError::store(&error)
}

/// Prints a value for programs.
pub(crate) fn print_json(value: &Value) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| CommandError::other(&error, "setup-failed", None))?;
    data(&format!("{text}\n"))
}
