//! The SquashFS writer as a sink for trees.

use std::io::{Read, Seek, Write};

use situla_squashfs::{
    DeviceNumber, Metadata, NodeKind, StoredFile, Summary, WriteError, Writer, WriterOptions,
};

use crate::progress::{Event, Progress};
use crate::sink::FileSink;
use crate::tree::{Child, Directory, InodeKind, Meta, Tree};

/// Writes file contents into a SquashFS as they come, and the tree at the end.
#[derive(Debug)]
pub(crate) struct SquashSink<W> {
    writer: Writer<W>,
}

impl<W: Read + Write + Seek> SquashSink<W> {
    pub(crate) fn create(out: W, options: WriterOptions) -> Result<Self, WriteError> {
        Ok(Self { writer: Writer::create(out, options)? })
    }

    /// Writes the tree and completes the image.
    pub(crate) fn finish(
        self,
        tree: &Tree<StoredFile>,
        progress: &dyn Progress,
    ) -> Result<(Summary, W), WriteError> {
        let mut out = situla_squashfs::Tree::new(metadata(&tree.root.meta, b"/", progress));
        let mut ids = vec![None; tree.inodes.len()];
        let root = out.root();
        add_children(tree, &tree.root, root, b"", &mut out, &mut ids, progress)?;
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

    fn finish(&mut self) -> Result<StoredFile, WriteError> {
        self.writer.finish_file()
    }
}

fn add_children(
    tree: &Tree<StoredFile>,
    dir: &Directory,
    id: situla_squashfs::NodeId,
    path: &[u8],
    out: &mut situla_squashfs::Tree,
    ids: &mut [Option<situla_squashfs::NodeId>],
    progress: &dyn Progress,
) -> Result<(), WriteError> {
    for (name, child) in &dir.children {
        let full = [path, b"/", name].concat();
        match child {
            Child::Directory(sub) => {
                let kind = NodeKind::Directory(std::collections::BTreeMap::new());
                let sub_id = out.add(metadata(&sub.meta, &full, progress), kind)?;
                out.link(id, name, sub_id)?;
                add_children(tree, sub, sub_id, &full, out, ids, progress)?;
            }
            Child::Inode(inode_id) => {
                let node = match ids[inode_id.index()] {
                    Some(node) => node,
                    None => {
                        let inode = &tree.inodes[inode_id.index()];
                        let kind = match &inode.kind {
                            InodeKind::File { content, .. } => NodeKind::File(*content),
                            InodeKind::Symlink(target) => NodeKind::Symlink(target.clone()),
                            InodeKind::CharDevice { major, minor } => {
                                NodeKind::CharDevice(device(*major, *minor)?)
                            }
                            InodeKind::BlockDevice { major, minor } => {
                                NodeKind::BlockDevice(device(*major, *minor)?)
                            }
                            InodeKind::Fifo => NodeKind::Fifo,
                        };
                        let node = out.add(metadata(&inode.meta, &full, progress), kind)?;
                        ids[inode_id.index()] = Some(node);
                        node
                    }
                };
                out.link(id, name, node)?;
            }
        }
    }
    Ok(())
}

fn device(major: u32, minor: u32) -> Result<DeviceNumber, WriteError> {
    DeviceNumber::new(major, minor).ok_or(WriteError::Tree { what: "a device number out of range" })
}

fn metadata(meta: &Meta, path: &[u8], progress: &dyn Progress) -> Metadata {
    let mut xattrs = Vec::new();
    for (name, value) in &meta.xattrs {
        if let Some(why) = unwanted_xattr(name) {
            progress.event(Event::Skipped { path: crate::layer_name(path), why });
        } else {
            xattrs.push((name.clone(), value.clone()));
        }
    }
    Metadata {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        // SquashFS has 32 unsigned bits: times before 1970 become 1970, later than 2106 the latest.
        mtime: u32::try_from(meta.mtime.max(0)).unwrap_or(u32::MAX),
        xattrs,
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
