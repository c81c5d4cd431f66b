//! Image sources, content store, registry client, flattening and conversion.
//!
//! Everything is verified on the way in: manifests and configurations against their digests before they
//! are parsed, layers and their uncompressed bytes while they stream. No layer is extracted to disk; the
//! merged tree goes straight into a SquashFS. A name in the store or an output appears only complete.
//!
//! This crate reads no environment and prints nothing: directories, platforms and limits are arguments,
//! and [`Progress`] receives what a terminal might show.

mod client;
mod flatten;
mod image_parts;
mod layer;
mod progress;
mod sink;
mod source;
mod tree;
mod verify;

pub use client::{Client, ClientError, ClientOptions, RegistryImage};
pub use flatten::{
    FlattenError, FlattenOptions, Flattened, LayerSource, Level, MAX_ENTRIES, MergeError, Merger, flatten,
};
pub use image_parts::{Addition, ImageParts};
pub(crate) use layer::printable as layer_name;
pub use layer::{
    Compression, Entry, EntryKind, MAX_LINK, MAX_NAME, MAX_PATH, TarError, TarReader, decompress,
};
pub use progress::{Event, Progress};
pub use sink::{FileSink, MemorySink, TreeSink};
pub use source::{
    FetchedManifest, ImageSource, LayoutError, LayoutImage, ResolveError, SourceError, resolve,
};
pub use tree::{Child, Directory, Inode, InodeId, InodeKind, Meta, Tree};
pub use verify::{VerifiedReader, VerifyError};
