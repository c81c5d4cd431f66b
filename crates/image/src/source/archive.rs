//! Tar archives that hold an image: an index of their files, each of which can be read in any order.
//!
//! An image archive is read here and there, and by several threads, so nothing is extracted: the headers
//! are read once, and a file is then a range of bytes. Archives that are compressed as a whole cannot be
//! read like that; they are decompressed once, into a file without a name. What the files hold is verified
//! by whoever reads them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::file_error::FileError;
use crate::layer::decompress;
use crate::layer::{BLOCK, Header, parse_pax};
use crate::output::PendingFile;

/// Most entries of an archive. An image has a few for each layer.
const MAX_ENTRIES: usize = 65_536;
/// Longest name of an entry that is kept; no file of an image has a longer one.
const MAX_NAME: usize = 512;
/// Largest extended header that is read.
const MAX_EXTENDED: u64 = 1 << 16;
/// Links followed from one name; archives have one where layers are shared.
const MAX_LINKS: usize = 4;
/// Largest archive after decompression.
const MAX_EXPANDED: u64 = 1 << 40;

/// Why an archive cannot be used.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The archive, or the file that it is decompressed to, cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive is no tar, or damaged.
    #[error("'{}' is not a tar archive, or is damaged: {what} at byte {offset}", path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// The archive cannot be decompressed.
    #[error("cannot decompress '{}'", path.display())]
    Decompress {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is not in the archive.
    #[error("'{}' has no file '{name}'", path.display())]
    Missing {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
    },
    /// A file is in the archive twice.
    #[error("'{}' has two files '{name}'", path.display())]
    Twice {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
    },
}

/// What a name of the archive stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A range of bytes.
    File { offset: u64, size: u64 },
    /// Another name.
    Link(String),
    /// More than one file.
    Twice,
}

/// An archive with its index.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    index: HashMap<String, Place>,
}

impl Archive {
    /// Reads the headers of an archive; a compressed one is first decompressed into a file without a name
    /// in `scratch`.
    pub(crate) fn open(path: &Path, scratch: &Path) -> Result<Self, ArchiveError> {
        let file = File::open(path).map_err(FileError::read(path))?;
        let mut head = [0; 6];
        let n_read = file.read_at(&mut head, 0).map_err(FileError::read(path))?;
        let file = if is_compressed(&head[..n_read]) { expand(path, file, scratch)? } else { file };
        let index = Indexer { path, file: &file, offset: 0 }.index()?;
        Ok(Self { path: path.to_owned(), file, index })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Opens a file of the archive.
    pub(crate) fn section(&self, name: &str) -> Result<Section<'_>, ArchiveError> {
        let missing = || ArchiveError::Missing { path: self.path.clone(), name: name.to_owned() };
        let mut found = self.index.get(name);
        for _ in 0..MAX_LINKS {
            match found.ok_or_else(missing)? {
                Place::File { offset, size } => {
                    return Ok(Section { file: &self.file, offset: *offset, left: *size });
                }
                Place::Twice => {
                    return Err(ArchiveError::Twice { path: self.path.clone(), name: name.to_owned() });
                }
                Place::Link(to) => found = self.index.get(to),
            }
        }
        Err(missing())
    }
}

fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

fn expand(path: &Path, file: File, scratch: &Path) -> Result<File, ArchiveError> {
    let pending = PendingFile::create(scratch, "archive").map_err(FileError::write(scratch))?;
    let mut out = pending.file().map_err(FileError::write(scratch))?;
    let failed = |source| ArchiveError::Decompress { path: path.to_owned(), source };
    let (_, expanded) = decompress(file).map_err(failed)?;
    let n_copied = io::copy(&mut expanded.take(MAX_EXPANDED), &mut out).map_err(failed)?;
    if n_copied == MAX_EXPANDED {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    // The file stays as long as the descriptor does; a temporary name goes with `pending`.
    Ok(out)
}

/// A file of an archive. Several can be read at once.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Section<'_> {
    /// Bytes that are left to read.
    pub(crate) fn size(&self) -> u64 {
        self.left
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..wanted], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

struct Indexer<'a> {
    path: &'a Path,
    file: &'a File,
    offset: u64,
}

impl Indexer<'_> {
    fn index(mut self) -> Result<HashMap<String, Place>, ArchiveError> {
        let file_len = self.file.metadata().map_err(FileError::read(self.path))?.len();
        let mut index = HashMap::new();
        let mut n_entries = 0;
        let (mut long_name, mut long_link, mut long_size) = (None, None, None);
        while self.offset < file_len {
            let header = Header::new(self.block()?);
            if header.is_zero() {
                break;
            }
            if !header.checksum_is_right() {
                return Err(self.damaged("a header with a wrong checksum"));
            }
            n_entries += 1;
            if n_entries > MAX_ENTRIES {
                return Err(self.damaged("too many entries"));
            }
            let stated = header.size().and_then(|size| u64::try_from(size).ok());
            let stated = stated.ok_or_else(|| self.damaged("a size that is no number"))?;
            let flag = header.type_flag();
            let size = match flag {
                b'x' | b'g' | b'L' | b'K' => stated,
                // Links and the like have no data, whatever they say.
                b'1'..=b'6' => 0,
                _ => long_size.unwrap_or(stated),
            };
            let start = self.offset;
            let end =
                size.checked_next_multiple_of(BLOCK as u64).and_then(|padded| start.checked_add(padded));
            let end = end.ok_or_else(|| self.damaged("a size beyond all bounds"))?;
            // Padding after the last file may be missing.
            if start + size > file_len {
                return Err(self.damaged("an entry that goes beyond the end"));
            }
            match flag {
                b'x' => {
                    let body = self.extended(size)?;
                    let pax = parse_pax(&body).ok_or_else(|| self.damaged("a malformed extended header"))?;
                    (long_name, long_link, long_size) = (pax.path, pax.link_path, pax.size);
                }
                b'L' => long_name = Some(cut(self.extended(size)?)),
                b'K' => long_link = Some(cut(self.extended(size)?)),
                b'g' => {}
                flag => {
                    let name = long_name.take().unwrap_or_else(|| header.name());
                    let link = long_link.take().unwrap_or_else(|| header.link_name());
                    long_size = None;
                    let place = match flag {
                        b'0' | 0 | b'7' => Some(Place::File { offset: start, size }),
                        b'1' => normal("", &link).map(Place::Link),
                        b'2' => normal(&directory(&name), &link).map(Place::Link),
                        _ => None,
                    };
                    // What has another shape is no file of an image.
                    if let (Some(place), Some(name)) = (place, normal("", &name)) {
                        match index.entry(name) {
                            Entry::Vacant(vacant) => drop(vacant.insert(place)),
                            Entry::Occupied(mut there) => drop(there.insert(Place::Twice)),
                        }
                    }
                }
            }
            self.offset = end;
        }
        Ok(index)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        match self.file.read_exact_at(&mut block, self.offset) {
            Ok(()) => {
                self.offset += BLOCK as u64;
                Ok(block)
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged("an incomplete header")),
            Err(e) => Err(FileError::read(self.path)(e).into()),
        }
    }

    fn extended(&self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let length = usize::try_from(size).ok().filter(|_| size <= MAX_EXTENDED);
        let mut body = vec![0; length.ok_or_else(|| self.damaged("an extended header that is too long"))?];
        self.file.read_exact_at(&mut body, self.offset).map_err(FileError::read(self.path))?;
        Ok(body)
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Tar { path: self.path.to_owned(), what, offset: self.offset }
    }
}

fn cut(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

/// The directory of a name, as text.
fn directory(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name).into_owned();
    text.rsplit_once('/').map_or_else(String::new, |(directory, _)| directory.to_owned())
}

/// A name without `.`, `..` and doubled slashes, as seen from `directory`; `None` where it leads out of
/// the archive or is no name that an image's file can have.
fn normal(directory: &str, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)?;
    if name.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// A ustar entry, without anything that the index does not look at.
    fn entry(name: &str, flag: u8, link: &str, data: &[u8]) -> Vec<u8> {
        let mut block = [0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut entry = block.to_vec();
        entry.extend_from_slice(data);
        entry.resize(entry.len().next_multiple_of(BLOCK), 0);
        entry
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut body = String::new();
        for (key, value) in records {
            // Two digits are enough for these records.
            body.push_str(&format!("{:02} {key}={value}\n", 3 + key.len() + value.len() + 2));
        }
        entry("pax", b'x', "", body.as_bytes())
    }

    fn archive(dir: &Path, bytes: &[u8]) -> Result<Archive, ArchiveError> {
        let path = dir.join("a.tar");
        fs::write(&path, bytes).unwrap();
        Archive::open(&path, dir)
    }

    fn content(archive: &Archive, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        archive.section(name)?.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    fn sample() -> Vec<u8> {
        [
            entry("./a/", b'5', "", b""),
            entry("./a/one", b'0', "", b"first"),
            entry("long", b'L', "", b"b/very-long-name\0"),
            entry("cut", b'0', "", &[7; 1000]),
            pax(&[("path", "c/from-pax"), ("mtime", "1.5")]),
            entry("cut", b'0', "", b"third"),
            entry("d/symlink", b'2', "../a/one", b""),
            entry("d/hardlink", b'1', "a/one", b""),
            entry("loop", b'2', "loop", b""),
            entry("out", b'2', "../../etc/passwd", b""),
            entry("twice", b'0', "", b"1"),
            entry("twice", b'0', "", b"2"),
            vec![0; 1024],
            b"what follows the end is not looked at".to_vec(),
        ]
        .concat()
    }

    #[test]
    fn files_are_found_by_every_kind_of_name() {
        let dir = tempfile::tempdir().unwrap();
        let gzip = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&sample()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = zstd::stream::encode_all(sample().as_slice(), 1).unwrap();
        for bytes in [sample(), gzip, zstd] {
            let archive = archive(dir.path(), &bytes).unwrap();
            for (name, want) in [
                ("a/one", &b"first"[..]),
                ("b/very-long-name", &[7; 1000]),
                ("c/from-pax", b"third"),
                ("d/symlink", b"first"),
                ("d/hardlink", b"first"),
            ] {
                assert_eq!(content(&archive, name).unwrap(), want, "{name}");
            }
            for name in ["a", "none", "loop", "out", "pax", "/etc/passwd"] {
                assert!(matches!(content(&archive, name), Err(ArchiveError::Missing { .. })), "{name}");
            }
            assert!(matches!(content(&archive, "twice"), Err(ArchiveError::Twice { .. })));
            // Nothing is left of what was decompressed.
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn damaged_archives_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |bytes: &[u8]| match archive(dir.path(), bytes) {
            Err(error) => error.to_string(),
            Ok(archive) => panic!("{archive:?}"),
        };
        assert!(archive(dir.path(), b"").unwrap().index.is_empty());
        let good = sample();
        assert!(refused(&good[..100]).contains("incomplete header"));
        assert!(refused(b"text, but no archive".repeat(100).as_slice()).contains("checksum"));
        // The first file's data is missing.
        assert!(refused(&good[..1026]).contains("beyond the end"));
        let mut huge = entry("a", b'0', "", b"");
        huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        huge[148..156].fill(b' ');
        let sum: u32 = huge[..512].iter().map(|byte| u32::from(*byte)).sum();
        huge[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        assert!(refused(&huge).contains("bounds") || refused(&huge).contains("beyond the end"));
        assert!(refused(&entry("x", b'x', "", b"99 path=short\n")).contains("extended header"));
        let many = entry("a", b'5', "", b"").repeat(MAX_ENTRIES + 1);
        assert!(refused(&many).contains("too many"));
        assert!(matches!(
            archive(dir.path(), &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
            Err(ArchiveError::Decompress { .. } | ArchiveError::Tar { .. })
        ));
        for n in 0..good.len() / 64 {
            let mut changed = good.clone();
            changed[n * 64] ^= 0x11;
            // Whatever it is, it is refused, or what is in the index can be read.
            let Ok(archive) = archive(dir.path(), &changed) else { continue };
            for name in archive.index.keys() {
                if let Ok(section) = archive.section(name) {
                    let size = section.size();
                    assert_eq!(content(&archive, name).unwrap().len() as u64, size, "{name}");
                }
            }
        }
    }
}
