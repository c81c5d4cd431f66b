//! Parsing of requests: bytes from the kernel to a typed request.

use crate::tree::NodeId;
use crate::wire::{IN_HEADER_LEN, opcode, u32_at, u64_at};

/// One request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// Echoed in the reply.
    pub(crate) unique: u64,
    /// The node that the request is about.
    pub(crate) node: NodeId,
    /// What is asked.
    pub(crate) operation: Operation<'a>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    Lookup {
        name: &'a [u8],
    },
    GetAttributes,
    ReadLink,
    Read {
        offset: u64,
        size: u32,
    },
    ReadDirectory {
        offset: u64,
        size: u32,
        plus: bool,
    },
    Statistics,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    /// Nothing is open on our side, so closing has nothing to do.
    Close,
    /// Asks for no reply: FORGET, BATCH_FORGET, INTERRUPT.
    Silent,
    Destroy,
    /// Answered with ENOSYS, also OPEN and OPENDIR: see the INIT flags.
    Unsupported,
}

/// Parses one request. `None` means that it is shorter than its type demands; a conforming kernel
/// never sends such a one.
pub(crate) fn parse(bytes: &[u8]) -> Option<Request<'_>> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let code = u32_at(bytes, 4)?;
    let unique = u64_at(bytes, 8)?;
    let node = NodeId(u64_at(bytes, 16)?);
    let body = bytes.get(IN_HEADER_LEN..length.min(bytes.len()))?;
    let operation = match code {
        // struct fuse_init_in: major, minor, max_readahead, flags
        opcode::INIT => Operation::Init {
            major: u32_at(body, 0)?,
            minor: u32_at(body, 4)?,
            max_readahead: u32_at(body, 8).unwrap_or(0),
            flags: u32_at(body, 12).unwrap_or(0),
        },
        opcode::LOOKUP => Operation::Lookup { name: terminated(body)? },
        opcode::GETATTR => Operation::GetAttributes,
        opcode::READLINK => Operation::ReadLink,
        // struct fuse_read_in: fh u64, offset u64, size u32, ...
        opcode::READ => Operation::Read { offset: u64_at(body, 8)?, size: u32_at(body, 16)? },
        opcode::READDIR | opcode::READDIRPLUS => Operation::ReadDirectory {
            offset: u64_at(body, 8)?,
            size: u32_at(body, 16)?,
            plus: code == opcode::READDIRPLUS,
        },
        opcode::STATFS => Operation::Statistics,
        // struct fuse_getxattr_in: size u32, padding u32; then the name
        opcode::GETXATTR => Operation::GetXattr { size: u32_at(body, 0)?, name: terminated(body.get(8..)?)? },
        opcode::LISTXATTR => Operation::ListXattr { size: u32_at(body, 0)? },
        // Not FLUSH: where it is not supported the kernel stops asking at each close(2).
        opcode::RELEASE | opcode::RELEASEDIR => Operation::Close,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => Operation::Silent,
        opcode::DESTROY => Operation::Destroy,
        _ => Operation::Unsupported,
    };
    Some(Request { unique, node, operation })
}

/// The bytes up to the terminating NUL.
fn terminated(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: usize, code: u32, node: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&77u64.to_ne_bytes());
        bytes.extend_from_slice(&node.to_ne_bytes());
        bytes.resize(IN_HEADER_LEN, 0);
        bytes
    }

    #[test]
    fn lookup_has_a_terminated_name() {
        let mut bytes = header(IN_HEADER_LEN + 4, opcode::LOOKUP, 9);
        bytes.extend_from_slice(b"bin\0");
        let request = parse(&bytes).unwrap();
        assert_eq!((request.unique, request.node), (77, NodeId(9)));
        assert_eq!(request.operation, Operation::Lookup { name: b"bin" });
    }

    #[test]
    fn short_or_unterminated_requests_are_refused() {
        let mut unterminated = header(IN_HEADER_LEN + 3, opcode::LOOKUP, 9);
        unterminated.extend_from_slice(b"bin");
        assert_eq!(parse(&unterminated), None);
        let read = header(IN_HEADER_LEN, opcode::READ, 9);
        for cut in 0..read.len() {
            assert_eq!(parse(&read[..cut]), None, "{cut} bytes");
        }
        assert_eq!(parse(&read), None);
    }

    #[test]
    fn opens_are_unsupported_on_purpose() {
        for code in [14, 27, 999] {
            let request = header(IN_HEADER_LEN, code, 1);
            assert_eq!(parse(&request).unwrap().operation, Operation::Unsupported);
        }
    }
}
