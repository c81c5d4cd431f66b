//! Messages with file descriptors between the processes of one container.
//!
//! All sockets are `SOCK_SEQPACKET`: a message arrives whole or not at all.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message: a failure with its text.
pub(crate) const MAX_MESSAGE: usize = 4096;
/// The most descriptors in one message: a FUSE device, or one for each namespace that a container can have of its
/// own (user, mount, PID, IPC, UTS, network, control group), and the image behind them. Seven and one: with an
/// eighth type of namespace this grows.
const MAX_DESCRIPTORS: usize = 8;

/// What was received.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Makes a pair of connected sockets.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message; a receiver that has gone gives `EPIPE`, not a signal.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let bytes = bytes.get(..bytes.len().min(MAX_MESSAGE)).unwrap_or(bytes);
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}

/// Receives one message, waiting for it; `None` where the other end has gone.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        match recvmsg(socket.as_fd(), parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut message = Message::default();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            message.descriptors.extend(descriptors);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    if received.bytes == 0 && message.descriptors.is_empty() {
        return Ok(None);
    }
    buffer.truncate(received.bytes);
    message.bytes = buffer;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (left, right) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(left.as_fd(), b"F", &[null.as_fd(), null.as_fd()]).unwrap();
        send(left.as_fd(), b"text", &[]).unwrap();
        let first = receive(right.as_fd()).unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (b"F".as_slice(), 2));
        let second = receive(right.as_fd()).unwrap().unwrap();
        assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (b"text".as_slice(), 0));
        drop(left);
        assert!(receive(right.as_fd()).unwrap().is_none());
        assert_eq!(send(right.as_fd(), b"late", &[]), Err(Errno::PIPE));
    }
}
