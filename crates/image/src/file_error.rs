//! What the operating system refused to do with a file, for the errors of all parts of this crate.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A file or directory could not be used.
#[derive(Debug, Error)]
#[error("cannot {doing} '{}'", path.display())]
pub struct FileError {
    /// What was to be done.
    pub doing: Doing,
    /// The file or directory.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// What was to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Reading it, or looking at it.
    Read,
    /// Making or changing it.
    Write,
    /// Making it, as a directory of the store.
    CreateDirectory,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doing::Read => "read",
            Doing::Write => "write",
            Doing::CreateDirectory => "create store directory",
        })
    }
}

impl FileError {
    /// For `map_err`: reading `path` failed.
    pub(crate) fn read<P: Into<PathBuf>>(path: P) -> impl FnOnce(io::Error) -> Self {
        |source| Self { doing: Doing::Read, path: path.into(), source }
    }

    /// For `map_err`: writing `path` failed.
    pub(crate) fn write<P: Into<PathBuf>>(path: P) -> impl FnOnce(io::Error) -> Self {
        |source| Self { doing: Doing::Write, path: path.into(), source }
    }
}
