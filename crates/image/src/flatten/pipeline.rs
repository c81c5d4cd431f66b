//! Fetching, verifying and decompressing layers in parallel while they are merged one by one.
//!
//! Each worker takes the highest layer not yet taken and pushes its uncompressed bytes into that layer's
//! bounded channel; the merging thread empties the channels from the top down. A worker ahead of the merge
//! stops when its channel is full, or when all those ahead have filled the room that they share
//! ([`Turns`]), so memory stays bounded whatever the sizes and the number of layers. The layer whose turn it
//! is always has a worker, which waits for nobody, so there is no deadlock.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use situla_oci::{Descriptor, Digest, Hasher, LayerKind};
use thiserror::Error;

use super::merge::{Level, MergeError, Merger};
use super::turns::{Room, Turns};
use crate::layer::{TarError, TarReader, Windows, decompress_within, too_large};
use crate::progress::{Event, Progress};
use crate::resources::{Ledger, MAX_WINDOW, MemoryExhausted, MemoryPlan};
use crate::sink::FileSink;
use crate::tree::Tree;
use crate::verify::{VerifiedReader, VerifyError};
use crate::{Addition, ImageParts};

/// Uncompressed bytes handed over at a time.
const CHUNK: usize = 256 * 1024;
/// Emptied chunks that are kept to be filled again: whoever is ahead of the merge takes what it has just given back.
const SPARE: usize = 2;
/// Most chunks waiting in one layer's queue.
const QUEUE: usize = 32;
/// Uncompressed bytes of all layers that are taken however small they are when compressed.
const ALWAYS_TAKEN: u64 = 16 << 30;
/// How much larger than its layers the rest may be: archives of programs and data are 2 to 10 times as large, and
/// gzip cannot do more than 1032, which only a bomb needs.
const MAX_RATIO: u64 = 200;
/// Uncompressed bytes of all layers that are never taken.
const NEVER_TAKEN: u64 = 4 << 40;

/// Where layer blobs come from.
pub trait LayerSource: Sync {
    /// Opens the blob of `descriptor`. The bytes need not be verified. An error inside the stream is
    /// reported as it is.
    ///
    /// # Errors
    /// When the blob cannot be had.
    fn open_layer(&self, what: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>>;
}

/// Settings of [`flatten`].
#[derive(Debug, Clone, Copy)]
pub struct FlattenOptions {
    /// Layers fetched at the same time; at least one is.
    pub n_fetchers: usize,
    /// Memory to work in.
    pub memory: MemoryPlan,
    /// Uncompressed bytes that are taken whatever they were compressed to.
    pub always_taken: u64,
}

impl Default for FlattenOptions {
    fn default() -> Self {
        Self { n_fetchers: 4, memory: MemoryPlan::default(), always_taken: ALWAYS_TAKEN }
    }
}

/// Why an image cannot be flattened.
#[derive(Debug, Error)]
pub enum FlattenError {
    /// Bytes delivered are not those promised.
    #[error("{0}")]
    Verify(Box<VerifyError>),
    /// The uncompressed layer is not the one that the configuration names.
    #[error("{what} does not match its diff-id: expected {expected}, got {actual}")]
    DiffId {
        /// Which layer.
        what: String,
        /// Digest in the configuration.
        expected: Digest,
        /// Digest of the uncompressed bytes.
        actual: Digest,
    },
    /// The configuration has another number of layers than the manifest.
    #[error("image configuration lists {diff_ids} layers but the manifest has {layers}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
    /// A layer's media type is not that of a file system layer.
    #[error("{what} is not a file system layer (media type '{media_type}')")]
    NotALayer {
        /// Which layer.
        what: String,
        /// Its media type.
        media_type: String,
    },
    /// Fetching failed.
    #[error("cannot fetch {what}")]
    Fetch {
        /// Which layer.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The compressed data is damaged although its digest is right.
    #[error("cannot decompress {what}")]
    Decompress {
        /// Which layer.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The layers are larger than any real ones.
    #[error(
        "{what} makes the image larger than {limit} bytes when decompressed, which {compressed} compressed bytes \
         of no real image are"
    )]
    TooLarge {
        /// The layer that did.
        what: String,
        /// The most bytes that are taken.
        limit: u64,
        /// Bytes of all layers as they are compressed.
        compressed: u64,
    },
    /// The decoder of a layer needs more memory than there is.
    #[error("cannot decompress {what}")]
    Memory {
        /// Which layer.
        what: String,
        /// The limit.
        #[source]
        source: MemoryExhausted,
    },
    /// The layer's archive, or its relation to the other layers, is broken.
    #[error("cannot merge {what}")]
    Merge {
        /// Which layer.
        what: String,
        /// The cause.
        #[source]
        source: MergeError,
    },
    /// A thread could not be started.
    #[error("cannot start a thread to fetch layers")]
    Thread(#[source] io::Error),
}

/// What [`flatten`] gives.
#[derive(Debug)]
pub struct Flattened<F> {
    /// The tree.
    pub tree: Tree<F>,
    /// Compressed bytes fetched.
    pub n_fetched: u64,
}

enum Message<'t> {
    Chunk(Vec<u8>, Option<Room<'t>>),
    End(Result<(), FlattenError>),
}

/// What all workers share.
struct Shared<'a> {
    source: &'a dyn LayerSource,
    ledger: &'a Ledger,
    turns: &'a Turns,
    memory: MemoryPlan,
    spare: &'a Spare,
    /// Uncompressed bytes so far, their limit, and all compressed bytes.
    plain: AtomicU64,
    plain_limit: u64,
    compressed: u64,
}

/// Chunks to be filled again: their pages are there, and need not be cleared once more.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare {
            Some(mut chunk) => {
                chunk.resize(CHUNK, 0);
                chunk
            }
            None => vec![0; CHUNK],
        }
    }

    fn give(&self, chunk: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.capacity() >= CHUNK && spare.len() < SPARE {
            spare.push(chunk);
        }
    }
}

struct Job<'a> {
    layer_idx: usize,
    /// Its place in the order of merging, the top being 0.
    position: usize,
    what: String,
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
}

/// Merges the layers of an image, handing file contents to `sink`. `additions` are put above the layers
/// (files this program adds) and `fallbacks` below them (directories that must exist).
///
/// # Errors
/// When a layer cannot be had, is not what the manifest promises, or makes no sense; the sink is then in an
/// undefined state and its output must be thrown away.
pub fn flatten<S: FileSink>(
    source: &dyn LayerSource,
    image: &ImageParts,
    additions: &[Addition],
    fallbacks: &[Addition],
    sink: &mut S,
    options: FlattenOptions,
    progress: &dyn Progress,
) -> Result<Flattened<S::File>, FlattenError> {
    let jobs = plan_jobs(image)?;
    let n_layers = u32::try_from(jobs.len()).unwrap_or(u32::MAX - 2);
    let ledger = Ledger::new(options.memory);
    let mut merger = Merger::new(sink, &ledger, Level(n_layers + 1));
    let merge = |what: &str, source| FlattenError::Merge { what: what.to_owned(), source };
    add_all(&mut merger, Level(n_layers + 1), additions).map_err(|e| merge("added files", e))?;

    let compressed = image.manifest.layers.iter().map(|l| l.size).fold(0, u64::saturating_add);
    let chunks = usize::try_from(options.memory.queues / CHUNK as u64).unwrap_or(usize::MAX);
    let (turns, spare) = (Turns::new(chunks), Spare::default());
    let shared = Shared {
        source,
        ledger: &ledger,
        turns: &turns,
        memory: options.memory,
        spare: &spare,
        plain: AtomicU64::new(0),
        plain_limit: compressed.saturating_mul(MAX_RATIO).max(options.always_taken).min(NEVER_TAKEN),
        compressed,
    };
    let queue = chunks.clamp(1, QUEUE);
    let next = AtomicUsize::new(0);
    let mut receivers = Vec::new();
    let mut senders = Vec::new();
    for _ in &jobs {
        let (sender, receiver) = sync_channel(queue);
        senders.push(Mutex::new(Some(sender)));
        receivers.push(receiver);
    }
    thread::scope(|scope| -> Result<(), FlattenError> {
        // Both moved in, so that an early return ends all waiting of the workers.
        let _cancel = turns.cancel_on_drop();
        let receivers = receivers;
        for _ in 0..options.n_fetchers.clamp(1, jobs.len().max(1)) {
            let worker = || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let sender = senders[job.position].lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(sender) = sender {
                        run_job(&shared, job, &sender, progress);
                    }
                }
            };
            thread::Builder::new()
                .name("layer".to_owned())
                .spawn_scoped(scope, worker)
                .map_err(FlattenError::Thread)?;
        }
        for (job, receiver) in jobs.iter().zip(receivers) {
            turns.give_to(job.position);
            let level = Level(n_layers - u32::try_from(job.position).unwrap_or(n_layers));
            consume(job, receiver, &spare, |tar| merger.layer(level, tar))?;
            if merger.end_layer().map_err(|e| merge(&job.what, e))? {
                let (sender, receiver) = sync_channel(queue);
                let shared = &shared;
                thread::Builder::new()
                    .name("layer".to_owned())
                    .spawn_scoped(scope, move || run_job(shared, job, &sender, &()))
                    .map_err(FlattenError::Thread)?;
                consume(job, receiver, shared.spare, |tar| merger.rescue(tar))?;
            }
            progress.event(Event::LayerDone { layer_idx: job.layer_idx });
        }
        Ok(())
    })?;
    add_all(&mut merger, Level(0), fallbacks).map_err(|e| merge("added directories", e))?;
    let tree = merger.finish().map_err(|e| merge("the layers", e))?;
    Ok(Flattened { tree, n_fetched: compressed })
}

/// Lists the layers, top first.
fn plan_jobs(image: &ImageParts) -> Result<Vec<Job<'_>>, FlattenError> {
    let layers = &image.manifest.layers;
    let diff_ids = &image.config.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        return Err(FlattenError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
    }
    let mut jobs = Vec::with_capacity(layers.len());
    for (layer_idx, (descriptor, diff_id)) in layers.iter().zip(diff_ids).enumerate().rev() {
        let what = format!("layer {} of {} ({})", layer_idx + 1, layers.len(), descriptor.digest);
        if LayerKind::parse(&descriptor.media_type) == LayerKind::NotALayer {
            let media_type = descriptor.media_type.chars().take(100).collect();
            return Err(FlattenError::NotALayer { what, media_type });
        }
        jobs.push(Job { layer_idx, position: jobs.len(), what, descriptor, diff_id });
    }
    Ok(jobs)
}

fn add_all<S: FileSink>(
    merger: &mut Merger<'_, S>,
    level: Level,
    additions: &[Addition],
) -> Result<(), MergeError> {
    merger.begin_layer(level);
    for addition in additions {
        merger.entry(addition.entry.clone(), &mut addition.content.as_slice())?;
    }
    Ok(())
}

/// Runs a layer's parse, then drains its stream to the end, so that every byte is verified. An error of
/// the stream explains an error of the parse and is preferred to it.
fn consume<'t>(
    job: &Job<'_>,
    receiver: Receiver<Message<'t>>,
    spare: &'t Spare,
    parse: impl FnOnce(&mut TarReader<ChannelReader<'t>>) -> Result<(), MergeError>,
) -> Result<(), FlattenError> {
    let mut tar = TarReader::new(ChannelReader { receiver, spare, chunk: Vec::new(), at: 0, end: None });
    let parsed = parse(&mut tar);
    let mut reader = tar.into_inner();
    if let Err(source @ (MergeError::Sink(_) | MergeError::Memory(_))) = parsed {
        // The output is broken, or there is no room for it: nothing more to learn from the layer.
        return Err(FlattenError::Merge { what: job.what.clone(), source });
    }
    reader.drain();
    match (reader.end, parsed) {
        (Some(Err(stream)), _) => Err(stream),
        (_, Err(source)) => Err(FlattenError::Merge { what: job.what.clone(), source }),
        (Some(Ok(())), Ok(())) => Ok(()),
        (None, Ok(())) => Err(FlattenError::Merge {
            what: job.what.clone(),
            source: MergeError::Tar(TarError::UnexpectedEnd),
        }),
    }
}

struct ChannelReader<'t> {
    receiver: Receiver<Message<'t>>,
    spare: &'t Spare,
    chunk: Vec<u8>,
    at: usize,
    end: Option<Result<(), FlattenError>>,
}

impl ChannelReader<'_> {
    /// Gets the next chunk; false at the end, good or bad.
    fn refill(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        match self.receiver.recv() {
            Ok(Message::Chunk(chunk, _room)) => {
                self.spare.give(std::mem::replace(&mut self.chunk, chunk));
                self.at = 0;
                true
            }
            Ok(Message::End(result)) => {
                self.end = Some(result);
                false
            }
            // The worker died; `end` stays empty and the layer counts as unfinished.
            Err(_) => false,
        }
    }

    fn drain(&mut self) {
        while self.refill() {}
    }
}

impl Read for ChannelReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = buf.len().min(there.len());
        buf[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for ChannelReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.refill() {
            return match &self.end {
                Some(Ok(())) => Ok(&[]),
                _ => Err(io::Error::other("the layer's stream failed")),
            };
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

fn run_job<'t>(
    shared: &Shared<'t>,
    job: &Job<'_>,
    sender: &SyncSender<Message<'t>>,
    progress: &dyn Progress,
) {
    let result = stream_layer(shared, job, sender, progress);
    // If nobody listens any more, nobody wants to know.
    let _ = sender.send(Message::End(result));
}

fn stream_layer<'t>(
    shared: &Shared<'t>,
    job: &Job<'_>,
    sender: &SyncSender<Message<'t>>,
    progress: &dyn Progress,
) -> Result<(), FlattenError> {
    let what = || job.what.clone();
    let fetch = |source: io::Error| match VerifyError::in_io(&source) {
        Some(error) => FlattenError::Verify(Box::new(error.clone())),
        None => FlattenError::Fetch { what: what(), source },
    };
    let raw = shared.source.open_layer(&job.what, job.descriptor).map_err(fetch)?;
    let counted = Counted { inner: raw, layer_idx: job.layer_idx, progress };
    let mut verified = VerifiedReader::new(what(), job.descriptor, counted);
    let mut hasher = Hasher::new(job.diff_id.algorithm());
    let unpacked = pump(shared, job.position, &mut verified, &mut hasher, sender);
    // Of these, the rest of the layer can explain nothing, and a bomb is to end here.
    match unpacked {
        Err(PumpError::NobodyListens) => return Ok(()),
        Err(PumpError::TooLarge) => {
            let (limit, compressed) = (shared.plain_limit, shared.compressed);
            return Err(FlattenError::TooLarge { what: what(), limit, compressed });
        }
        Err(PumpError::Read(ref source)) => {
            if let Some(source) = memory_in(source) {
                return Err(FlattenError::Memory { what: what(), source });
            }
        }
        Ok(()) => {}
    }
    // The decoder stops at its own end mark or its first complaint; the digest is over all bytes, and a
    // wrong one is the better explanation.
    io::copy(&mut verified, &mut io::sink()).map_err(fetch)?;
    if let Err(PumpError::Read(source)) = unpacked {
        return Err(FlattenError::Decompress { what: what(), source });
    }
    let actual = hasher.finish();
    if actual == *job.diff_id {
        Ok(())
    } else {
        Err(FlattenError::DiffId { what: what(), expected: job.diff_id.clone(), actual })
    }
}

fn memory_in(error: &io::Error) -> Option<MemoryExhausted> {
    error.get_ref()?.downcast_ref::<MemoryExhausted>().copied()
}

enum PumpError {
    Read(io::Error),
    TooLarge,
    NobodyListens,
}

/// The windows of one layer's decoder: small ones are planned for, large ones come one at a time, when it is the
/// layer's turn, and from the ledger.
struct LayerWindows<'t> {
    turns: &'t Turns,
    ledger: &'t Ledger,
    position: usize,
    small: u64,
    /// Bytes taken from the ledger. A decoder keeps its largest window.
    taken: u64,
}

impl Windows for LayerWindows<'_> {
    fn ask(&mut self, bytes: u64) -> io::Result<()> {
        if bytes <= self.small {
            return Ok(());
        }
        if bytes > MAX_WINDOW {
            return Err(too_large(bytes, MAX_WINDOW));
        }
        self.turns.wait_for(self.position).map_err(|_| io::Error::other("the conversion has ended"))?;
        if bytes > self.taken {
            self.ledger.take(bytes - self.taken, "the window of a zstd layer").map_err(io::Error::other)?;
            self.taken = bytes;
        }
        Ok(())
    }
}

impl Drop for LayerWindows<'_> {
    fn drop(&mut self) {
        self.ledger.give(self.taken);
    }
}

fn pump<'t, R: Read + Send>(
    shared: &Shared<'t>,
    position: usize,
    verified: &mut R,
    hasher: &mut Hasher,
    sender: &SyncSender<Message<'t>>,
) -> Result<(), PumpError> {
    let small = shared.memory.small_window;
    let windows = LayerWindows { turns: shared.turns, ledger: shared.ledger, position, small, taken: 0 };
    let (_, mut plain) = decompress_within(verified, windows).map_err(PumpError::Read)?;
    loop {
        // Before the memory is taken, not after.
        let room = shared.turns.room(position).map_err(|_| PumpError::NobodyListens)?;
        let mut chunk = shared.spare.take();
        let mut have = 0;
        let mut ended = false;
        while have < CHUNK {
            match plain.read(&mut chunk[have..]) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(PumpError::Read(e)),
            }
        }
        let total = shared.plain.fetch_add(have as u64, Ordering::Relaxed).saturating_add(have as u64);
        if total > shared.plain_limit {
            return Err(PumpError::TooLarge);
        }
        chunk.truncate(have);
        hasher.update(&chunk);
        if have > 0 && sender.send(Message::Chunk(chunk, room)).is_err() {
            return Err(PumpError::NobodyListens);
        }
        if ended {
            return Ok(());
        }
    }
}

struct Counted<'a, R> {
    inner: R,
    layer_idx: usize,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.event(Event::Fetched { layer_idx: self.layer_idx, bytes: n as u64 });
        Ok(n)
    }
}
