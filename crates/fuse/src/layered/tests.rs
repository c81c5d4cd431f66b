//! A small in-memory tree with additions on top.

use super::*;

/// A tree of one root directory with the file `file`, the directory `dir` and the link `link`.
#[derive(Debug)]
struct Flat;

const NAMES: [(&str, Kind); 3] = [("dir", Kind::Directory), ("file", Kind::File), ("link", Kind::Symlink)];

fn attributes(node: u64, kind: Kind) -> Attributes {
    Attributes {
        node: NodeId(node),
        inode: node,
        kind,
        permissions: 0o755,
        uid: 0,
        gid: 0,
        links: 1,
        size: 4,
        modified: 0,
        device: 0,
    }
}

impl Tree for Flat {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let found = (2u64..).zip(NAMES).find(|(_, (known, _))| known.as_bytes() == name);
        Ok(found.filter(|_| parent == NodeId::ROOT).map(|(node, (_, kind))| attributes(node, kind)))
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        match node.0 {
            1 => Ok(attributes(1, Kind::Directory)),
            id => (2u64..)
                .zip(NAMES)
                .find(|(n, _)| *n == id)
                .map(|(n, (_, k))| attributes(n, k))
                .ok_or(Errno::IO),
        }
    }

    fn read_dir(
        &self,
        node: NodeId,
        start: u64,
        each: &mut dyn FnMut(&Entry, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        for (index, (name, kind)) in (0u64..).zip(NAMES).filter(|(i, _)| *i >= start && node == NodeId::ROOT)
        {
            let entry =
                Entry { name: name.as_bytes().to_vec(), node: NodeId(index + 2), inode: index + 2, kind };
            if !each(&entry, index + 1)? {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, _: NodeId, _: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        buffer[..4].copy_from_slice(b"real");
        Ok(4)
    }

    fn read_link(&self, _: NodeId) -> Result<Vec<u8>, Errno> {
        Ok(b"file".to_vec())
    }

    fn has_xattrs(&self) -> bool {
        false
    }

    fn xattrs(&self, _: NodeId) -> Result<Xattrs, Errno> {
        Ok(Vec::new())
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

/// Lists a directory one entry per call, as a kernel with a tiny buffer would.
fn list(tree: &dyn Tree, node: NodeId) -> Vec<String> {
    let mut names = Vec::new();
    let mut start = 0;
    loop {
        let before = names.len();
        let next_start = &mut start;
        tree.read_dir(node, *next_start, &mut |entry, next| {
            names.push(String::from_utf8(entry.name.clone()).unwrap());
            *next_start = next;
            Ok(false)
        })
        .unwrap();
        if names.len() == before {
            return names;
        }
    }
}

#[test]
fn added_names_are_found_listed_and_read() {
    let mut tree = Layered::new(Flat, 7, 8);
    tree.add_directory("/home/alice").unwrap();
    tree.add_directory("/dir").unwrap();
    tree.add_file("/dir/new", b"text".to_vec(), 0o644).unwrap();
    assert_eq!(list(&tree, NodeId::ROOT), ["home", "dir", "file", "link"]);
    let dir = tree.lookup(NodeId::ROOT, b"dir").unwrap().unwrap();
    assert_eq!(dir.node, NodeId(2), "an existing directory stays what it is");
    let new = tree.lookup(dir.node, b"new").unwrap().unwrap();
    assert_eq!((new.uid, new.gid, new.size), (7, 8, 4));
    let mut buffer = [0; 8];
    assert_eq!(tree.read(new.node, 1, &mut buffer).unwrap(), 3);
    assert_eq!(&buffer[..3], b"ext");
    let home = tree.lookup(NodeId::ROOT, b"home").unwrap().unwrap();
    assert_eq!(list(&tree, home.node), ["alice"]);
    assert_eq!(tree.lookup(home.node, b"bob").unwrap(), None);
}

#[test]
fn a_file_hides_what_the_image_has() {
    let mut tree = Layered::new(Flat, 7, 8);
    tree.add_file("/link", b"text".to_vec(), 0o600).unwrap();
    assert_eq!(list(&tree, NodeId::ROOT), ["link", "dir", "file"]);
    assert_eq!(tree.lookup(NodeId::ROOT, b"link").unwrap().unwrap().kind, Kind::File);
}

#[test]
fn paths_that_cannot_be_laid_are_refused() {
    let mut tree = Layered::new(Flat, 7, 8);
    for path in ["", "/", "relative", "/a/../b", "/a/./b"] {
        assert!(matches!(tree.add_directory(path), Err(PatchError::Path(_))), "{path}");
    }
    for path in ["/file/below", "/link", "/link/below"] {
        assert!(matches!(tree.add_directory(path), Err(PatchError::NotADirectory(_))), "{path}");
    }
}

#[test]
fn files_are_completed_when_somebody_looks() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let n_made = Arc::new(AtomicUsize::new(0));
    let mut tree = Layered::new(Flat, 7, 8);
    let counted = Arc::clone(&n_made);
    let complete = move |image: &[u8]| {
        counted.fetch_add(1, Ordering::Relaxed);
        [image, b" and more"].concat()
    };
    tree.complete_file("/file", 0o644, Box::new(complete)).unwrap();
    tree.complete_file("/dir", 0o644, Box::new(|_| unreachable!("a directory stays as it is"))).unwrap();
    tree.complete_file("/missing", 0o644, Box::new(|_| unreachable!("there is none"))).unwrap();
    assert_eq!(n_made.load(Ordering::Relaxed), 0);
    let mut below = [0; 4];
    let length = Flat.read(NodeId(3), 0, &mut below).unwrap();
    let want = [&below[..length], b" and more"].concat();
    let found = tree.lookup(NodeId::ROOT, b"file").unwrap().unwrap();
    assert_eq!((found.size, found.uid, found.permissions), (want.len() as u64, 7, 0o644));
    let mut bytes = [0; 64];
    let length = tree.read(found.node, 0, &mut bytes).unwrap();
    assert_eq!(&bytes[..length], want);
    let length = tree.read(found.node, 2, &mut bytes).unwrap();
    assert_eq!(&bytes[..length], &want[2..]);
    assert_eq!(n_made.load(Ordering::Relaxed), 1, "once for all");
    assert_eq!(tree.lookup(NodeId::ROOT, b"dir").unwrap().unwrap().kind, Kind::Directory);
    assert_eq!(tree.lookup(NodeId::ROOT, b"missing").unwrap(), None);
}
