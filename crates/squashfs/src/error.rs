//! What can go wrong while reading or writing an image.

use std::io;

/// Boxed cause of a failed decompression; each codec has an error type of its own.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An image that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The underlying file or window could not be read.
    #[error("cannot read {length} bytes of the image at offset {offset}")]
    Read {
        /// Byte offset inside the image.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// The bytes do not start with a SquashFS superblock.
    #[error("not a squashfs image")]
    NotSquashfs,
    /// A SquashFS of another version than 4.0.
    #[error("squashfs version {major}.{minor} is not supported, only 4.0 is")]
    Version {
        /// Major version of the superblock.
        major: u16,
        /// Minor version of the superblock.
        minor: u16,
    },
    /// A compressor this reader refuses or does not know.
    #[error("squashfs compressor {name} (id {id}) is not supported")]
    Compressor {
        /// Identifier in the superblock.
        id: u16,
        /// Its usual name, or `unknown`.
        name: &'static str,
    },
    /// A superblock field contradicts the format or the length of the file.
    #[error("invalid squashfs superblock: {field} is {value}")]
    Superblock {
        /// The offending field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The image says it is longer than the file holding it.
    #[error("squashfs image is truncated: it needs {needed} bytes and the file has {present}")]
    Truncated {
        /// Bytes the superblock declares.
        needed: u64,
        /// Bytes that are there.
        present: u64,
    },
    /// A structure of the image is inconsistent.
    #[error("corrupt squashfs image: {what} (at {at:#x})")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// File offset, inode reference or value that shows it.
        at: u64,
    },
    /// A block does not decompress to what it should.
    #[error("cannot decompress the {compressor} block at offset {offset}")]
    Decompress {
        /// Name of the compressor.
        compressor: &'static str,
        /// Byte offset of the block inside the image.
        offset: u64,
        /// What the decompressor said.
        #[source]
        source: Cause,
    },
    /// The image holds something larger than this reader accepts.
    #[error("squashfs {what} of {value} exceeds the limit of {limit}")]
    Limit {
        /// The limited thing.
        what: &'static str,
        /// The value found.
        value: u64,
        /// The largest accepted value.
        limit: u64,
    },
    /// The operation needs an inode of another kind.
    #[error("inode {number} is not a {expected}")]
    WrongKind {
        /// Inode number.
        number: u32,
        /// Kind the operation works on.
        expected: &'static str,
    },
    /// Too many symbolic links on a path inside the image.
    #[error("too many symbolic links while resolving a path inside the image")]
    TooManyLinks,
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, at: u64) -> Self {
        Self::Corrupt { what, at }
    }
}

/// Result of an operation on an image.
pub type Result<T, E = Error> = std::result::Result<T, E>;
