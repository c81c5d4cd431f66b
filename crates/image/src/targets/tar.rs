//! Writing tar: ustar headers, with PAX records for what does not fit them (POSIX.1-2017, pax).
//!
//! Equal entries give equal bytes: no time, number or name comes from anywhere but the entry. What a record
//! says is also in the header as far as it fits there.

use std::io::{self, Write};

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;
/// The end of an archive: two blocks of zeros.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Largest number in the fields of owner, seven octal digits.
const MAX_OWNER: u64 = 0o777_7777;
/// Largest number in the fields of size and time, eleven octal digits.
const MAX_LONG: u64 = 0o777_7777_7777;
/// Lengths of the fields of name and link target.
const NAME_LEN: usize = 100;

/// Key and value of a PAX record.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// What stands before an entry's data.
#[derive(Debug, Clone)]
pub(crate) struct EntryHeader<'a> {
    pub(crate) kind: Kind,
    /// Path without leading slash; a directory's without the trailing one.
    pub(crate) path: &'a [u8],
    /// Target of a link, else empty.
    pub(crate) link: &'a [u8],
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u32,
    /// Stored bytes that follow.
    pub(crate) size: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Further records, in this order.
    pub(crate) records: Vec<Record>,
}

impl<'a> EntryHeader<'a> {
    /// A regular file of an image archive, that is of nobody and of no time.
    pub(crate) fn plain(path: &'a [u8], size: u64) -> Self {
        Self {
            kind: Kind::File,
            path,
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            device: (0, 0),
            records: Vec::new(),
        }
    }

    /// Makes the blocks of the header.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut name = self.path.to_vec();
        if self.kind == Kind::Directory {
            name.push(b'/');
        }
        let mut records = Vec::new();
        let mut record = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
        let number = |value: u64| value.to_string().into_bytes();
        if name.len() > NAME_LEN {
            record("path", name.clone());
        }
        if self.link.len() > NAME_LEN {
            record("linkpath", self.link.to_vec());
        }
        if self.size > MAX_LONG {
            record("size", number(self.size));
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > MAX_OWNER {
                record(key, number(id.into()));
            }
        }
        records.extend(self.records.iter().cloned());
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record_line(key, value)).collect();
            let header = self.block(b'x', b"././@PaxHeader", b"", body.len() as u64);
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(&body);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend_from_slice(&self.block(self.kind.flag(), &name, self.link, self.size));
        bytes
    }

    fn block(&self, flag: u8, name: &[u8], link: &[u8], size: u64) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        // A number that does not fit is in a record; zero is what others write then.
        let octal = |value: u64, digits: usize, max: u64| {
            let value = if value > max { 0 } else { value };
            format!("{value:0digits$o}\0").into_bytes()
        };
        put(0, &name[..name.len().min(NAME_LEN)]);
        put(100, &octal(self.mode.into(), 7, MAX_OWNER));
        put(108, &octal(self.uid.into(), 7, MAX_OWNER));
        put(116, &octal(self.gid.into(), 7, MAX_OWNER));
        put(124, &octal(size, 11, MAX_LONG));
        put(136, &octal(self.mtime.into(), 11, MAX_LONG));
        put(148, b"        ");
        put(156, &[flag]);
        put(157, &link[..link.len().min(NAME_LEN)]);
        put(257, b"ustar\x0000");
        put(329, &octal(self.device.0.into(), 7, MAX_OWNER));
        put(337, &octal(self.device.1.into(), 7, MAX_OWNER));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record_line(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut line = format!("{length} ").into_bytes();
    line.extend_from_slice(key);
    line.push(b'=');
    line.extend_from_slice(value);
    line.push(b'\n');
    line
}

/// Writes the zeros that fill the last block of an entry of `size` bytes.
pub(crate) fn pad(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let rest = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    out.write_all(&[0; BLOCK][..rest])
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::layer::{EntryKind, TarReader};

    #[test]
    fn our_reader_reads_what_fits_and_what_does_not() {
        let long_name = [&b"d/"[..], &[b'n'; 200]].concat();
        let long_link = vec![b't'; 300];
        let base = EntryHeader { mode: 0o4755, mtime: u32::MAX, ..EntryHeader::plain(b"a", 0) };
        let cases = [
            base.clone(),
            EntryHeader { path: b"b", size: 3, uid: u32::MAX, gid: 3_000_000, ..base.clone() },
            EntryHeader { path: &long_name, size: 3, ..base.clone() },
            EntryHeader { kind: Kind::Symlink, path: b"l", link: &long_link, ..base.clone() },
            EntryHeader { kind: Kind::HardLink, path: b"h", link: &long_name, ..base.clone() },
            EntryHeader { kind: Kind::Directory, path: b"not-\xff-utf8", ..base.clone() },
            EntryHeader { kind: Kind::CharDevice, path: b"c", device: (4095, 1_048_575), ..base.clone() },
            EntryHeader { kind: Kind::BlockDevice, path: b"k", device: (7, 0), ..base.clone() },
            EntryHeader { kind: Kind::Fifo, path: b"p", ..base.clone() },
            EntryHeader {
                path: b"x",
                records: vec![(b"SCHILY.xattr.user.a".to_vec(), b"v\0\n=w".to_vec())],
                ..base
            },
        ];
        let mut bytes = Vec::new();
        for case in &cases {
            bytes.extend_from_slice(&case.to_bytes());
            bytes.extend_from_slice(&b"abc"[..usize::try_from(case.size).unwrap()]);
            pad(&mut bytes, case.size).unwrap();
        }
        bytes.extend_from_slice(&END);
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut reader = TarReader::new(bytes.as_slice());
        for case in &cases {
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(entry.path, case.path);
            let meta = &entry.meta;
            let found = (meta.mode, meta.uid, meta.gid, meta.mtime);
            assert_eq!(found, (case.mode, case.uid, case.gid, i64::from(case.mtime)), "{case:?}");
            let link = || case.link.to_vec();
            let (major, minor) = case.device;
            let kind = match case.kind {
                Kind::File => EntryKind::File { size: case.size },
                Kind::HardLink => EntryKind::HardLink { target: link() },
                Kind::Symlink => EntryKind::Symlink { target: link() },
                Kind::CharDevice => EntryKind::CharDevice { major, minor },
                Kind::BlockDevice => EntryKind::BlockDevice { major, minor },
                Kind::Directory => EntryKind::Directory,
                Kind::Fifo => EntryKind::Fifo,
            };
            assert_eq!(entry.kind, kind);
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            assert_eq!(data.len() as u64, case.size);
        }
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn lengths_of_records_count_themselves() {
        for (value, want) in [(1, 8), (2, 9), (3, 11), (91, 99), (92, 101), (93, 102)] {
            let line = record_line(b"key", &vec![b'v'; value]);
            assert_eq!(line.len(), want, "{value}");
            assert!(line.starts_with(format!("{want} key=v").as_bytes()));
        }
    }
}
