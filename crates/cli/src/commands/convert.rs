//! `situla convert`: any source to a `.sqsh` or `.sif` file, a directory, a layout or an archive, without the store.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use situla_image::{
    Client, ConvertError, Converted, DockerArchiveImage, Doing, FileError, ImageFile, ImageSource,
    LayoutImage, OutputFormat, Owners, Progress, SavedImage, Scheme, Source, Target, Unpacked,
    convert_directory, convert_file, convert_image, fetch_sif, refuse_taken, save_directory, save_file,
    save_image, unpack_file, unpack_image,
};
use situla_oci::{Digest, Platform};

use super::pull::{Fetch, parse_reference};
use super::transfer::{Made, Transfer, TransferOptions, convert_options};
use crate::Context;
use crate::command_error::CommandError;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, layers, note, size};
use crate::progress::Meter;

/// Convert an image, a layout, an archive or a directory to a .sqsh or .sif file, or unpack one.
#[derive(Args, Debug)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    options: TransferOptions,
    /// Whose the files of a directory are in the image
    #[arg(long, value_enum, default_value_t = OwnersChoice::Keep, value_name = "WHOSE")]
    owners: OwnersChoice,
    /// A .sif or .sqsh file, a directory, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME],
    /// docker://REGISTRY/NAME:TAG, or oras://REGISTRY/NAME:TAG for a SIF file; a layout's image may also be named by @sha256:DIGEST or @sha512:DIGEST
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The file to write, whose name ends in .sif or .sqsh; or the directory to unpack to, with a / at
    /// the end; or oci:DIR[:TAG], or docker-archive:FILE[:NAME:TAG]
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OwnersChoice {
    /// As in the directory
    Keep,
    /// All are root's
    Root,
}

impl OwnersChoice {
    pub(crate) fn owners(self) -> Owners {
        match self {
            OwnersChoice::Keep => Owners::Keep,
            OwnersChoice::Root => Owners::Root,
        }
    }
}

/// Converts.
pub(crate) fn convert(arguments: &ConvertArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.options.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &ConvertArgs) -> Result<(), CommandError> {
    if let Some(target) = arguments.target.to_str().map(Target::parse) {
        match target {
            Ok(Some(target)) => return save(arguments, &target),
            Ok(None) => {}
            Err(error) => return Err(CommandError::source_name(&error)),
        }
    }
    if arguments.target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return unpack(arguments);
    }
    let conversion = Conversion {
        source: parse_source(&arguments.source)?,
        format: output_format(&arguments.target)?,
        target: &arguments.target,
        owners: arguments.owners.owners(),
        transfer: arguments.options.transfer(),
    };
    let (converted, skipped) = conversion.run()?;
    let made = Made {
        path: &arguments.target,
        manifest_digest: converted.manifest_digest.as_ref(),
        rootfs_digest: &converted.rootfs_digest,
        bytes: converted.bytes,
        timings: converted.timings,
    };
    if arguments.options.json {
        let mut value = made.to_json();
        value["skipped"] = skipped.into();
        return data(&format!("{value}\n"));
    }
    data(&made.described())
}

/// Brings an image to a layout or archive.
fn save(arguments: &ConvertArgs, target: &Target) -> Result<(), CommandError> {
    let transfer = arguments.options.transfer();
    let source = parse_source(&arguments.source)?;
    let client = client_of(&source, &transfer)?;
    remove_temporaries_on_signal();
    let meter = Meter::start(transfer.show, "");
    let options = convert_options(transfer.overwrite)?;
    let overwrite = options.overwrite;
    if matches!(source, Source::Registry(Scheme::Oras, _)) {
        refuse_taken(target, overwrite).map_err(|error| CommandError::save(&error))?;
    }
    let opened = open_image(&source, client.as_ref(), &transfer.platform, target.path(), &meter)?;
    let saved = match opened {
        Opened::Image(image) => save_image(&*image, &transfer.platform, target, overwrite, &meter),
        Opened::Directory(path) => save_directory(path, arguments.owners.owners(), target, &options, &meter),
        Opened::File(file) => save_file(&file, target, &options, &meter),
    };
    let skipped = meter.finish();
    for skipped in skipped.iter().filter(|_| transfer.warn) {
        note(&format!("warning: left out {skipped}"));
    }
    let SavedImage { manifest_digest, n_layers, bytes } =
        saved.map_err(|error| CommandError::save(&error))?;
    if arguments.options.json {
        let value = serde_json::json!({
            "target": target.to_string(), "manifest_digest": manifest_digest.to_string(),
            "layers": n_layers, "bytes": bytes, "skipped": skipped,
        });
        return data(&format!("{value}\n"));
    }
    data(&described(target, &SavedImage { manifest_digest, n_layers, bytes }))
}

fn described(target: &Target, saved: &SavedImage) -> String {
    let SavedImage { manifest_digest, n_layers, bytes } = saved;
    let layers = layers(u64::try_from(*n_layers).unwrap_or(u64::MAX));
    format!("{target}: {layers}, {}\nmanifest {manifest_digest}\n", size(*bytes))
}

/// Unpacks an image to a directory.
fn unpack(arguments: &ConvertArgs) -> Result<(), CommandError> {
    let began = std::time::Instant::now();
    // Without the slash, which the name of no directory has.
    let target: PathBuf = arguments.target.components().collect();
    let transfer = arguments.options.transfer();
    let source = parse_source(&arguments.source)?;
    let (unpacked, manifest, skipped) = unpack_source(source, &target, &transfer)?;
    if arguments.options.json {
        let value = serde_json::json!({
            "path": target, "manifest_digest": manifest.map(|digest| digest.to_string()),
            "entries": unpacked.n_entries, "bytes": unpacked.bytes, "skipped": skipped,
        });
        return data(&format!("{value}\n"));
    }
    let seconds = began.elapsed().as_secs_f64();
    let (entries, bytes) = (unpacked.n_entries, unpacked.bytes);
    data(&format!("{}: {entries} entries, {bytes} bytes, unpacked in {seconds:.1} s\n", target.display()))
}

/// Unpacks any source but a directory; also gives the digest of its manifest and what was left out.
pub(crate) fn unpack_source(
    source: Source,
    target: &Path,
    transfer: &Transfer,
) -> Result<(Unpacked, Option<Digest>, Vec<String>), CommandError> {
    if transfer.overwrite {
        return Err(CommandError::usage(
            "a directory is not replaced by another one",
            "remove it first, or name one that does not exist",
        ));
    }
    let client = client_of(&source, transfer)?;
    remove_temporaries_on_signal();
    let meter = Meter::start(transfer.show, "");
    let options = convert_options(false)?;
    let opened = open_image(&source, client.as_ref(), &transfer.platform, target, &meter)?;
    let unpacked = match opened {
        Opened::Image(image) => unpack_image(&*image, &transfer.platform, target, &options, &meter)
            .map(|(digest, unpacked)| (Some(digest), unpacked)),
        Opened::Directory(path) => {
            return Err(CommandError::usage(
                format!("{} is a directory already", path.display()),
                "copy it with `cp -a`",
            ));
        }
        Opened::File(file) => {
            let unpacked = unpack_file(&file, target, options.n_threads, &meter);
            unpacked.map(|unpacked| (file.manifest_digest().cloned(), unpacked))
        }
    };
    let skipped = meter.finish();
    for skipped in skipped.iter().filter(|_| transfer.warn) {
        note(&format!("warning: left out {skipped}"));
    }
    let (digest, unpacked) = unpacked.map_err(|error| CommandError::convert(&error))?;
    Ok((unpacked, digest, skipped))
}

/// Understands the name of a source.
pub(crate) fn parse_source(text: &str) -> Result<Source, CommandError> {
    // What a reference means is the host's business as well: short names, and whose login is used.
    if text.contains("://") {
        return parse_reference(text).map(|(scheme, image)| Source::Registry(scheme, image));
    }
    Source::parse(text).map_err(|error| CommandError::source_name(&error))
}

/// The client of the registry, if the source is in one.
pub(crate) fn client_of(source: &Source, transfer: &Transfer) -> Result<Option<Client>, CommandError> {
    let Source::Registry(scheme, image) = source else { return Ok(None) };
    let context = Context::gather()?;
    let fetch = Fetch { scheme: *scheme, image: image.clone(), transfer: transfer.clone() };
    fetch.client(&context).map(Some)
}

/// A source, open.
pub(crate) enum Opened<'s> {
    /// An OCI image, wherever it is.
    Image(Box<dyn ImageSource + 's>),
    /// An image file, here or just fetched.
    File(ImageFile),
    /// A directory.
    Directory(&'s Path),
}

/// Opens a source. What has to be fetched or decompressed first goes where `target` will be: there must be room anyway.
pub(crate) fn open_image<'s>(
    source: &'s Source,
    client: Option<&'s Client>,
    platform: &Platform,
    target: &Path,
    progress: &dyn Progress,
) -> Result<Opened<'s>, CommandError> {
    let scratch = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |error| CommandError::layout(&error);
    Ok(Opened::Image(match source {
        Source::Registry(scheme, image) => {
            let client = client
                .ok_or_else(|| CommandError::refused("setup-failed", "no client for a registry", ""))?;
            if *scheme == Scheme::Oras {
                let fetched = fetch_sif(client, &image.reference, platform, scratch, progress);
                let fetched = fetched.map_err(|error| CommandError::sif_transfer(&error))?;
                return Ok(Opened::File(fetched.file));
            }
            Box::new(client.image(&image.reference))
        }
        Source::Layout(dir, which) => Box::new(LayoutImage::open(dir, which).map_err(failed)?),
        Source::LayoutArchive(path, which) => {
            Box::new(LayoutImage::open_archive(path, which, scratch).map_err(failed)?)
        }
        Source::DockerArchive(path, name) => Box::new(
            DockerArchiveImage::open(path, name.as_deref(), scratch)
                .map_err(|error| CommandError::docker_archive(&error))?,
        ),
        Source::Path(path) if path.is_dir() => return Ok(Opened::Directory(path)),
        Source::Path(path) => return open_file(path).map(Opened::File),
    }))
}

/// Opens an image file.
pub(crate) fn open_file(path: &Path) -> Result<ImageFile, CommandError> {
    ImageFile::open(path).map_err(|error| CommandError::convert(&error.into()))
}

/// A conversion, whichever command asked for it.
pub(crate) struct Conversion<'a> {
    pub(crate) source: Source,
    pub(crate) target: &'a Path,
    pub(crate) format: OutputFormat,
    pub(crate) owners: Owners,
    pub(crate) transfer: Transfer,
}

impl Conversion<'_> {
    /// Converts; also gives the files that cannot be in an image and were left out.
    pub(crate) fn run(self) -> Result<(Converted, Vec<String>), CommandError> {
        check_output(self.target, self.transfer.overwrite)?;
        let client = client_of(&self.source, &self.transfer)?;
        remove_temporaries_on_signal();
        let meter = Meter::start(self.transfer.show, "");
        let converted = self.converted(client.as_ref(), &meter)?;
        let skipped = meter.finish();
        for skipped in skipped.iter().filter(|_| self.transfer.warn) {
            note(&format!("warning: left out {skipped}"));
        }
        Ok((converted, skipped))
    }

    fn converted(&self, client: Option<&Client>, meter: &Meter) -> Result<Converted, CommandError> {
        let options = convert_options(self.transfer.overwrite)?;
        let (target, format) = (self.target, self.format);
        let opened = open_image(&self.source, client, &self.transfer.platform, target, meter)?;
        let converted = match opened {
            Opened::Image(source) => {
                convert_image(&*source, &self.transfer.platform, target, format, &options, meter)
            }
            Opened::Directory(path) => convert_directory(path, self.owners, target, format, &options, meter),
            Opened::File(file) => convert_file(&file, target, format, &options, meter),
        };
        converted.map_err(|error| CommandError::convert(&error))
    }
}

/// The format that a file's name asks for.
pub(crate) fn output_format(path: &Path) -> Result<OutputFormat, CommandError> {
    let name = path.to_string_lossy();
    if path.is_dir() {
        return Err(CommandError::usage(
            format!("{name} is a directory"),
            "name a file that ends in .sif or .sqsh, or a directory to unpack to with a / at the end",
        ));
    }
    match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("sif") => Ok(OutputFormat::Sif),
        Some("sqsh" | "squashfs" | "sqfs") => Ok(OutputFormat::Sqsh),
        _ => Err(CommandError::usage(
            format!("the format of {name} is not clear"),
            "name a file that ends in .sif or .sqsh, or a directory to unpack to with a / at the end",
        )),
    }
}

/// Says early that an output cannot be written; writing it checks again.
pub(crate) fn check_output(path: &Path, overwrite: bool) -> Result<(), CommandError> {
    if !overwrite && path.symlink_metadata().is_ok() {
        return Err(CommandError::convert(&ConvertError::Exists { path: path.to_owned() }));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match directory.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(CommandError::usage(format!("{} is no directory", directory.display()), "")),
        Err(source) => Err(CommandError::convert(&ConvertError::File(FileError {
            doing: Doing::Write,
            path: path.to_owned(),
            source,
        }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_is_one() {
        for (n_layers, want) in [(0, "0 layers"), (1, "1 layer"), (2, "2 layers")] {
            let saved = SavedImage { manifest_digest: Digest::sha256(b"m"), n_layers, bytes: 3 };
            let text = described(&Target::Layout("dir".into(), None), &saved);
            assert!(text.contains(&format!(": {want}, 3 B\n")), "{text}");
        }
    }

    #[test]
    fn wrong_names_of_sources_have_remedies() {
        for (text, remedy) in [
            ("library://a/b:1", "oras://REGISTRY"),
            ("docker://A/b", "docker://REGISTRY"),
            ("oras://A/b", "oras://REGISTRY"),
            ("oci:dir:b@d", "oci:DIR:TAG"),
            ("oci:dir@sha256:12", "@sha256:"),
            ("docker-daemon:a:1", "docker save"),
        ] {
            let json = parse_source(text).unwrap_err().to_json();
            assert_eq!(json["class"], "bad-option", "{text}");
            assert!(json["remedy"].as_str().unwrap().contains(remedy), "{text}: {json}");
        }
    }

    #[test]
    fn the_name_of_the_output_decides_its_format() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in
            [("a.sif", OutputFormat::Sif), ("a.SIF", OutputFormat::Sif), ("b.x.sqsh", OutputFormat::Sqsh)]
        {
            assert_eq!(output_format(&dir.path().join(name)).unwrap(), format, "{name}");
        }
        for path in [dir.path().to_owned(), dir.path().join("a.img")] {
            let json = output_format(&path).unwrap_err().to_json();
            assert!(json["remedy"].as_str().unwrap().contains(".sif"), "{json}");
        }
        let taken = dir.path().join("taken.sif");
        std::fs::write(&taken, b"").unwrap();
        assert!(check_output(&taken, false).is_err());
        check_output(&taken, true).unwrap();
        assert!(check_output(&dir.path().join("none/a.sif"), true).is_err());
    }
}
