//! Image sources, content store, registry client, flattening and conversion.
//!
//! Everything is verified on the way in: manifests and configurations against their digests before they
//! are parsed, layers and their uncompressed bytes while they stream. No layer is extracted to disk; the
//! merged tree goes straight into a SquashFS. A name in the store or an output appears only complete.
//!
//! This crate reads no environment and prints nothing: directories, platforms and limits are arguments,
//! and [`Progress`] receives what a terminal might show.

mod additions;
mod client;
mod containers;
mod convert;
mod copy;
mod file_error;
mod file_system;
mod flatten;
mod identity;
mod image_file;
mod image_parts;
mod inspect;
mod key;
mod layer;
mod oras;
mod output;
mod process_identity;
mod progress;
mod pull;
mod push;
mod resources;
mod sif_file;
mod sink;
mod source;
mod squash;
mod store;
mod targets;
mod traces;
mod tree;
mod trees;
mod unpack;
mod verify;

pub use additions::{CONFIG_PATH, MANIFEST_PATH, image_additions, mount_points, singularity_additions};
pub use client::{
    Certificates, Client, ClientCertificate, ClientError, ClientOptions, Credentials, Distrusted,
    EmptyKeyring, Exempt, Keyring, KeyringError, Login, LoginCheck, Proxies, ProxyAddress, RegistryImage,
    Route, Secret, Transport, Withheld,
};
pub use containers::{
    ContainerLease, ContainerPlace, ContainerRecord, Containers, ListedContainer, MadeContainer,
    NewContainer, TaskEnd, hash_image,
};
pub use convert::{
    ConvertError, ConvertOptions, Converted, OutputFormat, Timings, convert_directory, convert_image,
    unpack_image,
};
pub use copy::{convert_file, export};
pub use file_error::{Doing, FileError};
pub use file_system::{Incapable, Lacks};
pub use flatten::{
    FlattenError, FlattenOptions, Flattened, LayerSource, Level, MAX_ENTRIES, MergeError, Merger, flatten,
};
pub use identity::{FileIdentity, Identities};
pub use image_file::ImageFile;
pub use image_parts::{Addition, ImageParts};
pub use inspect::{FileKind, ImageLayer, Inspection, SquashfsFacts, file_kind, inspect, inspect_layers};
pub use key::{CONVERTER_VERSION, Recipe};
pub(crate) use layer::printable as layer_name;
pub use layer::{
    Compression, Content, Entry, EntryKind, MAX_LINK, MAX_NAME, MAX_PATH, TarError, TarReader, decompress,
};
pub use oras::{FetchedSif, SavedSif, SifTransferError, fetch_sif, pull_sif, push_sif, save_sif};
pub use output::expect_writable;
pub use process_identity::{realm, start_time};
pub use progress::{Event, Progress};
pub use pull::{PullError, PulledImage, pull, pull_from};
pub use push::{PushError, PushTarget, Pushed, push_image};
pub use resources::{Ledger, MemoryExhausted, MemoryPlan, Resources, TooLittleMemory};
pub use sif_file::{
    PartitionInfo, SifAddition, SifDescription, SifFileError, SifObjectInfo, add_sif_object,
    delete_sif_object, describe_sif, dump_sif_object,
};
pub use sink::{FileSink, MemorySink};
/// The codes of SIF objects, for those who add some.
pub use situla_sif as sif;
pub use source::{
    ArchiveError, DirectoryError, DockerArchiveError, DockerArchiveImage, FetchedManifest, ImageSource,
    LayoutError, LayoutImage, Owners, ResolveError, Scheme, Source, SourceError, SourceNameError, Which,
    resolve,
};
pub use store::{
    Acquired, Lease, Place, RoomLeft, Store, StoreEntry, StoreError, StoreLimits, StoreOptions, StorePruned,
    StoredImage, UseMark, User,
};
pub use targets::{
    BuiltImage, LayerWriteError, PackedImage, SaveError, SavedImage, Target, refuse_taken, save_directory,
    save_file, save_image,
};
pub use traces::abandon;
pub use tree::{Child, Directory, Inode, InodeId, InodeKind, Meta, Tree, Xattrs};
pub use trees::{CachedTree, Pruned, TreeCache, TreeError, TreeLease, TreeLimits};
pub use unpack::{Unpacked, unpack_file};
pub use verify::{VerifiedReader, VerifyError};
