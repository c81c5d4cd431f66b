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
    let input = ImageFile::open(&image.path)?;
    let mut converted = rewrite(&input, Some(image), out, format, options, progress)?;
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
    rewrite(input, None, out, format, options, progress)
}

/// The output appears only if it holds what was stored, where that is known.
fn rewrite(
    input: &ImageFile,
    stored: Option<&StoredImage>,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let began = Instant::now();
    let read = || FileError::read(input.name());
    let write = || FileError::write(out);
    let mut file = input.try_clone()?;
    let (kind, window) = input.root_window()?;
    let (inside, sif) = describe_image(input.name(), window.over(input.try_clone()?))?;
    let pending = create_output(out, existing(options))?;
    let mut target = pending.file().map_err(write())?;
    // Of a SIF that stays one everything is copied, else the root file system alone.
    let stays_sif = (kind, format) == (FileKind::Sif, OutputFormat::Sif);
    let (start, len) = match stays_sif {
        true => (0, file.metadata().map_err(read())?.len()),
        false => (window.offset, window.len),
    };
    let sif_digest = stored.and_then(|stored| stored.sif_digest.as_ref()).filter(|_| stays_sif);
    // What was copied is read once more for each digest of it.
    let to_hash = window.len.saturating_add(sif_digest.map_or(0, |_| len));
    progress.event(Event::ToRead { bytes: len.saturating_add(to_hash) });
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
    if let Some(stored) = stored {
        expect_stored(stored, &stored.rootfs_digest, &rootfs_digest)?;
    }
    if let (Some(stored), Some(sif_digest)) = (stored, sif_digest) {
        let (whole, _) = hash_telling(&target, 0, len, progress).map_err(write())?;
        expect_stored(stored, sif_digest, &whole)?;
    }
    let timings = Timings { convert, ..Timings::default() };
    let manifest_digest = input.manifest_digest().cloned().or(inside);
    let mut converted = Converted { manifest_digest, rootfs_digest, bytes: 0, timings };
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

fn expect_stored(stored: &StoredImage, expected: &Digest, actual: &Digest) -> Result<(), ConvertError> {
    if actual == expected {
        return Ok(());
    }
    let what = "the stored image".to_owned();
    let source = VerifyError::DigestMismatch { what, expected: expected.clone(), actual: actual.clone() };
    Err(ConvertError::Damaged { path: stored.path.clone(), source })
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
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), b"content").unwrap();
        let path = dir.join("a.sqsh");
        let options = ConvertOptions::default();
        let made = convert_directory(&tree, Owners::Root, &path, OutputFormat::Sqsh, &options, &()).unwrap();
        StoredImage {
            manifest_digest: Digest::sha256(b"manifest"),
            rootfs_digest: made.rootfs_digest,
            sif_digest: None,
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
        // Of a SIF file also what is beside its root file system.
        let stored = image(&dir.path().join("another"));
        let sif = dir.path().join("another.sif");
        export(&stored, &sif, OutputFormat::Sif, &ConvertOptions::default(), &()).unwrap();
        let mut bytes = fs::read(&sif).unwrap();
        let kept = StoredImage { sif_digest: Some(Digest::sha256(&bytes)), path: sif.clone(), ..stored };
        let out = |name: &str| dir.path().join(name);
        export(&kept, &out("whole.sif"), OutputFormat::Sif, &ConvertOptions::default(), &()).unwrap();
        // The launch line.
        bytes[0] ^= 1;
        fs::write(&sif, bytes).unwrap();
        let result = export(&kept, &out("f.sif"), OutputFormat::Sif, &ConvertOptions::default(), &());
        assert!(matches!(result, Err(ConvertError::Damaged { .. })), "{result:?}");
        export(&kept, &out("f.sqsh"), OutputFormat::Sqsh, &ConvertOptions::default(), &()).unwrap();
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
