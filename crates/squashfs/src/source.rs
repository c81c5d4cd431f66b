//! Where the bytes of an image come from.
//!
//! Reads are positioned (`pread`), so that many threads share one descriptor without a lock, and the
//! image is never memory-mapped: a file truncated under a mapping kills the reader with `SIGBUS`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Positioned reading of a byte source with a known length.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset`, or fails with `UnexpectedEof` when the source ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Length of the source in bytes.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buf.len())?))
            .and_then(|range| self.get(range))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Arc<R> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

/// A part of another source, as an image at an offset inside a SIF file.
#[derive(Debug, Clone)]
pub struct Window<R> {
    inner: R,
    offset: u64,
    length: u64,
}

impl<R: ReadAt> Window<R> {
    /// Shows `length` bytes of `inner` from `offset`; reads outside of them fail.
    pub fn new(inner: R, offset: u64, length: u64) -> Self {
        Self { inner, offset, length }
    }
}

impl<R: ReadAt> ReadAt for Window<R> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = self.offset.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inner.read_exact_at(buf, start)
    }

    /// The declared length, or what is left of the inner source if that is shorter.
    fn size(&self) -> io::Result<u64> {
        Ok(self.length.min(self.inner.size()?.saturating_sub(self.offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_shows_only_its_range() {
        let window = Window::new((0u8..32).collect::<Vec<u8>>(), 8, 4);
        let mut buf = [0; 4];
        window.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [8, 9, 10, 11]);
        assert!(window.read_exact_at(&mut buf, 1).is_err());
        assert!(window.read_exact_at(&mut buf[..1], u64::MAX).is_err());
        assert_eq!(window.size().unwrap(), 4);
        assert_eq!(Window::new(vec![0u8; 10], 8, 4).size().unwrap(), 2);
        assert_eq!(Window::new(vec![0u8; 10], 80, 4).size().unwrap(), 0);
    }
}
