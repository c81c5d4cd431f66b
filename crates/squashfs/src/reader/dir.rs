//! Directory listings: iteration that can stop and go on, and look-up by name.
//!
//! A listing is a series of runs: a header (entry count, inode block, base inode number) followed by
//! up to 256 entries. Extended directories have an index with one name for about every metadata
//! block of the listing, which look-up uses to start near the wanted name.

use crate::error::{Error, Result};
use crate::layout::{MAX_DIR_RUN, MAX_NAME, le16, le32};
use crate::reader::image::Image;
use crate::reader::inode::{DirectoryData, FileType, Inode, InodeKind, InodeRef};
use crate::reader::metadata::Cursor;

/// Entries that `read_dir` returns at most; `read_dir_from` has no such limit.
const MAX_READ_DIR: usize = 1 << 20;

const RUN_HEADER_LEN: u32 = 12;
const ENTRY_HEAD_LEN: u32 = 8;

/// Place in a directory listing at which reading goes on.
///
/// `START` is the first entry; others come from [`DirEntry::next`]. As a number it fits 63 bits, as
/// `readdir` offsets must. A cookie that was made up gives wrong entries or an error, never a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirCookie(pub u64);

impl DirCookie {
    /// Before the first entry.
    pub const START: Self = Self(0);

    // Bits 0..32: offset in the listing. 32..52: distance back to the header of the run, 0 if a
    // header comes next. 52..60: entries of the run that are left, less one.
    fn new(at: u32, header_at: u32, left: u32) -> Self {
        if left == 0 {
            return Self(at.into());
        }
        Self(u64::from(at) | (u64::from(at - header_at) << 32) | (u64::from(left - 1) << 52))
    }

    fn parts(self) -> (u32, u32, u32) {
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let at = low(self.0);
        match low((self.0 >> 32) & 0xf_ffff) {
            0 => (at, at, 0),
            back => (at, at.saturating_sub(back), low((self.0 >> 52) & 0xff) + 1),
        }
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, any bytes except `/` and NUL.
    pub name: Vec<u8>,
    /// The inode it names.
    pub inode_ref: InodeRef,
    /// Kind of the inode as the directory says; the inode itself decides.
    pub kind: FileType,
    /// Inode number.
    pub number: u32,
    /// Where reading goes on after this entry.
    pub next: DirCookie,
}

/// The run of entries the cursor is in.
#[derive(Clone, Copy)]
struct Run {
    header_at: u32,
    left: u32,
    block: u32,
    number: u32,
}

/// An entry without its name, which is in the listing's buffer.
struct RawEntry {
    inode_ref: InodeRef,
    kind: FileType,
    number: u32,
}

struct Listing<'a> {
    cursor: Cursor<'a>,
    at: u32,
    end: u32,
    run: Run,
    name: [u8; MAX_NAME],
    name_len: usize,
}

impl<'a> Listing<'a> {
    fn open(image: &'a Image, dir: &DirectoryData, cookie: DirCookie) -> Result<Option<Self>> {
        let (at, header_at, left) = cookie.parts();
        if dir.listing_len == 0 || at >= dir.listing_len {
            return Ok(None);
        }
        let mut cursor = Cursor::new(image, dir.listing)?;
        cursor.skip(header_at.into())?;
        let run = Run { header_at, left: 0, block: 0, number: 0 };
        let mut listing =
            Self { cursor, at: header_at, end: dir.listing_len, run, name: [0; MAX_NAME], name_len: 0 };
        if left > 0 {
            listing.read_header()?;
            let rest = at.checked_sub(listing.at).ok_or_else(|| listing.corrupt("cookie"))?;
            listing.cursor.skip(rest.into())?;
            listing.at = at;
            listing.run.left = left.min(listing.run.left);
        }
        Ok(Some(listing))
    }

    /// Starts at a header that lies `at` bytes into the listing.
    fn at_header(cursor: Cursor<'a>, at: u32, end: u32) -> Self {
        let run = Run { header_at: at, left: 0, block: 0, number: 0 };
        Self { cursor, at, end, run, name: [0; MAX_NAME], name_len: 0 }
    }

    fn corrupt(&self, what: &'static str) -> Error {
        Error::corrupt(what, self.at.into())
    }

    fn take(&mut self, length: u32) -> Result<()> {
        match self.at.checked_add(length) {
            Some(at) if at <= self.end => {
                self.at = at;
                Ok(())
            }
            _ => Err(self.corrupt("directory entry reaches over the end of its listing")),
        }
    }

    fn read_header(&mut self) -> Result<()> {
        let header_at = self.at;
        self.take(RUN_HEADER_LEN)?;
        let head: [u8; 12] = self.cursor.array()?;
        let left = le32(&head, 0).saturating_add(1);
        if left > MAX_DIR_RUN {
            return Err(self.corrupt("directory header announces too many entries"));
        }
        self.run = Run { header_at, left, block: le32(&head, 4), number: le32(&head, 8) };
        Ok(())
    }

    fn next(&mut self) -> Result<Option<RawEntry>> {
        if self.run.left == 0 {
            if self.at == self.end {
                return Ok(None);
            }
            self.read_header()?;
        }
        self.take(ENTRY_HEAD_LEN)?;
        let head: [u8; 8] = self.cursor.array()?;
        let name_len = le16(&head, 6);
        self.name_len = usize::from(name_len) + 1;
        if self.name_len > MAX_NAME {
            return Err(self.corrupt("file name is too long"));
        }
        self.take(u32::from(name_len) + 1)?;
        self.cursor.read(&mut self.name[..self.name_len])?;
        if name_is_unusable(self.name()) {
            return Err(self.corrupt("file name is not allowed"));
        }
        self.run.left -= 1;
        let delta = i16::from_le_bytes([head[2], head[3]]);
        let kind = FileType::from_basic(le16(&head, 4))
            .ok_or_else(|| self.corrupt("directory entry has an unknown type"))?;
        Ok(Some(RawEntry {
            inode_ref: InodeRef((u64::from(self.run.block) << 16) | u64::from(le16(&head, 0))),
            kind,
            number: self.run.number.wrapping_add_signed(delta.into()),
        }))
    }

    fn name(&self) -> &[u8] {
        &self.name[..self.name_len]
    }

    fn owned(&self, raw: &RawEntry) -> DirEntry {
        DirEntry {
            name: self.name().to_vec(),
            inode_ref: raw.inode_ref,
            kind: raw.kind,
            number: raw.number,
            next: DirCookie::new(self.at, self.run.header_at, self.run.left),
        }
    }
}

/// A name that would mean something else to whoever walks paths with it.
fn name_is_unusable(name: &[u8]) -> bool {
    name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

impl Image {
    /// Reads all entries of a directory, in the order of the image; `.` and `..` are not among them.
    ///
    /// Fails on directories of more than a million entries: use [`Image::read_dir_from`] there.
    pub fn read_dir(&self, dir: &Inode) -> Result<Vec<DirEntry>> {
        let entries = self.read_dir_from(dir, DirCookie::START, MAX_READ_DIR + 1)?;
        if entries.len() > MAX_READ_DIR {
            let limit = MAX_READ_DIR as u64;
            return Err(Error::Limit { what: "directory entry count", value: limit + 1, limit });
        }
        Ok(entries)
    }

    /// Reads up to `max` entries from `cookie` on; fewer only at the end of the directory.
    pub fn read_dir_from(&self, dir: &Inode, cookie: DirCookie, max: usize) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.for_each_entry(dir, cookie, |entry| {
            if entries.len() < max {
                entries.push(entry);
            }
            entries.len() < max
        })?;
        Ok(entries)
    }

    /// Calls `visit` with every entry from `cookie` on until it returns `false` or the directory ends.
    pub fn for_each_entry(
        &self,
        dir: &Inode,
        cookie: DirCookie,
        mut visit: impl FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let Some(mut listing) = Listing::open(self, directory(dir)?, cookie)? else { return Ok(()) };
        while let Some(raw) = listing.next()? {
            if !visit(listing.owned(&raw)) {
                break;
            }
        }
        Ok(())
    }

    /// Finds `name` in a directory.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry>> {
        let data = directory(dir)?;
        if data.listing_len == 0 || name.is_empty() || name.len() > MAX_NAME {
            return Ok(None);
        }
        let Some(mut listing) = self.listing_near(data, name)? else { return Ok(None) };
        while let Some(raw) = listing.next()? {
            if listing.name() == name {
                return Ok(Some(listing.owned(&raw)));
            }
            // Listings are sorted; like the kernel this trusts only the first byte, because some
            // writers order the rest in ways of their own.
            if listing.name()[0] > name[0] {
                break;
            }
        }
        Ok(None)
    }

    /// A listing that starts at the last indexed run whose first name is not after `name`.
    fn listing_near(&self, dir: &DirectoryData, name: &[u8]) -> Result<Option<Listing<'_>>> {
        let mut found = None;
        if let Some((index, count)) = dir.index {
            let mut cursor = Cursor::new(self, index)?;
            let mut first = [0; MAX_NAME];
            for _ in 0..count {
                let head: [u8; 12] = cursor.array()?;
                let length = usize::try_from(le32(&head, 8)).unwrap_or(MAX_NAME).saturating_add(1);
                let first = first
                    .get_mut(..length)
                    .ok_or_else(|| Error::corrupt("directory index name is too long", dir.listing.block))?;
                cursor.read(first)?;
                if &*first > name {
                    break;
                }
                found = Some((le32(&head, 0), le32(&head, 4)));
            }
        }
        let Some((at, block)) = found else { return Listing::open(self, dir, DirCookie::START) };
        if at >= dir.listing_len {
            return Err(Error::corrupt("directory index points past its listing", at.into()));
        }
        // Every metadata block before the last is full, so the offset in the block follows from the
        // distance to the start of the listing.
        let offset = (u64::from(dir.listing.offset) + u64::from(at)) % crate::layout::METADATA_LEN as u64;
        let offset = u16::try_from(offset).unwrap_or(u16::MAX);
        let cursor = Cursor::new(self, self.listing_position(block, offset)?)?;
        Ok(Some(Listing::at_header(cursor, at, dir.listing_len)))
    }
}

fn directory(inode: &Inode) -> Result<&DirectoryData> {
    match &inode.kind {
        InodeKind::Directory(data) => Ok(data),
        _ => Err(inode.wrong_kind("directory")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_round_trip() {
        for (at, header_at, left) in [(12, 0, 0), (40, 12, 1), (u32::MAX, u32::MAX - 70_000, 256)] {
            let cookie = DirCookie::new(at, header_at, left);
            assert!(i64::try_from(cookie.0).is_ok());
            let expected_header = if left == 0 { at } else { header_at };
            assert_eq!(cookie.parts(), (at, expected_header, left));
        }
        assert_eq!(DirCookie::START.parts(), (0, 0, 0));
    }
}
