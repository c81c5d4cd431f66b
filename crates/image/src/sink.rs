//! Where file contents go.

/// Takes the contents of regular files one after the other, before the tree that names them is complete.
pub trait FileSink {
    /// Handle for a file's content.
    type File: Clone;
    /// Error of the sink.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Starts a file of `size` bytes.
    ///
    /// # Errors
    /// When the sink cannot take it.
    fn begin(&mut self, size: u64) -> Result<(), Self::Error>;

    /// Adds bytes to the file started last.
    ///
    /// # Errors
    /// When the sink cannot take them.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Adds zeros to the file started last. They may be more than could be written one by one.
    ///
    /// # Errors
    /// When the sink cannot take them.
    fn hole(&mut self, len: u64) -> Result<(), Self::Error>;

    /// Bytes of memory that a sink keeps until the end for so many bytes of content and of holes.
    #[must_use]
    fn keeps(data: u64, holes: u64) -> u64;

    /// Ends the file started last.
    ///
    /// # Errors
    /// When the sink cannot store it.
    fn finish(&mut self) -> Result<Self::File, Self::Error>;
}

/// Keeps contents in memory, for tests and small things.
#[derive(Debug, Default)]
pub struct MemorySink {
    current: Vec<u8>,
    /// Total bytes written, to see that hidden files cost nothing.
    pub n_bytes: u64,
}

impl FileSink for MemorySink {
    type File = Vec<u8>;
    type Error = std::convert::Infallible;

    fn begin(&mut self, _size: u64) -> Result<(), Self::Error> {
        self.current.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.current.extend_from_slice(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), Self::Error> {
        // The ledger has agreed to it, so it is no more than memory has.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.current.resize(self.current.len().saturating_add(len), 0);
        Ok(())
    }

    fn keeps(data: u64, holes: u64) -> u64 {
        data.saturating_add(holes)
    }

    fn finish(&mut self) -> Result<Vec<u8>, Self::Error> {
        Ok(std::mem::take(&mut self.current))
    }
}
