//! Looking into a root file system before it is mounted: what is at a path, and where a path leads.
//!
//! Symbolic links are followed inside the root; nothing that an image contains can lead out of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType as HostType, OFlags};
use rustix::io::Errno;
use situla_runtime::{Links, open_inside};
use situla_squashfs::{FileType, Image};

use crate::directory_view::DirectoryView;

/// The most links that one path may lead through: what the kernel allows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// A root file system that can be looked into.
#[derive(Debug)]
pub(crate) enum ImageView {
    /// A SquashFS image.
    Squashfs(Box<Image>),
    /// A directory of the host.
    Directory(DirectoryView),
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A directory.
    Directory,
    /// A symbolic link, with its target.
    Symlink(String),
    /// Anything that is no directory.
    File,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// The path with all links followed, as far as things exist; `/` for the root.
    pub(crate) path: String,
    /// What is there; a link only where it leads nowhere.
    pub(crate) found: Option<Found>,
}

/// The root file system cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    /// A read failed.
    #[error("cannot read {path} in the image")]
    Read {
        /// The path inside.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A path leads through too many links, or through something that is no directory.
    #[error("{path} leads nowhere inside the image")]
    Dead {
        /// The path inside.
        path: String,
    },
}

impl ImageView {
    /// Opens a directory of the host.
    pub(crate) fn open_directory(path: &Path) -> Result<Self, Errno> {
        DirectoryView::open(path).map(ImageView::Directory)
    }

    /// Reads a whole file, links followed; `None` where there is none.
    pub(crate) fn read_file(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, ViewError> {
        let fail = |source| ViewError::Read { path: path.to_owned(), source };
        match self {
            ImageView::Squashfs(image) => image.read_file(path, limit).map_err(|error| fail(error.into())),
            ImageView::Directory(root) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = match open_inside(root.as_fd(), path.as_bytes(), flags, Links::Follow) {
                    Ok(file) => File::from(file),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                    Err(errno) => return Err(fail(errno.into())),
                };
                if !file.metadata().map_err(|error| fail(error.into()))?.is_file() {
                    return Ok(None);
                }
                let mut bytes = Vec::new();
                let limit = u64::try_from(limit).unwrap_or(u64::MAX);
                file.take(limit).read_to_end(&mut bytes).map_err(|error| fail(error.into()))?;
                Ok(Some(bytes))
            }
        }
    }

    /// The length of the regular file at a path that leads through no links; `None` for anything else.
    pub(crate) fn file_size(&self, path: &str) -> Result<Option<u64>, ViewError> {
        let fail = |source| ViewError::Read { path: path.to_owned(), source };
        match self {
            ImageView::Squashfs(image) => {
                let found = image.resolve(path, false).map_err(|error| fail(error.into()))?;
                Ok(found.filter(|inode| inode.file_type() == FileType::File).map(|inode| inode.size))
            }
            ImageView::Directory(root) => match root.stat(path) {
                Ok(stat) if HostType::from_raw_mode(stat.st_mode) == HostType::RegularFile => {
                    Ok(u64::try_from(stat.st_size).ok())
                }
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                Err(errno) => Err(fail(errno.into())),
            },
        }
    }

    /// Lists the names of a directory, sorted; empty where there is none.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>, ViewError> {
        let fail = |source| ViewError::Read { path: path.to_owned(), source };
        let mut names = match self {
            ImageView::Squashfs(image) => {
                let found = image.resolve(path, true).map_err(|error| fail(error.into()))?;
                let Some(inode) = found.filter(|inode| inode.file_type() == FileType::Directory) else {
                    return Ok(Vec::new());
                };
                let entries = image.read_dir(&inode).map_err(|error| fail(error.into()))?;
                entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok()).collect::<Vec<_>>()
            }
            ImageView::Directory(root) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let directory = match open_inside(root.as_fd(), path.as_bytes(), flags, Links::Follow) {
                    Ok(directory) => directory,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
                    Err(errno) => return Err(fail(errno.into())),
                };
                let entries = rustix::fs::Dir::new(directory).map_err(|errno| fail(errno.into()))?;
                let mut names = Vec::new();
                for entry in entries {
                    let entry = entry.map_err(|errno| fail(errno.into()))?;
                    names.extend(entry.file_name().to_str().ok().map(str::to_owned));
                }
                names.retain(|name| name != "." && name != "..");
                names
            }
        };
        names.sort_unstable();
        Ok(names)
    }

    /// Follows `path` as far as it exists.
    pub(crate) fn locate(&self, path: &str) -> Result<Located, ViewError> {
        let dead = || ViewError::Dead { path: path.to_owned() };
        let mut pending: VecDeque<String> = names(path).collect();
        let mut done: Vec<String> = Vec::new();
        let mut n_links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            let here = joined(&done);
            match self.entry(&here)? {
                Some(Found::Directory) => {}
                Some(Found::File) if pending.is_empty() => {
                    return Ok(Located { path: here, found: Some(Found::File) });
                }
                Some(Found::File) => return Err(dead()),
                Some(Found::Symlink(target)) => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(dead());
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(name);
                    }
                }
                None => {
                    // Nothing below exists either; ".." behind it would be a riddle.
                    if pending.iter().any(|name| name == "..") {
                        return Err(dead());
                    }
                    done.extend(pending.drain(..));
                    return Ok(Located { path: joined(&done), found: None });
                }
            }
        }
        Ok(Located { path: joined(&done), found: Some(Found::Directory) })
    }

    /// What is at a path none of whose parents is a link.
    fn entry(&self, path: &str) -> Result<Option<Found>, ViewError> {
        let fail = |source| ViewError::Read { path: path.to_owned(), source };
        match self {
            ImageView::Squashfs(image) => {
                let Some(inode) = image.resolve(path, false).map_err(|error| fail(error.into()))? else {
                    return Ok(None);
                };
                Ok(Some(match inode.file_type() {
                    FileType::Directory => Found::Directory,
                    FileType::Symlink => {
                        let target = image.read_link(&inode).map_err(|error| fail(error.into()))?;
                        Found::Symlink(String::from_utf8_lossy(&target).into_owned())
                    }
                    _ => Found::File,
                }))
            }
            ImageView::Directory(root) => {
                let stat = match root.stat(path) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(errno) => return Err(fail(errno.into())),
                };
                Ok(Some(match HostType::from_raw_mode(stat.st_mode) {
                    HostType::Directory => Found::Directory,
                    HostType::Symlink => {
                        Found::Symlink(root.read_link(path).map_err(|errno| fail(errno.into()))?)
                    }
                    _ => Found::File,
                }))
            }
        }
    }
}

/// The names of a path, without empty ones and `.`.
fn names(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter(|name| !matches!(*name, "" | ".")).map(str::to_owned)
}

fn joined(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_followed_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("usr/lib")).unwrap();
        std::fs::write(at("usr/lib/file"), b"text").unwrap();
        for (target, link) in [
            ("usr/lib", "lib"),
            ("/lib/file", "absolute"),
            ("../../../lib", "usr/up"),
            ("loop", "loop"),
            ("/run/nowhere", "dangling"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let view = ImageView::open_directory(root.path()).unwrap();
        for (path, expected, found) in [
            ("/", "/", Some(Found::Directory)),
            ("/lib/file", "/usr/lib/file", Some(Found::File)),
            ("/absolute", "/usr/lib/file", Some(Found::File)),
            ("/usr/up/./file", "/usr/lib/file", Some(Found::File)),
            ("/usr/../../..", "/", Some(Found::Directory)),
            ("/lib/new/deep", "/usr/lib/new/deep", None),
            ("/dangling", "/run/nowhere", None),
        ] {
            let located = view.locate(path).unwrap();
            assert_eq!((located.path.as_str(), located.found), (expected, found), "{path}");
        }
        for path in ["/loop", "/lib/file/below", "/missing/../usr"] {
            assert!(matches!(view.locate(path), Err(ViewError::Dead { .. })), "{path}");
        }
        assert_eq!(view.read_file("/absolute", 2).unwrap().unwrap(), b"te");
        assert_eq!(view.read_file("/lib", 9).unwrap(), None);
        assert_eq!(view.list("/lib").unwrap(), ["file"]);
        let sizes =
            ["/usr/lib/file", "/usr/lib", "/absolute", "/missing"].map(|path| view.file_size(path).unwrap());
        assert_eq!(sizes, [Some(4), None, None, None]);
    }
}
