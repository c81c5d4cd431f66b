//! An overlay above a whole root directory: the last resort where something must be shown in the root
//! itself that the directory does not have (see [`crate::covers`]).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use situla_plan::Patch;
use situla_sys::MountAttributes;

use crate::covers::{Shown, shown};
use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::{Detached, MountApi, fd_path};
use crate::mounts::new_tmpfs;

/// Lays an overlay with `patches` over `lower`. The upper directory is on a tmpfs that is attached at
/// the staging place, because overlayfs takes paths; the tmpfs is returned as well.
pub(crate) fn mount_overlay(
    api: &MountApi,
    patches: &[Patch],
    place: BorrowedFd<'_>,
    lower: &Detached,
) -> Result<(Detached, Detached), Failure> {
    let session = new_tmpfs(api, &["mode=0755".to_owned()])?;
    let fail = |what: &'static str| move |errno| Failure::of_call(FailureClass::Rootfs, what, errno);
    session.settle(place).map_err(fail("cannot attach a tmpfs for the overlay"))?;
    let session_path = PathBuf::from(fd_path(session.as_fd()));
    let (upper, work) = (session_path.join("upper"), session_path.join("work"));
    let lower_path = PathBuf::from(fd_path(lower.as_fd()));
    lower.settle_within(&session, "lower").map_err(fail("cannot attach the root directory"))?;
    for directory in [&upper, &work] {
        std::fs::create_dir(directory)
            .or_fail(FailureClass::Rootfs, || format!("cannot make {}", directory.display()))?;
    }
    copy_mode(&lower_path, &upper)?;
    for patch in patches {
        lay_patch(&lower_path, &upper, &patch.path, &shown(lower.as_fd(), patch))?;
    }
    let text = |path: &Path| path.display().to_string();
    let (lower, upper, work) = (text(&lower_path), text(&upper), text(&work));
    let settings = [
        ("lowerdir", Some(lower.as_str())),
        ("upperdir", Some(&upper)),
        ("workdir", Some(&work)),
        ("userxattr", None),
    ];
    let mount = api
        .create("overlay", &settings, MountAttributes::default())
        .map_err(fail("cannot mount an overlay on the root directory"))?;
    Ok((mount, session))
}

/// Puts one patch into the upper directory, with the directories that lead to it.
pub(crate) fn lay_patch(lower: &Path, upper: &Path, path: &str, shown: &Shown<'_>) -> Result<(), Failure> {
    if matches!(shown, Shown::AsItIs) {
        return Ok(());
    }
    let relative = Path::new(path.trim_start_matches('/'));
    let mut so_far = PathBuf::new();
    let parents = relative.parent().unwrap_or(Path::new(""));
    for component in parents.components() {
        so_far.push(component);
        make_directory(&lower.join(&so_far), &upper.join(&so_far))?;
    }
    let target = upper.join(relative);
    match shown {
        Shown::AsItIs => Ok(()),
        Shown::Directory => make_directory(&lower.join(relative), &target),
        Shown::File(content, mode) => {
            let written = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(*mode)
                .open(&target)
                .and_then(|mut file: File| file.write_all(content));
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
pub(crate) fn copy_mode(lower: &Path, upper: &Path) -> Result<(), Failure> {
    let Ok(metadata) = std::fs::symlink_metadata(lower.join(".")) else { return Ok(()) };
    let permissions = std::fs::Permissions::from_mode(metadata.mode() & 0o7777);
    std::fs::set_permissions(upper, permissions)
        .or_fail(FailureClass::Rootfs, || format!("cannot set the mode of {}", upper.display()))
}
