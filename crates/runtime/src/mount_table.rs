//! Changing the flags of a tree of mounts without mount_setattr(2): one remount for each, found in
//! `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
//!
//! The table names mounts by paths, and whoever owns the directories can rename them meanwhile. So a path is walked without
//! following links, what is found there must be the very mount that is meant, and what has moved is looked up again.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::inside::{Links, open_inside};
use crate::mount_api::fd_path;

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: u64,
    parent: u64,
    point: PathBuf,
    flags: MountFlags,
}

/// How often mounts that have moved are looked up again.
const MAX_LOOKS: usize = 16;

/// Adds flags to the mount at `top` and to all mounts below it that can be reached. Flags that a mount
/// has are kept: those that came from a more privileged mount namespace must be (mount_namespaces(7)).
/// `EAGAIN` where mounts do not stay in their places for long enough.
pub(crate) fn remount_all(top: BorrowedFd<'_>, add: MountFlags) -> Result<(), Errno> {
    for _ in 0..MAX_LOOKS {
        if remount_found(top, add)? {
            return Ok(());
        }
    }
    Err(Errno::AGAIN)
}

/// Remounts what is in its place; returns whether that was everything.
fn remount_found(top: BorrowedFd<'_>, add: MountFlags) -> Result<bool, Errno> {
    let mut all = true;
    let table = parse(&read("/proc/self/mountinfo")?);
    let top_id = mount_id(top)?;
    let start = table.iter().find(|entry| entry.id == top_id).ok_or(Errno::NOENT)?;
    let mut tree = BTreeSet::from([top_id]);
    while table.iter().any(|entry| tree.contains(&entry.parent) && tree.insert(entry.id)) {}
    for entry in table.iter().filter(|entry| tree.contains(&entry.id)) {
        let flags = MountFlags::BIND | entry.flags | add;
        if entry.id == top_id {
            mount_remount(fd_path(top), flags, c"")?;
            continue;
        }
        let Ok(below) = entry.point.strip_prefix(&start.point) else { continue };
        if is_hidden(entry, &table) {
            continue;
        }
        match open_inside(top, below.as_os_str().as_bytes(), OFlags::PATH, Links::Refuse) {
            Ok(found) if mount_id(found.as_fd())? == entry.id => {
                mount_remount(fd_path(found.as_fd()), flags, c"")?;
            }
            // Below a directory that this user cannot search: out of reach, for the payload as well.
            Err(Errno::ACCESS) => {}
            // Its directory was removed; the kernel's table says so behind the name.
            Err(Errno::NOENT) if entry.point.as_os_str().as_bytes().ends_with(b"//deleted") => {}
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => all = false,
            Err(errno) => return Err(errno),
        }
    }
    Ok(all)
}

/// Whether another mount lies upon this one, or upon a directory that leads to it: it has no path then, and nobody sees it.
fn is_hidden(entry: &Entry, table: &[Entry]) -> bool {
    let parent_of = |id: u64| table.iter().find(|other| other.id == id).map(|other| other.parent);
    // The table is finite, but its text need not be a tree.
    let mut above = BTreeSet::new();
    let mut id = entry.id;
    while above.insert(id)
        && let Some(parent) = parent_of(id)
    {
        id = parent;
    }
    let covers = |other: &Entry| !above.contains(&other.id) && entry.point.starts_with(&other.point);
    // What is mounted at the same place by another parent is below this one, and not upon it.
    table.iter().any(|other| covers(other) && (other.parent == entry.id || above.contains(&other.parent)))
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
    use std::path::Path;

    use super::*;

    #[test]
    fn a_mount_without_a_path_is_hidden() {
        let entry = |id: u64, parent: u64, point: &str| Entry {
            id,
            parent,
            point: PathBuf::from(point),
            flags: MountFlags::empty(),
        };
        let table = [
            entry(1, 0, "/"),
            entry(2, 1, "/a"),
            entry(3, 2, "/a/b"),
            // Upon /a/b as a whole, and upon what leads to /c/d.
            entry(4, 3, "/a/b"),
            entry(5, 1, "/c/d"),
            entry(6, 1, "/c"),
            // A loop, which no kernel writes.
            entry(8, 9, "/x"),
            entry(9, 8, "/x/y"),
        ];
        let hidden: Vec<u64> =
            table.iter().filter(|entry| is_hidden(entry, &table)).map(|entry| entry.id).collect();
        assert_eq!(hidden, [3, 5]);
    }

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
