//! Layers: the tar entries inside a compressed stream.
//!
//! [`TarReader`] parses; [`decompress`] recognises the compression; neither knows what the entries mean
//! for the file tree (see [`crate::flatten`]).

mod compression;
mod frames;
mod header;
mod pax;
mod sparse;
mod tar;

pub(crate) use compression::decompress_within;
pub use compression::{Compression, decompress};
pub(crate) use frames::{Windows, too_large};
pub(crate) use header::{BLOCK, Header};
pub(crate) use pax::parse as parse_pax;
pub(crate) use tar::printable;
pub use tar::{Content, Entry, EntryKind, MAX_LINK, MAX_NAME, MAX_PATH, TarError, TarReader};
