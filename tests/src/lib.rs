//! Runs the built system against real things: an unprivileged user, a real Slurm, real Apptainer.
//!
//! The modules here are the means (running commands with a deadline, asking Slurm, looking for leaks) and
//! the cases; the binaries in `tiers/` choose which cases run where. Nothing here knows the inside of the
//! system: it is driven by its command lines and judged by what the payload printed, what was recorded, and
//! what Slurm's accounting says, compared with each other.
//!
//! A case that cannot run says why (`skipped: …`). With `CI=true` or `SITULA_TEST_REQUIRE=1` it fails
//! instead: there, silence must not look like success.

pub mod cases;
pub mod cluster;
pub mod command;
pub mod environment;
pub mod foreign;
pub mod images;
pub mod leaks;
pub mod lending_proxy;
pub mod outcome;
pub mod private_registry;
pub mod processes;
pub mod random;
pub mod reached_registry;
pub mod slow_proxy;
pub mod tier;
