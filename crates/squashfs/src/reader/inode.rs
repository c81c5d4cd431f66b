//! Inodes: what they say, parsed into plain values.

use crate::error::{Error, Result};
use crate::layout::{DIR_SIZE_BIAS, NONE32, kind, le16, le32, le64};
use crate::reader::image::Image;
use crate::reader::metadata::{Cursor, MetaPos};

/// Longest symlink target; the kernel refuses anything over a page, some writers allow more.
const MAX_SYMLINK: u32 = 65_535;

/// Data blocks of one file (8 TiB at the usual block size): bounds the walk over its block list.
const MAX_FILE_BLOCKS: u64 = 1 << 26;

/// Names an inode: offset of its metadata block in the inode table << 16 | offset in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(pub u64);

/// A device number as stored in the image (`new_encode_dev` of the kernel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber(pub u32);

impl DeviceNumber {
    /// Packs a major (12 bits) and a minor number (20 bits); `None` if one does not fit.
    pub fn new(major: u32, minor: u32) -> Option<Self> {
        (major < 1 << 12 && minor < 1 << 20)
            .then_some(Self((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)))
    }

    /// Major number.
    pub fn major(self) -> u32 {
        (self.0 >> 8) & 0xfff
    }

    /// Minor number.
    pub fn minor(self) -> u32 {
        (self.0 & 0xff) | ((self.0 >> 12) & 0xf_ff00)
    }
}

/// Kind of a directory entry, without what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl FileType {
    /// Kind of a basic inode type.
    pub(crate) fn from_basic(id: u16) -> Option<Self> {
        Some(match id {
            kind::DIRECTORY => Self::Directory,
            kind::FILE => Self::File,
            kind::SYMLINK => Self::Symlink,
            kind::BLOCK => Self::BlockDevice,
            kind::CHAR => Self::CharDevice,
            kind::FIFO => Self::Fifo,
            kind::SOCKET => Self::Socket,
            _ => return None,
        })
    }
}

/// Where a directory's listing lies.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryData {
    /// Inode number of the parent directory.
    pub parent: u32,
    pub(crate) listing: MetaPos,
    pub(crate) listing_len: u32,
    pub(crate) index: Option<(MetaPos, u16)>,
}

/// Where a file's content lies.
#[derive(Debug, Clone, Copy)]
pub struct FileData {
    /// Bytes of holes the writer recorded (extended inodes only).
    pub sparse: u64,
    pub(crate) start: u64,
    pub(crate) blocks: u64,
    pub(crate) block_list: MetaPos,
    pub(crate) fragment: Option<(u32, u32)>,
}

/// Where a symlink's target lies.
#[derive(Debug, Clone, Copy)]
pub struct SymlinkData {
    pub(crate) target: MetaPos,
    pub(crate) length: u16,
}

/// What kind of thing an inode is, with what belongs to it.
#[derive(Debug, Clone, Copy)]
pub enum InodeKind {
    /// Directory.
    Directory(DirectoryData),
    /// Regular file.
    File(FileData),
    /// Symbolic link.
    Symlink(SymlinkData),
    /// Block device.
    BlockDevice(DeviceNumber),
    /// Character device.
    CharDevice(DeviceNumber),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// One inode of an image.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    /// Where it was read from.
    pub inode_ref: InodeRef,
    /// Inode number, from 1; unique in a well-formed image.
    pub number: u32,
    /// Kind and data.
    pub kind: InodeKind,
    /// Permission bits with set-id and sticky bits (`mode & 0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Number of names.
    pub nlink: u32,
    /// Content length of a file, target length of a symlink, listing length of a directory.
    pub size: u64,
    pub(crate) xattr: u32,
}

impl Inode {
    /// The kind without its data.
    pub fn file_type(&self) -> FileType {
        match self.kind {
            InodeKind::Directory(_) => FileType::Directory,
            InodeKind::File(_) => FileType::File,
            InodeKind::Symlink(_) => FileType::Symlink,
            InodeKind::BlockDevice(_) => FileType::BlockDevice,
            InodeKind::CharDevice(_) => FileType::CharDevice,
            InodeKind::Fifo => FileType::Fifo,
            InodeKind::Socket => FileType::Socket,
        }
    }

    /// Whether the inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattr != NONE32
    }

    pub(crate) fn wrong_kind(&self, expected: &'static str) -> Error {
        Error::WrongKind { number: self.number, expected }
    }
}

impl Image {
    /// Reads the inode that `inode_ref` names.
    pub fn inode(&self, inode_ref: InodeRef) -> Result<Inode> {
        let sb = self.superblock();
        let block = (inode_ref.0 >> 16)
            .checked_add(sb.inode_table)
            .filter(|block| *block < sb.directory_table)
            .ok_or_else(|| Error::corrupt("inode reference lies outside of the inode table", inode_ref.0))?;
        let [low, high, ..] = inode_ref.0.to_le_bytes();
        let mut cursor = Cursor::new(self, MetaPos { block, offset: u16::from_le_bytes([low, high]) })?;
        let head: [u8; 16] = cursor.array()?;
        let type_id = le16(&head, 0);
        let basic = if type_id > kind::EXTENDED { type_id - kind::EXTENDED } else { type_id };
        let mut inode = Inode {
            inode_ref,
            number: le32(&head, 12),
            kind: InodeKind::Fifo,
            mode: le16(&head, 2) & 0o7777,
            uid: self.id(le16(&head, 4))?,
            gid: self.id(le16(&head, 6))?,
            mtime: le32(&head, 8),
            nlink: 1,
            size: 0,
            xattr: NONE32,
        };
        let extended = type_id != basic;
        match (basic, extended) {
            (kind::DIRECTORY, false) => self.basic_directory(&mut inode, &mut cursor)?,
            (kind::DIRECTORY, true) => self.extended_directory(&mut inode, &mut cursor)?,
            (kind::FILE, false) => self.basic_file(&mut inode, &mut cursor)?,
            (kind::FILE, true) => self.extended_file(&mut inode, &mut cursor)?,
            (kind::SYMLINK, _) => symlink(&mut inode, &mut cursor, extended)?,
            (kind::BLOCK | kind::CHAR, _) => {
                inode.nlink = cursor.u32()?;
                let device = DeviceNumber(cursor.u32()?);
                inode.kind = if basic == kind::BLOCK {
                    InodeKind::BlockDevice(device)
                } else {
                    InodeKind::CharDevice(device)
                };
                if extended {
                    inode.xattr = cursor.u32()?;
                }
            }
            (kind::FIFO | kind::SOCKET, _) => {
                inode.nlink = cursor.u32()?;
                inode.kind = if basic == kind::FIFO { InodeKind::Fifo } else { InodeKind::Socket };
                if extended {
                    inode.xattr = cursor.u32()?;
                }
            }
            _ => return Err(Error::corrupt("unknown inode type", type_id.into())),
        }
        Ok(inode)
    }

    fn basic_directory(&self, inode: &mut Inode, cursor: &mut Cursor<'_>) -> Result<()> {
        let body: [u8; 16] = cursor.array()?;
        inode.nlink = le32(&body, 4);
        let listing = self.listing_position(le32(&body, 0), le16(&body, 10))?;
        set_directory(inode, le16(&body, 8).into(), le32(&body, 12), listing, None);
        Ok(())
    }

    fn extended_directory(&self, inode: &mut Inode, cursor: &mut Cursor<'_>) -> Result<()> {
        let body: [u8; 24] = cursor.array()?;
        inode.nlink = le32(&body, 0);
        inode.xattr = le32(&body, 20);
        let listing = self.listing_position(le32(&body, 8), le16(&body, 18))?;
        let index = match le16(&body, 16) {
            0 => None,
            count => Some((cursor.position()?, count)),
        };
        set_directory(inode, le32(&body, 4), le32(&body, 12), listing, index);
        Ok(())
    }

    /// Turns the block of the directory table and offset of an inode into a position.
    pub(crate) fn listing_position(&self, block: u32, offset: u16) -> Result<MetaPos> {
        let sb = self.superblock();
        match sb.directory_table.checked_add(block.into()) {
            Some(block) if block <= sb.bytes_used => Ok(MetaPos { block, offset }),
            _ => Err(Error::corrupt("directory listing lies outside of the image", block.into())),
        }
    }

    fn basic_file(&self, inode: &mut Inode, cursor: &mut Cursor<'_>) -> Result<()> {
        let body: [u8; 16] = cursor.array()?;
        inode.size = le32(&body, 12).into();
        let fragment = (le32(&body, 4), le32(&body, 8));
        self.set_file(inode, le32(&body, 0).into(), 0, fragment, cursor.position()?)
    }

    fn extended_file(&self, inode: &mut Inode, cursor: &mut Cursor<'_>) -> Result<()> {
        let body: [u8; 40] = cursor.array()?;
        inode.size = le64(&body, 8);
        inode.nlink = le32(&body, 24);
        inode.xattr = le32(&body, 36);
        let fragment = (le32(&body, 28), le32(&body, 32));
        self.set_file(inode, le64(&body, 0), le64(&body, 16), fragment, cursor.position()?)
    }

    fn set_file(
        &self,
        inode: &mut Inode,
        start: u64,
        sparse: u64,
        fragment: (u32, u32),
        block_list: MetaPos,
    ) -> Result<()> {
        let block_size = u64::from(self.superblock().block_size);
        if i64::try_from(inode.size).is_err() {
            return Err(Error::corrupt("file size is negative", inode.size));
        }
        let (fragment, blocks) = if fragment.0 == NONE32 {
            (None, inode.size.div_ceil(block_size))
        } else {
            let tail = inode.size % block_size;
            // Checked here once, so that reading may rely on it.
            if u64::from(fragment.1) + tail > block_size {
                return Err(Error::corrupt("file tail lies outside of its fragment", inode.inode_ref.0));
            }
            (Some(fragment), inode.size / block_size)
        };
        if blocks > MAX_FILE_BLOCKS {
            return Err(Error::Limit { what: "file block count", value: blocks, limit: MAX_FILE_BLOCKS });
        }
        inode.kind = InodeKind::File(FileData { sparse, start, blocks, block_list, fragment });
        Ok(())
    }
}

fn set_directory(
    inode: &mut Inode,
    stored_len: u32,
    parent: u32,
    listing: MetaPos,
    index: Option<(MetaPos, u16)>,
) {
    inode.size = stored_len.into();
    inode.kind = InodeKind::Directory(DirectoryData {
        parent,
        listing,
        listing_len: stored_len.saturating_sub(DIR_SIZE_BIAS),
        index,
    });
}

fn symlink(inode: &mut Inode, cursor: &mut Cursor<'_>, extended: bool) -> Result<()> {
    inode.nlink = cursor.u32()?;
    let stored = cursor.u32()?;
    let length = u16::try_from(stored).map_err(|_| Error::Limit {
        what: "symlink target length",
        value: stored.into(),
        limit: MAX_SYMLINK.into(),
    })?;
    inode.size = length.into();
    inode.kind = InodeKind::Symlink(SymlinkData { target: cursor.position()?, length });
    if extended {
        cursor.skip(length.into())?;
        inode.xattr = cursor.u32()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, (1 << 20) - 1)] {
            let device = DeviceNumber::new(major, minor).unwrap();
            assert_eq!((device.major(), device.minor()), (major, minor));
        }
        assert!(DeviceNumber::new(4096, 0).is_none());
        assert!(DeviceNumber::new(0, 1 << 20).is_none());
    }
}
