//! Where the root file system comes from and how it gets mounted.

use serde::{Deserialize, Serialize};

use crate::Text;
use crate::accounts::{AccountError, HostGroup, HostUser, merge_group, merge_passwd};

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
    /// The same of a tree that was extracted from an image.
    Extracted,
    /// A mount by the kernel, which root has made of a file that only root can write.
    Kernel,
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
    /// The image's own `passwd(5)`, with the user in it. It is completed when it is first looked at:
    /// in a compressed image that can cost more than all else that a start needs.
    Passwd {
        /// The user.
        user: HostUser,
        /// Others whom programs inside look for, where the image does not know their names.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        others: Vec<HostUser>,
    },
    /// The image's own `group(5)`, with the user's groups in it.
    Group {
        /// The user's login name.
        user: String,
        /// The groups.
        groups: Vec<HostGroup>,
    },
}

impl PatchContent {
    /// Permission bits of the account files that are shown.
    pub const ACCOUNTS_MODE: u32 = 0o644;

    /// Completes an account file of the image; `None` if this is no patch of one.
    ///
    /// # Errors
    /// The file is too long, or an entry cannot be written.
    pub fn complete(&self, image: &[u8]) -> Option<Result<Vec<u8>, AccountError>> {
        Some(match self {
            PatchContent::Passwd { user, others } => merge_passwd(image, user, others),
            PatchContent::Group { user, groups } => merge_group(image, user, groups),
            PatchContent::Directory | PatchContent::File { .. } => return None,
        })
    }
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

/// Where what the payload writes above the image goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Upper {
    /// Into memory, and away with the container.
    Tmpfs {
        /// The most bytes that may be there; as much as the kernel allows where none is given.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        size: Option<u64>,
    },
    /// Into `upper` of a directory of the host, which has a `work` directory beside it.
    Directory {
        /// Absolute path on the host.
        path: Text,
    },
}

/// Layers of files above the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Directories of the host that are shown and not changed, the topmost first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lowers: Vec<Text>,
    /// Where changes go, on top of all; none where the root stays as it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upper: Option<Upper>,
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
    /// What lies above image and patches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overlay: Option<Overlay>,
}
