//! Patches written into a directory itself, where it is the container's own: then programs inside find plain files, which
//! they can replace, and no mounts.
//!
//! Other processes may run in the directory and change it meanwhile. No link in it is followed, and a file appears complete.

use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use situla_plan::{Patch, PatchContent};

use crate::covers::{Shown, open_exactly, shown};
use crate::failure::{Failure, FailureClass};

/// Makes what `patches` show be there in `root`. What is there already stays as it is.
pub fn inscribe(root: BorrowedFd<'_>, patches: &[Patch]) -> Result<(), Failure> {
    for patch in patches {
        write(root, patch).map_err(|errno| {
            let message = format!("cannot write {} into the container", patch.path);
            Failure::of_call(FailureClass::Rootfs, message, errno)
        })?;
    }
    Ok(())
}

fn write(root: BorrowedFd<'_>, patch: &Patch) -> Result<(), Errno> {
    let path = patch.path.trim_start_matches('/');
    // A mount point that another start has made.
    let is_empty_file =
        matches!(&patch.content, PatchContent::File { content, .. } if content.as_bytes().is_empty());
    if is_empty_file && open_exactly(root, &patch.path, OFlags::PATH | OFlags::NOFOLLOW).is_ok() {
        return Ok(());
    }
    match shown(root, patch) {
        Shown::AsItIs => Ok(()),
        Shown::Directory => directory(root, path).map(drop),
        Shown::File(content, mode) => {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let above = directory(root, above)?;
            let pending = format!(".situla-{}.{name}", std::process::id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // Of a process of this number that was killed.
            let _ = unlinkat(&above, pending.as_str(), AtFlags::empty());
            let file = openat(&above, pending.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
            let written = fchmod(&file, Mode::from_bits_truncate(mode)).and_then(|()| {
                let written = File::from(file).write_all(&content);
                written.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
            });
            let placed = written.and_then(|()| renameat(&above, pending.as_str(), &above, name));
            if placed.is_err() {
                let _ = unlinkat(&above, pending.as_str(), AtFlags::empty());
            }
            placed
        }
    }
}

/// Opens the directory `path`, which is made where it is not there, with those above it.
fn directory(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if path.is_empty() {
        return openat(root, ".", flags, Mode::empty());
    }
    match open_exactly(root, path, flags) {
        Err(Errno::NOENT) => {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let above = directory(root, above)?;
            match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open_exactly(root, path, flags),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use situla_plan::Text;

    use super::*;

    fn patch(path: &str, content: PatchContent) -> Patch {
        Patch { path: path.to_owned(), content, reason: String::new() }
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "own").unwrap();
        let root = File::open(dir.path()).unwrap();
        let empty = || PatchContent::File { content: Text::default(), mode: 0o644 };
        let named = PatchContent::File { content: Text::from("box\n"), mode: 0o600 };
        let patches = [
            patch("/a/b", PatchContent::Directory),
            patch("/etc/hosts", empty()),
            patch("/etc/new", empty()),
            patch("/etc/hostname", named),
        ];
        for _ in 0..2 {
            inscribe(root.as_fd(), &patches).unwrap();
            assert!(dir.path().join("a/b").is_dir());
            let read = |name: &str| fs::read_to_string(dir.path().join("etc").join(name)).unwrap();
            assert_eq!((read("hosts").as_str(), read("new").as_str()), ("own", ""));
            assert_eq!(read("hostname"), "box\n");
            assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 3);
        }
    }

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let root = dir.path().join("root");
        for path in [&outside, &root] {
            fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&outside, root.join("etc")).unwrap();
        let open = File::open(&root).unwrap();
        for content in [PatchContent::Directory, PatchContent::File { content: Text::from("x"), mode: 0o644 }]
        {
            assert!(inscribe(open.as_fd(), &[patch("/etc/x", content)]).is_err());
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
