//! The image: its source, superblock, caches and decoders.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::codec::Decoder;
use crate::error::{Error, Result};
use crate::layout::{METADATA_LEN, SUPERBLOCK_LEN, le32};
use crate::reader::cache::Cache;
use crate::reader::file::{Buffers, DataBlock, Segment};
use crate::reader::inode::{Inode, InodeRef};
use crate::reader::metadata::{Cursor, MetaBlock, MetaPos, RawWindow};
use crate::reader::superblock::Superblock;
use crate::source::ReadAt;

/// Idle decoders kept for reuse; more threads than this allocate contexts anew.
const MAX_IDLE_DECODERS: usize = 64;

/// How an image is read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Bytes all caches of the image may hold together.
    pub cache_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

/// What has been read and may be wanted again.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) raw: Cache<u64, RawWindow>,
    pub(crate) meta: Cache<u64, MetaBlock>,
    pub(crate) data: Cache<(u64, u32), DataBlock>,
    pub(crate) segments: Cache<(InodeRef, u64), Segment>,
    /// For the blocks of `data`.
    pub(crate) buffers: Arc<Buffers>,
}

/// An open SquashFS image, for use by any number of threads at once.
pub struct Image {
    source: Box<dyn ReadAt>,
    superblock: Superblock,
    caches: Caches,
    decoders: Mutex<Vec<Decoder>>,
    ids: OnceLock<Box<[u32]>>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("superblock", &self.superblock).finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an image: one read of its superblock, everything else when it is needed.
    ///
    /// # Errors
    /// The source cannot be read, is no SquashFS 4.0, uses a refused compressor, or contradicts itself.
    pub fn open(source: impl ReadAt + 'static, options: ReadOptions) -> Result<Self> {
        let length = SUPERBLOCK_LEN;
        let at_start = |source| Error::Read { offset: 0, length, source };
        let file_len = source.size().map_err(at_start)?;
        if file_len < SUPERBLOCK_LEN as u64 {
            return Err(Error::NotSquashfs);
        }
        let mut bytes = [0; SUPERBLOCK_LEN];
        source.read_exact_at(&mut bytes, 0).map_err(at_start)?;
        let superblock = Superblock::parse(&bytes, file_len)?;
        // Metadata is small, decompresses slowly for its size and is wanted again and again; data
        // mostly passes through on its way to a page cache.
        let part = options.cache_bytes / 16;
        let caches = Caches {
            raw: Cache::new(part),
            meta: Cache::new(part * 5),
            data: Cache::new(part * 9),
            segments: Cache::new(part),
            buffers: Arc::default(),
        };
        let decoders = Mutex::new(Vec::new());
        Ok(Self { source: Box::new(source), superblock, caches, decoders, ids: OnceLock::new() })
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        self.superblock.root
    }

    /// Reads the inode of a number through the export table; `None` if the image has no such table.
    pub fn inode_by_number(&self, number: u32) -> Result<Option<Inode>> {
        let Some(table) = self.superblock.export_table else { return Ok(None) };
        let index = match number.checked_sub(1) {
            Some(index) if index < self.superblock.inode_count => u64::from(index),
            _ => return Err(Error::corrupt("inode number is out of range", number.into())),
        };
        let per_block = METADATA_LEN as u64 / 8;
        let block = self.index_entry(table, index / per_block)?;
        let offset = u16::try_from(index % per_block * 8).unwrap_or(u16::MAX);
        let inode_ref = InodeRef(Cursor::new(self, MetaPos { block, offset })?.u64()?);
        self.inode(inode_ref).map(Some)
    }

    pub(crate) fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The user or group id at `index` of the id table, which is read whole the first time.
    pub(crate) fn id(&self, index: u16) -> Result<u32> {
        let ids = match self.ids.get() {
            Some(ids) => ids,
            None => {
                let loaded = self.load_ids()?;
                self.ids.get_or_init(|| loaded)
            }
        };
        let id = ids.get(usize::from(index)).copied();
        id.ok_or_else(|| Error::corrupt("id index is out of range", index.into()))
    }

    fn load_ids(&self) -> Result<Box<[u32]>> {
        let count = usize::from(self.superblock.id_count);
        let per_block = METADATA_LEN / 4;
        let mut ids = Vec::with_capacity(count);
        for block in 0..count.div_ceil(per_block) {
            let start = self.index_entry(self.superblock.id_table, block as u64)?;
            let mut cursor = Cursor::new(self, MetaPos { block: start, offset: 0 })?;
            for _ in 0..per_block.min(count - ids.len()) {
                ids.push(le32(&cursor.array::<4>()?, 0));
            }
        }
        Ok(ids.into_boxed_slice())
    }

    /// Reads bytes of the image, which end at the declared length whatever the file holds beyond.
    pub(crate) fn read_source(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inside =
            offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.superblock.bytes_used);
        if !inside {
            return Err(Error::corrupt("block lies outside of the image", offset));
        }
        let length = buf.len();
        self.source.read_exact_at(buf, offset).map_err(|source| Error::Read { offset, length, source })
    }

    /// Decompresses `src`, which was read at `offset`, into the start of `dst`.
    pub(crate) fn decode(
        &self,
        decoder: &mut Decoder,
        offset: u64,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<usize> {
        let compressor = self.superblock.compressor;
        decoder.decompress(compressor, src, dst).map_err(|source| Error::Decompress {
            compressor: compressor.name(),
            offset,
            source,
        })
    }

    /// Lends a decoder to `work`; the lock is held only to take it and to put it back.
    pub(crate) fn with_decoder<T>(&self, work: impl FnOnce(&mut Decoder) -> T) -> T {
        let idle = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut decoder = taken.unwrap_or_default();
        let result = work(&mut decoder);
        let mut decoders = idle();
        if decoders.len() < MAX_IDLE_DECODERS {
            decoders.push(decoder);
        }
        result
    }
}
