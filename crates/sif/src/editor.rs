//! Adding objects to a SIF in place, and deleting them.
//!
//! A file of many gigabytes is not copied for a definition file of a few bytes, so edits happen in place,
//! in an order that leaves a whole file wherever they are cut short:
//!
//! * To add: the object's bytes behind everything else; then its descriptor, marked as unused; then the
//!   one byte that marks it as used; then the header.
//! * To delete: the one byte that marks it as unused; then the header; then what only tidies up (zeros, the
//!   end of the file).
//!
//! Each step is brought to disk before the next. The one byte is the moment at which the file changes: before
//! it the file holds what it held, after it the object is there or gone. What a cut leaves behind is a
//! header that counts one descriptor or some bytes wrongly, which readers bear and the next edit corrects.
//! Bytes that no object has are never relied upon, so an addition that was cut short is overwritten by the
//! next one.
//!
//! Two edits at the same time must be kept apart by the caller.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use thiserror::Error;

use crate::codes::{Arch, PartType};
use crate::descriptor::{DescriptorInfo, Kind, Link};
use crate::layout::{DESCRIPTOR_LEN, HEADER_LEN, NAME_LEN, NO_TIME, descriptor, header};
use crate::reader::{Header, SifError, Tables, unknown};
use crate::writer::PARTITION_ALIGN;

/// Largest alignment of an object in bytes; more would be a mistake that makes huge files.
pub const MAX_ALIGNMENT: u64 = 1 << 30;

/// What can be edited: something to read and write whose bytes can be brought to disk.
pub trait Storage: Read + Write + Seek {
    /// Waits until everything written before is on disk.
    ///
    /// # Errors
    /// When it cannot be brought there.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file, or makes it longer by zeros.
    ///
    /// # Errors
    /// When that is impossible.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Storage for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

impl<S: Storage + ?Sized> Storage for &mut S {
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }
}

/// For tests and small files: memory has no disk.
impl Storage for Cursor<Vec<u8>> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.get_mut().resize(len, 0);
        Ok(())
    }
}

/// Why a SIF cannot be edited.
#[derive(Debug, Error)]
pub enum SifEditError {
    /// The file is no usable SIF, or has no such object.
    #[error(transparent)]
    Read(#[from] SifError),
    /// Writing, seeking or syncing failed.
    #[error("cannot write the SIF file")]
    Write(#[source] io::Error),
    /// The new object's content cannot be read.
    #[error("cannot read what is to be added")]
    Source(#[source] io::Error),
    /// Every descriptor is in use.
    #[error("SIF file is full: all of its {0} descriptors are in use")]
    Full(u64),
    /// There is a primary partition already.
    #[error("SIF file has a primary system partition already (object {0})")]
    SecondPrimary(u32),
    /// The name does not fit its field, or holds a NUL.
    #[error("not a name for a SIF object: it must have at most {max} bytes and no NUL", max = NAME_LEN - 1)]
    Name,
    /// The group has no objects.
    #[error("SIF file has no group {0}")]
    UnknownGroup(u32),
    /// The alignment is too large.
    #[error("an alignment of {0} bytes is too large (at most {MAX_ALIGNMENT})")]
    Alignment(u64),
    /// A number does not fit its field.
    #[error("group, size or digest does not fit into a SIF descriptor")]
    Field,
}

/// An object to be added.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Type and its fields.
    pub kind: Kind,
    /// Name, at most 127 bytes.
    pub name: String,
    /// Group, if it is to be in one.
    pub group: Option<u32>,
    /// What it belongs to.
    pub link: Link,
    /// Alignment in bytes; `None` for the usual one: a page for partitions, none for all else.
    pub alignment: Option<u64>,
}

/// A SIF being edited.
#[derive(Debug)]
pub struct SifEditor<S> {
    inner: S,
    head: [u8; HEADER_LEN],
    header: Header,
    table: Vec<u8>,
    objects: Vec<DescriptorInfo>,
}

impl<S: Storage> SifEditor<S> {
    /// Opens a file; it is checked as [`crate::SifFile::open`] does.
    ///
    /// # Errors
    /// When it is no usable SIF.
    pub fn open(mut inner: S) -> Result<Self, SifEditError> {
        let Tables { head, header, table, objects } = Tables::load(&mut inner)?;
        Ok(Self { inner, head, header, table, objects })
    }

    /// Returns the objects.
    #[must_use]
    pub fn objects(&self) -> &[DescriptorInfo] {
        &self.objects
    }

    /// Adds an object with what `source` holds. `now`, in Unix seconds, is written into files that hold
    /// times.
    ///
    /// # Errors
    /// When there is no room in the table, the object contradicts what the file holds, or reading or writing
    /// fails; the file then holds what it held. Only where the very last step fails, writing the header, the
    /// object is there nevertheless.
    pub fn add(
        &mut self,
        new: NewObject,
        source: &mut dyn Read,
        now: i64,
    ) -> Result<&DescriptorInfo, SifEditError> {
        if new.name.len() >= NAME_LEN || new.name.contains('\0') {
            return Err(SifEditError::Name);
        }
        self.check_link(new.link)?;
        let primary_arch = self.check_primary(&new.kind)?;
        let alignment = new.alignment.unwrap_or(match new.kind {
            Kind::Partition { .. } => PARTITION_ALIGN,
            _ => 1,
        });
        if alignment > MAX_ALIGNMENT {
            return Err(SifEditError::Alignment(alignment));
        }
        let slot = self.free_slot().ok_or(SifEditError::Full(self.header.n_descriptors))?;
        let end = self.end_of_data();
        let offset = end.checked_next_multiple_of(alignment.max(1)).ok_or(SifEditError::Field)?;
        let time = self.header.created.map(|_| now);
        let mut added = DescriptorInfo {
            id: self.free_id(slot),
            group: new.group,
            link: new.link,
            kind: new.kind,
            offset,
            size: 0,
            created: time,
            modified: time,
            owner: (0, 0),
            name: new.name,
        };
        // Before anything is written: what does not fit now will not fit then.
        added.to_bytes(0).ok_or(SifEditError::Field)?;
        let length_before = self.inner.seek(SeekFrom::End(0)).map_err(SifEditError::Write)?;
        match self.append(end, offset, source) {
            Ok(size) => added.size = size,
            Err(error) => {
                // Gives back the room; where that fails, bytes are left that no object has.
                let _ = self.inner.set_len(length_before);
                return Err(error);
            }
        }
        let padded = (offset - end).checked_add(added.size).ok_or(SifEditError::Field)?;
        let mut raw = added.to_bytes(padded).ok_or(SifEditError::Field)?;
        raw[descriptor::USED] = 0;
        self.write_descriptor(slot, &raw)?;
        self.set_used(slot, 1)?;
        raw[descriptor::USED] = 1;
        self.table[slot * DESCRIPTOR_LEN..][..DESCRIPTOR_LEN].copy_from_slice(&raw);
        let place = self.used_before(slot);
        self.objects.insert(place, added);
        if let Some(arch) = primary_arch {
            self.header.arch = arch;
        }
        self.write_header(time)?;
        Ok(&self.objects[place])
    }

    /// Deletes an object. Its room at the end of the file is given back; elsewhere it stays, and `zero`
    /// overwrites it.
    ///
    /// # Errors
    /// When there is no such object or writing fails.
    pub fn delete(&mut self, id: u32, zero: bool, now: i64) -> Result<DescriptorInfo, SifEditError> {
        let place = self.objects.iter().position(|object| object.id == id);
        let place = place.ok_or_else(|| unknown(id, &self.objects))?;
        let slot = self.slot_of(place);
        let end_before = self.end_of_data();
        let length = self.inner.seek(SeekFrom::End(0)).map_err(SifEditError::Write)?;
        self.set_used(slot, 0)?;
        let deleted = self.objects.remove(place);
        self.table[slot * DESCRIPTOR_LEN..][..DESCRIPTOR_LEN].fill(0);
        if matches!(deleted.kind, Kind::Partition { part: PartType::PrimarySystem, .. }) {
            let other = self.objects.iter().find_map(|object| primary_arch(&object.kind));
            self.header.arch = other.unwrap_or(Arch::UNKNOWN);
        }
        let was_last = deleted.size > 0 && deleted.end() == end_before;
        if was_last {
            // Else what lies behind the last object counts on, as the writer meant it.
            self.header.data_size = 0;
        }
        self.write_header(self.header.created.map(|_| now))?;
        self.write_descriptor(slot, &[0; DESCRIPTOR_LEN])?;
        if was_last && length == end_before {
            self.inner.set_len(self.end_of_data()).map_err(SifEditError::Write)?;
        } else if zero {
            self.seek(deleted.offset)?;
            io::copy(&mut io::repeat(0).take(deleted.size), &mut self.inner).map_err(SifEditError::Write)?;
        }
        self.sync()?;
        Ok(deleted)
    }

    /// Returns the underlying storage.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Where the next object may start: behind everything.
    fn end_of_data(&self) -> u64 {
        let reserved = self.header.reserved().map(|(_, _, end)| end);
        let section = self.header.data_offset.saturating_add(self.header.data_size);
        let objects = self.objects.iter().map(DescriptorInfo::end);
        objects.chain(reserved).fold(section, u64::max)
    }

    fn check_link(&self, link: Link) -> Result<(), SifEditError> {
        match link {
            Link::Object(id) if !self.objects.iter().any(|object| object.id == id) => {
                Err(unknown(id, &self.objects).into())
            }
            Link::Group(id) if !self.objects.iter().any(|object| object.group == Some(id)) => {
                Err(SifEditError::UnknownGroup(id))
            }
            _ => Ok(()),
        }
    }

    /// The architecture of a new primary partition. Other tools give up at a file that has two.
    fn check_primary(&self, new: &Kind) -> Result<Option<Arch>, SifEditError> {
        let Some(arch) = primary_arch(new) else { return Ok(None) };
        match self.objects.iter().find(|object| primary_arch(&object.kind).is_some()) {
            Some(there) => Err(SifEditError::SecondPrimary(there.id)),
            None => Ok(Some(arch)),
        }
    }

    fn used(&self) -> impl Iterator<Item = bool> {
        self.table.chunks_exact(DESCRIPTOR_LEN).map(|raw| raw[descriptor::USED] != 0)
    }

    fn free_slot(&self) -> Option<usize> {
        self.used().position(|used| !used)
    }

    /// The slot of an object, by its place among the used ones.
    fn slot_of(&self, place: usize) -> usize {
        self.used().enumerate().filter(|(_, used)| *used).nth(place).map_or(0, |(slot, _)| slot)
    }

    fn used_before(&self, slot: usize) -> usize {
        self.used().take(slot).filter(|used| *used).count()
    }

    /// Ids are those of the slots; where somebody else numbered otherwise, the next that is free.
    fn free_id(&self, slot: usize) -> u32 {
        let taken = |id: u32| self.objects.iter().any(|object| object.id == id);
        let first = u32::try_from(slot + 1).unwrap_or(1);
        (first..u32::MAX).find(|id| !taken(*id)).unwrap_or(first)
    }

    fn seek(&mut self, offset: u64) -> Result<(), SifEditError> {
        self.inner.seek(SeekFrom::Start(offset)).map(|_| ()).map_err(SifEditError::Write)
    }

    fn sync(&mut self) -> Result<(), SifEditError> {
        self.inner.flush().and_then(|()| self.inner.sync()).map_err(SifEditError::Write)
    }

    /// Writes zeros from `end` to `offset` and then the source, and brings them to disk.
    fn append(&mut self, end: u64, offset: u64, source: &mut dyn Read) -> Result<u64, SifEditError> {
        self.seek(end)?;
        io::copy(&mut io::repeat(0).take(offset - end), &mut self.inner).map_err(SifEditError::Write)?;
        let mut buffer = vec![0u8; 1 << 20];
        let mut size = 0u64;
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.inner.write_all(&buffer[..n]).map_err(SifEditError::Write)?;
                    size += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SifEditError::Source(e)),
            }
        }
        self.sync()?;
        Ok(size)
    }

    fn write_descriptor(&mut self, slot: usize, raw: &[u8; DESCRIPTOR_LEN]) -> Result<(), SifEditError> {
        self.seek(self.header.table_offset + (slot * DESCRIPTOR_LEN) as u64)?;
        self.inner.write_all(raw).map_err(SifEditError::Write)?;
        self.sync()
    }

    /// The moment at which an object is there, or gone: one byte is written whole or not at all.
    fn set_used(&mut self, slot: usize, used: u8) -> Result<(), SifEditError> {
        self.seek(self.header.table_offset + (slot * DESCRIPTOR_LEN + descriptor::USED) as u64)?;
        self.inner.write_all(&[used]).map_err(SifEditError::Write)?;
        self.sync()
    }

    /// Makes the header say what is there. Its 128 bytes lie in one sector.
    fn write_header(&mut self, time: Option<i64>) -> Result<(), SifEditError> {
        self.header.data_size = self.end_of_data().saturating_sub(self.header.data_offset);
        self.header.n_free = self.used().filter(|used| !used).count() as u64;
        self.header.modified = time;
        let signed = |number: u64| i64::try_from(number).map_err(|_| SifEditError::Field);
        let numbers = [
            (header::MODIFIED, time.unwrap_or(NO_TIME)),
            (header::DESCR_FREE, signed(self.header.n_free)?),
            (header::DATA_SIZE, signed(self.header.data_size)?),
        ];
        self.head[header::ARCH..header::ID].copy_from_slice(&self.header.arch.field());
        for (at, number) in numbers {
            self.head[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        self.seek(0)?;
        self.inner.write_all(&self.head).map_err(SifEditError::Write)?;
        self.sync()
    }
}

fn primary_arch(kind: &Kind) -> Option<Arch> {
    match kind {
        Kind::Partition { part: PartType::PrimarySystem, arch, .. } => Some(*arch),
        _ => None,
    }
}
