//! Patches above a directory, each as near to its place as can be: a file of a small tmpfs bound over
//! the image's, a directory of it bound where the image has an empty one, and an overlay over a
//! directory that has other entries.
//!
//! An overlay costs something to make and a little with every path that is looked up in it, and the
//! payload looks up hundreds. The usual patches are `/etc/passwd` and `/etc/group`, which exist, a home
//! below a `/home` that is empty, and mount points in `/etc`. Only for a new name in the root itself
//! [`Covers::make`] gives `None`, and the caller lays an overlay over all.

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
use crate::mount_api::{Detached, MountApi, fd_path};
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
    kind: Kind,
}

/// How a cover shows what it has to.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A file, bound over the image's.
    File,
    /// A directory, bound over an empty one.
    Empty,
    /// An overlay over a directory with entries of its own.
    Merged,
}

impl Site<'_> {
    /// Whether `path` lies in the directory that this covers.
    fn holds(&self, path: &str) -> bool {
        self.kind != Kind::File && path.strip_prefix(self.path).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Covers {
    /// Prepares covers that show `patches` on the detached root `lower`; `None` where a patch is a new
    /// name in the root, or replaces something that is no file.
    pub(crate) fn make(
        api: &MountApi,
        patches: &[Patch],
        lower: &Detached,
        place: BorrowedFd<'_>,
        attributes: MountAttributes,
    ) -> Result<Option<Self>, Failure> {
        let contents: Vec<Shown<'_>> = patches.iter().map(|patch| shown(lower.as_fd(), patch)).collect();
        let mut sites: Vec<Site<'_>> = Vec::new();
        for (patch, _) in patches.iter().zip(&contents).filter(|(_, shown)| !matches!(shown, Shown::AsItIs)) {
            if sites.iter().any(|site| site.holds(&patch.path)) {
                continue;
            }
            match find(lower.as_fd(), patch) {
                Found::Nothing => return Ok(None),
                Found::There => {}
                Found::Site(site) => {
                    // What was to be covered inside an overlay goes into it.
                    sites.retain(|other| !site.holds(other.path));
                    sites.push(site);
                }
            }
        }
        let fail =
            |errno| Failure::of_call(FailureClass::Rootfs, "cannot prepare files above the image", errno);
        let session = new_tmpfs(api, &[])?;
        for (number, site) in sites.iter().enumerate().filter(|(_, site)| site.kind != Kind::File) {
            let mode = fstat(&site.target).map_err(fail)?.st_mode & 0o7777;
            make_directory(session.as_fd(), &number.to_string(), mode).map_err(fail)?;
        }
        for (patch, shown) in patches.iter().zip(&contents) {
            let shows = |site: &Site<'_>| site.path == patch.path || site.holds(&patch.path);
            let Some(number) = sites.iter().position(shows) else { continue };
            let Some(site) = sites.get(number) else { continue };
            lay(session.as_fd(), number, lower.as_fd(), (site.path, &patch.path), shown).map_err(fail)?;
        }
        let merged = sites.iter().any(|site| site.kind == Kind::Merged);
        if merged {
            session.settle(place).map_err(fail)?;
            lower.settle_within(&session, "lower").map_err(fail)?;
        }
        session.restrict(attributes).map_err(fail)?;
        if !merged {
            session.settle(place).map_err(fail)?;
        }
        let covered = |(number, site): (usize, Site<'_>)| {
            let mount = match site.kind {
                Kind::File | Kind::Empty => api.copy_below(session.as_fd(), &number.to_string())?,
                Kind::Merged => {
                    // Without an upper directory nothing is ever copied, and no work directory is made.
                    let layers =
                        format!("{}/{number}:{}", fd_path(session.as_fd()), fd_path(site.target.as_fd()));
                    let settings = [("lowerdir", Some(layers.as_str())), ("userxattr", None)];
                    api.create("overlay", &settings, attributes)?
                }
            };
            Ok((site.target, mount))
        };
        let covers = sites.into_iter().enumerate().map(covered).collect::<Result<_, _>>().map_err(fail)?;
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
    /// Nothing but an overlay over all.
    Nothing,
    /// It is there already.
    There,
    /// A file that it replaces, or a directory above it.
    Site(Site<'a>),
}

/// Looks for the file that `patch` replaces, or for the directory to put it in.
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
                        Found::Site(Site { path, target, kind: Kind::File })
                    }
                    (Ok(FileType::Directory), PatchContent::Directory) if whole => Found::There,
                    (Ok(FileType::Directory), _) if !whole => {
                        let kind = if is_empty(lower, path) { Kind::Empty } else { Kind::Merged };
                        Found::Site(Site { path, target, kind })
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
pub(crate) fn open_exactly(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
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

/// Makes what a patch shows below the entry `number` of `session`, with the directories that lead to it:
/// those that `lower` has as well have its modes. `from` and `to` are the paths of site and patch.
fn lay(
    session: BorrowedFd<'_>,
    number: usize,
    lower: BorrowedFd<'_>,
    (from, to): (&str, &str),
    shown: &Shown<'_>,
) -> Result<(), Errno> {
    let inside = |path: &str| format!("{number}{}", path.strip_prefix(from).unwrap_or_default());
    for (end, _) in to.match_indices('/').filter(|(end, _)| *end > from.len()) {
        let directory = to.get(..end).unwrap_or_default();
        let found = open_exactly(lower, directory, OFlags::PATH | OFlags::NOFOLLOW);
        let mode = found.and_then(|found| fstat(&found)).map_or(0o755, |found| found.st_mode & 0o7777);
        make_directory(session, &inside(directory), mode)?;
    }
    match shown {
        Shown::AsItIs => Ok(()),
        Shown::Directory => make_directory(session, &inside(to), 0o755),
        Shown::File(content, mode) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = openat(session, inside(to), flags, Mode::RUSR | Mode::WUSR)?;
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
