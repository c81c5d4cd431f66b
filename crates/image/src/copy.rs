//! Finished images to other places, without compressing anything again.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use situla_oci::Digest;
use situla_sif::SifWriter;

use crate::convert::{
    ConvertError, ConvertOptions, Converted, OutputFormat, Timings, create_output, describe_image, existing,
    hash_telling, publish, refuse_existing,
};
use crate::file_error::FileError;
use crate::image_file::ImageFile;
use crate::inspect::FileKind;
use crate::progress::{Event, Progress};
use crate::store::StoredImage;
use crate::verify::VerifyError;

/// Bytes that the kernel copies at once, between two words of progress: few calls, and whole blocks of any file system,
/// so that blocks can be shared.
const PIECE: u64 = 16 << 20;

/// Writes an image of the store to a file. The bytes are hashed on the way: what is no longer what was
/// stored gets no name.
///
/// # Errors
/// When the stored image is damaged or the output cannot be written.
pub fn export(
    image: &StoredImage,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    let check = |actual: &Digest| match *actual == image.rootfs_digest {
        true => Ok(()),
        false => Err(ConvertError::Damaged {
            path: image.path.clone(),
            source: VerifyError::DigestMismatch {
                what: "the stored image".to_owned(),
                expected: image.rootfs_digest.clone(),
                actual: actual.clone(),
            },
        }),
    };
    let mut converted = rewrite(&ImageFile::open(&image.path)?, out, format, options, check, progress)?;
    converted.manifest_digest = Some(image.manifest_digest.clone());
    Ok(converted)
}

/// Makes an image file of another one, in the format that is asked for. The bytes of the root file system
/// stay as they are.
///
/// # Errors
/// When the input is no usable image or the output cannot be written.
pub fn convert_file(
    input: &ImageFile,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    rewrite(input, out, format, options, |_| Ok(()), progress)
}

/// The output appears only if `check` accepts the digest of the root file system in it.
fn rewrite(
    input: &ImageFile,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    check: impl FnOnce(&Digest) -> Result<(), ConvertError>,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let began = Instant::now();
    let read = || FileError::read(input.name());
    let write = || FileError::write(out);
    let mut file = input.try_clone()?;
    let (kind, window) = input.root_window()?;
    let (manifest_digest, sif) = describe_image(input.name(), window.over(input.try_clone()?))?;
    let pending = create_output(out, existing(options))?;
    let mut target = pending.file().map_err(write())?;
    // Of a SIF that stays one everything is copied, else the root file system alone.
    let (start, len) = match (kind, format) {
        (FileKind::Sif, OutputFormat::Sif) => (0, file.metadata().map_err(read())?.len()),
        _ => (window.offset, window.len),
    };
    // What was copied is read once more, for its digest.
    progress.event(Event::ToRead { bytes: len.saturating_add(window.len) });
    file.seek(SeekFrom::Start(start)).map_err(read())?;
    // Where the root file system lies in the output.
    let offset = match (kind, format) {
        (FileKind::Squashfs, OutputFormat::Sif) => {
            let writer = SifWriter::new(target, sif).map_err(ConvertError::sif_write(out))?;
            let offset = writer.partition_offset();
            let mut told = Told { inner: &file, progress };
            writer.write_partition(&mut told).map_err(ConvertError::sif_write(out))?;
            offset
        }
        (FileKind::Squashfs | FileKind::Sif, _) => {
            copy_telling(&file, len, &mut target, progress).map_err(write())?;
            window.offset - start
        }
    };
    let convert = began.elapsed();
    let target = pending.file().map_err(write())?;
    let (rootfs_digest, n_hashed) = hash_telling(&target, offset, window.len, progress).map_err(write())?;
    if n_hashed != window.len {
        return Err(read()(io::ErrorKind::UnexpectedEof.into()).into());
    }
    check(&rootfs_digest)?;
    let timings = Timings { convert, ..Timings::default() };
    let mut converted = Converted { manifest_digest, rootfs_digest, bytes: 0, timings };
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

/// Copies at most `len` bytes from where `from` stands. The kernel copies, and shares blocks where it can.
fn copy_telling(from: &File, len: u64, to: &mut File, progress: &dyn Progress) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let n_copied = io::copy(&mut from.take(left.min(PIECE)), to)?;
        if n_copied == 0 {
            break;
        }
        left -= n_copied;
        progress.event(Event::Read { bytes: n_copied });
    }
    Ok(())
}

/// A reader that tells how much was read.
struct Told<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.event(Event::Read { bytes: n as u64 });
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::convert::convert_directory;
    use crate::key::Recipe;
    use crate::source::Owners;
    use crate::store::Place;

    fn image(dir: &Path) -> StoredImage {
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), b"content").unwrap();
        let path = dir.join("a.sqsh");
        let options = ConvertOptions::default();
        let made = convert_directory(&tree, Owners::Root, &path, OutputFormat::Sqsh, &options, &()).unwrap();
        StoredImage {
            manifest_digest: Digest::sha256(b"manifest"),
            rootfs_digest: made.rootfs_digest,
            bytes: made.bytes,
            recipe: Recipe::of(&options),
            place: Place::Own,
            made: None,
            path,
        }
    }

    fn open(path: &Path) -> ImageFile {
        ImageFile::open(path).unwrap()
    }

    #[test]
    fn exported_images_hold_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let stored = image(dir.path());
        let options = ConvertOptions::default();
        let (sqsh, sif, back) =
            (dir.path().join("b.sqsh"), dir.path().join("b.sif"), dir.path().join("c.sqsh"));
        let copied = export(&stored, &sqsh, OutputFormat::Sqsh, &options, &()).unwrap();
        assert_eq!(copied.rootfs_digest, stored.rootfs_digest);
        let wrapped = export(&stored, &sif, OutputFormat::Sif, &options, &()).unwrap();
        assert_eq!(wrapped.rootfs_digest, stored.rootfs_digest);
        // Who may read it may execute it: what the umask keeps from others stays so.
        let mode = fs::metadata(&sif).unwrap().permissions().mode();
        assert_eq!((mode & 0o700, mode & 0o111), (0o700, (mode & 0o444) >> 2), "{mode:o}");
        convert_file(&open(&sif), &back, OutputFormat::Sqsh, &options, &()).unwrap();
        let original = fs::read(&stored.path).unwrap();
        assert!(fs::read(&sqsh).unwrap() == original && fs::read(&back).unwrap() == original);
        let sif2 = dir.path().join("d.sif");
        assert_eq!(
            convert_file(&open(&sif), &sif2, OutputFormat::Sif, &options, &()).unwrap().rootfs_digest,
            stored.rootfs_digest
        );
        assert!(fs::read(&sif2).unwrap() == fs::read(&sif).unwrap());

        let refused = export(&stored, &sqsh, OutputFormat::Sqsh, &options, &());
        assert!(matches!(refused, Err(ConvertError::Exists { .. })), "{refused:?}");
    }

    /// Bytes that were announced, and bytes that were read.
    #[derive(Default)]
    struct Sums(AtomicU64, AtomicU64);

    impl Progress for Sums {
        fn event(&self, event: Event) {
            match event {
                Event::ToRead { bytes } => drop(self.0.fetch_add(bytes, Ordering::Relaxed)),
                Event::Read { bytes } => drop(self.1.fetch_add(bytes, Ordering::Relaxed)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn all_that_is_copied_and_hashed_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let stored = image(dir.path());
        let path = |name: &str| dir.path().join(name);
        let options = ConvertOptions::default();
        export(&stored, &path("in.sif"), OutputFormat::Sif, &options, &()).unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        let (root, whole) = (stored.bytes, size(&path("in.sif")));
        assert!(whole > root);
        for (input, name, format, copied) in [
            (&stored.path, "1.sqsh", OutputFormat::Sqsh, root),
            (&stored.path, "2.sif", OutputFormat::Sif, root),
            (&path("in.sif"), "3.sqsh", OutputFormat::Sqsh, root),
            (&path("in.sif"), "4.sif", OutputFormat::Sif, whole),
        ] {
            let sums = Sums::default();
            convert_file(&open(input), &path(name), format, &options, &sums).unwrap();
            let (announced, read) = (sums.0.into_inner(), sums.1.into_inner());
            assert_eq!((announced, read), (copied + root, copied + root), "{name}");
        }
    }

    #[test]
    fn a_damaged_image_is_not_exported() {
        let dir = tempfile::tempdir().unwrap();
        let stored = image(dir.path());
        let mut bytes = fs::read(&stored.path).unwrap();
        // Padding that no reader looks at: only the digest can tell.
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&stored.path, bytes).unwrap();
        for (name, format) in [("b.sqsh", OutputFormat::Sqsh), ("b.sif", OutputFormat::Sif)] {
            let out = dir.path().join(name);
            let result = export(&stored, &out, format, &ConvertOptions::default(), &());
            assert!(matches!(result, Err(ConvertError::Damaged { .. })), "{result:?}");
            assert!(!out.exists());
        }
        let text = dir.path().join("text");
        fs::write(&text, b"no image").unwrap();
        let result = convert_file(
            &open(&text),
            &dir.path().join("e.sqsh"),
            OutputFormat::Sqsh,
            &ConvertOptions::default(),
            &(),
        );
        assert!(matches!(result, Err(ConvertError::UnknownFormat { .. })), "{result:?}");
    }
}
