//! `situla push`: an image from a file, directory, layout or archive to a registry.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use situla_image::{
    BuiltImage, Client, FetchedSif, ImageSource, PackedImage, PushTarget, Pushed, Route, Scheme, Source,
    Transport, fetch_sif, push_image, push_sif,
};
use situla_oci::{EnrootReference, Place, Platform, Reference, ReferenceError, Registries, Repository, Tag};

use super::convert::{Opened, OwnersChoice, client_of, open_file, open_image, parse_source};
use super::transfer::{Transfer, convert_options};
use crate::command_error::CommandError;
use crate::credentials::Files;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, layers, note, size};
use crate::progress::{Meter, Show};
use crate::registries;
use crate::registry_access;

/// Send an image to a registry.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// Whose the files of a directory are in the image
    #[arg(long, value_enum, default_value_t = OwnersChoice::Keep, value_name = "WHOSE")]
    owners: OwnersChoice,
    /// Of several images of a name, the one for this kind of machine, such as linux/arm64 (otherwise: for this one)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Speak plain HTTP to the registry (loopback addresses always do)
    #[arg(long)]
    plain_http: bool,
    /// Look for logins in this file first, which has the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Print one JSON object, of success or of failure
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// A .sif or .sqsh file, a directory, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], or
    /// docker://REGISTRY/NAME:TAG, or oras://REGISTRY/NAME:TAG for a SIF file
    #[arg(value_name = "SOURCE")]
    source: String,
    /// docker://[USER@]REGISTRY/NAME[:TAG] for an image of layers, or oras://[USER@]REGISTRY/NAME[:TAG] for a SIF
    /// file as it is
    #[arg(value_name = "TARGET")]
    target: String,
}

/// Pushes.
pub(crate) fn push(arguments: &PushArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &PushArgs) -> Result<(), CommandError> {
    let transfer = Transfer {
        platform: arguments.platform.clone().unwrap_or_else(Platform::native),
        plain_http: arguments.plain_http,
        authfile: arguments.authfile.clone(),
        show: if arguments.json || arguments.quiet { Show::Nothing } else { Show::Suitable },
        warn: !arguments.json,
        ..Transfer::default()
    };
    let pushing =
        Pushing { source: &arguments.source, target: &arguments.target, owners: arguments.owners, transfer };
    let (pushed, target, skipped) = pushing.run()?;
    if arguments.json {
        return data(&format!(
            "{}\n",
            json!({
                "target": target, "manifest_digest": pushed.manifest_digest.to_string(),
                "layers": pushed.n_layers, "bytes": pushed.bytes, "bytes_sent": pushed.bytes_sent,
                "blobs_present": pushed.n_present, "blobs_mounted": pushed.n_mounted, "skipped": skipped,
            })
        ));
    }
    data(&described(&pushed, &target))
}

fn described(pushed: &Pushed, target: &str) -> String {
    let Pushed { manifest_digest, n_layers, bytes, bytes_sent, .. } = pushed;
    let layers = layers(u64::try_from(*n_layers).unwrap_or(u64::MAX));
    format!("{target}: {layers}, {}, {} sent\nmanifest {manifest_digest}\n", size(*bytes), size(*bytes_sent))
}

/// A push, whichever command asked for it.
pub(crate) struct Pushing<'a> {
    pub(crate) source: &'a str,
    pub(crate) target: &'a str,
    pub(crate) owners: OwnersChoice,
    pub(crate) transfer: Transfer,
}

impl Pushing<'_> {
    /// Pushes; also tells where to, and what cannot be in an image and was left out.
    pub(crate) fn run(self) -> Result<(Pushed, String, Vec<String>), CommandError> {
        let (scheme, image) = parse_target(self.target)?;
        let shown = format!("{scheme}{}", image.reference);
        let registries = registries::load()?;
        let target = push_target(&registries, &image, self.transfer.plain_http)?;
        let source = parse_source(self.source)?;
        if scheme == Scheme::Oras {
            let pushed = self.push_as_it_is(&source, &self.client(&image, &registries), &target)?;
            return Ok((pushed, shown, Vec::new()));
        }
        let from = blobs_from(&registries, &source, &target.route)?;
        // The policy judges what comes out of a registry, also here; what goes into one runs nothing.
        let of_source = client_of(&source, &self.transfer)?;
        let scratch = scratch();
        let (client, meter) = (self.client(&image, &registries), self.meter());
        let send = |image: &dyn ImageSource, platform: &Platform| {
            push_image(&client, image, platform, &target, from.as_ref(), &meter)
                .map_err(|error| CommandError::push(&error))
        };
        // A file or directory is for whatever machine it is for.
        let send_built = |built: BuiltImage| send(&built, &built.platform());
        let platform = &self.transfer.platform;
        let save = |error| CommandError::save(&error);
        let options = convert_options(false)?;
        let opened = open_image(&source, of_source.as_ref(), platform, &scratch.join("image"), &meter)?;
        let pushed = match opened {
            Opened::Image(image) if matches!(source, Source::DockerArchive(..)) => {
                send(&PackedImage::of(&*image, platform, &scratch).map_err(save)?, platform)
            }
            Opened::Image(image) => send(&*image, platform),
            Opened::Directory(path) => {
                let owners = self.owners.owners();
                send_built(BuiltImage::of_directory(path, owners, &scratch, &options, &meter).map_err(save)?)
            }
            Opened::File(file) => {
                send_built(BuiltImage::of_file(&file, &scratch, &options, &meter).map_err(save)?)
            }
        };
        let skipped = meter.finish();
        for skipped in skipped.iter().filter(|_| self.transfer.warn) {
            note(&format!("warning: left out {skipped}"));
        }
        Ok((pushed?, shown, skipped))
    }

    /// Pushes a SIF file as it is, from here or from a registry.
    fn push_as_it_is(
        &self,
        source: &Source,
        client: &Client,
        target: &PushTarget,
    ) -> Result<Pushed, CommandError> {
        let failed = |error| CommandError::sif_transfer(&error);
        let (file, title, meter) = match source {
            Source::Path(path) if !path.is_dir() => {
                // The name alone: others need not know where it lay.
                let title = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (open_file(path)?, title, self.meter())
            }
            Source::Registry(Scheme::Oras, image) => {
                // The policy judges what comes out of a registry, also here.
                let of_source = client_of(source, &self.transfer)?.ok_or_else(|| no_sif(self.source))?;
                let (platform, meter) = (&self.transfer.platform, self.meter());
                let fetched = fetch_sif(&of_source, &image.reference, platform, &scratch(), &meter);
                let FetchedSif { file, title } = fetched.map_err(failed)?;
                (file, title, meter)
            }
            _ => return Err(no_sif(self.source)),
        };
        let pushed = push_sif(client, &file, &title, target, &meter);
        meter.finish();
        pushed.map_err(failed)
    }

    fn client(&self, image: &EnrootReference, registries: &Registries) -> Client {
        let places = registry_access::places(self.transfer.authfile.clone());
        let keyring = Arc::new(Files::new(places, registries, image.user.clone()));
        Client::new(registry_access::options(self.transfer.plain_http, keyring))
    }

    /// Shows progress from now on; a signal removes what lies in files meanwhile.
    fn meter(&self) -> Meter {
        remove_temporaries_on_signal();
        Meter::start(self.transfer.show, "")
    }
}

/// Where layers lie until they are sent: where programs put what is large and lasts for minutes.
pub(crate) fn scratch() -> PathBuf {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
    named.unwrap_or_else(|| Path::new("/var/tmp").to_owned())
}

const TARGETS: &str = "write docker://REGISTRY/NAME:TAG, or oras://REGISTRY/NAME:TAG for a .sif file";

/// Understands a target. It names its registry itself: what a short name means may change, and who pushes has to know
/// where to.
fn parse_target(text: &str) -> Result<(Scheme, EnrootReference), CommandError> {
    let (scheme, rest) = Scheme::split(text)
        .ok_or_else(|| CommandError::usage(format!("{text} is no place in a registry"), TARGETS))?;
    let image = Reference::parse_enroot(rest).map_err(|error| match error {
        ReferenceError::NoRegistry { .. } => {
            CommandError::usage(format!("{text} names no registry to push to"), TARGETS)
        }
        error => CommandError::usage(format!("{text} is no image reference: {error}"), TARGETS),
    })?;
    if image.reference.digest().is_some() {
        let message = format!("{text}: the digest is what comes out of a push");
        return Err(CommandError::usage(message, "name a tag"));
    }
    Ok((scheme, image))
}

/// The place of a reference as `registries.conf` has it: that of the registry itself, since nobody pushes to mirrors.
fn own_place(registries: &Registries, reference: &Reference) -> Result<Place, CommandError> {
    let places = registries
        .places(reference)
        .map_err(|error| registries::name_error(&reference.to_string(), &error))?;
    Ok(places.and_then(|mut places| places.pop()).unwrap_or_else(|| Place {
        registry: reference.registry().clone(),
        repository: reference.repository().clone(),
        insecure: false,
    }))
}

fn push_target(
    registries: &Registries,
    image: &EnrootReference,
    plain_http: bool,
) -> Result<PushTarget, CommandError> {
    let reference = &image.reference;
    let Place { registry, repository, insecure } = own_place(registries, reference)?;
    let transport = match (insecure, plain_http && registry == *reference.registry()) {
        (_, true) => Transport::Plain,
        (true, false) => Transport::Insecure,
        (false, false) => Transport::Auto,
    };
    let tag: Tag = reference
        .tag()
        .map_or("latest", Tag::as_str)
        .parse()
        .map_err(|error: ReferenceError| CommandError::usage(error.to_string(), TARGETS))?;
    Ok(PushTarget { route: Route { registry, repository, transport }, tag })
}

/// The repository that has the blobs of a source already, where its place is at the registry that is pushed to,
/// whatever the names are that were written.
fn blobs_from(
    registries: &Registries,
    source: &Source,
    target: &Route,
) -> Result<Option<Repository>, CommandError> {
    let Source::Registry(Scheme::Docker, image) = source else { return Ok(None) };
    let place = own_place(registries, &image.reference)?;
    Ok((place.registry == target.registry).then_some(place.repository))
}

fn no_sif(source: &str) -> CommandError {
    CommandError::usage(
        format!("{source} is no SIF file, which oras:// is for"),
        "make one with `situla convert SOURCE image.sif`, or push it as layers, to docker://REGISTRY/NAME:TAG",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_registry_and_tag() {
        for (text, scheme, full) in [
            ("docker://r.example/a/b:1", Scheme::Docker, "r.example/a/b:1"),
            ("oras://r.example:5000/a", Scheme::Oras, "r.example:5000/a:latest"),
            ("docker://me@r.example/a:1", Scheme::Docker, "r.example/a:1"),
        ] {
            let (found, image) = parse_target(text).unwrap();
            assert_eq!((found, image.reference.to_string().as_str()), (scheme, full), "{text}");
        }
        let digest = "0".repeat(64);
        for text in [
            "r.example/a:1",
            "library://a/b",
            "docker://a",
            "docker://",
            "oras://a/b",
            "docker://r.example/A:1",
            &format!("docker://r.example/a@sha256:{digest}"),
            "oci:dir",
        ] {
            let json = parse_target(text).unwrap_err().to_json();
            assert_eq!(json["class"], "bad-option", "{text}");
            assert!(json["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{text}: {json}");
        }
    }

    #[test]
    fn blobs_are_taken_from_the_same_registry_only() {
        let mut renamed = Registries::default();
        renamed
            .add("[[registry]]\nprefix = 'short.example'\nlocation = 'r.example/team'\n[[registry]]\nprefix = 's.example/moved'\nlocation = 't.example'")
            .unwrap();
        let from = |registries: &Registries, source: &str, target: &str| {
            let source = match source.strip_prefix("docker://") {
                Some(name) => Source::Registry(Scheme::Docker, registries::parse(name).unwrap()),
                None => Source::Path(source.into()),
            };
            let target = push_target(registries, &registries::parse(target).unwrap(), false).unwrap();
            let from = blobs_from(registries, &source, &target.route).unwrap();
            from.map(|name| name.as_str().to_owned())
        };
        let plain = Registries::default();
        for (registries, source, target, want) in [
            (&plain, "docker://r.example/old:1", "r.example/new:1", Some("old")),
            (&plain, "docker://s.example/old:1", "r.example/new:1", None),
            (&plain, "old", "r.example/new:1", None),
            (&renamed, "docker://short.example/old:1", "r.example/new:1", Some("team/old")),
            (&renamed, "docker://r.example/old:1", "short.example/new:1", Some("old")),
            (&renamed, "docker://short.example/old:1", "short.example/new:1", Some("team/old")),
            // Names alike, places apart.
            (&renamed, "docker://s.example/moved/old:1", "s.example/new:1", None),
        ] {
            assert_eq!(from(registries, source, target).as_deref(), want, "{source} {target}");
        }
    }
}
