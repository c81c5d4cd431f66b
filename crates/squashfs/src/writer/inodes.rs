//! Inodes and directory listings: the tree turned into the two large tables.
//!
//! Directories are written after everything in them, as a listing needs the places of the inodes it
//! names. Numbers are given in the same order before anything is written, because a directory also
//! stores the number of its parent. Nothing recurses: trees may be as deep as they like.

use crate::layout::{DIR_SIZE_BIAS, MAX_DIR_RUN, NONE32, kind};
use crate::reader::{DeviceNumber, InodeRef};
use crate::writer::compress::Compressor;
use crate::writer::data::{Extent, StoredFile};
use crate::writer::error::{Result, WriteError};
use crate::writer::tables::{Ids, MetaWriter, Xattrs};
use crate::writer::tree::{Metadata, NodeId, NodeKind, Tree, check_name};

/// Longest symlink target the kernel reads back.
const MAX_TARGET: usize = 4095;
/// Bits of a mode that are permissions.
const MODE_BITS: u16 = 0o7777;

/// What is known of a node before it is written.
#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    /// Number of names; for a directory, of subdirectories.
    links: u32,
    /// Inode number, 0 for a node that is not in the tree.
    number: u32,
    /// Number of the parent, for directories.
    parent: u32,
    /// Where the inode is, once it is written.
    place: Option<InodeRef>,
}

/// The two large tables and what belongs to them.
#[derive(Debug)]
pub(crate) struct InodeTables {
    pub(crate) inodes: Vec<u8>,
    pub(crate) directories: Vec<u8>,
    pub(crate) root: InodeRef,
    pub(crate) count: u32,
    /// Entries of the export table.
    pub(crate) export: Vec<u8>,
    pub(crate) ids: Ids,
    pub(crate) xattrs: Xattrs,
}

/// Writes all inodes and listings of `tree`.
pub(crate) fn build(tree: &Tree, extents: &[Extent], compressor: &mut Compressor) -> Result<InodeTables> {
    let (plans, order, count) = plan(tree)?;
    let mut builder = Builder {
        tree,
        extents,
        compressor,
        plans,
        inodes: MetaWriter::default(),
        listings: MetaWriter::default(),
        ids: Ids::default(),
        xattrs: Xattrs::default(),
        export: vec![0; count as usize * 8],
    };
    for dir in order {
        builder.directory(dir)?;
    }
    let root = builder.plans[tree.root().index()].place;
    let root = root.ok_or(WriteError::Tree { what: "the root was not written" })?;
    Ok(InodeTables {
        inodes: builder.inodes.finish(builder.compressor)?,
        directories: builder.listings.finish(builder.compressor)?,
        root,
        count,
        export: builder.export,
        ids: builder.ids,
        xattrs: builder.xattrs,
    })
}

/// Numbers all nodes; returns what is known of each, the directories from the leaves up, and the count.
fn plan(tree: &Tree) -> Result<(Vec<Plan>, Vec<NodeId>, u32)> {
    let mut plans = vec![Plan::default(); tree.len()];
    let mut seen = vec![false; tree.len()];
    let mut order: Vec<NodeId> = Vec::new();
    let mut parents = vec![tree.root(); tree.len()];
    // Parents before children here; the reverse has the children first.
    let mut waiting = vec![tree.root()];
    while let Some(dir) = waiting.pop() {
        if std::mem::replace(&mut seen[dir.index()], true) {
            return Err(WriteError::Tree { what: "a directory with two names" });
        }
        order.push(dir);
        let NodeKind::Directory(names) = &tree.node(dir).kind else { continue };
        for (name, child) in names {
            check_name(name)?;
            let node = tree.checked(*child)?;
            if matches!(node.kind, NodeKind::Directory(_)) {
                parents[child.index()] = dir;
                plans[dir.index()].links += 1;
                waiting.push(*child);
            } else {
                plans[child.index()].links += 1;
            }
        }
    }
    order.reverse();
    let mut count = 0;
    for dir in &order {
        let NodeKind::Directory(names) = &tree.node(*dir).kind else { continue };
        for child in names.values() {
            let is_dir = matches!(tree.node(*child).kind, NodeKind::Directory(_));
            let number = &mut plans[child.index()].number;
            if !is_dir && *number == 0 {
                count += 1;
                *number = count;
            }
        }
        count += 1;
        plans[dir.index()].number = count;
    }
    for dir in &order {
        // The root's parent is the number after the last, which names nothing.
        let parent = if *dir == tree.root() { count + 1 } else { plans[parents[dir.index()].index()].number };
        plans[dir.index()].parent = parent;
    }
    Ok((plans, order, count))
}

struct Builder<'a> {
    tree: &'a Tree,
    extents: &'a [Extent],
    compressor: &'a mut Compressor,
    plans: Vec<Plan>,
    inodes: MetaWriter,
    listings: MetaWriter,
    ids: Ids,
    xattrs: Xattrs,
    export: Vec<u8>,
}

/// An inode being put together: the basic form of its kind, or the extended one.
struct Record {
    bytes: Vec<u8>,
}

impl Record {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// A name in the index of a large directory.
struct IndexEntry<'a> {
    at: u32,
    block: u32,
    name: &'a [u8],
}

/// Where a listing lies and how long it is.
struct Listing<'a> {
    block: u32,
    offset: u16,
    length: u32,
    index: Vec<IndexEntry<'a>>,
}

/// Entries that share a header.
struct Run<'a> {
    block: u32,
    number: u32,
    entries: Vec<(u16, i16, u16, &'a [u8])>,
}

impl Builder<'_> {
    /// Writes what a directory names and is not written yet, its listing, and the directory itself.
    fn directory(&mut self, dir: NodeId) -> Result<()> {
        let tree = self.tree;
        let node = tree.node(dir);
        let NodeKind::Directory(names) = &node.kind else { return Ok(()) };
        for child in names.values() {
            if self.plans[child.index()].place.is_none() {
                self.leaf(*child)?;
            }
        }
        let listing = self.listing(names.iter().map(|(name, child)| (name.as_slice(), *child)))?;
        let plan = self.plans[dir.index()];
        let nlink = plan.links.checked_add(2).ok_or(TOO_LARGE_DIRECTORY)?;
        let stored_len = listing.length.checked_add(DIR_SIZE_BIAS).ok_or(TOO_LARGE_DIRECTORY)?;
        let xattr = self.xattrs.place(&node.metadata.xattrs, self.compressor)?;
        let short = u16::try_from(stored_len).ok();
        let record = match short {
            Some(length) if xattr == NONE32 && listing.index.is_empty() => {
                let mut record = self.head(kind::DIRECTORY, &node.metadata, plan.number)?;
                record.u32(listing.block).u32(nlink).u16(length).u16(listing.offset).u32(plan.parent);
                record
            }
            _ => {
                let kind = kind::DIRECTORY + kind::EXTENDED;
                let mut record = self.head(kind, &node.metadata, plan.number)?;
                let n_index = u16::try_from(listing.index.len()).map_err(|_| TOO_LARGE_DIRECTORY)?;
                record.u32(nlink).u32(stored_len).u32(listing.block).u32(plan.parent);
                record.u16(n_index).u16(listing.offset).u32(xattr);
                for entry in &listing.index {
                    record.u32(entry.at).u32(entry.block).u32(stored_name_len(entry.name).into());
                    record.bytes.extend_from_slice(entry.name);
                }
                record
            }
        };
        self.put(dir, &record)
    }

    fn leaf(&mut self, id: NodeId) -> Result<()> {
        let tree = self.tree;
        let node = tree.node(id);
        let plan = self.plans[id.index()];
        let xattr = self.xattrs.place(&node.metadata.xattrs, self.compressor)?;
        let extended = if xattr == NONE32 { 0 } else { kind::EXTENDED };
        let mut record = match &node.kind {
            // Subdirectories have been written by their own turn.
            NodeKind::Directory(_) => return Err(WriteError::Tree { what: "a directory inside itself" }),
            NodeKind::File(file) => return self.file(id, *file, xattr),
            NodeKind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    return Err(WriteError::Tree {
                        what: "a symlink target that is empty, too long or has a NUL",
                    });
                }
                let length = u32::try_from(target.len()).unwrap_or(u32::MAX);
                let mut record = self.head(kind::SYMLINK + extended, &node.metadata, plan.number)?;
                record.u32(plan.links).u32(length);
                record.bytes.extend_from_slice(target);
                record
            }
            NodeKind::BlockDevice(DeviceNumber(device)) | NodeKind::CharDevice(DeviceNumber(device)) => {
                let block = matches!(node.kind, NodeKind::BlockDevice(_));
                let kind = if block { kind::BLOCK } else { kind::CHAR };
                let mut record = self.head(kind + extended, &node.metadata, plan.number)?;
                record.u32(plan.links).u32(*device);
                record
            }
            NodeKind::Fifo | NodeKind::Socket => {
                let fifo = matches!(node.kind, NodeKind::Fifo);
                let kind = if fifo { kind::FIFO } else { kind::SOCKET };
                let mut record = self.head(kind + extended, &node.metadata, plan.number)?;
                record.u32(plan.links);
                record
            }
        };
        if extended != 0 {
            record.u32(xattr);
        }
        self.put(id, &record)
    }

    fn file(&mut self, id: NodeId, file: StoredFile, xattr: u32) -> Result<()> {
        let tree = self.tree;
        let metadata = &tree.node(id).metadata;
        let plan = self.plans[id.index()];
        let extents = self.extents;
        let extent = extents
            .get(file.index as usize)
            .filter(|extent| extent.size == file.size())
            .ok_or(WriteError::Tree { what: "a file of another writer" })?;
        let (fragment, offset) = extent.fragment.unwrap_or((NONE32, 0));
        let basic = (u32::try_from(extent.start), u32::try_from(extent.size));
        let mut record = match basic {
            (Ok(start), Ok(size)) if plan.links == 1 && xattr == NONE32 && extent.sparse() == 0 => {
                let mut record = self.head(kind::FILE, metadata, plan.number)?;
                record.u32(start).u32(fragment).u32(offset).u32(size);
                record
            }
            _ => {
                let mut record = self.head(kind::FILE + kind::EXTENDED, metadata, plan.number)?;
                record.u64(extent.start).u64(extent.size).u64(extent.sparse()).u32(plan.links);
                record.u32(fragment).u32(offset).u32(xattr);
                record
            }
        };
        for word in extent.words() {
            record.u32(*word);
        }
        self.put(id, &record)
    }

    /// Starts an inode.
    fn head(&mut self, kind: u16, metadata: &Metadata, number: u32) -> Result<Record> {
        if metadata.mode & !MODE_BITS != 0 {
            return Err(WriteError::Tree { what: "a mode with bits beyond permissions" });
        }
        let (uid, gid) = (self.ids.place(metadata.uid)?, self.ids.place(metadata.gid)?);
        let mut record = Record { bytes: Vec::with_capacity(64) };
        record.u16(kind).u16(metadata.mode).u16(uid).u16(gid).u32(metadata.mtime).u32(number);
        Ok(record)
    }

    /// Appends an inode to the table and remembers its place.
    fn put(&mut self, id: NodeId, record: &Record) -> Result<()> {
        let (block, offset) = self.inodes.position();
        let place = InodeRef((block << 16) | u64::from(offset));
        let plan = &mut self.plans[id.index()];
        plan.place = Some(place);
        let at = (plan.number as usize - 1) * 8;
        self.export[at..at + 8].copy_from_slice(&place.0.to_le_bytes());
        self.inodes.write(&record.bytes, self.compressor)
    }

    /// Writes the listing of a directory whose names come sorted.
    fn listing<'n>(&mut self, names: impl Iterator<Item = (&'n [u8], NodeId)>) -> Result<Listing<'n>> {
        let (block, offset) = self.listings.position();
        let block = u32::try_from(block).map_err(|_| TOO_LARGE_DIRECTORY)?;
        let mut listing = Listing { block, offset, length: 0, index: Vec::new() };
        let mut run: Option<Run<'n>> = None;
        // Length of the listing with the run that is not written yet.
        let mut ahead = 0;
        for (name, child) in names {
            let plan = self.plans[child.index()];
            let place = plan.place.ok_or(WriteError::Tree { what: "a name for a node without a place" })?;
            let inode_block = u32::try_from(place.0 >> 16).map_err(|_| TOO_MANY_INODES)?;
            let inode_offset = u16::try_from(place.0 & 0xffff).unwrap_or(u16::MAX);
            let kind = basic_kind(&self.tree.node(child).kind);
            // A new run starts where the numbers or blocks part, and at each metadata block of the
            // listing, so that the index has a name for each of them.
            let delta = run.as_ref().and_then(|run| {
                let full = run.entries.len() >= MAX_DIR_RUN as usize;
                let here = (usize::from(offset) + ahead) / crate::layout::METADATA_LEN;
                let there = (usize::from(offset) + listing.length as usize) / crate::layout::METADATA_LEN;
                if full || run.block != inode_block || here != there {
                    return None;
                }
                i16::try_from(i64::from(plan.number) - i64::from(run.number)).ok()
            });
            let current = match (delta, &mut run) {
                (Some(_), Some(run)) => run,
                _ => {
                    if let Some(done) = run.take() {
                        self.end_run(&mut listing, &done)?;
                        ahead = listing.length as usize;
                    }
                    ahead += RUN_HEADER_LEN;
                    run.insert(Run { block: inode_block, number: plan.number, entries: Vec::new() })
                }
            };
            ahead += ENTRY_HEAD_LEN + name.len();
            current.entries.push((inode_offset, delta.unwrap_or(0), kind, name));
        }
        if let Some(done) = run {
            self.end_run(&mut listing, &done)?;
        }
        Ok(listing)
    }

    fn end_run<'n>(&mut self, listing: &mut Listing<'n>, run: &Run<'n>) -> Result<()> {
        let (block, _) = self.listings.position();
        let block = u32::try_from(block).map_err(|_| TOO_LARGE_DIRECTORY)?;
        let last = listing.index.last().map_or(listing.block, |entry| entry.block);
        if let Some((_, _, _, first)) = run.entries.first()
            && block != last
        {
            listing.index.push(IndexEntry { at: listing.length, block, name: first });
        }
        let count = u32::try_from(run.entries.len()).map_err(|_| TOO_LARGE_DIRECTORY)?;
        let mut record = Record { bytes: Vec::with_capacity(64 * run.entries.len()) };
        record.u32(count.saturating_sub(1)).u32(run.block).u32(run.number);
        for (offset, delta, kind, name) in &run.entries {
            record.u16(*offset).u16(delta.cast_unsigned()).u16(*kind).u16(stored_name_len(name));
            record.bytes.extend_from_slice(name);
        }
        let length = u32::try_from(record.bytes.len()).map_err(|_| TOO_LARGE_DIRECTORY)?;
        listing.length = listing.length.checked_add(length).ok_or(TOO_LARGE_DIRECTORY)?;
        self.listings.write(&record.bytes, self.compressor)
    }
}

const RUN_HEADER_LEN: usize = 12;
const ENTRY_HEAD_LEN: usize = 8;

const TOO_LARGE_DIRECTORY: WriteError =
    WriteError::TooMany { what: "directory entries", limit: u32::MAX as u64 };
const TOO_MANY_INODES: WriteError = WriteError::TooMany { what: "inodes", limit: u32::MAX as u64 };

/// A name's length as stored: one less. Names were checked to have 1 to 255 bytes.
fn stored_name_len(name: &[u8]) -> u16 {
    u16::try_from(name.len().saturating_sub(1)).unwrap_or(u16::MAX)
}

fn basic_kind(kind: &NodeKind) -> u16 {
    match kind {
        NodeKind::Directory(_) => kind::DIRECTORY,
        NodeKind::File(_) => kind::FILE,
        NodeKind::Symlink(_) => kind::SYMLINK,
        NodeKind::BlockDevice(_) => kind::BLOCK,
        NodeKind::CharDevice(_) => kind::CHAR,
        NodeKind::Fifo => kind::FIFO,
        NodeKind::Socket => kind::SOCKET,
    }
}
