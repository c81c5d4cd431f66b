//! Layers: the tar entries inside a compressed stream.
//!
//! [`TarReader`] parses; [`decompress`] recognises the compression; neither knows what the entries mean
//! for the file tree (see [`crate::flatten`]).

mod compression;
mod header;
mod pax;
mod sparse;
mod tar;

pub use compression::{Compression, decompress};
pub(crate) use tar::printable;
pub use tar::{Entry, EntryKind, MAX_LINK, MAX_NAME, MAX_PATH, TarError, TarReader};
