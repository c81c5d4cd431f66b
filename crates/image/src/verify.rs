//! A reader that hands out bytes and, at the end, says whether they were the promised ones.

use std::io::{self, Read};

use situla_oci::{Descriptor, Digest, Hasher};
use thiserror::Error;

/// How delivered bytes differ from their descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// The bytes have another digest.
    #[error("{what} does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was read, for example `layer 3 of 5`.
        what: String,
        /// Digest promised.
        expected: Digest,
        /// Digest of the bytes delivered.
        actual: Digest,
    },
    /// The stream ended early.
    #[error("{what} is truncated: {got} of {expected} bytes arrived")]
    Truncated {
        /// What was read.
        what: String,
        /// Size promised.
        expected: u64,
        /// Bytes delivered.
        got: u64,
    },
    /// The stream goes on after the promised size.
    #[error("{what} is longer than the {expected} bytes announced")]
    TooLong {
        /// What was read.
        what: String,
        /// Size promised.
        expected: u64,
    },
}

impl VerifyError {
    /// Finds this error inside an I/O error made by [`VerifiedReader`].
    #[must_use]
    pub fn in_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref::<Self>()
    }
}

/// Reads exactly the bytes a descriptor promises. The end of file is reported only after size and digest
/// were found right; anything else is an error that holds a [`VerifyError`].
#[derive(Debug)]
pub struct VerifiedReader<R> {
    inner: R,
    what: String,
    expected: Digest,
    size: u64,
    got: u64,
    hasher: Option<Hasher>,
    outcome: Option<VerifyError>,
}

impl<R: Read> VerifiedReader<R> {
    /// Wraps `inner`, which must deliver what `descriptor` describes.
    pub fn new(what: impl Into<String>, descriptor: &Descriptor, inner: R) -> Self {
        Self {
            inner,
            what: what.into(),
            expected: descriptor.digest.clone(),
            size: descriptor.size,
            got: 0,
            hasher: Some(Hasher::new(descriptor.digest.algorithm())),
            outcome: None,
        }
    }

    fn check_end(&mut self) -> Result<(), VerifyError> {
        if self.got < self.size {
            return Err(VerifyError::Truncated {
                what: self.what.clone(),
                expected: self.size,
                got: self.got,
            });
        }
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual == self.expected {
            return Ok(());
        }
        Err(VerifyError::DigestMismatch { what: self.what.clone(), expected: self.expected.clone(), actual })
    }

    fn fail(&mut self, error: VerifyError) -> io::Error {
        self.outcome = Some(error.clone());
        io::Error::other(error)
    }
}

impl<R: Read> Read for VerifiedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.outcome {
            return Err(io::Error::other(error.clone()));
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        if n == 0 {
            return match self.check_end() {
                Ok(()) => Ok(0),
                Err(error) => Err(self.fail(error)),
            };
        }
        self.got += n as u64;
        if self.got > self.size {
            let error = VerifyError::TooLong { what: self.what.clone(), expected: self.size };
            return Err(self.fail(error));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(promise: &[u8], delivered: &[u8]) -> Result<Vec<u8>, VerifyError> {
        let text = format!("{{\"digest\":\"{}\",\"size\":{}}}", Digest::sha256(promise), promise.len());
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        let mut out = Vec::new();
        match VerifiedReader::new("blob", &descriptor, delivered).read_to_end(&mut out) {
            Ok(_) => Ok(out),
            Err(e) => Err(VerifyError::in_io(&e).unwrap().clone()),
        }
    }

    #[test]
    fn accepts_only_the_promised_bytes() {
        assert_eq!(read_as(b"abc", b"abc").unwrap(), b"abc");
        assert_eq!(read_as(b"", b"").unwrap(), b"");
        assert!(matches!(read_as(b"abc", b"abd"), Err(VerifyError::DigestMismatch { .. })));
        assert!(matches!(read_as(b"abc", b"ab"), Err(VerifyError::Truncated { expected: 3, got: 2, .. })));
        assert!(matches!(read_as(b"abc", b"abcd"), Err(VerifyError::TooLong { .. })));
    }
}
