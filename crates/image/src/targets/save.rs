//! From any source to a layout or archive.

use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use situla_oci::{Algorithm, Descriptor, Digest, DigestWriter, Platform, Tag};
use situla_squashfs::Image;

use super::build::{Description, open_root};
use super::built::squashed;
use super::docker_archive::{DockerArchiveWriter, check_name};
use super::layer::write_layer;
use super::layout::LayoutWriter;
use super::{SaveError, SavedImage, Target};
use crate::convert::{ConvertOptions, resolved};
use crate::image_file::ImageFile;
use crate::image_parts::ImageParts;
use crate::layer::decompress;
use crate::output::Existing;
use crate::progress::{Event, Progress};
use crate::source::{
    CONFIG_TYPE, ImageSource, LAYER_TYPE, MANIFEST_TYPE, Owners, descriptor, manifest_bytes, resolve,
};
use crate::verify::VerifiedReader;

/// Largest uncompressed layer; a bomb ends here.
const MAX_LAYER_BYTES: u64 = 1 << 40;
/// Level of the layers that are made here. Each further one takes longer than it saves.
pub(super) const GZIP_LEVEL: u32 = 4;
/// Their type.
pub(super) const GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Brings an image of a registry, layout or archive to `target`.
///
/// # Errors
/// When the image cannot be had, is not what its digests promise, or the target cannot be written.
pub fn save_image(
    source: &dyn ImageSource,
    platform: &Platform,
    target: &Target,
    overwrite: bool,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let place = Place::open(target, overwrite)?;
    let image = resolve(source, platform).map_err(SaveError::Resolve)?;
    progress.event(resolved(&image.digest, &image.manifest));
    match place {
        Place::Layout(layout, tag) => to_layout(source, &image, &layout, tag, overwrite, progress),
        Place::Archive(archive, name, existing) => {
            to_archive(source, &image, archive, name, existing, progress)
        }
    }
}

/// Fails where `target` is taken, for whoever has to fetch a file before it is saved.
///
/// # Errors
/// When it cannot be written.
pub fn refuse_taken(target: &Target, overwrite: bool) -> Result<(), SaveError> {
    Place::open(target, overwrite).map(drop)
}

/// Makes an image of one layer of an image file and brings it to `target`.
///
/// # Errors
/// When the file is no usable image, has something that cannot be in a layer, or the target cannot be written.
pub fn save_file(
    input: &ImageFile,
    target: &Target,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let image = open_root(input)?;
    let place = Place::open(target, options.overwrite)?;
    let description = Description::of_file(input, &image)?;
    built(&image, description, place, options, progress)
}

/// Makes an image of one layer of a directory and brings it to `target`, by way of a file without a name.
///
/// # Errors
/// When the directory cannot be read, or the target cannot be written.
pub fn save_directory(
    dir: &Path,
    owners: Owners,
    target: &Target,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let place = Place::open(target, options.overwrite)?;
    let (image, _pending) = squashed(dir, owners, target.path(), options, progress)?;
    built(&image, Description::of_directory(), place, options, progress)
}

/// An open target. Opening refuses early, before minutes of work.
enum Place<'t> {
    Layout(LayoutWriter, Option<&'t Tag>),
    Archive(DockerArchiveWriter, Option<&'t str>, Existing),
}

impl<'t> Place<'t> {
    fn open(target: &'t Target, overwrite: bool) -> Result<Self, SaveError> {
        match target {
            Target::Layout(dir, tag) => {
                let layout = LayoutWriter::open(dir)?;
                layout.check_tag(tag.as_ref(), overwrite)?;
                Ok(Self::Layout(layout, tag.as_ref()))
            }
            Target::DockerArchive(path, name) => {
                name.as_deref().map_or(Ok(()), check_name)?;
                if !overwrite && path.symlink_metadata().is_ok() {
                    return Err(SaveError::Exists(path.display().to_string()));
                }
                let existing = if overwrite { Existing::Replace } else { Existing::Refuse };
                Ok(Self::Archive(DockerArchiveWriter::create(path, existing)?, name.as_deref(), existing))
            }
        }
    }
}

/// Copies the blobs of an image as they are.
fn to_layout(
    source: &dyn ImageSource,
    image: &ImageParts,
    layout: &LayoutWriter,
    tag: Option<&Tag>,
    overwrite: bool,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let mut bytes: u64 = 0;
    for (idx, layer) in image.manifest.layers.iter().enumerate() {
        bytes = bytes.saturating_add(layer.size);
        if !layout.has(layer) {
            let what = format!("layer {} of {}", idx + 1, image.manifest.layers.len());
            let copy = |error| SaveError::Copy { what: what.clone(), source: error };
            let raw = source.open_layer(&what, layer).map_err(copy)?;
            let mut verified = Counted { inner: VerifiedReader::new(&what, layer, raw), idx, progress };
            layout.put(layer.digest.algorithm(), |out| io::copy(&mut verified, out).map_err(copy))?;
        }
        progress.event(Event::LayerDone { layer_idx: idx });
    }
    let config = &image.manifest.config;
    put_same(layout, &image.config_bytes, &config.digest)?;
    put_same(layout, &image.manifest_bytes, &image.digest)?;
    let media_type = image.manifest.media_type.as_deref().unwrap_or(MANIFEST_TYPE);
    let entry = descriptor(media_type, image.digest.clone(), image.manifest_bytes.len() as u64);
    layout.add(&entry, tag, overwrite)?;
    let n_layers = image.manifest.layers.len();
    Ok(SavedImage {
        manifest_digest: image.digest.clone(),
        n_layers,
        bytes: bytes.saturating_add(config.size),
    })
}

/// Writes bytes that were verified against `digest` before, whatever its algorithm.
fn put_same(layout: &LayoutWriter, bytes: &[u8], digest: &Digest) -> Result<(), SaveError> {
    let what = digest.to_string();
    let copied = layout.put(digest.algorithm(), |out| {
        out.write_all(bytes).map_err(|source| SaveError::Copy { what, source })
    });
    copied.map(|_| ())
}

/// Copies an image's layers, decompressed.
fn to_archive(
    source: &dyn ImageSource,
    image: &ImageParts,
    mut archive: DockerArchiveWriter,
    name: Option<&str>,
    existing: Existing,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let layers = &image.manifest.layers;
    let diff_ids = &image.config.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        return Err(SaveError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
    }
    let mut bytes = image.config_bytes.len() as u64;
    for (idx, (layer, diff_id)) in layers.iter().zip(diff_ids).enumerate() {
        if archive.repeat(diff_id) {
            progress.event(Event::LayerDone { layer_idx: idx });
            continue;
        }
        let what = format!("layer {} of {}", idx + 1, layers.len());
        let copy = |error| SaveError::Copy { what: what.clone(), source: error };
        let raw = source.open_layer(&what, layer).map_err(copy)?;
        let mut verified = Counted { inner: VerifiedReader::new(&what, layer, raw), idx, progress };
        let (_, size) = archive.layer(|out| unpacked(&mut verified, diff_id, &what, out))?;
        bytes += size;
        progress.event(Event::LayerDone { layer_idx: idx });
    }
    archive.finish(&image.config_bytes, name, existing)?;
    Ok(SavedImage { manifest_digest: image.digest.clone(), n_layers: layers.len(), bytes })
}

/// Decompresses a layer, and holds it against both of its digests.
fn unpacked(
    verified: &mut (impl Read + Send),
    diff_id: &Digest,
    what: &str,
    out: &mut dyn Write,
) -> Result<(), SaveError> {
    let copy = |error| SaveError::Copy { what: what.to_owned(), source: error };
    let mut hashed = DigestWriter::new(diff_id.algorithm(), out);
    {
        let (_, plain) = decompress(&mut *verified).map_err(copy)?;
        let n_copied = io::copy(&mut plain.take(MAX_LAYER_BYTES), &mut hashed).map_err(copy)?;
        if n_copied == MAX_LAYER_BYTES {
            return Err(copy(io::ErrorKind::FileTooLarge.into()));
        }
    }
    // What follows the compressed stream is part of the blob, and of its digest.
    io::copy(verified, &mut io::sink()).map_err(copy)?;
    let (_, actual, _) = hashed.finish();
    if actual == *diff_id {
        return Ok(());
    }
    Err(SaveError::DiffId { what: what.to_owned(), expected: diff_id.clone(), actual })
}

/// Writes all of a file system as a compressed layer; gives its diff-id.
pub(super) fn gzip_layer(
    image: &Image,
    latest: Option<u32>,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<Digest, SaveError> {
    let gzip = GzEncoder::new(out, Compression::new(GZIP_LEVEL));
    let mut plain = DigestWriter::new(Algorithm::Sha256, gzip);
    write_layer(image, latest, &mut plain, progress).map_err(SaveError::Layer)?;
    let (gzip, diff_id, _) = plain.finish();
    let finished = gzip.finish();
    finished.map_err(|source| SaveError::Copy { what: "the layer".to_owned(), source })?;
    Ok(diff_id)
}

/// Makes one layer of a file system.
fn built(
    image: &Image,
    description: Description,
    place: Place<'_>,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<SavedImage, SaveError> {
    let latest = options.source_date_epoch;
    match place {
        Place::Layout(layout, tag) => {
            let (digest, size, diff_id) =
                layout.put(Algorithm::Sha256, |out| gzip_layer(image, latest, out, progress))?;
            let layer = descriptor(GZIP_TYPE, digest, size);
            let (config, bytes) = put_config(&layout, description, &diff_id)?;
            let manifest = manifest_bytes(&config, std::slice::from_ref(&layer));
            let (manifest_digest, length) = layout.put_bytes(&manifest)?;
            layout.add(
                &descriptor(MANIFEST_TYPE, manifest_digest.clone(), length),
                tag,
                options.overwrite,
            )?;
            Ok(SavedImage { manifest_digest, n_layers: 1, bytes: bytes + size })
        }
        Place::Archive(mut archive, name, existing) => {
            let write =
                |out: &mut dyn Write| write_layer(image, latest, out, progress).map_err(SaveError::Layer);
            let (diff_id, size) = archive.layer(write)?;
            let config = description.config(&diff_id);
            archive.finish(&config, name, existing)?;
            // The manifest that reading the archive gives.
            let described = descriptor(CONFIG_TYPE, Digest::sha256(&config), config.len() as u64);
            let layer = descriptor(LAYER_TYPE, diff_id, size);
            let manifest_digest = Digest::sha256(&manifest_bytes(&described, &[layer]));
            Ok(SavedImage { manifest_digest, n_layers: 1, bytes: size + config.len() as u64 })
        }
    }
}

fn put_config(
    layout: &LayoutWriter,
    description: Description,
    diff_id: &Digest,
) -> Result<(Descriptor, u64), SaveError> {
    let (digest, size) = layout.put_bytes(&description.config(diff_id))?;
    Ok((descriptor(CONFIG_TYPE, digest, size), size))
}

/// Tells how much of a layer has arrived.
struct Counted<'a, R> {
    inner: R,
    idx: usize,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.event(Event::Fetched { layer_idx: self.idx, bytes: n as u64 });
        Ok(n)
    }
}
