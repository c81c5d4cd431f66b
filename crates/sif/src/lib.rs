//! The Singularity Image Format: headers, descriptors, objects.
//!
//! A SIF is a 128-byte header, a table of fixed-size descriptors and the objects they point to. This
//! crate reads such files from anything that is `Read + Seek`, trusting no number in them, and writes
//! deterministic ones. It knows nothing about what the objects mean, paths, or mounting.
//! The byte layout is described in `docs/formats/sif.md`.

mod layout;
mod reader;
mod writer;

pub use layout::{Arch, DataType, FsType, PartType};
pub use reader::{
    DescriptorInfo, Kind, MAX_DESCRIPTORS, MAX_OBJECT_BYTES, PrimaryPartition, SifError, SifFile,
};
pub use writer::{LAUNCH_LINE, SifObject, SifOptions, SifWriteError, SifWriter};
