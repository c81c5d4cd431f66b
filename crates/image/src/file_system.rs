//! What a file system cannot do, so that the message says which it is, and not what the kernel makes of it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use thiserror::Error;

/// A file system lacks what is needed.
#[derive(Debug, Error)]
#[error("the file system there, of the kind {file_system}, has {lacks}")]
pub struct Incapable {
    /// What it lacks.
    pub lacks: Lacks,
    /// Its name, as mount(8) has it.
    pub file_system: String,
}

/// What some file systems have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Lacks {
    /// A way to give a complete file its name only where nobody else has one of that name.
    #[error("neither hard links nor a rename that replaces nothing")]
    NewNames,
    /// Symbolic links.
    #[error("no symbolic links")]
    SymbolicLinks,
    /// Several names of a file.
    #[error("no hard links")]
    HardLinks,
}

impl Incapable {
    /// The error of whoever needs what the file system lacks where `path` is, or was to be.
    pub(crate) fn at(path: &Path, lacks: Lacks) -> io::Error {
        // What was to be there need not be there yet.
        let there = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            fs::metadata(path).map(|metadata| metadata.dev()).ok()
        };
        let device = path.ancestors().find_map(there);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let file_system = device.and_then(|device| kind_of(&table, device)).unwrap_or("unknown").to_owned();
        io::Error::new(io::ErrorKind::Unsupported, Self { lacks, file_system })
    }

    /// The one in an error of a file.
    #[must_use]
    pub fn in_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Tells whether an error says that something cannot be done there at all.
pub(crate) fn is_inability(errno: Errno) -> bool {
    // EPERM is what link(2) and symlink(2) have for it, ENOSYS what servers of FUSE say.
    matches!(errno, Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL)
}

/// Finds the kind of a file system in `/proc/PID/mountinfo` (proc(5)): the third field is its device, and the first after
/// the lone `-` its kind.
fn kind_of(table: &str, device: u64) -> Option<&str> {
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(device.as_str()))?;
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_device() {
        let table = "22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                     30 28 8:1 / / ro - ext4 /dev/sda1 rw\n\
                     31 30 0:55 / /m rw - fuse.plain plain rw,user_id=0\n\
                     short\n";
        let device = |major, minor| rustix::fs::makedev(major, minor);
        for (device, kind) in [
            (device(8, 1), Some("ext4")),
            (device(0, 55), Some("fuse.plain")),
            (device(0, 5), None),
            (device(8, 2), None),
        ] {
            assert_eq!(kind_of(table, device), kind);
        }
        let error = Incapable::at(Path::new("/proc"), Lacks::NewNames);
        assert_eq!(Incapable::in_io(&error).map(|found| found.lacks), Some(Lacks::NewNames));
        assert!(error.to_string().contains("of the kind proc, has neither hard links"), "{error}");
        let below = Incapable::at(Path::new("/proc/none/at/all"), Lacks::HardLinks);
        assert!(below.to_string().contains("of the kind proc, has no hard links"), "{below}");
        assert!(Incapable::in_io(&io::Error::from(io::ErrorKind::Unsupported)).is_none());
    }
}
