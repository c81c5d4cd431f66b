//! Uses everything of the reader on bytes that may lie.
//!
//! The invariant, here and in the fuzz target: whatever the bytes are, every call returns, with a
//! result or an error; nothing panics, and work and memory stay within the limits of the reader.

use situla_squashfs::{DirCookie, Error, FileType, Image, InodeRef, ReadOptions};

/// Inodes visited: a lying image may have directories that contain each other.
const MAX_VISITS: usize = 400;

/// Opens `bytes` and walks over all of it; returns how much could be read without an error.
///
/// # Errors
/// The image cannot be opened. Errors found later are counted by the walk, not returned.
pub(crate) fn image(bytes: Vec<u8>) -> Result<Walk, Error> {
    let image = Image::open(bytes, ReadOptions { cache_bytes: 1 << 20 })?;
    let mut walk = Walk::default();
    let mut pending = vec![image.root()];
    let mut content = vec![0; 150_000];
    while let Some(inode_ref) = pending.pop() {
        walk.visits += 1;
        if walk.visits > MAX_VISITS {
            break;
        }
        visit(&image, inode_ref, &mut pending, &mut content, &mut walk);
    }
    for path in ["/", "links/loop-a", "links/directory/text-1", "/../sub/../sub/./text-100", "many/x"] {
        walk.count(image.resolve(path, true));
        walk.count(image.read_file(path, 1 << 20));
    }
    for number in [0, 1, image.superblock().inode_count, u32::MAX] {
        walk.count(image.inode_by_number(number));
    }
    Ok(walk)
}

/// How a walk went.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) visits: usize,
    pub(crate) failures: usize,
}

impl Walk {
    fn count<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        self.failures += usize::from(result.is_err());
        result.ok()
    }
}

fn visit(
    image: &Image,
    inode_ref: InodeRef,
    pending: &mut Vec<InodeRef>,
    content: &mut [u8],
    walk: &mut Walk,
) {
    let Some(inode) = walk.count(image.inode(inode_ref)) else { return };
    if let Some(xattrs) = walk.count(image.xattrs(&inode)) {
        assert!(xattrs.iter().all(|(name, value)| name.len() < 300 && value.len() <= 65_536));
    }
    match inode.file_type() {
        FileType::Directory => {
            let Some(entries) = walk.count(image.read_dir_from(&inode, DirCookie::START, 300)) else {
                return;
            };
            for entry in entries {
                assert!(!entry.name.is_empty() && entry.name.len() <= 256);
                assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
                walk.count(image.lookup(&inode, &entry.name));
                walk.count(image.read_dir_from(&inode, DirCookie(entry.next.0 ^ inode_ref.0 << 7), 2));
                pending.push(entry.inode_ref);
            }
            walk.count(image.lookup(&inode, b"absent"));
        }
        FileType::File => {
            for offset in [0, 5000, inode.size / 2, inode.size.saturating_sub(10), inode.size] {
                let read = walk.count(image.read(&inode, offset, content));
                let left = inode.size.saturating_sub(offset).min(content.len() as u64);
                assert!(read.is_none_or(|read| read as u64 == left));
            }
        }
        FileType::Symlink => {
            walk.count(image.read_link(&inode));
        }
        _ => {}
    }
}
