//! Namespaces and capabilities of the calling process.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};

use crate::checked;

/// Moves the calling process into new namespaces: unshare(2). `EINVAL` for a user namespace in a
/// process with several threads.
///
/// File descriptor tables cannot be unshared with this: a flag for them is left out, so that no
/// descriptor that somebody owns can vanish.
pub fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    let flags = flags.difference(UnshareFlags::FILES);
    // SAFETY: rustix marks the call as unsafe for CLONE_FILES alone, which is taken out above.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Moves the calling process into the namespace behind `namespace` (an open nsfs file), whatever
/// its type: setns(2). `EINVAL` for a user namespace in a process with several threads.
pub fn join_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: setns takes two integers; the descriptor is open for the length of the call.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), 0) }).map(|_| ())
}

/// Gives up every capability in the effective, permitted and inheritable sets, and thereby the
/// ambient ones (`capabilities(7)`).
pub fn drop_all_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
