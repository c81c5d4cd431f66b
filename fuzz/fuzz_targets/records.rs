//! The reader of journals, and the folding of what it reads, on arbitrary bytes.

#![no_main]

#[path = "../../crates/records/tests/support/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    exercise::journal(data);
});
