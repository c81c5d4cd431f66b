//! References to images, as people and scripts write them. The invariants are written where they are shared with the
//! tests.

#![no_main]

#[path = "../../crates/oci/tests/support/references.rs"]
mod references;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    references::reference(data);
});
