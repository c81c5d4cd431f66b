//! The names of the merged tree while layers arrive from the top down.
//!
//! Every slot remembers the level that filled it. An entry of a lower level shows only where no upper
//! level has put anything, whited the name out, made a directory on the way opaque, or replaced one by
//! something else.

use std::collections::BTreeMap;

use super::merge::MergeError;
use crate::layer::MAX_PATH;
use crate::tree::{Child, Directory, InodeId, Meta};

/// A layer's rank: higher hides lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(pub u32);

/// Index of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirId(usize);

pub(crate) const ROOT: DirId = DirId(0);

/// Symbolic links followed for one path, as in Linux.
const MAX_SYMLINKS: usize = 40;
/// Deepest directory: the longest path has one component in two bytes.
const MAX_DEPTH: usize = MAX_PATH / 2;

#[derive(Debug)]
enum Slot {
    Dir(DirId),
    Leaf { inode: InodeId, level: Level, symlink: Option<Box<[u8]>> },
    Whiteout(Level),
}

#[derive(Debug)]
struct Dir {
    children: BTreeMap<Vec<u8>, Slot>,
    /// `None` while only entries below it were seen.
    meta: Option<Meta>,
    /// Level that created the slot.
    level: Level,
    /// Children from levels below this one are hidden.
    barrier: Option<Level>,
}

/// Where a visible entry goes.
#[derive(Debug)]
pub(crate) struct Place {
    dir: DirId,
    name: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Overlay {
    dirs: Vec<Dir>,
}

impl Overlay {
    pub(crate) fn new(level: Level) -> Self {
        Self { dirs: vec![Dir { children: BTreeMap::new(), meta: None, level, barrier: None }] }
    }

    /// Finds the directory at `path` for entries of `level`, making implicit ones; `None` if hidden.
    pub(crate) fn enter(&mut self, level: Level, path: &[u8]) -> Result<Option<DirId>, MergeError> {
        let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut trail = vec![ROOT];
        let mut n_symlinks = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let dir = *trail.last().unwrap_or(&ROOT);
            if self.is_walled(dir, level) {
                return Ok(None);
            }
            match self.dirs[dir.0].children.get(&name) {
                Some(Slot::Dir(next)) => trail.push(*next),
                Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) if *upper > level => {
                    return Ok(None);
                }
                Some(Slot::Leaf { symlink: Some(target), .. }) => {
                    // A path through a symbolic link of the same layer is meant inside the image.
                    n_symlinks += 1;
                    if n_symlinks > MAX_SYMLINKS {
                        return Err(MergeError::TooManySymlinks(crate::layer_name(path)));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    todo.extend(components(target).rev().map(<[u8]>::to_vec));
                }
                Some(Slot::Leaf { .. }) => return Err(MergeError::NotADirectory(crate::layer_name(path))),
                Some(Slot::Whiteout(_)) => trail.push(self.add_dir(dir, name, level, Some(level))),
                None => trail.push(self.add_dir(dir, name, level, None)),
            }
            if trail.len() > MAX_DEPTH {
                return Err(MergeError::TooDeep(crate::layer_name(path)));
            }
        }
        let dir = *trail.last().unwrap_or(&ROOT);
        Ok(Some(dir))
    }

    fn is_walled(&self, dir: DirId, level: Level) -> bool {
        self.dirs[dir.0].barrier.is_some_and(|barrier| level < barrier)
    }

    fn add_dir(&mut self, parent: DirId, name: Vec<u8>, level: Level, barrier: Option<Level>) -> DirId {
        let id = DirId(self.dirs.len());
        self.dirs.push(Dir { children: BTreeMap::new(), meta: None, level, barrier });
        self.dirs[parent.0].children.insert(name, Slot::Dir(id));
        id
    }

    /// Adds a directory entry.
    pub(crate) fn put_dir(&mut self, level: Level, path: &[u8], meta: Meta) -> Result<(), MergeError> {
        let Some((parent, name)) = split(path) else {
            self.dirs[ROOT.0].meta.get_or_insert(meta);
            return Ok(());
        };
        let Some(dir) = self.enter(level, parent)? else { return Ok(()) };
        if self.is_walled(dir, level) {
            return Ok(());
        }
        let found = match self.dirs[dir.0].children.get(name) {
            Some(Slot::Dir(found)) => *found,
            Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) if *upper > level => return Ok(()),
            // The same layer said something else before; what it says last counts.
            Some(Slot::Leaf { .. }) => self.add_dir(dir, name.to_vec(), level, None),
            Some(Slot::Whiteout(_)) => self.add_dir(dir, name.to_vec(), level, Some(level)),
            None => self.add_dir(dir, name.to_vec(), level, None),
        };
        if self.is_walled(found, level) && self.dirs[found.0].level > level {
            return Ok(());
        }
        let found = &mut self.dirs[found.0];
        if found.meta.is_none() || found.level == level {
            found.meta = Some(meta);
        }
        Ok(())
    }

    /// Finds the place of an entry that is no directory; `None` if it is hidden. `symlink` is the target
    /// if the entry is a symbolic link.
    pub(crate) fn locate(
        &mut self,
        level: Level,
        path: &[u8],
        symlink: Option<&[u8]>,
    ) -> Result<Option<Place>, MergeError> {
        let Some((parent, name)) = split(path) else { return Ok(None) };
        let Some(dir) = self.enter(level, parent)? else { return Ok(None) };
        if self.is_walled(dir, level) {
            return Ok(None);
        }
        let place = || Some(Place { dir, name: name.to_vec() });
        match self.dirs[dir.0].children.get(name) {
            None => Ok(place()),
            Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) => {
                Ok(if *upper > level { None } else { place() })
            }
            Some(Slot::Dir(found)) => {
                let found = *found;
                if self.dirs[found.0].level == level {
                    return Ok(place());
                }
                if self.is_walled(found, level) {
                    return Ok(None);
                }
                if self.dirs[found.0].meta.is_none() && symlink.is_some() {
                    // Upper layers wrote through this link; insert() moves what they wrote.
                    return Ok(place());
                }
                // An upper layer has a directory here, so nothing below this entry shines through.
                self.dirs[found.0].barrier.get_or_insert(level);
                Ok(None)
            }
        }
    }

    /// Puts an inode where [`Overlay::locate`] found room.
    pub(crate) fn insert(
        &mut self,
        level: Level,
        place: Place,
        inode: InodeId,
        symlink: Option<&[u8]>,
    ) -> Result<(), MergeError> {
        let slot = Slot::Leaf { inode, level, symlink: symlink.map(Into::into) };
        let old = self.dirs[place.dir.0].children.insert(place.name, slot);
        if let (Some(Slot::Dir(moved)), Some(target)) = (old, symlink)
            && self.dirs[moved.0].level > level
        {
            self.move_through(level, place.dir, moved, target)?;
        }
        Ok(())
    }

    /// Moves what upper layers wrote below a path that turns out to be a symbolic link to its target.
    fn move_through(
        &mut self,
        level: Level,
        parent: DirId,
        moved: DirId,
        target: &[u8],
    ) -> Result<(), MergeError> {
        let full = if target.starts_with(b"/") {
            target.to_vec()
        } else {
            let mut path = self.path_of(parent);
            path.extend_from_slice(b"/");
            path.extend_from_slice(target);
            path
        };
        if let Some(destination) = self.enter(level, &full)?
            && destination != moved
        {
            self.merge_dirs(moved, destination, 0)?;
        }
        Ok(())
    }

    fn merge_dirs(&mut self, from: DirId, into: DirId, depth: usize) -> Result<(), MergeError> {
        if depth > MAX_DEPTH {
            return Err(MergeError::TooDeep("moved directory".to_owned()));
        }
        let children = std::mem::take(&mut self.dirs[from.0].children);
        for (name, slot) in children {
            let moved_level = match &slot {
                Slot::Dir(dir) => self.dirs[dir.0].level,
                Slot::Leaf { level, .. } | Slot::Whiteout(level) => *level,
            };
            if self.is_walled(into, moved_level) {
                continue;
            }
            let old_dir = match self.dirs[into.0].children.get(&name) {
                None => None,
                Some(Slot::Dir(old)) => Some(*old),
                Some(Slot::Leaf { level, .. } | Slot::Whiteout(level)) if *level >= moved_level => continue,
                Some(Slot::Leaf { .. } | Slot::Whiteout(_)) => None,
            };
            match (old_dir, &slot) {
                (Some(old), Slot::Dir(new)) => {
                    let new = *new;
                    let meta = self.dirs[new.0].meta.take();
                    let barrier = self.dirs[old.0].barrier.max(self.dirs[new.0].barrier);
                    let old_dir = &mut self.dirs[old.0];
                    old_dir.barrier = barrier;
                    if old_dir.meta.is_none() {
                        old_dir.meta = meta;
                    }
                    self.merge_dirs(new, old, depth + 1)?;
                }
                (Some(old), Slot::Whiteout(level)) => {
                    let barrier = self.dirs[old.0].barrier.max(Some(*level));
                    self.dirs[old.0].barrier = barrier;
                }
                (Some(old), Slot::Leaf { .. }) if self.dirs[old.0].level >= moved_level => {}
                _ => {
                    self.dirs[into.0].children.insert(name, slot);
                }
            }
        }
        Ok(())
    }

    /// Returns the path of a directory. Rare, so found by search.
    fn path_of(&self, wanted: DirId) -> Vec<u8> {
        let mut stack = vec![(ROOT, Vec::new())];
        while let Some((dir, path)) = stack.pop() {
            if dir == wanted {
                return path;
            }
            for (name, slot) in &self.dirs[dir.0].children {
                if let Slot::Dir(child) = slot {
                    stack.push((*child, [path.as_slice(), b"/", name].concat()));
                }
            }
        }
        Vec::new()
    }

    /// Hides `name` in the directory `parent` from the levels below `level`.
    pub(crate) fn whiteout(&mut self, level: Level, parent: &[u8], name: &[u8]) -> Result<(), MergeError> {
        let Some(dir) = self.enter_to_hide(level, parent)? else { return Ok(()) };
        if self.is_walled(dir, level) {
            return Ok(());
        }
        match self.dirs[dir.0].children.get(name) {
            None => {
                self.dirs[dir.0].children.insert(name.to_vec(), Slot::Whiteout(level));
            }
            Some(Slot::Dir(found)) => {
                let found = *found;
                self.dirs[found.0].barrier.get_or_insert(level);
            }
            // What an upper level or this one put here hides the lower ones already.
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything in the directory `path` from the levels below `level`.
    pub(crate) fn opaque(&mut self, level: Level, path: &[u8]) -> Result<(), MergeError> {
        if let Some(dir) = self.enter_to_hide(level, path)? {
            self.dirs[dir.0].barrier.get_or_insert(level);
        }
        Ok(())
    }

    /// As [`Overlay::enter`], but a file on the way is no error: some writers white out the content of a
    /// directory beside replacing it by a file, which hides that content anyway.
    fn enter_to_hide(&mut self, level: Level, path: &[u8]) -> Result<Option<DirId>, MergeError> {
        match self.enter(level, path) {
            Err(MergeError::NotADirectory(_)) => Ok(None),
            result => result,
        }
    }

    /// Tells whether something visible is at `path`, following no symbolic links.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        let mut dir = ROOT;
        let mut parts = components(path).peekable();
        while let Some(name) = parts.next() {
            match self.dirs[dir.0].children.get(name) {
                Some(Slot::Dir(next)) => dir = *next,
                Some(Slot::Leaf { .. }) => return parts.peek().is_none(),
                Some(Slot::Whiteout(_)) | None => return false,
            }
        }
        true
    }

    /// Builds the final tree, mapping every inode. Directories that exist only because something in them
    /// was whited out are dropped; others that no layer described get mode 0755 and root as owner.
    pub(crate) fn into_directory(mut self, map: &mut impl FnMut(InodeId) -> InodeId) -> Directory {
        self.build(ROOT, map)
            .unwrap_or_else(|| Directory { meta: Meta::root_owned(0o755), children: BTreeMap::new() })
    }

    fn build(&mut self, id: DirId, map: &mut impl FnMut(InodeId) -> InodeId) -> Option<Directory> {
        let slots = std::mem::take(&mut self.dirs[id.0].children);
        let mut children = BTreeMap::new();
        for (name, slot) in slots {
            let child = match slot {
                Slot::Whiteout(_) => None,
                Slot::Leaf { inode, .. } => Some(Child::Inode(map(inode))),
                Slot::Dir(dir) => self.build(dir, map).map(Child::Directory),
            };
            if let Some(child) = child {
                children.insert(name, child);
            }
        }
        let meta = self.dirs[id.0].meta.take();
        if meta.is_none() && children.is_empty() {
            return None;
        }
        Some(Directory { meta: meta.unwrap_or_else(|| Meta::root_owned(0o755)), children })
    }
}

pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// Splits a clean path into parent and last component; `None` for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}
