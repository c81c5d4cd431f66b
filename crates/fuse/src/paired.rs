//! A tree beside an empty directory, for an overlay of both.
//!
//! An overlay without an upper directory has two lower ones at least. Where both are of one file system, files and
//! directories keep one device number and their inode numbers; an overlay of several gives directories new ones.

use crate::tree::{Attributes, Entry, Errno, Kind, NodeId, Statistics, Tree, Xattrs};

/// Where the tree is.
pub const TREE: &str = "image";

/// Where nothing is.
pub const NOTHING: &str = "nothing";

/// The root of the tree, whose own number is that of the directory that holds both.
const TREE_ROOT: NodeId = NodeId(u64::MAX - 1);
const EMPTY: NodeId = NodeId(u64::MAX);

/// Inode numbers of what the overlay hides, far from those of a tree and short enough for 32-bit programs.
const INODES: [u64; 2] = [u32::MAX as u64 - 1, u32::MAX as u64];

/// A character device that an overlay takes for the mark of something removed (`WHITEOUT_DEV` of the kernel), and what it is
/// shown as: it cannot be opened anyway.
const WHITEOUT: u32 = 0;
const NO_WHITEOUT: u32 = 1;

/// A directory with a tree and an empty directory in it.
#[derive(Debug)]
pub struct Paired<T>(T);

impl<T: Tree> Paired<T> {
    /// Puts `tree` there.
    pub fn new(tree: T) -> Self {
        Paired(tree)
    }

    fn directory(&self, node: NodeId, inode: u64, links: u32) -> Result<Attributes, Errno> {
        let root = self.0.attributes(NodeId::ROOT)?;
        Ok(Attributes { node, inode, links, size: 0, ..root })
    }
}

/// The number of a node of the tree, seen from outside.
fn outer(node: NodeId) -> NodeId {
    if node == NodeId::ROOT { TREE_ROOT } else { node }
}

/// The number within the tree of a node that is neither of the directories here.
fn inner(node: NodeId) -> NodeId {
    if node == TREE_ROOT { NodeId::ROOT } else { node }
}

fn shown(found: Attributes) -> Attributes {
    let is_whiteout = found.kind == Kind::CharDevice && found.device == WHITEOUT;
    let device = if is_whiteout { NO_WHITEOUT } else { found.device };
    Attributes { node: outer(found.node), device, ..found }
}

impl<T: Tree> Tree for Paired<T> {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        match parent {
            NodeId::ROOT if name == TREE.as_bytes() => self.attributes(TREE_ROOT).map(Some),
            NodeId::ROOT if name == NOTHING.as_bytes() => self.attributes(EMPTY).map(Some),
            NodeId::ROOT | EMPTY => Ok(None),
            _ => Ok(self.0.lookup(inner(parent), name)?.map(shown)),
        }
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        match node {
            NodeId::ROOT => self.directory(node, INODES[0], 4),
            EMPTY => self.directory(node, INODES[1], 2),
            _ => self.0.attributes(inner(node)).map(shown),
        }
    }

    fn read_dir(
        &self,
        node: NodeId,
        start: u64,
        each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        match node {
            NodeId::ROOT => {
                let both = [(TREE, TREE_ROOT), (NOTHING, EMPTY)];
                for (next, (name, node)) in (1..).zip(both).skip(usize::try_from(start).unwrap_or(2)) {
                    let inode = self.attributes(node)?.inode;
                    let entry = Entry { name: name.into(), node, inode, kind: Kind::Directory };
                    if !each(&entry, next)? {
                        break;
                    }
                }
                Ok(())
            }
            EMPTY => Ok(()),
            _ => self.0.read_dir(inner(node), start, &mut |entry, next| {
                if entry.node == NodeId::ROOT {
                    return each(&Entry { node: TREE_ROOT, ..entry.clone() }, next);
                }
                each(entry, next)
            }),
        }
    }

    fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        match node {
            NodeId::ROOT | EMPTY => Err(Errno::ISDIR),
            _ => self.0.read(inner(node), offset, buffer),
        }
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        match node {
            NodeId::ROOT | EMPTY => Err(Errno::INVAL),
            _ => self.0.read_link(inner(node)),
        }
    }

    fn has_xattrs(&self) -> bool {
        self.0.has_xattrs()
    }

    fn xattrs(&self, node: NodeId) -> Result<Xattrs, Errno> {
        match node {
            NodeId::ROOT | EMPTY => Ok(Vec::new()),
            _ => self.0.xattrs(inner(node)),
        }
    }

    fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with a directory, and in it a file and two devices.
    #[derive(Debug)]
    struct Small;

    const NODES: [(u64, &str, Kind, u32); 4] = [
        (2, "dir", Kind::Directory, 0),
        (3, "file", Kind::File, 0),
        (4, "mark", Kind::CharDevice, 0),
        (5, "disk", Kind::BlockDevice, 0),
    ];

    fn of(node: u64, kind: Kind, device: u32) -> Attributes {
        Attributes {
            node: NodeId(node),
            inode: 100 + node,
            kind,
            permissions: 0o751,
            uid: 7,
            gid: 8,
            links: 3,
            size: 9,
            modified: 10,
            device,
        }
    }

    fn parent_of(node: u64) -> u64 {
        if node == 2 { 1 } else { 2 }
    }

    impl Tree for Small {
        fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
            let found = NODES
                .iter()
                .find(|(node, known, ..)| known.as_bytes() == name && parent_of(*node) == parent.0)
                .map(|(node, _, kind, device)| of(*node, *kind, *device));
            // A name that leads back, as a directory of an image can have it.
            Ok(found.or((name == b"root" && parent.0 == 2).then(|| of(1, Kind::Directory, 0))))
        }

        fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
            if node == NodeId::ROOT {
                return Ok(of(1, Kind::Directory, 0));
            }
            let found = NODES.iter().find(|(known, ..)| *known == node.0);
            found.map(|(node, _, kind, device)| of(*node, *kind, *device)).ok_or(Errno::STALE)
        }

        fn read_dir(
            &self,
            node: NodeId,
            start: u64,
            each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
        ) -> Result<(), Errno> {
            let inside = NODES.iter().filter(|(child, ..)| parent_of(*child) == node.0);
            for (next, (child, name, kind, _)) in (1..).zip(inside).skip(usize::try_from(start).unwrap()) {
                let entry =
                    Entry { name: (*name).into(), node: NodeId(*child), inode: 100 + child, kind: *kind };
                if !each(&entry, next)? {
                    break;
                }
            }
            Ok(())
        }

        fn read(&self, node: NodeId, _: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
            buffer[..1].copy_from_slice(&node.0.to_ne_bytes()[..1]);
            Ok(1)
        }

        fn read_link(&self, _: NodeId) -> Result<Vec<u8>, Errno> {
            Ok(b"target".to_vec())
        }

        fn has_xattrs(&self) -> bool {
            true
        }

        fn xattrs(&self, _: NodeId) -> Result<Xattrs, Errno> {
            Ok(vec![(b"user.x".to_vec(), b"y".to_vec())])
        }

        fn statistics(&self) -> Statistics {
            Statistics { bytes: 11, inodes: 12 }
        }
    }

    /// Names and nodes of a directory, one entry per call.
    fn list(tree: &dyn Tree, node: NodeId) -> Vec<(String, NodeId)> {
        let (mut found, mut start) = (Vec::new(), 0);
        loop {
            let n_before = found.len();
            tree.read_dir(node, start, &mut |entry, next| {
                found.push((String::from_utf8(entry.name.clone()).unwrap(), entry.node));
                start = next;
                Ok(false)
            })
            .unwrap();
            if found.len() == n_before {
                return found;
            }
        }
    }

    #[test]
    fn the_tree_is_below_with_its_own_attributes() {
        let tree = Paired::new(Small);
        assert_eq!(list(&tree, NodeId::ROOT), [(TREE.to_owned(), TREE_ROOT), (NOTHING.to_owned(), EMPTY)]);
        let root = tree.lookup(NodeId::ROOT, TREE.as_bytes()).unwrap().unwrap();
        assert_eq!(root, Attributes { node: TREE_ROOT, ..of(1, Kind::Directory, 0) });
        assert_eq!(list(&tree, root.node), [("dir".to_owned(), NodeId(2))]);
        let dir = tree.lookup(root.node, b"dir").unwrap().unwrap();
        assert_eq!(dir, of(2, Kind::Directory, 0));
        assert_eq!(tree.lookup(dir.node, b"file").unwrap().unwrap(), of(3, Kind::File, 0));
        let back = tree.lookup(dir.node, b"root").unwrap().unwrap();
        assert_eq!(back.node, root.node, "never the directory that holds both");
        let mut byte = [0];
        assert_eq!((tree.read(NodeId(3), 0, &mut byte), byte), (Ok(1), [3]));
        assert_eq!(tree.xattrs(root.node).unwrap().len(), 1);
        assert_eq!(tree.statistics(), Small.statistics());
    }

    #[test]
    fn what_holds_both_and_the_other_one_are_directories_and_no_more() {
        let tree = Paired::new(Small);
        let nothing = tree.lookup(NodeId::ROOT, NOTHING.as_bytes()).unwrap().unwrap();
        assert!(list(&tree, nothing.node).is_empty());
        assert_eq!(tree.lookup(nothing.node, b"dir"), Ok(None));
        assert_eq!(tree.lookup(NodeId::ROOT, b"dir"), Ok(None));
        let mut numbers = vec![tree.attributes(TREE_ROOT).unwrap().inode];
        for node in [NodeId::ROOT, nothing.node] {
            let found = tree.attributes(node).unwrap();
            assert_eq!(
                (found.node, found.kind, found.uid, found.permissions),
                (node, Kind::Directory, 7, 0o751)
            );
            assert_eq!(tree.read(node, 0, &mut [0]), Err(Errno::ISDIR));
            assert_eq!(tree.read_link(node), Err(Errno::INVAL));
            assert!(tree.xattrs(node).unwrap().is_empty());
            numbers.push(found.inode);
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3, "each has a number: {numbers:?}");
    }

    #[test]
    fn no_device_is_taken_for_a_mark_of_something_removed() {
        let tree = Paired::new(Small);
        for (name, device) in [("mark", NO_WHITEOUT), ("disk", 0)] {
            let found = tree.lookup(NodeId(2), name.as_bytes()).unwrap().unwrap();
            assert_eq!(found.device, device, "{name}");
            assert_eq!(tree.attributes(found.node).unwrap().device, device, "{name}");
        }
    }
}
