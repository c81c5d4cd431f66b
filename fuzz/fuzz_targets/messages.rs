//! What the keeper, the tasks that join and the report pipe receive.

#![no_main]
// Of the two modules only what receives is used here.
#![allow(dead_code)]

#[path = "../../crates/runtime/src/failure.rs"]
mod failure;
#[path = "../../crates/runtime/src/message.rs"]
mod message;
#[path = "../../crates/runtime/tests/support/messages.rs"]
mod messages;

/// A socket takes no more at once; a receiver takes less.
const MAX_INPUT: usize = 1 << 16;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.len() <= MAX_INPUT {
        messages::bytes(data);
    }
});
