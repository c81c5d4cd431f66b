//! Layers that anybody may have written, merged. Shared by the tests of this crate and the fuzz target.
//!
//! Invariant: whatever the bytes are, reading and merging returns a tree or an error, in the memory that the ledger
//! has. A tree has only names that a directory can hold, every inode of it has a name, a file's content is as long
//! as it says, nothing is nested deeper than a path can name, and the same bytes give the same tree.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hasher};

use situla_image::{
    Child, Directory, FileSink, InodeKind, Ledger, Level, MAX_NAME, MAX_PATH, MemoryPlan, MergeError, Merger,
    TarReader, Tree,
};

/// What separates layers in an input, the lowest being first.
const SEPARATOR: &[u8] = b"\n--layer--\n";
/// Most layers of one input.
const MAX_LAYERS: usize = 16;
/// Memory for a tree: small, so that its limit is met.
const GROWING: u64 = 4 << 20;

/// Keeps of a file's content a digest and its length.
#[derive(Debug, Default)]
struct Digests {
    hasher: DefaultHasher,
    len: u64,
    announced: u64,
}

impl FileSink for Digests {
    type File = (u64, u64);
    type Error = Infallible;

    fn begin(&mut self, size: u64) -> Result<(), Infallible> {
        *self = Self { announced: size, ..Self::default() };
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.hasher.write(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), Infallible> {
        self.hasher.write_u64(len);
        self.len += len;
        Ok(())
    }

    fn keeps(data: u64, holes: u64) -> u64 {
        data / 4096 + holes / (1 << 20)
    }

    fn finish(&mut self) -> Result<(u64, u64), Infallible> {
        assert_eq!(self.len, self.announced, "a file is as long as it was said to be");
        Ok((self.len, self.hasher.finish()))
    }
}

/// Merges the layers in `data`; tells whether they made a tree.
pub(crate) fn layers(data: &[u8]) -> bool {
    let layers = split(data);
    let first = merge(&layers);
    if let Ok(tree) = &first {
        let mut inodes = BTreeSet::new();
        check(tree, &tree.root, 0, &mut inodes);
        assert_eq!(inodes.len(), tree.inodes.len(), "every inode has a name");
    }
    let again = merge(&layers);
    match (&first, &again) {
        (Ok(one), Ok(two)) => assert!(one == two, "the same layers give the same tree"),
        (Err(one), Err(two)) => assert_eq!(format!("{one:?}"), format!("{two:?}")),
        (one, two) => panic!("{one:?}, and then {two:?}"),
    }
    first.is_ok()
}

fn split(data: &[u8]) -> Vec<&[u8]> {
    let mut layers = Vec::new();
    let mut rest = data;
    while layers.len() + 1 < MAX_LAYERS {
        let Some(at) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) else { break };
        layers.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    layers.push(rest);
    layers
}

fn merge(layers: &[&[u8]]) -> Result<Tree<(u64, u64)>, MergeError> {
    let plan = MemoryPlan { growing: GROWING, ..MemoryPlan::default() };
    let ledger = Ledger::new(plan);
    let mut sink = Digests::default();
    let top = u32::try_from(layers.len()).unwrap_or(u32::MAX);
    let mut merger = Merger::new(&mut sink, &ledger, Level(top));
    for (layer, level) in layers.iter().rev().zip((1..=top).rev()) {
        merger.layer(Level(level), &mut TarReader::new(*layer))?;
        if merger.end_layer()? {
            merger.rescue(&mut TarReader::new(*layer))?;
        }
        assert!(ledger.used() <= GROWING, "the ledger keeps to its plan");
    }
    merger.finish()
}

fn check(tree: &Tree<(u64, u64)>, directory: &Directory, depth: usize, inodes: &mut BTreeSet<usize>) {
    assert!(depth <= MAX_PATH, "nested deeper than a path can name");
    for (name, child) in &directory.children {
        let special = name.is_empty() || name == b"." || name == b"..";
        assert!(
            !special && name.len() <= MAX_NAME && !name.contains(&b'/') && !name.contains(&0),
            "{name:?}"
        );
        match child {
            Child::Directory(below) => check(tree, below, depth + 1, inodes),
            Child::Inode(id) => {
                inodes.insert(id.index());
                let inode = &tree.inodes[id.index()];
                if let InodeKind::File { content: (len, _), size } = &inode.kind {
                    assert_eq!(len, size);
                }
                assert!(inode.meta.xattrs.is_sorted(), "attributes are in order");
            }
        }
    }
}
