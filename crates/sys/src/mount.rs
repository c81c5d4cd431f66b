//! mount_setattr(2), which rustix does not have.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::last_errno;

/// Attributes of a mount: `MOUNT_ATTR_*` of `include/uapi/linux/mount.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttributes(u64);

impl MountAttributes {
    /// `#define MOUNT_ATTR_RDONLY 0x00000001`
    pub const READ_ONLY: MountAttributes = MountAttributes(0x1);
    /// `#define MOUNT_ATTR_NOSUID 0x00000002`
    pub const NO_SUID: MountAttributes = MountAttributes(0x2);
    /// `#define MOUNT_ATTR_NODEV 0x00000004`
    pub const NO_DEV: MountAttributes = MountAttributes(0x4);
    /// `#define MOUNT_ATTR_NOEXEC 0x00000008`
    pub const NO_EXEC: MountAttributes = MountAttributes(0x8);

    /// Both sets together.
    #[must_use]
    pub fn union(self, other: MountAttributes) -> MountAttributes {
        MountAttributes(self.0 | other.0)
    }

    /// Tells whether all of `other` are in the set.
    pub fn contains(self, other: MountAttributes) -> bool {
        self.0 & other.0 == other.0
    }

    /// Tells whether no attribute is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// `struct mount_attr` of `include/uapi/linux/mount.h` (`MOUNT_ATTR_SIZE_VER0`).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

/// Sets attributes on the mount behind `mount`, with those below it if `recursive`: Linux 5.12.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: MountAttributes,
    recursive: bool,
) -> Result<(), Errno> {
    change(mount, &MountAttr { attr_set: set.0, attr_clr: 0, propagation: 0, userns_fd: 0 }, recursive)
}

/// Takes the mount behind `mount` and those below it out of all propagation: Linux 5.12.
pub fn make_private(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    // #define MS_PRIVATE (1<<18)
    let propagation = 1 << 18;
    change(mount, &MountAttr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 }, true)
}

fn change(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> Result<(), Errno> {
    // #define AT_EMPTY_PATH 0x1000, #define AT_RECURSIVE 0x8000
    let flags = libc::AT_EMPTY_PATH | if recursive { 0x8000 } else { 0 };
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH wants; the structure has the layout
    // and the length given, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
