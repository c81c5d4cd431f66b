//! Building of replies: typed values to the bytes that the kernel expects.

use crate::tree::{Attributes, Entry, Statistics};
use crate::wire::ENTRY_OUT_LEN;

/// How long the kernel may believe what it was told, in seconds. The tree never changes, so this
/// is as good as for ever and still far from overflowing the kernel's jiffies arithmetic.
const VALID_SECONDS: u64 = 10 * 365 * 24 * 3600;

/// The block size that `stat(2)` and `statfs(2)` show: the SquashFS default, a good read size.
const BLOCK_SIZE: u32 = 128 * 1024;

fn u64s(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

fn u32s(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

/// Appends a `struct fuse_attr`.
fn attributes(out: &mut Vec<u8>, of: &Attributes) {
    let time = of.modified;
    u64s(out, &[of.inode, of.size, of.size.div_ceil(512), time, time, time]);
    let mode = of.kind.mode_bits() | (of.permissions & 0o7777);
    u32s(out, &[0, 0, 0, mode, of.links, of.uid, of.gid, of.device, BLOCK_SIZE, 0]);
}

/// Appends a `struct fuse_attr_out`.
pub(crate) fn attributes_out(out: &mut Vec<u8>, of: &Attributes) {
    u64s(out, &[VALID_SECONDS]);
    u32s(out, &[0, 0]);
    attributes(out, of);
}

/// Appends a `struct fuse_entry_out`; without attributes it is a negative entry, which the kernel
/// caches: Python asks for hundreds of names that do not exist.
pub(crate) fn entry_out(out: &mut Vec<u8>, of: Option<&Attributes>) {
    let node = of.map_or(0, |found| found.node.0);
    u64s(out, &[node, 0, VALID_SECONDS, VALID_SECONDS]);
    u32s(out, &[0, 0]);
    match of {
        Some(found) => attributes(out, found),
        None => out.resize(out.len() + ENTRY_OUT_LEN - 40, 0),
    }
}

/// Appends a `struct fuse_dirent`, or a `struct fuse_direntplus` where `plus` is given, if it fits
/// into `limit` bytes; tells whether it did.
pub(crate) fn directory_entry(
    out: &mut Vec<u8>,
    limit: usize,
    entry: &Entry,
    next_offset: u64,
    plus: Option<Option<&Attributes>>,
) -> bool {
    let prefix = if plus.is_some() { ENTRY_OUT_LEN } else { 0 };
    let padded = (24 + entry.name.len()).next_multiple_of(8);
    if out.len() + prefix + padded > limit {
        return false;
    }
    let Ok(name_len) = u32::try_from(entry.name.len()) else { return false };
    if let Some(of) = plus {
        entry_out(out, of);
    }
    u64s(out, &[entry.inode, next_offset]);
    u32s(out, &[name_len, entry.kind.directory_type()]);
    out.extend_from_slice(&entry.name);
    out.resize(out.len() + padded - 24 - entry.name.len(), 0);
    true
}

/// Appends a `struct fuse_statfs_out` (a `struct fuse_kstatfs`).
pub(crate) fn statistics_out(out: &mut Vec<u8>, of: &Statistics) {
    let blocks = of.bytes.div_ceil(u64::from(BLOCK_SIZE));
    u64s(out, &[blocks, 0, 0, of.inodes, 0]);
    u32s(out, &[BLOCK_SIZE, 255, BLOCK_SIZE, 0]);
    out.resize(out.len() + 24, 0);
}

/// Appends a `struct fuse_init_out`.
pub(crate) fn init_out(out: &mut Vec<u8>, minor: u32, max_readahead: u32, flags: u32) {
    /// Requests that may wait in the background, and where the kernel starts to throttle.
    const MAX_BACKGROUND: u16 = 64;
    const CONGESTION: u16 = 48;
    /// Nothing is ever written, so the smallest allowed value keeps our buffer small.
    const MAX_WRITE: u32 = 4096;
    // One read may bring a whole mebibyte, which is the longest answer of the server: a shorter
    // one than was asked for would be taken for the end of the file.
    let max_pages = u16::try_from(crate::server::MAX_ANSWER / rustix::param::page_size()).unwrap_or(1).max(1);
    u32s(out, &[crate::wire::KERNEL_VERSION, minor, max_readahead, flags]);
    out.extend_from_slice(&MAX_BACKGROUND.to_ne_bytes());
    out.extend_from_slice(&CONGESTION.to_ne_bytes());
    u32s(out, &[MAX_WRITE, 1]);
    out.extend_from_slice(&max_pages.to_ne_bytes());
    out.extend_from_slice(&0u16.to_ne_bytes());
    out.resize(out.len() + 32, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Kind, NodeId};
    use crate::wire::ATTR_LEN;

    fn sample() -> Attributes {
        Attributes {
            node: NodeId(5),
            inode: 6,
            kind: Kind::File,
            permissions: 0o644,
            uid: 1,
            gid: 2,
            links: 1,
            size: 513,
            modified: 9,
            device: 0,
        }
    }

    #[test]
    fn layouts_have_the_sizes_of_the_kernel_header() {
        let mut out = Vec::new();
        attributes(&mut out, &sample());
        assert_eq!(out.len(), ATTR_LEN);
        for of in [Some(&sample()), None] {
            out.clear();
            entry_out(&mut out, of);
            assert_eq!(out.len(), ENTRY_OUT_LEN);
        }
        out.clear();
        attributes_out(&mut out, &sample());
        assert_eq!(out.len(), 104);
        out.clear();
        statistics_out(&mut out, &Statistics::default());
        assert_eq!(out.len(), 80);
        out.clear();
        init_out(&mut out, 31, 0, 0);
        assert_eq!(out.len(), 64);
    }

    #[test]
    fn a_directory_entry_that_does_not_fit_leaves_nothing() {
        let entry = Entry { name: b"name".to_vec(), node: NodeId(2), inode: 2, kind: Kind::File };
        let mut out = Vec::new();
        assert!(directory_entry(&mut out, 32, &entry, 1, None));
        assert_eq!(out.len(), 32);
        assert!(!directory_entry(&mut out, 63, &entry, 2, None));
        assert_eq!(out.len(), 32);
    }
}
