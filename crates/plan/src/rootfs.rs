//! Where the root file system comes from and how it gets mounted.

use serde::{Deserialize, Serialize};

use crate::Text;

/// The bytes or files behind a root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum RootfsSource {
    /// A SquashFS image, at an offset where it lies inside a SIF file.
    Squashfs {
        /// Absolute path of the file on the host.
        path: Text,
        /// First byte of the image in the file.
        offset: u64,
        /// Length of the image in bytes.
        length: u64,
    },
    /// A directory tree.
    Directory {
        /// Absolute path on the host.
        path: Text,
    },
}

/// The step of the mount ladder that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Our own FUSE server inside the user namespace.
    Fuse,
    /// A bind mount of a directory.
    Directory,
}

/// What a [`Patch`] puts into the rootfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum PatchContent {
    /// An empty directory, where the image has none: a mount point.
    Directory,
    /// A file that hides what the image has at that path.
    File {
        /// The whole content.
        content: Text,
        /// Permission bits.
        mode: u32,
    },
}

/// Something that the container shows although the image does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Absolute path inside, with no symbolic link in it.
    pub path: String,
    /// What is there.
    #[serde(flatten)]
    pub content: PatchContent,
    /// Why it is needed.
    pub reason: String,
}

/// The root file system of a Plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Where it comes from.
    pub source: RootfsSource,
    /// How it is mounted.
    pub rung: Rung,
    /// Why this way.
    pub reason: String,
    /// What is shown on top of it.
    pub patches: Vec<Patch>,
}
