//! Specifications of devices (CDI) of arbitrary bytes.

#![no_main]

#[path = "../../crates/bindings/tests/support/devices.rs"]
mod devices;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    devices::devices(data);
});
