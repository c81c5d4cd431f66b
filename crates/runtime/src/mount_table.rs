//! Changing the flags of a tree of mounts without mount_setattr(2): one remount for each, found in
//! `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::mount_api::fd_path;

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: u64,
    parent: u64,
    point: PathBuf,
    flags: MountFlags,
}

/// Adds flags to the mount at `top` and to all mounts below it that can be reached. Flags that a mount
/// has are kept: those that came from a more privileged mount namespace must be (mount_namespaces(7)).
pub(crate) fn remount_all(top: BorrowedFd<'_>, add: MountFlags) -> Result<(), Errno> {
    let table = parse(&read("/proc/self/mountinfo")?);
    let top_id = mount_id(top)?;
    let start = table.iter().find(|entry| entry.id == top_id).ok_or(Errno::NOENT)?;
    let mut tree = BTreeSet::from([top_id]);
    while table.iter().any(|entry| tree.contains(&entry.parent) && tree.insert(entry.id)) {}
    for entry in table.iter().filter(|entry| tree.contains(&entry.id)) {
        // What another mount lies upon as a whole has no path, and nobody sees it.
        let covers = |other: &&Entry| other.parent == entry.id && other.point == entry.point;
        let hidden = entry.id != top_id && table.iter().any(|other| covers(&other));
        let Ok(below) = entry.point.strip_prefix(&start.point) else { continue };
        if hidden {
            continue;
        }
        let path = if below.as_os_str().is_empty() {
            PathBuf::from(fd_path(top))
        } else {
            Path::new(&fd_path(top)).join(below)
        };
        match mount_remount(path, MountFlags::BIND | entry.flags | add, c"") {
            Ok(()) => {}
            // Below a directory that this user cannot search, or gone meanwhile: out of reach.
            Err(Errno::ACCESS | Errno::NOENT) if entry.id != top_id => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<Vec<u8>, Errno> {
    std::fs::read(path).map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// The id of the mount that a descriptor is on: proc_pid_fdinfo(5).
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let text = read(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let text = String::from_utf8_lossy(&text);
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or(Errno::INVAL)
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let point = unescape(fields.nth(2)?);
    let flags = fields.next()?.split(|byte| *byte == b',').fold(MountFlags::empty(), |flags, word| {
        flags
            | match word {
                b"ro" => MountFlags::RDONLY,
                b"nosuid" => MountFlags::NOSUID,
                b"nodev" => MountFlags::NODEV,
                b"noexec" => MountFlags::NOEXEC,
                b"noatime" => MountFlags::NOATIME,
                b"nodiratime" => MountFlags::NODIRATIME,
                b"relatime" => MountFlags::RELATIME,
                b"nosymfollow" => MountFlags::NOSYMFOLLOW,
                _ => MountFlags::empty(),
            }
    });
    Some(Entry { id, parent, point: PathBuf::from(OsStr::from_bytes(&point)), flags })
}

/// Spaces, tabs, line ends and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_read() {
        let line = b"36 35 98:0 /mnt1 /a\\040b\\134c\\ rw,noatime,nosuid master:1 - ext3 /dev/root rw";
        let entry = parse_line(line).unwrap();
        assert_eq!((entry.id, entry.parent), (36, 35));
        assert_eq!(entry.point, Path::new("/a b\\c\\"));
        assert_eq!(entry.flags, MountFlags::NOATIME | MountFlags::NOSUID);
        assert_eq!(parse(b"\n1 x\nnonsense\n1 2 3:4 / \n"), []);
        let own = parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        assert!(own.iter().any(|entry| entry.point == Path::new("/proc")));
    }
}
