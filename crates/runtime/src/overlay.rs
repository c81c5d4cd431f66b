//! An overlay above a whole root directory: the last resort where something must be shown in the root
//! itself that the directory does not have (see [`crate::covers`]).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstat};
use situla_fuse::{NOTHING, TREE};
use situla_plan::Patch;
use situla_sys::MountAttributes;

use crate::covers::{Shown, open_exactly, shown};
use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::{Detached, MountApi, fd_path};
use crate::mounts::new_tmpfs;

/// Lays an overlay with `patches` over `lower`, which is called `name`. The upper directory is on a tmpfs that is attached at
/// the staging place, because overlayfs takes paths; the tmpfs is returned as well.
pub(crate) fn mount_overlay(
    api: &MountApi,
    patches: &[Patch],
    place: BorrowedFd<'_>,
    (lower, name): (&Detached, Option<&str>),
) -> Result<(Detached, Detached), Failure> {
    let session = new_tmpfs(api, &["mode=0755".to_owned()])?;
    let fail = |what: &'static str| move |errno| Failure::of_call(FailureClass::Rootfs, what, errno);
    session.settle(place).map_err(fail("cannot attach a tmpfs for the overlay"))?;
    let session_path = PathBuf::from(fd_path(session.as_fd()));
    let (upper, work) = (session_path.join("upper"), session_path.join("work"));
    let lower_path = PathBuf::from(fd_path(lower.as_fd()));
    lower.settle_within(&session, "lower").map_err(fail("cannot attach the root directory"))?;
    for directory in [&upper, &work] {
        DirBuilder::new()
            .mode(0o755)
            .create(directory)
            .or_fail(FailureClass::Rootfs, || format!("cannot make {}", directory.display()))?;
    }
    copy_mode(lower.as_fd(), "", &upper)?;
    for patch in patches {
        lay_patch(lower.as_fd(), &upper, &patch.path, &shown(lower.as_fd(), patch))?;
    }
    let text = |path: &Path| path.display().to_string();
    let (lower, upper, work) = (text(&lower_path), text(&upper), text(&work));
    let mut settings = vec![
        ("lowerdir", Some(lower.as_str())),
        ("upperdir", Some(&upper)),
        ("workdir", Some(&work)),
        ("userxattr", None),
    ];
    settings.extend(name.map(|name| ("source", Some(name))));
    let mount = api
        .create("overlay", &settings, MountAttributes::default())
        .map_err(fail("cannot mount an overlay on the root directory"))?;
    Ok((mount, session))
}

/// Lays an overlay that adds nothing over the image in `server`, the mount of a FUSE file system that has it beside an empty
/// directory ([`situla_fuse::Paired`]). The mount of the server is returned as well, which lies at `place` now. Where the kernel makes no
/// such overlay the image itself is returned.
///
/// The kernel passes each ioctl(2) on a file of FUSE on to the server and does not remember that it knows none. Python up to
/// 3.13 asks of every file that it opens whether it is a terminal: 248 round trips in an import of SciPy. On a file of an
/// overlay the kernel refuses by itself. A walk that looks at every file pays for it with an inode more for each.
pub(crate) fn shield_server(
    api: &MountApi,
    server: Detached,
    place: BorrowedFd<'_>,
) -> Result<(Detached, Detached), Failure> {
    let fail = |errno| Failure::of_call(FailureClass::Rootfs, "cannot attach the image", errno);
    server.settle(place).map_err(fail)?;
    // The image is the upper of the two, so that owner, times and size of the root are its own.
    let at = fd_path(server.as_fd());
    let layers = format!("{at}/{TREE}:{at}/{NOTHING}");
    // No `userxattr`: what an image has by the names of overlayfs's own attributes means nothing, and is seen. Attributes of that
    // kind that count here (`trusted.`) the kernel shows to nobody in a user namespace, and asks no server for them.
    let settings = [
        ("lowerdir", Some(layers.as_str())),
        ("redirect_dir", Some("nofollow")),
        ("metacopy", Some("off")),
        ("source", Some("situla")),
    ];
    let mount = match api.create("overlay", &settings, MountAttributes::default()) {
        Ok(mount) => mount,
        Err(_) => api.copy_below(server.as_fd(), TREE).map_err(fail)?,
    };
    Ok((mount, server))
}

/// Puts one patch into the upper directory, with the directories that lead to it.
pub(crate) fn lay_patch(
    lower: BorrowedFd<'_>,
    upper: &Path,
    path: &str,
    shown: &Shown<'_>,
) -> Result<(), Failure> {
    if matches!(shown, Shown::AsItIs) {
        return Ok(());
    }
    let relative = path.trim_start_matches('/');
    for (end, _) in relative.match_indices('/') {
        make_directory(lower, relative.get(..end).unwrap_or_default(), upper)?;
    }
    let target = upper.join(relative);
    match shown {
        Shown::AsItIs => Ok(()),
        Shown::Directory => make_directory(lower, relative, upper),
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

/// Makes `path` in the upper layer.
fn make_directory(lower: BorrowedFd<'_>, path: &str, upper: &Path) -> Result<(), Failure> {
    let made = upper.join(path);
    match DirBuilder::new().mode(0o755).create(&made) {
        Ok(()) => copy_mode(lower, path, &made),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).or_fail(FailureClass::Rootfs, || format!("cannot make {}", made.display())),
    }
}

/// Gives a directory of the upper layer the mode of the one it merges with: `path` in the root `lower`, or the root itself.
/// A link is not followed, wherever in the path somebody may have put one meanwhile.
pub(crate) fn copy_mode(lower: BorrowedFd<'_>, path: &str, upper: &Path) -> Result<(), Failure> {
    let found = match path {
        "" => fstat(lower),
        _ => open_exactly(lower, path, OFlags::PATH | OFlags::DIRECTORY).and_then(|found| fstat(&found)),
    };
    let Ok(found) = found else { return Ok(()) };
    let permissions = std::fs::Permissions::from_mode(found.st_mode & 0o7777);
    std::fs::set_permissions(upper, permissions)
        .or_fail(FailureClass::Rootfs, || format!("cannot set the mode of {}", upper.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::mounts::staging_place;

    #[test]
    fn an_image_that_takes_no_overlay_is_the_root_itself() {
        const SELF: &str = "overlay::tests::an_image_that_takes_no_overlay_is_the_root_itself";
        const INSIDE: &str = "SITULA_TEST_INSIDE";
        if std::env::var_os(INSIDE).is_none() {
            // Once more where it may mount.
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount"]).env(INSIDE, "1");
            let output = command.arg(std::env::current_exe().unwrap()).args(["--exact", SELF]).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let api = MountApi::choose();
        for (has_both, kind) in [(true, "overlay"), (false, "tmpfs")] {
            let server = new_tmpfs(&api, &[]).unwrap();
            let inside = fd_path(server.as_fd());
            std::fs::create_dir(format!("{inside}/{TREE}")).unwrap();
            std::fs::write(format!("{inside}/{TREE}/file"), "the image's own").unwrap();
            if has_both {
                std::fs::create_dir(format!("{inside}/{NOTHING}")).unwrap();
            }
            let place = staging_place().unwrap();
            let (root, _server) = shield_server(&api, server, place.as_fd()).unwrap();
            // Attached above what it was made of, as a root is.
            root.attach(staging_place().unwrap().as_fd()).unwrap();
            let (path, shown) = crate::mount_api::staging_place().unwrap();
            let found = std::fs::read_to_string(format!("{}/file", fd_path(shown.as_fd()))).unwrap();
            assert_eq!(found, "the image's own");
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let last = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path)).unwrap();
            assert!(last.contains(&format!(" - {kind} ")), "{last}");
        }
    }
}
