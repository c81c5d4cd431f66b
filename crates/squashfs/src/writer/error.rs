//! What can go wrong while writing an image.

use std::io;

/// An image that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output refused bytes, a seek, or a read of what was written before.
    #[error("cannot write the image")]
    Output(#[source] io::Error),
    /// The content of a file could not be read.
    #[error("cannot read the content of a file")]
    Content(#[source] io::Error),
    /// An option is outside of its range.
    #[error("squashfs writer option {option} cannot be {value}")]
    Options {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: i64,
    },
    /// A compression thread could not be started.
    #[error("cannot start a compression thread")]
    Thread(#[source] io::Error),
    /// A block could not be compressed.
    #[error("cannot compress a block: {reason}")]
    Compress {
        /// What the compressor said.
        reason: &'static str,
    },
    /// Calls in an order that makes no sense, as writing content before a file is begun.
    #[error("squashfs writer used out of order: {what}")]
    Order {
        /// The call and what it misses.
        what: &'static str,
    },
    /// A name that no directory can hold.
    #[error("file name {name:?} is not allowed in an image")]
    Name {
        /// The name, made printable.
        name: String,
    },
    /// A node of the tree is used in a way the format cannot express.
    #[error("invalid image tree: {what}")]
    Tree {
        /// What is wrong.
        what: &'static str,
    },
    /// An extended attribute the format has no place for.
    #[error("extended attribute {name:?} cannot be stored: {what}")]
    Xattr {
        /// Its name, made printable.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More of something than the format can count.
    #[error("image has too many {what}: the limit is {limit}")]
    TooMany {
        /// The counted thing.
        what: &'static str,
        /// The most there can be.
        limit: u64,
    },
}

/// Result of a writing operation.
pub(crate) type Result<T, E = WriteError> = std::result::Result<T, E>;

/// A name or other bytes for a message.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
