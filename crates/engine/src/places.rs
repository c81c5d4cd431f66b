//! What paths of the host lead to, each found once.
//!
//! The policy judges where a path leads, and the runtime opens it later, by its name. In between somebody can
//! exchange a directory or a link. So what is judged is what was opened, the Plan says which file or directory
//! that is, and whoever opens the path afterwards compares.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlink};
use rustix::io::Errno;
use situla_plan::Place;

use crate::error::EngineError;

/// A file or directory of the host.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its path, with no symbolic link in it.
    pub(crate) path: PathBuf,
    /// Which it is; under the path by which it was looked for.
    pub(crate) place: Place,
    pub(crate) is_directory: bool,
}

/// Where paths of the user's led when the policy was asked about them.
pub(crate) type Judged = BTreeMap<PathBuf, PathBuf>;

/// Finds what `path` leads to.
pub(crate) fn find(path: &Path) -> io::Result<Found> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // A directory that is mounted when somebody walks through it is not by O_PATH alone (open(2)).
    let through = openat(CWD, path.join("."), flags, Mode::empty());
    let opened = match through {
        Err(Errno::NOTDIR | Errno::ACCESS) => openat(CWD, path, flags, Mode::empty()),
        other => other,
    };
    found(opened?, path)
}

/// Tells what `opened`, which was looked for as `path`, is.
fn found(opened: OwnedFd, path: &Path) -> io::Result<Found> {
    let stat = fstat(&opened)?;
    let place = Place { path: path.as_os_str().to_owned().into(), dev: stat.st_dev, ino: stat.st_ino };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(Found { path: path_of(&opened)?, place, is_directory })
}

/// The path of what is open, with no symbolic link in it.
pub(crate) fn path_of(opened: impl AsFd) -> io::Result<PathBuf> {
    path_of_number(opened.as_fd().as_raw_fd())
}

/// The same of a descriptor that is known by its number alone.
pub(crate) fn path_of_number(opened: RawFd) -> io::Result<PathBuf> {
    let path = readlink(format!("/proc/self/fd/{opened}"), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

/// The failure of a run whose `path` has led to one thing and then to another.
pub(crate) fn exchanged(path: &Path) -> EngineError {
    EngineError::BadOption {
        message: format!("{} was exchanged for something else while the run was planned", path.display()),
        remedy: "run it again when nobody changes it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_and_what_is_found_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("sub")).unwrap();
        std::fs::write(real.join("sub/file"), "").unwrap();
        std::os::unix::fs::symlink("sub", real.join("link")).unwrap();
        for (asked, path, is_directory) in
            [("link", "sub", true), ("sub/../link/file", "sub/file", false), ("sub", "sub", true)]
        {
            let asked = real.join(asked);
            let found = find(&asked).unwrap();
            assert_eq!((found.path, found.is_directory), (real.join(path), is_directory));
            assert_eq!(found.place.path, asked.into_os_string().into());
        }
        for (asked, kind) in [("no", io::ErrorKind::NotFound), ("sub/file/x", io::ErrorKind::NotADirectory)] {
            assert_eq!(find(&real.join(asked)).unwrap_err().kind(), kind, "{asked}");
        }
    }
}
