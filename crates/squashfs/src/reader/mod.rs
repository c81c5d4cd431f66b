//! Reading of SquashFS 4.0 images.
//!
//! Nothing in an image is trusted: every offset, count and size is checked against the image or a
//! named limit before it is used, and every loop is bounded by one of them. Reads are positioned and
//! need no lock; caches are bounded and their locks are never held over I/O or decompression.

mod cache;
mod dir;
mod file;
mod image;
mod inode;
mod metadata;
mod path;
mod superblock;
mod xattr;

pub use dir::{DirCookie, DirEntry};
pub use image::{Image, ReadOptions};
pub use inode::{DeviceNumber, DirectoryData, FileData, FileType, Inode, InodeKind, InodeRef, SymlinkData};
pub use superblock::Superblock;
pub use xattr::Xattr;
