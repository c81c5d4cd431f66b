//! Reading a SIF that anybody may have written.
//!
//! Counts, offsets and sizes are checked against the file's real length before anything is allocated or
//! followed. Only `offset` and `size` of a descriptor are used; older writers computed the padded size
//! in another way.

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use crate::layout::{
    Arch, DESCRIPTOR_LEN, DataType, FsType, GROUP_MASK, HEADER_LEN, LAUNCH_LEN, MAGIC, NAME_LEN, PartType,
    VERSION, descriptor, header,
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
        what: &'static str,
        /// Its offset.
        offset: i64,
        /// Its length.
        len: i64,
        /// Length of the file.
        file_len: u64,
    },
    /// The descriptor table is too long or its size does not fit its count.
    #[error("SIF descriptor table is corrupt ({total} descriptors in {size} bytes)")]
    Table {
        /// Announced number of descriptors.
        total: i64,
        /// Announced size in bytes.
        size: i64,
    },
    /// There is no primary system partition, or more than one.
    #[error("SIF has {0} primary system partitions instead of one")]
    PrimaryCount(usize),
    /// The object is larger than the limit.
    #[error("SIF object of {size} bytes is larger than {limit} bytes")]
    ObjectTooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Type and type-specific fields of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A partition.
    Partition {
        /// File system.
        fs: FsType,
        /// Role.
        part: PartType,
        /// Architecture.
        arch: Arch,
    },
    /// Any other object.
    Other(DataType),
}

/// One used descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorInfo {
    /// Object id.
    pub id: u32,
    /// Group, if the object is in one.
    pub group: Option<u32>,
    /// Raw link: an object id, or a group id with the top four bits set; 0 for none.
    pub link: u32,
    /// Type and its fields.
    pub kind: Kind,
    /// Offset of the object in the file; checked to lie inside it.
    pub offset: u64,
    /// Size of the object in bytes; checked to lie inside the file.
    pub size: u64,
    /// Name; invalid UTF-8 is replaced.
    pub name: String,
}

/// Where the root file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryPartition {
    /// File system.
    pub fs: FsType,
    /// Architecture.
    pub arch: Arch,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// An opened SIF.
#[derive(Debug)]
pub struct SifFile<R> {
    inner: R,
    launch: String,
    arch: Arch,
    descriptors: Vec<DescriptorInfo>,
}

impl<R: Read + Seek> SifFile<R> {
    /// Reads header and descriptors.
    ///
    /// # Errors
    /// When the source cannot be read, is no SIF, or any number in it leads outside the file.
    pub fn open(mut inner: R) -> Result<Self, SifError> {
        let file_len = inner.seek(SeekFrom::End(0)).map_err(|e| read("the file length", e))?;
        inner.rewind().map_err(|e| read("the header", e))?;
        let mut head = [0u8; HEADER_LEN];
        inner.read_exact(&mut head).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => SifError::NotSif,
            _ => read("the header", e),
        })?;
        if head[header::MAGIC..header::VERSION] != MAGIC[..] {
            return Err(SifError::NotSif);
        }
        let version: [u8; 3] = field(&head, header::VERSION);
        if version != *VERSION {
            return Err(SifError::Version(text(&version)));
        }
        let total = i64::from_le_bytes(field(&head, header::DESCR_TOTAL));
        let table_offset = i64::from_le_bytes(field(&head, header::DESCR_OFFSET));
        let size = i64::from_le_bytes(field(&head, header::DESCR_SIZE));
        let n_descriptors = usize::try_from(total)
            .ok()
            .filter(|n| *n as u64 <= MAX_DESCRIPTORS)
            .ok_or(SifError::Table { total, size })?;
        let table_len = n_descriptors * DESCRIPTOR_LEN;
        if size != table_len as i64 {
            return Err(SifError::Table { total, size });
        }
        let (at, _) = inside("the descriptor table", table_offset, size, file_len)?;
        inner.seek(SeekFrom::Start(at)).map_err(|e| read("the descriptor table", e))?;
        let mut table = vec![0u8; table_len];
        inner.read_exact(&mut table).map_err(|e| read("the descriptor table", e))?;
        let descriptors = table
            .chunks_exact(DESCRIPTOR_LEN)
            .filter(|raw| raw[descriptor::USED] != 0)
            .map(|raw| parse_descriptor(raw, file_len))
            .collect::<Result<Vec<_>, _>>()?;
        let launch = text(&head[..LAUNCH_LEN]);
        Ok(Self { inner, launch, arch: Arch::from_field(field(&head, header::ARCH)), descriptors })
    }

    /// Returns the launch line.
    #[must_use]
    pub fn launch_line(&self) -> &str {
        &self.launch
    }

    /// Returns the header's architecture: that of the primary partition, as the writer said it.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Returns the used descriptors in table order.
    #[must_use]
    pub fn objects(&self) -> &[DescriptorInfo] {
        &self.descriptors
    }

    /// Finds the root file system.
    ///
    /// # Errors
    /// When there is none, or more than one: which of them ran would depend on the reader.
    pub fn primary_partition(&self) -> Result<PrimaryPartition, SifError> {
        let mut found = self.descriptors.iter().filter_map(|d| match d.kind {
            Kind::Partition { fs, part: PartType::PrimarySystem, arch } => {
                Some(PrimaryPartition { fs, arch, offset: d.offset, len: d.size })
            }
            _ => None,
        });
        match (found.next(), found.count()) {
            (Some(partition), 0) => Ok(partition),
            (first, more) => Err(SifError::PrimaryCount(usize::from(first.is_some()) + more)),
        }
    }

    /// Finds the first object of a type and name.
    #[must_use]
    pub fn find(&self, data_type: DataType, name: &str) -> Option<&DescriptorInfo> {
        self.descriptors.iter().find(|d| d.kind == Kind::Other(data_type) && d.name == name)
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

fn parse_descriptor(raw: &[u8], file_len: u64) -> Result<DescriptorInfo, SifError> {
    let int = |at: usize| i32::from_le_bytes(field(raw, at));
    let uint = |at: usize| u32::from_le_bytes(field(raw, at));
    let long = |at: usize| i64::from_le_bytes(field(raw, at));
    let (offset, size) = inside("an object", long(descriptor::OFFSET), long(descriptor::SIZE), file_len)?;
    let kind = match DataType::from_code(int(descriptor::DATA_TYPE)) {
        DataType::Partition => Kind::Partition {
            fs: FsType::from_code(int(descriptor::EXTRA)),
            part: PartType::from_code(int(descriptor::EXTRA + 4)),
            arch: Arch::from_field(field(raw, descriptor::EXTRA + 8)),
        },
        other => Kind::Other(other),
    };
    let group = uint(descriptor::GROUP);
    Ok(DescriptorInfo {
        id: uint(descriptor::ID),
        group: (group != GROUP_MASK).then_some(group & !GROUP_MASK),
        link: uint(descriptor::LINK),
        kind,
        offset,
        size,
        name: text(&raw[descriptor::NAME..descriptor::NAME + NAME_LEN]),
    })
}

fn inside(what: &'static str, offset: i64, len: i64, file_len: u64) -> Result<(u64, u64), SifError> {
    let checked = || {
        let (start, size) = (u64::try_from(offset).ok()?, u64::try_from(len).ok()?);
        (start.checked_add(size)? <= file_len).then_some((start, size))
    };
    checked().ok_or(SifError::OutOfBounds { what, offset, len, file_len })
}

fn read(what: &'static str, source: io::Error) -> SifError {
    SifError::Read { what, source }
}

/// Copies the `N` bytes at `at`; all callers pass offsets inside fixed-size records.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
