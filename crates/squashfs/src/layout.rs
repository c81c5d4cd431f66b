//! Constants of the on-disk format, shared by the reader and the writer.
//!
//! All integers on disk are little-endian. The reference is the kernel's
//! `Documentation/filesystems/squashfs.rst` and `fs/squashfs/squashfs_fs.h`.

/// `hsqs` read as a little-endian word.
pub(crate) const MAGIC: u32 = 0x7371_7368;
/// Bytes of the superblock.
pub(crate) const SUPERBLOCK_LEN: usize = 96;
/// Uncompressed bytes in every metadata block except the last of a table.
pub(crate) const METADATA_LEN: usize = 8192;
/// Smallest data block size the format allows.
pub(crate) const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest data block size the format allows.
pub(crate) const MAX_BLOCK_SIZE: u32 = 1 << 20;
/// Bit of a metadata header that says "stored as is".
pub(crate) const METADATA_RAW: u16 = 0x8000;
/// Bit of a data block size that says "stored as is".
pub(crate) const DATA_RAW: u32 = 1 << 24;
/// "No fragment", "no xattrs", "no such table".
pub(crate) const NONE32: u32 = u32::MAX;
/// A table the image does not have.
pub(crate) const NONE64: u64 = u64::MAX;
/// Longest file name (`SQUASHFS_NAME_LEN`).
pub(crate) const MAX_NAME: usize = 256;
/// Entries that one directory header may announce.
pub(crate) const MAX_DIR_RUN: u32 = 256;
/// The listing size of an inode counts `.` and `..` as three bytes.
pub(crate) const DIR_SIZE_BIAS: u32 = 3;

/// Bytes of a fragment table entry: start (8), size word (4), unused (4).
pub(crate) const FRAGMENT_ENTRY: u64 = 16;
/// Bytes of an xattr id entry: reference (8), count (4), size (4).
pub(crate) const XATTR_ID_ENTRY: u64 = 16;

/// Out-of-line flag of an xattr key type.
pub(crate) const XATTR_OUT_OF_LINE: u16 = 0x100;
/// Prefixes by xattr key type.
pub(crate) const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// On-disk inode types; the extended one of each kind is `basic + EXTENDED`.
pub(crate) mod kind {
    /// Directory.
    pub(crate) const DIRECTORY: u16 = 1;
    /// Regular file.
    pub(crate) const FILE: u16 = 2;
    /// Symbolic link.
    pub(crate) const SYMLINK: u16 = 3;
    /// Block device.
    pub(crate) const BLOCK: u16 = 4;
    /// Character device.
    pub(crate) const CHAR: u16 = 5;
    /// Named pipe.
    pub(crate) const FIFO: u16 = 6;
    /// Socket.
    pub(crate) const SOCKET: u16 = 7;
    /// Distance from a basic type to its extended form.
    pub(crate) const EXTENDED: u16 = 7;
}

/// Reads a little-endian `u16`; the caller's buffer has a fixed size that covers it.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a little-endian `u32`; the caller's buffer has a fixed size that covers it.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a little-endian `u64`; the caller's buffer has a fixed size that covers it.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | (u64::from(le32(bytes, at + 4)) << 32)
}
