//! A bounded, sharded cache in which one thread loads and the others wait.
//!
//! A shard's lock is held only to look up, insert or evict: loading (I/O and decompression) runs
//! outside of it. Threads that want a value being loaded wait for that load instead of repeating it.
//! Eviction is second-chance (CLOCK). Failed loads are never kept.

use std::collections::hash_map::{Entry as MapEntry, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::Result;

/// Shards of one cache: enough that a few dozen threads rarely meet, few enough that a shard of a
/// small budget still holds several of the largest blocks.
const SHARDS: usize = 8;

/// Fixed cost of an entry beside its value, an estimate that keeps many tiny values bounded too.
const ENTRY_OVERHEAD: usize = 128;

/// How much of the budget a value takes.
pub(crate) trait Cost {
    /// Bytes of heap the value holds.
    fn cost(&self) -> usize;
}

type Slot<V> = OnceLock<Option<Arc<V>>>;

struct Entry<V> {
    slot: Arc<Slot<V>>,
    cost: usize,
    used: bool,
}

struct Shard<K, V> {
    entries: HashMap<K, Entry<V>>,
    queue: VecDeque<K>,
    bytes: usize,
}

/// Values by key, within a budget of bytes.
pub(crate) struct Cache<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
    hasher: RandomState,
    shard_budget: usize,
}

impl<K: Copy + Eq + Hash, V: Cost> Cache<K, V> {
    /// An empty cache of at most about `budget` bytes.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard { entries: HashMap::new(), queue: VecDeque::new(), bytes: 0 })
            }),
            hasher: RandomState::new(),
            shard_budget: budget / SHARDS,
        }
    }

    /// The value if it is there and loaded.
    pub(crate) fn peek(&self, key: K) -> Option<Arc<V>> {
        let mut shard = self.shard(key);
        let entry = shard.entries.get_mut(&key)?;
        entry.used = true;
        entry.slot.get()?.clone()
    }

    /// The value, loaded by `load` if it is not there.
    pub(crate) fn get_or_load(&self, key: K, load: impl Fn() -> Result<V>) -> Result<Arc<V>> {
        let slot = {
            let mut guard = self.shard(key);
            let shard = &mut *guard;
            match shard.entries.entry(key) {
                MapEntry::Occupied(mut found) => {
                    let entry = found.get_mut();
                    entry.used = true;
                    if let Some(Some(value)) = entry.slot.get() {
                        return Ok(Arc::clone(value));
                    }
                    Arc::clone(&entry.slot)
                }
                MapEntry::Vacant(vacant) => {
                    let slot = Arc::new(OnceLock::new());
                    vacant.insert(Entry { slot: Arc::clone(&slot), cost: 0, used: false });
                    shard.queue.push_back(key);
                    slot
                }
            }
        };
        let mut failure = None;
        let mut loaded_here = false;
        let value = slot.get_or_init(|| {
            loaded_here = true;
            match load() {
                Ok(value) => Some(Arc::new(value)),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        });
        match (value, failure) {
            (Some(value), _) => {
                if loaded_here {
                    self.account(key, &slot, value.cost() + ENTRY_OVERHEAD);
                }
                Ok(Arc::clone(value))
            }
            (None, Some(error)) => {
                self.forget(key, &slot);
                Err(error)
            }
            // Another thread's load failed with an error of its own: find out for ourselves.
            (None, None) => load().map(Arc::new),
        }
    }

    fn shard(&self, key: K) -> MutexGuard<'_, Shard<K, V>> {
        let hash = self.hasher.hash_one(key);
        let index = usize::from(hash.to_le_bytes()[7]) % SHARDS;
        // Nothing that can panic runs under the lock, and a shard is valid between any two statements.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self, key: K, slot: &Arc<Slot<V>>, cost: usize) {
        let mut evicted = Vec::new();
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        if let Some(entry) = shard.entries.get_mut(&key)
            && Arc::ptr_eq(&entry.slot, slot)
            && entry.cost == 0
        {
            entry.cost = cost;
            shard.bytes += cost;
        }
        // Ends: `bytes` over the budget means that an entry with a cost is in the queue, and one
        // full turn clears every `used` bit.
        while shard.bytes > self.shard_budget
            && let Some(oldest) = shard.queue.pop_front()
        {
            let MapEntry::Occupied(mut found) = shard.entries.entry(oldest) else { continue };
            let entry = found.get_mut();
            if entry.used || entry.cost == 0 {
                entry.used = false;
                shard.queue.push_back(oldest);
            } else {
                shard.bytes -= entry.cost;
                evicted.push(found.remove());
            }
        }
        drop(guard);
        // The values are freed here, after the lock.
        drop(evicted);
    }

    fn forget(&self, key: K, slot: &Arc<Slot<V>>) {
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        if shard.entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.slot, slot)) {
            shard.entries.remove(&key);
            if let Some(place) = shard.queue.iter().position(|queued| *queued == key) {
                shard.queue.remove(place);
            }
        }
    }
}

impl<K, V> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shard_budget", &self.shard_budget).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    impl Cost for Vec<u8> {
        fn cost(&self) -> usize {
            self.len()
        }
    }

    fn held(cache: &Cache<u64, Vec<u8>>) -> usize {
        cache.shards.iter().map(|shard| shard.lock().unwrap().bytes).sum()
    }

    #[test]
    fn stays_within_its_budget() {
        let cache = Cache::new(64 << 10);
        for key in 0..10_000u64 {
            let value = cache.get_or_load(key % 700, || Ok(vec![1u8; 1000])).unwrap();
            assert_eq!(value.len(), 1000);
            assert!(held(&cache) <= 64 << 10);
        }
        assert!(held(&cache) > 32 << 10);
    }

    #[test]
    fn keeps_no_failures() {
        let cache: Cache<u64, Vec<u8>> = Cache::new(1 << 20);
        for _ in 0..3 {
            assert!(cache.get_or_load(1, || Err(Error::NotSquashfs)).is_err());
        }
        assert!(cache.peek(1).is_none());
        assert!(cache.shards.iter().all(|shard| shard.lock().unwrap().queue.is_empty()));
        assert_eq!(*cache.get_or_load(1, || Ok(vec![7])).unwrap(), [7]);
        assert_eq!(*cache.peek(1).unwrap(), [7]);
    }

    #[test]
    fn loads_once_for_many_threads() {
        let cache: Cache<u64, Vec<u8>> = Cache::new(1 << 20);
        let loads = AtomicUsize::new(0);
        let start = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let value = cache.get_or_load(5, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        Ok(vec![9; 10])
                    });
                    assert_eq!(*value.unwrap(), [9; 10]);
                });
            }
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }
}
