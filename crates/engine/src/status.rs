//! Exit statuses of failures that are ours and not the payload's: what the process ends with, and what the record says.

use situla_runtime::FailureClass;

use crate::error::EngineError;
use crate::request::Personality;

/// Exit statuses of our own command line and of tasks, as `env(1)` and `docker run` have them.
const ENGINE_FAILED: u8 = 125;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Wrong usage of our own command line (clap's convention).
const USAGE: u8 = 2;
/// Apptainer's status for every failure of its own, and for wrong usage.
const APPTAINER_FATAL: u8 = 255;
const APPTAINER_USAGE: u8 = 1;

/// What kind of failure it is: this decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The user asked wrongly.
    Usage,
    /// The container could not be made, or was lost.
    Engine,
    /// The command is there and cannot be executed.
    CannotExecute,
    /// The command is not in the image.
    NotFound,
}

impl FailureKind {
    /// The status of the process that fails so.
    pub fn status(self, personality: Personality) -> u8 {
        match (personality, self) {
            (Personality::Apptainer, FailureKind::Usage) => APPTAINER_USAGE,
            (Personality::Apptainer, _) => APPTAINER_FATAL,
            (_, FailureKind::Usage) => USAGE,
            (_, FailureKind::Engine) => ENGINE_FAILED,
            (_, FailureKind::CannotExecute) => CANNOT_EXECUTE,
            (_, FailureKind::NotFound) => NOT_FOUND,
        }
    }
}

impl EngineError {
    /// Its kind.
    pub fn kind(&self) -> FailureKind {
        match self {
            EngineError::Runtime(failure) => match failure.class() {
                FailureClass::CommandNotFound => FailureKind::NotFound,
                FailureClass::CommandNotExecutable => FailureKind::CannotExecute,
                _ => FailureKind::Engine,
            },
            _ => FailureKind::Engine,
        }
    }
}
