//! The names of the merged tree while layers arrive from the top down.
//!
//! Every slot remembers the level that filled it. An entry of a lower level shows only where no upper
//! level has put anything, whited the name out, made a directory on the way opaque, or replaced one by
//! something else.

use std::collections::{BTreeMap, btree_map};

use super::merge::MergeError;
use crate::layer::MAX_PATH;
use crate::layer_name;
use crate::tree::{Child, Directory, InodeId, Meta};

/// A layer's rank: higher hides lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(pub u32);

/// Index of a directory. Of 32 bits, as there is one in every name: what an entry costs decides how many an
/// image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirId(u32);

impl DirId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

pub(crate) const ROOT: DirId = DirId(0);

/// Symbolic links followed for one path, as in Linux.
const MAX_SYMLINKS: usize = 40;
/// Deepest directory. A path can name twice as many, and no image has a tenth of them.
const MAX_DEPTH: usize = MAX_PATH / 4;
/// Components of symbolic links' targets followed, and names moved through links, in a whole merge. An entry of a few
/// bytes may lead along forty links of two thousand components; this many take some seconds, and an image with a
/// hundredth of them is unusual.
const MAX_DETOURS: u64 = 1 << 23;

#[derive(Debug)]
enum Slot {
    Dir(DirId),
    Leaf {
        inode: InodeId,
        level: Level,
        /// Index of its target, for a symbolic link.
        symlink: Option<u32>,
    },
    Whiteout(Level),
}

#[derive(Debug)]
struct Dir {
    children: BTreeMap<Box<[u8]>, Slot>,
    /// Where it is; the root's is itself.
    parent: DirId,
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
    name: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Overlay {
    dirs: Vec<Dir>,
    /// Targets of symbolic links.
    targets: Vec<Box<[u8]>>,
    n_detours: u64,
}

impl Overlay {
    pub(crate) fn new(level: Level) -> Self {
        let root = Dir { children: BTreeMap::new(), parent: ROOT, meta: None, level, barrier: None };
        Self { dirs: vec![root], targets: Vec::new(), n_detours: 0 }
    }

    fn dir(&self, id: DirId) -> &Dir {
        &self.dirs[id.index()]
    }

    fn dir_mut(&mut self, id: DirId) -> &mut Dir {
        &mut self.dirs[id.index()]
    }

    fn target(&self, symlink: u32) -> &[u8] {
        &self.targets[symlink as usize]
    }

    fn detour(&mut self, steps: usize, path: &[u8]) -> Result<(), MergeError> {
        self.n_detours = self.n_detours.saturating_add(steps as u64);
        if self.n_detours > MAX_DETOURS {
            return Err(MergeError::TooManySymlinks(layer_name(path)));
        }
        Ok(())
    }

    /// Finds the directory at `path` for entries of `level`, making implicit ones; `None` if hidden.
    pub(crate) fn enter(&mut self, level: Level, path: &[u8]) -> Result<Option<DirId>, MergeError> {
        self.enter_from(vec![ROOT], level, path)
    }

    /// As [`Overlay::enter`], from the last directory of a trail that starts at the root.
    fn enter_from(
        &mut self,
        mut trail: Vec<DirId>,
        level: Level,
        path: &[u8],
    ) -> Result<Option<DirId>, MergeError> {
        let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
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
            match self.dir(dir).children.get(name.as_slice()) {
                Some(Slot::Dir(next)) => trail.push(*next),
                Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) if *upper > level => {
                    return Ok(None);
                }
                Some(Slot::Leaf { symlink: Some(target), .. }) => {
                    // A path through a symbolic link of the same layer is meant inside the image.
                    n_symlinks += 1;
                    if n_symlinks > MAX_SYMLINKS {
                        return Err(MergeError::TooManySymlinks(layer_name(path)));
                    }
                    let target = self.target(*target);
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let n_before = todo.len();
                    todo.extend(components(target).rev().map(<[u8]>::to_vec));
                    self.detour(todo.len() - n_before, path)?;
                }
                Some(Slot::Leaf { .. }) => return Err(MergeError::NotADirectory(layer_name(path))),
                Some(Slot::Whiteout(_)) => trail.push(self.add_dir(dir, &name, level, Some(level))?),
                None => trail.push(self.add_dir(dir, &name, level, None)?),
            }
            if trail.len() > MAX_DEPTH {
                return Err(MergeError::TooDeep(layer_name(path)));
            }
        }
        Ok(Some(*trail.last().unwrap_or(&ROOT)))
    }

    /// Finds what `level` itself has put at `path`, if it is visible and no directory.
    pub(crate) fn find(&mut self, level: Level, path: &[u8]) -> Result<Option<InodeId>, MergeError> {
        let Some((parent, name)) = split(path) else { return Ok(None) };
        let mut trail = vec![ROOT];
        let mut todo: Vec<Vec<u8>> = components(parent).rev().map(<[u8]>::to_vec).collect();
        let mut n_symlinks = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let dir = *trail.last().unwrap_or(&ROOT);
            match self.dir(dir).children.get(name.as_slice()) {
                Some(Slot::Dir(next)) => trail.push(*next),
                Some(Slot::Leaf { symlink: Some(target), level: upper, .. }) if *upper == level => {
                    n_symlinks += 1;
                    if n_symlinks > MAX_SYMLINKS {
                        return Ok(None);
                    }
                    let target = self.target(*target);
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let n_before = todo.len();
                    todo.extend(components(target).rev().map(<[u8]>::to_vec));
                    self.detour(todo.len() - n_before, path)?;
                }
                _ => return Ok(None),
            }
        }
        let dir = *trail.last().unwrap_or(&ROOT);
        Ok(match self.dir(dir).children.get(name) {
            Some(Slot::Leaf { inode, level: upper, .. }) if *upper == level => Some(*inode),
            _ => None,
        })
    }

    fn is_walled(&self, dir: DirId, level: Level) -> bool {
        self.dir(dir).barrier.is_some_and(|barrier| level < barrier)
    }

    fn add_dir(
        &mut self,
        parent: DirId,
        name: &[u8],
        level: Level,
        barrier: Option<Level>,
    ) -> Result<DirId, MergeError> {
        let id = DirId(u32::try_from(self.dirs.len()).map_err(|_| MergeError::TooManyEntries)?);
        self.dirs.push(Dir { children: BTreeMap::new(), parent, meta: None, level, barrier });
        self.dir_mut(parent).children.insert(name.into(), Slot::Dir(id));
        Ok(id)
    }

    /// Directories there are, with those that only lie on the way to something.
    pub(crate) fn n_dirs(&self) -> usize {
        self.dirs.len()
    }

    /// Adds a directory entry.
    pub(crate) fn put_dir(&mut self, level: Level, path: &[u8], meta: Meta) -> Result<(), MergeError> {
        let Some((parent, name)) = split(path) else {
            self.dir_mut(ROOT).meta.get_or_insert(meta);
            return Ok(());
        };
        let Some(dir) = self.enter(level, parent)? else { return Ok(()) };
        if self.is_walled(dir, level) {
            return Ok(());
        }
        let found = match self.dir(dir).children.get(name) {
            Some(Slot::Dir(found)) => *found,
            Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) if *upper > level => return Ok(()),
            // The same layer said something else before; what it says last counts.
            Some(Slot::Leaf { .. }) => self.add_dir(dir, name, level, None)?,
            Some(Slot::Whiteout(_)) => self.add_dir(dir, name, level, Some(level))?,
            None => self.add_dir(dir, name, level, None)?,
        };
        if self.is_walled(found, level) && self.dir(found).level > level {
            return Ok(());
        }
        let found = self.dir_mut(found);
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
        let place = || Some(Place { dir, name: name.into() });
        match self.dir(dir).children.get(name) {
            None => Ok(place()),
            Some(Slot::Leaf { level: upper, .. } | Slot::Whiteout(upper)) => {
                Ok(if *upper > level { None } else { place() })
            }
            Some(Slot::Dir(found)) => {
                let found = *found;
                if self.dir(found).level == level {
                    return Ok(place());
                }
                if self.is_walled(found, level) {
                    return Ok(None);
                }
                if self.dir(found).meta.is_none() && symlink.is_some() {
                    // Upper layers wrote through this link; insert() moves what they wrote.
                    return Ok(place());
                }
                // An upper layer has a directory here, so nothing below this entry shines through.
                self.dir_mut(found).barrier.get_or_insert(level);
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
        let target = match symlink {
            None => None,
            Some(target) => {
                let idx = u32::try_from(self.targets.len()).map_err(|_| MergeError::TooManyEntries)?;
                self.targets.push(target.into());
                Some(idx)
            }
        };
        let slot = Slot::Leaf { inode, level, symlink: target };
        let old = self.dir_mut(place.dir).children.insert(place.name, slot);
        if let (Some(Slot::Dir(moved)), Some(target)) = (old, symlink)
            && self.dir(moved).level > level
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
        let trail = if target.starts_with(b"/") {
            vec![ROOT]
        } else {
            let trail = self.trail_to(parent);
            if trail.iter().any(|dir| self.is_walled(*dir, level)) {
                return Ok(());
            }
            trail
        };
        if let Some(destination) = self.enter_from(trail, level, target)?
            && destination != moved
        {
            self.merge_dirs(moved, destination, 0)?;
        }
        Ok(())
    }

    /// Returns the directories from the root to `dir`.
    fn trail_to(&self, mut dir: DirId) -> Vec<DirId> {
        let mut trail = vec![dir];
        while dir != ROOT {
            dir = self.dir(dir).parent;
            trail.push(dir);
        }
        trail.reverse();
        trail
    }

    fn merge_dirs(&mut self, from: DirId, into: DirId, depth: usize) -> Result<(), MergeError> {
        if depth > MAX_DEPTH {
            return Err(MergeError::TooDeep("moved directory".to_owned()));
        }
        let children = std::mem::take(&mut self.dir_mut(from).children);
        self.detour(children.len(), b"moved directory")?;
        for (name, slot) in children {
            let moved_level = match &slot {
                Slot::Dir(dir) => self.dir(*dir).level,
                Slot::Leaf { level, .. } | Slot::Whiteout(level) => *level,
            };
            if self.is_walled(into, moved_level) {
                continue;
            }
            let old_dir = match self.dir(into).children.get(&name) {
                None => None,
                Some(Slot::Dir(old)) => Some(*old),
                Some(Slot::Leaf { level, .. } | Slot::Whiteout(level)) if *level >= moved_level => continue,
                Some(Slot::Leaf { .. } | Slot::Whiteout(_)) => None,
            };
            match (old_dir, &slot) {
                (Some(old), Slot::Dir(new)) => {
                    let new = *new;
                    let meta = self.dir_mut(new).meta.take();
                    let barrier = self.dir(old).barrier.max(self.dir(new).barrier);
                    let old_dir = self.dir_mut(old);
                    old_dir.barrier = barrier;
                    if old_dir.meta.is_none() {
                        old_dir.meta = meta;
                    }
                    self.merge_dirs(new, old, depth + 1)?;
                }
                (Some(old), Slot::Whiteout(level)) => {
                    let barrier = self.dir(old).barrier.max(Some(*level));
                    self.dir_mut(old).barrier = barrier;
                }
                (Some(old), Slot::Leaf { .. }) if self.dir(old).level >= moved_level => {}
                _ => {
                    if let Slot::Dir(dir) = slot {
                        self.dir_mut(dir).parent = into;
                    }
                    self.dir_mut(into).children.insert(name, slot);
                }
            }
        }
        Ok(())
    }

    /// Hides `name` in the directory `parent` from the levels below `level`.
    pub(crate) fn whiteout(&mut self, level: Level, parent: &[u8], name: &[u8]) -> Result<(), MergeError> {
        let Some(dir) = self.enter_to_hide(level, parent)? else { return Ok(()) };
        if self.is_walled(dir, level) {
            return Ok(());
        }
        match self.dir(dir).children.get(name) {
            None => {
                self.dir_mut(dir).children.insert(name.into(), Slot::Whiteout(level));
            }
            Some(Slot::Dir(found)) => {
                let found = *found;
                self.dir_mut(found).barrier.get_or_insert(level);
            }
            // What an upper level or this one put here hides the lower ones already.
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything in the directory `path` from the levels below `level`.
    pub(crate) fn opaque(&mut self, level: Level, path: &[u8]) -> Result<(), MergeError> {
        if let Some(dir) = self.enter_to_hide(level, path)? {
            self.dir_mut(dir).barrier.get_or_insert(level);
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
            match self.dir(dir).children.get(name) {
                Some(Slot::Dir(next)) => dir = *next,
                Some(Slot::Leaf { .. }) => return parts.peek().is_none(),
                Some(Slot::Whiteout(_)) | None => return false,
            }
        }
        true
    }

    /// Builds the final tree, mapping every inode. Directories that exist only because something in them
    /// was whited out are dropped; others that no layer described get mode 0755 and root as owner.
    ///
    /// # Errors
    /// When links have put directories into each other deeper than any path is.
    pub(crate) fn into_directory(
        mut self,
        map: &mut impl FnMut(InodeId) -> InodeId,
    ) -> Result<Directory, MergeError> {
        // Not by recursion: the stack of a thread may be small.
        let mut open = vec![self.open(ROOT, Box::default())];
        loop {
            let depth = open.len();
            let Some(current) = open.last_mut() else { break };
            match current.slots.next() {
                Some((_, Slot::Whiteout(_))) => {}
                Some((name, Slot::Leaf { inode, .. })) => {
                    current.children.insert(name.into_vec(), Child::Inode(map(inode)));
                }
                Some((name, Slot::Dir(dir))) => {
                    if depth > MAX_DEPTH {
                        return Err(MergeError::TooDeep(layer_name(&name)));
                    }
                    open.push(self.open(dir, name));
                }
                None => {
                    let Some(Building { name, meta, children, .. }) = open.pop() else { break };
                    let is_root = open.is_empty();
                    if meta.is_none() && children.is_empty() && !is_root {
                        continue;
                    }
                    let directory =
                        Directory { meta: meta.unwrap_or_else(|| Meta::root_owned(0o755)), children };
                    match open.last_mut() {
                        Some(parent) => {
                            let child = Child::Directory(Box::new(directory));
                            parent.children.insert(name.into_vec(), child);
                        }
                        None => return Ok(directory),
                    }
                }
            }
        }
        Ok(Directory { meta: Meta::root_owned(0o755), children: BTreeMap::new() })
    }

    fn open(&mut self, id: DirId, name: Box<[u8]>) -> Building {
        let dir = self.dir_mut(id);
        let slots = std::mem::take(&mut dir.children).into_iter();
        Building { name, slots, meta: dir.meta.take(), children: BTreeMap::new() }
    }
}

/// A directory on its way into the final tree.
struct Building {
    name: Box<[u8]>,
    slots: btree_map::IntoIter<Box<[u8]>, Slot>,
    meta: Option<Meta>,
    children: BTreeMap<Vec<u8>, Child>,
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
