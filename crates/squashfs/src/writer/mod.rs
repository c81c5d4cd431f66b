//! Writing of SquashFS 4.0 images with zstd.
//!
//! Content streams in file by file and is compressed by a pool of threads; the tree that names it
//! comes last. The bytes of an image are a function of the content, the order in which it came, the
//! tree and the options but `threads`: clocks, addresses, hash seeds and thread timing have no part.

mod compress;
mod data;
mod error;
mod inodes;
mod sink;
mod tables;
mod trail;
mod tree;

use std::io::{Read, Seek, Write};

use crate::layout::{MAGIC, MAX_BLOCK_SIZE, METADATA_RAW, MIN_BLOCK_SIZE, NONE64, SUPERBLOCK_LEN};
use compress::Pool;
use data::DataWriter;
use error::Result;
use sink::Sink;
use tables::write_table;

pub use data::StoredFile;
pub use error::WriteError;
pub use tree::{Metadata, Node, NodeId, NodeKind, Tree};

/// Padding of an image file: loop devices work in units of this size.
const PADDING: u64 = 4096;
/// Superblock flags: exportable, duplicates removed, compressor options present.
const FLAGS: u16 = 0x0080 | 0x0040 | 0x0400;
/// zstd in the superblock.
const ZSTD: u16 = 6;
/// More workers than this only cost memory.
const MAX_THREADS: usize = 1024;

/// How an image is written.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// Bytes of a full data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// zstd level, 1 to 22.
    pub zstd_level: i32,
    /// Compression threads. With 1 the caller's thread does everything.
    pub threads: usize,
    /// Creation time in the superblock, seconds since 1970.
    pub mtime: u32,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { block_size: 128 << 10, zstd_level: 3, threads: 1, mtime: 0 }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image without padding.
    pub bytes_used: u64,
    /// Length of the image with padding to 4 KiB.
    pub padded_len: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// Files whose content was there already.
    pub duplicates: u64,
}

/// Writes one image.
///
/// The output must be readable too (`File` opened for both): a long file that begins like a stored
/// one and then differs gets its first blocks copied from there.
#[derive(Debug)]
pub struct Writer<W> {
    data: DataWriter<W>,
    options: WriterOptions,
}

impl<W: Read + Write + Seek> Writer<W> {
    /// Starts an image at the current position of `out`.
    ///
    /// # Errors
    /// An option is out of range, a thread cannot be started, or `out` cannot be written and read.
    pub fn create(out: W, options: WriterOptions) -> Result<Self> {
        let size = options.block_size;
        if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size) || !size.is_power_of_two() {
            return Err(WriteError::Options { option: "block_size", value: size.into() });
        }
        if !(1..=22).contains(&options.zstd_level) {
            return Err(WriteError::Options { option: "zstd_level", value: options.zstd_level.into() });
        }
        if options.threads == 0 || options.threads > MAX_THREADS {
            let value = i64::try_from(options.threads).unwrap_or(i64::MAX);
            return Err(WriteError::Options { option: "threads", value });
        }
        let mut sink = Sink::start(out, SUPERBLOCK_LEN)?;
        // The compressor options: one uncompressed metadata block that holds the level.
        sink.append(&(METADATA_RAW | 4).to_le_bytes())?;
        sink.append(&options.zstd_level.to_le_bytes())?;
        let pool = Pool::start(options.threads, options.zstd_level)?;
        Ok(Self { data: DataWriter::new(sink, pool, size as usize), options })
    }

    /// Takes in the content of a file up to its end.
    ///
    /// # Errors
    /// Reading fails, and the file is forgotten; or writing fails, and the image is lost.
    pub fn add_file(&mut self, content: &mut dyn Read) -> Result<StoredFile> {
        self.begin_file()?;
        match self.data.copy(content) {
            Ok(()) => self.finish_file(),
            Err(error) => {
                self.data.abandon();
                Err(error)
            }
        }
    }

    /// Begins a file whose content follows by [`Writer::write`].
    ///
    /// # Errors
    /// The file before has not been finished.
    pub fn begin_file(&mut self) -> Result<()> {
        self.data.begin()
    }

    /// Takes in more content of the file begun.
    ///
    /// # Errors
    /// No file was begun, or the output refuses.
    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        self.data.write(content)
    }

    /// Adds zeros to the file begun, without having them in memory: the same bytes as if they were written.
    /// Each block of them still takes four bytes of the image and of memory.
    ///
    /// # Errors
    /// No file was begun, or the output refuses.
    pub fn hole(&mut self, len: u64) -> Result<()> {
        self.data.hole(len)
    }

    /// Ends the file begun.
    ///
    /// # Errors
    /// No file was begun, or the output refuses.
    pub fn finish_file(&mut self) -> Result<StoredFile> {
        self.data.finish()
    }

    /// Says that no more files come. Without it, [`Writer::finish`] does; but what is needed to find duplicates takes
    /// memory that the making of the tree may have use for.
    ///
    /// # Errors
    /// A file is begun and not finished, or the output refuses.
    pub fn end_files(&mut self) -> Result<()> {
        self.data.end_files()
    }

    /// Writes the tree and completes the image; returns what was written and the output.
    ///
    /// # Errors
    /// The tree cannot be expressed, or the output refuses; the image is not usable then.
    pub fn finish(self, tree: &Tree) -> Result<(Summary, W)> {
        let mut data = self.data;
        data.end_files()?;
        let compressor = data.pool.inline();
        let sink = &mut data.sink;
        let built = inodes::build(tree, &data.extents, compressor)?;

        let inode_table = sink.position();
        sink.append(&built.inodes)?;
        let directory_table = sink.position();
        sink.append(&built.directories)?;
        let mut entries = Vec::with_capacity(data.fragments.len() * 16);
        for (start, word) in &data.fragments {
            entries.extend_from_slice(&start.to_le_bytes());
            entries.extend_from_slice(&word.to_le_bytes());
            entries.extend_from_slice(&[0; 4]);
        }
        let fragment_table =
            if entries.is_empty() { NONE64 } else { write_table(sink, compressor, |_| (), &entries)? };
        let export_table = write_table(sink, compressor, |_| (), &built.export)?;
        let id_table = write_table(sink, compressor, |_| (), &built.ids.bytes)?;
        let id_count = built.ids.count();
        let xattr_table = built.xattrs.write(sink, compressor)?;
        let bytes_used = sink.position();
        let padded_len = bytes_used.next_multiple_of(PADDING);
        sink.append(&vec![0; usize::try_from(padded_len - bytes_used).unwrap_or_default()])?;

        let fragments = u32::try_from(data.fragments.len()).unwrap_or(u32::MAX);
        let mut head = Vec::with_capacity(SUPERBLOCK_LEN);
        let block_log = u16::try_from(self.options.block_size.trailing_zeros()).unwrap_or_default();
        for word in [MAGIC, built.count, self.options.mtime, self.options.block_size, fragments] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        for half in [ZSTD, block_log, FLAGS, id_count, 4, 0] {
            head.extend_from_slice(&half.to_le_bytes());
        }
        let tables = [inode_table, directory_table, fragment_table, export_table];
        for place in [built.root.0, bytes_used, id_table, xattr_table].into_iter().chain(tables) {
            head.extend_from_slice(&place.to_le_bytes());
        }
        let duplicates = data.n_duplicates;
        let inodes = built.count;
        let out = data.sink.finish(&head)?;
        Ok((Summary { bytes_used, padded_len, inodes, fragments, duplicates }, out))
    }
}
