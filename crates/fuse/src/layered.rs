//! Synthetic directories and files on top of another tree.
//!
//! A bind mount needs a mount point, and a user needs a passwd line, that the image may not have.
//! Other engines mount an overlay for that, or write into the image; here the server itself
//! pretends that they exist. What is added hides a name of the tree below, except that a directory
//! added where the tree has one is that one.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use crate::tree::{Attributes, Entry, Errno, Kind, NodeId, Statistics, Tree, Xattrs};

/// Node ids of synthetic nodes start here, above any that a tree below uses.
const FIRST_SYNTHETIC: u64 = 1 << 62;

/// A patch that cannot be laid on the tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The path is not absolute, is the root, or holds `.` or `..`.
    #[error("{0:?} is no absolute path of plain names")]
    Path(String),
    /// A component of the path is in the image, but is no directory.
    #[error("{0:?} leads through something that is no directory")]
    NotADirectory(String),
    /// The image could not be read.
    #[error("look up {path:?} in the image")]
    Lookup {
        /// The path being added.
        path: String,
        /// What the tree said.
        #[source]
        source: Errno,
    },
}

/// Makes the content of a file out of what the tree below has at its place.
pub type Complete = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// The most that is read of a file that is to be completed.
const MAX_COMPLETED: u64 = 16 << 20;

/// What a synthetic file holds.
enum Content {
    Ready(Vec<u8>),
    /// Made the first time that somebody looks.
    Completed {
        below: NodeId,
        complete: Complete,
        made: OnceLock<Result<Vec<u8>, Errno>>,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Ready(bytes) => write!(f, "{} bytes", bytes.len()),
            Content::Completed { below, .. } => write!(f, "completes {below:?}"),
        }
    }
}

#[derive(Debug)]
struct Synthetic {
    attributes: Attributes,
    content: Content,
}

/// A tree with synthetic nodes on top.
#[derive(Debug)]
pub struct Layered<T> {
    below: T,
    owner: (u32, u32),
    nodes: Vec<Synthetic>,
    /// What was added to each directory, real or synthetic, in order of addition.
    added: HashMap<NodeId, Vec<(Vec<u8>, usize)>>,
}

impl<T: Tree> Layered<T> {
    /// Puts nothing on top of `below` yet; what is added belongs to `uid` and `gid`.
    pub fn new(below: T, uid: u32, gid: u32) -> Self {
        Layered { below, owner: (uid, gid), nodes: Vec::new(), added: HashMap::new() }
    }

    /// Makes sure that a directory is at `path`, adding it and its parents where they are missing.
    pub fn add_directory(&mut self, path: &str) -> Result<(), PatchError> {
        let (parents, name) = split(path)?;
        let parent = self.ensure_directories(path, &parents)?;
        self.ensure_directory(path, parent, name).map(|_| ())
    }

    /// Puts a file with `content` and `permissions` at `path`, hiding what is there.
    pub fn add_file(&mut self, path: &str, content: Vec<u8>, permissions: u32) -> Result<(), PatchError> {
        let (parents, name) = split(path)?;
        let parent = self.ensure_directories(path, &parents)?;
        self.insert(parent, name, Kind::File, permissions, Content::Ready(content));
        Ok(())
    }

    /// Shows the file at `path` with what `complete` makes of its content; does nothing where the
    /// tree has no such file. Neither is looked at before somebody looks inside.
    pub fn complete_file(
        &mut self,
        path: &str,
        permissions: u32,
        complete: Complete,
    ) -> Result<(), PatchError> {
        let (parents, name) = split(path)?;
        let parent = self.ensure_directories(path, &parents)?;
        let found = self.lookup(parent, name.as_bytes());
        let found = found.map_err(|source| PatchError::Lookup { path: path.to_owned(), source })?;
        if let Some(found) = found.filter(|found| found.kind == Kind::File) {
            let content = Content::Completed { below: found.node, complete, made: OnceLock::new() };
            self.insert(parent, name, Kind::File, permissions, content);
        }
        Ok(())
    }

    fn ensure_directories(&mut self, path: &str, names: &[&str]) -> Result<NodeId, PatchError> {
        names.iter().try_fold(NodeId::ROOT, |parent, name| self.ensure_directory(path, parent, name))
    }

    fn ensure_directory(&mut self, path: &str, parent: NodeId, name: &str) -> Result<NodeId, PatchError> {
        let found = self
            .lookup(parent, name.as_bytes())
            .map_err(|source| PatchError::Lookup { path: path.to_owned(), source })?;
        match found {
            Some(found) if found.kind == Kind::Directory => Ok(found.node),
            Some(_) => Err(PatchError::NotADirectory(path.to_owned())),
            None => Ok(self.insert(parent, name, Kind::Directory, 0o755, Content::Ready(Vec::new()))),
        }
    }

    fn insert(
        &mut self,
        parent: NodeId,
        name: &str,
        kind: Kind,
        permissions: u32,
        content: Content,
    ) -> NodeId {
        let index = self.nodes.len();
        let id = FIRST_SYNTHETIC + u64::try_from(index).unwrap_or(0);
        // Behind the image's own numbers, and small: 32-bit programs cannot take large ones.
        let inode = self.below.statistics().inodes + 1 + u64::try_from(index).unwrap_or(0);
        let attributes = Attributes {
            node: NodeId(id),
            inode,
            kind,
            permissions,
            uid: self.owner.0,
            gid: self.owner.1,
            links: if kind == Kind::Directory { 2 } else { 1 },
            size: 0,
            modified: 0,
            device: 0,
        };
        self.nodes.push(Synthetic { attributes, content });
        let names = self.added.entry(parent).or_default();
        names.retain(|(other, _)| other != name.as_bytes());
        names.push((name.as_bytes().to_vec(), index));
        NodeId(id)
    }

    fn synthetic(&self, node: NodeId) -> Option<&Synthetic> {
        let index = usize::try_from(node.0.checked_sub(FIRST_SYNTHETIC)?).ok()?;
        self.nodes.get(index)
    }

    /// What a synthetic file holds; made here where nobody has looked before.
    fn content<'a>(&'a self, of: &'a Synthetic) -> Result<&'a [u8], Errno> {
        match &of.content {
            Content::Ready(bytes) => Ok(bytes),
            Content::Completed { below, complete, made } => {
                let made = made.get_or_init(|| self.read_below(*below).map(|bytes| complete(&bytes)));
                made.as_deref().map_err(|errno| *errno)
            }
        }
    }

    fn read_below(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let size = self.below.attributes(node)?.size;
        if size > MAX_COMPLETED {
            return Err(Errno::FBIG);
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let length = self.below.read(node, 0, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn describe(&self, of: &Synthetic) -> Result<Attributes, Errno> {
        let size = u64::try_from(self.content(of)?.len()).unwrap_or(u64::MAX);
        Ok(Attributes { size, ..of.attributes })
    }

    fn added_to(&self, node: NodeId) -> &[(Vec<u8>, usize)] {
        self.added.get(&node).map_or(&[], Vec::as_slice)
    }
}

/// Splits an absolute path into the names of its parents and its own.
fn split(path: &str) -> Result<(Vec<&str>, &str), PatchError> {
    let wrong = || PatchError::Path(path.to_owned());
    let relative = path.strip_prefix('/').ok_or_else(wrong)?;
    let mut names: Vec<&str> = relative.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..") || name.len() > 255 || name.contains('\0')) {
        return Err(wrong());
    }
    let last = names.pop().ok_or_else(wrong)?;
    Ok((names, last))
}

impl<T: Tree> Tree for Layered<T> {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        if let Some((_, index)) = self.added_to(parent).iter().find(|(added, _)| added == name) {
            return self.nodes.get(*index).map(|node| self.describe(node)).transpose();
        }
        if self.synthetic(parent).is_some() {
            return Ok(None);
        }
        self.below.lookup(parent, name)
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        match self.synthetic(node) {
            Some(synthetic) => self.describe(synthetic),
            None => self.below.attributes(node),
        }
    }

    fn read_dir(
        &self,
        node: NodeId,
        start: u64,
        each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        // Added names come first, so that indexes into the tree below only shift by their number.
        // A name below that an added one hides is passed over; its index is a gap.
        let added = self.added_to(node);
        let n_added = u64::try_from(added.len()).unwrap_or(u64::MAX);
        for (index, (name, position)) in (0u64..).zip(added) {
            if index < start {
                continue;
            }
            let Some(synthetic) = self.nodes.get(*position) else { continue };
            let of = synthetic.attributes;
            let entry = Entry { name: name.clone(), node: of.node, inode: of.inode, kind: of.kind };
            if !each(&entry, index + 1)? {
                return Ok(());
            }
        }
        if self.synthetic(node).is_some() {
            return Ok(());
        }
        self.below.read_dir(node, start.saturating_sub(n_added), &mut |entry, next| {
            let hidden = added.iter().any(|(name, _)| *name == entry.name);
            if hidden { Ok(true) } else { each(entry, next.saturating_add(n_added)) }
        })
    }

    fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Some(synthetic) = self.synthetic(node) else { return self.below.read(node, offset, buffer) };
        let content = self.content(synthetic)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let rest = content.get(start..).unwrap_or(&[]);
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        match self.synthetic(node) {
            Some(_) => Err(Errno::INVAL),
            None => self.below.read_link(node),
        }
    }

    fn has_xattrs(&self) -> bool {
        self.below.has_xattrs()
    }

    fn xattrs(&self, node: NodeId) -> Result<Xattrs, Errno> {
        match self.synthetic(node) {
            Some(_) => Ok(Vec::new()),
            None => self.below.xattrs(node),
        }
    }

    fn statistics(&self) -> Statistics {
        self.below.statistics()
    }
}

#[cfg(test)]
mod tests;
