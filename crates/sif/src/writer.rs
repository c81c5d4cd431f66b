//! Writing a deterministic SIF around one SquashFS.
//!
//! The small objects are known first and the partition comes last, so a partition of unknown length can
//! be written in place: [`SifWriter::new`] lays out everything before it, the caller writes the file
//! system at [`SifWriter::partition_offset`], and [`SifWriter::finish`] fills in header and table.
//! Equal input gives equal bytes: no time, no random identifier.

use std::io::{self, Read, Seek, SeekFrom, Write};

use thiserror::Error;

use crate::codes::{Arch, DataType, FsType, PartType};
use crate::descriptor::{DescriptorInfo, Kind, Link};
use crate::layout::{DESCRIPTOR_LEN, HEADER_LEN, MAGIC, NAME_LEN, NO_TIME, VERSION, header};

/// First line of the file: makes `./image.sif` start the container.
pub const LAUNCH_LINE: &str = "#!/usr/bin/env run-singularity\n";

/// Slots in the descriptor table; what other writers make, leaving room for signatures and overlays.
const N_SLOTS: usize = 48;
const TABLE_OFFSET: u64 = 4096;
const TABLE_LEN: u64 = (N_SLOTS * DESCRIPTOR_LEN) as u64;
const DATA_OFFSET: u64 = TABLE_OFFSET + TABLE_LEN;
/// Partitions start on a page so that they can be mounted or mapped.
pub(crate) const PARTITION_ALIGN: u64 = 4096;
/// The one group of every object, so that one signature covers the file.
const GROUP: u32 = 1;

/// Why a SIF cannot be written.
#[derive(Debug, Error)]
pub enum SifWriteError {
    /// Writing or seeking failed.
    #[error("cannot write the SIF file")]
    Write(#[source] io::Error),
    /// The partition's source failed.
    #[error("cannot read the file system to put into the SIF file")]
    ReadPartition(#[source] io::Error),
    /// More objects than descriptor slots.
    #[error("{0} objects do not fit into a SIF file")]
    TooManyObjects(usize),
    /// The name does not fit its field.
    #[error("SIF object name '{0}' is too long")]
    NameTooLong(String),
    /// A size does not fit the format's signed 64-bit fields.
    #[error("SIF object is too large")]
    TooLarge,
}

/// A small object, kept in memory.
#[derive(Debug, Clone)]
pub struct SifObject {
    /// Type; partitions cannot be added this way.
    pub data_type: DataType,
    /// Name, at most 127 bytes.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// What goes around the partition.
#[derive(Debug, Clone, Default)]
pub struct SifOptions {
    /// Architecture in Go's naming; an empty or unknown name is written as unknown.
    pub arch: String,
    /// Definition file.
    pub deffile: Option<Vec<u8>>,
    /// Other objects; they are written in order of their names.
    pub objects: Vec<SifObject>,
}

/// A SIF being written.
#[derive(Debug)]
pub struct SifWriter<W> {
    out: W,
    arch: Arch,
    table: Vec<u8>,
    n_used: usize,
    partition_offset: u64,
    previous_end: u64,
}

impl<W: Write + Seek> SifWriter<W> {
    /// Writes everything that comes before the partition, from position 0 of `out`.
    ///
    /// # Errors
    /// When there are too many objects, a name is too long, or writing fails.
    pub fn new(mut out: W, options: SifOptions) -> Result<Self, SifWriteError> {
        let mut objects = options.objects;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let deffile = options.deffile.map(|bytes| SifObject {
            data_type: DataType::Deffile,
            name: "deffile".to_owned(),
            bytes,
        });
        let n_objects = objects.len() + usize::from(deffile.is_some()) + 1;
        if n_objects > N_SLOTS {
            return Err(SifWriteError::TooManyObjects(n_objects));
        }
        out.rewind().map_err(SifWriteError::Write)?;
        copy_zeros(&mut out, DATA_OFFSET)?;
        let mut table = Vec::with_capacity(N_SLOTS * DESCRIPTOR_LEN);
        let mut end = DATA_OFFSET;
        for (slot, object) in deffile.into_iter().chain(objects).enumerate() {
            out.write_all(&object.bytes).map_err(SifWriteError::Write)?;
            let size = object.bytes.len() as u64;
            push_descriptor(&mut table, slot, Kind::Other(object.data_type), &object.name, (end, size), end)?;
            end += size;
        }
        let partition_offset = end.next_multiple_of(PARTITION_ALIGN);
        copy_zeros(&mut out, partition_offset - end)?;
        let n_used = table.len() / DESCRIPTOR_LEN;
        let arch = Arch::from_go_name(&options.arch);
        Ok(Self { out, arch, table, n_used, partition_offset, previous_end: end })
    }

    /// Returns where the partition starts; the output is positioned there after [`SifWriter::new`].
    #[must_use]
    pub fn partition_offset(&self) -> u64 {
        self.partition_offset
    }

    /// Returns the output, to write the partition.
    pub fn output(&mut self) -> &mut W {
        &mut self.out
    }

    /// Copies the partition from `source` and finishes.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn write_partition(mut self, source: &mut impl Read) -> Result<W, SifWriteError> {
        self.out.seek(SeekFrom::Start(self.partition_offset)).map_err(SifWriteError::Write)?;
        let mut buffer = vec![0u8; 1 << 20];
        let mut len = 0u64;
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.out.write_all(&buffer[..n]).map_err(SifWriteError::Write)?;
                    len += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SifWriteError::ReadPartition(e)),
            }
        }
        self.finish(len)
    }

    /// Fills in header and table around a partition of `len` bytes that the caller has written.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self, len: u64) -> Result<W, SifWriteError> {
        let (fs, part) = (FsType::Squashfs, PartType::PrimarySystem);
        push_descriptor(
            &mut self.table,
            self.n_used,
            Kind::Partition { fs, part, arch: self.arch },
            "rootfs.sqsh",
            (self.partition_offset, len),
            self.previous_end,
        )?;
        let n_free = N_SLOTS - self.table.len() / DESCRIPTOR_LEN;
        self.table.resize(N_SLOTS * DESCRIPTOR_LEN, 0);
        let data_size = self.partition_offset.checked_add(len).ok_or(SifWriteError::TooLarge)? - DATA_OFFSET;

        let mut head = [0u8; HEADER_LEN];
        head[..LAUNCH_LINE.len()].copy_from_slice(LAUNCH_LINE.as_bytes());
        head[header::MAGIC..header::VERSION].copy_from_slice(MAGIC);
        head[header::VERSION..header::ARCH].copy_from_slice(VERSION);
        head[header::ARCH..header::ID].copy_from_slice(&self.arch.field());
        let mut put = |at: usize, value: i64| head[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(header::CREATED, NO_TIME);
        put(header::MODIFIED, NO_TIME);
        put(header::DESCR_FREE, signed(n_free as u64)?);
        put(header::DESCR_TOTAL, signed(N_SLOTS as u64)?);
        put(header::DESCR_OFFSET, signed(TABLE_OFFSET)?);
        put(header::DESCR_SIZE, signed(TABLE_LEN)?);
        put(header::DATA_OFFSET, signed(DATA_OFFSET)?);
        put(header::DATA_SIZE, signed(data_size)?);

        self.out.seek(SeekFrom::Start(TABLE_OFFSET)).map_err(SifWriteError::Write)?;
        self.out.write_all(&self.table).map_err(SifWriteError::Write)?;
        // The header comes last: a file cut short by a crash is not taken for a SIF.
        self.out.rewind().map_err(SifWriteError::Write)?;
        self.out.write_all(&head).map_err(SifWriteError::Write)?;
        self.out.flush().map_err(SifWriteError::Write)?;
        Ok(self.out)
    }
}

/// Appends the descriptor of an object at `place` (offset and size), behind one that ended at
/// `previous_end`.
fn push_descriptor(
    table: &mut Vec<u8>,
    slot: usize,
    kind: Kind,
    name: &str,
    place: (u64, u64),
    previous_end: u64,
) -> Result<(), SifWriteError> {
    if name.len() >= NAME_LEN {
        return Err(SifWriteError::NameTooLong(name.to_owned()));
    }
    let (offset, size) = place;
    let padded = (offset - previous_end).checked_add(size).ok_or(SifWriteError::TooLarge)?;
    let descriptor = DescriptorInfo {
        id: u32::try_from(slot + 1).map_err(|_| SifWriteError::TooManyObjects(slot))?,
        group: Some(GROUP),
        link: Link::None,
        kind,
        offset,
        size,
        created: None,
        modified: None,
        owner: (0, 0),
        name: name.to_owned(),
    };
    table.extend_from_slice(&descriptor.to_bytes(padded).ok_or(SifWriteError::TooLarge)?);
    Ok(())
}

fn signed(value: u64) -> Result<i64, SifWriteError> {
    i64::try_from(value).map_err(|_| SifWriteError::TooLarge)
}

fn copy_zeros(out: &mut impl Write, n: u64) -> Result<(), SifWriteError> {
    io::copy(&mut io::repeat(0).take(n), out).map_err(SifWriteError::Write)?;
    Ok(())
}
