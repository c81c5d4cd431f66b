//! A blob stream that survives broken connections.

use std::io::{self, Read};

use situla_oci::{Descriptor, Reference};
use ureq::BodyReader;

use super::error::ClientError;
use super::http::{Http, header};

/// Resumptions of one blob in all, however much each brought: a server that drips does not hold us for ever.
const MAX_RESUMES: u32 = 64;

/// Reads a blob from a registry, asking for the rest after an interruption. Delivers at most one byte more
/// than the descriptor's size (so that the verifier sees an endless body without reading it).
pub(crate) struct ResumingBlob<'c> {
    http: &'c Http,
    reference: Reference,
    descriptor: Descriptor,
    what: String,
    body: Option<BodyReader<'static>>,
    position: u64,
    /// Failures since the last byte arrived.
    n_failures: u32,
    n_resumes: u32,
}

impl<'c> ResumingBlob<'c> {
    pub(crate) fn open(
        http: &'c Http,
        reference: Reference,
        descriptor: Descriptor,
        what: String,
    ) -> Result<Self, ClientError> {
        let mut blob =
            Self { http, reference, descriptor, what, body: None, position: 0, n_failures: 0, n_resumes: 0 };
        http.with_retries(|| blob.request())?;
        Ok(blob)
    }

    /// Asks for everything from `position` on.
    fn request(&mut self) -> Result<(), ClientError> {
        let path = format!("/v2/{}/blobs/{}", self.reference.repository(), self.descriptor.digest);
        let from = (self.position > 0).then_some(self.position);
        let response = self.http.get_once(&self.reference, &path, None, from, &self.what)?;
        let is_partial = response.status().as_u16() == 206;
        let starts_at = header(&response, "content-range").and_then(range_start);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        match (from, is_partial) {
            (None, false) => {}
            (Some(from), true) if starts_at == Some(from) => {}
            // Servers without ranges begin anew; what we have is skipped.
            (Some(from), false) => {
                let skipped = io::copy(&mut (&mut body).take(from), &mut io::sink());
                let interrupted = |source| ClientError::Interrupted { what: self.what.clone(), source };
                if skipped.map_err(interrupted)? != from {
                    return Err(interrupted(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            (_, true) => {
                return Err(ClientError::Protocol {
                    what: self.what.clone(),
                    problem: "a part of the blob that was not asked for".to_owned(),
                });
            }
        }
        self.body = Some(body);
        Ok(())
    }

    /// Tells whether another try is allowed, and waits before it.
    fn may_retry(&mut self) -> bool {
        self.body = None;
        self.n_failures += 1;
        self.n_resumes += 1;
        if self.n_failures >= self.http.n_attempts() || self.n_resumes > MAX_RESUMES {
            return false;
        }
        self.http.pause(self.n_failures, None);
        true
    }
}

impl Read for ResumingBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (self.descriptor.size + 1).saturating_sub(self.position);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        loop {
            let Some(body) = &mut self.body else {
                match self.request() {
                    Ok(()) => continue,
                    Err(error) if error.is_transient() && self.may_retry() => continue,
                    Err(error) => return Err(io::Error::other(error)),
                }
            };
            match body.read(&mut buf[..want]) {
                Ok(0) if self.position >= self.descriptor.size => return Ok(0),
                // Short of its size: the connection ended early, cleanly or not.
                Ok(0) if self.may_retry() => {}
                Ok(0) => return Ok(0),
                Ok(n) => {
                    self.position += n as u64;
                    self.n_failures = 0;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if self.may_retry() => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(source) => {
                    return Err(io::Error::other(ClientError::Interrupted {
                        what: self.what.clone(),
                        source,
                    }));
                }
            }
        }
    }
}

/// Reads the first number of `bytes 5-9/10`.
fn range_start(header: &str) -> Option<u64> {
    header.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}
