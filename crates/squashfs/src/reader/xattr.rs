//! Extended attributes.

use crate::error::{Error, Result};
use crate::layout::{METADATA_LEN, XATTR_ID_ENTRY, XATTR_OUT_OF_LINE, XATTR_PREFIXES, le16, le32, le64};
use crate::reader::image::Image;
use crate::reader::inode::Inode;
use crate::reader::metadata::{Cursor, MetaPos};

/// Attributes of one inode: the kernel lists at most 64 KiB of names.
const MAX_XATTRS: u32 = 16_384;
/// Longest name with its prefix (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;
/// Longest value (`XATTR_SIZE_MAX`).
const MAX_VALUE: u32 = 65_536;
/// Names and values of one inode together, so that a few lying bytes cannot ask for gigabytes.
const MAX_TOTAL: usize = 16 << 20;

/// Name, with prefix, and value of one extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

impl Image {
    /// Reads all extended attributes of an inode; ones of an unknown namespace are left out.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        if !inode.has_xattrs() {
            return Ok(found);
        }
        let Some(table) = self.superblock().xattr_table else { return Ok(found) };
        let head: [u8; 16] = self.raw_bytes(table)?;
        let (start, count) = (le64(&head, 0), le32(&head, 8));
        if inode.xattr >= count {
            return Err(Error::corrupt("xattr index is out of range", inode.xattr.into()));
        }
        let per_block = METADATA_LEN as u64 / XATTR_ID_ENTRY;
        let block = self.index_entry(table + 16, u64::from(inode.xattr) / per_block)?;
        let offset = u16::try_from(u64::from(inode.xattr) % per_block * XATTR_ID_ENTRY).unwrap_or(u16::MAX);
        let entry: [u8; 16] = Cursor::new(self, MetaPos { block, offset })?.array()?;
        let n_pairs = le32(&entry, 8);
        if n_pairs > MAX_XATTRS {
            return Err(Error::Limit {
                what: "xattr count",
                value: n_pairs.into(),
                limit: MAX_XATTRS.into(),
            });
        }
        let mut cursor = Cursor::new(self, xattr_position(start, le64(&entry, 0))?)?;
        let mut total = 0;
        for _ in 0..n_pairs {
            let (name, value) = self.read_pair(&mut cursor, start)?;
            total += value.len() + MAX_NAME;
            if total > MAX_TOTAL {
                let limit = MAX_TOTAL as u64;
                return Err(Error::Limit { what: "xattr size", value: total as u64, limit });
            }
            if let Some(name) = name {
                found.push((name, value));
            }
        }
        Ok(found)
    }

    /// Reads one pair; the name is `None` if its namespace is unknown.
    fn read_pair(&self, cursor: &mut Cursor<'_>, start: u64) -> Result<(Option<Vec<u8>>, Vec<u8>)> {
        let key: [u8; 4] = cursor.array()?;
        let (kind, length) = (le16(&key, 0), usize::from(le16(&key, 2)));
        if length > MAX_NAME {
            return Err(Error::corrupt("xattr name is too long", length as u64));
        }
        let prefix = XATTR_PREFIXES.get(usize::from(kind & !XATTR_OUT_OF_LINE)).copied();
        let mut name = prefix.unwrap_or_default().to_vec();
        let prefix_len = name.len();
        name.resize(prefix_len + length, 0);
        cursor.read(&mut name[prefix_len..])?;
        let value = if kind & XATTR_OUT_OF_LINE != 0 {
            if cursor.u32()? != 8 {
                return Err(Error::corrupt("xattr value reference has the wrong size", start));
            }
            let place = cursor.u64()?;
            read_value(&mut Cursor::new(self, xattr_position(start, place)?)?)?
        } else {
            read_value(cursor)?
        };
        Ok((prefix.map(|_| name), value))
    }
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Vec<u8>> {
    let length = cursor.u32()?;
    if length > MAX_VALUE {
        return Err(Error::Limit { what: "xattr value size", value: length.into(), limit: MAX_VALUE.into() });
    }
    let mut value = vec![0; length as usize];
    cursor.read(&mut value)?;
    Ok(value)
}

fn xattr_position(start: u64, place: u64) -> Result<MetaPos> {
    let block = start
        .checked_add(place >> 16)
        .ok_or_else(|| Error::corrupt("xattr lies outside of the image", place))?;
    let [low, high, ..] = place.to_le_bytes();
    Ok(MetaPos { block, offset: u16::from_le_bytes([low, high]) })
}
