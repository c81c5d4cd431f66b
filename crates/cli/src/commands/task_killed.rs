//! What the plugin starts, as the user, when a task that was ours has died by KILL.
//!
//! The process that waits for a payload ends by KILL where the payload does, and that is the payload's
//! affair. Where it was killed itself nobody of ours may be left on the node to tell the others.

use std::process::ExitCode;

use situla_engine::{Host, Killed, StepEnd, judge_killed};

use crate::command_error::CommandError;

/// Ends the step that the environment describes, if its task was lost. The status tells the plugin so.
pub(crate) fn task_killed() -> Result<ExitCode, CommandError> {
    let host = Host::gather(std::env::vars_os().collect()).map_err(CommandError::host)?;
    if judge_killed(&host) != Killed::Lost {
        return Ok(ExitCode::from(NOT_LOST));
    }
    match StepEnd::of(&host).as_ref().map(StepEnd::request_for_killed) {
        Some(Err(error)) => Err(CommandError::other(&error, "setup-failed", None)),
        Some(Ok(())) | None => Ok(ExitCode::SUCCESS),
    }
}

/// The task has not been lost, or that cannot be known.
const NOT_LOST: u8 = 1;
