//! Waiting for the end of a process, for a bounded time.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until the process behind a pidfd has ended; false where it has not by then. Its status is not taken.
///
/// # Errors
/// It cannot be waited for.
pub fn ends_within(pidfd: BorrowedFd<'_>, limit: Duration) -> Result<bool, Errno> {
    let begun = Instant::now();
    loop {
        // A limit that no clock can hold is none.
        let left = Timespec::try_from(limit.saturating_sub(begun.elapsed())).ok();
        match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
