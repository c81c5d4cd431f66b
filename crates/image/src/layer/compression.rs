//! Recognising and undoing a layer's compression.
//!
//! The first bytes decide, not the media type: registries and converters are known to relabel.

use std::io::{self, BufReader, Read};

use super::frames::{Frames, UpTo, Windows};
use crate::resources::MAX_WINDOW;

/// Compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// Bytes looked at.
const MAGIC_LEN: usize = 4;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Compressed bytes read at a time.
const BUFFER: usize = 128 * 1024;

/// Returns a reader of the uncompressed bytes of `source`, and what it found. The window of a zstd decoder may be
/// as large as 128 MiB, the format's own advice for those who read strangers' files.
///
/// # Errors
/// When the first bytes cannot be read or the decoder cannot be set up.
pub fn decompress<'a>(source: impl Read + Send + 'a) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    decompress_within(source, UpTo(MAX_WINDOW))
}

/// As [`decompress`], with somebody who decides about windows.
pub(crate) fn decompress_within<'a>(
    mut source: impl Read + Send + 'a,
    windows: impl Windows + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut magic = [0u8; MAGIC_LEN];
    let mut have = 0;
    while have < MAGIC_LEN {
        match source.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let magic_bytes = magic[..have].to_vec();
    let compression = if magic_bytes.starts_with(GZIP_MAGIC) {
        Compression::Gzip
    } else if magic_bytes.starts_with(ZSTD_MAGIC) || is_zstd_skippable(&magic_bytes) {
        Compression::Zstd
    } else {
        Compression::None
    };
    let whole = io::Cursor::new(magic_bytes).chain(source);
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, whole)))
        }
        Compression::Zstd => Box::new(Frames::new(whole, windows)?),
    };
    Ok((compression, reader))
}

/// zstd:chunked layers and others may begin with a skippable frame (RFC 8878 §3.1.2).
fn is_zstd_skippable(magic: &[u8]) -> bool {
    matches!(magic, [low, 0x2a, 0x4d, 0x18] if (0x50..=0x5f).contains(low))
}
