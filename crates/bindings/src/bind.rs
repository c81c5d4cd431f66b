//! One thing of the host that shall be visible inside.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindSource {
    /// A file or directory of the host, absolute.
    Host(PathBuf),
    /// An empty memory filesystem, with the size the user gave, in bytes.
    Tmpfs {
        /// Size in bytes; the kernel's default if absent.
        size: Option<u64>,
    },
    /// A `/dev` with the standard nodes only.
    MinimalDev,
    /// A directory of an image file, read-only.
    Image(ImageSource),
}

/// What of an image file is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageSource {
    /// The file on the host, absolute.
    pub path: PathBuf,
    /// The directory in it: absolute, without `.` and `..`; `/` for all of it.
    pub directory: String,
    /// The object of a SIF file, by its number, where the user names one.
    pub object: Option<u32>,
}

impl ImageSource {
    /// All of the image at `path`.
    pub(crate) fn whole(path: PathBuf) -> Self {
        ImageSource { path, directory: "/".to_owned(), object: None }
    }
}

/// How mounts made on the host later show up inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// They arrive, so that automounted directories work.
    #[default]
    Slave,
    /// They do not.
    Private,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The user, with this option or variable.
    User(String),
    /// Apptainer's defaults.
    Default,
    /// The process manager of MPI.
    Pmi,
    /// The site, which says what something needs that the user named: a device, or Slurm's tools.
    Device,
}

/// A mount to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindRequest {
    /// What.
    pub source: BindSource,
    /// Where inside: absolute, without `.` and `..`.
    pub destination: PathBuf,
    /// Read-only inside.
    pub read_only: bool,
    /// With the mounts below the source.
    pub recursive: bool,
    /// No execution of programs from it.
    pub no_exec: bool,
    /// Propagation of later host mounts.
    pub propagation: Propagation,
    /// A missing source or a failed mount is no error.
    pub optional: bool,
    /// If the destination is a symbolic link in the image, the link is covered and not its target.
    pub no_follow: bool,
    /// Who asked.
    pub origin: Origin,
    /// Why, for people.
    pub reason: String,
}

impl BindRequest {
    pub(crate) fn new(source: BindSource, destination: PathBuf, origin: Origin, reason: String) -> Self {
        Self {
            source,
            destination,
            read_only: false,
            recursive: true,
            no_exec: false,
            propagation: Propagation::default(),
            optional: false,
            no_follow: false,
            origin,
            reason,
        }
    }

    /// Makes a request that shows a host path at the same place inside.
    pub(crate) fn same(path: impl Into<PathBuf>, origin: Origin, reason: &str) -> Self {
        let path = path.into();
        Self::new(BindSource::Host(path.clone()), path, origin, reason.to_owned())
    }
}

/// Something that is not bound, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What it was about.
    pub what: String,
    /// Why not.
    pub reason: String,
}
