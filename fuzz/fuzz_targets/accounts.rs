//! The completion of account files on arbitrary ones.

#![no_main]

#[path = "../../crates/plan/tests/support/accounts.rs"]
mod accounts;

libfuzzer_sys::fuzz_target!(|data: &[u8]| accounts::accounts(data));
