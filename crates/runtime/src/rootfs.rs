//! Mounting the root file system of a Plan, inside the new namespaces.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use situla_plan::{Plan, RootfsSource};
use situla_sys::MountAttributes;

use crate::covers::Covers;
use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::{Detached, MountApi, Source};
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

/// Looks the root directory of `plan` up, where it is one.
pub(crate) fn open_source(api: &MountApi, plan: &Plan) -> Result<Option<Source>, Failure> {
    match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => Ok(None),
        RootfsSource::Directory { path } => {
            let path = Path::new(path.as_os_str());
            api.open(path, true).map(Some).map_err(|errno| unusable_root(path, errno))
        }
    }
}

fn unusable_root(path: &Path, errno: Errno) -> Failure {
    let message = format!("the root directory {} cannot be opened", path.display());
    Failure::of_call(FailureClass::Rootfs, message, errno)
}

/// Mounts the rootfs of `plan`, detached. `place` is the staging place of the caller, `source` what
/// [`open_source`] has found.
pub(crate) fn mount(
    api: &MountApi,
    plan: &Plan,
    source: Option<Source>,
    place: BorrowedFd<'_>,
    serve: &mut Serve<'_>,
) -> Result<Ready, Failure> {
    let mut attributes = MountAttributes::NO_SUID.union(MountAttributes::NO_DEV);
    if plan.spec.root.readonly {
        attributes = attributes.union(MountAttributes::READ_ONLY);
    }
    let plain = |mount| Ready { mount, covers: None, _session: None };
    let patches = &plan.rootfs.patches;
    let ready = match (&plan.rootfs.source, source) {
        (RootfsSource::Squashfs { .. }, _) => plain(mount_fuse(api, plan, serve)?),
        (RootfsSource::Directory { path }, source) => {
            let path = Path::new(path.as_os_str());
            let copy = source.ok_or(Errno::INVAL).and_then(|source| api.copy(source));
            let lower = copy.map_err(|errno| unusable_root(path, errno))?;
            if patches.is_empty() {
                plain(lower)
            } else if let Some(covers) = Covers::make(api, patches, lower.as_fd(), place, attributes)? {
                Ready { mount: lower, covers: Some(covers), _session: None }
            } else {
                let (mount, session) = mount_overlay(api, patches, place, &lower)?;
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
fn mount_fuse(api: &MountApi, plan: &Plan, serve: &mut Serve<'_>) -> Result<Detached, Failure> {
    let device = open_fuse_device()?;
    let user = plan.spec.process.user;
    let (fd, uid, gid) = (device.as_raw_fd().to_string(), user.uid.to_string(), user.gid.to_string());
    let settings = [
        ("source", Some("situla")),
        ("subtype", Some("situla")),
        ("fd", Some(fd.as_str())),
        ("rootmode", Some("40000")),
        ("user_id", Some(&uid)),
        ("group_id", Some(&gid)),
        // A task of the same user with another primary group gets EACCES without allow_other.
        ("allow_other", None),
        ("default_permissions", None),
    ];
    let mount = api
        .create("fuse", &settings, MountAttributes::NO_DEV.union(MountAttributes::NO_SUID))
        .map_err(|errno| Failure::of_call(FailureClass::NoFuse, "cannot mount a FUSE file system", errno))?;
    serve(device.as_fd())?;
    Ok(mount)
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
