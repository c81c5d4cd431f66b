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
/// `CLOSE_RANGE_CLOEXEC`, Linux 5.11, or one after the other.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // #define CLOSE_RANGE_CLOEXEC (1U << 2)
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: the call takes integers and closes nothing, it only sets a flag.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOEXEC) };
    if result != -1 {
        return Ok(());
    }
    match last_errno() {
        Errno::NOSYS | Errno::INVAL | Errno::PERM => {
            let first = RawFd::try_from(first).map_err(|_| Errno::INVAL)?;
            for fd in open_descriptors(first, RawFd::MAX) {
                // SAFETY: F_SETFD takes any integer; one that is closed by now gives EBADF.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        errno => Err(errno),
    }
}

/// The numbers between `first` and `last` that may be open descriptors.
pub(crate) fn open_descriptors(first: RawFd, last: RawFd) -> Vec<RawFd> {
    /// Where `/proc` is not mounted, numbers are tried up to the limit of the process, and no further
    /// than this: the kernel's default for `fs.nr_open`.
    const MOST: u64 = 1 << 20;
    let listed = std::fs::read_dir("/proc/self/fd").map(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).collect::<Vec<RawFd>>()
    });
    let all = listed.unwrap_or_else(|_| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        (0..RawFd::try_from(limit.unwrap_or(MOST).min(MOST)).unwrap_or(RawFd::MAX)).collect()
    });
    all.into_iter().filter(|fd| (first..=last).contains(fd)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn open_descriptors_are_found() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(open_descriptors(fd, fd), [fd]);
        assert!(open_descriptors(0, fd - 1).iter().all(|found| *found < fd));
    }
}
