//! The mounts of a Plan, through the file-descriptor based mount API (Linux 5.12).
//!
//! Sources are opened as detached copies before the root is put in place, so no path is looked up
//! twice and nothing that the image contains can redirect them. Destinations are resolved inside
//! the new root with `RESOLVE_IN_ROOT`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};
use situla_plan::Mount;
use situla_sys::{MountAttributes, make_private, set_mount_attributes};

use crate::failure::{Context, Failure, FailureClass};

/// A mount that is not attached anywhere yet.
#[derive(Debug)]
pub(crate) struct Detached(OwnedFd);

impl Detached {
    /// Takes a descriptor of fsmount(2) or open_tree(2).
    pub(crate) fn new(mount: OwnedFd) -> Self {
        Detached(mount)
    }

    /// Copies the mount at `path`, with those below it if `recursive`.
    pub(crate) fn copy_of(path: &Path, recursive: bool) -> Result<Self, Errno> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        open_tree(CWD, path.as_os_str().as_bytes(), flags).map(Detached)
    }

    /// Sets attributes on this mount and all below it.
    pub(crate) fn restrict(&self, attributes: MountAttributes) -> Result<(), Errno> {
        if attributes.is_empty() { Ok(()) } else { set_mount_attributes(self.0.as_fd(), attributes, true) }
    }

    /// Attaches this mount on top of `target`.
    pub(crate) fn attach(&self, target: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.0.as_fd(), c"", target, c"", flags)
    }

    /// Attaches this mount at a new directory `lower` of `session`, so that it has a place in the
    /// mount namespace: overlayfs refuses layers that have none on kernels before 6.15.
    pub(crate) fn attach_within(&self, session: &Detached) -> Result<(), Failure> {
        let fail = |errno| Failure::of_call(FailureClass::Rootfs, "cannot attach the root directory", errno);
        rustix::fs::mkdirat(session.as_fd(), c"lower", Mode::RWXU).map_err(fail)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(session.as_fd(), c"lower", flags, Mode::empty()).map_err(fail)?;
        self.attach(place.as_fd()).map_err(fail)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens the source of `mount`, with its options applied.
pub(crate) fn open_source(mount: &Mount) -> Result<Detached, Failure> {
    let detached = match mount.kind.as_str() {
        "bind" => {
            let path = Path::new(mount.source.as_os_str());
            let recursive = !mount.options.iter().any(|option| option == "bind");
            Detached::copy_of(path, recursive).map_err(|errno| match errno {
                // Mounts that came into a user namespace together stay together (mount_namespaces(7)).
                Errno::INVAL if !recursive => Failure::of_call(
                    FailureClass::MountFailed,
                    format!(
                        "{} has mounts below it, and can only be bound with them: use rbind",
                        path.display()
                    ),
                    errno,
                ),
                Errno::NOENT | Errno::NOTDIR => Failure::of_call(
                    FailureClass::BindSourceMissing,
                    format!("the bind source {} does not exist", path.display()),
                    errno,
                ),
                errno => Failure::of_call(
                    FailureClass::MountFailed,
                    format!("the bind source {} cannot be opened", path.display()),
                    errno,
                ),
            })?
        }
        "tmpfs" => new_tmpfs(&mount.options)?,
        other => {
            return Err(Failure::new(FailureClass::Setup, format!("mounts of type {other} are not known")));
        }
    };
    let restricted = detached.restrict(attributes(&mount.options)).and_then(|()| {
        let private = mount.options.iter().any(|option| matches!(option.as_str(), "private" | "rprivate"));
        // Copies of the host's mounts are slaves as they come: they see its mounts and not the reverse.
        if private { make_private(detached.as_fd()) } else { Ok(()) }
    });
    restricted.or_fail(FailureClass::MountFailed, || {
        format!("cannot restrict the mount of {}", Path::new(mount.source.as_os_str()).display())
    })?;
    Ok(detached)
}

/// Attaches `source` at the destination of `mount` inside `root`.
pub(crate) fn attach_inside(root: BorrowedFd<'_>, mount: &Mount, source: &Detached) -> Result<(), Failure> {
    let destination = Path::new(mount.destination.as_os_str());
    let target = open_inside(root, destination).or_fail(FailureClass::MountFailed, || {
        format!("the mount point {} cannot be opened inside the image", destination.display())
    })?;
    source.attach(target.as_fd()).map_err(|errno| {
        let what = match errno {
            Errno::NOTDIR | Errno::ISDIR => "is a file on one side and a directory on the other",
            _ => "cannot be mounted",
        };
        let message =
            format!("{} at {} {what}", Path::new(mount.source.as_os_str()).display(), destination.display());
        Failure::of_call(FailureClass::MountFailed, message, errno)
    })
}

/// Opens a path inside `root` without ever leaving it.
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path.as_os_str().as_bytes(), flags, Mode::empty(), resolve)
}

/// Makes a tmpfs; options that are no mount attributes go to the file system.
pub(crate) fn new_tmpfs(options: &[String]) -> Result<Detached, Failure> {
    let fail = |errno| Failure::of_call(FailureClass::MountFailed, "cannot make a tmpfs", errno);
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    for (key, value) in options.iter().filter_map(|option| option.split_once('=')) {
        fsconfig_set_string(context.as_fd(), key, value).map_err(fail)?;
    }
    fsconfig_create(context.as_fd()).map_err(fail)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Detached).map_err(fail)
}

/// The attributes that `mount(8)` options ask for.
fn attributes(options: &[String]) -> MountAttributes {
    options.iter().fold(MountAttributes::default(), |set, option| {
        set.union(match option.as_str() {
            "ro" => MountAttributes::READ_ONLY,
            "nosuid" => MountAttributes::NO_SUID,
            "nodev" => MountAttributes::NO_DEV,
            "noexec" => MountAttributes::NO_EXEC,
            _ => MountAttributes::default(),
        })
    })
}

/// Opens a directory of the host on which the new root can be put for a moment. What lies there is
/// hidden only in this mount namespace, and all sources are open already.
pub(crate) fn staging_place() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let candidates = ["/tmp", "/mnt", "/usr", "/etc"];
    candidates
        .iter()
        .find_map(|path| rustix::fs::open(*path, flags, Mode::empty()).ok())
        .ok_or_else(|| Failure::new(FailureClass::Setup, "the host has none of /tmp, /mnt, /usr and /etc"))
}

/// Makes `root`, an attached mount, the root of this mount namespace and lets go of the old one.
pub(crate) fn change_root(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let fail = |errno| Failure::of_call(FailureClass::Setup, "cannot change to the new root", errno);
    fchdir(root).map_err(fail)?;
    // Both arguments may be the same place: the old root then lies on top of the new one, and
    // unmounting "." takes it away (pivot_root(2), NOTES).
    pivot_root(c".", c".").map_err(fail)?;
    unmount(c".", UnmountFlags::DETACH).map_err(fail)?;
    rustix::process::chdir(c"/").map_err(fail)
}
