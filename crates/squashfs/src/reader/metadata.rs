//! Metadata blocks: reading them ahead, decompressing them, and walking over them.
//!
//! Compressed metadata is read in aligned windows of `WINDOW` bytes, some ten blocks. Decompressed blocks are cached by file offset, each with the
//! offset of its successor.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layout::{METADATA_LEN, METADATA_RAW, le16, le32, le64};
use crate::reader::cache::Cost;
use crate::reader::image::Image;

/// Bytes of compressed metadata fetched by one read. Planning looks at blocks here and there, and pays for each page of a
/// window; a walk over everything has the kernel read ahead.
pub(crate) const WINDOW: u64 = 16 << 10;

// A block and its length lie in two windows at most.
const _: () = assert!(WINDOW >= METADATA_LEN as u64 + 2);

/// Undecoded bytes of the image, as read.
pub(crate) struct RawWindow(Vec<u8>);

impl Cost for RawWindow {
    fn cost(&self) -> usize {
        self.0.len()
    }
}

/// One decompressed metadata block.
pub(crate) struct MetaBlock {
    data: Vec<u8>,
    next: u64,
}

impl Cost for MetaBlock {
    fn cost(&self) -> usize {
        self.data.capacity()
    }
}

/// A place in metadata: file offset of the block, and offset in its decompressed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MetaPos {
    pub(crate) block: u64,
    pub(crate) offset: u16,
}

impl Image {
    /// Runs `read` on `length` bytes at `offset` that lie in the windows of metadata.
    fn with_raw<T>(&self, offset: u64, length: usize, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let outside = || Error::corrupt("metadata reaches outside of the image", offset);
        let end = offset.checked_add(length as u64).ok_or_else(outside)?;
        if end > self.superblock().bytes_used {
            return Err(outside());
        }
        let first = self.raw_window(offset / WINDOW)?;
        let from = usize::try_from(offset % WINDOW).map_err(|_| outside())?;
        if let Some(bytes) = first.0.get(from..from + length) {
            return read(bytes);
        }
        let head = first.0.get(from..).ok_or_else(outside)?;
        let second = self.raw_window(offset / WINDOW + 1)?;
        let tail = second.0.get(..length - head.len()).ok_or_else(outside)?;
        let mut joined = [0; METADATA_LEN];
        let joined = joined.get_mut(..length).ok_or_else(outside)?;
        joined[..head.len()].copy_from_slice(head);
        joined[head.len()..].copy_from_slice(tail);
        read(joined)
    }

    fn raw_window(&self, index: u64) -> Result<Arc<RawWindow>> {
        self.caches().raw.get_or_load(index, || {
            let start = index * WINDOW;
            let length = self.superblock().bytes_used.saturating_sub(start).min(WINDOW);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
            self.read_source(&mut bytes, start)?;
            Ok(RawWindow(bytes))
        })
    }

    /// Reads a word of one of the uncompressed index tables.
    pub(crate) fn index_entry(&self, table: u64, index: u64) -> Result<u64> {
        let at = index
            .checked_mul(8)
            .and_then(|bytes| table.checked_add(bytes))
            .ok_or_else(|| Error::corrupt("table index overflows", index))?;
        self.with_raw(at, 8, |bytes| Ok(le64(bytes, 0)))
    }

    /// Copies undecoded bytes of a table.
    pub(crate) fn raw_bytes<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        self.with_raw(offset, N, |bytes| {
            let mut copy = [0; N];
            copy.copy_from_slice(bytes);
            Ok(copy)
        })
    }

    fn meta_block(&self, offset: u64) -> Result<Arc<MetaBlock>> {
        self.caches().meta.get_or_load(offset, || {
            let header = self.with_raw(offset, 2, |bytes| Ok(le16(bytes, 0)))?;
            let length = usize::from(header & !METADATA_RAW);
            if length == 0 || length > METADATA_LEN {
                return Err(Error::corrupt("metadata block has an impossible size", offset));
            }
            let data = self.with_raw(offset + 2, length, |bytes| {
                if header & METADATA_RAW != 0 {
                    return Ok(bytes.to_vec());
                }
                let mut data = vec![0; METADATA_LEN];
                let filled = self.with_decoder(|decoder| self.decode(decoder, offset, bytes, &mut data))?;
                data.truncate(filled);
                Ok(data)
            })?;
            if data.is_empty() {
                return Err(Error::corrupt("metadata block is empty", offset));
            }
            Ok(MetaBlock { data, next: offset + 2 + length as u64 })
        })
    }
}

/// A position that moves through consecutive metadata blocks.
pub(crate) struct Cursor<'a> {
    image: &'a Image,
    block: Arc<MetaBlock>,
    start: u64,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at `pos`, whose offset must lie inside its block.
    pub(crate) fn new(image: &'a Image, pos: MetaPos) -> Result<Self> {
        let block = image.meta_block(pos.block)?;
        let at = usize::from(pos.offset);
        // The end of a block is accepted: it is where a listing that fills the block stops.
        if at > block.data.len() {
            return Err(Error::corrupt("offset lies outside of its metadata block", pos.block));
        }
        Ok(Self { image, block, start: pos.block, at })
    }

    /// Where the next byte comes from.
    pub(crate) fn position(&self) -> Result<MetaPos> {
        let offset =
            u16::try_from(self.at).map_err(|_| Error::corrupt("metadata offset is too large", self.start))?;
        Ok(MetaPos { block: self.start, offset })
    }

    /// Fills `buf`, going on into the following blocks.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            self.settle()?;
            let rest = &self.block.data[self.at..];
            let count = rest.len().min(buf.len() - filled);
            buf[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            self.at += count;
        }
        Ok(())
    }

    /// Moves `count` bytes ahead.
    pub(crate) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            self.settle()?;
            let here = (self.block.data.len() - self.at) as u64;
            let step = here.min(count);
            self.at += usize::try_from(step).map_err(|_| Error::corrupt("skip is too long", self.start))?;
            count -= step;
        }
        Ok(())
    }

    /// Reads a fixed number of bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a little-endian word.
    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(le32(&self.array::<4>()?, 0))
    }

    /// Reads a little-endian double word.
    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(le64(&self.array::<8>()?, 0))
    }

    /// Goes to the next block if this one is used up; no block is empty, so one step is enough.
    fn settle(&mut self) -> Result<()> {
        if self.at == self.block.data.len() {
            self.start = self.block.next;
            self.block = self.image.meta_block(self.start)?;
            self.at = 0;
        }
        Ok(())
    }
}
