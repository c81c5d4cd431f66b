//! Paths inside the image, resolved as if its root were `/`.

use crate::error::{Error, Result};
use crate::reader::image::Image;
use crate::reader::inode::{FileType, Inode, InodeKind};

/// Symbolic links on the way (`MAXSYMLINKS` of the kernel).
const MAX_LINKS: usize = 40;
/// Bytes of path left to walk, links expanded.
const MAX_PATH: usize = 64 << 10;

impl Image {
    /// Reads the target of a symbolic link.
    pub fn read_link(&self, link: &Inode) -> Result<Vec<u8>> {
        let InodeKind::Symlink(data) = &link.kind else { return Err(link.wrong_kind("symbolic link")) };
        let mut target = vec![0; usize::from(data.length)];
        crate::reader::metadata::Cursor::new(self, data.target)?.read(&mut target)?;
        Ok(target)
    }

    /// Walks `path` from the root of the image; `None` if it leads nowhere.
    ///
    /// Absolute link targets start at the root of the image and `..` never leaves it. A link as the
    /// last component is followed if `follow` is set or the path ends in a slash.
    pub fn resolve(&self, path: impl AsRef<[u8]>, follow: bool) -> Result<Option<Inode>> {
        Ok(self.walk(path.as_ref(), follow)?.map(|(_, found)| found))
    }

    /// Follows `path` and looks for `name` in the directory in which it ends: where a link leads to,
    /// not where it lies. `None` if there is no such file.
    pub fn resolve_beside(&self, path: impl AsRef<[u8]>, name: &[u8]) -> Result<Option<Inode>> {
        let Some((directory, _)) = self.walk(path.as_ref(), true)? else { return Ok(None) };
        let Some(entry) = self.lookup(&directory, name)? else { return Ok(None) };
        self.inode(entry.inode_ref).map(Some)
    }

    /// The inode at the end of `path`, with the directory that it was found in.
    fn walk(&self, path: &[u8], follow: bool) -> Result<Option<(Inode, Inode)>> {
        let mut rest = path.to_vec();
        let mut links = 0;
        // The directories from the root to the one the walk is in.
        let mut chain = vec![self.inode(self.root())?];
        loop {
            let Some(here) = chain.last().copied() else { return Ok(None) };
            let skip = rest.iter().take_while(|byte| **byte == b'/').count();
            rest.drain(..skip);
            if rest.is_empty() {
                let parent = chain.iter().rev().nth(1).copied().unwrap_or(here);
                return Ok(Some((parent, here)));
            }
            if here.file_type() != FileType::Directory {
                return Ok(None);
            }
            let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let name: Vec<u8> = rest.drain(..length).collect();
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if chain.len() > 1 {
                        chain.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(entry) = self.lookup(&here, &name)? else { return Ok(None) };
            let inode = self.inode(entry.inode_ref)?;
            match inode.file_type() {
                FileType::Symlink if follow || !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::TooManyLinks);
                    }
                    let mut target = self.read_link(&inode)?;
                    if target.is_empty() {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        chain.truncate(1);
                    }
                    target.extend_from_slice(&rest);
                    if target.len() > MAX_PATH {
                        return Err(Error::TooManyLinks);
                    }
                    rest = target;
                }
                FileType::Directory => chain.push(inode),
                _ if rest.is_empty() => return Ok(Some((here, inode))),
                _ => return Ok(None),
            }
        }
    }

    /// Reads a regular file by path, links followed; `None` if there is none at `path`.
    ///
    /// Fails if it is longer than `max_bytes`.
    pub fn read_file(&self, path: impl AsRef<[u8]>, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        let Some(inode) = self.resolve(path, true)? else { return Ok(None) };
        if inode.file_type() != FileType::File {
            return Ok(None);
        }
        let limit = max_bytes as u64;
        let length = usize::try_from(inode.size)
            .ok()
            .filter(|length| *length <= max_bytes)
            .ok_or(Error::Limit { what: "file size", value: inode.size, limit })?;
        let mut content = vec![0; length];
        let read = self.read(&inode, 0, &mut content)?;
        content.truncate(read);
        Ok(Some(content))
    }
}
