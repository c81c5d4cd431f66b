//! A FUSE server for read-only trees, speaking the kernel protocol directly.
//!
//! The server answers requests read from an open `/dev/fuse` that somebody else has mounted; it
//! never mounts anything itself, opens no path and holds no state per request, so any number of
//! threads may serve one connection. What is served is a [`Tree`]: [`Layered`] puts synthetic
//! directories and files (mount points, a merged passwd) on top of another tree, so that nothing has to be
//! laid above an image for them; [`Paired`] puts a tree beside an empty directory, for an overlay that adds nothing.
//!
//! Source of the protocol: `include/uapi/linux/fuse.h` of Linux 6.1 (protocol 7.37) and
//! `Documentation/filesystems/fuse.rst`. Everything from 7.31 (Linux 5.4) on is accepted.

mod appetite;
mod layered;
mod paired;
mod reply;
mod request;
mod server;
mod tree;
mod wire;

pub use layered::{Complete, Layered, PatchError};
pub use paired::{NOTHING, Paired, TREE};
pub use server::{Reply, Served, Server, ServerError};
pub use tree::{Attributes, Entry, Errno, Kind, NodeId, Statistics, Tree, Xattrs};
