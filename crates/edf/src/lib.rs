//! Environment definition files (EDF), as CSCS documents them for its container engine.
//!
//! A file of a few lines says which image a job runs in, what is mounted, and which variables are set; `srun
//! --environment=NAME` finds it by its name. [`load`] reads one with all that it inherits and gives the result, which
//! depends on the files and on the variables that they mention and on nothing else.
//!
//! Where the documentation and the programs that implement it disagree, this follows the documentation: the entry
//! point is not run unless asked for, `EDF_PATH` has several directories, and flags of mounts are separated by `+` or `,`.

mod error;
mod expand;
mod file;
mod load;

pub use error::EdfError;
pub use load::{Edf, MAX_FILE, MAX_LEVELS, Surroundings, find, load};
