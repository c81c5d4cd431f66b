//! A root file system as one layer: a tar of everything in a SquashFS image.
//!
//! Entries come in the order of names, directories before what is in them, so that equal images give equal
//! layers. A file with several names is stored under the first of them. Sockets have no form in a tar and
//! mean nothing in an image: they are left out, and said so.

use std::collections::HashMap;
use std::io::{self, Write};

use situla_squashfs::{Image, Inode, InodeKind};
use thiserror::Error;

use super::tar::{BLOCK, END, EntryHeader, Kind, Record, pad};
use crate::layer::{MAX_PATH, printable};
use crate::progress::{Event, Progress};

/// Bytes read at a time: whole blocks of any image.
const CHUNK: usize = 1 << 20;
/// Most pieces of a sparse file; one with more is written with its holes as zeros.
const MAX_PIECES: usize = 4096;
/// What an image of Situla says about where it came from; a layer made of it comes from here.
const OWN_DIRECTORY: &[u8] = b".situla";
/// How names begin that delete files of lower layers (image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// Why an image cannot be written as a layer.
#[derive(Debug, Error)]
pub enum LayerWriteError {
    /// The image cannot be read.
    #[error("cannot read '{path}' in the image")]
    Read {
        /// The file, made printable.
        path: String,
        /// The cause.
        #[source]
        source: situla_squashfs::Error,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// A name is longer than layers may have them.
    #[error("'{0}' is too deep in the image for a layer")]
    TooLong(String),
    /// In a layer, such a name deletes another file.
    #[error("'{0}' cannot be in a layer, where names that begin with '.wh.' delete files")]
    Whiteout(String),
    /// An attribute's name cannot be written.
    #[error("the attribute '{name}' of '{path}' cannot be in a layer")]
    Attribute {
        /// The file, made printable.
        path: String,
        /// The attribute, made printable.
        name: String,
    },
}

/// Writes all of `image` as a tar, in which no file is younger than `latest`.
pub(crate) fn write_layer(
    image: &Image,
    latest: Option<u32>,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<(), LayerWriteError> {
    let latest = latest.unwrap_or(u32::MAX);
    let mut writer =
        LayerWriter { image, latest, out, progress, names: HashMap::new(), buffer: vec![0; CHUNK] };
    writer.tree()?;
    writer.out.write_all(&END).and_then(|()| writer.out.flush()).map_err(LayerWriteError::Write)
}

struct LayerWriter<'a> {
    image: &'a Image,
    /// The latest time that a file may have.
    latest: u32,
    out: &'a mut dyn Write,
    progress: &'a dyn Progress,
    /// The first name of each file that has several, by inode.
    names: HashMap<u32, Vec<u8>>,
    buffer: Vec<u8>,
}

impl LayerWriter<'_> {
    fn tree(&mut self) -> Result<(), LayerWriteError> {
        let root = self.image.inode(self.image.root()).map_err(read(b"/"))?;
        self.entry(b".", &root)?;
        // Children that wait, the next one last: a stack, because trees may be deep.
        let mut waiting = self.children(b"", &root)?;
        while let Some((path, inode)) = waiting.pop() {
            if path == OWN_DIRECTORY {
                continue;
            }
            self.entry(&path, &inode)?;
            if matches!(inode.kind, InodeKind::Directory(_)) {
                waiting.extend(self.children(&path, &inode)?);
            }
        }
        Ok(())
    }

    /// The entries of a directory, last name first.
    fn children(&self, path: &[u8], dir: &Inode) -> Result<Vec<(Vec<u8>, Inode)>, LayerWriteError> {
        let entries = self.image.read_dir(dir).map_err(read(path))?;
        let mut children = Vec::with_capacity(entries.len());
        for entry in entries.into_iter().rev() {
            let mut name = path.to_vec();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(&entry.name);
            if entry.name.starts_with(WHITEOUT) {
                return Err(LayerWriteError::Whiteout(printable(&name)));
            }
            if name.len() > MAX_PATH {
                return Err(LayerWriteError::TooLong(printable(&name)));
            }
            let inode = self.image.inode(entry.inode_ref).map_err(read(&name))?;
            children.push((name, inode));
        }
        Ok(children)
    }

    fn entry(&mut self, path: &[u8], inode: &Inode) -> Result<(), LayerWriteError> {
        let mut header = EntryHeader {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime.min(self.latest),
            ..EntryHeader::plain(path, 0)
        };
        let is_directory = matches!(inode.kind, InodeKind::Directory(_));
        if inode.nlink > 1 && !is_directory {
            if let Some(first) = self.names.get(&inode.number) {
                let first = first.clone();
                (header.kind, header.link) = (Kind::HardLink, &first);
                return self.write(&header.to_bytes());
            }
            self.names.insert(inode.number, path.to_vec());
        }
        header.records = self.attributes(path, inode)?;
        let target;
        match &inode.kind {
            InodeKind::Directory(_) => header.kind = Kind::Directory,
            InodeKind::File(_) => return self.file(header, inode),
            InodeKind::Symlink(_) => {
                target = self.image.read_link(inode).map_err(read(path))?;
                (header.kind, header.link) = (Kind::Symlink, &target);
            }
            InodeKind::CharDevice(device) => {
                (header.kind, header.device) = (Kind::CharDevice, (device.major(), device.minor()));
            }
            InodeKind::BlockDevice(device) => {
                (header.kind, header.device) = (Kind::BlockDevice, (device.major(), device.minor()));
            }
            InodeKind::Fifo => header.kind = Kind::Fifo,
            InodeKind::Socket => {
                self.progress.event(Event::Skipped { path: printable(path), why: "a socket" });
                return Ok(());
            }
        }
        self.write(&header.to_bytes())
    }

    fn attributes(&self, path: &[u8], inode: &Inode) -> Result<Vec<Record>, LayerWriteError> {
        let mut records = Vec::new();
        for (name, value) in self.image.xattrs(inode).map_err(read(path))? {
            if name.contains(&b'=') {
                // It would be read as another name.
                return Err(LayerWriteError::Attribute { path: printable(path), name: printable(&name) });
            }
            records.push(([&b"SCHILY.xattr."[..], &name].concat(), value));
        }
        records.sort();
        Ok(records)
    }

    fn file(&mut self, mut header: EntryHeader<'_>, inode: &Inode) -> Result<(), LayerWriteError> {
        let path = header.path;
        let pieces = self.pieces(path, inode)?;
        let stored: u64 = pieces.iter().map(|(_, length)| *length).sum();
        header.size = stored;
        let mut map = Vec::new();
        if stored < inode.size {
            // GNU tar's form for PAX, 1.0: a list of pieces before the data, padded to a block.
            map = sparse_map(&pieces);
            header.size += map.len() as u64;
            header.records.extend(
                [
                    ("GNU.sparse.major", b"1".to_vec()),
                    ("GNU.sparse.minor", b"0".to_vec()),
                    ("GNU.sparse.name", path.to_vec()),
                    ("GNU.sparse.realsize", inode.size.to_string().into_bytes()),
                ]
                .map(|(key, value)| (key.as_bytes().to_vec(), value)),
            );
        }
        let size = header.size;
        let bytes = header.to_bytes();
        self.write(&bytes)?;
        self.write(&map)?;
        for (offset, length) in pieces {
            self.copy(path, inode, offset, length)?;
        }
        pad(self.out, size).map_err(LayerWriteError::Write)
    }

    /// The parts of a file that may hold data, as offsets and lengths: all of it in one if there are no holes.
    fn pieces(&self, path: &[u8], inode: &Inode) -> Result<Vec<(u64, u64)>, LayerWriteError> {
        let block = u64::from(self.image.superblock().block_size);
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < inode.size {
            let data = self.image.skip_hole(inode, at).map_err(read(path))?.max(at);
            if data >= inode.size {
                break;
            }
            let end = (data + 1).next_multiple_of(block).min(inode.size);
            match pieces.last_mut() {
                Some((offset, length)) if *offset + *length == data => *length = end - *offset,
                _ => pieces.push((data, end - data)),
            }
            if pieces.len() > MAX_PIECES {
                return Ok(vec![(0, inode.size)]);
            }
            at = end;
        }
        Ok(pieces)
    }

    fn copy(&mut self, path: &[u8], inode: &Inode, start: u64, length: u64) -> Result<(), LayerWriteError> {
        let mut at = start;
        let end = start + length;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let n = self.image.read(inode, at, &mut self.buffer[..wanted]).map_err(read(path))?;
            if n == 0 {
                return Err(LayerWriteError::Write(io::ErrorKind::UnexpectedEof.into()));
            }
            self.out.write_all(&self.buffer[..n]).map_err(LayerWriteError::Write)?;
            self.progress.event(Event::Read { bytes: n as u64 });
            at += n as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerWriteError> {
        self.out.write_all(bytes).map_err(LayerWriteError::Write)
    }
}

fn sparse_map(pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len());
    for (offset, length) in pieces {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn read(path: &[u8]) -> impl FnOnce(situla_squashfs::Error) -> LayerWriteError {
    let path = printable(path);
    |source| LayerWriteError::Read { path, source }
}
