//! Files of this process that must not outlive it: temporary names and leases.
//!
//! Ordinarily their owners remove them when dropped. A process that is about to die by a signal calls
//! [`abandon`] instead: nothing is dropped then. What even that misses (`SIGKILL`, a crash) is removed by
//! the next process that works in the same place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A path that is removed if the process is abandoned while this lives.
#[derive(Debug)]
pub(crate) struct Trace(PathBuf);

impl Trace {
    /// Registers a path; to be called before the file is made, so that none is missed.
    pub(crate) fn of(path: &Path) -> Self {
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = live.iter().position(|path| *path == self.0) {
            live.swap_remove(at);
        }
    }
}

/// Removes every temporary file and lease of this process, for one that is about to die. Whoever makes
/// another one afterwards waits for ever, so call nothing else of this crate.
pub fn abandon() {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for path in live.iter() {
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
            || LIVE.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|p| *p == path).count();
        let (first, second) = (Trace::of(path), Trace::of(path));
        assert_eq!(known(), 2);
        drop(first);
        assert_eq!(known(), 1);
        drop(second);
        assert_eq!(known(), 0);
    }
}
