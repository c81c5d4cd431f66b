//! Reading all files of one's own, whatever their modes are.
//!
//! An owner may not read a file of his whose mode says so, and would have to change the mode for that: another process
//! would see it, and after a kill in between it would stay. In a user namespace of his own he has the capability to read
//! what belongs to ids that are mapped in it (capabilities(7), `privileged_wrt_inode_uidgid` of Linux), and that is his
//! own alone.

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};
use situla_plan::IdMapping;

use crate::failure::{Context, Failure, FailureClass};
use crate::id_maps::write_own_maps;

/// Gives this process, which must have one thread, the right to read every file of its user and group and to search every
/// directory of theirs. It has no other right afterwards than before: what it may not write it may not write then either.
/// Where there are no user namespaces nothing changes.
///
/// # Errors
/// The namespace is there, and cannot be used.
pub fn read_own_files() -> Result<(), Failure> {
    let (uid, gid) = (geteuid(), getegid());
    // Root reads what it likes.
    if uid.is_root() {
        return Ok(());
    }
    match situla_sys::unshare(UnshareFlags::NEWUSER) {
        // EINVAL: there are threads, or the kernel knows no user namespaces.
        Err(Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::NOSYS) => return Ok(()),
        other => {
            other.or_fail(FailureClass::NoUserNamespaces, || "cannot make a user namespace".to_owned())?
        }
    }
    let itself = |id: u32| [IdMapping { container_id: id, host_id: id, size: 1 }];
    write_own_maps(&itself(uid.as_raw()), &itself(gid.as_raw()))?;
    let reading = CapabilitySet::DAC_READ_SEARCH;
    let sets = CapabilitySets { effective: reading, permitted: reading, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).or_fail(FailureClass::Setup, || "cannot give up capabilities".to_owned())
}
