//! SIF files by their paths: what they hold, and changes to it.
//!
//! A change is made in place (see `situla_sif`'s editor for what a crash leaves), under a lock on the file,
//! so that two commands do not write over each other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use situla_sif::{DescriptorInfo, Header, Kind, Link, NewObject, SifEditError, SifEditor, SifError, SifFile};
use thiserror::Error;

use crate::file_error::FileError;

/// Why a SIF file cannot be looked at or changed.
#[derive(Debug, Error)]
pub enum SifFileError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no usable SIF, or has no such object.
    #[error("cannot use SIF '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: SifError,
    },
    /// The change is refused, or failed.
    #[error("cannot change SIF '{}'", path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: SifEditError,
    },
    /// Another process is changing the file.
    #[error("SIF '{}' is being changed by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// What is to be added is no regular file, or the SIF itself.
    #[error("'{}' cannot be added: {why}", path.display())]
    NotAddable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// An object cannot be written to where it is wanted.
    #[error("cannot write the object")]
    Dump(#[source] io::Error),
}

/// A SIF's own facts.
#[derive(Debug, Clone, Serialize)]
pub struct SifDescription {
    /// The first line, which starts the container.
    pub launch: String,
    /// Architecture of the primary partition in Go's spelling, or `unknown`.
    pub architecture: &'static str,
    /// Identifier of the file; zero where it depends on its content alone.
    pub id: String,
    /// When it was made, in Unix seconds, if the file says so.
    pub created: Option<i64>,
    /// When it was changed, likewise.
    pub modified: Option<i64>,
    /// Unused descriptors.
    pub descriptors_free: u64,
    /// Descriptors.
    pub descriptors: u64,
    /// Offset of the descriptor table in the file.
    pub descriptors_offset: u64,
    /// Its size in bytes.
    pub descriptors_bytes: u64,
    /// Offset of the data section in the file.
    pub data_offset: u64,
    /// Its size in bytes.
    pub data_bytes: u64,
    /// What the file holds.
    pub objects: Vec<SifObjectInfo>,
}

/// An object of a SIF.
#[derive(Debug, Clone, Serialize)]
pub struct SifObjectInfo {
    /// Object id.
    pub id: u32,
    /// Type: a short name, or `unknown`.
    pub kind: &'static str,
    /// The type's number, which tells unknown ones apart.
    pub code: i32,
    /// Type and its fields as Apptainer lists them.
    #[serde(skip)]
    pub listed: String,
    /// What a partition is.
    pub partition: Option<PartitionInfo>,
    /// Group, if it is in one.
    pub group: Option<u32>,
    /// The object that it belongs to.
    pub linked_object: Option<u32>,
    /// The group that it belongs to.
    pub linked_group: Option<u32>,
    /// When it was put there, in Unix seconds, if the file says so.
    pub created: Option<i64>,
    /// When it was changed, likewise.
    pub modified: Option<i64>,
    /// Name.
    pub name: String,
    /// Offset in the file.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// What a partition is.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionInfo {
    /// File system.
    pub fs: &'static str,
    /// `primary`, `system`, `data`, `overlay` or `unknown`.
    pub role: &'static str,
    /// Architecture in Go's spelling.
    pub architecture: &'static str,
}

impl SifDescription {
    pub(crate) fn of<R: Read + io::Seek>(sif: &SifFile<R>) -> Self {
        let header: &Header = sif.header();
        Self {
            launch: header.launch.trim_end().to_owned(),
            architecture: header.arch.go_name(),
            id: uuid(header.id),
            created: header.created,
            modified: header.modified,
            descriptors_free: header.n_free,
            descriptors: header.n_descriptors,
            descriptors_offset: header.table_offset,
            descriptors_bytes: header.table_size,
            data_offset: header.data_offset,
            data_bytes: header.data_size,
            objects: sif.objects().iter().map(SifObjectInfo::of).collect(),
        }
    }
}

/// Writes an identifier as RFC 9562 does.
fn uuid(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

impl SifObjectInfo {
    fn of(object: &DescriptorInfo) -> Self {
        let data_type = object.kind.data_type();
        let listed = match &object.kind {
            Kind::Partition { fs, part, arch } => format!("{data_type} ({fs}/{part}/{arch})"),
            Kind::Signature { hash, .. } => format!("{data_type} ({hash})"),
            Kind::CryptoMessage { format, message } => format!("{data_type} ({format}/{message})"),
            Kind::Sbom(format) => format!("{data_type} ({format})"),
            Kind::OciRootIndex(_) | Kind::OciBlob(_) | Kind::Other(_) => data_type.to_string(),
        };
        let partition = match &object.kind {
            Kind::Partition { fs, part, arch } => {
                Some(PartitionInfo { fs: fs.short(), role: part.short(), architecture: arch.go_name() })
            }
            _ => None,
        };
        let (linked_object, linked_group) = match object.link {
            Link::None => (None, None),
            Link::Object(id) => (Some(id), None),
            Link::Group(id) => (None, Some(id)),
        };
        Self {
            id: object.id,
            kind: data_type.short(),
            code: data_type.code(),
            listed,
            partition,
            group: object.group,
            linked_object,
            linked_group,
            created: object.created,
            modified: object.modified,
            name: object.name.clone(),
            offset: object.offset,
            bytes: object.size,
        }
    }
}

/// Describes a SIF, whatever its root file system is.
///
/// # Errors
/// When the file cannot be read or is no usable SIF.
pub fn describe_sif(path: &Path) -> Result<SifDescription, SifFileError> {
    let file = File::open(path).map_err(FileError::read(path))?;
    Ok(SifDescription::of(&SifFile::open(file).map_err(unusable(path))?))
}

/// Writes the bytes of an object to `out`, and tells how many they are.
///
/// # Errors
/// When the file is no usable SIF, has no such object, or reading or writing fails.
pub fn dump_sif_object(path: &Path, id: u32, out: &mut dyn Write) -> Result<u64, SifFileError> {
    let file = File::open(path).map_err(FileError::read(path))?;
    let mut sif = SifFile::open(file).map_err(unusable(path))?;
    let object = sif.object(id).map_err(unusable(path))?.clone();
    let mut source = sif.open_object(&object).map_err(unusable(path))?;
    let mut buffer = vec![0; 1 << 20];
    let mut n_written = 0u64;
    while n_written < object.size {
        let n = match source.read(&mut buffer) {
            Ok(0) => return Err(FileError::read(path)(io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(FileError::read(path)(e).into()),
        };
        out.write_all(&buffer[..n]).map_err(SifFileError::Dump)?;
        n_written += n as u64;
    }
    out.flush().map_err(SifFileError::Dump)?;
    Ok(n_written)
}

/// What is added to a SIF.
#[derive(Debug)]
pub struct SifAddition<'a> {
    /// The file with its content.
    pub content: &'a Path,
    /// What it is. An empty name stands for that of the file, and the empty digest of an OCI object for its
    /// SHA-256.
    pub object: NewObject,
}

/// Adds an object to a SIF.
///
/// # Errors
/// When the file is no usable SIF, the object does not fit into it, another process is changing it, or
/// reading or writing fails.
pub fn add_sif_object(path: &Path, addition: SifAddition<'_>) -> Result<SifObjectInfo, SifFileError> {
    let SifAddition { content, mut object } = addition;
    let sif = open_to_change(path)?;
    let source = File::open(content).map_err(FileError::read(content))?;
    let metadata = source.metadata().map_err(FileError::read(content))?;
    let refuse = |why| Err(SifFileError::NotAddable { path: content.to_owned(), why });
    if !metadata.is_file() {
        // A pipe or a device may never end, and has no length to hold it to.
        return refuse("it is no regular file");
    }
    let own = sif.metadata().map_err(FileError::read(path))?;
    if (metadata.dev(), metadata.ino()) == (own.dev(), own.ino()) {
        return refuse("it is the SIF file itself");
    }
    if object.name.is_empty() {
        object.name = content.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    if let Kind::OciRootIndex(digest) | Kind::OciBlob(digest) = &mut object.kind
        && digest.is_empty()
    {
        let hashed = crate::convert::hash_from(&source, 0).map_err(FileError::read(content))?;
        *digest = hashed.0.to_string();
    }
    let failed = |source| SifFileError::Edit { path: path.to_owned(), source };
    let mut editor = SifEditor::open(sif).map_err(failed)?;
    let added = editor.add(object, &mut source.take(metadata.len()), now()).map_err(failed)?;
    Ok(SifObjectInfo::of(added))
}

/// Deletes an object of a SIF; `zero` overwrites what is not given back.
///
/// # Errors
/// When the file is no usable SIF, has no such object, another process is changing it, or writing fails.
pub fn delete_sif_object(path: &Path, id: u32, zero: bool) -> Result<SifObjectInfo, SifFileError> {
    let failed = |source| SifFileError::Edit { path: path.to_owned(), source };
    let mut editor = SifEditor::open(open_to_change(path)?).map_err(failed)?;
    let deleted = editor.delete(id, zero, now()).map_err(failed)?;
    Ok(SifObjectInfo::of(&deleted))
}

/// Opens a file for one change at a time.
fn open_to_change(path: &Path) -> Result<File, SifFileError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(FileError::write(path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // Some cluster file systems have no locks at all; two changes at once are rare enough to go on.
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SifFileError::Busy { path: path.to_owned() }),
        Err(errno) => Err(FileError::write(path)(errno.into()).into()),
    }
}

fn unusable(path: &Path) -> impl Fn(SifError) -> SifFileError {
    move |source| SifFileError::Read { path: path.to_owned(), source }
}

/// Unix seconds; a clock before 1970 counts as 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use situla_sif::{DataType, SifOptions, SifWriter};

    use super::*;

    fn sif(dir: &Path) -> PathBuf {
        let writer = SifWriter::new(Cursor::new(Vec::new()), SifOptions::default()).unwrap();
        let bytes = writer.write_partition(&mut &b"root"[..]).unwrap().into_inner();
        let path = dir.join("a.sif");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn addition(content: &Path, kind: Kind) -> SifAddition<'_> {
        let object = NewObject { kind, name: String::new(), group: None, link: Link::None, alignment: None };
        SifAddition { content, object }
    }

    #[test]
    fn objects_come_and_go_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let (sif, note) = (sif(dir.path()), dir.path().join("note.json"));
        fs::write(&note, b"{\"a\":1}").unwrap();
        let json = Kind::Other(DataType::GenericJson);
        let added = add_sif_object(&sif, addition(&note, json)).unwrap();
        assert_eq!((added.id, added.name.as_str(), added.kind), (2, "note.json", "json"));
        let blob = add_sif_object(&sif, addition(&note, Kind::OciBlob(String::new()))).unwrap();
        assert_eq!((blob.kind, blob.listed.as_str()), ("oci-blob", "OCI.Blob"));
        let mut out = Vec::new();
        assert_eq!(dump_sif_object(&sif, 2, &mut out).unwrap(), 7);
        assert_eq!(out, b"{\"a\":1}");
        let described = describe_sif(&sif).unwrap();
        assert_eq!((described.descriptors, described.descriptors_free), (48, 45));
        assert_eq!(described.id, "00000000-0000-0000-0000-000000000000");
        assert_eq!(delete_sif_object(&sif, 2, false).unwrap().name, "note.json");
        let missing = dump_sif_object(&sif, 2, &mut out).unwrap_err();
        assert!(matches!(missing, SifFileError::Read { .. }), "{missing:?}");
    }

    #[test]
    fn what_cannot_be_added_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sif = sif(dir.path());
        let before = fs::read(&sif).unwrap();
        let generic = || Kind::Other(DataType::Generic);
        for content in [dir.path(), Path::new("/dev/zero"), &sif] {
            let error = add_sif_object(&sif, addition(content, generic())).unwrap_err();
            assert!(matches!(error, SifFileError::NotAddable { .. }), "{error:?}");
        }
        let missing = dir.path().join("none");
        assert!(matches!(
            add_sif_object(&sif, addition(&missing, generic())),
            Err(SifFileError::File(FileError { .. }))
        ));
        let text = dir.path().join("text");
        fs::write(&text, b"no SIF").unwrap();
        assert!(matches!(
            add_sif_object(&text, addition(&sif, generic())),
            Err(SifFileError::Edit { source: SifEditError::Read(SifError::NotSif), .. })
        ));
        let lock = File::open(&sif).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let busy = delete_sif_object(&sif, 1, false);
        assert!(matches!(busy, Err(SifFileError::Busy { .. })), "{busy:?}");
        assert!(fs::read(&sif).unwrap() == before && fs::read(&text).unwrap() == b"no SIF");
    }
}
