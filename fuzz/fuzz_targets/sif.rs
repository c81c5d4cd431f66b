//! The SIF reader on arbitrary bytes. Its invariants are written where they are shared with the tests.

#![no_main]

#[path = "../../crates/sif/tests/support/reading.rs"]
mod reading;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    reading::sif(data);
});
