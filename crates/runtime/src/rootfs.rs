//! Mounting the root file system of a Plan, inside the new namespaces.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use situla_plan::{Plan, RootfsSource};
use situla_sys::MountAttributes;

use crate::covers::Covers;
use crate::failure::{Context, Failure, FailureClass};
use crate::mounts::Detached;
use crate::overlay::mount_overlay;

/// Where the FUSE device of a new mount goes: to the process that will serve it.
pub(crate) type Serve<'a> = dyn FnMut(BorrowedFd<'_>) -> Result<(), Failure> + 'a;

/// A rootfs that is ready to be attached.
pub(crate) struct Ready {
    /// The root mount.
    pub(crate) mount: Detached,
    /// What goes on top of it once it is attached.
    covers: Option<Covers>,
    /// A tmpfs that holds the upper directory of an overlay; it must outlive nothing, the overlay
    /// keeps what it needs, but it hides the staging place until the old root goes.
    _session: Option<Detached>,
}

impl Ready {
    /// Attaches the root on top of `place`, and on it what the Plan shows above the image.
    pub(crate) fn attach(&self, place: BorrowedFd<'_>) -> Result<(), Failure> {
        self.mount
            .attach(place)
            .or_fail(FailureClass::Rootfs, || "cannot attach the root mount".to_owned())?;
        self.covers.as_ref().map_or(Ok(()), Covers::attach)
    }
}

/// Mounts the rootfs of `plan`, detached. `place` is the staging place of the caller.
pub(crate) fn mount(plan: &Plan, place: BorrowedFd<'_>, serve: &mut Serve<'_>) -> Result<Ready, Failure> {
    let mut attributes = MountAttributes::NO_SUID.union(MountAttributes::NO_DEV);
    if plan.spec.root.readonly {
        attributes = attributes.union(MountAttributes::READ_ONLY);
    }
    let plain = |mount| Ready { mount, covers: None, _session: None };
    let patches = &plan.rootfs.patches;
    let ready = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => plain(mount_fuse(plan, serve)?),
        RootfsSource::Directory { path } => {
            let path = Path::new(path.as_os_str());
            let lower = Detached::copy_of(path, true).or_fail(FailureClass::Rootfs, || {
                format!("the root directory {} cannot be opened", path.display())
            })?;
            if patches.is_empty() {
                plain(lower)
            } else if let Some(covers) = Covers::make(patches, lower.as_fd(), place, attributes)? {
                Ready { mount: lower, covers: Some(covers), _session: None }
            } else {
                let (mount, session) = mount_overlay(patches, place, &lower)?;
                Ready { mount, covers: None, _session: Some(session) }
            }
        }
    };
    ready
        .mount
        .restrict(attributes)
        .or_fail(FailureClass::Rootfs, || "cannot restrict the root mount".to_owned())?;
    Ok(ready)
}

/// Mounts a FUSE file system and hands its device over to be served.
///
/// The device must be opened here, in the new user namespace: the kernel refuses a device that was
/// opened in another one than the mount belongs to (`fuse_fill_super`, fs/fuse/inode.c).
fn mount_fuse(plan: &Plan, serve: &mut Serve<'_>) -> Result<Detached, Failure> {
    let device = open_fuse_device()?;
    let fail = |errno| Failure::of_call(FailureClass::NoFuse, "cannot mount a FUSE file system", errno);
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value).map_err(fail);
    let user = plan.spec.process.user;
    set("source", "situla")?;
    set("subtype", "situla")?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &user.uid.to_string())?;
    set("group_id", &user.gid.to_string())?;
    // A task of the same user with another primary group gets EACCES without allow_other.
    fsconfig_set_flag(context.as_fd(), "allow_other").map_err(fail)?;
    fsconfig_set_flag(context.as_fd(), "default_permissions").map_err(fail)?;
    fsconfig_create(context.as_fd()).map_err(fail)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(fail)?;
    serve(device.as_fd())?;
    Ok(Detached::new(mount))
}

fn open_fuse_device() -> Result<OwnedFd, Failure> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => Ok(device.into()),
        Err(error) => {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            let what = match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => "/dev/fuse does not exist on this machine",
                Errno::ACCESS | Errno::PERM => "you may not open /dev/fuse on this machine",
                _ => "/dev/fuse cannot be opened",
            };
            Err(Failure::of_call(FailureClass::NoFuse, what, errno))
        }
    }
}
