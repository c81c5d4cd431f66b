//! Whether an image fits, before its first byte is fetched.
//!
//! How large an image will be is not known before it is made. The compressed layers tell about it, so what is much
//! smaller than they are cannot hold it; what is larger may still turn out to be full, and that is an error then.

use std::fmt;
use std::fs::File;
use std::path::Path;

use rustix::fs::{FallocateFlags, StatVfs, fallocate, fstatfs, fstatvfs, ftruncate, statvfs};
use rustix::io::Errno;
use situla_oci::Descriptor;

use super::StoreError;
use crate::file_error::FileError;

/// `TMPFS_MAGIC` of `linux/magic.h`: there room that is asked for is memory that is taken.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What there is, where it is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomLeft {
    /// So many bytes of the file system.
    Bytes(u64),
    /// No more files can be made.
    NoFiles,
    /// Less than that by the user's quota.
    Quota,
    /// Less than that, says the file system when it is asked for it.
    Refused,
}

impl fmt::Display for RoomLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoomLeft::Bytes(bytes) => write!(f, "and {bytes} are free"),
            RoomLeft::NoFiles => f.write_str("and no more files can be made there"),
            RoomLeft::Quota => f.write_str("which is more than your quota has left"),
            RoomLeft::Refused => f.write_str("which is more than the file system gives"),
        }
    }
}

/// The least that an image of these layers is expected to take.
pub(crate) fn least_size(layers: &[Descriptor]) -> u64 {
    let of_layer = |layer: &Descriptor| match layer.media_type.as_str() {
        // Not compressed yet.
        kind if kind.ends_with(".tar") => layer.size / 8,
        // Later layers may hide much, equal files are stored once, and zstd packs better than gzip.
        _ => layer.size / 2,
    };
    layers.iter().map(of_layer).fold(0, u64::saturating_add)
}

/// Fails where `needed` bytes do not fit into the directory's file system; with a file in it, also where the
/// file system does not give them, for example because of a quota.
pub(super) fn require(directory: &Path, needed: u64, file: Option<&File>) -> Result<(), StoreError> {
    let left = match file {
        None => statvfs(directory).map(|found| lacks(&found, needed)),
        Some(file) => Ok(refuses(file, needed)),
    };
    let left = left.map_err(|errno| FileError::read(directory)(errno.into()))?;
    left.map_or(Ok(()), |left| Err(StoreError::NoRoom { path: directory.to_owned(), needed, left }))
}

/// Fails where an empty file cannot get `needed` bytes where it lies, in memory as well; errors call the place `place`.
pub(crate) fn require_of(file: &File, place: &Path, needed: u64) -> Result<(), StoreError> {
    let found = fstatvfs(file).map_err(|errno| FileError::read(place)(errno.into()))?;
    let left = lacks(&found, needed).or_else(|| refuses(file, needed));
    left.map_or(Ok(()), |left| Err(StoreError::NoRoom { path: place.to_owned(), needed, left }))
}

fn lacks(found: &StatVfs, needed: u64) -> Option<RoomLeft> {
    // File systems without such numbers say 0 of 0.
    if found.f_files > 0 && found.f_favail == 0 {
        return Some(RoomLeft::NoFiles);
    }
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    (found.f_blocks > 0 && free < needed).then_some(RoomLeft::Bytes(free))
}

/// Asks for the bytes behind the end of an empty file, and gives them back.
fn refuses(file: &File, needed: u64) -> Option<RoomLeft> {
    let is_memory = fstatfs(file).is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS_MAGIC));
    if is_memory || needed == 0 {
        return None;
    }
    let asked = loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, needed) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    // Also after a failure: a part may have been given.
    let _ = ftruncate(file, 0);
    match asked {
        Err(Errno::DQUOT) => Some(RoomLeft::Quota),
        Err(Errno::NOSPC) => Some(RoomLeft::Refused),
        // Done, or not known to this file system.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kind: &str, size: u64) -> Descriptor {
        let digest = situla_oci::Digest::sha256(b"x");
        let text = format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":{size}}}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn layers_tell_the_least_size() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let plain = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(least_size(&[]), 0);
        assert_eq!(least_size(&[layer(gzip, 100), layer(plain, 80)]), 60);
        assert_eq!(least_size(&[layer(gzip, u64::MAX), layer(gzip, u64::MAX)]), u64::MAX - 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        require(dir.path(), 1 << 16, None).unwrap();
        require(dir.path(), 1 << 16, Some(&file)).unwrap();
        let metadata = file.metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((metadata.len(), metadata.blocks()), (0, 0), "what was asked for is given back");
        let error = require(dir.path(), u64::MAX, None).unwrap_err().to_string();
        assert!(error.contains("has no room") && error.contains("are free"), "{error}");
        assert!(require(&dir.path().join("none"), 1, None).is_err());
        require_of(&file, dir.path(), 1 << 16).unwrap();
        assert_eq!(require_of(&file, dir.path(), u64::MAX).unwrap_err().to_string(), error);
    }

    #[test]
    fn numbers_of_a_file_system_are_understood() {
        let found = |f_blocks, f_bavail, f_files, f_favail| StatVfs {
            f_bsize: 4096,
            f_frsize: 4096,
            f_blocks,
            f_bfree: f_bavail,
            f_bavail,
            f_files,
            f_ffree: f_favail,
            f_favail,
            f_fsid: 0,
            f_flag: rustix::fs::StatVfsMountFlags::empty(),
            f_namemax: 255,
        };
        for (n, (numbers, want)) in [
            (found(100, 3, 100, 9), None),
            (found(100, 2, 100, 9), Some(RoomLeft::Bytes(8192))),
            (found(100, 100, 100, 0), Some(RoomLeft::NoFiles)),
            (found(100, 100, 0, 0), None),
            (found(0, 0, 0, 0), None),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(lacks(&numbers, 12_000), want, "case {n}");
        }
    }
}
