//! Records that their owner has closed to himself.
//!
//! A task that was killed is judged by its record, and whoever may change its mode must not keep a step going by that.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, chmod, fstat, open};
use rustix::process::geteuid;

use crate::id::RecordId;
use crate::journal::{JournalError, Loaded, load};

/// As [`load`], where the record's owner, who is this process's user, has closed it to himself: it is opened for the time
/// of reading.
///
/// # Errors
/// As [`load`].
pub fn load_closed(dir: &Path, id: &RecordId) -> Result<Loaded, JournalError> {
    let path = dir.join(id.relative_path());
    // From above: what is below a closed directory cannot be looked at.
    let _opened: Vec<_> =
        [Some(dir), path.parent(), Some(&path)].into_iter().flatten().filter_map(Opened::by_owner).collect();
    load(dir, id)
}

/// A file or directory that was closed to its owner, and is so again when this is dropped.
#[derive(Debug)]
struct Opened {
    place: PathBuf,
    mode: Mode,
    _file: OwnedFd,
}

impl Opened {
    /// `None` where nothing is to be done, or nothing can.
    fn by_owner(path: &Path) -> Option<Self> {
        let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let stat = fstat(&file).ok()?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let wanted = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Mode::RUSR,
            FileType::Directory => Mode::RUSR | Mode::XUSR,
            _ => return None,
        };
        if stat.st_uid != geteuid().as_raw() || mode.contains(wanted) {
            return None;
        }
        // A descriptor without rights to the file can only be named, for a change of its mode (open(2), O_PATH).
        let place = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        chmod(&place, mode | wanted).ok()?;
        Some(Opened { place, mode, _file: file })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // It was possible a moment ago; a record that stays readable to its owner does no harm.
        let _ = chmod(&self.place, self.mode);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn closed_files_and_directories_are_opened_and_closed_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("a file");
        let mode = |path: &Path| metadata(path).expect("metadata").permissions().mode() & 0o7777;
        for (path, closed, open) in
            [(file.as_path(), 0o000, 0o400), (&file, 0o240, 0o640), (dir.path(), 0o200, 0o700)]
        {
            set_permissions(path, Permissions::from_mode(closed)).expect("closing");
            let opened = Opened::by_owner(path).expect("opening");
            assert_eq!(mode(path), open, "{}", path.display());
            drop(opened);
            assert_eq!(mode(path), closed, "{}", path.display());
            set_permissions(path, Permissions::from_mode(open)).expect("opening");
            assert!(Opened::by_owner(path).is_none(), "what is open stays as it is");
            set_permissions(path, Permissions::from_mode(0o700)).expect("opening");
        }
    }

    #[test]
    fn what_is_another_users_or_a_link_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").expect("a file");
        set_permissions(&file, Permissions::from_mode(0o000)).expect("closing");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        assert!(Opened::by_owner(&link).is_none());
        assert!(Opened::by_owner(&dir.path().join("absent")).is_none());
    }
}
