//! File descriptors: inherited ones, and all at once.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, fstatfs, openat, statat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

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
    /// Where `/proc` does not say, numbers are tried up to the limit of the process, and no further
    /// than this: the kernel's default for `fs.nr_open`.
    const MOST: u64 = 1 << 20;
    let all = listed(c"/proc/self/fd").unwrap_or_else(|| {
        // The hard limit: the soft one can have been lowered below what was open then.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        (0..RawFd::try_from(limit.unwrap_or(MOST).min(MOST)).unwrap_or(RawFd::MAX)).collect()
    });
    all.into_iter().filter(|fd| (first..=last).contains(fd)).collect()
}

/// The descriptors of this process as `directory` lists them, if that is the kernel's list of them. In a container
/// something else can be mounted in its place, and what its owner leaves out of it would stay open.
fn listed(directory: &CStr) -> Option<Vec<RawFd>> {
    /// `#define PROC_SUPER_MAGIC 0x9fa0` (linux/magic.h).
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags, Mode::empty()).ok()?;
    if fstatfs(&directory).ok()?.f_type != PROC_SUPER_MAGIC {
        return None;
    }
    // A link may lead to the list of another process. That has not got what was made only now.
    let (mark, _) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    let shown = statat(&directory, mark.as_raw_fd().to_string(), AtFlags::empty()).ok()?;
    let own = fstat(&mark).ok()?;
    if (shown.st_dev, shown.st_ino) != (own.st_dev, own.st_ino) {
        return None;
    }
    let entries = Dir::read_from(&directory).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
    Some(entries.iter().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn open_descriptors_are_found() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(open_descriptors(fd, fd), [fd]);
        assert!(open_descriptors(0, fd - 1).iter().all(|found| *found < fd));
    }

    #[test]
    fn a_list_that_is_not_the_kernels_own_is_not_believed() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(listed(c"/proc/self/fd").unwrap().contains(&file.as_raw_fd()));
        // A copy of the list, but for one descriptor: each name leads to what the kernel's leads to.
        let copy = tempfile::tempdir().unwrap();
        for fd in (0..1000).filter(|fd| *fd != file.as_raw_fd()) {
            symlink(format!("/proc/self/fd/{fd}"), copy.path().join(fd.to_string())).unwrap();
        }
        // Another process's list.
        let mut other =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let link = copy.path().join("other");
        symlink(format!("/proc/{}/fd", other.id()), &link).unwrap();
        for place in [copy.path(), &link, "/no/such".as_ref(), "/proc/self".as_ref(), "/dev/null".as_ref()] {
            let place = CString::new(place.as_os_str().as_bytes()).unwrap();
            assert_eq!(listed(&place), None, "{place:?}");
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
