//! The SquashFS reader on arbitrary bytes.
//!
//! Invariant: whatever the bytes are, opening an image and every operation on it returns, with a
//! result or an error. Nothing panics, no loop is longer than the limits of the reader allow, no
//! allocation is larger than them, names never hold a slash or NUL, and a read returns exactly what
//! the file's size says or fails. The walk itself is shared with the mutation tests of the crate.

#![no_main]

#[path = "../../crates/squashfs/tests/support/exercise.rs"]
mod exercise;

use libfuzzer_sys::fuzz_target;

/// Larger inputs only slow the search down: the seeds are some tens of kilobytes.
const MAX_INPUT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    if data.len() <= MAX_INPUT {
        // An image that does not open is an answer as good as any.
        drop(exercise::image(data.to_vec()));
    }
});
