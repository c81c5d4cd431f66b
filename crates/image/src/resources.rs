//! How much of the machine a conversion uses: pure arithmetic over what the edge has found out.
//!
//! What does not grow with an image (threads, queues, the windows of decoders) is planned; what does (names,
//! attributes, places of blocks) is taken from a [`Ledger`], so that an image that does not fit ends with an error
//! that names the limit, and not with the kernel's out-of-memory killer.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// One MiB.
const MIB: u64 = 1 << 20;
/// Most memory a conversion plans with, whatever the machine has: nodes are for jobs, and several conversions may run.
const MEMORY_CAP: u64 = 512 * MIB;
/// Least memory a conversion can work in: program, TLS, one thread, one layer.
const MEMORY_FLOOR: u64 = 64 * MIB;
/// What the program needs before it does anything: code, heap of the client, stacks.
const BASE: u64 = 24 * MIB;
/// A compression thread with its context and the blocks in its queue, at the levels in use.
const THREAD: u64 = 3 * MIB;
/// Most compression threads: more are not fed by one merging thread.
const MAX_THREADS: usize = 16;
/// A fetching thread with its connection, buffers and a decoder without its window.
const FETCHER: u64 = MIB;
/// Most layers fetched at the same time; registries throttle beyond.
const MAX_FETCHERS: usize = 4;
/// Largest zstd window that any layer may have: 128 MiB, the limit of `zstd --ultra` without `--long`.
pub(crate) const MAX_WINDOW: u64 = 128 * MIB;
/// Window that a decoder may have without asking: `zstd -19` uses 8 MiB, container tools 2 to 8.
const SMALL_WINDOW: u64 = 8 * MIB;

/// What the conversion may use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Compression threads.
    pub n_threads: usize,
    /// Layers fetched at the same time.
    pub n_fetchers: usize,
    /// Memory, part by part.
    pub memory: MemoryPlan,
}

/// What memory is planned for. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// All of it: the limit that errors name.
    pub total: u64,
    /// Uncompressed data of layers whose turn has not come.
    pub queues: u64,
    /// Largest zstd window of a decoder that works ahead of its turn.
    pub small_window: u64,
    /// Everything that grows with the image, and windows larger than the small one.
    pub growing: u64,
}

/// There is too little memory for any conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("converting an image needs {} MiB of memory at least, and the limit here is {} MiB", needed / MIB, limit / MIB)]
pub struct TooLittleMemory {
    /// Bytes that may be used.
    pub limit: u64,
    /// Bytes needed.
    pub needed: u64,
}

impl Resources {
    /// Plans for so many processors and bytes of memory; `None` where there is no limit.
    ///
    /// # Errors
    /// When no conversion would fit.
    pub fn plan(n_cpus: usize, memory_limit: Option<u64>) -> Result<Self, TooLittleMemory> {
        let limit = memory_limit.unwrap_or(u64::MAX);
        if limit < MEMORY_FLOOR {
            return Err(TooLittleMemory { limit, needed: MEMORY_FLOOR });
        }
        let total = limit.min(MEMORY_CAP);
        // The kernel counts sockets, page tables and pages being written as well.
        let usable = total - total / 16;
        let threads_share = usable / 8 / THREAD;
        let n_threads = n_cpus.clamp(1, MAX_THREADS).min(usize::try_from(threads_share).unwrap_or(1)).max(1);
        let small_window = SMALL_WINDOW.min(usable / 32);
        let fetchers_share = usable / 8 / (FETCHER + small_window);
        // Fetching is waiting, so one processor has use for more than one.
        let n_fetchers = usize::try_from(fetchers_share).unwrap_or(1).clamp(1, MAX_FETCHERS);
        let queues = (usable / 32).min(16 * MIB);
        let fixed = BASE
            + THREAD * n_threads as u64
            + (FETCHER + small_window) * n_fetchers as u64
            // The layer whose turn it is has a queue of its own, which is no longer.
            + 2 * queues;
        let growing = usable.saturating_sub(fixed).max(MIB);
        let memory = MemoryPlan { total, queues, small_window, growing };
        Ok(Self { n_threads, n_fetchers, memory })
    }
}

impl Default for MemoryPlan {
    /// The plan of a machine without a limit.
    fn default() -> Self {
        Resources::plan(1, None).map_or(
            // Not reached: a machine without a limit has enough.
            Self { total: MEMORY_CAP, queues: MIB, small_window: MIB, growing: MIB },
            |plan| plan.memory,
        )
    }
}

/// More memory is needed than may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the image needs more memory than it may have: {} MiB for {what}, of a limit of {} MiB in all",
    growing.div_ceil(MIB),
    total / MIB
)]
pub struct MemoryExhausted {
    /// What for.
    pub what: &'static str,
    /// Bytes for everything that grows with the image.
    pub growing: u64,
    /// Bytes that the whole conversion may use.
    pub total: u64,
}

/// An account of the memory for what grows with an image. Entries are estimates, and rather too high.
#[derive(Debug)]
pub struct Ledger {
    used: AtomicU64,
    plan: MemoryPlan,
}

impl Ledger {
    /// An account with nothing taken.
    #[must_use]
    pub fn new(plan: MemoryPlan) -> Self {
        Self { used: AtomicU64::new(0), plan }
    }

    /// Takes bytes for good, or until they are given back.
    ///
    /// # Errors
    /// When the plan does not have them; nothing is taken then.
    pub fn take(&self, bytes: u64, what: &'static str) -> Result<(), MemoryExhausted> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.plan.growing);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(_) => Err(MemoryExhausted { what, growing: self.plan.growing, total: self.plan.total }),
        }
    }

    /// Gives back bytes that were taken.
    pub fn give(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // Such an update cannot fail.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes taken at the moment.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(MemoryPlan::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_fit_into_their_limit() {
        for limit_mib in [64u64, 96, 128, 256, 512, 1024, 1 << 20] {
            for n_cpus in [0, 1, 2, 8, 64, 100_000] {
                let limit = limit_mib * MIB;
                let plan = Resources::plan(n_cpus, Some(limit)).unwrap();
                let memory = plan.memory;
                let n_threads = plan.n_threads as u64;
                let sum = BASE
                    + THREAD * n_threads
                    + (FETCHER + memory.small_window) * plan.n_fetchers as u64
                    + 2 * memory.queues
                    + memory.growing;
                assert!(sum <= limit.min(512 * MIB) * 15 / 16 + MIB, "{limit_mib} MiB, {n_cpus}: {plan:?}");
                assert!(plan.n_threads >= 1 && plan.n_threads <= n_cpus.max(1), "{plan:?}");
                assert!((1..=4).contains(&plan.n_fetchers), "{plan:?}");
                // Something must be left for the image itself.
                assert!(memory.growing >= 8 * MIB, "{limit_mib} MiB, {n_cpus}: {plan:?}");
            }
        }
        let typical = Resources::plan(1, Some(512 * MIB)).unwrap();
        assert!(typical.memory.growing > 300 * MIB, "{typical:?}");
        assert!(typical.memory.growing > MAX_WINDOW, "any window must fit in 512 MiB");
        assert_eq!(Resources::plan(2, None).unwrap().memory.total, 512 * MIB);
    }

    #[test]
    fn too_little_memory_is_named() {
        let error = Resources::plan(4, Some(63 * MIB)).unwrap_err();
        assert_eq!(error, TooLittleMemory { limit: 63 * MIB, needed: 64 * MIB });
        assert!(error.to_string().contains("63 MiB"), "{error}");
    }

    #[test]
    fn a_ledger_refuses_what_it_does_not_have() {
        let plan = MemoryPlan { total: 100 * MIB, queues: 0, small_window: 0, growing: 1000 };
        let ledger = Ledger::new(plan);
        ledger.take(600, "a").unwrap();
        let refused = ledger.take(401, "b").unwrap_err();
        assert_eq!(refused, MemoryExhausted { what: "b", growing: 1000, total: 100 * MIB });
        assert!(refused.to_string().contains("100 MiB"), "{refused}");
        ledger.take(400, "c").unwrap();
        ledger.give(600);
        assert_eq!(ledger.used(), 400);
        assert!(ledger.take(u64::MAX, "d").is_err());
    }
}
