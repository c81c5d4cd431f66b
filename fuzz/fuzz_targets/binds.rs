//! Bind mounts as arbitrary texts ask for them.

#![no_main]

#[path = "../../crates/bindings/tests/support/binds.rs"]
mod binds;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    binds::binds(data);
});
