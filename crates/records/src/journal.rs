//! Journals on disk.
//!
//! Appending is one `write(2)` with `O_APPEND`, which Linux does atomically with respect to other
//! appends on local filesystems; a journal belongs to one node, so on a network filesystem too all
//! its writers are behind one client. Nothing is synced: a record must not cost a start its time.
//! A line is framed by a newline on *both* sides, so that a line torn by a full disk or a killed
//! writer never swallows the one after it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::Deserialize;
use thiserror::Error;

use crate::event::{Event, EventKind, SCHEMA};
use crate::fold::fold_runs;
use crate::id::{ENDING, RecordId};
use crate::record::Record;

/// Bytes of one event. A plan with a full environment stays well below.
pub const MAX_EVENT_BYTES: usize = 4 << 20;

/// Bytes of a journal that are read; what lies beyond is counted as unreadable.
pub const MAX_JOURNAL_BYTES: u64 = 256 << 20;

/// Journals that are listed.
pub const MAX_LISTED: usize = 1_000_000;

/// A journal cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The directory cannot be made.
    #[error("cannot create records directory {}", path.display())]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be opened.
    #[error("cannot open journal {}", path.display())]
    Open {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be read.
    #[error("cannot read journal {}", path.display())]
    Read {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A newer version wrote in a layout from which this one would draw wrong conclusions.
    #[error("the record has schema {schema}, and this version reads {SCHEMA}")]
    NewerSchema {
        /// The highest schema in it.
        schema: u32,
    },
    /// The directory cannot be listed.
    #[error("cannot list records in {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The event cannot be written as JSON.
    #[error("cannot encode event")]
    Encode {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The event exceeds [`MAX_EVENT_BYTES`].
    #[error("event of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The event was not written.
    #[error("cannot append to journal")]
    Append {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Only part of the event was written, as on a full disk; readers will skip it.
    #[error("wrote {written} of {length} bytes to journal")]
    Torn {
        /// Bytes that were written.
        written: usize,
        /// Bytes of the line.
        length: usize,
    },
}

impl JournalError {
    /// Whether it only says that there is no journal.
    pub fn is_absence(&self) -> bool {
        matches!(self, JournalError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether this process may not read it.
    pub fn is_denial(&self) -> bool {
        matches!(self, JournalError::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// A journal open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal of a record, making it and its directories if needed (readable by the owner
    /// alone, as a record holds the command line).
    ///
    /// # Errors
    /// Directory or file cannot be made or opened.
    pub fn open(dir: &Path, id: &RecordId) -> Result<Self, JournalError> {
        let path = dir.join(id.relative_path());
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| JournalError::CreateDir { path: parent.to_owned(), source })?;
        }
        match open_regular(OpenOptions::new().append(true).create(true).mode(0o600), &path) {
            Ok(file) => Ok(Self { file }),
            Err(source) => Err(JournalError::Open { path, source }),
        }
    }

    /// Wraps a file that the caller opened for appending, such as one passed by another process.
    pub fn from_file(file: File) -> Self {
        Self { file }
    }

    /// Appends one event with one `write(2)`.
    ///
    /// # Errors
    /// The event is too long, or the write failed or was cut short. The caller may count and forget
    /// it; the journal stays usable.
    pub fn append(&self, event: &Event) -> Result<(), JournalError> {
        let mut line = b"\n".to_vec();
        serde_json::to_writer(&mut line, event).map_err(|source| JournalError::Encode { source })?;
        line.push(b'\n');
        if line.len() > MAX_EVENT_BYTES {
            return Err(JournalError::TooLong { length: line.len(), limit: MAX_EVENT_BYTES });
        }
        loop {
            match (&self.file).write(&line) {
                Ok(written) if written == line.len() => return Ok(()),
                Ok(written) => return Err(JournalError::Torn { written, length: line.len() }),
                // Nothing was written if a signal came first.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(JournalError::Append { source }),
            }
        }
    }
}

/// What a journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The name.
    pub id: RecordId,
    /// One record for each run, in the order in which they began.
    pub records: Vec<Record>,
    /// Lines that could not be read: torn by a crash, overlong, or beyond the size limit.
    pub unreadable: u64,
    /// Events of types that this version does not know.
    pub unknown: u64,
}

/// Reads a journal and folds it.
///
/// # Errors
/// The journal cannot be opened or read, or a part of it has a newer schema than [`SCHEMA`].
pub fn load(dir: &Path, id: &RecordId) -> Result<Loaded, JournalError> {
    let path = dir.join(id.relative_path());
    let file = match open_regular(OpenOptions::new().read(true), &path) {
        Ok(file) => file,
        Err(source) => return Err(JournalError::Open { path, source }),
    };
    let mut bytes = Vec::new();
    // One byte more than the limit tells a cut from an end.
    if let Err(source) = file.take(MAX_JOURNAL_BYTES + 1).read_to_end(&mut bytes) {
        return Err(JournalError::Read { path, source });
    }
    let cut = bytes.len() as u64 > MAX_JOURNAL_BYTES;
    let (events, unreadable) = read_events(&bytes)?;
    let unknown = events.iter().filter(|event| matches!(event.kind, EventKind::Unknown)).count() as u64;
    Ok(Loaded {
        id: id.clone(),
        records: fold_runs(&events),
        unreadable: unreadable + u64::from(cut),
        unknown,
    })
}

/// Opens a file that is one: a FIFO in its place would be waited for, in a process that must not wait.
fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = options.custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads the events of a journal's bytes; gives them and the number of lines that are none.
///
/// # Errors
/// One of them has a newer schema: what it means for the others cannot be known.
pub fn read_events(bytes: &[u8]) -> Result<(Vec<Event>, u64), JournalError> {
    /// All that a layout of any version has in common.
    #[derive(Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let mut events = Vec::new();
    let mut unreadable = 0;
    let mut newest = SCHEMA;
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let event =
            Some(line).filter(|line| line.len() <= MAX_EVENT_BYTES).map(serde_json::from_slice::<Event>);
        match event {
            Some(Ok(event)) => {
                newest = newest.max(event.schema);
                events.push(event);
            }
            // Either damaged, or of a layout in which events look otherwise.
            Some(Err(_)) => {
                let schema = serde_json::from_slice(line).map_or(0, |Versioned { schema }| schema);
                newest = newest.max(schema);
                unreadable += 1;
            }
            None => unreadable += 1,
        }
    }
    if newest > SCHEMA {
        return Err(JournalError::NewerSchema { schema: newest });
    }
    Ok((events, unreadable))
}

/// A journal found by [`list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub id: RecordId,
    /// When it was last written to.
    pub modified: SystemTime,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Lists the journals of a records directory, newest first. Other files are ignored; a missing
/// directory has none.
///
/// # Errors
/// A directory exists and cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Entry>, JournalError> {
    let mut entries = Vec::new();
    list_into(dir, None, &mut entries)?;
    entries.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.id.cmp(&b.id)));
    Ok(entries)
}

fn list_into(dir: &Path, cluster: Option<&str>, entries: &mut Vec<Entry>) -> Result<(), JournalError> {
    let failed = |source| JournalError::List { path: dir.to_owned(), source };
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for item in listing {
        if entries.len() >= MAX_LISTED {
            break;
        }
        let item = item.map_err(failed)?;
        let Ok(name) = item.file_name().into_string() else { continue };
        // A journal may be removed while the directory is read.
        let Ok(metadata) = item.metadata() else { continue };
        if metadata.is_dir() && cluster.is_none() {
            list_into(&item.path(), Some(&name), entries)?;
            continue;
        }
        let Some(stem) = name.strip_suffix(ENDING).filter(|_| metadata.is_file()) else { continue };
        let text = cluster.map_or_else(|| stem.to_owned(), |cluster| format!("{cluster}/{stem}"));
        let (Ok(id), Ok(modified)) = (text.parse(), metadata.modified()) else { continue };
        entries.push(Entry { id, modified, bytes: metadata.len() });
    }
    Ok(())
}
