//! What can go wrong when Slurm's text is read.

use thiserror::Error;

/// A variable that identifies the task holds something that cannot be read.
///
/// Only identity is fatal (job, step, node and rank numbers): naming the wrong step would be worse
/// than stopping. A malformed descriptive variable becomes a warning in the allocation instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SlurmError {
    /// The value is not the number or name that Slurm defines for this variable.
    #[error("{variable} is not a valid {what}: {value:?}")]
    BadIdentity {
        /// The environment variable.
        variable: &'static str,
        /// What it should have held.
        what: &'static str,
        /// What it held, shortened.
        value: String,
    },
}

/// A hostlist expression cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HostlistError {
    /// The expression is longer than one environment string can be.
    #[error("hostlist of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Length of the expression in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The expression names more hosts than [`crate::MAX_HOSTS`].
    #[error("hostlist names more than {limit} hosts")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A bracket is not closed, not opened, or nested.
    #[error("unbalanced bracket in hostlist at byte {offset}")]
    Bracket {
        /// Where, in bytes from the start.
        offset: usize,
    },
    /// A name between commas is empty.
    #[error("empty host name in hostlist")]
    EmptyName,
    /// The text in a bracket is not `N` or `N-M` with N ≤ M.
    #[error("bad range {range:?} in hostlist")]
    BadRange {
        /// The offending range.
        range: String,
    },
    /// A name holds a byte that no host name has (a blank, a slash or a control character).
    #[error("character {character:?} cannot be part of a host name")]
    BadCharacter {
        /// The offending character.
        character: char,
    },
}

/// A per-node list such as `2(x3),1` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RepeatError {
    /// One element is not `N` or `N(xM)`.
    #[error("bad element {element:?} in a per-node list")]
    BadElement {
        /// The offending element.
        element: String,
    },
    /// The list has more runs than [`crate::RepeatList::MAX_RUNS`].
    #[error("per-node list has more than {limit} runs")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}
