//! Looking paths up inside a root, without ever leaving it.
//!
//! openat2(2) does that (Linux 5.6). Where the kernel does not have it, a filter refuses it, or so much is mounted and
//! renamed meanwhile that it gives up, the path is walked name by name from descriptor to descriptor, which gives the same result: no name is
//! followed before it is known what it is, and `..` goes back on the way that was come.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, readlinkat};
use rustix::io::{Errno, dup};

/// Symbolic links that are followed in one path, as the kernel does: path_resolution(7).
const MAX_LINKS: usize = 40;

/// How often the kernel is asked. It gives up with `EAGAIN` at a `..` while anything is mounted or renamed anywhere on
/// the machine (openat2(2)), and other tasks of a node do so when this one does.
const MAX_TRIES: u32 = 64;

/// `#define PROC_SUPER_MAGIC 0x9fa0` (linux/magic.h).
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Whether symbolic links may be part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// They are followed, inside the root.
    Follow,
    /// They are an error: `ELOOP`.
    Refuse,
}

/// Opens `path` inside `root`; the descriptor is closed by exec.
pub fn open_inside(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let resolve = match links {
        Links::Follow => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        Links::Refuse => ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    };
    match ask_kernel(root, path, flags, resolve) {
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => walk(root, path, flags, links),
        other => other,
    }
}

/// openat2(2), again and again where it gives up.
fn ask_kernel(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = (0..MAX_TRIES).map(|_| openat2(root, path, flags, Mode::empty(), resolve));
    tries.find(|tried| !matches!(tried, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
}

/// Opens `path` as open(2) does, but never through a link of `/proc` that is no path.
pub(crate) fn open_without_magic(path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let mut from_root = match path.starts_with(b"/") {
                true => Vec::new(),
                false => rustix::process::getcwd(Vec::new())?.into_bytes(),
            };
            from_root.push(b'/');
            from_root.extend_from_slice(path);
            walk(root.as_fd(), &from_root, flags, Links::Follow)
        }
        other => other,
    }
}

/// [`open_inside`] by hand.
fn walk(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    let names = |path: &[u8]| -> VecDeque<Vec<u8>> {
        let parts = path.split(|byte| *byte == b'/');
        parts.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect()
    };
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut left = names(path);
    // What was found on the way from the root to here, each with its name in the one before.
    let mut way: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    let mut n_links = 0;
    while let Some(name) = left.pop_front() {
        if name == b".." {
            way.pop();
            continue;
        }
        let here = way.last().map_or(root, |(here, _)| here.as_fd());
        let found = openat(here, name.as_slice(), look, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink {
            n_links += 1;
            if links == Links::Refuse || n_links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = readlinkat(&found, c"", Vec::new())?.into_bytes();
            if target.starts_with(b"/") {
                // Of the links of /proc those that are paths are relative. The others lead to an open file
                // whatever their text says; what lies there, seen from here, can be another mount of it.
                if fstatfs(&found)?.f_type == PROC_SUPER_MAGIC {
                    return Err(Errno::LOOP);
                }
                way.clear();
            }
            for name in names(&target).into_iter().rev() {
                left.push_front(name);
            }
            continue;
        }
        way.push((found, name));
    }
    let Some((found, name)) = way.pop() else {
        return openat(root, c".", flags, Mode::empty()).or_else(|_| dup(root));
    };
    if flags.contains(OFlags::PATH) {
        if flags.contains(OFlags::DIRECTORY)
            && FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Directory
        {
            return Err(Errno::NOTDIR);
        }
        return Ok(found);
    }
    // By its name once more, not through `/proc`, which a container need not have. Should there be a link
    // by now, it is not followed.
    let here = way.last().map_or(root, |(here, _)| here.as_fd());
    openat(here, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn renames_elsewhere_are_no_obstacle() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        symlink("../../a/../a/b/../b/c", root.join("a/b/winding")).unwrap();
        let handle = fs::File::open(root).unwrap();
        let stop = AtomicBool::new(false);
        let gave_up = std::thread::scope(|scope| {
            for name in ["x", "y"] {
                let stop = &stop;
                scope.spawn(move || {
                    // Of directories: that is what the kernel counts.
                    let (one, other) = (root.join(name), root.join(format!("{name}{name}")));
                    fs::create_dir(&one).unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        fs::rename(&one, &other).unwrap();
                        fs::rename(&other, &one).unwrap();
                    }
                });
            }
            let mut gave_up = 0;
            for _ in 0..20_000 {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let path = "a/b/winding";
                let once = openat2(&handle, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).err();
                gave_up += u32::from(once == Some(Errno::AGAIN));
                let found = open_inside(handle.as_fd(), path.as_bytes(), OFlags::PATH, Links::Follow);
                assert!(found.is_ok(), "{found:?}");
            }
            stop.store(true, Ordering::Relaxed);
            gave_up
        });
        // Where the kernel has the call it has given up at times, or there was nothing to see here.
        println!("the kernel gave up {gave_up} times");
    }

    #[test]
    fn walking_gives_what_the_kernel_gives() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/file"), "x").unwrap();
        for (target, link) in [
            ("/a/b", "absolute"),
            ("../../../../a/b", "a/climbs"),
            ("b/../b/c", "a/winding"),
            ("loop", "loop"),
            ("/etc/passwd", "out"),
            ("../../..", "a/b/up"),
            ("nothing", "dangling"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let handle = fs::File::open(root).unwrap();
        let paths = [
            "/",
            "",
            ".",
            "..",
            "/..",
            "a",
            "/a/b/c",
            "a/b/../file",
            "absolute/c",
            "a/climbs",
            "a/winding",
            "loop",
            "out",
            "a/b/up",
            "a/b/up/a/file",
            "dangling",
            "a/file/x",
            "a/file/..",
            "missing/..",
            "a//b/",
            "../../a/b/c/../../../..",
        ];
        for links in [Links::Follow, Links::Refuse] {
            for path in paths {
                let resolve = match links {
                    Links::Follow => ResolveFlags::IN_ROOT,
                    Links::Refuse => ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
                };
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let identity = |fd: OwnedFd| {
                    let metadata = fs::File::from(fd).metadata().unwrap();
                    (metadata.dev(), metadata.ino())
                };
                let kernel = ask_kernel(handle.as_fd(), path.as_bytes(), flags, resolve).map(identity);
                let ours = walk(handle.as_fd(), path.as_bytes(), flags, links).map(identity);
                // The kernel refuses an empty path, and `..` of what is no directory; nobody asks for either.
                if matches!(path, "" | "a/file/..") {
                    continue;
                }
                assert_eq!(ours, kernel, "{path} {links:?}");
            }
        }
        // Links of /proc: those that are paths are followed, the others are not.
        let proc = fs::File::open("/proc").unwrap();
        let own = std::env::current_exe().unwrap();
        symlink("/proc/self/exe", root.join("exe")).unwrap();
        for (path, followed) in [
            (&b"/self/stat"[..], true),
            (b"/mounts", true),
            (b"/self/exe", false),
            (b"/self/cwd", false),
            (b"/thread-self/root/proc", false),
            (b"/self/fd/0", false),
        ] {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let kernel = ask_kernel(proc.as_fd(), path, flags, resolve);
            let ours = walk(proc.as_fd(), path, flags, Links::Follow);
            assert_eq!((kernel.is_ok(), ours.is_ok()), (followed, followed), "{path:?}: {ours:?}");
        }
        let host = fs::File::open("/").unwrap();
        let link = root.join("exe");
        let through = |path: &std::path::Path| {
            walk(host.as_fd(), path.as_os_str().as_encoded_bytes(), OFlags::RDONLY, Links::Follow)
        };
        assert!(through(&own).is_ok(), "the program has a path here");
        assert_eq!(through(&link).map(drop), Err(Errno::LOOP), "but that link is none");
        let read = walk(handle.as_fd(), b"a/b/up/a/file", OFlags::RDONLY, Links::Follow).unwrap();
        assert_eq!(std::io::read_to_string(fs::File::from(read)).unwrap(), "x");
    }
}
