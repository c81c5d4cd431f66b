//! The superblock: parsed once, and every field that others rely on checked here.

use crate::codec::Compressor;
use crate::error::{Error, Result};
use crate::layout::{MAGIC, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, NONE64, SUPERBLOCK_LEN, le16, le32, le64};
use crate::reader::inode::InodeRef;

/// The checked superblock of an image.
#[derive(Debug, Clone, Copy)]
pub struct Superblock {
    /// Number of inodes.
    pub inode_count: u32,
    /// Creation time of the image, seconds since 1970.
    pub mtime: u32,
    /// Bytes of a full data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Number of fragment blocks.
    pub fragment_count: u32,
    /// Compressor of all blocks.
    pub compressor: Compressor,
    /// Raw feature flags.
    pub flags: u16,
    /// Length of the image in bytes, without padding.
    pub bytes_used: u64,
    /// The root directory.
    pub root: InodeRef,
    pub(crate) id_count: u16,
    pub(crate) id_table: u64,
    pub(crate) xattr_table: Option<u64>,
    pub(crate) inode_table: u64,
    pub(crate) directory_table: u64,
    pub(crate) fragment_table: u64,
    pub(crate) export_table: Option<u64>,
}

impl Superblock {
    /// Parses the first bytes of an image that lies in a file of `file_len` bytes.
    pub(crate) fn parse(bytes: &[u8; SUPERBLOCK_LEN], file_len: u64) -> Result<Self> {
        if le32(bytes, 0) != MAGIC {
            return Err(Error::NotSquashfs);
        }
        let (major, minor) = (le16(bytes, 28), le16(bytes, 30));
        if (major, minor) != (4, 0) {
            return Err(Error::Version { major, minor });
        }
        let compressor = Compressor::from_id(le16(bytes, 20))?;
        let block_size = le32(bytes, 12);
        let block_log = le16(bytes, 22);
        if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
            || !block_size.is_power_of_two()
            || u32::from(block_log) != block_size.trailing_zeros()
        {
            return Err(invalid("block size", block_size.into()));
        }
        let bytes_used = le64(bytes, 40);
        if bytes_used < SUPERBLOCK_LEN as u64 {
            return Err(invalid("bytes used", bytes_used));
        }
        if bytes_used > file_len {
            return Err(Error::Truncated { needed: bytes_used, present: file_len });
        }
        let required = |field, at| {
            let start = le64(bytes, at);
            if start < SUPERBLOCK_LEN as u64 || start > bytes_used {
                return Err(invalid(field, start));
            }
            Ok(start)
        };
        let optional = |field, at| {
            if le64(bytes, at) == NONE64 { Ok(None) } else { required(field, at).map(Some) }
        };
        let fragment_count = le32(bytes, 16);
        let inode_table = required("inode table start", 64)?;
        let directory_table = required("directory table start", 72)?;
        if directory_table < inode_table {
            return Err(invalid("directory table start", directory_table));
        }
        let fragment_table = match optional("fragment table start", 80)? {
            Some(start) => start,
            None if fragment_count == 0 => bytes_used,
            None => return Err(invalid("fragment count", fragment_count.into())),
        };
        let id_count = le16(bytes, 26);
        if id_count == 0 {
            return Err(invalid("id count", 0));
        }
        Ok(Self {
            inode_count: le32(bytes, 4),
            mtime: le32(bytes, 8),
            block_size,
            fragment_count,
            compressor,
            flags: le16(bytes, 24),
            bytes_used,
            root: InodeRef(le64(bytes, 32)),
            id_count,
            id_table: required("id table start", 48)?,
            xattr_table: optional("xattr table start", 56)?,
            inode_table,
            directory_table,
            fragment_table,
            export_table: optional("export table start", 88)?,
        })
    }
}

fn invalid(field: &'static str, value: u64) -> Error {
    Error::Superblock { field, value }
}
