//! Turning a forked child into a background process that has nothing of its parent's open.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::setsid;

use crate::descriptor::open_descriptors;
use crate::signal::{SignalMask, block_signals};
use crate::{exit_now, last_errno};

/// Makes this process a background one named `name` (15 bytes are kept), then runs `main` and ends.
///
/// It gets a session of its own, standard streams on `/dev/null`, `/` as its directory and every
/// signal blocked that can be; descriptors from 3 on are closed except those in `keep`, which are
/// all that `main` may use. For the child of a fork alone: it ends the process in any case.
pub fn become_background(name: &CStr, keep: &[RawFd], main: impl FnOnce()) -> ! {
    if detach(name, keep).is_ok() {
        main();
    }
    exit_now(0)
}

/// Makes this process the quiet first process of a PID namespace, named `name`, then runs `main` and ends
/// with its result.
///
/// Descriptors are closed except those in `keep`, which are all that `main` may use; standard streams as
/// well, since nothing is said. For the child of a fork alone: it ends the process in any case.
pub fn become_init(name: &CStr, keep: &[RawFd], main: impl FnOnce() -> i32) -> ! {
    let _ = rustix::thread::set_name(name);
    let status = match close_all_but(0, keep) {
        Ok(()) => main(),
        Err(_) => 1,
    };
    exit_now(status)
}

/// Makes this process one that stays when its parent ends, named `name`, then runs `main` and ends with its
/// result.
///
/// It gets a session of its own, no terminal, `/` as its directory, the given descriptors as standard
/// streams, and signals as its parent has them; descriptors from 3 on are closed except those in `keep`,
/// which are all that `main` may use. For the child of a fork alone: it ends the process in any case.
pub fn become_resident(
    name: &CStr,
    streams: [BorrowedFd<'_>; 3],
    keep: &[RawFd],
    main: impl FnOnce() -> i32,
) -> ! {
    let status = match take_streams(name, streams).and_then(|()| close_all_but(3, keep)) {
        Ok(()) => main(),
        Err(_) => 1,
    };
    exit_now(status)
}

fn take_streams(name: &CStr, [input, output, error]: [BorrowedFd<'_>; 3]) -> Result<(), Errno> {
    setsid()?;
    rustix::process::chdir(c"/")?;
    rustix::thread::set_name(name)?;
    rustix::stdio::dup2_stdin(input)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(error)
}

fn detach(name: &CStr, keep: &[RawFd]) -> Result<(), Errno> {
    block_signals(&SignalMask::of(1..=64))?;
    // Fails where the process leads a group already, which a forked child does not.
    setsid()?;
    rustix::process::chdir(c"/")?;
    rustix::thread::set_name(name)?;
    let null = openat(CWD, c"/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    close_all_but(3, keep)
}

/// Closes all descriptors from `first` on except `keep`.
fn close_all_but(first: RawFd, keep: &[RawFd]) -> Result<(), Errno> {
    let mut kept: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut first = first;
    for fd in kept.into_iter().chain([RawFd::MAX]) {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: this process never returns from `become_background`, so values of the parent's code
    // that own the descriptors closed here are never used or dropped in it; what `main` uses is
    // not in the range.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result != -1 {
        return Ok(());
    }
    match last_errno() {
        // Linux before 5.9, or a filter.
        Errno::NOSYS | Errno::PERM => {
            for fd in open_descriptors(first, last) {
                // SAFETY: as above; a descriptor that is closed by now gives EBADF.
                unsafe { libc::close(fd) };
            }
            Ok(())
        }
        errno => Err(errno),
    }
}
