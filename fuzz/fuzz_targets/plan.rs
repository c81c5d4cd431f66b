//! The Plan parser on arbitrary bytes. Its invariants are written where they are shared with the tests.

#![no_main]

#[path = "../../crates/plan/tests/support/plans.rs"]
mod plans;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    plans::plan(data);
});
