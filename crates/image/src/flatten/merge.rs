//! The meaning of a layer's entries.
//!
//! Levels must be fed from the top down. Contents of visible files go to the sink at once; hidden ones
//! are skipped. The one thing that needs a second look is a file that is itself hidden but has a visible
//! hard link later in its layer: the merger asks for such files in [`Merger::end_layer`], and the caller
//! feeds the layer again through [`Merger::rescue`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, ErrorKind};
use std::rc::Rc;

use thiserror::Error;

pub use super::overlay::Level;
use super::overlay::{Overlay, split};
use crate::layer::{Content, Entry, EntryKind, TarError, TarReader};
use crate::layer_name;
use crate::resources::{Ledger, MemoryExhausted};
use crate::sink::FileSink;
use crate::tree::{Inode, InodeId, InodeKind, Meta, Tree, Xattrs};

/// Most entries of all layers together, hidden ones included. It bounds the time; the memory of those that are
/// visible is bounded by the [`Ledger`].
pub const MAX_ENTRIES: u64 = 16_000_000;
/// Memory of a visible entry without its name, at the moment when it is highest, which is when the tree takes its final
/// form. Measured: an image of 650 000 small files with names of 26 bytes takes 404 bytes for each at its peak.
const ENTRY_BYTES: u64 = 270;
/// What a regular file takes beside: its place in the image, and its digest to find duplicates.
const FILE_BYTES: u64 = 90;
/// What a directory takes beside, or a directory of which only entries are known.
const DIRECTORY_BYTES: u64 = 200;
/// An extended attribute without name and value.
const XATTR_BYTES: u64 = 96;
/// An entry that is only remembered until the end of its layer, without its name.
const REMEMBERED_BYTES: u64 = 160;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are a union file system's own and mean nothing here.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";
/// Bytes moved at a time from a file to the sink: they are in the processor's cache when they are moved on.
const COPY_BUFFER: usize = 64 * 1024;

/// Why layers cannot be merged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// The layer is malformed.
    #[error("cannot read the layer's archive")]
    Tar(#[source] TarError),
    /// A path goes below something that is no directory in the same layer.
    #[error("layer has an entry below '{0}', which is not a directory")]
    NotADirectory(String),
    /// Symbolic links go in circles.
    #[error("too many symbolic links on the way to '{0}'")]
    TooManySymlinks(String),
    /// Too many nested directories.
    #[error("'{0}' is nested too deeply")]
    TooDeep(String),
    /// A hard link's target exists in no layer where it may.
    #[error("hard link '{link}' points to '{target}', which is not in the image")]
    MissingLinkTarget {
        /// The link.
        link: String,
        /// Its target.
        target: String,
    },
    /// A whiteout without a usable name.
    #[error("malformed whiteout '{0}'")]
    BadWhiteout(String),
    /// More than [`MAX_ENTRIES`].
    #[error("image has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The tree does not fit in memory.
    #[error(transparent)]
    Memory(#[from] MemoryExhausted),
    /// The sink failed.
    #[error("cannot write file contents")]
    Sink(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Debug)]
enum State<F> {
    Ready(Inode<F>),
    /// Another inode, or none found yet.
    Alias(Option<InodeId>),
}

/// What the current layer has at a path where nothing of it shows.
#[derive(Debug)]
enum Seen {
    /// Taken in for a link of an upper layer.
    Inode(InodeId),
    HiddenFile,
    /// Shared, as many links may mean one file.
    HiddenLink(Rc<[u8]>),
}

#[derive(Debug)]
struct Wanted {
    inode: InodeId,
    link: Vec<u8>,
}

/// Merges layers into a tree.
#[derive(Debug)]
pub struct Merger<'s, S: FileSink> {
    sink: &'s mut S,
    ledger: &'s Ledger,
    overlay: Overlay,
    inodes: Vec<State<S::File>>,
    n_entries: u64,
    /// Directories that the ledger knows of.
    n_dirs: usize,
    /// Bytes of contents, of holes, and what the ledger knows of as kept for them.
    content: (u64, u64, u64),
    level: Level,
    seen: HashMap<Vec<u8>, Seen>,
    whited_out: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
    /// Bytes taken for the three above.
    n_remembered: u64,
    /// Targets in this layer whose content was skipped but is needed.
    rescue: HashMap<Vec<u8>, InodeId>,
    /// Targets of links of this layer that only lower layers can have.
    wanted_here: BTreeMap<Vec<u8>, Wanted>,
    /// Those of upper layers. In order, so that what is below a path is found together.
    wanted: BTreeMap<Vec<u8>, Wanted>,
    buffer: Vec<u8>,
}

impl<'s, S: FileSink> Merger<'s, S> {
    /// Starts with an empty tree; `top` is the level of the first layer to come. What the tree takes is taken
    /// from `ledger`.
    pub fn new(sink: &'s mut S, ledger: &'s Ledger, top: Level) -> Self {
        Self {
            sink,
            ledger,
            overlay: Overlay::new(top),
            inodes: Vec::new(),
            n_entries: 0,
            n_dirs: 1,
            content: (0, 0, 0),
            level: top,
            seen: HashMap::new(),
            whited_out: HashSet::new(),
            opaque: HashSet::new(),
            n_remembered: 0,
            rescue: HashMap::new(),
            wanted_here: BTreeMap::new(),
            wanted: BTreeMap::new(),
            buffer: vec![0; COPY_BUFFER],
        }
    }

    /// Feeds a whole layer.
    ///
    /// # Errors
    /// When the layer is malformed or the sink fails.
    pub fn layer<R: BufRead>(&mut self, level: Level, tar: &mut TarReader<R>) -> Result<(), MergeError> {
        self.begin_layer(level);
        while let Some(entry) = tar.next_entry().map_err(MergeError::Tar)? {
            self.entry(entry, tar)?;
        }
        Ok(())
    }

    /// Starts a layer whose entries come one by one.
    pub fn begin_layer(&mut self, level: Level) {
        self.level = level;
        // Made anew, as an empty table keeps its memory.
        self.seen = HashMap::new();
        self.whited_out = HashSet::new();
        self.opaque = HashSet::new();
        self.ledger.give(std::mem::take(&mut self.n_remembered));
    }

    /// Feeds one entry; `data` holds a regular file's content.
    ///
    /// # Errors
    /// When the entry contradicts others, does not fit in memory, or reading or writing its content fails.
    pub fn entry(&mut self, entry: Entry, data: &mut impl Content) -> Result<(), MergeError> {
        if let Some((parent, name)) = split(&entry.path)
            && name.starts_with(WHITEOUT_PREFIX)
        {
            self.count_entry()?;
            return self.whiteout(parent, name, &entry.path);
        }
        self.literal_entry(entry, data)
    }

    fn count_entry(&mut self) -> Result<(), MergeError> {
        self.n_entries += 1;
        if self.n_entries > MAX_ENTRIES { Err(MergeError::TooManyEntries) } else { Ok(()) }
    }

    /// Takes what an entry needs that stays. The names of an entry are at most in three places at once.
    fn take(&self, base: u64, path: &[u8], meta: Option<&Meta>) -> Result<(), MemoryExhausted> {
        let name = split(path).map_or(0, |(_, name)| name.len() as u64);
        let xattrs = meta.map_or(0, |meta| xattr_bytes(&meta.xattrs));
        self.ledger.take(base + 2 * name + xattrs, "its files and directories")
    }

    /// Takes what is needed to remember `bytes` of paths until the end of the layer.
    fn remember(&mut self, bytes: usize) -> Result<(), MemoryExhausted> {
        let bytes = REMEMBERED_BYTES + bytes as u64;
        self.ledger.take(bytes, "what a layer hides")?;
        self.n_remembered += bytes;
        Ok(())
    }

    /// Takes what is needed for directories made since the last time, described by a layer or not.
    fn take_directories(&mut self) -> Result<(), MemoryExhausted> {
        let n_new = (self.overlay.n_dirs() - self.n_dirs) as u64;
        self.n_dirs = self.overlay.n_dirs();
        self.ledger.take(n_new * (ENTRY_BYTES + DIRECTORY_BYTES), "its directories")
    }

    /// Feeds one entry whose name means itself, even if it looks like a whiteout.
    ///
    /// # Errors
    /// As [`Merger::entry`].
    pub fn literal_entry(&mut self, entry: Entry, data: &mut impl Content) -> Result<(), MergeError> {
        self.count_entry()?;
        let level = self.level;
        let Entry { path, kind, meta } = entry;
        if kind == EntryKind::Directory {
            self.take(0, &path, Some(&meta))?;
            self.overlay.put_dir(level, &path, meta)?;
            return Ok(self.take_directories()?);
        }
        let symlink = match &kind {
            EntryKind::Symlink { target } => Some(target.clone()),
            _ => None,
        };
        let place = self.overlay.locate(level, &path, symlink.as_deref())?;
        self.take_directories()?;
        let wanted = match self.wanted.remove(&path) {
            Some(wanted) => Some(wanted),
            None => self.wanted_here.remove(&path),
        };
        if place.is_none() && wanted.is_none() {
            return self.hide(path, kind);
        }
        let inode = match kind {
            EntryKind::Directory => return Ok(()),
            EntryKind::HardLink { target } => {
                self.take(ENTRY_BYTES, &path, None)?;
                self.link_target(&path, target)?
            }
            EntryKind::File { size } => {
                self.take(ENTRY_BYTES + FILE_BYTES, &path, Some(&meta))?;
                let content = self.copy_content(size, data)?;
                self.add(InodeKind::File { content, size }, meta)?
            }
            EntryKind::Symlink { target } => {
                self.take(ENTRY_BYTES + 2 * target.len() as u64, &path, Some(&meta))?;
                self.add(InodeKind::Symlink(target), meta)?
            }
            EntryKind::CharDevice { major, minor } => {
                self.take(ENTRY_BYTES, &path, Some(&meta))?;
                self.add(InodeKind::CharDevice { major, minor }, meta)?
            }
            EntryKind::BlockDevice { major, minor } => {
                self.take(ENTRY_BYTES, &path, Some(&meta))?;
                self.add(InodeKind::BlockDevice { major, minor }, meta)?
            }
            EntryKind::Fifo => {
                self.take(ENTRY_BYTES, &path, Some(&meta))?;
                self.add(InodeKind::Fifo, meta)?
            }
        };
        if let Some(wanted) = wanted {
            let inode = real_inode(&mut self.inodes, inode);
            if wanted.inode == inode {
                // Links that name each other, in a circle: there is no file.
                return Err(missing(b"a link to itself", &wanted));
            }
            self.inodes[wanted.inode.index()] = State::Alias(Some(inode));
        }
        match place {
            Some(place) => {
                self.overlay.insert(level, place, inode, symlink.as_deref())?;
                // A link may have made directories on the way to its target.
                Ok(self.take_directories()?)
            }
            None => {
                self.remember(path.len())?;
                self.seen.insert(path, Seen::Inode(inode));
                Ok(())
            }
        }
    }

    /// Remembers a hidden entry that a link of this layer may name.
    fn hide(&mut self, path: Vec<u8>, kind: EntryKind) -> Result<(), MergeError> {
        let seen = match kind {
            EntryKind::File { .. } => {
                self.remember(path.len())?;
                Seen::HiddenFile
            }
            EntryKind::HardLink { target } => {
                // What it means is looked up now, so that links to links are no longer to follow than one.
                let target = self.follow_hidden(target);
                self.remember(path.len() + target.len())?;
                Seen::HiddenLink(target)
            }
            _ => return Ok(()),
        };
        self.seen.insert(path, seen);
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], path: &[u8]) -> Result<(), MergeError> {
        self.remember(path.len())?;
        if name == OPAQUE_MARKER {
            self.opaque.insert(parent.to_vec());
            self.overlay.opaque(self.level, parent)?;
            return Ok(self.take_directories()?);
        }
        if name.starts_with(RESERVED_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(MergeError::BadWhiteout(layer_name(path)));
        }
        let mut full = parent.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(hidden);
        self.whited_out.insert(full);
        self.take(ENTRY_BYTES / 2, path, None)?;
        self.overlay.whiteout(self.level, parent, hidden)?;
        Ok(self.take_directories()?)
    }

    fn add_state(&mut self, state: State<S::File>) -> Result<InodeId, MergeError> {
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| MergeError::TooManyEntries)?);
        self.inodes.push(state);
        Ok(id)
    }

    fn add(&mut self, kind: InodeKind<S::File>, meta: Meta) -> Result<InodeId, MergeError> {
        self.add_state(State::Ready(Inode { kind, meta }))
    }

    /// Follows hidden links of this layer from `target` to what is none, or is not known. What was passed is
    /// made to lead there at once: otherwise a long chain with many links to its start would take the product
    /// of both.
    fn follow_hidden(&mut self, target: Vec<u8>) -> Rc<[u8]> {
        let mut target: Rc<[u8]> = target.into();
        let mut passed: HashSet<Rc<[u8]>> = HashSet::new();
        while let Some(Seen::HiddenLink(next)) = self.seen.get(&*target) {
            if *next == target || passed.contains(next) {
                break;
            }
            passed.insert(std::mem::replace(&mut target, Rc::clone(next)));
        }
        if passed.len() > 1 {
            for path in passed {
                if let Some(seen) = self.seen.get_mut(&*path) {
                    *seen = Seen::HiddenLink(Rc::clone(&target));
                }
            }
        }
        target
    }

    /// Finds what a hard link at `link` means, following hidden links in the same layer.
    fn link_target(&mut self, link: &[u8], target: Vec<u8>) -> Result<InodeId, MergeError> {
        if let Some(inode) = self.overlay.find(self.level, &target)? {
            return Ok(inode);
        }
        let target = self.follow_hidden(target);
        match self.seen.get(&*target) {
            Some(Seen::Inode(inode)) => return Ok(*inode),
            Some(Seen::HiddenFile) => {
                if let Some(pending) = self.rescue.get(&*target) {
                    return Ok(*pending);
                }
                self.ledger.take(REMEMBERED_BYTES + FILE_BYTES + target.len() as u64, "hidden files")?;
                let pending = self.add_state(State::Alias(None))?;
                self.rescue.insert(target.to_vec(), pending);
                return Ok(pending);
            }
            // A hidden link may have led to what shows.
            Some(Seen::HiddenLink(_)) | None => {
                if let Some(inode) = self.overlay.find(self.level, &target)? {
                    return Ok(inode);
                }
            }
        }
        if let Some(wanted) = self.wanted.get(&*target).or_else(|| self.wanted_here.get(&*target)) {
            return Ok(wanted.inode);
        }
        let kept = REMEMBERED_BYTES + (link.len() + target.len()) as u64;
        self.ledger.take(kept, "links to lower layers")?;
        let inode = self.add_state(State::Alias(None))?;
        self.wanted_here.insert(target.to_vec(), Wanted { inode, link: link.to_vec() });
        Ok(inode)
    }

    fn copy_content(&mut self, size: u64, data: &mut impl Content) -> Result<S::File, MergeError> {
        let sink_error = |e: S::Error| MergeError::Sink(Box::new(e));
        let read_error = |e| MergeError::Tar(TarError::Read(e));
        self.sink.begin(size).map_err(sink_error)?;
        let mut left = size;
        while left > 0 {
            let hole = data.skip_hole().map_err(read_error)?.min(left);
            if hole > 0 {
                self.take_content(0, hole)?;
                self.sink.hole(hole).map_err(sink_error)?;
                left -= hole;
                continue;
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            match data.ahead(most) {
                Ok([]) => {}
                Ok(bytes) => {
                    let n = bytes.len();
                    self.take_content(n as u64, 0)?;
                    self.sink.write(bytes).map_err(sink_error)?;
                    data.pass(n);
                    left -= n as u64;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(e)),
            }
            let want = most.min(self.buffer.len());
            let n = match data.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(MergeError::Tar(TarError::UnexpectedEnd)),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(e)),
            };
            self.take_content(n as u64, 0)?;
            self.sink.write(&self.buffer[..n]).map_err(sink_error)?;
            left -= n as u64;
        }
        self.sink.finish().map_err(sink_error)
    }

    /// Takes what the sink keeps for more bytes.
    fn take_content(&mut self, data: u64, holes: u64) -> Result<(), MemoryExhausted> {
        let (all_data, all_holes, kept) = &mut self.content;
        *all_data = all_data.saturating_add(data);
        *all_holes = all_holes.saturating_add(holes);
        let keeps = S::keeps(*all_data, *all_holes);
        self.ledger.take(keeps.saturating_sub(*kept), "the places of its files' blocks")?;
        *kept = keeps.max(*kept);
        Ok(())
    }

    /// Ends a layer. Returns true if it must be fed again to [`Merger::rescue`].
    ///
    /// # Errors
    /// When this layer deletes the target of an upper layer's hard link.
    pub fn end_layer(&mut self) -> Result<bool, MergeError> {
        let gone = self.whited_out.iter().filter_map(|path| {
            let is_it = self.wanted.get_key_value(path);
            is_it.or_else(|| first_below(&self.wanted, path))
        });
        let gone = gone.chain(self.opaque.iter().filter_map(|path| first_below(&self.wanted, path)));
        // The smallest, so that the message does not depend on the sets' order.
        if let Some((target, wanted)) = gone.min_by(|a, b| a.0.cmp(b.0)) {
            return Err(missing(target, wanted));
        }
        self.wanted.append(&mut self.wanted_here);
        Ok(!self.rescue.is_empty())
    }

    /// Feeds the current layer a second time, taking only the contents that turned out to be needed.
    ///
    /// # Errors
    /// When the layer is malformed or the sink fails.
    pub fn rescue<R: BufRead>(&mut self, tar: &mut TarReader<R>) -> Result<(), MergeError> {
        let mut found: HashSet<InodeId> = HashSet::new();
        while let Some(Entry { path, kind, meta }) = tar.next_entry().map_err(MergeError::Tar)? {
            if let EntryKind::File { size } = kind
                && let Some(pending) = self.rescue.get(&path).copied()
            {
                // A path may come many times, and the last counts.
                self.take(ENTRY_BYTES + FILE_BYTES, &path, Some(&meta))?;
                let content = self.copy_content(size, tar)?;
                let inode = self.add(InodeKind::File { content, size }, meta)?;
                self.inodes[pending.index()] = State::Alias(Some(inode));
                found.insert(pending);
            }
        }
        let lost = self.rescue.iter().filter(|(_, pending)| !found.contains(pending)).map(|(path, _)| path);
        if let Some(path) = lost.min() {
            return Err(MergeError::MissingLinkTarget { link: layer_name(path), target: layer_name(path) });
        }
        self.rescue.clear();
        Ok(())
    }

    /// Tells whether the tree has something at `path`.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.overlay.has(path.as_bytes())
    }

    /// Ends the merge.
    ///
    /// # Errors
    /// When a hard link's target was in no layer, or directories are nested too deeply.
    pub fn finish(mut self) -> Result<Tree<S::File>, MergeError> {
        self.wanted.append(&mut self.wanted_here);
        if let Some((target, wanted)) = self.wanted.first_key_value() {
            return Err(missing(target, wanted));
        }
        self.seen = HashMap::new();
        let mut states = self.inodes;
        // Where each inode goes: they are numbered in the order of their first names, so that dropped ones leave
        // no trace.
        const NOWHERE: u32 = u32::MAX;
        let mut places = vec![NOWHERE; states.len()];
        let mut n_placed = 0u32;
        let root = self.overlay.into_directory(&mut |id| {
            let place = &mut places[real_inode(&mut states, id).index()];
            if *place == NOWHERE {
                *place = n_placed;
                n_placed += 1;
            }
            InodeId(*place)
        })?;
        // Moved within their memory: a second table of all inodes would be the most that a conversion takes.
        for at in 0..states.len() {
            while places[at] != NOWHERE && places[at] as usize != at {
                let place = places[at] as usize;
                states.swap(at, place);
                places.swap(at, place);
            }
        }
        states.truncate(n_placed as usize);
        let ready = |state| match state {
            State::Ready(inode) => Some(inode),
            State::Alias(_) => None,
        };
        Ok(Tree { root, inodes: states.into_iter().filter_map(ready).collect() })
    }
}

/// Follows aliases to their end, and makes all that were passed lead there at once.
fn real_inode<F>(states: &mut [State<F>], id: InodeId) -> InodeId {
    let mut real = id;
    while let State::Alias(Some(next)) = &states[real.index()] {
        real = *next;
    }
    let mut passed = id;
    while let State::Alias(Some(next)) = states[passed.index()] {
        states[passed.index()] = State::Alias(Some(real));
        passed = next;
        if passed == real {
            break;
        }
    }
    real
}

/// The first of the paths below `path`.
fn first_below<'w>(wanted: &'w BTreeMap<Vec<u8>, Wanted>, path: &[u8]) -> Option<(&'w Vec<u8>, &'w Wanted)> {
    let mut start = path.to_vec();
    if !start.is_empty() {
        start.push(b'/');
    }
    wanted.range(start.clone()..).next().filter(|(found, _)| found.starts_with(&start))
}

fn xattr_bytes(xattrs: &Xattrs) -> u64 {
    // They are in the tree and, encoded, in the table of the image.
    xattrs.iter().map(|(name, value)| XATTR_BYTES + 2 * (name.len() + value.len()) as u64).sum()
}

fn missing(target: &[u8], wanted: &Wanted) -> MergeError {
    MergeError::MissingLinkTarget { link: layer_name(&wanted.link), target: layer_name(target) }
}
