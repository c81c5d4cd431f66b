//! The numbers Slurm hands out, each in a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A Slurm job id (`SLURM_JOB_ID`).
    JobId
}
number! {
    /// Position of this node within the step (`SLURM_NODEID`), from zero.
    NodeIndex
}
number! {
    /// Rank of a task within the step (`SLURM_PROCID`), from zero.
    ProcId
}
number! {
    /// Rank of a task among those of its step on this node (`SLURM_LOCALID`), from zero.
    LocalRank
}

// slurm/slurm.h: the reserved step ids. SLURM_MAX_NORMAL_STEP_ID is the last one srun may get.
const SLURM_MAX_NORMAL_STEP_ID: u32 = 0xffff_fff0;
const SLURM_INTERACTIVE_STEP: u32 = 0xffff_fffa;
const SLURM_BATCH_SCRIPT: u32 = 0xffff_fffb;
const SLURM_EXTERN_CONT: u32 = 0xffff_fffc;
const SLURM_PENDING_STEP: u32 = 0xffff_fffd;

/// Which step of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum StepId {
    /// A step made by srun; the ranks of one of these share a container.
    Numeric(u32),
    /// The batch script.
    Batch,
    /// The shell of `salloc` with `use_interactive_step`.
    Interactive,
    /// The step that adopts processes from outside, such as ssh logins.
    Extern,
    /// A step that has no number yet.
    Pending,
}

impl StepId {
    /// Reads the 32-bit number that SPANK and the environment use.
    ///
    /// Returns `None` for the numbers Slurm reserves but gives no meaning.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            SLURM_INTERACTIVE_STEP => Self::Interactive,
            SLURM_BATCH_SCRIPT => Self::Batch,
            SLURM_EXTERN_CONT => Self::Extern,
            SLURM_PENDING_STEP => Self::Pending,
            n if n <= SLURM_MAX_NORMAL_STEP_ID => Self::Numeric(n),
            _ => return None,
        })
    }

    /// Gives the 32-bit number of slurm.h.
    pub fn to_raw(self) -> u32 {
        match self {
            Self::Numeric(n) => n,
            Self::Batch => SLURM_BATCH_SCRIPT,
            Self::Interactive => SLURM_INTERACTIVE_STEP,
            Self::Extern => SLURM_EXTERN_CONT,
            Self::Pending => SLURM_PENDING_STEP,
        }
    }

    /// Tells whether srun launched this step, as opposed to Slurm itself.
    pub fn is_numeric(self) -> bool {
        matches!(self, Self::Numeric(_))
    }
}

impl fmt::Display for StepId {
    /// Writes the form that sacct and cgroup directories use: a number or the step's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numeric(n) => n.fmt(f),
            Self::Batch => f.write_str("batch"),
            Self::Interactive => f.write_str("interactive"),
            Self::Extern => f.write_str("extern"),
            Self::Pending => f.write_str("pending"),
        }
    }
}

impl From<StepId> for String {
    fn from(step: StepId) -> Self {
        step.to_string()
    }
}

/// The text is no step id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a step id")]
pub struct NotAStepId;

impl FromStr for StepId {
    type Err = NotAStepId;

    /// Reads a name, an unsigned number, or the same number as a negative one (`-5` is the batch
    /// step), which is how older releases printed the reserved ids.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "batch" => return Ok(Self::Batch),
            "interactive" => return Ok(Self::Interactive),
            "extern" => return Ok(Self::Extern),
            "pending" | "TBD" => return Ok(Self::Pending),
            _ => {}
        }
        let raw = match text.strip_prefix('-') {
            Some(_) => text.parse::<i32>().map_err(|_| NotAStepId)?.cast_unsigned(),
            None => parse_digits(text).ok_or(NotAStepId)?,
        };
        Self::from_raw(raw).ok_or(NotAStepId)
    }
}

impl TryFrom<String> for StepId {
    type Error = NotAStepId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Parses decimal digits only: `str::parse` also takes a leading `+`, which Slurm never writes.
pub(crate) fn parse_digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_ids_in_all_spellings() {
        let table = [
            ("0", Some(StepId::Numeric(0))),
            ("4294967280", Some(StepId::Numeric(0xffff_fff0))),
            ("4294967281", None),
            ("4294967291", Some(StepId::Batch)),
            ("-5", Some(StepId::Batch)),
            ("batch", Some(StepId::Batch)),
            ("-6", Some(StepId::Interactive)),
            ("4294967290", Some(StepId::Interactive)),
            ("-4", Some(StepId::Extern)),
            ("extern", Some(StepId::Extern)),
            ("-3", Some(StepId::Pending)),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("-", None),
            ("1.0", None),
            ("99999999999", None),
        ];
        for (text, want) in table {
            assert_eq!(text.parse::<StepId>().ok(), want, "{text:?}");
        }
    }

    #[test]
    fn a_step_id_survives_every_conversion() {
        for step in [StepId::Numeric(7), StepId::Batch, StepId::Interactive, StepId::Extern, StepId::Pending]
        {
            assert_eq!(StepId::from_raw(step.to_raw()), Some(step));
            assert_eq!(step.to_string().parse(), Ok(step));
        }
    }
}
