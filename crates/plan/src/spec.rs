//! The part of an OCI runtime-spec document that the runtime executes.
//!
//! Field names and meaning are those of the OCI runtime specification 1.2, `config.md` and
//! `config-linux.md`; fields that the runtime does not execute are left out, not ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Hooks, Seccomp, Text};

/// An OCI runtime-spec document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification.
    pub oci_version: String,
    /// What to run.
    pub process: ProcessSpec,
    /// The root file system.
    pub root: RootSpec,
    /// Host name inside; needs a UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// What is particular to Linux.
    pub linux: LinuxSpec,
    /// Programs of the host's to be run at stages of the container's life.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hooks: Option<Hooks>,
    /// Free text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub annotations: BTreeMap<String, String>,
}

/// The process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSpec {
    /// Whether standard input is a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Ids inside.
    pub user: UserSpec,
    /// The command.
    pub args: Vec<Text>,
    /// `NAME=value` entries.
    pub env: Vec<Text>,
    /// Working directory inside.
    pub cwd: Text,
    /// Sets `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Capabilities in the container's user namespace; none at all where this is left out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub capabilities: Option<Capabilities>,
    /// Resource limits, beside those that are inherited.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rlimits: Vec<Rlimit>,
}

/// Sets of capabilities, by names such as `CAP_CHOWN`; capabilities(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// What can be gained at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bounding: Vec<String>,
    /// What is used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effective: Vec<String>,
    /// What passes an exec, for programs that have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// What can be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<String>,
    /// What passes an exec of an ordinary program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// A resource limit; setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Its name, such as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limit up to which the payload can raise it.
    pub hard: u64,
    /// The limit that is enforced.
    pub soft: u64,
}

/// The ids of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
}

/// The root of a container. Its path is chosen at run time, in a private mount namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// Where the rootfs is on the host; an image file is named here as it is.
    pub path: Text,
    /// Whether the root is mounted read-only.
    pub readonly: bool,
}

/// One mount inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside.
    pub destination: Text,
    /// Path on the host, or a word where the type takes no source.
    pub source: Text,
    /// `bind`, `tmpfs`, `proc`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Options as in `mount(8)`.
    pub options: Vec<String>,
}

/// Types of namespaces that the runtime makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// User and group ids.
    User,
    /// Mounts.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Network devices.
    Network,
    /// Processes.
    Pid,
    /// The control groups as they are seen from the one that the process is in.
    Cgroup,
}

/// A namespace to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
}

/// A range of ids; `config-linux.md`, "User namespace mappings".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// What is particular to Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinuxSpec {
    /// Namespaces to make.
    pub namespaces: Vec<Namespace>,
    /// User ids.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids.
    pub gid_mappings: Vec<IdMapping>,
    /// Paths inside that are made to look empty, where they exist.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub masked_paths: Vec<Text>,
    /// Paths inside that cannot be written to, where they exist.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub readonly_paths: Vec<Text>,
    /// Which system calls the payload may make; all where this is left out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seccomp: Option<Seccomp>,
}

impl LinuxSpec {
    /// Tells whether there is to be a namespace of this type.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.namespaces.iter().any(|namespace| namespace.kind == kind)
    }
}
