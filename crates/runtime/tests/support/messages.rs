//! Messages between our processes that may hold anything.
//!
//! The invariants, here and in the fuzz target: receiving ends, with a message that is no longer than the limit, or
//! an error; what a report pipe holds is a failure or nothing, and a failure that was read is written and read as
//! the same.

use std::os::fd::AsFd;

use rustix::net::{SendFlags, send};

use crate::failure::Failure;
use crate::message::{pair, receive};

/// Sends bytes to a receiver, and reads them as a report.
pub(crate) fn bytes(bytes: &[u8]) {
    let (ours, theirs) = pair().expect("a pair of sockets");
    send(&ours, bytes, SendFlags::NOSIGNAL).expect("it fits into a socket");
    send(&ours, b"next", SendFlags::NOSIGNAL).expect("it fits into a socket");
    match receive(theirs.as_fd()) {
        Ok(Some(message)) => {
            assert_eq!(message.bytes, bytes);
            assert!(message.descriptors.is_empty());
        }
        // Nothing in it is the end for a receiver, too much an error.
        Ok(None) => assert!(bytes.is_empty()),
        Err(_) => assert!(bytes.len() > 4096),
    }
    let next = receive(theirs.as_fd()).expect("the next message").expect("it is there");
    assert_eq!(next.bytes, b"next");
    if let Some(failure) = Failure::decode(bytes) {
        assert_eq!(Failure::decode(&failure.encode()).as_ref(), Some(&failure));
    }
}
