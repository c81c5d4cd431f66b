//! The Plan itself.

use serde::{Deserialize, Serialize};

use crate::{ImageIdentity, Rootfs, Share, Spec, Text};

/// Version of the Plan's layout. Readers refuse what is newer; writers write this.
pub const SCHEMA: u32 = 1;

/// One thing of the host that is visible inside, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The path inside, or the number of a file descriptor that stays open (`fd:7`).
    pub destination: String,
    /// What it is on the host.
    pub source: String,
    /// Who asked for it, and why.
    pub reason: String,
}

/// Which file or directory a path of the host led to when the Plan was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The path, as the Plan names it elsewhere.
    pub path: Text,
    /// The device that it is on, as `stat(2)` numbers it.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
}

/// Everything that a run will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The image.
    pub image: ImageIdentity,
    /// What the policy said, with its reasons.
    pub verdict: situla_policy::Verdict,
    /// The allocation that the Plan was made for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allocation: Option<situla_slurm::Allocation>,
    /// The root file system.
    pub rootfs: Rootfs,
    /// With whom the container is shared.
    pub share: Share,
    /// Why each thing of the host is visible inside.
    pub bindings: Vec<Binding>,
    /// What paths of mounts, layers and the root must lead to still when they are opened. Others may lead anywhere.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub places: Vec<Place>,
    /// Descriptors beyond standard input, output and error that stay open for the payload.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub keep_fds: Vec<i32>,
    /// Whether all descriptors that were inherited stay open, as with process substitution of a shell.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub inherit_fds: bool,
    /// Paths inside at which the command may be, in the order of its search path. Empty where the
    /// runtime is to search for itself.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub command_paths: Vec<Text>,
    /// Directories inside to try, in order, where the working directory does not exist. Empty where
    /// the user named it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cwd_fallbacks: Vec<Text>,
    /// What the runtime executes.
    pub spec: Spec,
}

impl Plan {
    /// What `path` must lead to; `None` where it may lead anywhere.
    pub fn place(&self, path: &Text) -> Option<&Place> {
        self.places.iter().find(|place| place.path == *path)
    }
}
