//! What the plugin starts, as the user, when a task that was ours has died by KILL.
//!
//! The process that waits for a payload ends by KILL where the payload does, and that is the payload's
//! affair. Where it was killed itself nobody of ours may be left on the node to tell the others.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{WaitOptions, waitpid};
use situla_engine::{Host, Killed, StepEnd, judge_killed, remove_leavings};
use situla_sys::Forked;

use crate::command_error::CommandError;

/// Ends the step that the environment describes, if its task was lost. The status tells the plugin so.
///
/// The plugin waits for less than a second, and nobody after that. So there are two processes: one does it, and the other
/// one does it again where that is killed.
pub(crate) fn task_killed() -> Result<ExitCode, CommandError> {
    let Ok(Forked::Parent(child)) = situla_sys::fork() else {
        // The plugin ends its parent and what belongs to that, but not this one where its parent was killed.
        situla_sys::end_after(LIMIT);
        return find_out();
    };
    match waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) if !status.signaled() => {
            let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
            Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
        }
        _ => find_out(),
    }
}

fn find_out() -> Result<ExitCode, CommandError> {
    let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
    let lost = match judge_killed(&host) {
        Killed::Lost => true,
        Killed::InOrder => false,
        Killed::Unrecorded => std::env::var_os(PROGRAM).is_none_or(|program| is_ours(Path::new(&program))),
    };
    match StepEnd::of(&host).filter(|_| lost) {
        // In a step with no other task nothing goes on.
        None => Ok(ExitCode::from(NOT_LOST)),
        Some(step) => match step.request_for_killed() {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(CommandError::other(&error, "setup-failed", None)),
        },
    }
}

/// Takes away what the task has left on disk, which had nobody to do it: what the plugin starts next, with little time.
pub(crate) fn task_leavings() -> Result<ExitCode, CommandError> {
    let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
    // Settings that cannot be read are told by whoever runs.
    if let Ok(site) = crate::load_site() {
        remove_leavings(&host, &site);
    }
    Ok(ExitCode::SUCCESS)
}

/// From the plugin, where only its name says that the task was ours: the program, and where the job looks for programs.
const PROGRAM: &str = "SITULA_KILLED_PROGRAM";
const SEARCH_PATH: &str = "SITULA_KILLED_PATH";

/// After so many seconds there has been an answer, or there will be none.
const LIMIT: u32 = 13;

/// The task has not been lost, or that cannot be known.
const NOT_LOST: u8 = 1;

/// Whether a program that has one of our names is ours: another engine on the same cluster may have it as well, or a
/// script. Where that cannot be known it is taken for another's.
fn is_ours(program: &Path) -> bool {
    let path = std::env::var_os(SEARCH_PATH).unwrap_or_default();
    let is_name = program.components().count() == 1;
    let places = std::env::split_paths(&path).filter(|_| is_name).map(|place| place.join(program));
    let found =
        std::iter::once(program.to_owned()).chain(places).find(|path| path.is_absolute() && path.is_file());
    let Some((real, of_found)) =
        found.and_then(|path| Some((fs::canonicalize(&path).ok()?, identity(&path)?)))
    else {
        return false;
    };
    identity(Path::new("/proc/self/exe")) == Some(of_found) || real.file_name() == Some(OsStr::new("situla"))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino())).ok()
}
