//! Finished images to other places, without compressing anything again.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use situla_oci::Digest;

use crate::convert::{
    ConvertError, ConvertOptions, Converted, OutputFormat, Timings, create_output, describe_image,
    hash_range, publish, refuse_existing, wrap_checked, write_error,
};
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
    let mut converted = match format {
        OutputFormat::Sif => wrap_checked(&image.path, out, options, check),
        OutputFormat::Sqsh => copy_checked(&image.path, out, options, check),
    }?;
    converted.manifest_digest = Some(image.manifest_digest.clone());
    Ok(converted)
}

/// Copies an image file as it is, after a look at whether it is one.
///
/// # Errors
/// When the input is no usable image or the output cannot be written.
pub fn copy_image(input: &Path, out: &Path, options: &ConvertOptions) -> Result<Converted, ConvertError> {
    copy_checked(input, out, options, |_| Ok(()))
}

fn copy_checked(
    input: &Path,
    out: &Path,
    options: &ConvertOptions,
    check: impl FnOnce(&Digest) -> Result<(), ConvertError>,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let began = Instant::now();
    let read = |source| ConvertError::Read { path: input.to_owned(), source };
    let mut file = File::open(input).map_err(read)?;
    let (kind, window) = root_window(input, &file)?;
    let (manifest_digest, _) = describe_image(input, window.over(file.try_clone().map_err(read)?))?;
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let pending = create_output(out)?;
    let mut target = pending.file().map_err(|source| write_error(out, source))?;
    // The kernel copies, and shares the blocks where the file system can.
    io::copy(&mut file, &mut target).map_err(|source| write_error(out, source))?;
    let convert = began.elapsed();
    let hashed = hash_range(&target, window.offset, window.len);
    let (rootfs_digest, _) = hashed.map_err(|source| write_error(out, source))?;
    check(&rootfs_digest)?;
    let timings = Timings { convert, ..Timings::default() };
    let mut converted = Converted { manifest_digest, rootfs_digest, bytes: 0, timings };
    let format = match kind {
        FileKind::Squashfs => OutputFormat::Sqsh,
        FileKind::Sif => OutputFormat::Sif,
    };
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::convert::{convert_directory, unwrap_sif};
    use crate::source::Owners;

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
        assert_eq!(fs::metadata(&sif).unwrap().permissions().mode() & 0o777, 0o755);
        unwrap_sif(&sif, &back, &options).unwrap();
        let original = fs::read(&stored.path).unwrap();
        assert!(fs::read(&sqsh).unwrap() == original && fs::read(&back).unwrap() == original);
        let sif2 = dir.path().join("d.sif");
        assert_eq!(copy_image(&sif, &sif2, &options).unwrap().rootfs_digest, stored.rootfs_digest);
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
        let result = copy_image(&text, &dir.path().join("e.sqsh"), &ConvertOptions::default());
        assert!(matches!(result, Err(ConvertError::UnknownFormat { .. })), "{result:?}");
    }
}
