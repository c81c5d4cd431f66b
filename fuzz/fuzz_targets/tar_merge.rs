//! Layers: the tar reader and the merging of what it gives. The invariants are written where they are shared with the
//! tests of the crate.

#![no_main]

#[path = "../../crates/image/tests/support/layers.rs"]
mod layers;

/// Larger inputs only slow the search down.
const MAX_INPUT: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.len() <= MAX_INPUT {
        layers::layers(data);
    }
});
