//! A streaming tar reader for layers: ustar, PAX, GNU long names, GNU and PAX sparse files.
//!
//! Everything is bounded, and names that could lead outside the tree are refused, not repaired: absolute
//! ones, `..` components, NUL bytes, over-long ones. Device nodes are ordinary entries here; whoever
//! mounts the result decides about them.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek};
use std::mem;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use thiserror::Error;

use super::header::{BLOCK, Header, gnu_sparse_continuation};
use super::pax::{self, Pax};
use super::sparse::{MAX_PIECES, Run, SparseMap};
use crate::tree::Meta;

/// Longest path in a layer, in bytes.
pub const MAX_PATH: usize = 4096;
/// Longest path component, in bytes (what Linux file systems take).
pub const MAX_NAME: usize = 255;
/// Longest symbolic link target, in bytes (`PATH_MAX` less the NUL).
pub const MAX_LINK: usize = 4095;
/// Largest extended header. Extended attributes of a file may be 64 KiB each.
const MAX_EXTENDED: u64 = 1 << 20;
/// Largest file announced by a header; SquashFS itself ends here, and no layer comes near.
const MAX_FILE: u64 = 1 << 50;
/// Extended headers in a row before a real one.
const MAX_PREFIXES: usize = 16;

/// Why a layer is not a usable tar.
#[derive(Debug, Error)]
pub enum TarError {
    /// Reading failed; verification errors of the stream come this way too.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The archive ends inside an entry.
    #[error("tar archive ends unexpectedly")]
    UnexpectedEnd,
    /// A header's checksum is wrong: this is no tar, or it is damaged.
    #[error("not a tar header (bad checksum)")]
    Checksum,
    /// A part breaks the format.
    #[error("malformed tar {0}")]
    Malformed(&'static str),
    /// The name could lead outside the tree.
    #[error("hostile name in layer: '{name}' ({why})")]
    HostileName {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry type that has no meaning in a layer.
    #[error("tar entry '{name}' has unsupported type '{flag}'")]
    UnsupportedType {
        /// The name, made printable.
        name: String,
        /// The type flag.
        flag: char,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with this many bytes, holes included.
    File {
        /// Size in bytes.
        size: u64,
    },
    /// Another name of an earlier file.
    HardLink {
        /// The other name, in the form of [`Entry::path`].
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Its target, as written.
        target: Vec<u8>,
    },
    /// A directory.
    Directory,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root: no leading, trailing or doubled slash, no `.` or `..`. Empty for the
    /// root itself, which is always a directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time and attributes.
    pub meta: Meta,
}

/// The content of a file on its way into an image.
pub trait Content: Read {
    /// Passes over zeros that are here without being stored, and returns their number; the next read gives
    /// what follows. An answer of 0 does not mean that no zero follows.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn skip_hole(&mut self) -> io::Result<u64> {
        Ok(0)
    }

    /// What comes next, where it lies in memory already, and at most `most` bytes of it: whoever has taken it says so to
    /// [`Content::pass`], and nothing was copied on the way. Without an answer [`Read`] has to be asked.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn ahead(&mut self, most: usize) -> io::Result<&[u8]> {
        let _ = most;
        Ok(&[])
    }

    /// Passes over bytes that [`Content::ahead`] has shown.
    fn pass(&mut self, n_bytes: usize) {
        let _ = n_bytes;
    }
}

impl Content for &[u8] {}

impl Content for io::Empty {}

/// A file of this machine: its holes are asked of the file system (lseek(2), `SEEK_DATA`).
impl Content for File {
    fn skip_hole(&mut self) -> io::Result<u64> {
        let at = self.stream_position()?;
        let next = match rustix::fs::seek(&*self, SeekFrom::Data(at)) {
            Ok(next) => next,
            // No data from here to the end.
            Err(Errno::NXIO) => rustix::fs::seek(&*self, SeekFrom::End(0))?,
            // Some file systems know nothing of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno.into()),
        };
        Ok(next.saturating_sub(at))
    }
}

/// Reads entries one after the other; the data of the current entry is read through [`Read`].
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    /// Stored bytes of the current entry not yet read.
    stored_left: u64,
    /// Padding after them.
    padding: u64,
    sparse: Option<(SparseMap, usize)>,
    /// Position in the current file, holes included.
    position: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    /// Starts at the first block of `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, stored_left: 0, padding: 0, sparse: None, position: 0, ended: false }
    }

    /// What comes next of the current file.
    fn run(&mut self) -> Run {
        match &mut self.sparse {
            Some((map, piece)) => map.run_at(self.position, piece),
            None if self.stored_left == 0 => Run::End,
            None => Run::Data(self.stored_left),
        }
    }

    /// Returns the source. After the last entry it still holds whatever follows the archive's end mark.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Skips what is left of the current entry and reads the next one; `None` at the end.
    ///
    /// # Errors
    /// When reading fails, or the archive is malformed or hostile.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_rest()?;
        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        for _ in 0..MAX_PREFIXES {
            let Some(header) = self.read_header()? else { return Ok(None) };
            match header.type_flag() {
                b'x' | b'X' => {
                    pax = pax::parse(&self.read_extended(&header)?)
                        .ok_or(TarError::Malformed("extended header"))?
                }
                // Global headers carry comments (git archive); nothing in them is per file.
                b'g' => drop(self.read_extended(&header)?),
                b'L' => long_name = Some(cut_nul(self.read_extended(&header)?)),
                b'K' => long_link = Some(cut_nul(self.read_extended(&header)?)),
                _ => return self.start_entry(&header, pax, long_name, long_link).map(Some),
            }
        }
        Err(TarError::Malformed("chain of extended headers"))
    }

    fn start_entry(
        &mut self,
        header: &Header,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let sparse_name = pax.sparse.name.take();
        let raw_name = sparse_name.or(pax.path.take()).or(long_name).unwrap_or_else(|| header.name());
        let raw_link = pax.link_path.take().or(long_link).unwrap_or_else(|| header.link_name());
        let path = checked_path(&raw_name)?;
        let size = match pax.size {
            Some(size) => size,
            None => u64::try_from(header.size().ok_or(TarError::Malformed("size"))?)
                .map_err(|_| TarError::Malformed("size"))?,
        };
        if size > MAX_FILE {
            return Err(TarError::Malformed("size"));
        }
        let flag = header.type_flag();
        let is_file = matches!(flag, b'0' | 0 | b'7' | b'S');
        // Old archives mark directories by a slash at the end of the name only.
        let is_dir = flag == b'5' || (is_file && flag != b'S' && raw_name.ends_with(b"/"));
        let device = || -> Result<(u32, u32), TarError> {
            let (major, minor) = header.device().ok_or(TarError::Malformed("device number"))?;
            // Linux has 12 and 20 bits for them.
            let narrow = |n: i64, bits: u32| {
                u32::try_from(n).ok().filter(|n| *n < 1 << bits).ok_or(TarError::Malformed("device number"))
            };
            Ok((narrow(major, 12)?, narrow(minor, 20)?))
        };
        // Only files have data; other types with a size are skipped over, as other readers do (a hard
        // link's size repeats the file's in some writers and has no data: POSIX pax 10.2.1 leaves it open,
        // and GNU tar and Go store none).
        let stored = if is_file || !matches!(flag, b'1'..=b'6') { size } else { 0 };
        self.stored_left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.position = 0;
        self.sparse = None;
        let kind = match flag {
            _ if is_dir => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                self.sparse = self.read_sparse_map(header, &pax)?.map(|map| (map, 0));
                let size = self.sparse.as_ref().map_or(stored, |(map, _)| map.real_size());
                if size > MAX_FILE {
                    return Err(TarError::Malformed("size"));
                }
                EntryKind::File { size }
            }
            b'1' => {
                let relative = raw_link.strip_prefix(b"/").unwrap_or(&raw_link);
                EntryKind::HardLink { target: checked_path(relative)? }
            }
            b'2' => EntryKind::Symlink { target: checked_link(raw_link)? },
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(TarError::UnsupportedType {
                    name: printable(&raw_name),
                    flag: char::from(other),
                });
            }
        };
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(TarError::HostileName { name: printable(&raw_name), why: "names the root" });
        }
        Ok(Entry { path, kind, meta: meta(header, pax)? })
    }

    fn read_sparse_map(&mut self, header: &Header, pax: &Pax) -> Result<Option<SparseMap>, TarError> {
        const BAD: TarError = TarError::Malformed("sparse map");
        if header.type_flag() == b'S' {
            let (mut pairs, mut more) = header.gnu_sparse().ok_or(BAD)?;
            let real_size = header.gnu_real_size().ok_or(BAD)?;
            while more {
                if pairs.len() > MAX_PIECES {
                    return Err(BAD);
                }
                let mut block = [0u8; BLOCK];
                self.read_exact(&mut block)?;
                let (next, again) = gnu_sparse_continuation(&block).ok_or(BAD)?;
                pairs.extend(next);
                more = again;
            }
            let pieces = pairs
                .into_iter()
                .map(|(offset, len)| Some((u64::try_from(offset).ok()?, u64::try_from(len).ok()?)))
                .collect::<Option<Vec<_>>>()
                .ok_or(BAD)?;
            let real_size = u64::try_from(real_size).map_err(|_| BAD)?;
            return SparseMap::new(pieces, real_size, self.stored_left).map(Some);
        }
        let Some(real_size) = pax.sparse.real_size else { return Ok(None) };
        let numbers = if pax.sparse.major == Some(1) && pax.sparse.minor == Some(0) {
            self.read_map_in_data()?
        } else {
            pax.sparse.numbers.clone()
        };
        let pairs = numbers.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(BAD);
        }
        SparseMap::new(pairs.map(|p| (p[0], p[1])).collect(), real_size, self.stored_left).map(Some)
    }

    /// Reads the map that PAX dialect 1.0 puts before the data: decimal lines, padded to a block.
    fn read_map_in_data(&mut self) -> Result<Vec<u64>, TarError> {
        const BAD: TarError = TarError::Malformed("sparse map");
        let mut line = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = None;
        loop {
            let mut block = [0u8; BLOCK];
            self.stored_left = self.stored_left.checked_sub(BLOCK as u64).ok_or(BAD)?;
            self.read_exact(&mut block)?;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(BAD);
                    }
                    continue;
                }
                let n = pax::decimal(&line).ok_or(BAD)?;
                line.clear();
                match wanted {
                    None => {
                        let pieces = usize::try_from(n).ok().filter(|n| *n <= MAX_PIECES).ok_or(BAD)?;
                        wanted = Some(pieces * 2);
                    }
                    Some(_) => numbers.push(n),
                }
                if wanted == Some(numbers.len()) {
                    return Ok(numbers);
                }
            }
        }
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0u8; BLOCK];
        // Archives without an end mark exist; the end of the stream at a block border is as good.
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(0) => return Err(TarError::UnexpectedEnd),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        let header = Header::new(block);
        if header.is_zero() {
            self.ended = true;
            return Ok(None);
        }
        if !header.checksum_is_right() {
            return Err(TarError::Checksum);
        }
        Ok(Some(header))
    }

    fn read_extended(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size().and_then(|s| u64::try_from(s).ok()).filter(|s| *s <= MAX_EXTENDED);
        let size = size.ok_or(TarError::Malformed("extended header"))?;
        let mut body = Vec::new();
        let n = (&mut self.inner).take(size).read_to_end(&mut body).map_err(TarError::Read)?;
        if n as u64 != size {
            return Err(TarError::UnexpectedEnd);
        }
        self.discard(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(body)
    }

    fn read_exact(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        self.inner.read_exact(block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => TarError::UnexpectedEnd,
            _ => TarError::Read(e),
        })
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let (data, padding) = (mem::take(&mut self.stored_left), mem::take(&mut self.padding));
        self.sparse = None;
        self.discard(data)?;
        // After the last file it may be missing: the layers of `umoci insert` 0.4.7 have none. Go's reader takes them, and
        // so does every tool that is built on it.
        self.ended |= self.skip(padding)? < padding;
        Ok(())
    }

    fn discard(&mut self, n: u64) -> Result<(), TarError> {
        if self.skip(n)? == n { Ok(()) } else { Err(TarError::UnexpectedEnd) }
    }

    /// Skips `n` bytes, or fewer where the source ends; tells how many.
    fn skip(&mut self, n: u64) -> Result<u64, TarError> {
        io::copy(&mut (&mut self.inner).take(n), &mut io::sink()).map_err(TarError::Read)
    }
}

/// The data of the current entry, with holes filled by zeros.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let run = self.run();
        let clamp = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(buf.len());
        let n = match run {
            Run::End => 0,
            Run::Hole(len) => {
                let n = clamp(len);
                buf[..n].fill(0);
                n
            }
            Run::Data(len) => {
                let want = clamp(len.min(self.stored_left));
                let n = self.inner.read(&mut buf[..want])?;
                if n == 0 && want > 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, TarError::UnexpectedEnd));
                }
                self.stored_left -= n as u64;
                n
            }
        };
        self.position += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> Content for TarReader<R> {
    fn skip_hole(&mut self) -> io::Result<u64> {
        let Some((map, piece)) = &mut self.sparse else { return Ok(0) };
        let Run::Hole(len) = map.run_at(self.position, piece) else { return Ok(0) };
        self.position += len;
        Ok(len)
    }

    fn ahead(&mut self, most: usize) -> io::Result<&[u8]> {
        let Run::Data(len) = self.run() else { return Ok(&[]) };
        let most = usize::try_from(len.min(self.stored_left)).unwrap_or(usize::MAX).min(most);
        let there = self.inner.fill_buf()?;
        Ok(&there[..there.len().min(most)])
    }

    fn pass(&mut self, n_bytes: usize) {
        self.inner.consume(n_bytes);
        self.stored_left -= n_bytes as u64;
        self.position += n_bytes as u64;
    }
}

fn meta(header: &Header, pax: Pax) -> Result<Meta, TarError> {
    let id = |from_pax: Option<u64>, from_header: Option<i64>| -> Result<u32, TarError> {
        let value = match from_pax {
            Some(value) => Some(value),
            None => from_header.and_then(|v| u64::try_from(v).ok()),
        };
        value.and_then(|v| u32::try_from(v).ok()).ok_or(TarError::Malformed("owner"))
    };
    let mode = header.mode().ok_or(TarError::Malformed("mode"))? & 0o7777;
    let mut xattrs = pax.xattrs;
    xattrs.sort();
    Ok(Meta {
        mode: u16::try_from(mode).map_err(|_| TarError::Malformed("mode"))?,
        uid: id(pax.uid, header.uid())?,
        gid: id(pax.gid, header.gid())?,
        mtime: pax.mtime.or_else(|| header.mtime()).ok_or(TarError::Malformed("time"))?,
        xattrs,
    })
}

fn checked_path(raw: &[u8]) -> Result<Vec<u8>, TarError> {
    let refuse = |why| Err(TarError::HostileName { name: printable(raw), why });
    if raw.is_empty() {
        return refuse("empty");
    }
    if raw[0] == b'/' {
        return refuse("absolute");
    }
    if raw.contains(&0) {
        return refuse("contains NUL");
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return refuse("contains '..'"),
            long if long.len() > MAX_NAME => return refuse("component too long"),
            name => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
        }
    }
    if path.len() > MAX_PATH { refuse("too long") } else { Ok(path) }
}

fn checked_link(raw: Vec<u8>) -> Result<Vec<u8>, TarError> {
    if raw.is_empty() || raw.contains(&0) || raw.len() > MAX_LINK {
        return Err(TarError::HostileName { name: printable(&raw), why: "bad symbolic link target" });
    }
    Ok(raw)
}

fn cut_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    // GNU writers end the long name with one NUL; a NUL inside is left for the name check to refuse.
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Makes foreign bytes safe to print, cutting long ones.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const MAX: usize = 200;
    let text: String = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX)]).escape_debug().collect();
    if bytes.len() > MAX { text + "…" } else { text }
}
