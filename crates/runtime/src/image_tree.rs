//! A SquashFS image as a tree that the FUSE server can serve.

use std::sync::Arc;

use situla_fuse::{Attributes, Entry, Errno, Kind, NodeId, Statistics, Tree, Xattrs};
use situla_squashfs::{DirCookie, Error, FileType, Image, Inode, InodeKind, InodeRef};

/// An image whose files all belong to one user: the one who runs it. Unprivileged user namespaces
/// map a single id, and files of unmapped owners would be closed to him.
#[derive(Debug)]
pub(crate) struct ImageTree {
    image: Arc<Image>,
    /// The directory that is the root.
    root: InodeRef,
    uid: u32,
    gid: u32,
}

impl ImageTree {
    /// All of `image`.
    pub(crate) fn new(image: Arc<Image>, uid: u32, gid: u32) -> Self {
        let root = image.root();
        ImageTree::below(image, root, uid, gid)
    }

    /// The directory `root` of `image`.
    pub(crate) fn below(image: Arc<Image>, root: InodeRef, uid: u32, gid: u32) -> Self {
        ImageTree { image, root, uid, gid }
    }

    fn inode(&self, node: NodeId) -> Result<Inode, Errno> {
        let place = match node {
            NodeId::ROOT => self.root,
            NodeId(id) => InodeRef(id.checked_sub(2).ok_or(Errno::STALE)?),
        };
        self.image.inode(place).map_err(|error| errno(&error))
    }

    /// Ids 0 and 1 have a meaning of their own, so references are moved up by two.
    fn node(&self, place: InodeRef) -> NodeId {
        if place == self.root { NodeId::ROOT } else { NodeId(place.0 + 2) }
    }

    fn describe(&self, inode: &Inode) -> Attributes {
        let device = match inode.kind {
            InodeKind::BlockDevice(number) | InodeKind::CharDevice(number) => number.0,
            _ => 0,
        };
        Attributes {
            node: self.node(inode.inode_ref),
            inode: u64::from(inode.number),
            kind: kind(inode.file_type()),
            permissions: u32::from(inode.mode),
            uid: self.uid,
            gid: self.gid,
            links: inode.nlink,
            size: inode.size,
            modified: u64::from(inode.mtime),
            device,
        }
    }
}

fn kind(of: FileType) -> Kind {
    match of {
        FileType::Directory => Kind::Directory,
        FileType::File => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharDevice => Kind::CharDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
    }
}

/// What the payload sees of an image that cannot be read: EIO, except where it asked wrongly.
fn errno(error: &Error) -> Errno {
    match error {
        Error::WrongKind { expected, .. } if *expected == "directory" => Errno::NOTDIR,
        Error::WrongKind { .. } => Errno::INVAL,
        _ => Errno::IO,
    }
}

impl Tree for ImageTree {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let directory = self.inode(parent)?;
        let found = self.image.lookup(&directory, name).map_err(|error| errno(&error))?;
        let Some(entry) = found else { return Ok(None) };
        let inode = self.image.inode(entry.inode_ref).map_err(|error| errno(&error))?;
        Ok(Some(self.describe(&inode)))
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        self.inode(node).map(|inode| self.describe(&inode))
    }

    fn read_dir(
        &self,
        node: NodeId,
        start: u64,
        each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let directory = self.inode(node)?;
        let mut failed = None;
        let visited = self.image.for_each_entry(&directory, DirCookie(start), |entry| {
            let next = entry.next.0;
            let entry = Entry {
                node: self.node(entry.inode_ref),
                inode: u64::from(entry.number),
                kind: kind(entry.kind),
                name: entry.name,
            };
            each(&entry, next).unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
        });
        visited.map_err(|error| errno(&error))?;
        failed.map_or(Ok(()), Err)
    }

    fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let inode = self.inode(node)?;
        // One call ends at a block's end; the kernel takes a short answer for the end of the file.
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.image.read(&inode, at, &mut buffer[done..]).map_err(|error| errno(&error))? {
                0 => break,
                length => done += length,
            }
        }
        Ok(done)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(node)?;
        self.image.read_link(&inode).map_err(|error| errno(&error))
    }

    fn has_xattrs(&self) -> bool {
        self.image.superblock().has_xattrs()
    }

    fn xattrs(&self, node: NodeId) -> Result<Xattrs, Errno> {
        let inode = self.inode(node)?;
        self.image.xattrs(&inode).map_err(|error| errno(&error))
    }

    fn statistics(&self) -> Statistics {
        let superblock = self.image.superblock();
        Statistics { bytes: superblock.bytes_used, inodes: u64::from(superblock.inode_count) }
    }
}
