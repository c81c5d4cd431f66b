//! Zstandard frames, with a say in how much memory each may take.
//!
//! A frame's header names its window, up to 128 MiB here, and a decoder needs that much memory. Several decoders
//! run at a time, so each frame is looked at before it is decoded, and whoever started the decoder decides.

use std::io::{self, Read};
use std::ops::Range;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::resources::MAX_WINDOW;

/// Start of a frame (RFC 8878 §3.1.1). Skippable ones (§3.1.2) start otherwise and need no window.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Longest part of a frame up to the end of its header: magic number, descriptor, window, dictionary, size.
const MAX_HEAD: usize = 18;
/// Compressed bytes read at a time.
const BUFFER: usize = 128 * 1024;
/// Smallest window that the format can name, as a power of two.
const MIN_WINDOW_LOG: u32 = 10;

/// Who decides whether a window may be had: it may wait, or refuse with an error.
pub(crate) trait Windows: Send {
    /// Asks for a window of so many bytes, in place of the one before.
    fn ask(&mut self, bytes: u64) -> io::Result<()>;
}

/// Any window up to a limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpTo(pub(crate) u64);

impl Windows for UpTo {
    fn ask(&mut self, bytes: u64) -> io::Result<()> {
        if bytes <= self.0 { Ok(()) } else { Err(too_large(bytes, self.0)) }
    }
}

pub(crate) fn too_large(bytes: u64, limit: u64) -> io::Error {
    let text =
        format!("zstd frame needs a window of {bytes} bytes, more than the {limit} that layers may have");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads the content of frames that follow one another.
pub(crate) struct Frames<R, W> {
    source: R,
    windows: W,
    decoder: Decoder<'static>,
    /// Compressed bytes, and which of them the decoder has not taken yet.
    buffer: Box<[u8]>,
    ahead: Range<usize>,
    /// Whether the decoder is in a frame.
    inside: bool,
}

impl<R: Read, W: Windows> Frames<R, W> {
    pub(crate) fn new(source: R, windows: W) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        // In case that the decoder reads a header differently: it may never have more than anybody agrees to.
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW.ilog2()))?;
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self { source, windows, decoder, buffer, ahead: 0..0, inside: false })
    }

    /// Reads until `wanted` bytes are there, or the source ends.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.ahead.len() >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.ahead.clone(), 0);
        self.ahead = 0..self.ahead.len();
        while self.ahead.len() < wanted {
            match self.source.read(&mut self.buffer[self.ahead.end..]) {
                Ok(0) => break,
                Ok(n) => self.ahead.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl<R: Read, W: Windows> Read for Frames<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if self.inside {
                self.fill(1)?;
            } else {
                self.fill(MAX_HEAD)?;
                if self.ahead.is_empty() {
                    return Ok(0);
                }
                if let Some(bytes) = window(&self.buffer[self.ahead.clone()]) {
                    self.windows.ask(bytes)?;
                }
                self.inside = true;
            }
            let ended = self.ahead.is_empty();
            let mut input = InBuffer::around(&self.buffer[self.ahead.clone()]);
            let mut output = OutBuffer::around(&mut *buf);
            let left = self.decoder.run(&mut input, &mut output)?;
            self.ahead.start += input.pos();
            self.inside = left > 0;
            match output.pos() {
                0 if ended && self.inside => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "zstd frame ends early"));
                }
                0 => {}
                n => return Ok(n),
            }
        }
    }
}

/// The window that a frame needs, by its first bytes (RFC 8878 §3.1.1.1): `None` where that is no frame with
/// content, which is the decoder's to complain about.
fn window(head: &[u8]) -> Option<u64> {
    let rest = head.strip_prefix(&MAGIC)?;
    let (descriptor, rest) = rest.split_first()?;
    if descriptor & 0x20 == 0 {
        let byte = *rest.first()?;
        let base = 1u64 << (u32::from(byte >> 3) + MIN_WINDOW_LOG);
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // A single segment: the window is the whole content, whose size comes after the number of a dictionary.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary..)?.get(..size_len)?;
    let size = field.iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    Some(if size_len == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use zstd::stream::raw::CParameter;

    use super::*;

    /// Agrees to everything and keeps what was asked.
    #[derive(Clone, Default)]
    struct Note(Arc<Mutex<Vec<u64>>>);

    impl Windows for Note {
        fn ask(&mut self, bytes: u64) -> io::Result<()> {
            self.0.lock().unwrap().push(bytes);
            Ok(())
        }
    }

    fn frame(content: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Gives so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buf.len());
            self.0.read(&mut buf[..n])
        }
    }

    #[test]
    fn each_frame_is_asked_for() {
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| (n % 1000).to_le_bytes()).collect();
        let single = zstd::bulk::compress(&content[..5000], 3).unwrap();
        let tiny = zstd::bulk::compress(b"x", 3).unwrap();
        let skippable = [&b"\x5a\x2a\x4d\x18\x03\x00\x00\x00"[..], b"abc"].concat();
        let all =
            [skippable.clone(), frame(&content, 20), tiny, single, skippable, frame(&content, 23)].concat();
        let want = [&content[..], b"x", &content[..5000], &content].concat();
        for step in [1, 7, 17, 100_000] {
            let note = Note::default();
            let mut got = Vec::new();
            Frames::new(Slow(&all, step), note.clone()).unwrap().read_to_end(&mut got).unwrap();
            assert!(got == want, "{step}");
            assert_eq!(*note.0.lock().unwrap(), [1 << 20, 1, 5000, 1 << 23], "{step}");
        }
        for end in [all.len() - 1, all.len() - 9, 12] {
            let mut got = Vec::new();
            let error = Frames::new(&all[..end], Note::default()).unwrap().read_to_end(&mut got).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}: {error}");
        }
    }

    #[test]
    fn windows_are_refused_before_they_are_allocated() {
        let large = frame(&vec![7; 3 << 20], 22);
        let small = frame(b"small", 10);
        for (frames, read) in [(vec![&large], 0), (vec![&small, &large], 5)] {
            let bytes: Vec<u8> = frames.into_iter().flatten().copied().collect();
            let mut got = Vec::new();
            let error =
                Frames::new(bytes.as_slice(), UpTo(1 << 21)).unwrap().read_to_end(&mut got).unwrap_err();
            assert_eq!((error.kind(), got.len()), (io::ErrorKind::InvalidData, read), "{error}");
            assert!(error.to_string().contains(&(1u32 << 22).to_string()), "{error}");
        }
        // The largest that can be written in a header: more than 3 TiB.
        let absurd = [&MAGIC[..], &[0x00, 0xff]].concat();
        assert_eq!(window(&absurd), Some((1 << 41) + (7 << 38)));
        let single = [&MAGIC[..], &[0xe3], &[0; 4], &[0xff; 8]].concat();
        assert_eq!(window(&single), Some(u64::MAX));
        assert_eq!(window(&single[..10]), None);
    }
}
