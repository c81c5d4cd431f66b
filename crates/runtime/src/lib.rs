//! Executes a Plan: namespaces, mounts, joining, signals, exit status.
//!
//! The runtime decides nothing. It lowers a [`situla_plan::Plan`] to system calls, in the process
//! that becomes the payload, and reports a [`Failure`] where one of them fails. It is synchronous
//! and must run in a process with a single thread: a user namespace cannot be made otherwise, and
//! fork is sound only there. Only the keeper, a process of its own, has threads.

mod apparmor;
mod construct;
mod covers;
mod ending;
mod failure;
mod hooks;
mod id_maps;
mod image_tree;
mod init;
mod inscribe;
mod inside;
mod instance;
mod interruption;
mod keeper;
mod kernel_mount;
mod layers;
mod meeting;
mod message;
mod mount_api;
mod mount_table;
mod mounts;
#[cfg(test)]
mod mutations;
mod namespaces;
mod near;
mod overlay;
mod own_files;
mod own_program;
mod paths;
mod payload;
mod privileges;
mod rootfs;
mod run;
mod seccomp;
mod supervise;
mod warm_up;

pub use ending::ends_within;
pub use failure::{Failure, FailureClass};
pub use init::ask_to_end;
pub use inscribe::inscribe;
pub use inside::{Links, open_inside};
pub use instance::{Channel, Instance, Undisturbed, detach};
pub use interruption::Interruption;
pub use kernel_mount::{KernelFormat, MountableFile, mount_by_kernel};
pub use meeting::MEETING_PROTOCOL;
pub use own_files::read_own_files;
pub use run::{MountedImage, Observer, OpenImage, OpenImages, duplicate, is_inherited, replace, run};
pub use seccomp::check_filter;
pub use situla_sys::{SignalInfo, die_by};
pub use supervise::Exit;
