//! The meaning of a layer's entries.
//!
//! Levels must be fed from the top down. Contents of visible files go to the sink at once; hidden ones
//! are skipped. The one thing that needs a second look is a file that is itself hidden but has a visible
//! hard link later in its layer: the merger asks for such files in [`Merger::end_layer`], and the caller
//! feeds the layer again through [`Merger::rescue`].

use std::collections::{HashMap, HashSet};
use std::io::Read;

use thiserror::Error;

pub use super::overlay::Level;
use super::overlay::{Overlay, split};
use crate::layer::{Entry, EntryKind, TarError, TarReader};
use crate::layer_name;
use crate::sink::FileSink;
use crate::tree::{Inode, InodeId, InodeKind, Meta, Tree};

/// Most entries of all layers together: memory per entry is a few hundred bytes.
pub const MAX_ENTRIES: u64 = 16_000_000;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are a union file system's own and mean nothing here.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";
/// Bytes moved at a time from a layer to the sink.
const COPY_BUFFER: usize = 256 * 1024;

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

/// What the current layer has at a path.
#[derive(Debug)]
enum Seen {
    Inode(InodeId),
    HiddenFile,
    HiddenLink(Vec<u8>),
}

#[derive(Debug)]
struct Wanted {
    inode: InodeId,
    level: Level,
    link: Vec<u8>,
}

/// Merges layers into a tree.
#[derive(Debug)]
pub struct Merger<'s, S: FileSink> {
    sink: &'s mut S,
    overlay: Overlay,
    inodes: Vec<State<S::File>>,
    n_entries: u64,
    level: Level,
    seen: HashMap<Vec<u8>, Seen>,
    whited_out: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
    /// Targets in this layer whose content was skipped but is needed.
    rescue: HashMap<Vec<u8>, InodeId>,
    /// Targets that only lower layers can have.
    wanted: HashMap<Vec<u8>, Wanted>,
    buffer: Vec<u8>,
}

impl<'s, S: FileSink> Merger<'s, S> {
    /// Starts with an empty tree; `top` is the level of the first layer to come.
    pub fn new(sink: &'s mut S, top: Level) -> Self {
        Self {
            sink,
            overlay: Overlay::new(top),
            inodes: Vec::new(),
            n_entries: 0,
            level: top,
            seen: HashMap::new(),
            whited_out: HashSet::new(),
            opaque: HashSet::new(),
            rescue: HashMap::new(),
            wanted: HashMap::new(),
            buffer: vec![0; COPY_BUFFER],
        }
    }

    /// Feeds a whole layer.
    ///
    /// # Errors
    /// When the layer is malformed or the sink fails.
    pub fn layer<R: Read>(&mut self, level: Level, tar: &mut TarReader<R>) -> Result<(), MergeError> {
        self.begin_layer(level);
        while let Some(entry) = tar.next_entry().map_err(MergeError::Tar)? {
            self.entry(entry, tar)?;
        }
        Ok(())
    }

    /// Starts a layer whose entries come one by one.
    pub fn begin_layer(&mut self, level: Level) {
        self.level = level;
        self.seen.clear();
        self.whited_out.clear();
        self.opaque.clear();
    }

    /// Feeds one entry; `data` holds a regular file's content.
    ///
    /// # Errors
    /// When the entry contradicts others, or reading or writing its content fails.
    pub fn entry(&mut self, entry: Entry, data: &mut impl Read) -> Result<(), MergeError> {
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

    /// Feeds one entry whose name means itself, even if it looks like a whiteout.
    ///
    /// # Errors
    /// As [`Merger::entry`].
    pub fn literal_entry(&mut self, entry: Entry, data: &mut impl Read) -> Result<(), MergeError> {
        self.count_entry()?;
        let level = self.level;
        let Entry { path, kind, meta } = entry;
        let symlink = match &kind {
            EntryKind::Symlink { target } => Some(target.clone()),
            _ => None,
        };
        if kind == EntryKind::Directory {
            return self.overlay.put_dir(level, &path, meta);
        }
        let place = self.overlay.locate(level, &path, symlink.as_deref())?;
        let wanted = self.wanted.remove(&path);
        let needed = place.is_some() || wanted.is_some();
        let inode = match kind {
            EntryKind::Directory => None,
            EntryKind::File { .. } if !needed => {
                self.seen.insert(path, Seen::HiddenFile);
                None
            }
            EntryKind::File { size } => {
                let content = self.copy_content(size, data)?;
                Some(self.add(InodeKind::File { content, size }, meta, path.clone()))
            }
            EntryKind::HardLink { target } if !needed => {
                self.seen.insert(path, Seen::HiddenLink(target));
                None
            }
            EntryKind::HardLink { target } => {
                let inode = self.link_target(&path, target);
                self.seen.insert(path.clone(), Seen::Inode(inode));
                Some(inode)
            }
            EntryKind::Symlink { target } => Some(self.add(InodeKind::Symlink(target), meta, path.clone())),
            EntryKind::CharDevice { major, minor } => {
                Some(self.add(InodeKind::CharDevice { major, minor }, meta, path.clone()))
            }
            EntryKind::BlockDevice { major, minor } => {
                Some(self.add(InodeKind::BlockDevice { major, minor }, meta, path.clone()))
            }
            EntryKind::Fifo => Some(self.add(InodeKind::Fifo, meta, path.clone())),
        };
        let Some(inode) = inode else { return Ok(()) };
        if let Some(wanted) = wanted {
            if wanted.inode == inode {
                // Two links that name each other: there is no file.
                return Err(missing(b"a link to itself", &wanted));
            }
            self.inodes[wanted.inode.0] = State::Alias(Some(inode));
        }
        match place {
            Some(place) => self.overlay.insert(level, place, inode, symlink.as_deref()),
            None => Ok(()),
        }
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], path: &[u8]) -> Result<(), MergeError> {
        if name == OPAQUE_MARKER {
            self.opaque.insert(parent.to_vec());
            return self.overlay.opaque(self.level, parent);
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
        self.overlay.whiteout(self.level, parent, hidden)
    }

    fn add(&mut self, kind: InodeKind<S::File>, meta: Meta, path: Vec<u8>) -> InodeId {
        let id = InodeId(self.inodes.len());
        self.inodes.push(State::Ready(Inode { kind, meta }));
        self.seen.insert(path, Seen::Inode(id));
        id
    }

    fn add_pending(&mut self) -> InodeId {
        let id = InodeId(self.inodes.len());
        self.inodes.push(State::Alias(None));
        id
    }

    /// Finds what a hard link at `link` means, following hidden links in the same layer.
    fn link_target(&mut self, link: &[u8], mut target: Vec<u8>) -> InodeId {
        // Each step goes to an entry seen earlier in the layer, but a path may come twice: bound it.
        for _ in 0..=self.seen.len() {
            match self.seen.get(&target) {
                Some(Seen::Inode(inode)) => return *inode,
                Some(Seen::HiddenLink(next)) if *next != target => target = next.clone(),
                Some(Seen::HiddenFile) => {
                    if let Some(pending) = self.rescue.get(&target) {
                        return *pending;
                    }
                    let pending = self.add_pending();
                    self.rescue.insert(target, pending);
                    return pending;
                }
                Some(Seen::HiddenLink(_)) | None => break,
            }
        }
        if let Some(wanted) = self.wanted.get(&target) {
            return wanted.inode;
        }
        let inode = self.add_pending();
        let wanted = Wanted { inode, level: self.level, link: link.to_vec() };
        self.wanted.insert(target, wanted);
        inode
    }

    fn copy_content(&mut self, size: u64, data: &mut impl Read) -> Result<S::File, MergeError> {
        let sink_error = |e: S::Error| MergeError::Sink(Box::new(e));
        self.sink.begin(size).map_err(sink_error)?;
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let n = match data.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(MergeError::Tar(TarError::UnexpectedEnd)),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(MergeError::Tar(TarError::Read(e))),
            };
            self.sink.write(&self.buffer[..n]).map_err(sink_error)?;
            left -= n as u64;
        }
        self.sink.finish().map_err(sink_error)
    }

    /// Ends a layer. Returns true if it must be fed again to [`Merger::rescue`].
    ///
    /// # Errors
    /// When this layer deletes the target of an upper layer's hard link.
    pub fn end_layer(&mut self) -> Result<bool, MergeError> {
        let gone = self.wanted.iter().filter(|(path, w)| w.level > self.level && self.hides(path));
        // The smallest, so that the message does not depend on the map's order.
        if let Some((target, wanted)) = gone.min_by(|a, b| a.0.cmp(b.0)) {
            return Err(missing(target, wanted));
        }
        Ok(!self.rescue.is_empty())
    }

    /// Tells whether the current layer deletes `path` from the layers below it.
    fn hides(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        self.whited_out.contains(path)
            || self.opaque.contains(&b""[..])
            || ends
                .into_iter()
                .any(|end| self.whited_out.contains(&path[..end]) || self.opaque.contains(&path[..end]))
    }

    /// Feeds the current layer a second time, taking only the contents that turned out to be needed.
    ///
    /// # Errors
    /// When the layer is malformed or the sink fails.
    pub fn rescue<R: Read>(&mut self, tar: &mut TarReader<R>) -> Result<(), MergeError> {
        let mut last: HashMap<Vec<u8>, InodeId> = HashMap::new();
        while let Some(Entry { path, kind, meta }) = tar.next_entry().map_err(MergeError::Tar)? {
            if let EntryKind::File { size } = kind
                && let Some(pending) = self.rescue.get(&path).copied()
            {
                let content = self.copy_content(size, tar)?;
                let inode = InodeId(self.inodes.len());
                self.inodes.push(State::Ready(Inode { kind: InodeKind::File { content, size }, meta }));
                self.inodes[pending.0] = State::Alias(Some(inode));
                last.insert(path, inode);
            }
        }
        for (path, _) in self.rescue.drain() {
            if !last.contains_key(&path) {
                return Err(MergeError::MissingLinkTarget {
                    link: layer_name(&path),
                    target: layer_name(&path),
                });
            }
        }
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
    /// When a hard link's target was in no layer.
    pub fn finish(self) -> Result<Tree<S::File>, MergeError> {
        if let Some((target, wanted)) = self.wanted.iter().min_by(|a, b| a.0.cmp(b.0)) {
            return Err(missing(target, wanted));
        }
        let aliases: Vec<Option<InodeId>> = self
            .inodes
            .iter()
            .map(|state| match state {
                State::Ready(_) => None,
                State::Alias(next) => *next,
            })
            .collect();
        let mut states: Vec<Option<State<S::File>>> = self.inodes.into_iter().map(Some).collect();
        let mut new_ids: Vec<Option<InodeId>> = vec![None; states.len()];
        let mut inodes = Vec::new();
        // Inodes are numbered in the order of their first names, so dropped ones leave no trace.
        let root = self.overlay.into_directory(&mut |id| {
            let mut real = id;
            for _ in 0..aliases.len() {
                match aliases[real.0] {
                    Some(next) => real = next,
                    None => break,
                }
            }
            if let Some(known) = new_ids[real.0] {
                return known;
            }
            let new = InodeId(inodes.len());
            if let Some(State::Ready(inode)) = states[real.0].take() {
                inodes.push(inode);
                new_ids[real.0] = Some(new);
            }
            new
        });
        Ok(Tree { root, inodes })
    }
}

fn missing(target: &[u8], wanted: &Wanted) -> MergeError {
    MergeError::MissingLinkTarget { link: layer_name(&wanted.link), target: layer_name(target) }
}
