//! Finished images to other places, without compressing anything again.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use situla_oci::Digest;
use situla_sif::SifWriter;

use crate::convert::{
    ConvertError, ConvertOptions, Converted, OutputFormat, Timings, create_output, describe_image, existing,
    hash_range, publish, refuse_existing,
};
use crate::file_error::FileError;
use crate::inspect::{FileKind, root_window};
use crate::store::StoredImage;
use crate::verify::VerifyError;

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
    let mut converted = rewrite(&image.path, out, format, options, check)?;
    converted.manifest_digest = Some(image.manifest_digest.clone());
    Ok(converted)
}

/// Makes an image file of another one, in the format that is asked for. The bytes of the root file system
/// stay as they are.
///
/// # Errors
/// When the input is no usable image or the output cannot be written.
pub fn convert_file(
    input: &Path,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
) -> Result<Converted, ConvertError> {
    rewrite(input, out, format, options, |_| Ok(()))
}

/// The output appears only if `check` accepts the digest of the root file system in it.
fn rewrite(
    input: &Path,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    check: impl FnOnce(&Digest) -> Result<(), ConvertError>,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let began = Instant::now();
    let read = || FileError::read(input);
    let write = || FileError::write(out);
    let mut file = File::open(input).map_err(read())?;
    let (kind, window) = root_window(input, &file)?;
    let (manifest_digest, sif) = describe_image(input, window.over(file.try_clone().map_err(read())?))?;
    let pending = create_output(out, existing(options))?;
    let mut target = pending.file().map_err(write())?;
    // Where the root file system lies in the output. The kernel copies, and shares blocks where it can.
    let offset = match (kind, format) {
        (FileKind::Squashfs, OutputFormat::Sqsh) | (FileKind::Sif, OutputFormat::Sif) => {
            file.rewind().map_err(read())?;
            io::copy(&mut file, &mut target).map_err(write())?;
            window.offset
        }
        (FileKind::Sif, OutputFormat::Sqsh) => {
            file.seek(SeekFrom::Start(window.offset)).map_err(read())?;
            io::copy(&mut file.take(window.len), &mut target).map_err(write())?;
            0
        }
        (FileKind::Squashfs, OutputFormat::Sif) => {
            file.rewind().map_err(read())?;
            let writer = SifWriter::new(target, sif).map_err(ConvertError::sif_write(out))?;
            let offset = writer.partition_offset();
            writer.write_partition(&mut file).map_err(ConvertError::sif_write(out))?;
            offset
        }
    };
    let convert = began.elapsed();
    let target = pending.file().map_err(write())?;
    let (rootfs_digest, n_hashed) = hash_range(&target, offset, window.len).map_err(write())?;
    if n_hashed != window.len {
        return Err(read()(io::ErrorKind::UnexpectedEof.into()).into());
    }
    check(&rootfs_digest)?;
    let timings = Timings { convert, ..Timings::default() };
    let mut converted = Converted { manifest_digest, rootfs_digest, bytes: 0, timings };
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn exported_images_hold_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let stored = image(dir.path());
        let options = ConvertOptions::default();
        let (sqsh, sif, back) =
            (dir.path().join("b.sqsh"), dir.path().join("b.sif"), dir.path().join("c.sqsh"));
        let copied = export(&stored, &sqsh, OutputFormat::Sqsh, &options).unwrap();
        assert_eq!(copied.rootfs_digest, stored.rootfs_digest);
        let wrapped = export(&stored, &sif, OutputFormat::Sif, &options).unwrap();
        assert_eq!(wrapped.rootfs_digest, stored.rootfs_digest);
        // Who may read it may execute it: what the umask keeps from others stays so.
        let mode = fs::metadata(&sif).unwrap().permissions().mode();
        assert_eq!((mode & 0o700, mode & 0o111), (0o700, (mode & 0o444) >> 2), "{mode:o}");
        convert_file(&sif, &back, OutputFormat::Sqsh, &options).unwrap();
        let original = fs::read(&stored.path).unwrap();
        assert!(fs::read(&sqsh).unwrap() == original && fs::read(&back).unwrap() == original);
        let sif2 = dir.path().join("d.sif");
        assert_eq!(
            convert_file(&sif, &sif2, OutputFormat::Sif, &options).unwrap().rootfs_digest,
            stored.rootfs_digest
        );
        assert!(fs::read(&sif2).unwrap() == fs::read(&sif).unwrap());

        let refused = export(&stored, &sqsh, OutputFormat::Sqsh, &options);
        assert!(matches!(refused, Err(ConvertError::Exists { .. })), "{refused:?}");
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
            let result = export(&stored, &out, format, &ConvertOptions::default());
            assert!(matches!(result, Err(ConvertError::Damaged { .. })), "{result:?}");
            assert!(!out.exists());
        }
        let text = dir.path().join("text");
        fs::write(&text, b"no image").unwrap();
        let result =
            convert_file(&text, &dir.path().join("e.sqsh"), OutputFormat::Sqsh, &ConvertOptions::default());
        assert!(matches!(result, Err(ConvertError::UnknownFormat { .. })), "{result:?}");
    }
}
