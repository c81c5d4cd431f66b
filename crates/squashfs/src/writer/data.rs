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

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Seek, Write};

use crate::layout::DATA_RAW;
use crate::writer::compress::{Block, Pool, Ticket};
use crate::writer::error::{Result, WriteError};
use crate::writer::sink::Sink;

/// Full blocks of a file that are held in memory before it is decided how it goes on.
const HOLD: usize = 8;
/// Stored files with the same first blocks that a new file is compared with.
const MAX_CANDIDATES: usize = 16;
/// Buffers kept for reuse beyond those in work.
const SPARE_BUFFERS: usize = 4;

type Hash = [u8; 32];

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
#[derive(Debug, Default)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    pub(crate) start: u64,
    pub(crate) words: Vec<u32>,
    /// Bytes in blocks that are holes.
    pub(crate) sparse: u64,
    pub(crate) fragment: Option<(u32, u32)>,
    /// Hashes of the full blocks, if the file is long enough to be followed by another one.
    hashes: Vec<Hash>,
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
    Hole(usize),
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
    hashes: Vec<Hash>,
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
    hole_hash: Hash,
    pending: VecDeque<Pending>,
    spare: Vec<Vec<u8>>,
    open: Option<Open>,
    fragment: Vec<u8>,
    n_fragments: u32,
    by_content: HashMap<Hash, u32>,
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
            hole_hash: hash(&vec![0; block_size]),
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
        self.open = Some(Open { mode: Mode::Holding(Vec::new()), size: 0, hashes: Vec::new(), current });
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

    /// Forgets the file being written, unless some of it has been submitted already.
    pub(crate) fn abandon(&mut self) {
        self.open = None;
    }

    pub(crate) fn finish(&mut self) -> Result<StoredFile> {
        let mut open = self.open.take().ok_or(NOT_BEGUN)?;
        open.size += open.current.len() as u64;
        let tail = std::mem::take(&mut open.current);
        let identity = identity(&open.hashes, &tail, open.size);
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
            Mode::Following(candidates) => self.part_ways(&candidates, open.hashes.len())?,
        };
        let fragment = self.add_tail(&tail)?;
        self.recycle(tail);
        let known = u32::try_from(index).map_err(|_| TOO_MANY_FILES)?;
        if open.hashes.len() >= HOLD {
            let alike = self.by_beginning.entry(beginning(&open.hashes)).or_default();
            if alike.len() < MAX_CANDIDATES {
                alike.push(known);
            }
            self.extents[index].hashes = open.hashes;
        }
        let extent = &mut self.extents[index];
        extent.size = open.size;
        extent.fragment = fragment;
        self.by_content.insert(identity, known);
        Ok(StoredFile { index: known, size: open.size })
    }

    /// Writes everything that is still in work, the last fragment included.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.flush_fragment()?;
        self.settle(0)
    }

    fn end_block(&mut self) -> Result<()> {
        let mut open = self.open.take().ok_or(NOT_BEGUN)?;
        let fresh = self.buffer();
        let block = std::mem::replace(&mut open.current, fresh);
        let zero = is_zero(&block);
        let block_hash = if zero { self.hole_hash } else { hash(&block) };
        open.size += block.len() as u64;
        open.hashes.push(block_hash);
        match &mut open.mode {
            Mode::Streaming => self.submit(self.extents.len() - 1, block)?,
            Mode::Holding(held) => {
                held.push(block);
                if held.len() == HOLD {
                    let held = std::mem::take(held);
                    open.mode = match self.by_beginning.get(&beginning(&open.hashes)) {
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
                let at = open.hashes.len() - 1;
                let same = |index: &u32| self.extents[*index as usize].hashes.get(at) == Some(&block_hash);
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

    /// Makes a new file that starts with a copy of the first `count` blocks of the first candidate.
    fn part_ways(&mut self, candidates: &[u32], count: usize) -> Result<usize> {
        let index = self.new_extent()?;
        let Some(from) = candidates.first().map(|candidate| *candidate as usize) else { return Ok(index) };
        // The places of the candidate's blocks are known once they are written.
        self.settle(0)?;
        let words = self.extents[from].words[..count].to_vec();
        let length = words.iter().map(|word| u64::from(word & !DATA_RAW)).sum();
        let start = self.sink.position();
        self.sink.repeat(self.extents[from].start, length)?;
        let n_holes = words.iter().filter(|word| **word == 0).count();
        let extent = &mut self.extents[index];
        extent.start = start;
        extent.sparse = (n_holes * self.block_size) as u64;
        extent.words = words;
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
            self.pending.push_back(Pending::Hole(index));
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
                Pending::Hole(index) => {
                    let extent = &mut self.extents[index];
                    extent.words.push(0);
                    extent.sparse += self.block_size as u64;
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
                extent.words.push(word);
            }
            Place::Fragment => self.fragments.push((start, word)),
        }
        self.recycle(block.data);
        self.recycle(block.packed);
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.block_size))
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < self.pool.depth() + SPARE_BUFFERS {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

const NOT_BEGUN: WriteError = WriteError::Order { what: "content before begin_file" };
const TOO_MANY_FILES: WriteError = WriteError::TooMany { what: "files", limit: u32::MAX as u64 };
const TOO_MANY_FRAGMENTS: WriteError = WriteError::TooMany { what: "fragments", limit: u32::MAX as u64 };

fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Identifies the first `HOLD` blocks of a file.
fn beginning(hashes: &[Hash]) -> Hash {
    hash(hashes.get(..HOLD).unwrap_or(hashes).as_flattened())
}

/// Identifies the content of a file.
fn identity(hashes: &[Hash], tail: &[u8], size: u64) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    hasher.update(hashes.as_flattened());
    hasher.update(&hash(tail));
    *hasher.finalize().as_bytes()
}

fn is_zero(block: &[u8]) -> bool {
    // Compared with itself shifted by one: equal neighbours and a zero first byte.
    block.split_first().is_none_or(|(first, rest)| *first == 0 && rest == &block[..rest.len()])
}
