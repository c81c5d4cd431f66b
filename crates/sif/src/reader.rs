//! Reading a SIF that anybody may have written.
//!
//! Counts, offsets and sizes are checked against the file's real length before anything is allocated or
//! followed, and nothing may lie over anything else. Of a descriptor's sizes only `size` is used: writers
//! differ in how they computed the padded one.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use crate::codes::{Arch, DataType, FsType, PartType};
use crate::descriptor::{DescriptorInfo, Kind};
use crate::layout::{
    DESCRIPTOR_LEN, HEADER_LEN, LAUNCH_LEN, MAGIC, NO_TIME, VERSION, descriptor, field, header, text,
};

/// Most descriptors a file may announce. Writers make 48; the table grows only in hand-made files.
pub const MAX_DESCRIPTORS: u64 = 4096;
/// Largest object that [`SifFile::read_object`] loads into memory.
pub const MAX_OBJECT_BYTES: u64 = 16 << 20;

/// Why a SIF cannot be read.
#[derive(Debug, Error)]
pub enum SifError {
    /// Reading or seeking failed.
    #[error("cannot read {what}")]
    Read {
        /// Which part.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The magic bytes are not there.
    #[error("not a SIF file")]
    NotSif,
    /// Another version than 01.
    #[error("SIF version '{0}' is not supported")]
    Version(String),
    /// The file ends before the part that the header or a descriptor promises.
    #[error(
        "SIF file is truncated or corrupt: {what} at {offset}+{len} is outside the file of {file_len} bytes"
    )]
    OutOfBounds {
        /// Which part.
        what: Region,
        /// Its offset.
        offset: i64,
        /// Its length.
        len: i64,
        /// Length of the file.
        file_len: u64,
    },
    /// Two parts of the file share bytes.
    #[error("SIF file is corrupt: {0} and {1} overlap")]
    Overlap(Region, Region),
    /// The descriptor table is too long, or its counts do not fit each other.
    #[error("SIF descriptor table is corrupt ({total} descriptors, {free} of them free, in {size} bytes)")]
    Table {
        /// Announced number of descriptors.
        total: i64,
        /// Announced number of unused ones.
        free: i64,
        /// Announced size in bytes.
        size: i64,
    },
    /// Two objects have the same id.
    #[error("SIF file is corrupt: two objects have the id {0}")]
    SameId(u32),
    /// No object has the id.
    #[error("SIF file has no object {id} (it has {})", ids(found))]
    UnknownId {
        /// The id.
        id: u32,
        /// The ids that there are.
        found: Vec<u32>,
    },
    /// There is no root file system.
    #[error("SIF file has no primary system partition")]
    NoRoot,
    /// Which of several root file systems is meant is not clear.
    #[error("SIF file has {count} system partitions for {arch}")]
    SeveralRoots {
        /// How many.
        count: usize,
        /// The architecture that they share.
        arch: Arch,
    },
    /// None of several root file systems is for the architecture.
    #[error("SIF file has no system partition for {wanted} (it has those for {})", names(found))]
    OtherArch {
        /// The architecture asked for.
        wanted: Arch,
        /// Those that there are.
        found: Vec<Arch>,
    },
    /// The object is larger than the limit.
    #[error("SIF object of {size} bytes is larger than {limit} bytes")]
    ObjectTooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

fn ids(found: &[u32]) -> String {
    let words: Vec<String> = found.iter().map(u32::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn names(found: &[Arch]) -> String {
    let words: Vec<&str> = found.iter().map(|arch| arch.go_name()).collect();
    words.join(", ")
}

/// A part of the file, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// The global header.
    Header,
    /// The descriptor table.
    Table,
    /// What the header calls data.
    DataSection,
    /// An object, by its id.
    Object(u32),
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Table => f.write_str("the descriptor table"),
            Self::DataSection => f.write_str("the data section"),
            Self::Object(id) => write!(f, "object {id}"),
        }
    }
}

/// The global header. Offsets and sizes are checked to lie inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// First line of the file, which starts the container.
    pub launch: String,
    /// Architecture of the primary partition, as the writer said it.
    pub arch: Arch,
    /// The file's identifier; zero where the writer kept chance out of the file.
    pub id: [u8; 16],
    /// When the file was made, in Unix seconds; `None` where the writer kept times out of it.
    pub created: Option<i64>,
    /// When it was changed, likewise.
    pub modified: Option<i64>,
    /// Unused descriptors, as the writer counted them.
    pub n_free: u64,
    /// Descriptors of the table.
    pub n_descriptors: u64,
    /// Where the table starts.
    pub table_offset: u64,
    /// Size of the table in bytes.
    pub table_size: u64,
    /// Where the data section starts.
    pub data_offset: u64,
    /// Size of the data section in bytes. Objects may lie outside it: some writers do not count what they
    /// delete.
    pub data_size: u64,
}

impl Header {
    fn parse(head: &[u8; HEADER_LEN], file_len: u64) -> Result<Self, SifError> {
        if head[header::MAGIC..header::VERSION] != MAGIC[..] {
            return Err(SifError::NotSif);
        }
        let version: [u8; 3] = field(head, header::VERSION);
        if version != *VERSION {
            return Err(SifError::Version(text(&version)));
        }
        let long = |at: usize| i64::from_le_bytes(field(head, at));
        let time = |at: usize| Some(long(at)).filter(|time| *time != NO_TIME);
        let (free, total) = (long(header::DESCR_FREE), long(header::DESCR_TOTAL));
        let size = long(header::DESCR_SIZE);
        let corrupt = SifError::Table { total, free, size };
        let Ok(n_descriptors) = u64::try_from(total) else { return Err(corrupt) };
        if n_descriptors > MAX_DESCRIPTORS || u64::try_from(size) != Ok(n_descriptors * DESCRIPTOR_LEN as u64)
        {
            return Err(corrupt);
        }
        let n_free = u64::try_from(free).ok().filter(|free| *free <= n_descriptors).ok_or(corrupt)?;
        let (table_offset, table_size) = inside(Region::Table, long(header::DESCR_OFFSET), size, file_len)?;
        let (data_offset, data_size) = match (long(header::DATA_OFFSET), long(header::DATA_SIZE)) {
            // An empty section may start behind the end of the file, where the first object will be.
            (offset, 0) => inside(Region::DataSection, offset, 0, u64::MAX)?,
            (offset, size) => inside(Region::DataSection, offset, size, file_len)?,
        };
        Ok(Self {
            launch: text(&head[..LAUNCH_LEN]),
            arch: Arch::from_field(field(head, header::ARCH)),
            id: field(head, header::ID),
            created: time(header::CREATED),
            modified: time(header::MODIFIED),
            n_free,
            n_descriptors,
            table_offset,
            table_size,
            data_offset,
            data_size,
        })
    }

    /// The bytes of the file that are not for objects.
    pub(crate) fn reserved(&self) -> [(Region, u64, u64); 2] {
        [
            (Region::Header, 0, HEADER_LEN as u64),
            (Region::Table, self.table_offset, self.table_offset.saturating_add(self.table_size)),
        ]
    }
}

/// Where a root file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPartition {
    /// File system.
    pub fs: FsType,
    /// Architecture.
    pub arch: Arch,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Header and table as they stand in the file, beside what they mean.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) head: [u8; HEADER_LEN],
    pub(crate) header: Header,
    pub(crate) table: Vec<u8>,
    pub(crate) objects: Vec<DescriptorInfo>,
}

impl Tables {
    /// Reads and checks header and descriptors.
    pub(crate) fn load(inner: &mut (impl Read + Seek)) -> Result<Self, SifError> {
        let file_len = inner.seek(SeekFrom::End(0)).map_err(|e| read("the file length", e))?;
        inner.rewind().map_err(|e| read("the header", e))?;
        let mut head = [0u8; HEADER_LEN];
        inner.read_exact(&mut head).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => SifError::NotSif,
            _ => read("the header", e),
        })?;
        let header = Header::parse(&head, file_len)?;
        inner.seek(SeekFrom::Start(header.table_offset)).map_err(|e| read("the descriptor table", e))?;
        // At most MAX_DESCRIPTORS of them, so this fits.
        let mut table = vec![0u8; usize::try_from(header.table_size).unwrap_or(0)];
        inner.read_exact(&mut table).map_err(|e| read("the descriptor table", e))?;
        let mut objects = Vec::new();
        for raw in table.as_chunks::<DESCRIPTOR_LEN>().0.iter().filter(|raw| raw[descriptor::USED] != 0) {
            let long = |at: usize| i64::from_le_bytes(field(raw, at));
            let region = Region::Object(u32::from_le_bytes(field(raw, descriptor::ID)));
            let place = inside(region, long(descriptor::OFFSET), long(descriptor::SIZE), file_len)?;
            objects.push(DescriptorInfo::parse(raw, place));
        }
        check_ids(&objects)?;
        check_overlaps(&header, &objects)?;
        Ok(Self { head, header, table, objects })
    }
}

fn check_ids(objects: &[DescriptorInfo]) -> Result<(), SifError> {
    let mut ids: Vec<u32> = objects.iter().map(|object| object.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(SifError::SameId(pair[0])),
        None => Ok(()),
    }
}

fn check_overlaps(header: &Header, objects: &[DescriptorInfo]) -> Result<(), SifError> {
    let mut regions = header.reserved().to_vec();
    // The data section is no object, but must not be where header and table are.
    let data_end = header.data_offset.saturating_add(header.data_size);
    for (region, start, end) in &regions {
        if header.data_size > 0 && header.data_offset < *end && *start < data_end {
            return Err(SifError::Overlap(*region, Region::DataSection));
        }
    }
    regions.extend(objects.iter().map(|object| (Region::Object(object.id), object.offset, object.end())));
    // What is empty shares no byte with anything.
    regions.retain(|(_, start, end)| start < end);
    regions.sort_by_key(|(_, start, _)| *start);
    match regions.windows(2).find(|pair| pair[0].2 > pair[1].1) {
        Some(pair) => Err(SifError::Overlap(pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

/// An opened SIF.
#[derive(Debug)]
pub struct SifFile<R> {
    inner: R,
    header: Header,
    descriptors: Vec<DescriptorInfo>,
}

impl<R: Read + Seek> SifFile<R> {
    /// Reads header and descriptors.
    ///
    /// # Errors
    /// When the source cannot be read, is no SIF, any number in it leads outside the file, parts of it
    /// overlap, or two objects have one id.
    pub fn open(mut inner: R) -> Result<Self, SifError> {
        let Tables { header, objects, .. } = Tables::load(&mut inner)?;
        Ok(Self { inner, header, descriptors: objects })
    }

    /// Returns the header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the launch line.
    #[must_use]
    pub fn launch_line(&self) -> &str {
        &self.header.launch
    }

    /// Returns the header's architecture: that of the primary partition, as the writer said it.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.header.arch
    }

    /// Returns the used descriptors in table order.
    #[must_use]
    pub fn objects(&self) -> &[DescriptorInfo] {
        &self.descriptors
    }

    /// Finds the root file system for an architecture.
    ///
    /// The primary system partition is it, if the file has no other system. Of several, the one for
    /// `wanted` is it; where two are, the primary one. A primary one that names no architecture stands for
    /// any that no other is for.
    ///
    /// # Errors
    /// When there is none, when none of several is for `wanted`, or when which is meant would depend on the
    /// reader.
    pub fn root_partition(&self, wanted: Arch) -> Result<RootPartition, SifError> {
        let mut primary = Vec::new();
        let mut systems = Vec::new();
        for object in &self.descriptors {
            if let Kind::Partition { fs, part, arch } = object.kind {
                let found = RootPartition { fs, arch, offset: object.offset, len: object.size };
                match part {
                    PartType::PrimarySystem => primary.push(found),
                    PartType::System => systems.push(found),
                    _ => {}
                }
            }
        }
        match (primary.as_slice(), systems.as_slice()) {
            ([], _) => return Err(SifError::NoRoot),
            ([only], []) => return Ok(*only),
            _ => {}
        }
        for found in [&primary, &systems] {
            let mut fitting = found.iter().filter(|partition| partition.arch == wanted);
            match (fitting.next(), fitting.count()) {
                (Some(partition), 0) => return Ok(*partition),
                (Some(_), more) => return Err(SifError::SeveralRoots { count: more + 1, arch: wanted }),
                (None, _) => {}
            }
        }
        if let [only] = primary.as_slice()
            && only.arch == Arch::UNKNOWN
        {
            return Ok(*only);
        }
        let found = primary.iter().chain(&systems).map(|partition| partition.arch).collect();
        Err(SifError::OtherArch { wanted, found })
    }

    /// Finds the first object of a type and name.
    #[must_use]
    pub fn find(&self, data_type: DataType, name: &str) -> Option<&DescriptorInfo> {
        self.descriptors.iter().find(|d| d.kind.data_type() == data_type && d.name == name)
    }

    /// Finds an object by its id.
    ///
    /// # Errors
    /// When there is none.
    pub fn object(&self, id: u32) -> Result<&DescriptorInfo, SifError> {
        self.descriptors.iter().find(|object| object.id == id).ok_or_else(|| unknown(id, &self.descriptors))
    }

    /// Reads an object of at most [`MAX_OBJECT_BYTES`] into memory.
    ///
    /// # Errors
    /// When it is larger or cannot be read.
    pub fn read_object(&mut self, object: &DescriptorInfo) -> Result<Vec<u8>, SifError> {
        if object.size > MAX_OBJECT_BYTES {
            return Err(SifError::ObjectTooLarge { size: object.size, limit: MAX_OBJECT_BYTES });
        }
        let mut bytes = Vec::new();
        let n = self.open_object(object)?.read_to_end(&mut bytes).map_err(|e| read("an object", e))?;
        if n as u64 != object.size {
            return Err(read("an object", io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    /// Returns a reader over exactly the bytes of an object (fewer if the file shrank meanwhile).
    ///
    /// # Errors
    /// When seeking fails.
    pub fn open_object(&mut self, object: &DescriptorInfo) -> Result<io::Take<&mut R>, SifError> {
        self.inner.seek(SeekFrom::Start(object.offset)).map_err(|e| read("an object", e))?;
        Ok((&mut self.inner).take(object.size))
    }

    /// Returns the underlying source.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

pub(crate) fn unknown(id: u32, objects: &[DescriptorInfo]) -> SifError {
    SifError::UnknownId { id, found: objects.iter().map(|object| object.id).collect() }
}

fn inside(what: Region, offset: i64, len: i64, file_len: u64) -> Result<(u64, u64), SifError> {
    let checked = || {
        let (start, size) = (u64::try_from(offset).ok()?, u64::try_from(len).ok()?);
        (start.checked_add(size)? <= file_len).then_some((start, size))
    };
    checked().ok_or(SifError::OutOfBounds { what, offset, len, file_len })
}

fn read(what: &'static str, source: io::Error) -> SifError {
    SifError::Read { what, source }
}
