//! Block decompression behind one call, with contexts that are reused.
//!
//! Output is always bounded by the slice given; the memory a codec may take on top of it is bounded
//! by the codec itself (zstd, lz4, lzo and gzip need no window beyond the output; xz has a limit).

mod lzo;

use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::XzReader;
use zstd_safe::DCtx;

use crate::error::{Cause, Error, Result};

/// Memory one xz block may ask for, in KiB: a dictionary is at most the block size of 1 MiB in
/// images that tools write; the rest leaves room for odd settings without trusting the header.
const XZ_MEMORY_KIB: u32 = 16 << 10;

/// Compression of an image; one for all of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compressor {
    /// zlib streams.
    Gzip,
    /// Bare LZO1X streams.
    Lzo,
    /// `.xz` streams, with or without a branch filter.
    Xz,
    /// Bare LZ4 blocks.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Compressor {
    /// Finds the compressor of a superblock identifier; legacy LZMA is refused by name.
    pub(crate) fn from_id(id: u16) -> Result<Self> {
        match id {
            1 => Ok(Self::Gzip),
            2 => Err(Error::Compressor { id, name: "lzma" }),
            3 => Ok(Self::Lzo),
            4 => Ok(Self::Xz),
            5 => Ok(Self::Lz4),
            6 => Ok(Self::Zstd),
            _ => Err(Error::Compressor { id, name: "unknown" }),
        }
    }

    /// Name as in `mksquashfs -comp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lzo => "lzo",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Contexts and buffers of one decompression at a time.
#[derive(Default)]
pub(crate) struct Decoder {
    zstd: Option<DCtx<'static>>,
    inflate: Option<Decompress>,
    /// Room for compressed bytes, at least as long as asked for once.
    input: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("input", &self.input.len()).finish_non_exhaustive()
    }
}

impl Decoder {
    /// Takes the input buffer out, at least `length` bytes long; `give_back` keeps it for the next call.
    pub(crate) fn take_input(&mut self, length: usize) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.input);
        if input.len() < length {
            input.resize(length, 0);
        }
        input
    }

    /// Returns the buffer of `take_input`.
    pub(crate) fn give_back(&mut self, input: Vec<u8>) {
        self.input = input;
    }

    /// Decompresses `src` into the start of `dst` and returns the length of the result.
    pub(crate) fn decompress(
        &mut self,
        compressor: Compressor,
        src: &[u8],
        dst: &mut [u8],
    ) -> std::result::Result<usize, Cause> {
        match compressor {
            Compressor::Zstd => {
                let context = self.zstd.get_or_insert_with(DCtx::create);
                context.decompress(dst, src).map_err(|code| zstd_safe::get_error_name(code).into())
            }
            Compressor::Gzip => {
                let inflate = self.inflate.get_or_insert_with(|| Decompress::new(true));
                inflate.reset(true);
                match inflate.decompress(src, dst, FlushDecompress::Finish)? {
                    Status::StreamEnd => Ok(usize::try_from(inflate.total_out())?),
                    Status::Ok | Status::BufError => Err("zlib stream does not end in its block".into()),
                }
            }
            Compressor::Lz4 => Ok(lz4_flex::block::decompress_into(src, dst)?),
            Compressor::Lzo => Ok(lzo::decompress(src, dst)?),
            Compressor::Xz => decompress_xz(src, dst),
        }
    }
}

fn decompress_xz(src: &[u8], dst: &mut [u8]) -> std::result::Result<usize, Cause> {
    let mut reader = XzReader::new_mem_limit(src, false, XZ_MEMORY_KIB);
    let mut length = 0;
    while length < dst.len() {
        match reader.read(&mut dst[length..])? {
            0 => return Ok(length),
            count => length += count,
        }
    }
    // The end must be read too: it carries the checks of the block and its index.
    match reader.read(&mut [0])? {
        0 => Ok(length),
        _ => Err("xz stream does not fit its block".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refused_compressors() {
        let error = Compressor::from_id(2).unwrap_err();
        assert_eq!(error.to_string(), "squashfs compressor lzma (id 2) is not supported");
        assert!(Compressor::from_id(7).is_err());
        assert!(Compressor::from_id(0).is_err());
    }
}
