//! Manifests, indexes and configurations. The invariants are written where they are shared with the tests.

#![no_main]

#[path = "../../crates/oci/tests/support/documents.rs"]
mod documents;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    documents::document(data);
});
