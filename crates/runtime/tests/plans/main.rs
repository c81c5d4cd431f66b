//! Runs Plans for real, through the `run_plan` example, and looks at them from inside.
//!
//! Needs user namespaces, `/dev/fuse` and Debian's busybox-static; without them the tests print why
//! they were skipped, or fail where `SITULA_TEST_REQUIRE` is set.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says why it skips"
)]

mod basic;
mod bench;
mod hooks;
mod options;
mod refused;
mod seccomp;
