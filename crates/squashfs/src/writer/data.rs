//! File content: split into blocks, recognised if it is there already, compressed, written.
//!
//! The layout depends on nothing but the content and the order of the calls. Blocks and fragments
//! are laid out in the order in which they are submitted, whichever is compressed first.
//!
//! **Files stored once.** Every block and every tail is hashed with BLAKE3 (about 3 GB/s a core,
//! against 0.1 to 0.2 for the compression it may save), and the hash of those hashes identifies a
//! file. One strong hash replaces a fast one with a check: content is not at hand any more when a
//! duplicate turns up, so a second look would mean reading back and decompressing. A file is held
//! back for its first `HOLD` blocks. If it ends there it is known whole before anything of it is
//! submitted. If not, and no stored file begins with the same blocks, it streams. If one does, it is
//! followed block by block without storing anything; should it part ways, the compressed blocks up
//! to there are copied from the output. So duplicates of any length cost neither space nor
//! compression, memory stays bounded, and the result does not depend on timing.
//!
//! **Holes** are blocks of zeros: they have a size word and nothing else. They may come as such, many at
//! once, and give the same bytes as zeros that were written.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Seek, Write};

use crate::layout::DATA_RAW;
use crate::writer::compress::{Block, Pool, Ticket, packed_bound};
use crate::writer::error::{Result, WriteError};
use crate::writer::sink::Sink;
use crate::writer::trail::{Hash, Trail};

/// Full blocks of a file that are held in memory before it is decided how it goes on.
const HOLD: usize = 8;
/// Stored files with the same first blocks that a new file is compared with.
const MAX_CANDIDATES: usize = 16;
/// Buffers kept for reuse beyond those in work.
const SPARE_BUFFERS: usize = 4;

/// What is kept of a file's digest. Half of it: a file that is taken for another one by design would have to match it
/// in 128 bits, and there may be a million of them in memory.
type Identity = [u8; 16];

/// Content of a regular file that a writer has taken in.
///
/// Valid for the writer it came from only; the same content gives the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoredFile {
    pub(crate) index: u32,
    size: u64,
}

impl StoredFile {
    /// Length of the content in bytes.
    pub fn size(self) -> u64 {
        self.size
    }
}

/// Where the content of a file is in the image.
///
/// Most files are smaller than a block: what only larger ones have is apart, as there may be millions of them.
#[derive(Debug, Default)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    pub(crate) start: u64,
    pub(crate) fragment: Option<(u32, u32)>,
    blocks: Option<Box<Blocks>>,
}

/// The full blocks of a file.
#[derive(Debug, Default)]
struct Blocks {
    words: Vec<u32>,
    /// Bytes in blocks that are holes.
    sparse: u64,
    /// Their digests, if the file is long enough to be followed by another one.
    trail: Trail,
}

impl Extent {
    /// The size words of its blocks.
    pub(crate) fn words(&self) -> &[u32] {
        self.blocks.as_ref().map_or(&[], |blocks| &blocks.words)
    }

    /// Bytes in blocks that are holes.
    pub(crate) fn sparse(&self) -> u64 {
        self.blocks.as_ref().map_or(0, |blocks| blocks.sparse)
    }

    fn blocks(&mut self) -> &mut Blocks {
        self.blocks.get_or_insert_default()
    }
}

/// What a submitted block becomes part of.
#[derive(Debug, Clone, Copy)]
enum Place {
    File(usize),
    Fragment,
}

/// Something whose turn to be written will come.
#[derive(Debug)]
enum Pending {
    Block(Place, Ticket),
    /// So many holes of a file.
    Holes(usize, u64),
}

/// How a file that is being written goes on.
#[derive(Debug)]
enum Mode {
    /// Its blocks are held back.
    Holding(Vec<Vec<u8>>),
    /// All of its blocks so far are those of each of these files.
    Following(Vec<u32>),
    /// Its blocks are submitted as they come.
    Streaming,
}

/// A file that is being written.
#[derive(Debug)]
struct Open {
    mode: Mode,
    size: u64,
    trail: Trail,
    /// The block being filled.
    current: Vec<u8>,
}

/// All file content of one image.
#[derive(Debug)]
pub(crate) struct DataWriter<W> {
    pub(crate) sink: Sink<W>,
    pub(crate) pool: Pool,
    pub(crate) extents: Vec<Extent>,
    /// Place and size word of each fragment block.
    pub(crate) fragments: Vec<(u64, u32)>,
    block_size: usize,
    pending: VecDeque<Pending>,
    spare: Vec<Vec<u8>>,
    open: Option<Open>,
    fragment: Vec<u8>,
    n_fragments: u32,
    by_content: HashMap<Identity, u32>,
    by_beginning: HashMap<Hash, Vec<u32>>,
    pub(crate) n_duplicates: u64,
}

impl<W: Read + Write + Seek> DataWriter<W> {
    pub(crate) fn new(sink: Sink<W>, pool: Pool, block_size: usize) -> Self {
        Self {
            sink,
            pool,
            extents: Vec::new(),
            fragments: Vec::new(),
            block_size,
            pending: VecDeque::new(),
            spare: Vec::new(),
            open: None,
            fragment: Vec::with_capacity(block_size),
            n_fragments: 0,
            by_content: HashMap::new(),
            by_beginning: HashMap::new(),
            n_duplicates: 0,
        }
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Err(WriteError::Order { what: "begin_file before finish_file" });
        }
        let current = self.buffer();
        self.open = Some(Open { mode: Mode::Holding(Vec::new()), size: 0, trail: Trail::default(), current });
        Ok(())
    }

    pub(crate) fn write(&mut self, mut content: &[u8]) -> Result<()> {
        while !content.is_empty() {
            let open = self.open.as_mut().ok_or(NOT_BEGUN)?;
            let room = self.block_size - open.current.len();
            let (now, later) = content.split_at(content.len().min(room));
            open.current.extend_from_slice(now);
            content = later;
            if open.current.len() == self.block_size {
                self.end_block()?;
            }
        }
        Ok(())
    }

    pub(crate) fn copy(&mut self, content: &mut dyn Read) -> Result<()> {
        loop {
            let open = self.open.as_mut().ok_or(NOT_BEGUN)?;
            let filled = open.current.len();
            open.current.resize(self.block_size, 0);
            let read = loop {
                match content.read(&mut open.current[filled..]) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            let read = read.map_err(WriteError::Content)?;
            open.current.truncate(filled + read);
            if read == 0 {
                return Ok(());
            }
            if open.current.len() == self.block_size {
                self.end_block()?;
            }
        }
    }

    /// Adds zeros without having them.
    pub(crate) fn hole(&mut self, mut len: u64) -> Result<()> {
        let block_size = self.block_size as u64;
        let open = self.open.as_ref().ok_or(NOT_BEGUN)?;
        let filled = open.current.len() as u64;
        if filled > 0 {
            let now = len.min(block_size - filled);
            self.zeros(now)?;
            len -= now;
        }
        self.hole_blocks(len / block_size)?;
        self.zeros(len % block_size)
    }

    /// Adds zeros that fit into the current block.
    fn zeros(&mut self, len: u64) -> Result<()> {
        let open = self.open.as_mut().ok_or(NOT_BEGUN)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.block_size - open.current.len());
        open.current.resize(open.current.len() + len, 0);
        if open.current.len() == self.block_size { self.end_block() } else { Ok(()) }
    }

    /// Adds whole blocks of zeros where no block is begun.
    fn hole_blocks(&mut self, mut count: u64) -> Result<()> {
        let block_size = self.block_size as u64;
        while count > 0 {
            let mut open = self.open.take().ok_or(NOT_BEGUN)?;
            let step = match &mut open.mode {
                Mode::Holding(_) => {
                    // There are few of them before it is decided how the file goes on.
                    self.open = Some(open);
                    self.zeros(block_size)?;
                    count -= 1;
                    continue;
                }
                Mode::Following(candidates) => {
                    let at = open.trail.len();
                    let holes = |index: &u32| self.trail_of(*index).map_or(0, |trail| trail.holes_from(at));
                    let still: Vec<u32> = candidates.iter().copied().filter(|i| holes(i) > 0).collect();
                    match still.iter().map(holes).min() {
                        Some(alike) => {
                            *candidates = still;
                            alike.min(count)
                        }
                        None => {
                            self.part_ways(candidates, at)?;
                            open.mode = Mode::Streaming;
                            0
                        }
                    }
                }
                Mode::Streaming => {
                    self.pending.push_back(Pending::Holes(self.extents.len() - 1, count));
                    self.settle(self.pool.depth())?;
                    count
                }
            };
            open.trail.push_holes(step);
            open.size = open.size.checked_add(step.saturating_mul(block_size)).ok_or(TOO_LONG)?;
            count -= step;
            self.open = Some(open);
        }
        Ok(())
    }

    /// Forgets the file being written, unless some of it has been submitted already.
    pub(crate) fn abandon(&mut self) {
        self.open = None;
    }

    pub(crate) fn finish(&mut self) -> Result<StoredFile> {
        let mut open = self.open.take().ok_or(NOT_BEGUN)?;
        open.size += open.current.len() as u64;
        let tail = std::mem::take(&mut open.current);
        let identity = identity(&open.trail, &tail, open.size);
        if !matches!(open.mode, Mode::Streaming)
            && let Some(index) = self.by_content.get(&identity).copied()
        {
            self.n_duplicates += 1;
            if let Mode::Holding(blocks) = open.mode {
                blocks.into_iter().for_each(|block| self.recycle(block));
            }
            self.recycle(tail);
            return Ok(StoredFile { index, size: open.size });
        }
        let index = match std::mem::replace(&mut open.mode, Mode::Streaming) {
            Mode::Streaming => self.extents.len() - 1,
            Mode::Holding(blocks) => self.submit_held(blocks)?,
            Mode::Following(candidates) => self.part_ways(&candidates, open.trail.len())?,
        };
        let fragment = self.add_tail(&tail)?;
        self.recycle(tail);
        let known = u32::try_from(index).map_err(|_| TOO_MANY_FILES)?;
        if open.trail.len() >= HOLD as u64 {
            let alike = self.by_beginning.entry(open.trail.beginning(HOLD as u64)).or_default();
            // Nobody follows the others, so nothing need be known of them.
            if alike.len() < MAX_CANDIDATES {
                alike.push(known);
                self.extents[index].blocks().trail = open.trail;
            }
        }
        let extent = &mut self.extents[index];
        extent.size = open.size;
        extent.fragment = fragment;
        self.by_content.insert(identity, known);
        Ok(StoredFile { index: known, size: open.size })
    }

    /// Writes everything that is still in work, the last fragment included, and drops what is only needed to
    /// recognise content: the tables come now, which take memory as well.
    pub(crate) fn end_files(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Err(WriteError::Order { what: "the end of all files before finish_file" });
        }
        self.flush_fragment()?;
        self.settle(0)?;
        self.by_content = HashMap::new();
        self.by_beginning = HashMap::new();
        self.spare = Vec::new();
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        let mut open = self.open.take().ok_or(NOT_BEGUN)?;
        let fresh = self.buffer();
        let block = std::mem::replace(&mut open.current, fresh);
        let block_hash = (!is_zero(&block)).then(|| hash(&block));
        open.size += block.len() as u64;
        match block_hash {
            Some(hash) => open.trail.push(hash),
            None => open.trail.push_holes(1),
        }
        match &mut open.mode {
            Mode::Streaming => self.submit(self.extents.len() - 1, block)?,
            Mode::Holding(held) => {
                held.push(block);
                if held.len() == HOLD {
                    let held = std::mem::take(held);
                    open.mode = match self.by_beginning.get(&open.trail.beginning(HOLD as u64)) {
                        Some(alike) => {
                            let alike = alike.clone();
                            held.into_iter().for_each(|block| self.recycle(block));
                            Mode::Following(alike)
                        }
                        None => {
                            self.submit_held(held)?;
                            Mode::Streaming
                        }
                    };
                }
            }
            Mode::Following(candidates) => {
                let at = open.trail.len() - 1;
                let same = |index: &u32| {
                    self.trail_of(*index).is_some_and(|trail| match &block_hash {
                        Some(hash) => trail.hash(at) == Some(hash),
                        None => trail.holes_from(at) > 0,
                    })
                };
                let still: Vec<u32> = candidates.iter().copied().filter(same).collect();
                if still.is_empty() {
                    let index = self.part_ways(candidates, at)?;
                    self.submit(index, block)?;
                    open.mode = Mode::Streaming;
                } else {
                    *candidates = still;
                    self.recycle(block);
                }
            }
        }
        self.open = Some(open);
        Ok(())
    }

    /// Makes a new file of the blocks held back.
    fn submit_held(&mut self, blocks: Vec<Vec<u8>>) -> Result<usize> {
        let index = self.new_extent()?;
        for block in blocks {
            self.submit(index, block)?;
        }
        Ok(index)
    }

    fn trail_of(&self, index: u32) -> Option<&Trail> {
        self.extents.get(index as usize)?.blocks.as_ref().map(|blocks| &blocks.trail)
    }

    /// Makes a new file that starts with a copy of the first `count` blocks of the first candidate.
    fn part_ways(&mut self, candidates: &[u32], count: u64) -> Result<usize> {
        let index = self.new_extent()?;
        let Some(from) = candidates.first().map(|candidate| *candidate as usize) else { return Ok(index) };
        // The places of the candidate's blocks are known once they are written.
        self.settle(0)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let words = self.extents[from].words().get(..count).unwrap_or_default().to_vec();
        let length = words.iter().map(|word| u64::from(word & !DATA_RAW)).sum();
        let start = self.sink.position();
        self.sink.repeat(self.extents[from].start, length)?;
        let n_holes = words.iter().filter(|word| **word == 0).count();
        let extent = &mut self.extents[index];
        // Nothing is copied of a file that starts with holes: then the place is that of the first block to come.
        if length > 0 {
            extent.start = start;
        }
        let sparse = (n_holes * self.block_size) as u64;
        *extent.blocks() = Blocks { words, sparse, trail: Trail::default() };
        Ok(index)
    }

    fn new_extent(&mut self) -> Result<usize> {
        if u32::try_from(self.extents.len() + 1).is_err() {
            return Err(TOO_MANY_FILES);
        }
        self.extents.push(Extent::default());
        Ok(self.extents.len() - 1)
    }

    fn submit(&mut self, index: usize, block: Vec<u8>) -> Result<()> {
        if is_zero(&block) {
            self.recycle(block);
            self.pending.push_back(Pending::Holes(index, 1));
            return self.settle(self.pool.depth());
        }
        self.submit_block(Place::File(index), block)
    }

    fn submit_block(&mut self, place: Place, data: Vec<u8>) -> Result<()> {
        let packed = self.buffer();
        let ticket = self.pool.submit(Block { data, packed, raw: false })?;
        self.pending.push_back(Pending::Block(place, ticket));
        self.settle(self.pool.depth())
    }

    /// Puts the last bytes of a file, less than a block, into a fragment.
    fn add_tail(&mut self, tail: &[u8]) -> Result<Option<(u32, u32)>> {
        if tail.is_empty() {
            return Ok(None);
        }
        if self.fragment.len() + tail.len() > self.block_size {
            self.flush_fragment()?;
        }
        let offset = u32::try_from(self.fragment.len()).map_err(|_| TOO_MANY_FRAGMENTS)?;
        self.fragment.extend_from_slice(tail);
        Ok(Some((self.n_fragments, offset)))
    }

    fn flush_fragment(&mut self) -> Result<()> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let fresh = self.buffer();
        let block = std::mem::replace(&mut self.fragment, fresh);
        self.n_fragments = self.n_fragments.checked_add(1).ok_or(TOO_MANY_FRAGMENTS)?;
        self.submit_block(Place::Fragment, block)
    }

    /// Writes what is done, in order, and waits until no more than `depth` are left.
    fn settle(&mut self, depth: usize) -> Result<()> {
        while let Some(oldest) = self.pending.pop_front() {
            match oldest {
                Pending::Holes(index, count) => {
                    let blocks = self.extents[index].blocks();
                    let len = usize::try_from(count).ok().and_then(|n| blocks.words.len().checked_add(n));
                    blocks.words.resize(len.ok_or(TOO_LONG)?, 0);
                    blocks.sparse += count.saturating_mul(self.block_size as u64);
                }
                Pending::Block(place, ticket) if self.pending.len() >= depth => {
                    let block = ticket.wait()?;
                    self.store(place, block)?;
                }
                Pending::Block(place, ticket) => match ticket.poll() {
                    Ok(block) => self.store(place, block?)?,
                    Err(ticket) => {
                        self.pending.push_front(Pending::Block(place, ticket));
                        break;
                    }
                },
            }
        }
        Ok(())
    }

    fn store(&mut self, place: Place, block: Block) -> Result<()> {
        let start = self.sink.position();
        let word = block.word()?;
        self.sink.append(block.stored())?;
        match place {
            Place::File(index) => {
                let extent = &mut self.extents[index];
                // Holes before the first stored block take no room: the start is where that one lies.
                // No block lies at 0, where the superblock is.
                if extent.start == 0 {
                    extent.start = start;
                }
                extent.blocks().words.push(word);
            }
            Place::Fragment => self.fragments.push((start, word)),
        }
        self.recycle(block.data);
        self.recycle(block.packed);
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        // With room for what a compressor may make of a block, so that none has to grow in the middle of its use.
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(packed_bound(self.block_size)))
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < self.pool.depth() + SPARE_BUFFERS {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

const NOT_BEGUN: WriteError = WriteError::Order { what: "content before begin_file" };
const TOO_LONG: WriteError = WriteError::TooMany { what: "bytes in a file", limit: u64::MAX };
const TOO_MANY_FILES: WriteError = WriteError::TooMany { what: "files", limit: u32::MAX as u64 };
const TOO_MANY_FRAGMENTS: WriteError = WriteError::TooMany { what: "fragments", limit: u32::MAX as u64 };

fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Identifies the content of a file.
fn identity(trail: &Trail, tail: &[u8], size: u64) -> Identity {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    trail.hash_into(&mut hasher);
    hasher.update(&hash(tail));
    let mut identity = Identity::default();
    hasher.finalize_xof().fill(&mut identity);
    identity
}

fn is_zero(block: &[u8]) -> bool {
    // Compared with itself shifted by one: equal neighbours and a zero first byte.
    block.split_first().is_none_or(|(first, rest)| *first == 0 && rest == &block[..rest.len()])
}
