//! Safe wrappers over the Linux calls that the runtime needs and rustix does not offer.
//!
//! Beside the plugin's own border to Slurm, this is the only crate with `unsafe` in it. It decides
//! nothing: no paths are chosen, nothing is retried, nothing is logged. Errors are errnos
//! ([`Errno`]); callers know what they mean where.

mod background;
mod block_file;
mod descriptor;
mod exec;
mod fork;
mod identity;
mod mount;
mod network;
mod seccomp;
mod signal;
#[cfg(all(feature = "own-start", target_arch = "x86_64", target_env = "gnu", target_feature = "crt-static"))]
mod start;

pub use background::{become_background, become_init, become_resident};
pub use block_file::{LoopDevice, has_writers};
pub use descriptor::{close_on_exec_from, with_inherited};
pub use exec::{ExecStrings, execute, execute_open};
pub use fork::{
    Forked, end_after, ended_child, exit_now, fork, fork_into_pid_namespace, fork_sibling, is_single_threaded,
};
pub use identity::{drop_all_capabilities, join_namespace, unshare};
pub use mount::{MountAttributes, make_private, set_mount_attributes};
pub use network::bring_loopback_up;
pub use rustix::io::Errno;
pub use seccomp::{FilterFlags, Instruction, SystemCall, install_filter, refuse_calls};
pub use signal::{
    SignalFd, SignalInfo, SignalMask, begin_with_mask, block_signals, die_by, initial_sigpipe, is_ignored,
    restore_default_action, restore_sigchld, send_raw_signal, set_signal_mask, signal_everybody,
};

/// The errno of the call that has just failed.
fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}

/// Turns the convention "-1 and errno" into a result.
fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}
