//! Mounting the root file system of a Plan, inside the new namespaces.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use situla_plan::{PatchContent, Plan, RootfsSource};
use situla_sys::MountAttributes;

use crate::failure::{Context, Failure, FailureClass};
use crate::mounts::{Detached, new_tmpfs};

/// Where the FUSE device of a new mount goes: to the process that will serve it.
pub(crate) type Serve<'a> = dyn FnMut(BorrowedFd<'_>) -> Result<(), Failure> + 'a;

/// A rootfs that is ready to be attached.
pub(crate) struct Ready {
    /// The root mount.
    pub(crate) mount: Detached,
    /// A tmpfs that holds the upper directory of an overlay; it must outlive nothing, the overlay
    /// keeps what it needs, but it hides the staging place until the old root goes.
    _session: Option<Detached>,
}

/// Mounts the rootfs of `plan`, detached. `place` is the staging place of the caller.
pub(crate) fn mount(plan: &Plan, place: BorrowedFd<'_>, serve: &mut Serve<'_>) -> Result<Ready, Failure> {
    let ready = match &plan.rootfs.source {
        RootfsSource::Squashfs { .. } => Ready { mount: mount_fuse(plan, serve)?, _session: None },
        RootfsSource::Directory { path } => {
            let path = Path::new(path.as_os_str());
            let lower = Detached::copy_of(path, true).or_fail(FailureClass::Rootfs, || {
                format!("the root directory {} cannot be opened", path.display())
            })?;
            if plan.rootfs.patches.is_empty() {
                Ready { mount: lower, _session: None }
            } else {
                mount_overlay(plan, place, &lower)?
            }
        }
    };
    let mut attributes = MountAttributes::NO_SUID.union(MountAttributes::NO_DEV);
    if plan.spec.root.readonly {
        attributes = attributes.union(MountAttributes::READ_ONLY);
    }
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

/// Lays an overlay with the patches of `plan` over `lower`. The upper directory is on a tmpfs that
/// is attached at the staging place, because overlayfs takes paths.
fn mount_overlay(plan: &Plan, place: BorrowedFd<'_>, lower: &Detached) -> Result<Ready, Failure> {
    let session = new_tmpfs(&["mode=0755".to_owned()])?;
    let fail = |what: &'static str| move |errno| Failure::of_call(FailureClass::Rootfs, what, errno);
    session.attach(place).map_err(fail("cannot attach a tmpfs for the overlay"))?;
    let session_path = PathBuf::from(format!("/proc/self/fd/{}", session.as_fd().as_raw_fd()));
    let (upper, work) = (session_path.join("upper"), session_path.join("work"));
    let lower_path = PathBuf::from(format!("/proc/self/fd/{}", lower.as_fd().as_raw_fd()));
    lower.attach_within(&session)?;
    for directory in [&upper, &work] {
        std::fs::create_dir(directory)
            .or_fail(FailureClass::Rootfs, || format!("cannot make {}", directory.display()))?;
    }
    copy_mode(&lower_path, &upper)?;
    for patch in &plan.rootfs.patches {
        lay_patch(&lower_path, &upper, &patch.path, &patch.content)?;
    }
    let fail = fail("cannot mount an overlay on the root directory");
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    let set =
        |key: &str, path: &Path| fsconfig_set_string(context.as_fd(), key, path.as_os_str()).map_err(fail);
    set("lowerdir", &lower_path)?;
    set("upperdir", &upper)?;
    set("workdir", &work)?;
    fsconfig_set_flag(context.as_fd(), "userxattr").map_err(fail)?;
    fsconfig_create(context.as_fd()).map_err(fail)?;
    let mount =
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(fail)?;
    Ok(Ready { mount: Detached::new(mount), _session: Some(session) })
}

/// Puts one patch into the upper directory, with the directories that lead to it.
fn lay_patch(lower: &Path, upper: &Path, path: &str, content: &PatchContent) -> Result<(), Failure> {
    let relative = Path::new(path.trim_start_matches('/'));
    let mut so_far = PathBuf::new();
    let parents = relative.parent().unwrap_or(Path::new(""));
    for component in parents.components() {
        so_far.push(component);
        make_directory(&lower.join(&so_far), &upper.join(&so_far))?;
    }
    let target = upper.join(relative);
    match content {
        PatchContent::Directory => make_directory(&lower.join(relative), &target),
        PatchContent::File { content, mode } => {
            let written = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(*mode)
                .open(&target)
                .and_then(|mut file: File| file.write_all(content.as_bytes()));
            written.or_fail(FailureClass::Rootfs, || format!("cannot write {path} above the image"))
        }
    }
}

fn make_directory(lower: &Path, upper: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(upper) {
        Ok(()) => copy_mode(lower, upper),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).or_fail(FailureClass::Rootfs, || format!("cannot make {}", upper.display())),
    }
}

/// Gives a directory of the upper layer the mode of the one it merges with.
fn copy_mode(lower: &Path, upper: &Path) -> Result<(), Failure> {
    let Ok(metadata) = std::fs::symlink_metadata(lower.join(".")) else { return Ok(()) };
    let permissions = std::fs::Permissions::from_mode(metadata.mode() & 0o7777);
    std::fs::set_permissions(upper, permissions)
        .or_fail(FailureClass::Rootfs, || format!("cannot set the mode of {}", upper.display()))
}
