//! The tree of an image before it is written: nodes in an arena, names in directories.

use std::collections::BTreeMap;

use crate::reader::DeviceNumber;
use crate::writer::data::StoredFile;
use crate::writer::error::{Result, WriteError, printable};

/// Longest file name Linux works with (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// Names a node of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission, set-id and sticky bits; others are refused.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Extended attributes by full name (`user.…`, `trusted.…`, `security.…`), in any order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory and what it names.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file whose content the writer has.
    File(StoredFile),
    /// A symbolic link and its target, of 1 to 4095 bytes.
    Symlink(Vec<u8>),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Mode, owner, time and extended attributes.
    pub metadata: Metadata,
    /// Kind and what belongs to it.
    pub kind: NodeKind,
}

/// All nodes of an image. A node with two names is a hard link; one without any is not written.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// A tree with an empty root directory.
    pub fn new(root: Metadata) -> Self {
        Self { nodes: vec![Node { metadata: root, kind: NodeKind::Directory(BTreeMap::new()) }] }
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds a node that has no name yet.
    ///
    /// # Errors
    /// More than 2³²−1 nodes.
    pub fn add(&mut self, metadata: Metadata, kind: NodeKind) -> Result<NodeId> {
        let limit = u64::from(u32::MAX);
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id < u32::MAX);
        let id = id.ok_or(WriteError::TooMany { what: "nodes", limit })?;
        self.nodes.push(Node { metadata, kind });
        Ok(NodeId(id))
    }

    /// Gives `node` a name in `dir`, in place of what had that name; returns what that was.
    ///
    /// # Errors
    /// The name is empty, too long, `.` or `..`, has a slash or NUL in it, or `dir` is no directory.
    pub fn link(
        &mut self,
        dir: NodeId,
        name: impl AsRef<[u8]> + Into<Vec<u8>>,
        node: NodeId,
    ) -> Result<Option<NodeId>> {
        check_name(name.as_ref())?;
        let NodeKind::Directory(names) = &mut self.node_mut(dir).kind else {
            return Err(WriteError::Tree { what: "a name in a node that is no directory" });
        };
        Ok(names.insert(name.into(), node))
    }

    /// The node that `dir` names `name`, if it does.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(dir).kind {
            NodeKind::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    /// A node of this tree.
    ///
    /// # Panics
    /// The id comes from another, larger tree.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A node of this tree, to be changed.
    ///
    /// # Panics
    /// The id comes from another, larger tree.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Number of nodes, with or without a name.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node of an id that may come from elsewhere.
    pub(crate) fn checked(&self, id: NodeId) -> Result<&Node> {
        self.nodes.get(id.index()).ok_or(WriteError::Tree { what: "a name for a node of another tree" })
    }
}

/// Whether a directory can hold `name`; checked again when writing, as maps can be filled directly.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    let special = name.is_empty() || name == b"." || name == b"..";
    if special || name.len() > MAX_NAME || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(WriteError::Name { name: printable(name) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_no_directory_can_hold() {
        let mut tree = Tree::new(Metadata::default());
        let fifo = tree.add(Metadata::default(), NodeKind::Fifo).unwrap();
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(matches!(tree.link(tree.root(), name, fifo), Err(WriteError::Name { .. })), "{name:?}");
        }
        assert_eq!(tree.link(tree.root(), [0xff; 255], fifo).unwrap(), None);
        assert_eq!(tree.link(tree.root(), [0xff; 255], tree.root()).unwrap(), Some(fifo));
        assert!(matches!(tree.link(fifo, b"x", fifo), Err(WriteError::Tree { .. })));
        assert_eq!(tree.child(tree.root(), b"x"), None);
    }
}
