//! Many layers to one tree, top layer first, so that hidden content is never written.
//!
//! [`Merger`] holds the semantics (whiteouts, opaque directories, replaced types, hard links);
//! [`flatten`] feeds it from layers that are fetched, verified and decompressed in parallel.

mod merge;
mod overlay;
mod pipeline;
mod turns;

pub use merge::{Level, MAX_ENTRIES, MergeError, Merger};
pub use pipeline::{FlattenError, FlattenOptions, Flattened, LayerSource, flatten};
