//! A blob stream that survives broken connections.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use situla_oci::Descriptor;
use ureq::BodyReader;

use super::error::ClientError;
use super::http::{Http, Question, Target, header};

/// Resumptions of one blob in all, however much each brought: a server that drips does not hold us for ever.
const MAX_RESUMES: u32 = 64;

/// Bytes that a connection must bring within [`super::ClientOptions::read_timeout`]. Slower than a modem of the last
/// century is no transfer but a server that keeps us waiting, one byte at a time.
const MIN_BYTES: u64 = 16 * 1024;

/// Bytes after which a resumption counts as progress.
const PROGRESS: u64 = 1024;

/// Reads a blob from a registry, asking for the rest after an interruption. Delivers at most one byte more
/// than the descriptor's size (so that the verifier sees an endless body without reading it).
pub(crate) struct ResumingBlob<'c> {
    http: &'c Http,
    target: Target,
    descriptor: Descriptor,
    what: String,
    body: Option<BodyReader<'static>>,
    position: u64,
    /// Failures since the last progress.
    n_failures: u32,
    n_resumes: u32,
    /// Where the last failure was.
    failed_at: u64,
    pace: Pace,
    lost: Lost,
}

/// The time that interruptions have taken, in all: silence before they were noticed, failed requests, and pauses.
#[derive(Debug)]
struct Lost {
    began: Instant,
    /// When the last byte came or the next was asked for, or the last loss was counted.
    since: Instant,
    lost: Duration,
}

impl Lost {
    fn new(now: Instant) -> Self {
        Self { began: now, since: now, lost: Duration::ZERO }
    }

    fn progress(&mut self, now: Instant) {
        self.since = now;
    }

    /// Counts what was lost up to now, and a pause that is to come. Tells whether that is still worth it: up to
    /// `patience`, and later up to half of the time that the transfer has taken.
    fn may_pause(&mut self, now: Instant, pause: Duration, patience: Duration) -> bool {
        self.lost = self.lost.saturating_add(now.saturating_duration_since(self.since)).saturating_add(pause);
        self.since = now.checked_add(pause).unwrap_or(now);
        self.lost <= patience.max(now.saturating_duration_since(self.began) / 2)
    }
}

/// How much a connection brings, by the time that we wait for it: not while what it brought is worked on.
#[derive(Default)]
struct Pace {
    waited: Duration,
    n_bytes: u64,
}

impl Pace {
    /// Counts what came; tells whether it is too little.
    fn is_too_slow(&mut self, waited: Duration, n_bytes: u64, window: Duration) -> bool {
        self.waited += waited;
        self.n_bytes += n_bytes;
        if self.waited < window {
            return false;
        }
        let slow = self.n_bytes < MIN_BYTES;
        *self = Self::default();
        slow
    }
}

impl<'c> ResumingBlob<'c> {
    pub(crate) fn open(
        http: &'c Http,
        target: Target,
        descriptor: Descriptor,
        what: String,
        n_attempts: u32,
    ) -> Result<Self, ClientError> {
        let mut blob = Self {
            http,
            target,
            descriptor,
            what,
            body: None,
            position: 0,
            n_failures: 0,
            n_resumes: 0,
            failed_at: 0,
            pace: Pace::default(),
            lost: Lost::new(Instant::now()),
        };
        http.with_retries(n_attempts, || blob.request())?;
        Ok(blob)
    }

    /// Asks for everything from `position` on.
    fn request(&mut self) -> Result<(), ClientError> {
        let repository = self.target.repository.as_ref().map_or("", |name| name.as_str());
        let path = format!("/v2/{repository}/blobs/{}", self.descriptor.digest);
        let from = (self.position > 0).then_some(self.position);
        let question = Question { path: &path, from, what: &self.what, ..Question::default() };
        let response = self.http.get_once(&self.target, question)?;
        let is_partial = response.status().as_u16() == 206;
        let starts_at = header(&response, "content-range").and_then(range_start);
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        self.pace = Pace::default();
        match (from, is_partial) {
            (None, false) => {}
            (Some(from), true) if starts_at == Some(from) => {}
            // Servers without ranges begin anew; what we have is skipped.
            (Some(from), false) => return self.skip(body, from),
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

    fn skip(&mut self, mut body: BodyReader<'static>, mut left: u64) -> Result<(), ClientError> {
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match self.paced(&mut body, &mut buffer[..most]) {
                Ok(0) => return Err(self.interrupted(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => left -= n as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.interrupted(error)),
            }
        }
        self.body = Some(body);
        Ok(())
    }

    fn interrupted(&self, source: io::Error) -> ClientError {
        ClientError::Interrupted { what: self.what.clone(), source }
    }

    /// Reads, and fails where next to nothing comes.
    fn paced(&mut self, body: &mut BodyReader<'static>, buf: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        let result = body.read(buf);
        let n_bytes = *result.as_ref().unwrap_or(&0) as u64;
        if self.pace.is_too_slow(began.elapsed(), n_bytes, self.http.options().read_timeout) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "next to nothing arrives"));
        }
        result
    }

    /// Tells whether another try is allowed, and waits before it.
    fn may_retry(&mut self, asked: Option<Duration>) -> bool {
        self.body = None;
        if self.position - self.failed_at >= PROGRESS {
            self.n_failures = 0;
        }
        self.failed_at = self.position;
        self.n_failures += 1;
        self.n_resumes += 1;
        if self.n_failures >= self.http.options().n_attempts.max(1) || self.n_resumes > MAX_RESUMES {
            return false;
        }
        let now = Instant::now();
        let Some(pause) = self.http.pause(self.n_failures, asked, now) else { return false };
        if !self.lost.may_pause(now, pause, self.http.options().patience) {
            return false;
        }
        std::thread::sleep(pause);
        true
    }
}

impl Read for ResumingBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // No body is longer than the largest number, so that the last byte of one that has its size is not missed.
        let left = self.descriptor.size.saturating_add(1).saturating_sub(self.position);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        if self.body.is_some() {
            // What the reader has done with what he got before is not lost.
            self.lost.progress(Instant::now());
        }
        loop {
            let Some(mut body) = self.body.take() else {
                match self.request() {
                    Ok(()) => continue,
                    Err(error) if error.is_transient() && self.may_retry(error.retry_after()) => continue,
                    Err(error) => return Err(io::Error::other(error)),
                }
            };
            match self.paced(&mut body, &mut buf[..want]) {
                Ok(0) if self.position >= self.descriptor.size => {
                    self.body = Some(body);
                    return Ok(0);
                }
                // Short of its size: the connection ended early, cleanly or not.
                Ok(0) if self.may_retry(None) => {}
                Ok(0) => return Ok(0),
                Ok(n) => {
                    self.position = self.position.saturating_add(n as u64);
                    self.lost.progress(Instant::now());
                    self.body = Some(body);
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => self.body = Some(body),
                Err(_) if self.may_retry(None) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(source) => return Err(io::Error::other(self.interrupted(source))),
            }
        }
    }
}

/// Reads the first number of `bytes 5-9/10`.
fn range_start(header: &str) -> Option<u64> {
    header.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_interruptions_take_adds_up() {
        let (second, patience) = (Duration::from_secs(1), Duration::from_secs(10));
        let began = Instant::now();
        let at = |n: u32| began + second * n;
        // Each time something comes, and then nothing for three seconds.
        let mut lost = Lost::new(began);
        let found: Vec<bool> = (1..6)
            .map(|n| {
                lost.progress(at(4 * n - 3));
                lost.may_pause(at(4 * n), Duration::ZERO, patience)
            })
            .collect();
        assert_eq!(found, [true, true, true, false, false]);
        // A long transfer may lose more, but not most of its time.
        let mut long = Lost::new(began);
        let found: Vec<bool> = (1..20)
            .map(|n| {
                long.progress(at(100 * n - 3));
                long.may_pause(at(100 * n), second, patience)
            })
            .collect();
        assert!(found.iter().all(|may| *may));
        assert!(!long.may_pause(at(1901), Duration::from_secs(2000), patience));
    }

    #[test]
    fn a_connection_that_drips_is_too_slow() {
        let (second, window) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut drip = Pace::default();
        let found: Vec<bool> = (0..10).map(|_| drip.is_too_slow(second, 1, window)).collect();
        assert_eq!(found, [false, false, false, false, false, false, false, false, false, true]);
        let mut modem = Pace::default();
        assert!((0..100).all(|_| !modem.is_too_slow(second, MIN_BYTES / 10 + 1, window)));
        // What came before the silence does not count for ever.
        let mut stalled = Pace::default();
        assert!(!stalled.is_too_slow(window, 1 << 30, window));
        assert!(stalled.is_too_slow(window, 0, window));
    }
}
