//! Paths inside that are masked or made read-only.
//!
//! What is hidden must be hidden wherever the image and whoever can write to it lead. So a path below one of the
//! Plan's mounts is looked up from that mount: directories of the image that are exchanged for others meanwhile
//! move the mount with all that is done to it, and nothing else. And what covers a file is the host's null device,
//! not something of the image that has its name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat, major, minor};
use rustix::io::Errno;
use situla_plan::Mount;
use situla_sys::MountAttributes;

use crate::failure::{Context, Failure, FailureClass};
use crate::inside::{Links, open_inside};
use crate::mount_api::{Detached, MountApi};
use crate::mounts::{new_tmpfs, open_destination};

/// The null device's numbers: `Documentation/admin-guide/devices.txt` of Linux, "1 char".
const NULL_DEVICE: (u32, u32) = (1, 3);

/// The mounts of a container that are at their places.
#[derive(Debug)]
pub(crate) struct Attached<'a> {
    root: BorrowedFd<'a>,
    mounts: Vec<(&'a Path, &'a Detached)>,
}

impl<'a> Attached<'a> {
    /// None yet, below `root`.
    pub(crate) fn below(root: BorrowedFd<'a>) -> Self {
        Attached { root, mounts: Vec::new() }
    }

    /// Notes a mount that has been attached.
    pub(crate) fn note(&mut self, mount: &'a Mount, made: &'a Detached) {
        let destination = Path::new(mount.destination.as_os_str());
        // What is mounted over a place hides what was there.
        self.mounts.retain(|(place, _)| !place.starts_with(destination));
        self.mounts.push((destination, made));
    }

    /// Covers `path` with nothing, where it exists: an empty directory, or the null device.
    pub(crate) fn mask(&self, api: &MountApi, path: &Path) -> Result<(), Failure> {
        let Some(target) = self.open_if_there(path)? else { return Ok(()) };
        let fail = |errno| {
            Failure::of_call(FailureClass::MountFailed, format!("cannot mask {}", path.display()), errno)
        };
        let stat = fstat(&target).map_err(fail)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            new_tmpfs(api, &["mode=0555".to_owned()])?
        } else {
            null_device(api).map_err(fail)?
        };
        let attributes =
            MountAttributes::READ_ONLY.union(MountAttributes::NO_SUID).union(MountAttributes::NO_EXEC);
        cover.restrict(attributes).and_then(|()| cover.attach(target.as_fd())).map_err(fail)
    }

    /// Makes `path` read-only with all that is mounted below it, where it exists.
    pub(crate) fn make_read_only(&self, api: &MountApi, path: &Path) -> Result<(), Failure> {
        let Some(target) = self.open_if_there(path)? else { return Ok(()) };
        let made = api.copy_place(&target).and_then(|copy| {
            copy.restrict(MountAttributes::READ_ONLY)?;
            copy.attach(target.as_fd())
        });
        made.or_fail(FailureClass::MountFailed, || format!("cannot make {} read-only", path.display()))
    }

    fn open_if_there(&self, path: &Path) -> Result<Option<OwnedFd>, Failure> {
        match self.open(path) {
            Ok(found) => Ok(Some(found)),
            // What this process, with all its capabilities, cannot reach, the payload cannot either.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(Failure::of_call(
                FailureClass::MountFailed,
                format!("{} cannot be looked up inside the image", path.display()),
                errno,
            )),
        }
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let below =
            |(place, mount): &(&'a Path, &'a Detached)| Some((*mount, path.strip_prefix(place).ok()?));
        // The innermost of them: the rest of the path is the shortest.
        let innermost = self.mounts.iter().filter_map(below).min_by_key(|(_, rest)| rest.as_os_str().len());
        let Some((mount, rest)) = innermost else { return open_destination(self.root, path) };
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        match open_inside(mount.as_fd(), rest.as_os_str().as_bytes(), OFlags::PATH, Links::Refuse) {
            // A link of the mount's may lead out of it, to where it leads inside the container.
            Err(Errno::LOOP) => open_destination(self.root, path),
            other => other,
        }
    }
}

/// A mount of the null device of the host's: this process has the host's root still.
fn null_device(api: &MountApi) -> Result<Detached, Errno> {
    let source = api.open(Path::new("/dev/null"), false)?;
    let stat = fstat(source.as_fd())?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL_DEVICE;
    if is_null { api.copy(source) } else { Err(Errno::NODEV) }
}
