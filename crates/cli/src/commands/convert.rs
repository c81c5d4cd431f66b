//! `situla convert`: any source to a `.sqsh` or `.sif` file or a directory, without the store.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use situla_image::{
    Client, ConvertError, Converted, Doing, FileError, LayoutImage, OutputFormat, Owners, Unpacked,
    convert_directory, convert_file, convert_image, unpack_file, unpack_image,
};
use situla_oci::{Digest, EnrootReference, Tag};

use super::pull::{Fetch, parse_reference};
use super::transfer::{Made, Transfer, TransferOptions, convert_options};
use crate::Context;
use crate::command_error::CommandError;
use crate::interrupt::remove_temporaries_on_signal;
use crate::output::{data, note};
use crate::progress::Meter;

/// Convert an image, an OCI layout or a directory to a .sqsh or .sif file, or unpack one.
#[derive(Args, Debug)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    options: TransferOptions,
    /// Whose the files of a directory are in the image
    #[arg(long, value_enum, default_value_t = OwnersChoice::Keep, value_name = "WHOSE")]
    owners: OwnersChoice,
    /// A .sif or .sqsh file, a directory, oci:DIR[:TAG], or docker://REGISTRY/NAME:TAG
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The file to write, whose name ends in .sif or .sqsh; or the directory to unpack to, with a / at
    /// the end
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OwnersChoice {
    /// As in the directory
    Keep,
    /// All are root's
    Root,
}

/// Converts.
pub(crate) fn convert(arguments: &ConvertArgs) -> Result<ExitCode, CommandError> {
    match run(arguments) {
        Err(error) if arguments.options.json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &ConvertArgs) -> Result<(), CommandError> {
    if arguments.target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return unpack(arguments);
    }
    let conversion = Conversion {
        source: Source::parse(&arguments.source)?,
        format: output_format(&arguments.target)?,
        target: &arguments.target,
        owners: match arguments.owners {
            OwnersChoice::Keep => Owners::Keep,
            OwnersChoice::Root => Owners::Root,
        },
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

/// Unpacks an image to a directory.
fn unpack(arguments: &ConvertArgs) -> Result<(), CommandError> {
    let began = std::time::Instant::now();
    // Without the slash, which the name of no directory has.
    let target: PathBuf = arguments.target.components().collect();
    let transfer = arguments.options.transfer();
    let source = Source::parse(&arguments.source)?;
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
    let client = source.client(transfer)?;
    remove_temporaries_on_signal();
    let meter = Meter::start(transfer.show, "");
    let options = convert_options(false)?;
    let of_manifest = |(digest, unpacked)| (Some(digest), unpacked);
    let unpacked = match (&source, &client) {
        (Source::Registry(named), Some(client)) => {
            let image = client.image(&named.reference);
            unpack_image(&image, &transfer.platform, target, &options, &meter).map(of_manifest)
        }
        (Source::Registry(_), None) => return Err(no_client()),
        (Source::Layout(dir, tag), _) => {
            let image = LayoutImage::open(dir, tag.as_ref()).map_err(|error| CommandError::layout(&error))?;
            unpack_image(&image, &transfer.platform, target, &options, &meter).map(of_manifest)
        }
        (Source::Path(path), _) if path.is_dir() => {
            return Err(CommandError::usage(
                format!("{} is a directory already", path.display()),
                "copy it with `cp -a`",
            ));
        }
        (Source::Path(path), _) => {
            unpack_file(path, target, options.n_threads, &meter).map(|unpacked| (None, unpacked))
        }
    };
    let skipped = meter.finish();
    for skipped in skipped.iter().filter(|_| transfer.warn) {
        note(&format!("warning: left out {skipped}"));
    }
    let (digest, unpacked) = unpacked.map_err(|error| CommandError::convert(&error))?;
    Ok((unpacked, digest, skipped))
}

fn no_client() -> CommandError {
    CommandError::refused("setup-failed", "no client for a registry", "")
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A registry.
    Registry(EnrootReference),
    /// An OCI layout directory, and which of its images.
    Layout(PathBuf, Option<Tag>),
    /// A file or directory.
    Path(PathBuf),
}

impl Source {
    /// Understands `docker://REF`, `oci:DIR[:TAG]` and paths.
    pub(crate) fn parse(text: &str) -> Result<Self, CommandError> {
        // The kinds that other tools know: such a name is no file that was mistyped.
        const OTHERS: [&str; 4] = ["oci-archive:", "docker-archive:", "docker-daemon:", "instance:"];
        if text.contains("://") {
            return parse_reference(text).map(Source::Registry);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            // A name may have colons; what exists as it is needs no tag cut off.
            let cut = rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
            return match cut.filter(|_| !Path::new(rest).is_dir()) {
                None => Ok(Source::Layout(rest.into(), None)),
                Some((dir, tag)) => match tag.parse::<Tag>() {
                    Ok(tag) => Ok(Source::Layout(dir.into(), Some(tag))),
                    Err(error) => Err(CommandError::usage(format!("{text}: {error}"), "write oci:DIR:TAG")),
                },
            };
        }
        if let Some(kind) = OTHERS.iter().find(|kind| text.starts_with(**kind)) {
            return Err(CommandError::usage(
                format!("images of the kind {kind} cannot be read"),
                "unpack it, or turn it into an OCI layout with `skopeo copy SOURCE oci:DIR:TAG`",
            ));
        }
        Ok(Source::Path(text.into()))
    }

    /// The client of the registry, if it is one.
    fn client(&self, transfer: &Transfer) -> Result<Option<Client>, CommandError> {
        let Source::Registry(image) = self else { return Ok(None) };
        let context = Context::gather()?;
        let fetch = Fetch { image: image.clone(), transfer: transfer.clone() };
        fetch.client(&context).map(Some)
    }
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
        let client = self.source.client(&self.transfer)?;
        remove_temporaries_on_signal();
        let meter = Meter::start(self.transfer.show, "");
        let converted = self.converted(client.as_ref(), &meter)?;
        let skipped = meter.finish();
        for skipped in skipped.iter().filter(|_| self.transfer.warn) {
            note(&format!("warning: left out {skipped}"));
        }
        Ok((converted, skipped))
    }

    fn converted(
        &self,
        client: Option<&situla_image::Client>,
        meter: &Meter,
    ) -> Result<Converted, CommandError> {
        let options = convert_options(self.transfer.overwrite)?;
        let (target, format) = (self.target, self.format);
        let converted = match (&self.source, client) {
            (Source::Registry(named), Some(client)) => {
                let source = client.image(&named.reference);
                convert_image(&source, &self.transfer.platform, target, format, &options, meter)
            }
            (Source::Registry(_), None) => {
                return Err(no_client());
            }
            (Source::Layout(dir, tag), _) => {
                let source = LayoutImage::open(dir, tag.as_ref());
                let source = source.map_err(|error| CommandError::layout(&error))?;
                convert_image(&source, &self.transfer.platform, target, format, &options, meter)
            }
            (Source::Path(path), _) if path.is_dir() => {
                convert_directory(path, self.owners, target, format, &options, meter)
            }
            (Source::Path(path), _) => convert_file(path, target, format, &options),
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
    fn sources_are_told_apart() {
        let tag = |text: &str| Some(text.parse::<Tag>().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("with:colon");
        std::fs::create_dir(&odd).unwrap();
        for (text, expected) in [
            ("oci:layout", Source::Layout("layout".into(), None)),
            ("oci:/a/layout:1.0", Source::Layout("/a/layout".into(), tag("1.0"))),
            ("oci:/a:b/layout", Source::Layout("/a:b/layout".into(), None)),
            (&format!("oci:{}", odd.display()), Source::Layout(odd.clone(), None)),
            (&format!("oci:{}:x", odd.display()), Source::Layout(odd.clone(), tag("x"))),
            ("./a.sif", Source::Path("./a.sif".into())),
            ("docker://r.example/a:1", Source::Registry(parse_reference("r.example/a:1").unwrap())),
        ] {
            assert_eq!(Source::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["oci:dir:b@d", "docker-archive:x.tar", "oras://a/b:1"] {
            assert!(Source::parse(text).is_err(), "{text}");
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
