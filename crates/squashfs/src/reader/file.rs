//! File content: block lists, data blocks, fragments, holes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::layout::{DATA_RAW, FRAGMENT_ENTRY, METADATA_LEN, le32, le64};
use crate::reader::cache::Cost;
use crate::reader::image::Image;
use crate::reader::inode::{FileData, Inode, InodeKind};
use crate::reader::metadata::{Cursor, MetaPos};

/// Files of up to this many blocks have their list read anew each time; longer ones are cached.
const SHORT_LIST: usize = 64;

/// Blocks whose places are remembered together.
const SEGMENT: u64 = 1024;

/// A decompressed data or fragment block.
pub(crate) struct DataBlock {
    bytes: Vec<u8>,
    buffers: Arc<Buffers>,
}

impl Cost for DataBlock {
    fn cost(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Drop for DataBlock {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.bytes));
    }
}

/// Buffers of evicted blocks, for the next ones. Through the allocator, blocks that come and go in several
/// threads would leave holes that cost as much memory again as a cache may have, and each new one would be
/// cleared first.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// More than are evicted at once are not wanted again soon.
    const MOST: usize = 4;

    /// A buffer of `length` bytes, whatever they are.
    fn take(&self, length: usize) -> Vec<u8> {
        let mut idle = self.idle();
        // One that is much longer would cost the cache more than its block is worth.
        let fits = |buffer: &Vec<u8>| (length..=2 * length).contains(&buffer.capacity());
        let fitting = idle.iter().position(fits);
        let buffer = fitting.map(|place| idle.swap_remove(place));
        drop(idle);
        match buffer {
            Some(mut buffer) => {
                buffer.resize(length, 0);
                buffer
            }
            None => vec![0; length],
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut idle = self.idle();
        let oldest = (idle.len() == Self::MOST).then(|| idle.remove(0));
        idle.push(buffer);
        drop(idle);
        // Freed here, after the lock.
        drop(oldest);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places of up to `SEGMENT` consecutive blocks of a long file.
pub(crate) struct Segment {
    /// File offset and size word of each block.
    blocks: Vec<(u64, u32)>,
    /// Where the data of the block after the last one starts.
    end: u64,
    /// Where the list goes on.
    list: MetaPos,
}

impl Cost for Segment {
    fn cost(&self) -> usize {
        self.blocks.capacity() * size_of::<(u64, u32)>()
    }
}

/// The block list of a file, as far as one read needs it.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives on the stack for one read; boxing it would allocate"
)]
enum BlockList {
    Short { words: [u32; SHORT_LIST], at: usize, start: u64 },
    Long { index: u64, segment: Arc<Segment> },
}

/// Length on disk of a block, from its size word.
fn stored_len(word: u32, block_size: u32) -> Result<u32> {
    let length = word & !DATA_RAW;
    // A block is stored as is when compressing does not make it smaller.
    if length > block_size {
        return Err(Error::corrupt("data block has an impossible size", word.into()));
    }
    Ok(length)
}

impl Image {
    /// Reads from `offset` into `buf`; returns how much, less than asked for only at the end of file.
    pub fn read(&self, file: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let InodeKind::File(data) = &file.kind else { return Err(file.wrong_kind("regular file")) };
        let wanted = file.size.saturating_sub(offset).min(buf.len() as u64);
        let wanted = usize::try_from(wanted).unwrap_or(buf.len());
        let block_size = self.superblock().block_size as usize;
        let mut list = None;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let index = at / block_size as u64;
            let from = usize::try_from(at % block_size as u64).unwrap_or_default();
            let block_len = (file.size - index * block_size as u64).min(block_size as u64);
            let block_len = usize::try_from(block_len).unwrap_or(block_size);
            let count = (block_len - from).min(wanted - done);
            let target = &mut buf[done..done + count];
            if index < data.blocks {
                let (start, word) = self.block_place(file, data, &mut list, index)?;
                self.read_block(start, word, block_len, from, target)?;
            } else {
                self.read_tail(data, from, target)?;
            }
            done += count;
        }
        Ok(wanted)
    }

    /// Decompresses the block that holds byte `offset` of `file` into the cache, where it is not there
    /// already; does nothing beyond the end of the file, and for blocks that are stored as they are.
    pub fn preload(&self, file: &Inode, offset: u64) -> Result<()> {
        let InodeKind::File(data) = &file.kind else { return Err(file.wrong_kind("regular file")) };
        let block_size = self.superblock().block_size;
        let index = offset / u64::from(block_size);
        if offset >= file.size {
            return Ok(());
        }
        let (start, word, length) = if index < data.blocks {
            let (start, word) = self.block_place(file, data, &mut None, index)?;
            let length = (file.size - index * u64::from(block_size)).min(block_size.into());
            (start, word, usize::try_from(length).unwrap_or(usize::MAX))
        } else {
            let Some((index, _)) = data.fragment else { return Ok(()) };
            let (start, word) = self.fragment(index)?;
            (start, word, block_size as usize)
        };
        if word & DATA_RAW != 0 || stored_len(word, block_size)? == 0 {
            return Ok(());
        }
        self.data_block(start, word, length).map(|_| ())
    }

    /// The first offset from `offset` on at which `file` may hold something else than zeros; its size where
    /// there is none. What lies before it is a hole: no block of the image is behind it. Reads nothing but
    /// the block list, so that a hole costs next to nothing however long it is.
    pub fn skip_hole(&self, file: &Inode, offset: u64) -> Result<u64> {
        let InodeKind::File(data) = &file.kind else { return Err(file.wrong_kind("regular file")) };
        let block_size = u64::from(self.superblock().block_size);
        let mut index = offset / block_size;
        let mut list = None;
        while index < data.blocks {
            let (_, word) = self.block_place(file, data, &mut list, index)?;
            if stored_len(word, self.superblock().block_size)? != 0 {
                break;
            }
            index += 1;
        }
        let has_more = index < data.blocks || data.fragment.is_some();
        let found = if has_more { index.saturating_mul(block_size) } else { file.size };
        Ok(found.max(offset).min(file.size))
    }

    /// Where block `index` lies and its size word.
    fn block_place(
        &self,
        file: &Inode,
        data: &FileData,
        list: &mut Option<BlockList>,
        index: u64,
    ) -> Result<(u64, u32)> {
        let block_size = self.superblock().block_size;
        let in_memory = usize::try_from(index).unwrap_or(usize::MAX);
        if data.blocks <= SHORT_LIST as u64 {
            if list.is_none() {
                let mut bytes = [0; SHORT_LIST * 4];
                // All of it: most of the time it lies in one metadata block.
                let length = usize::try_from(data.blocks).unwrap_or(SHORT_LIST) * 4;
                Cursor::new(self, data.block_list)?.read(&mut bytes[..length])?;
                let words = std::array::from_fn(|word| le32(&bytes, word * 4));
                *list = Some(BlockList::Short { words, at: 0, start: data.start });
            }
            if let Some(BlockList::Short { words, at, start }) = list {
                while *at < in_memory {
                    *start = advance(*start, words[*at], block_size)?;
                    *at += 1;
                }
                return Ok((*start, words[in_memory]));
            }
        }
        let wanted = index / SEGMENT;
        let current = match list {
            Some(BlockList::Long { index, segment }) if *index == wanted => Arc::clone(segment),
            _ => self.segment(file, data, wanted)?,
        };
        let place = current.blocks.get(usize::try_from(index % SEGMENT).unwrap_or(usize::MAX)).copied();
        *list = Some(BlockList::Long { index: wanted, segment: current });
        place.ok_or_else(|| Error::corrupt("block list is too short", file.inode_ref.0))
    }

    /// Segment `wanted` of a long block list, built on from the nearest one before it that is cached.
    fn segment(&self, file: &Inode, data: &FileData, wanted: u64) -> Result<Arc<Segment>> {
        let cache = &self.caches().segments;
        if let Some(found) = cache.peek((file.inode_ref, wanted)) {
            return Ok(found);
        }
        let mut before = None;
        let mut next = 0;
        for index in (0..wanted).rev() {
            if let Some(found) = cache.peek((file.inode_ref, index)) {
                before = Some(found);
                next = index + 1;
                break;
            }
        }
        loop {
            let (list, start) = match &before {
                Some(segment) => (segment.list, segment.end),
                None => (data.block_list, data.start),
            };
            let loaded = cache.get_or_load((file.inode_ref, next), || {
                self.load_segment(list, start, (data.blocks - next * SEGMENT).min(SEGMENT))
            })?;
            if next == wanted {
                return Ok(loaded);
            }
            before = Some(loaded);
            next += 1;
        }
    }

    fn load_segment(&self, list: MetaPos, start: u64, count: u64) -> Result<Segment> {
        let block_size = self.superblock().block_size;
        let mut cursor = Cursor::new(self, list)?;
        let mut blocks = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
        let mut end = start;
        for _ in 0..count {
            let word = cursor.u32()?;
            blocks.push((end, word));
            end = advance(end, word, block_size)?;
        }
        Ok(Segment { blocks, end, list: cursor.position()? })
    }

    /// Copies a part of a data block that holds `block_len` bytes of the file.
    fn read_block(
        &self,
        start: u64,
        word: u32,
        block_len: usize,
        from: usize,
        target: &mut [u8],
    ) -> Result<()> {
        if stored_len(word, self.superblock().block_size)? == 0 {
            target.fill(0);
            return Ok(());
        }
        let raw = word & DATA_RAW != 0;
        if raw && stored_len(word, self.superblock().block_size)? as usize != block_len {
            return Err(Error::corrupt("stored data block has the wrong length", start));
        }
        if raw {
            // Nothing to decode, so nothing to keep: the page cache has it.
            return self.read_source(target, start + from as u64);
        }
        if target.len() == block_len {
            // A whole block goes to where it is wanted; whoever asked for all of it keeps it.
            if let Some(block) = self.caches().data.peek((start, word)) {
                return copy_part(&block, start, block_len, 0, target);
            }
            let filled = self.decode_block(start, word, target)?;
            return if filled == block_len { Ok(()) } else { Err(short(start)) };
        }
        let block = self.data_block(start, word, block_len)?;
        copy_part(&block, start, block_len, from, target)
    }

    /// Copies a part of the tail of a file out of its fragment.
    fn read_tail(&self, data: &FileData, from: usize, target: &mut [u8]) -> Result<()> {
        let Some((index, offset)) = data.fragment else {
            return Err(Error::corrupt("file ends before its size", data.start));
        };
        let (start, word) = self.fragment(index)?;
        let from = offset as usize + from;
        if word & DATA_RAW != 0 {
            let length = stored_len(word, self.superblock().block_size)? as usize;
            if from + target.len() > length {
                return Err(short(start));
            }
            return self.read_source(target, start + from as u64);
        }
        let block = self.data_block(start, word, self.superblock().block_size as usize)?;
        let part = block.bytes.get(from..from + target.len()).ok_or_else(|| short(start))?;
        target.copy_from_slice(part);
        Ok(())
    }

    /// The decompressed block at `start`, of at most `room` bytes, from the cache if it is there.
    fn data_block(&self, start: u64, word: u32, room: usize) -> Result<Arc<DataBlock>> {
        self.caches().data.get_or_load((start, word), || {
            let buffers = Arc::clone(&self.caches().buffers);
            let mut block = DataBlock { bytes: buffers.take(room), buffers };
            let filled = self.decode_block(start, word, &mut block.bytes)?;
            block.bytes.truncate(filled);
            Ok(block)
        })
    }

    fn decode_block(&self, start: u64, word: u32, target: &mut [u8]) -> Result<usize> {
        let length = stored_len(word, self.superblock().block_size)? as usize;
        if length == 0 {
            return Err(Error::corrupt("fragment block is empty", start));
        }
        self.with_decoder(|decoder| {
            let mut input = decoder.take_input(length);
            let decoded = self
                .read_source(&mut input[..length], start)
                .and_then(|()| self.decode(decoder, start, &input[..length], target));
            decoder.give_back(input);
            decoded
        })
    }

    /// Place and size word of fragment block `index`.
    fn fragment(&self, index: u32) -> Result<(u64, u32)> {
        let sb = self.superblock();
        if index >= sb.fragment_count {
            return Err(Error::corrupt("fragment index is out of range", index.into()));
        }
        let per_block = METADATA_LEN as u64 / FRAGMENT_ENTRY;
        let block = self.index_entry(sb.fragment_table, u64::from(index) / per_block)?;
        let offset = u16::try_from(u64::from(index) % per_block * FRAGMENT_ENTRY).unwrap_or(u16::MAX);
        let entry: [u8; 16] = Cursor::new(self, MetaPos { block, offset })?.array()?;
        Ok((le64(&entry, 0), le32(&entry, 8)))
    }
}

fn advance(start: u64, word: u32, block_size: u32) -> Result<u64> {
    start
        .checked_add(stored_len(word, block_size)?.into())
        .ok_or_else(|| Error::corrupt("data block lies outside of the image", start))
}

fn copy_part(block: &DataBlock, start: u64, block_len: usize, from: usize, target: &mut [u8]) -> Result<()> {
    if block.bytes.len() != block_len {
        return Err(short(start));
    }
    target.copy_from_slice(&block.bytes[from..from + target.len()]);
    Ok(())
}

fn short(start: u64) -> Error {
    Error::corrupt("data block decompresses to the wrong length", start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_evicted_blocks_are_used_again() {
        let buffers = Arc::new(Buffers::default());
        let block = DataBlock { bytes: buffers.take(1000), buffers: Arc::clone(&buffers) };
        let place = block.bytes.as_ptr();
        drop(block);
        let short = buffers.take(400);
        assert_ne!(short.as_ptr(), place, "much too long for that");
        let again = buffers.take(900);
        assert_eq!((again.as_ptr(), again.len()), (place, 900));
        for _ in 0..2 * Buffers::MOST {
            buffers.give_back(vec![0; 10]);
        }
        assert_eq!(buffers.idle().len(), Buffers::MOST);
    }
}
