//! What the plugin starts, as the user, when a task that was ours has died by KILL.
//!
//! The process that waits for a payload ends by KILL where the payload does, and that is the payload's
//! affair. Where it was killed itself nobody of ours may be left on the node to tell the others.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use situla_engine::{Host, Killed, StepEnd, judge_killed};

use crate::command_error::CommandError;

/// Ends the step that the environment describes, if its task was lost. The status tells the plugin so.
pub(crate) fn task_killed() -> Result<ExitCode, CommandError> {
    let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
    let program = std::env::var_os("SITULA_KILLED_PROGRAM");
    let lost = match judge_killed(&host) {
        Killed::Lost => true,
        Killed::InOrder => false,
        Killed::Unrecorded => !program.is_some_and(|program| is_other_program(Path::new(&program))),
    };
    if !lost {
        return Ok(ExitCode::from(NOT_LOST));
    }
    match StepEnd::of(&host).as_ref().map(StepEnd::request_for_killed) {
        Some(Err(error)) => Err(CommandError::other(&error, "setup-failed", None)),
        Some(Ok(())) | None => Ok(ExitCode::SUCCESS),
    }
}

/// The task has not been lost, or that cannot be known.
const NOT_LOST: u8 = 1;

/// Whether a program that has one of our names surely is none of ours: another engine on the same cluster.
fn is_other_program(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    // What srun sends is absolute where it has found it; of another one nothing can be said.
    let Some((real, found)) = fs::canonicalize(path).ok().filter(|_| path.is_absolute()).zip(identity(path))
    else {
        return false;
    };
    identity(Path::new("/proc/self/exe")) != Some(found) && real.file_name() != Some(OsStr::new("situla"))
}
