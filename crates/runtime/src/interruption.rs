//! Hearing of a request to end while this process waits for another one.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;

use rustix::io::Errno;
use situla_sys::{
    SignalFd, SignalInfo, SignalMask, begin_with_mask, block_signals, is_ignored, set_signal_mask,
};

/// SIGHUP, SIGINT and SIGTERM: a terminal that is closed, Ctrl-C, and how Slurm asks to end.
const ASKING: [i32; 3] = [1, 2, 15];

/// As long as this lives, a signal that asks this process to end does not end it, but can be read here; one that it
/// ignores (nohup) stays ignored. For a process with one thread: masks are of threads.
#[derive(Debug)]
pub struct Interruption {
    signals: SignalFd,
    before: Option<SignalMask>,
}

impl Interruption {
    /// Begins to hold such signals back.
    ///
    /// # Errors
    /// They cannot be blocked or read; then they end the process as ever.
    pub fn watch() -> Result<Self, Errno> {
        let mask = SignalMask::of(ASKING.into_iter().filter(|signal| !is_ignored(*signal)));
        let before = block_signals(&mask)?;
        match SignalFd::new(&mask) {
            Ok(signals) => Ok(Interruption { signals, before: Some(before) }),
            Err(errno) => set_signal_mask(&before).and(Err(errno)),
        }
    }

    /// Lets a program that is started meanwhile have these signals as ever.
    pub fn spare(&self, command: &mut Command) {
        if let Some(before) = self.before {
            begin_with_mask(command, before);
        }
    }

    /// The signal that has come, if one has.
    #[must_use]
    pub fn heard(&self) -> Option<SignalInfo> {
        self.signals.next().ok().flatten()
    }

    /// Goes on holding signals back, for a process that has a word to say before it ends itself by
    /// [`die_by`](situla_sys::die_by): another one must not end it before.
    pub fn keep(mut self) {
        self.before = None;
    }
}

impl AsFd for Interruption {
    /// Is readable once a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        // One that nobody has read ends the process now.
        let _ = self.before.as_ref().map(set_signal_mask);
    }
}
