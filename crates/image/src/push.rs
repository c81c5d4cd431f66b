//! From an image to a registry.
//!
//! An image of another registry, a layout or an archive goes as it is, and so keeps its digest; a file or directory
//! goes as one layer ([`crate::BuiltImage`]). What is sent is held against its digests on the way, and the last byte of
//! a blob is not sent before they were found right: whatever is wrong here does not become whole there.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

use situla_oci::{Descriptor, Digest, Platform, Repository, Tag};
use thiserror::Error;

use crate::client::{Arrival, Blob, Bytes, Client, ClientError, Destination, Route};
use crate::convert::resolved;
use crate::file_error::FileError;
use crate::progress::{Event, Progress};
use crate::source::{ImageSource, MANIFEST_TYPE, ResolveError, resolve};
use crate::verify::VerifiedReader;

/// Blobs sent at the same time. More help against the pauses between them, not against a line that is full.
const N_SENDERS: usize = 4;

/// Where an image is pushed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// The repository, and how its registry is spoken to.
    pub route: Route,
    /// The tag that the image gets there; one that is there moves.
    pub tag: Tag,
}

impl std::fmt::Display for PushTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.route.registry, self.route.repository.as_str(), self.tag.as_str())
    }
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Number of layers.
    pub n_layers: usize,
    /// Bytes of configuration and layers, each counted once.
    pub bytes: u64,
    /// Of these, what had to be sent.
    pub bytes_sent: u64,
    /// Blobs that were there already.
    pub n_present: usize,
    /// Blobs that the registry has taken from another repository.
    pub n_mounted: usize,
}

/// Why an image was not pushed.
#[derive(Debug, Error)]
pub enum PushError {
    /// The source's name does not lead to a usable image.
    #[error(transparent)]
    Resolve(ResolveError),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The registry does not take it, or the source fails while it is sent.
    #[error("cannot push to '{target}'")]
    Registry {
        /// Where to.
        target: String,
        /// The cause.
        #[source]
        source: ClientError,
    },
}

impl PushError {
    pub(crate) fn at(target: &PushTarget) -> impl FnOnce(ClientError) -> Self {
        let target = target.to_string();
        |source| Self::Registry { target, source }
    }
}

/// Pushes the image for `platform`. Blobs that the repository `from` of the same registry has are not sent.
///
/// # Errors
/// When the image cannot be had, is not what its digests promise, or the registry does not take it.
pub fn push_image(
    client: &Client,
    source: &dyn ImageSource,
    platform: &Platform,
    target: &PushTarget,
    from: Option<&Repository>,
    progress: &dyn Progress,
) -> Result<Pushed, PushError> {
    let image = resolve(source, platform).map_err(PushError::Resolve)?;
    progress.event(resolved(&image.digest, &image.manifest));
    let destination = client.destination(&target.route, from);
    let layers = &image.manifest.layers;
    let mut all: Vec<Sending<'_>> = Vec::new();
    for (idx, layer) in layers.iter().enumerate() {
        let what = format!("layer {} of {}", idx + 1, layers.len());
        match all.iter_mut().find(|other| other.descriptor.digest == layer.digest) {
            Some(known) => known.layers.push(idx),
            None => all.push(Sending::new(From::Source(source), layer, what, vec![idx], progress)),
        }
    }
    let (config, bytes) = (&image.manifest.config, From::Memory(&image.config_bytes));
    if all.iter().all(|layer| layer.descriptor.digest != config.digest) {
        all.push(Sending::new(bytes, config, "the image configuration".to_owned(), Vec::new(), progress));
    }
    let arrivals = send_all(&destination, &all).map_err(PushError::at(target))?;
    let media_type = image.manifest.media_type.as_deref().unwrap_or(MANIFEST_TYPE);
    destination
        .put_manifest(target.tag.as_str(), media_type, &image.manifest_bytes, &image.digest)
        .map_err(PushError::at(target))?;
    Ok(summed(image.digest, layers.len(), &all, &arrivals))
}

/// What all these blobs come to.
pub(crate) fn summed(
    manifest_digest: Digest,
    n_layers: usize,
    all: &[Sending<'_>],
    arrivals: &[Arrival],
) -> Pushed {
    let count = |wanted| arrivals.iter().filter(|arrival| **arrival == wanted).count();
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    let sent = all.iter().zip(arrivals).filter(|(_, arrival)| **arrival == Arrival::Sent);
    Pushed {
        manifest_digest,
        n_layers,
        bytes: sum(&mut all.iter().map(|blob| blob.descriptor.size)),
        bytes_sent: sum(&mut sent.map(|(blob, _)| blob.descriptor.size)),
        n_present: count(Arrival::Present),
        n_mounted: count(Arrival::Mounted),
    }
}

/// Where the bytes of a blob are.
#[derive(Clone, Copy)]
pub(crate) enum From<'s> {
    /// In an image.
    Source(&'s dyn ImageSource),
    /// In an open file.
    File(&'s std::fs::File),
    /// Here.
    Memory(&'s [u8]),
}

/// A blob on its way.
pub(crate) struct Sending<'s> {
    from: From<'s>,
    pub(crate) descriptor: &'s Descriptor,
    what: String,
    /// The layers that it is.
    layers: Vec<usize>,
    progress: &'s dyn Progress,
    /// Bytes that were reported: what is sent again is no progress.
    reported: AtomicU64,
}

impl<'s> Sending<'s> {
    pub(crate) fn new(
        from: From<'s>,
        descriptor: &'s Descriptor,
        what: String,
        layers: Vec<usize>,
        progress: &'s dyn Progress,
    ) -> Self {
        Self { from, descriptor, what, layers, progress, reported: AtomicU64::new(0) }
    }

    /// Reports that so many bytes have gone, if that is news.
    fn reached(&self, position: u64) {
        let before = self.reported.fetch_max(position, Relaxed);
        if let Some(layer_idx) = self.layers.first().copied()
            && position > before
        {
            self.progress.event(Event::Fetched { layer_idx, bytes: position - before });
        }
    }
}

impl Bytes for Sending<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let raw: Box<dyn Read + '_> = match self.from {
            From::Source(source) => source.open_layer(&self.what, self.descriptor)?,
            From::File(file) => Box::new(crate::targets::FromStart { file, at: 0 }),
            From::Memory(bytes) => Box::new(bytes),
        };
        let verified = VerifiedReader::new(&self.what, self.descriptor, raw);
        Ok(Box::new(Counted { inner: HeldBack::new(verified), blob: self, position: 0 }))
    }
}

/// Makes sure that all blobs are there; tells how each has come to be.
pub(crate) fn send_all(
    destination: &Destination<'_>,
    all: &[Sending<'_>],
) -> Result<Vec<Arrival>, ClientError> {
    let next = AtomicUsize::new(0);
    let outcome: Mutex<Result<Vec<(usize, Arrival)>, ClientError>> = Mutex::new(Ok(Vec::new()));
    let failed = AtomicBool::new(false);
    let lock = || outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while lock().is_ok()
            && let index = next.fetch_add(1, Relaxed)
            && let Some(blob) = all.get(index)
        {
            let (descriptor, what) = (blob.descriptor, blob.what.as_str());
            let bytes = UntilFailure { blob, failed: &failed };
            match destination.put_blob(Blob { descriptor, what, bytes: &bytes }) {
                Ok(arrival) => {
                    blob.reached(descriptor.size);
                    for layer_idx in blob.layers.iter().copied() {
                        blob.progress.event(Event::LayerDone { layer_idx });
                    }
                    if let Ok(arrivals) = &mut *lock() {
                        arrivals.push((index, arrival));
                    }
                }
                Err(error) => {
                    let mut outcome = lock();
                    // The first one tells most.
                    if outcome.is_ok() {
                        *outcome = Err(error);
                    }
                    // Not before it is known why: what the others fail for then is no reason.
                    failed.store(true, Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..N_SENDERS.min(all.len()) {
            // Where there can be no more threads the others do it.
            let _ = thread::Builder::new().name("push".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    let mut arrivals = outcome.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    arrivals.sort_by_key(|(index, _)| *index);
    Ok(arrivals.into_iter().map(|(_, arrival)| arrival).collect())
}

/// The bytes of a blob, as long as nothing has failed: what is sent after that is for nothing.
struct UntilFailure<'b> {
    blob: &'b Sending<'b>,
    failed: &'b AtomicBool,
}

impl Bytes for UntilFailure<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Stopping { inner: self.blob.open()?, failed: self.failed }))
    }
}

struct Stopping<'b, R> {
    inner: R,
    failed: &'b AtomicBool,
}

impl<R: Read> Read for Stopping<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed.load(Relaxed) {
            return Err(io::Error::other("another blob could not be sent"));
        }
        self.inner.read(buf)
    }
}

/// Tells how much of a blob has gone.
struct Counted<'b, R> {
    inner: R,
    blob: &'b Sending<'b>,
    position: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        self.blob.reached(self.position);
        Ok(n)
    }
}

/// Gives the last byte only when the end was reached without an error: who counts bytes never has all of a stream that
/// turns out to be wrong.
struct HeldBack<R> {
    inner: R,
    held: Option<u8>,
    ended: bool,
}

impl<R: Read> HeldBack<R> {
    fn new(inner: R) -> Self {
        Self { inner, held: None, ended: false }
    }
}

impl<R: Read> Read for HeldBack<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.ended {
            return Ok(0);
        }
        let mut next = [0; 1];
        let held = match self.held {
            Some(held) => held,
            None if self.inner.read(&mut next)? == 0 => {
                self.ended = true;
                return Ok(0);
            }
            None => *self.held.insert(next[0]),
        };
        // What follows the byte that is given first; the last of it is held in its stead.
        let n = if buf.len() > 1 { self.inner.read(&mut buf[1..])? } else { self.inner.read(&mut next)? };
        self.held = match n {
            0 => None,
            n => Some(buf.get(n).copied().unwrap_or(next[0])),
        };
        self.ended = n == 0;
        buf[0] = held;
        Ok(n.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its parts one by one, and fails in the end if it is to.
    struct Parts<'p>(Vec<&'p [u8]>, bool);

    impl Read for Parts<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let Some(part) = self.0.first_mut() else {
                return if self.1 { Err(io::Error::other("wrong")) } else { Ok(0) };
            };
            let n = part.read(buf)?;
            if part.is_empty() {
                self.0.remove(0);
            }
            Ok(n)
        }
    }

    #[test]
    fn the_last_byte_comes_after_the_end_was_seen() {
        for parts in [&[][..], &[&b"a"[..]], &[b"ab"], &[b"a", b"b", b"c"], &[b"abcdefg", b"h", b"ijk"]] {
            let whole = parts.concat();
            for size in [1, 2, 3, 7, 64] {
                for fails in [false, true] {
                    let mut reader = HeldBack::new(Parts(parts.to_vec(), fails));
                    let (mut found, mut buf) = (Vec::new(), vec![0; size]);
                    let end = loop {
                        match reader.read(&mut buf) {
                            Ok(0) => break false,
                            Ok(n) => found.extend_from_slice(&buf[..n]),
                            Err(_) => break true,
                        }
                    };
                    assert_eq!(end, fails, "{parts:?} {size}");
                    let want = if fails { &whole[..whole.len().saturating_sub(1)] } else { &whole };
                    assert_eq!(found, want, "{parts:?} {size}");
                }
            }
        }
    }
}
