//! One module for each command.

pub(crate) mod manual;
pub(crate) mod run;
pub(crate) mod runs;
