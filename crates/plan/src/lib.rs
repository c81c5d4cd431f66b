//! The Plan: everything that a run will do, as one complete, printable value.
//!
//! A [`Plan`] is an OCI runtime-spec document ([`Spec`]) plus what OCI cannot say: which image and
//! which rootfs, with whom the container is shared, why each thing of the host is visible inside,
//! and what the policy said. `situla plan` prints it, the runtime executes it, the record embeds
//! it. This crate holds types, and what they say of an image's bytes; nothing here looks at the machine.

mod accounts;
mod hooks;
mod image;
mod plan;
mod rootfs;
mod seccomp;
mod share;
mod spec;
mod text;

pub use accounts::{AccountError, HostGroup, HostUser, MAX_ACCOUNT_FILE, MAX_GROUPS};
pub use hooks::{Hook, Hooks};
pub use image::{ImageIdentity, RootfsIdentity};
pub use plan::{Binding, Place, Plan, SCHEMA};
pub use rootfs::{Overlay, Patch, PatchContent, Rootfs, RootfsSource, Rung, Upper};
pub use seccomp::{
    MAX_SECCOMP_RULES, Seccomp, SeccompAction, SeccompArch, SeccompArg, SeccompFlag, SeccompOperator,
    SeccompRule,
};
pub use share::{Share, ShareKey};
pub use spec::{
    Capabilities, IdMapping, LinuxSpec, Mount, Namespace, NamespaceKind, ProcessSpec, Rlimit, RootSpec, Spec,
    UserSpec,
};
pub use text::Text;
