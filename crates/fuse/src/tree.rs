//! What a FUSE server serves: a read-only tree addressed by node ids.

use std::fmt;

pub use rustix::io::Errno;

/// Names one node of a tree for the life of a mount. The root is [`NodeId::ROOT`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of every tree (`FUSE_ROOT_ID`).
    pub const ROOT: NodeId = NodeId(1);
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {:#x}", self.0)
    }
}

/// The type of a node, with the values of `d_type` in `readdir(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A Unix socket.
    Socket,
}

impl Kind {
    /// The `S_IFMT` bits of this type.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::Fifo => 0o010_000,
            Kind::CharDevice => 0o020_000,
            Kind::Directory => 0o040_000,
            Kind::BlockDevice => 0o060_000,
            Kind::File => 0o100_000,
            Kind::Symlink => 0o120_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// The `d_type` of this type: the `S_IFMT` bits shifted right by twelve.
    pub(crate) fn directory_type(self) -> u32 {
        self.mode_bits() >> 12
    }
}

/// The metadata of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The node itself.
    pub node: NodeId,
    /// The inode number that `stat(2)` shows.
    pub inode: u64,
    /// The type.
    pub kind: Kind,
    /// Permission bits, without the type.
    pub permissions: u32,
    /// Owner, in ids of the user namespace that the mount belongs to.
    pub uid: u32,
    /// Group, in ids of the user namespace that the mount belongs to.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Length in bytes.
    pub size: u64,
    /// Time of last change, in seconds since the epoch.
    pub modified: u64,
    /// Device number of a device node, else zero.
    pub device: u32,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, without slashes.
    pub name: Vec<u8>,
    /// The node that it names.
    pub node: NodeId,
    /// The inode number that `readdir(3)` shows.
    pub inode: u64,
    /// The type.
    pub kind: Kind,
}

/// Numbers for `statfs(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes that the tree occupies.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// Names (with their prefixes) and values of extended attributes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A read-only tree. Calls come from several threads at once.
///
/// Errors are errnos because they go to the payload as they are; `EIO` stands for an image that
/// cannot be read or is corrupt.
pub trait Tree: Send + Sync + fmt::Debug {
    /// Finds `name` in the directory `parent`; `None` where there is no such name.
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno>;

    /// Reads the metadata of a node.
    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno>;

    /// Lists a directory from index `start` on ("." and ".." not counted), calling `each` with an
    /// entry and the index to go on from after it, until that returns false. Order and indexes are
    /// the same at every call; indexes grow, but may have gaps.
    fn read_dir(
        &self,
        node: NodeId,
        start: u64,
        each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno>;

    /// Reads from a file; returns the bytes read, fewer than asked only at its end.
    fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Reads the target of a symbolic link.
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno>;

    /// Tells whether any node has extended attributes: if not, the kernel is told never to ask.
    fn has_xattrs(&self) -> bool;

    /// Lists the extended attributes of a node, with their prefixes.
    fn xattrs(&self, node: NodeId) -> Result<Xattrs, Errno>;

    /// Numbers for `statfs(2)`.
    fn statistics(&self) -> Statistics;
}
