//! An image of one layer that is made of a file system and lies nowhere but in an open file: to be pushed.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use situla_oci::{Algorithm, Descriptor, Digest, DigestWriter, ImageConfig, Platform};
use situla_sif::SifOptions;
use situla_squashfs::{Image, ReadOptions};

use super::SaveError;
use super::build::{Description, not_squashfs, open_root};
use super::save::{GZIP_TYPE, gzip_layer};
use crate::convert::{ConvertOptions, OutputFormat, directory_tree, write_output};
use crate::file_error::FileError;
use crate::flatten::LayerSource;
use crate::image_file::ImageFile;
use crate::output::PendingFile;
use crate::progress::Progress;
use crate::source::{
    CONFIG_TYPE, FetchedManifest, ImageSource, MANIFEST_TYPE, Owners, SourceError, descriptor, manifest_bytes,
};

/// An image of one layer, the same that is saved to an OCI layout.
#[derive(Debug)]
pub struct BuiltImage {
    layer: Descriptor,
    file: File,
    /// Takes a name that the file may have away in the end.
    _pending: PendingFile,
    config: Vec<u8>,
    manifest: FetchedManifest,
}

impl BuiltImage {
    /// Makes one of an image file. Its layer lies in `scratch` meanwhile.
    ///
    /// # Errors
    /// When the file is no usable image, has something that cannot be in a layer, or there is no room.
    pub fn of_file(
        input: &ImageFile,
        scratch: &Path,
        options: &ConvertOptions,
        progress: &dyn Progress,
    ) -> Result<Self, SaveError> {
        let image = open_root(input)?;
        let description = Description::of_file(input, &image)?;
        Self::of(&image, description, scratch, options, progress)
    }

    /// Makes one of a directory. Its layer, and an image of it before, lie in `scratch` meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be read, has something that cannot be in a layer, or there is no room.
    pub fn of_directory(
        dir: &Path,
        owners: Owners,
        scratch: &Path,
        options: &ConvertOptions,
        progress: &dyn Progress,
    ) -> Result<Self, SaveError> {
        let (image, _pending) = squashed(dir, owners, &scratch.join("image"), options, progress)?;
        Self::of(&image, Description::of_directory(), scratch, options, progress)
    }

    /// The kind of machine that it is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        ImageConfig::parse(&self.config).map_or_else(|_| Platform::native(), |config| config.platform())
    }

    fn of(
        image: &Image,
        description: Description,
        scratch: &Path,
        options: &ConvertOptions,
        progress: &dyn Progress,
    ) -> Result<Self, SaveError> {
        let failed = || FileError::write(scratch.to_owned());
        let pending = PendingFile::create_scratch(scratch, "layer").map_err(failed())?;
        let file = pending.file().map_err(failed())?;
        let out = io::BufWriter::with_capacity(1 << 20, file.try_clone().map_err(failed())?);
        let mut out = DigestWriter::new(Algorithm::Sha256, out);
        let diff_id = gzip_layer(image, options.source_date_epoch, &mut out, progress)?;
        let (mut out, digest, size) = out.finish();
        out.flush().map_err(failed())?;
        let layer = descriptor(GZIP_TYPE, digest, size);
        let config = description.config(&diff_id);
        let described = descriptor(CONFIG_TYPE, Digest::sha256(&config), config.len() as u64);
        let bytes = manifest_bytes(&described, std::slice::from_ref(&layer));
        let digest = Digest::sha256(&bytes);
        let manifest = FetchedManifest { bytes, digest, content_type: Some(MANIFEST_TYPE.to_owned()) };
        Ok(Self { layer, file, _pending: pending, config, manifest })
    }
}

/// Makes a SquashFS of a directory in a file without a name beside `scratch`: one program walks trees and keeps hard
/// links, attributes and holes, and that is the one for images.
pub(super) fn squashed(
    dir: &Path,
    owners: Owners,
    scratch: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<(Image, PendingFile), SaveError> {
    let beside = scratch.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let pending = PendingFile::create_scratch(beside, "image").map_err(FileError::write(scratch))?;
    // It is read once: compressing it well would take longer than it saves.
    let options = ConvertOptions { zstd_level: 1, ..options.clone() };
    write_output(
        &pending,
        scratch,
        OutputFormat::Sqsh,
        &SifOptions::default(),
        &options,
        |sink| directory_tree(dir, owners, OutputFormat::Sqsh, sink, &options, progress),
        progress,
    )
    .map_err(SaveError::Image)?;
    let file = pending.file().map_err(FileError::write(scratch))?;
    let image = Image::open(file, ReadOptions::default()).map_err(not_squashfs(dir))?;
    Ok((image, pending))
}

impl LayerSource for BuiltImage {
    fn open_layer(&self, _what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        if descriptor.digest == self.layer.digest {
            return Ok(Box::new(FromStart { file: &self.file, at: 0 }));
        }
        Ok(Box::new(Cursor::new(self.config.as_slice())))
    }
}

impl ImageSource for BuiltImage {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }

    fn fetch_child(&self, _descriptor: &Descriptor) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }
}

/// Reads a file that others read as well.
pub(crate) struct FromStart<'f> {
    pub(crate) file: &'f File,
    pub(crate) at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_to_be_pushed_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, scratch) = (dir.path().join("tree"), dir.path().join("scratch"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir(&scratch).unwrap();
        let options = ConvertOptions::default();
        let built = BuiltImage::of_directory(&tree, Owners::Root, &scratch, &options, &()).unwrap();
        assert_eq!(built.file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(built);
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    }
}
