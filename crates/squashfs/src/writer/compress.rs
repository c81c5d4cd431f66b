//! Compression of blocks, by the calling thread or by a pool of workers.
//!
//! A block's bytes depend only on its content and the level, never on the thread that compressed it
//! or on what that thread did before; results are handed back per block, so that the caller can take
//! them in the order in which it gave the blocks.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use zstd_safe::{CCtx, CParameter};

use crate::layout::DATA_RAW;
use crate::writer::error::{Result, WriteError};

/// Compresses single blocks with one reused context.
pub(crate) struct Compressor {
    context: CCtx<'static>,
}

impl Compressor {
    /// A compressor of a zstd level that was checked before.
    pub(crate) fn new(level: i32) -> Result<Self> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level)).map_err(refused)?;
        Ok(Self { context })
    }

    /// Compresses `data` into `packed`; `false` if that does not make it smaller.
    pub(crate) fn compress(&mut self, data: &[u8], packed: &mut Vec<u8>) -> Result<bool> {
        packed.clear();
        packed.reserve(packed_bound(data.len()));
        let length = self.context.compress2(packed, data).map_err(refused)?;
        Ok(length < data.len())
    }
}

/// The most that so many bytes can become.
pub(crate) fn packed_bound(n_bytes: usize) -> usize {
    zstd_safe::compress_bound(n_bytes)
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

fn refused(code: usize) -> WriteError {
    WriteError::Compress { reason: zstd_safe::get_error_name(code) }
}

/// A block on its way: its content, and room for the result.
#[derive(Debug)]
pub(crate) struct Block {
    /// Uncompressed content.
    pub(crate) data: Vec<u8>,
    /// Compressed content, unless `raw`.
    pub(crate) packed: Vec<u8>,
    /// Stored as is.
    pub(crate) raw: bool,
}

impl Block {
    /// The bytes to store.
    pub(crate) fn stored(&self) -> &[u8] {
        if self.raw { &self.data } else { &self.packed }
    }

    /// The size word of the stored bytes.
    pub(crate) fn word(&self) -> Result<u32> {
        let length = u32::try_from(self.stored().len())
            .ok()
            .filter(|length| *length < DATA_RAW)
            .ok_or(WriteError::Compress { reason: "block is too long" })?;
        Ok(if self.raw { length | DATA_RAW } else { length })
    }

    fn run(&mut self, compressor: &mut Compressor) -> Result<()> {
        self.raw = !compressor.compress(&self.data, &mut self.packed)?;
        Ok(())
    }
}

/// A block that may still be in work.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// Done by the calling thread.
    Done(Block),
    /// Given to a worker.
    Running(Receiver<Result<Block>>),
}

const LOST: WriteError = WriteError::Compress { reason: "a compression thread ended early" };

impl Ticket {
    /// Waits for the block.
    pub(crate) fn wait(self) -> Result<Block> {
        match self {
            Self::Done(block) => Ok(block),
            Self::Running(result) => result.recv().map_err(|_| LOST)?,
        }
    }

    /// The block if it is done, or the ticket again.
    pub(crate) fn poll(self) -> std::result::Result<Result<Block>, Self> {
        match self {
            Self::Done(block) => Ok(Ok(block)),
            Self::Running(result) => match result.try_recv() {
                Ok(done) => Ok(done),
                Err(TryRecvError::Empty) => Err(Self::Running(result)),
                Err(TryRecvError::Disconnected) => Ok(Err(LOST)),
            },
        }
    }
}

type Job = (Block, Sender<Result<Block>>);

/// Where blocks are compressed.
#[derive(Debug)]
pub(crate) struct Pool {
    inline: Compressor,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` workers, or none for one thread: then the caller compresses.
    pub(crate) fn start(threads: usize, level: i32) -> Result<Self> {
        let inline = Compressor::new(level)?;
        let mut pool = Self { inline, jobs: None, workers: Vec::new() };
        if threads < 2 {
            return Ok(pool);
        }
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        pool.jobs = Some(jobs);
        for _ in 0..threads {
            let mut compressor = Compressor::new(level)?;
            let queue = Arc::clone(&queue);
            let worker = move || work(&queue, &mut compressor);
            let handle = std::thread::Builder::new().name("squash".to_owned()).spawn(worker);
            pool.workers.push(handle.map_err(WriteError::Thread)?);
        }
        Ok(pool)
    }

    /// How many blocks may be in work or waiting to be written: enough to keep all workers busy while
    /// the oldest one holds the others up, and what bounds the memory of the writer.
    pub(crate) fn depth(&self) -> usize {
        self.workers.len() * 4
    }

    /// Compresses a block now, or hands it to a worker.
    pub(crate) fn submit(&mut self, mut block: Block) -> Result<Ticket> {
        let Some(jobs) = &self.jobs else {
            block.run(&mut self.inline)?;
            return Ok(Ticket::Done(block));
        };
        let (done, result) = channel();
        jobs.send((block, done)).map_err(|_| LOST)?;
        Ok(Ticket::Running(result))
    }

    /// The compressor of the calling thread, for metadata.
    pub(crate) fn inline(&mut self) -> &mut Compressor {
        &mut self.inline
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A panic in a worker has been seen as a lost block; there is nothing to add here.
            drop(worker.join());
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, compressor: &mut Compressor) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((mut block, done)) = job else { return };
        let result = block.run(compressor).map(|()| block);
        // Nobody waits for the result when the writer was dropped half-way.
        drop(done.send(result));
    }
}
