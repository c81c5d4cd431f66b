//! An image whose uncompressed layers are compressed on the way, into files without names: archives of `docker save`
//! hold plain tars, which nobody wants to send or to fetch.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use situla_oci::{Algorithm, Descriptor, Digest, DigestWriter, Platform};

use super::SaveError;
use super::built::FromStart;
use super::save::{GZIP_LEVEL, GZIP_TYPE};
use crate::file_error::FileError;
use crate::flatten::LayerSource;
use crate::output::PendingFile;
use crate::source::{
    FetchedManifest, ImageSource, LAYER_TYPE, MANIFEST_TYPE, SourceError, manifest_bytes, resolve,
};
use crate::verify::VerifiedReader;

/// An image with no plain layer. Equal images give equal ones.
pub struct PackedImage<'s> {
    source: &'s dyn ImageSource,
    /// Layers that were compressed here.
    files: HashMap<Digest, (File, PendingFile)>,
    config: (Digest, Vec<u8>),
    manifest: FetchedManifest,
}

impl std::fmt::Debug for PackedImage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedImage").field("manifest", &self.manifest.digest).finish_non_exhaustive()
    }
}

impl<'s> PackedImage<'s> {
    /// Compresses the plain layers of `source` into `scratch`.
    ///
    /// # Errors
    /// When the image cannot be had, is not what its digests promise, or there is no room.
    pub fn of(source: &'s dyn ImageSource, platform: &Platform, scratch: &Path) -> Result<Self, SaveError> {
        let image = resolve(source, platform).map_err(SaveError::Resolve)?;
        let mut files: HashMap<Digest, (File, PendingFile)> = HashMap::new();
        let mut known: HashMap<Digest, Descriptor> = HashMap::new();
        let mut layers = Vec::new();
        let n_layers = image.manifest.layers.len();
        for (idx, layer) in image.manifest.layers.iter().enumerate() {
            if layer.media_type != LAYER_TYPE {
                layers.push(layer.clone());
                continue;
            }
            if !known.contains_key(&layer.digest) {
                let what = format!("layer {} of {n_layers}", idx + 1);
                let (packed, file) = pack(source, layer, &what, scratch)?;
                files.insert(packed.digest.clone(), file);
                known.insert(layer.digest.clone(), packed);
            }
            layers.extend(known.get(&layer.digest).cloned());
        }
        let bytes = manifest_bytes(&image.manifest.config, &layers);
        let digest = Digest::sha256(&bytes);
        let manifest = FetchedManifest { bytes, digest, content_type: Some(MANIFEST_TYPE.to_owned()) };
        Ok(Self { source, files, config: (image.manifest.config.digest, image.config_bytes), manifest })
    }
}

/// Compresses one layer; the file has no name, or loses it in the end.
fn pack(
    source: &dyn ImageSource,
    layer: &Descriptor,
    what: &str,
    scratch: &Path,
) -> Result<(Descriptor, (File, PendingFile)), SaveError> {
    let failed = || FileError::write(scratch.to_owned());
    let copy = |source| SaveError::Copy { what: what.to_owned(), source };
    let pending = PendingFile::create_scratch(scratch, "layer").map_err(failed())?;
    let file = pending.file().map_err(failed())?;
    let out = io::BufWriter::with_capacity(1 << 20, file.try_clone().map_err(failed())?);
    let mut gzip = GzEncoder::new(DigestWriter::new(Algorithm::Sha256, out), Compression::new(GZIP_LEVEL));
    let raw = source.open_layer(what, layer).map_err(copy)?;
    io::copy(&mut VerifiedReader::new(what, layer, raw), &mut gzip).map_err(copy)?;
    let (mut out, digest, size) = gzip.finish().map_err(copy)?.finish();
    out.flush().map_err(failed())?;
    let packed = Descriptor {
        media_type: GZIP_TYPE.to_owned(),
        digest,
        size,
        platform: None,
        annotations: layer.annotations.clone(),
    };
    Ok((packed, (file, pending)))
}

impl LayerSource for PackedImage<'_> {
    fn open_layer(&self, what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        if let Some((file, _)) = self.files.get(&descriptor.digest) {
            return Ok(Box::new(FromStart { file, at: 0 }));
        }
        match &self.config {
            (digest, bytes) if *digest == descriptor.digest => Ok(Box::new(Cursor::new(bytes.as_slice()))),
            _ => self.source.open_layer(what, descriptor),
        }
    }
}

impl ImageSource for PackedImage<'_> {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }

    fn fetch_child(&self, _descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }
}
