//! Requests of the kernel's to the FUSE server, of an image that lies.

#![no_main]

#[path = "../../crates/runtime/src/image_tree.rs"]
mod image_tree;
#[path = "../../crates/runtime/tests/support/requests.rs"]
mod requests;

/// Larger inputs only slow the search down.
const MAX_INPUT: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.len() <= MAX_INPUT {
        requests::serve(data);
    }
});
