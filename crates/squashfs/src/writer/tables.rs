//! Metadata: blocks of 8 KiB, tables of fixed entries with an index, ids and extended attributes.

use std::collections::HashMap;
use std::io::{Read, Seek, Write};

use crate::layout::{METADATA_LEN, METADATA_RAW, NONE32, NONE64, XATTR_PREFIXES};
use crate::writer::compress::Compressor;
use crate::writer::error::{Result, WriteError, printable};
use crate::writer::sink::Sink;

/// Ids an image can have: the superblock counts them with 16 bits.
const MAX_IDS: usize = 65_535;
/// Longest attribute name with its prefix, and longest value (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65_536;

/// Metadata in the making: finished blocks, and the one being filled.
#[derive(Debug, Default)]
pub(crate) struct MetaWriter {
    finished: Vec<u8>,
    current: Vec<u8>,
    packed: Vec<u8>,
}

impl MetaWriter {
    /// Offset of the current block in the finished bytes, and offset in its content.
    pub(crate) fn position(&self) -> (u64, u16) {
        // Full blocks are finished at once, so the offset is below 8 KiB.
        (self.finished.len() as u64, u16::try_from(self.current.len()).unwrap_or(u16::MAX))
    }

    /// Appends content.
    pub(crate) fn write(&mut self, mut bytes: &[u8], compressor: &mut Compressor) -> Result<()> {
        while !bytes.is_empty() {
            let room = METADATA_LEN - self.current.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.current.extend_from_slice(now);
            bytes = later;
            if self.current.len() == METADATA_LEN {
                self.end_block(compressor)?;
            }
        }
        Ok(())
    }

    /// Ends the last block and returns all of them.
    pub(crate) fn finish(mut self, compressor: &mut Compressor) -> Result<Vec<u8>> {
        self.end_block(compressor)?;
        Ok(self.finished)
    }

    fn end_block(&mut self, compressor: &mut Compressor) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let smaller = compressor.compress(&self.current, &mut self.packed)?;
        let (stored, flag) = if smaller { (&self.packed, 0) } else { (&self.current, METADATA_RAW) };
        let length = u16::try_from(stored.len())
            .map_err(|_| WriteError::Compress { reason: "metadata block is too long" })?;
        self.finished.extend_from_slice(&(length | flag).to_le_bytes());
        self.finished.extend_from_slice(stored);
        self.current.clear();
        Ok(())
    }
}

/// Writes a table of fixed-size entries and the index of its blocks; returns where the index starts.
pub(crate) fn write_table<W: Read + Write + Seek>(
    sink: &mut Sink<W>,
    compressor: &mut Compressor,
    head: impl FnOnce(&mut Vec<u8>),
    entries: &[u8],
) -> Result<u64> {
    let mut starts = Vec::new();
    for block in entries.chunks(METADATA_LEN) {
        starts.extend_from_slice(&sink.position().to_le_bytes());
        let mut metadata = MetaWriter::default();
        metadata.write(block, compressor)?;
        sink.append(&metadata.finish(compressor)?)?;
    }
    let index = sink.position();
    let mut bytes = Vec::new();
    head(&mut bytes);
    bytes.extend_from_slice(&starts);
    sink.append(&bytes)?;
    Ok(index)
}

/// User and group ids, each once, in the order of their first use.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    places: HashMap<u32, u16>,
    pub(crate) bytes: Vec<u8>,
}

impl Ids {
    /// The place of `id` in the table.
    pub(crate) fn place(&mut self, id: u32) -> Result<u16> {
        if let Some(place) = self.places.get(&id) {
            return Ok(*place);
        }
        let limit = MAX_IDS as u64;
        let place = u16::try_from(self.places.len()).ok().filter(|place| usize::from(*place) < MAX_IDS);
        let place = place.ok_or(WriteError::TooMany { what: "distinct owners and groups", limit })?;
        self.places.insert(id, place);
        self.bytes.extend_from_slice(&id.to_le_bytes());
        Ok(place)
    }

    /// Number of ids.
    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.places.len()).unwrap_or(u16::MAX)
    }
}

/// Sets of extended attributes, each set once.
#[derive(Debug, Default)]
pub(crate) struct Xattrs {
    places: HashMap<Vec<u8>, u32>,
    pairs: MetaWriter,
    ids: Vec<u8>,
}

impl Xattrs {
    /// The place of a set in the table, or the mark for "none" if it is empty.
    pub(crate) fn place(
        &mut self,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        compressor: &mut Compressor,
    ) -> Result<u32> {
        if xattrs.is_empty() {
            return Ok(NONE32);
        }
        let encoded = encode(xattrs)?;
        if let Some(place) = self.places.get(&encoded) {
            return Ok(*place);
        }
        let limit = u64::from(NONE32) - 1;
        let place = u32::try_from(self.places.len()).ok().filter(|place| *place < NONE32);
        let place = place.ok_or(WriteError::TooMany { what: "sets of extended attributes", limit })?;
        let (block, offset) = self.pairs.position();
        self.pairs.write(&encoded, compressor)?;
        let too_many = |_| WriteError::TooMany { what: "extended attributes of a file", limit: 1 << 16 };
        self.ids.extend_from_slice(&((block << 16) | u64::from(offset)).to_le_bytes());
        self.ids.extend_from_slice(&u32::try_from(xattrs.len()).map_err(too_many)?.to_le_bytes());
        self.ids.extend_from_slice(&u32::try_from(encoded.len()).map_err(too_many)?.to_le_bytes());
        self.places.insert(encoded, place);
        Ok(place)
    }

    /// Writes the table, if there is anything in it, and returns where it starts.
    pub(crate) fn write<W: Read + Write + Seek>(
        self,
        sink: &mut Sink<W>,
        compressor: &mut Compressor,
    ) -> Result<u64> {
        if self.places.is_empty() {
            return Ok(NONE64);
        }
        let start = sink.position();
        sink.append(&self.pairs.finish(compressor)?)?;
        let count = u32::try_from(self.places.len()).unwrap_or(NONE32);
        let head = |bytes: &mut Vec<u8>| {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
        };
        write_table(sink, compressor, head, &self.ids)
    }
}

/// The pairs of one set as they are stored, sorted by name.
fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut sorted: Vec<_> = xattrs.iter().collect();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(refused(&pair[0].0, "it is given twice"));
    }
    let mut encoded = Vec::new();
    for (name, value) in sorted {
        let found =
            (0u16..).zip(XATTR_PREFIXES).find_map(|(kind, prefix)| Some((kind, name.strip_prefix(prefix)?)));
        let (kind, rest) = found.ok_or_else(|| refused(name, "squashfs has no such namespace"))?;
        if rest.is_empty() || rest.contains(&0) {
            return Err(refused(name, "its name is empty or has a NUL in it"));
        }
        if name.len() > MAX_XATTR_NAME {
            return Err(refused(name, "its name is too long"));
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(refused(name, "its value is too long"));
        }
        let too_long = |_| refused(name, "it is too long");
        encoded.extend_from_slice(&kind.to_le_bytes());
        encoded.extend_from_slice(&u16::try_from(rest.len()).map_err(too_long)?.to_le_bytes());
        encoded.extend_from_slice(rest);
        encoded.extend_from_slice(&u32::try_from(value.len()).map_err(too_long)?.to_le_bytes());
        encoded.extend_from_slice(value);
    }
    Ok(encoded)
}

fn refused(name: &[u8], what: &'static str) -> WriteError {
    WriteError::Xattr { name: printable(name), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded() {
        let mut ids = Ids::default();
        for id in 0..65_535 {
            assert_eq!(u32::from(ids.place(id * 3).unwrap()), id);
        }
        assert_eq!(ids.place(3).unwrap(), 1);
        assert!(matches!(ids.place(1), Err(WriteError::TooMany { limit: 65_535, .. })));
        assert_eq!(ids.count(), 65_535);
    }

    #[test]
    fn xattr_sets_are_stored_once_and_checked() {
        let mut compressor = Compressor::new(3).unwrap();
        let mut xattrs = Xattrs::default();
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let (one, two) = (pair("user.a", "1"), pair("trusted.b", "2"));
        assert_eq!(xattrs.place(&[], &mut compressor).unwrap(), NONE32);
        assert_eq!(xattrs.place(&[one.clone(), two.clone()], &mut compressor).unwrap(), 0);
        assert_eq!(xattrs.place(std::slice::from_ref(&one), &mut compressor).unwrap(), 1);
        assert_eq!(xattrs.place(&[two, one], &mut compressor).unwrap(), 0);
        let long = "x".repeat(300);
        let refusals = [
            vec![pair("system.posix_acl_access", "x")],
            vec![pair("user.", "x")],
            vec![pair("user.a\0b", "x")],
            vec![pair(&format!("user.{long}"), "x")],
            vec![pair("user.a", "x"), pair("user.a", "y")],
            vec![pair("user.a", &"x".repeat(65_537))],
        ];
        for refused in refusals {
            let result = xattrs.place(&refused, &mut compressor);
            assert!(matches!(result, Err(WriteError::Xattr { .. })), "{refused:?}");
        }
    }
}
