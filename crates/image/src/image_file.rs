//! An image file that is open: one that lies at a path, or one that was fetched and has no name.

use std::fs::File;
use std::path::{Path, PathBuf};

use situla_oci::{Digest, Platform};

use crate::convert::ConvertError;
use crate::file_error::FileError;
use crate::inspect::{FileKind, RootWindow, kind_of, root_window};
use crate::output::PendingFile;

/// An open image file, and what errors call it.
#[derive(Debug)]
pub struct ImageFile {
    name: PathBuf,
    file: File,
    /// Of one that was fetched.
    manifest: Option<Digest>,
    /// The machine that one was fetched for: its root file system must be for that.
    machine: Option<Box<Platform>>,
    /// Takes a name that a fetched one may have away in the end.
    _pending: Option<PendingFile>,
}

impl ImageFile {
    /// Opens the file at `path`; what it is shows later.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(FileError::read(path))?;
        Ok(Self { name: path.to_owned(), file, manifest: None, machine: None, _pending: None })
    }

    /// One that was fetched to `pending` by a manifest for a machine, and that errors are to call `name`.
    pub(crate) fn fetched(
        name: PathBuf,
        manifest: Digest,
        machine: Platform,
        pending: PendingFile,
    ) -> Result<Self, FileError> {
        let file = pending.file().map_err(FileError::read(&name))?;
        Ok(Self {
            name,
            file,
            manifest: Some(manifest),
            machine: Some(Box::new(machine)),
            _pending: Some(pending),
        })
    }

    /// Its path, or what it was fetched as.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Digest of the manifest that it was fetched by.
    #[must_use]
    pub fn manifest_digest(&self) -> Option<&Digest> {
        self.manifest.as_ref()
    }

    /// Finds out what it is, by its first bytes.
    ///
    /// # Errors
    /// When it cannot be read or is neither.
    pub fn kind(&self) -> Result<FileKind, ConvertError> {
        kind_of(&self.name, &self.file)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Another descriptor of it, with the same position.
    pub(crate) fn try_clone(&self) -> Result<File, FileError> {
        self.file.try_clone().map_err(FileError::read(&self.name))
    }

    /// Finds its root file system.
    pub(crate) fn root_window(&self) -> Result<(FileKind, RootWindow), ConvertError> {
        root_window(&self.name, &self.file, self.machine.as_deref())
    }
}
