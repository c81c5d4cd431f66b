//! File descriptors: inherited ones, and all at once.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;

use crate::{checked, last_errno};

/// Calls `act` with a descriptor that the process inherited and knows by number alone. Fails with
/// `EBADF` where it is not open.
pub fn with_inherited<T>(
    fd: RawFd,
    act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    // SAFETY: F_GETFD takes any integer and changes nothing.
    checked(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, as just seen; it is borrowed for the length of this call,
    // and nothing in this process owns and closes inherited descriptors meanwhile.
    act(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Marks every descriptor from `first` on to be closed by exec: close_range(2) with
/// `CLOSE_RANGE_CLOEXEC`, Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // #define CLOSE_RANGE_CLOEXEC (1U << 2)
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: the call takes integers and closes nothing, it only sets a flag.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOEXEC) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
