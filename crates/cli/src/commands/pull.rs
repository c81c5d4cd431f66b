//! `situla pull`: an image from a registry, a layout or an archive into the user's store, and from there to a file.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use situla_engine::store_places;
use situla_image::{
    Client, ClientError, ClientOptions, OutputFormat, PulledImage, SavedSif, Scheme, Source, Store,
    StoreOptions, StoredImage, export, pull_from, pull_sif, save_sif,
};
use situla_oci::{EnrootReference, Reference};

use super::convert::{Opened, check_output, open_image, output_format};
use super::images::place;
use super::push::scratch;
use super::transfer::{Made, Transfer, TransferOptions, convert_options};
use crate::Context;
use crate::command_error::CommandError;
use crate::image_error::wants_login;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, note, size};
use crate::progress::{Meter, Show};
use crate::registries;
use crate::registry_access::{anonymous, options_for};

/// Fetch an image from a registry, a layout or an archive into your store, and to a file.
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// Write the image to this file as well; its name ends in .sif or .sqsh. A SIF file of a registry goes to a .sif file
    /// alone, as it is
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only make sure that the image is in the store (so it is without --output)
    #[arg(long, conflicts_with = "output")]
    store_only: bool,
    /// For whoever fills the site's store: put an image there that needs a login, which all users may then have
    #[arg(long)]
    for_all: bool,
    #[command(flatten)]
    options: TransferOptions,
    /// Fetch for a run: show progress beside the object, and end with this process, which waits
    #[arg(long, hide = true, value_name = "PID", requires = "json")]
    for_process: Option<i32>,
    /// The image: [docker://][USER@][REGISTRY/]NAME[:TAG][@DIGEST]; oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    /// docker-archive:FILE[:NAME]; or oras://[USER@][REGISTRY/]NAME[:TAG][@DIGEST] for a SIF file, which is kept as it is
    #[arg(value_name = "REFERENCE")]
    reference: String,
}

/// Pulls.
pub(crate) fn pull(arguments: &PullArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.options.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &PullArgs) -> Result<(), CommandError> {
    if let Some(parent) = arguments.for_process {
        end_with(parent)?;
    }
    let source = match parse_layout(&arguments.reference)? {
        Some(layout) => layout,
        None => {
            parse_reference(&arguments.reference).map(|(scheme, image)| Source::Registry(scheme, image))?
        }
    };
    let mut transfer = Transfer { for_all: arguments.for_all, ..arguments.options.transfer() };
    if arguments.for_process.is_some() {
        transfer.for_run = true;
        transfer.show = if arguments.options.quiet { Show::Nothing } else { Show::Suitable };
    }
    let output = match &arguments.output {
        Some(path) => Some((path.as_path(), output_format(path)?)),
        None => None,
    };
    let (overwrite, show) = (transfer.overwrite, transfer.show);
    if let Some((path, _)) = output {
        // Before minutes of work.
        check_output(path, overwrite)?;
    }
    let context = Context::gather()?;
    let (pulled, reference) = match source {
        Source::Registry(scheme, image) => {
            let reference = image.reference.to_string();
            let fetch = Fetch { scheme, image, transfer };
            if let (Scheme::Oras, Some((path, OutputFormat::Sif))) = (scheme, output) {
                return as_it_is(&fetch, path, arguments.options.json);
            }
            (fetch.ensure_stored(&context)?, reference)
        }
        layout => (store_layout(&layout, &transfer, &context)?, layout.to_string()),
    };
    let (path, bytes) = match output {
        None => (pulled.path.clone(), pulled.bytes),
        Some((path, format)) => (path.to_owned(), export_to(&pulled, path, format, overwrite, show)?),
    };
    let made = Made {
        path: &path,
        manifest_digest: Some(&pulled.manifest_digest),
        rootfs_digest: &pulled.rootfs_digest,
        bytes,
        timings: pulled.timings,
    };
    if arguments.options.json {
        let mut value = made.to_json();
        value["reference"] = reference.into();
        value["was_present"] = pulled.was_present.into();
        value["store"] = place(pulled.place).into();
        return data(&format!("{value}\n"));
    }
    data(&made.described())
}

/// Fetches a SIF file to where it is wanted. It need not be one that can be mounted here, and is in no store.
fn as_it_is(fetch: &Fetch, path: &Path, json: bool) -> Result<(), CommandError> {
    let SavedSif { manifest_digest, file_digest, bytes } = fetch.sif_to_file(path)?;
    if json {
        let value = serde_json::json!({
            "path": std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            "reference": fetch.image.reference.to_string(), "manifest_digest": manifest_digest.to_string(),
            "file_digest": file_digest.to_string(), "bytes": bytes,
        });
        return data(&format!("{value}\n"));
    }
    data(&format!(
        "{} ({})\nmanifest {manifest_digest}\nfile     {file_digest}\n",
        path.display(),
        size(bytes)
    ))
}

/// Makes this process end, as by SIGTERM, when the one that has started it does, whatever way that takes.
pub(crate) fn end_with(parent: i32) -> Result<(), CommandError> {
    let failed = |why: &dyn std::error::Error| CommandError::other(why, "setup-failed", None);
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|errno| failed(&errno))?;
    match getppid().map(|pid| pid.as_raw_nonzero().get()) {
        Some(found) if found == parent => Ok(()),
        // It ended before the call above, so there will be no signal.
        _ => Err(CommandError::refused("setup-failed", "the process that waits for the image has ended", "")),
    }
}

/// Understands a reference, with or without `docker://`, or with `oras://`; a user whose login is used; and a registry.
pub(crate) fn parse_reference(text: &str) -> Result<(Scheme, EnrootReference), CommandError> {
    match Scheme::split(text) {
        Some((scheme, _)) => registries::parse(text).map(|image| (scheme, image)),
        None if text.contains("://") => {
            let scheme = text.split("://").next().unwrap_or_default();
            Err(CommandError::usage(
                format!("images of the kind {scheme}:// cannot be used here"),
                "use docker://REGISTRY/NAME:TAG, or oras://REGISTRY/NAME:TAG for a SIF file",
            ))
        }
        None => registries::parse(text).map(|image| (Scheme::Docker, image)),
    }
}

/// An image to be fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) scheme: Scheme,
    pub(crate) image: EnrootReference,
    pub(crate) transfer: Transfer,
}

impl Fetch {
    /// A client for the registry, after the policy was asked.
    pub(crate) fn client(&self, context: &Context) -> Result<Client, CommandError> {
        self.client_options(context).map(Client::new)
    }

    fn client_options(&self, context: &Context) -> Result<ClientOptions, CommandError> {
        let Transfer { plain_http, authfile, .. } = &self.transfer;
        let (options, warnings) = options_for(&self.image, *plain_http, authfile.clone(), context)?;
        for warning in warnings.iter().filter(|_| self.transfer.warn) {
            note(&format!("warning: {warning}"));
        }
        Ok(options)
    }

    /// Makes sure that the image is in the store.
    pub(crate) fn ensure_stored(&self, context: &Context) -> Result<PulledImage, CommandError> {
        let options = self.client_options(context)?;
        let stranger = anonymous(&options);
        let mut client = Client::new(options);
        remove_temporaries_on_signal();
        let store = open_store(context)?;
        let is_for_strangers = store.is_shared() && !self.transfer.for_all;
        if is_for_strangers {
            let stranger = Client::new(stranger);
            self.expect_public(&stranger, &client)?;
            // And nothing of it but what a stranger gets: layers may want a login where the manifest does not.
            client = stranger;
        }
        let about = if self.transfer.for_run {
            format!("fetching {}: ", short(&self.image.reference))
        } else {
            String::new()
        };
        let meter = Meter::start(self.transfer.show, &about);
        let (reference, platform) = (&self.image.reference, &self.transfer.platform);
        let refused = |error: &(dyn Error + 'static), told: CommandError| match wants_login(error) {
            true if is_for_strangers => self.not_public(),
            _ => told,
        };
        match self.scheme {
            Scheme::Docker => {
                let options = convert_options(false)?;
                situla_image::pull(&client, reference, platform, &store, &options, &meter)
                    .map_err(|error| refused(&error, CommandError::pull(&error)))
            }
            Scheme::Oras => pull_sif(&client, reference, platform, &store, &meter)
                .map_err(|error| refused(&error, CommandError::sif_transfer(&error))),
        }
    }

    /// Fails where an image is for those who have a login: in the site's store it is for all. Whether a login was used
    /// tells nothing of that: registries take one for what everybody may have, too.
    fn expect_public(&self, stranger: &Client, client: &Client) -> Result<(), CommandError> {
        let reference = &self.image.reference;
        let failed = |error| Err(CommandError::registry(&error));
        match stranger.fetch_manifest(reference) {
            Ok(_) => return Ok(()),
            // These are no answer.
            Err(
                error @ (ClientError::TooManyRequests { .. }
                | ClientError::Server { .. }
                | ClientError::Interrupted { .. }),
            ) => return failed(error),
            Err(_) => {}
        }
        // Where nobody can have it, the reason is another one.
        client.fetch_manifest(reference).map(drop).or_else(failed)?;
        Err(self.not_public())
    }

    /// What keeps an image out of the site's store.
    fn not_public(&self) -> CommandError {
        let reference = &self.image.reference;
        CommandError::refused(
            "policy-denied",
            format!("{reference} is not to be had without a login, and everybody can read the site's store"),
            format!(
                "if all users of the site may have it, say so: situla pull --for-all {}{reference}; else pull it \
                 into your own store",
                self.scheme
            ),
        )
    }

    /// Fetches a SIF file, as it is.
    pub(crate) fn sif_to_file(&self, path: &Path) -> Result<SavedSif, CommandError> {
        check_output(path, self.transfer.overwrite)?;
        let client = self.client(&Context::gather()?)?;
        remove_temporaries_on_signal();
        let meter = Meter::start(self.transfer.show, "");
        let options = convert_options(self.transfer.overwrite)?;
        save_sif(&client, &self.image.reference, &self.transfer.platform, path, &options, &meter)
            .map_err(|error| CommandError::sif_transfer(&error))
    }

    /// Fetches the image and writes it to a file; gives the size of that.
    pub(crate) fn to_file(
        &self,
        path: &Path,
        format: OutputFormat,
    ) -> Result<(PulledImage, u64), CommandError> {
        let overwrite = self.transfer.overwrite;
        // Before minutes of work.
        check_output(path, overwrite)?;
        let pulled = self.ensure_stored(&Context::gather()?)?;
        let bytes = export_to(&pulled, path, format, overwrite, self.transfer.show)?;
        Ok((pulled, bytes))
    }
}

/// Writes an image of the store to a file; gives the size of that.
fn export_to(
    pulled: &PulledImage,
    path: &Path,
    format: OutputFormat,
    overwrite: bool,
    show: Show,
) -> Result<u64, CommandError> {
    let stored = StoredImage {
        manifest_digest: pulled.manifest_digest.clone(),
        rootfs_digest: pulled.rootfs_digest.clone(),
        sif_digest: pulled.sif_digest.clone(),
        recipe: pulled.recipe,
        path: pulled.path.clone(),
        bytes: pulled.bytes,
        place: pulled.place,
        made: None,
    };
    let meter = Meter::start(show, "");
    let exported = export(&stored, path, format, &convert_options(overwrite)?, &meter);
    exported.map(|exported| exported.bytes).map_err(|error| CommandError::convert(&error))
}

/// Understands the name of a layout or archive; `None` where it is that of something else.
fn parse_layout(text: &str) -> Result<Option<Source>, CommandError> {
    Source::parse_layout(text, Path::new("")).map_err(|error| CommandError::source_name(&error))
}

/// Makes sure that the image of a layout or archive is in the store. It is known there by its manifest alone: what
/// lies under a path may be another image tomorrow.
fn store_layout(
    source: &Source,
    transfer: &Transfer,
    context: &Context,
) -> Result<PulledImage, CommandError> {
    remove_temporaries_on_signal();
    let store = open_store(context)?;
    let about = if transfer.for_run { format!("converting {}: ", last_part(source)) } else { String::new() };
    let meter = Meter::start(transfer.show, &about);
    let options = convert_options(false)?;
    let opened = open_image(source, None, &transfer.platform, &scratch().join("image"), &meter)?;
    let image = match opened {
        Opened::Image(image) => image,
        Opened::File(_) | Opened::Directory(_) => {
            return Err(CommandError::usage(
                format!("{source} is no layout and no archive"),
                "write oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME",
            ));
        }
    };
    pull_from(&*image, source, &transfer.platform, &store, &options, &meter)
        .map_err(|error| CommandError::pull(&error))
}

/// The name of a layout or archive, without the way to it.
fn last_part(source: &Source) -> String {
    let name = source.path().and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The last part of a name, and the tag: short enough to stand before what else a line has to say.
fn short(reference: &Reference) -> String {
    let name = reference.repository().to_string();
    let last = name.rsplit('/').next().unwrap_or(&name);
    reference.tag().map_or_else(|| last.to_owned(), |tag| format!("{last}:{tag}"))
}

/// Opens the user's store, making it if need be, and the site's beside it.
pub(crate) fn open_store(context: &Context) -> Result<Store, CommandError> {
    let site = store_places(&context.site, &context.host).site;
    Store::open(&own_store(context)?, site.as_deref(), StoreOptions::default())
        .map_err(|error| CommandError::store(&error))
}

/// Where the user's store is or would be.
pub(crate) fn own_store(context: &Context) -> Result<PathBuf, CommandError> {
    store_places(&context.site, &context.host).own.ok_or_else(|| {
        CommandError::refused(
            "setup-failed",
            "your account has no home directory for images",
            "set SITULA_STORE to a directory of your own",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_has_room_for_more_than_the_name() {
        let digest = "0".repeat(64);
        for (text, expected) in [
            ("registry.example/a/tool:1", "tool:1"),
            (&format!("registry.example/a/tool@sha256:{digest}"), "tool"),
        ] {
            assert_eq!(short(&text.parse().unwrap()), expected);
        }
    }

    #[test]
    fn references_are_understood_or_refused_with_a_hint() {
        for (text, full) in [
            ("docker://registry.example/a/b:1", "registry.example/a/b:1"),
            ("registry.example/a/b", "registry.example/a/b:latest"),
            ("docker://127.0.0.1:5000/a:1", "127.0.0.1:5000/a:1"),
        ] {
            let (scheme, image) = parse_reference(text).unwrap();
            assert_eq!((scheme, image.reference.to_string().as_str()), (Scheme::Docker, full));
        }
        let (scheme, image) = parse_reference("oras://me@registry.example/a:1").unwrap();
        assert_eq!((scheme, image.user.as_deref()), (Scheme::Oras, Some("me")));
        assert_eq!(image.reference.to_string(), "registry.example/a:1");
        for (text, remedy) in [
            ("library://a/b", "oras://REGISTRY"),
            ("oras://", "oras://REGISTRY"),
            ("docker://", "docker://"),
            ("Bad/Name:1", "docker://"),
            ("a b", "docker://"),
        ] {
            let json = parse_reference(text).unwrap_err().to_json();
            assert_eq!(json["class"], "bad-option", "{text}");
            assert!(json["remedy"].as_str().unwrap().contains(remedy), "{text}");
        }
    }
}
