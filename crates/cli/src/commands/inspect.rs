//! `situla inspect`: what an image is and how it wants to be run.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use situla_engine::store_places;
use situla_image::{Identities, Inspection, Source, inspect_layers};
use situla_oci::{EnrootReference, Platform};

use super::convert::{Opened, open_image, parse_source};
use super::images::{failed, look};
use super::push::scratch;
use super::transfer::recipe;
use crate::Context;
use crate::command_error::CommandError;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, size, table};
use crate::progress::{Meter, Show};

/// Show what an image is and how it wants to be run.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the digest of its root file system; a file is read for that once, as long as it does not change
    #[arg(long)]
    hash: bool,
    /// A .sif or .sqsh file, a directory, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], or
    /// docker://REGISTRY/NAME:TAG or oras://REGISTRY/NAME:TAG that was pulled before
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Describes an image.
pub(crate) fn inspect(arguments: &InspectArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &InspectArgs) -> Result<(), CommandError> {
    let context = Context::gather()?;
    let places = store_places(&context.site, &context.host);
    let identities = places.own.as_deref().map(Identities::of_store);
    let described = |path: &std::path::Path| {
        let show = if arguments.json || !arguments.hash { Show::Nothing } else { Show::Suitable };
        let meter = Meter::start(show, "");
        situla_image::inspect(path, arguments.hash, identities.as_ref(), &meter)
            .map_err(|error| CommandError::convert(&error))
    };
    let found = match parse_source(&arguments.image)? {
        Source::Path(path) => described(&path)?,
        Source::Layout(..) | Source::LayoutArchive(..) | Source::DockerArchive(..) if arguments.hash => {
            return Err(CommandError::usage(
                format!("{} has layers, and no root file system that could be hashed", arguments.image),
                format!("make one first: situla convert {} image.sqsh", arguments.image),
            ));
        }
        source @ Source::Layout(..) => described_layers("oci-layout", &source)?,
        source @ Source::LayoutArchive(..) => described_layers("oci-archive", &source)?,
        source @ Source::DockerArchive(..) => described_layers("docker-archive", &source)?,
        Source::Registry(scheme, EnrootReference { reference, .. }) => {
            let missing = || {
                CommandError::refused(
                    "image-missing",
                    format!("{reference} is not in your store"),
                    format!("fetch it with `situla pull {scheme}{reference}`"),
                )
            };
            let store = look(&context)?.ok_or_else(missing)?;
            let manifest = store.lookup(&reference, &Platform::native()).map_err(failed)?;
            let recipe = recipe()?;
            let stored = match manifest {
                Some(manifest) => store.get(&manifest, &recipe).map_err(failed)?,
                None => None,
            };
            let stored = stored.ok_or_else(missing)?;
            let mut found = described(&stored.path)?;
            // By which it is known here; a SIF file may also say from which layers it was once made.
            found.manifest_digest = Some(stored.manifest_digest.clone());
            // What was hashed now is worth more than what was written down then.
            found.rootfs_digest = found.rootfs_digest.or(Some(stored.rootfs_digest));
            found
        }
    };
    if arguments.json {
        let text = serde_json::to_string_pretty(&found)
            .map_err(|error| CommandError::other(&error, "setup-failed", None))?;
        return data(&format!("{text}\n"));
    }
    data(&in_words(&found))
}

/// Describes an image of a layout or archive, which need not be converted for that.
fn described_layers(kind: &'static str, source: &Source) -> Result<Inspection, CommandError> {
    remove_temporaries_on_signal();
    let path = source.path().unwrap_or(Path::new(""));
    match open_image(source, None, &Platform::native(), &scratch().join("image"), &())? {
        Opened::Image(image) => inspect_layers(kind, path, &*image, &Platform::native())
            .map_err(|error| CommandError::resolve(&error)),
        Opened::File(_) | Opened::Directory(_) => {
            situla_image::inspect(path, false, None, &()).map_err(|error| CommandError::convert(&error))
        }
    }
}

/// The description for people.
fn in_words(found: &Inspection) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    row("kind", found.kind.to_owned());
    row("path", found.path.display().to_string());
    let optional = [
        ("size", found.bytes.map(size)),
        ("manifest", found.manifest_digest.as_ref().map(ToString::to_string)),
        ("rootfs", found.rootfs_digest.as_ref().map(ToString::to_string)),
        ("platform", found.platform.clone()),
        ("created", found.created.clone()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            row(name, value);
        }
    }
    if let Some(config) = &found.config {
        let words = |list: &[String]| serde_json::to_string(list).unwrap_or_default();
        let lists = [("entrypoint", &config.entrypoint), ("command", &config.cmd)];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            row(name, words(list));
        }
        let texts = [("workdir", &config.working_dir), ("user", &config.user)];
        for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            row(name, printable(text));
        }
        for line in &config.env {
            row("env", printable(line));
        }
        for (key, value) in &config.labels {
            row("label", printable(&format!("{key}={value}")));
        }
    }
    for layer in &found.layers {
        row("layer", format!("{} ({}, {})", layer.digest, size(layer.bytes), printable(&layer.media_type)));
    }
    if let Some(squashfs) = &found.squashfs {
        row(
            "squashfs",
            format!(
                "{} in blocks of {}, {} inodes, {} fragments, {} at offset {}",
                squashfs.compressor,
                size(squashfs.block_size.into()),
                squashfs.inodes,
                squashfs.fragments,
                size(squashfs.bytes),
                squashfs.offset
            ),
        );
    }
    if let Some(sif) = &found.sif {
        row("sif", format!("{}, {}", sif.architecture, printable(&sif.launch)));
        for object in &sif.objects {
            row(
                "object",
                format!(
                    "{} {} {} ({} at offset {})",
                    object.id,
                    object.listed,
                    printable(&object.name),
                    size(object.bytes),
                    object.offset
                ),
            );
        }
    }
    table(&rows)
}

/// Text of an image for a terminal: whoever made it must not steer that.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped: Vec<char> = if c.is_control() { c.escape_default().collect() } else { vec![c] };
            escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_images_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
    }
}
