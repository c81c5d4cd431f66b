//! A file tree in memory: names and metadata, with the files' contents already handed to a sink.

use std::collections::BTreeMap;

/// Extended attributes: full names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Owner, mode, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission, set-id and sticky bits (at most `0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in Unix seconds; may be negative.
    pub mtime: i64,
    /// Extended attributes with their full names, sorted by name, without duplicates.
    pub xattrs: Xattrs,
}

impl Meta {
    /// Metadata of things this program adds: owned by root, time zero, so that nothing depends on when
    /// or by whom an image was converted.
    #[must_use]
    pub fn root_owned(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }
}

/// Index of an inode in [`Tree::inodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

impl InodeId {
    /// Returns the index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file that is no directory. Several names may point to one: hard links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode<F> {
    /// Type and content.
    pub kind: InodeKind<F>,
    /// Metadata.
    pub meta: Meta,
}

/// Type and content of an inode; `F` is the sink's handle for a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeKind<F> {
    /// A regular file.
    File {
        /// The sink's handle.
        content: F,
        /// Size in bytes.
        size: u64,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Metadata.
    pub meta: Meta,
    /// Entries by name.
    pub children: BTreeMap<Vec<u8>, Child>,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    /// A directory; boxed, as most entries are none.
    Directory(Box<Directory>),
    /// Anything else.
    Inode(InodeId),
}

/// A whole tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree<F> {
    /// The root directory.
    pub root: Directory,
    /// All inodes; each has at least one name.
    pub inodes: Vec<Inode<F>>,
}

impl<F> Tree<F> {
    /// Looks a path up, without following symbolic links.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Child> {
        let mut children = &self.root.children;
        let mut components = path.split('/').filter(|c| !c.is_empty()).peekable();
        while let Some(name) = components.next() {
            let child = children.get(name.as_bytes())?;
            match child {
                _ if components.peek().is_none() => return Some(child),
                Child::Directory(dir) => children = &dir.children,
                Child::Inode(_) => return None,
            }
        }
        None
    }

    /// Makes `latest` the latest modification time, in seconds since 1970.
    pub(crate) fn clamp_times(&mut self, latest: i64) {
        fn clamp(dir: &mut Directory, latest: i64) {
            dir.meta.mtime = dir.meta.mtime.min(latest);
            for child in dir.children.values_mut() {
                if let Child::Directory(dir) = child {
                    clamp(dir, latest);
                }
            }
        }
        clamp(&mut self.root, latest);
        for inode in &mut self.inodes {
            inode.meta.mtime = inode.meta.mtime.min(latest);
        }
    }

    /// Counts the names of every inode.
    #[must_use]
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts: Vec<u32> = vec![0; self.inodes.len()];
        let mut waiting = vec![&self.root];
        while let Some(dir) = waiting.pop() {
            for child in dir.children.values() {
                match child {
                    Child::Directory(dir) => waiting.push(dir),
                    Child::Inode(id) => counts[id.index()] = counts[id.index()].saturating_add(1),
                }
            }
        }
        counts
    }
}
