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

    fn finish(&mut self) -> Result<Vec<u8>, Self::Error> {
        Ok(std::mem::take(&mut self.current))
    }
}
