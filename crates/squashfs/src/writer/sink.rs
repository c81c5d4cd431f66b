//! The output: appended to through a buffer, with positions relative to the start of the image.

use std::io::{Read, Seek, SeekFrom, Write};

use crate::writer::error::{Result, WriteError};

/// Bytes gathered before they go to the output: two blocks of the usual size. More would be more pages to touch, and fewer
/// calls, which cost nothing beside what is copied.
const BUFFER: usize = 256 << 10;

/// Appends to an output and can read back what was appended.
#[derive(Debug)]
pub(crate) struct Sink<W> {
    out: W,
    /// Where the image starts in the output.
    base: u64,
    /// Bytes of the image that are in the output.
    flushed: u64,
    buffer: Vec<u8>,
}

impl<W: Read + Write + Seek> Sink<W> {
    /// Starts an image at the current position of `out`, with `reserved` bytes to fill in at the end.
    pub(crate) fn start(mut out: W, reserved: usize) -> Result<Self> {
        let base = out.stream_position().map_err(WriteError::Output)?;
        let mut sink = Self { out, base, flushed: 0, buffer: Vec::with_capacity(BUFFER) };
        sink.append(&vec![0; reserved])?;
        sink.flush()?;
        // An output opened for writing only is refused here, rather than hours later when a file
        // turns out to differ from the one it began like.
        let mut first = [0];
        sink.seek(0)?;
        sink.out.read_exact(&mut first).map_err(WriteError::Output)?;
        sink.seek(sink.flushed)?;
        Ok(sink)
    }

    /// Length of the image so far.
    pub(crate) fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Appends `bytes`.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends a copy of `length` bytes that were appended before, from `start`.
    pub(crate) fn repeat(&mut self, mut start: u64, length: u64) -> Result<()> {
        let end = start + length;
        while start < end {
            self.flush()?;
            let step = usize::try_from(end - start).unwrap_or(BUFFER).min(BUFFER);
            let mut chunk = std::mem::take(&mut self.buffer);
            chunk.resize(step, 0);
            self.seek(start)?;
            self.out.read_exact(&mut chunk).map_err(WriteError::Output)?;
            self.seek(self.flushed)?;
            self.buffer = chunk;
            start += step as u64;
        }
        Ok(())
    }

    /// Fills in the reserved bytes, passes everything on and returns the output.
    pub(crate) fn finish(mut self, head: &[u8]) -> Result<W> {
        self.flush()?;
        let end = self.flushed;
        self.seek(0)?;
        self.out.write_all(head).map_err(WriteError::Output)?;
        self.seek(end)?;
        self.out.flush().map_err(WriteError::Output)?;
        Ok(self.out)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.buffer).map_err(WriteError::Output)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        self.out.seek(SeekFrom::Start(self.base + position)).map_err(WriteError::Output)?;
        Ok(())
    }
}
