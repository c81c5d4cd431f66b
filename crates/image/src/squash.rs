//! The SquashFS writer as a sink for trees.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};

use situla_squashfs::{
    DeviceNumber, Metadata, NodeId, NodeKind, StoredFile, Summary, WriteError, Writer, WriterOptions,
};

use crate::progress::{Event, Progress};
use crate::sink::FileSink;
use crate::tree::{Child, Directory, Inode, InodeId, InodeKind, Meta, Tree};

/// What the writer keeps for a block of content: its size word in the table and in its inode, and its digest.
const BLOCK_BYTES: u64 = 44;
/// What it keeps for a block in a hole: the two words.
const HOLE_BYTES: u64 = 8;
/// Bytes of a block: the writer's default.
const BLOCK: u64 = 128 << 10;

/// Writes file contents into a SquashFS as they come, and the tree at the end.
#[derive(Debug)]
pub(crate) struct SquashSink<W> {
    writer: Writer<W>,
}

impl<W: Read + Write + Seek> SquashSink<W> {
    pub(crate) fn create(out: W, options: WriterOptions) -> Result<Self, WriteError> {
        Ok(Self { writer: Writer::create(out, options)? })
    }

    /// Writes the tree and completes the image. The tree is taken apart on the way: two of them would be twice
    /// the memory.
    pub(crate) fn finish(
        mut self,
        tree: Tree<StoredFile>,
        progress: &dyn Progress,
    ) -> Result<(Summary, W), WriteError> {
        self.writer.end_files()?;
        let out = situla_squashfs::Tree::new(metadata(tree.root.meta, b"/", progress));
        let root = out.root();
        let ids = vec![None; tree.inodes.len()];
        let inodes = tree.inodes.into_iter().map(Some).collect();
        let mut builder = Builder { inodes, out, ids, progress };
        builder.add_all(tree.root.children, root)?;
        let out = builder.out;
        self.writer.finish(&out)
    }
}

impl<W: Read + Write + Seek> FileSink for SquashSink<W> {
    type File = StoredFile;
    type Error = WriteError;

    fn begin(&mut self, _size: u64) -> Result<(), WriteError> {
        self.writer.begin_file()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.writer.write(bytes)
    }

    fn hole(&mut self, len: u64) -> Result<(), WriteError> {
        self.writer.hole(len)
    }

    fn keeps(data: u64, holes: u64) -> u64 {
        (data / BLOCK).saturating_mul(BLOCK_BYTES).saturating_add((holes / BLOCK).saturating_mul(HOLE_BYTES))
    }

    fn finish(&mut self) -> Result<StoredFile, WriteError> {
        self.writer.finish_file()
    }
}

/// A tree on its way from one form to the other.
struct Builder<'p> {
    /// Those that have not been moved yet.
    inodes: Vec<Option<Inode<StoredFile>>>,
    out: situla_squashfs::Tree,
    /// Where those are that have.
    ids: Vec<Option<NodeId>>,
    progress: &'p dyn Progress,
}

impl Builder<'_> {
    /// Moves what the root names into the node `root`, and all below. Not by recursion, as trees may be deep.
    fn add_all(&mut self, children: BTreeMap<Vec<u8>, Child>, root: NodeId) -> Result<(), WriteError> {
        // Directories being moved, and the length of their paths.
        let mut open = vec![(children.into_iter(), root, 0)];
        let mut path = Vec::new();
        while let Some((children, dir, path_len)) = open.last_mut() {
            let Some((name, child)) = children.next() else {
                open.pop();
                continue;
            };
            path.truncate(*path_len);
            path.push(b'/');
            path.extend_from_slice(&name);
            match child {
                Child::Inode(inode_id) => {
                    let node = self.inode(inode_id, &path)?;
                    self.out.link(*dir, name, node)?;
                }
                Child::Directory(sub) => {
                    let Directory { meta, children } = *sub;
                    let kind = NodeKind::Directory(BTreeMap::new());
                    let node = self.out.add(metadata(meta, &path, self.progress), kind)?;
                    self.out.link(*dir, name, node)?;
                    open.push((children.into_iter(), node, path.len()));
                }
            }
        }
        Ok(())
    }

    fn inode(&mut self, id: InodeId, path: &[u8]) -> Result<NodeId, WriteError> {
        if let Some(node) = self.ids[id.index()] {
            return Ok(node);
        }
        let lost = WriteError::Tree { what: "a name of an inode that is not there" };
        let inode = self.inodes[id.index()].take().ok_or(lost)?;
        let kind = match inode.kind {
            InodeKind::File { content, .. } => NodeKind::File(content),
            InodeKind::Symlink(target) => NodeKind::Symlink(target),
            InodeKind::CharDevice { major, minor } => NodeKind::CharDevice(device(major, minor)?),
            InodeKind::BlockDevice { major, minor } => NodeKind::BlockDevice(device(major, minor)?),
            InodeKind::Fifo => NodeKind::Fifo,
        };
        let node = self.out.add(metadata(inode.meta, path, self.progress), kind)?;
        self.ids[id.index()] = Some(node);
        Ok(node)
    }
}

fn device(major: u32, minor: u32) -> Result<DeviceNumber, WriteError> {
    DeviceNumber::new(major, minor).ok_or(WriteError::Tree { what: "a device number out of range" })
}

fn metadata(mut meta: Meta, path: &[u8], progress: &dyn Progress) -> Metadata {
    meta.xattrs.retain(|(name, _)| match unwanted_xattr(name) {
        None => true,
        Some(why) => {
            progress.event(Event::Skipped { path: crate::layer_name(path), why });
            false
        }
    });
    Metadata {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        // SquashFS has 32 unsigned bits: times before 1970 become 1970, later than 2106 the latest.
        mtime: u32::try_from(meta.mtime.max(0)).unwrap_or(u32::MAX),
        xattrs: meta.xattrs,
    }
}

/// Tells which attributes are left out, and why.
fn unwanted_xattr(name: &[u8]) -> Option<&'static str> {
    let known = [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix));
    if !known {
        return Some("extended attribute that SquashFS cannot hold");
    }
    if name.starts_with(b"trusted.overlay.") {
        // They would steer an overlay mounted on top of the image.
        return Some("overlay attribute of the machine that made the layer");
    }
    (name == b"security.selinux").then_some("SELinux label of the machine that made the layer")
}
