//! Patches above a directory without an overlay: files and empty directories of a small tmpfs, bound
//! where the image has a file that they hide, or over a directory in which it has nothing.
//!
//! An overlay costs 0.3 ms to make and a little with every path that the payload looks up; most
//! images need none. The usual patches are `/etc/passwd` and `/etc/group`, which exist, and a home
//! directory below a `/home` that is empty. Where a patch needs more, [`Covers::make`] gives `None`
//! and the caller lays an overlay.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat};
use rustix::io::Errno;
use situla_plan::{MAX_ACCOUNT_FILE, Patch, PatchContent};
use situla_sys::MountAttributes;

use crate::failure::{Failure, FailureClass};
use crate::inside::{Links, open_inside};
use crate::mount_api::{Detached, MountApi};
use crate::mounts::new_tmpfs;

/// Mounts that go on top of a root once that is attached.
pub(crate) struct Covers {
    covers: Vec<(OwnedFd, Detached)>,
    /// The tmpfs; it hides the staging place until the old root goes.
    _session: Detached,
}

/// Something of the image that a cover hides.
struct Site<'a> {
    /// Its path inside.
    path: &'a str,
    target: OwnedFd,
    is_directory: bool,
}

impl Covers {
    /// Prepares covers that show `patches` on the detached root `lower`; `None` where a patch goes
    /// into a directory that has other entries, or replaces something that is no file.
    pub(crate) fn make(
        api: &MountApi,
        patches: &[Patch],
        lower: BorrowedFd<'_>,
        place: BorrowedFd<'_>,
        attributes: MountAttributes,
    ) -> Result<Option<Self>, Failure> {
        let mut sites: Vec<Site<'_>> = Vec::new();
        // Which site shows each patch; none for what is there already.
        let mut shown_by = Vec::new();
        let contents: Vec<Shown<'_>> = patches.iter().map(|patch| shown(lower, patch)).collect();
        for (patch, shown) in patches.iter().zip(&contents) {
            if matches!(shown, Shown::AsItIs) {
                shown_by.push(None);
                continue;
            }
            let below = |site: &Site<'_>| {
                site.is_directory
                    && patch.path.strip_prefix(site.path).is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(known) = sites.iter().position(below) {
                shown_by.push(Some(known));
                continue;
            }
            match find(lower, patch) {
                Found::Nothing => return Ok(None),
                Found::There => shown_by.push(None),
                Found::Site(site) => {
                    shown_by.push(Some(sites.len()));
                    sites.push(site);
                }
            }
        }
        let fail =
            |errno| Failure::of_call(FailureClass::Rootfs, "cannot prepare files above the image", errno);
        let session = new_tmpfs(api, &[])?;
        for (number, site) in sites.iter().enumerate().filter(|(_, site)| site.is_directory) {
            let mode = fstat(&site.target).map_err(fail)?.st_mode & 0o7777;
            make_directory(session.as_fd(), &number.to_string(), mode).map_err(fail)?;
        }
        for ((patch, shown), by) in patches.iter().zip(&contents).zip(shown_by) {
            let Some((number, site)) = by.and_then(|number| Some((number, sites.get(number)?))) else {
                continue;
            };
            let inside = patch.path.strip_prefix(site.path).unwrap_or_default();
            lay(session.as_fd(), &format!("{number}{inside}"), shown).map_err(fail)?;
        }
        session.restrict(attributes).map_err(fail)?;
        session.settle(place).map_err(fail)?;
        let bound = |(number, site): (usize, Site<'_>)| {
            Ok((site.target, api.copy_below(session.as_fd(), &number.to_string())?))
        };
        let covers = sites.into_iter().enumerate().map(bound).collect::<Result<_, _>>().map_err(fail)?;
        Ok(Some(Covers { covers, _session: session }))
    }

    /// Puts every cover where it belongs. The root must be attached by now: the kernel moves no
    /// mount onto a detached one before Linux 6.15.
    pub(crate) fn attach(&self) -> Result<(), Failure> {
        for (target, mount) in &self.covers {
            mount.attach(target.as_fd()).map_err(|errno| {
                Failure::of_call(FailureClass::Rootfs, "cannot show a file above the image", errno)
            })?;
        }
        Ok(())
    }
}

/// What can show a patch.
enum Found<'a> {
    /// Nothing but an overlay.
    Nothing,
    /// It is there already.
    There,
    /// A file that it replaces, or an empty directory above it.
    Site(Site<'a>),
}

/// Looks for the file that `patch` replaces, or for an empty directory to put it in.
fn find<'a>(lower: BorrowedFd<'_>, patch: &'a Patch) -> Found<'a> {
    let is_directory = |fd: &OwnedFd| fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let mut path = patch.path.as_str();
    loop {
        match open_exactly(lower, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(target) => {
                let whole = path.len() == patch.path.len();
                return match (is_directory(&target), &patch.content) {
                    (Ok(FileType::RegularFile), content)
                        if whole && !matches!(content, PatchContent::Directory) =>
                    {
                        Found::Site(Site { path, target, is_directory: false })
                    }
                    (Ok(FileType::Directory), PatchContent::Directory) if whole => Found::There,
                    (Ok(FileType::Directory), _) if !whole && is_empty(lower, path) => {
                        Found::Site(Site { path, target, is_directory: true })
                    }
                    _ => Found::Nothing,
                };
            }
            Err(Errno::NOENT) => match path.rsplit_once('/') {
                Some((parent, _)) if !parent.is_empty() => path = parent,
                _ => return Found::Nothing,
            },
            Err(_) => return Found::Nothing,
        }
    }
}

/// Opens a path in which the Plan says there is no link.
fn open_exactly(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_inside(root, path.as_bytes(), flags, Links::Refuse)
}

fn is_empty(root: BorrowedFd<'_>, path: &str) -> bool {
    let Ok(directory) = open_exactly(root, path, OFlags::RDONLY | OFlags::DIRECTORY) else { return false };
    let Ok(entries) = Dir::new(directory) else { return false };
    let others = |entry: Result<rustix::fs::DirEntry, Errno>| {
        entry.map_or(true, |entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
    };
    !entries.into_iter().any(others)
}

/// What a patch comes to above this image.
pub(crate) enum Shown<'a> {
    /// The image has it already.
    AsItIs,
    Directory,
    File(Cow<'a, [u8]>, u32),
}

/// Reads what a patch needs of the image, and completes it.
pub(crate) fn shown<'a>(lower: BorrowedFd<'_>, patch: &'a Patch) -> Shown<'a> {
    match &patch.content {
        PatchContent::Directory => Shown::Directory,
        PatchContent::File { content, mode } => Shown::File(Cow::Borrowed(content.as_bytes()), *mode),
        PatchContent::Passwd { .. } | PatchContent::Group { .. } => {
            // The plan has seen that it can be completed; if not any more, the image's own remains.
            let Some(image) = read(lower, &patch.path) else { return Shown::AsItIs };
            match patch.content.complete(&image) {
                Some(Ok(completed)) if completed != image => {
                    Shown::File(Cow::Owned(completed), PatchContent::ACCOUNTS_MODE)
                }
                _ => Shown::AsItIs,
            }
        }
    }
}

fn read(root: BorrowedFd<'_>, path: &str) -> Option<Vec<u8>> {
    // Nothing is waited for, should a FIFO have taken the file's place.
    let file = File::from(open_exactly(root, path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?);
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    let limit = u64::try_from(MAX_ACCOUNT_FILE).ok()?;
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(limit)).ok()?);
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Makes what a patch shows at `path` of `session`, with the directories that lead to it.
fn lay(session: BorrowedFd<'_>, path: &str, shown: &Shown<'_>) -> Result<(), Errno> {
    for (end, _) in path.match_indices('/') {
        make_directory(session, path.get(..end).unwrap_or_default(), 0o755)?;
    }
    match shown {
        Shown::AsItIs => Ok(()),
        Shown::Directory => make_directory(session, path, 0o755),
        Shown::File(content, mode) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = openat(session, path, flags, Mode::RUSR | Mode::WUSR)?;
            // Not left to the umask: the container looks the same to everybody.
            fchmod(&file, Mode::from_bits_truncate(*mode))?;
            let written = File::from(file).write_all(content);
            written.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
        }
    }
}

fn make_directory(session: BorrowedFd<'_>, path: &str, mode: u32) -> Result<(), Errno> {
    match mkdirat(session, path, Mode::RWXU) {
        Ok(()) => {
            rustix::fs::chmodat(session, path, Mode::from_bits_truncate(mode), rustix::fs::AtFlags::empty())
        }
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}
