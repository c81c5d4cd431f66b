//! The Singularity Image Format: headers, descriptors, objects.
//!
//! A SIF is a 128-byte header, a table of fixed-size descriptors and the objects they point to. This
//! crate reads such files from anything that is `Read + Seek`, trusting no number in them, writes
//! deterministic ones, and edits them in place. It knows nothing about what the objects mean, paths, or
//! mounting. The byte layout is described in `docs/formats/sif.md`.

mod codes;
mod descriptor;
mod editor;
mod layout;
mod reader;
mod writer;

pub use codes::{Arch, DataType, FsType, HashType, MessageFormat, MessageType, PartType, SbomFormat};
pub use descriptor::{DescriptorInfo, Kind, Link};
pub use editor::{MAX_ALIGNMENT, NewObject, SifEditError, SifEditor, Storage};
pub use reader::{Header, MAX_DESCRIPTORS, MAX_OBJECT_BYTES, Region, RootPartition, SifError, SifFile};
pub use writer::{LAUNCH_LINE, SifObject, SifOptions, SifWriteError, SifWriter};
