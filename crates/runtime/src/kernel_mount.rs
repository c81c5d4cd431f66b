//! Mounting an image file by the kernel, for root alone.
//!
//! The kernel's file systems trust what they read, so it must be bytes that only root can have written; and
//! how a mount reaches a container matters as much. Given as a detached mount, whoever is root in a user
//! namespace can clear its flags and open the devices of the image. So it is attached in a mount namespace
//! of this process *before* the container's user namespace is made: the copy of a mount namespace that
//! belongs to a new user namespace has read-only, nosuid and nodev locked (mount_namespaces(7)).
//!
//! Nothing is left behind: the mount is in no other namespace, so it goes with the last process of the
//! container, and a loop device goes with its mount. What a container is made of must be known before anybody
//! can be met, and so each task mounts; one that has joined another's container lets its own mount go ([`let_go`]).

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use situla_plan::{Plan, RootfsSource, Rung};
use situla_sys::{LoopDevice, has_writers};

use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::fd_path;

/// A file system that the kernel can mount from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// SquashFS, over a loop device.
    Squashfs,
    /// EROFS: from the file itself where the kernel can (Linux 6.12), else over a loop device.
    Erofs,
}

impl KernelFormat {
    fn name(self) -> &'static str {
        match self {
            KernelFormat::Squashfs => "squashfs",
            KernelFormat::Erofs => "erofs",
        }
    }
}

/// An open image file that nobody but root can write to, nor could have while it was looked at.
#[derive(Debug)]
pub struct MountableFile {
    file: File,
}

/// Magic numbers of file systems of this machine, whose owners and permissions its kernel enforces
/// (statfs(2)): ext2 to ext4, XFS, Btrfs, F2FS, ZFS, tmpfs, overlayfs, EROFS and SquashFS.
const LOCAL: [u64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x0102_1994,
    0x794c_7630,
    0xe0f5_e1e2,
    0x7371_7368,
];

impl MountableFile {
    /// Looks at `file`, for root. The reason why not, as the end of a sentence, where it is not to be mounted.
    ///
    /// # Errors
    /// It could have been written by others, or nobody can tell.
    pub fn check(file: File) -> Result<Self, String> {
        let metadata = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
        if !metadata.is_file() {
            return Err("it is no regular file".to_owned());
        }
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            return Err("others than root can write it".to_owned());
        }
        let magic = fstatfs(&file).map(|stat| stat.f_type.cast_unsigned()).unwrap_or_default();
        if !LOCAL.contains(&magic) {
            return Err("its file system is not this machine's own".to_owned());
        }
        // Who opened it when he might, or before it was given to root, can write still.
        match has_writers(file.as_fd()) {
            Ok(false) => Ok(MountableFile { file }),
            Ok(true) => Err("somebody has it open for writing".to_owned()),
            Err(errno) => {
                Err(format!("it cannot be found out whether somebody has it open for writing: {errno}"))
            }
        }
    }
}

/// Moves this process into a mount namespace of its own and mounts a part of `image`, given by offset and
/// length, there at `place`, which is made where it does not exist. What the host mounts later is still seen.
///
/// # Errors
/// The kernel refuses, or `place` is not root's alone.
pub fn mount_by_kernel(
    image: &MountableFile,
    format: KernelFormat,
    (offset, length): (u64, u64),
    place: &Path,
) -> Result<(), Failure> {
    let setup = |what: &'static str| move |errno| Failure::of_call(FailureClass::Rootfs, what, errno);
    situla_sys::unshare(UnshareFlags::NEWNS).map_err(setup("cannot make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(setup("cannot keep mounts from the host"))?;
    // Not before: what is opened in another mount namespace cannot be mounted on.
    let place = open_place(place)?;
    let attach = |source: &str| {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount(source, fd_path(place.as_fd()), format.name(), flags, None)
    };
    if format == KernelFormat::Erofs && offset == 0 {
        match attach(&fd_path(image.file.as_fd())) {
            // No block device: a kernel that wants one.
            Err(Errno::NOTBLK) => {}
            done => return done.map_err(setup("the kernel does not mount the image")),
        }
    }
    let device = LoopDevice::attach(image.file.as_fd(), offset, length)
        .map_err(setup("cannot make a loop device of the image"))?;
    attach(&device.path.to_string_lossy()).map_err(setup("the kernel does not mount the image"))
}

/// Unmounts the root of `plan` where this process has mounted it and is in another's container instead: the mount would last
/// as long as the process that waits, and a loop device with it, one for each task of a step.
pub(crate) fn let_go(plan: &Plan) -> Result<(), Failure> {
    let (Rung::Kernel, RootfsSource::Directory { path }) = (plan.rootfs.rung, &plan.rootfs.source) else {
        return Ok(());
    };
    unmount(path.as_os_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .or_fail(FailureClass::Rootfs, || "cannot let a mount go that another task has as well".to_owned())
}

/// Opens the directory to mount at. All of its path belongs to root: whoever could move it would decide what
/// is hidden.
fn open_place(path: &Path) -> Result<OwnedFd, Failure> {
    let shown = path.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .or_fail(FailureClass::Rootfs, || format!("cannot make {shown}"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for part in path.ancestors() {
        let opened = openat(CWD, part, flags, Mode::empty())
            .or_fail(FailureClass::Rootfs, || format!("cannot open {}", part.display()))?;
        let is_roots = |opened: BorrowedFd<'_>| {
            let stat = rustix::fs::fstat(opened)?;
            Ok::<bool, Errno>(stat.st_uid == 0 && stat.st_mode & 0o022 == 0)
        };
        if !is_roots(opened.as_fd()).unwrap_or(false) {
            let what = format!("others than root can change {}", part.display());
            return Err(Failure::new(FailureClass::Rootfs, what));
        }
    }
    openat(CWD, path, flags, Mode::empty()).or_fail(FailureClass::Rootfs, || format!("cannot open {shown}"))
}
