//! SquashFS 4.0: a bounded reader and a deterministic streaming writer.
//!
//! The reader ([`Image`]) takes any SquashFS 4.0 image with gzip, lzo, lz4, xz or zstd blocks, by
//! positioned reads from a [`ReadAt`], and is meant to be shared by the threads of a file server.
//! It takes no lock while it reads or decompresses, keeps bounded caches, and answers bytes that lie
//! with an error.
//!
//! The writer ([`Writer`]) takes file content as it streams in and a [`Tree`] at the end, and makes
//! the same bytes of the same input whatever the number of threads.
//!
//! The crate knows no host paths, no network and no image registry.

mod codec;
mod error;
mod layout;
mod reader;
mod source;
mod writer;

pub use codec::Compressor;
pub use error::{Error, Result};
pub use reader::{
    DeviceNumber, DirCookie, DirEntry, DirectoryData, FileData, FileType, Image, Inode, InodeKind, InodeRef,
    ReadOptions, Superblock, SymlinkData, Xattr,
};
pub use source::{ReadAt, Window};
pub use writer::{
    Metadata, Node, NodeId, NodeKind, StoredFile, Summary, Tree, WriteError, Writer, WriterOptions,
};
