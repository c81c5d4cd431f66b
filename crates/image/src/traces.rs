//! Files of this process that must not outlive it: temporary names and leases.
//!
//! Ordinarily their owners remove them when dropped. A process that is about to die by a signal calls
//! [`abandon`] instead: nothing is dropped then. What even that misses (`SIGKILL`, a crash) is removed by
//! the next process that works in the same place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A path, and what the file has in it where another process may have one of the same name.
type Live = (PathBuf, Option<Vec<u8>>);

static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

/// Held while a file is made that is to be gone afterwards whenever the process is abandoned; taken before [`LIVE`].
static MAKING: Mutex<()> = Mutex::new(());

/// A path that is removed if the process is abandoned while this lives.
#[derive(Debug)]
pub(crate) struct Trace(Live);

impl Trace {
    /// Registers a path; to be called before the file is made, so that none is missed.
    pub(crate) fn of(path: &Path) -> Self {
        Self::register((path.to_owned(), None))
    }

    /// Makes a file that is this process's only if it has this content. A process that is abandoned meanwhile never
    /// makes it, or removes it.
    pub(crate) fn made<T>(path: &Path, content: &[u8], make: impl FnOnce() -> T) -> (Self, T) {
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let trace = Self::register((path.to_owned(), Some(content.to_owned())));
        (trace, make())
    }

    fn register(live: Live) -> Self {
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(live.clone());
        Self(live)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = live.iter().position(|other| *other == self.0) {
            live.swap_remove(at);
        }
    }
}

/// Removes every temporary file and lease of this process, for one that is about to die. Whoever makes
/// another one afterwards waits for ever, so call nothing else of this crate.
pub fn abandon() {
    std::mem::forget(MAKING.lock().unwrap_or_else(PoisonError::into_inner));
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for (path, content) in live.iter() {
        let is_ours = |content: &Vec<u8>| fs::read(path).is_ok_and(|found| found == *content);
        if !content.as_ref().is_none_or(is_ours) {
            continue;
        }
        // Nobody is left to tell.
        if fs::remove_file(path).is_err() {
            remove_directory(path);
        }
    }
    std::mem::forget(live);
}

/// Removes a directory that other threads may still be filling.
fn remove_directory(path: &Path) {
    for _ in 0..MAX_ATTEMPTS {
        if fs::remove_dir_all(path).is_ok() || fs::symlink_metadata(path).is_err() {
            return;
        }
    }
}

/// Attempts to empty a directory that fills up again.
const MAX_ATTEMPTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_as_long_as_its_trace_lives() {
        let path = Path::new("traces-test/one");
        let known =
            || LIVE.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|(p, _)| p == path).count();
        let (first, second) = (Trace::of(path), Trace::of(path));
        assert_eq!(known(), 2);
        drop(first);
        assert_eq!(known(), 1);
        drop(second);
        assert_eq!(known(), 0);
    }
}
