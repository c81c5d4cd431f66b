//! The request loop: read a request, ask the tree, write the reply.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use crate::appetite::Appetite;
use crate::reply;
use crate::request::{Operation, Request, parse};
use crate::tree::{Entry, Errno, Kind, NodeId, Tree};
use crate::wire::{KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_READ_BUFFER, OUT_HEADER_LEN, init_flag};

/// The largest answer to READ or READDIR: `FUSE_MAX_MAX_PAGES` pages of 4 KiB.
pub(crate) const MAX_ANSWER: usize = 1 << 20;

/// Why a serving thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The file system was unmounted.
    Unmounted,
}

/// Serving failed: the connection is unusable and the thread has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A request could not be read from `/dev/fuse`.
    #[error("read a request from the kernel")]
    ReadRequest(#[source] Errno),
    /// A reply was refused by `/dev/fuse`.
    #[error("write a reply to the kernel")]
    WriteReply(#[source] Errno),
    /// The kernel speaks another major version of the protocol.
    #[error("the kernel speaks version {0} of the FUSE protocol, not {KERNEL_VERSION}")]
    ProtocolVersion(u32),
}

/// Serves one tree. Shared by reference between the serving threads.
#[derive(Debug)]
pub struct Server<'a> {
    tree: &'a dyn Tree,
    appetite: Appetite,
}

/// Buffers of one serving thread, so that a request allocates nothing.
struct Buffers {
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// The header of a reply, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number of the request.
    pub unique: u64,
    /// 0, or the negative errno.
    pub error: i32,
}

/// What a request leads to.
enum Answer {
    /// Success; the payload lies in the answer buffer.
    Data,
    /// An error for the caller.
    Error(Errno),
    /// The kernel expects no reply.
    None,
}

impl<'a> Server<'a> {
    /// Makes a server of `tree`.
    pub fn new(tree: &'a dyn Tree) -> Self {
        Server { tree, appetite: Appetite::new() }
    }

    /// Answers requests from `device` (an open, mounted `/dev/fuse`) until it is unmounted.
    ///
    /// Any number of threads may call this with the same device.
    pub fn serve(&self, device: BorrowedFd<'_>) -> Result<Served, ServerError> {
        self.serve_with(device, || {})
    }

    /// As [`Server::serve`], with `wait` called before each request: for a process that has but one thread and
    /// must hear of other things as well.
    pub fn serve_with(&self, device: BorrowedFd<'_>, mut wait: impl FnMut()) -> Result<Served, ServerError> {
        let mut buffers = Buffers { request: vec![0; 2 * MIN_READ_BUFFER], answer: Vec::new() };
        loop {
            wait();
            let length = match rustix::io::read(device, &mut *buffers.request) {
                Ok(length) => length,
                // The request was interrupted before we got it.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(Served::Unmounted),
                Err(error) => return Err(ServerError::ReadRequest(error)),
            };
            let request = buffers.request.get(..length).unwrap_or_default();
            let Some(Reply { unique, error }) = self.reply_to(request, &mut buffers.answer)? else {
                continue;
            };
            let payload = buffers.answer.as_slice();
            match send(device, unique, error, payload) {
                // The kernel does not take this answer (EINVAL), or cannot just now (ENOMEM). One
                // request must not end the service of all: its caller gets an error.
                Err(_) if error == 0 => send(device, unique, -Errno::IO.raw_os_error(), &[])?,
                sent => sent?,
            }
        }
    }

    /// Answers one request, as the kernel has written it: `payload` becomes what follows the header of
    /// the reply. `None` where the kernel expects no reply, or the bytes are no request.
    ///
    /// # Errors
    /// The kernel cannot be served at all.
    pub fn reply_to(&self, request: &[u8], payload: &mut Vec<u8>) -> Result<Option<Reply>, ServerError> {
        payload.clear();
        let Some(Request { unique, node, operation }) = parse(request) else { return Ok(None) };
        Ok(match self.answer(node, operation, payload)? {
            Answer::None => None,
            Answer::Data => Some(Reply { unique, error: 0 }),
            Answer::Error(errno) => {
                payload.clear();
                Some(Reply { unique, error: -errno.raw_os_error() })
            }
        })
    }

    /// Computes the answer to one request into `out`.
    fn answer(
        &self,
        node: NodeId,
        operation: Operation<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Answer, ServerError> {
        let result = match operation {
            Operation::Init { major, minor, max_readahead, flags } => {
                return init(out, major, minor, max_readahead, flags);
            }
            Operation::Silent => return Ok(Answer::None),
            Operation::Close | Operation::Destroy => Ok(()),
            Operation::Unsupported => Err(Errno::NOSYS),
            Operation::Lookup { name } => self.tree.lookup(node, name).map(|found| {
                if found.as_ref().is_some_and(|found| found.kind != Kind::Directory) {
                    self.appetite.look_up();
                }
                reply::entry_out(out, found.as_ref());
            }),
            Operation::GetAttributes => {
                self.tree.attributes(node).map(|found| reply::attributes_out(out, &found))
            }
            Operation::ReadLink => self.tree.read_link(node).and_then(|target| link_target(&target, out)),
            Operation::Read { offset, size } => self.read(node, offset, size, out),
            Operation::ReadDirectory { offset, size, plus } => self.read_dir(node, offset, size, plus, out),
            Operation::Statistics => {
                reply::statistics_out(out, &self.tree.statistics());
                Ok(())
            }
            Operation::GetXattr { .. } | Operation::ListXattr { .. } if !self.tree.has_xattrs() => {
                Err(Errno::NOSYS)
            }
            Operation::GetXattr { name, size } => self.get_xattr(node, name, size, out),
            Operation::ListXattr { size } => self.list_xattr(node, size, out),
        };
        Ok(match result {
            Ok(()) => Answer::Data,
            Err(errno) => Answer::Error(errno),
        })
    }

    fn read(&self, node: NodeId, offset: u64, size: u32, out: &mut Vec<u8>) -> Result<(), Errno> {
        let size = usize::try_from(size).map_or(MAX_ANSWER, |size| size.min(MAX_ANSWER));
        out.resize(size, 0);
        let length = self.tree.read(node, offset, out)?;
        out.truncate(length);
        Ok(())
    }

    fn read_dir(
        &self,
        node: NodeId,
        offset: u64,
        size: u32,
        plus: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let limit = usize::try_from(size).map_or(MAX_ANSWER, |size| size.min(MAX_ANSWER));
        // Offsets 0 and 1 are "." and "..", which trees do not list.
        let dots: [&[u8]; 2] = [b".", b".."];
        for (position, name) in (0u64..).zip(dots).skip(usize::try_from(offset.min(2)).unwrap_or(2)) {
            let entry = Entry {
                name: name.to_vec(),
                node,
                inode: self.tree.attributes(node)?.inode,
                kind: Kind::Directory,
            };
            // An entry with node id 0 tells the kernel not to instantiate it.
            if !reply::directory_entry(out, limit, &entry, position + 1, plus.then_some(None)) {
                return Ok(());
            }
        }
        // The kernel asks that way for the first part of any directory, and for a further one only where
        // somebody has looked at what the last one listed.
        let files = plus && (offset > 0 || self.appetite.wants_files());
        let mut n_left_out = 0;
        let listed = self.tree.read_dir(node, offset.saturating_sub(2), &mut |entry, next| {
            let described = plus && (files || entry.kind == Kind::Directory);
            let found = if described { Some(self.tree.attributes(entry.node)?) } else { None };
            let fits = reply::directory_entry(out, limit, entry, next + 2, plus.then_some(found.as_ref()));
            n_left_out += u32::from(fits && plus && !described);
            Ok(fits)
        });
        self.appetite.leave_out(n_left_out);
        listed
    }

    fn get_xattr(&self, node: NodeId, name: &[u8], size: u32, out: &mut Vec<u8>) -> Result<(), Errno> {
        let found = self.tree.xattrs(node)?.into_iter().find(|(key, _)| key == name);
        let (_, value) = found.ok_or(Errno::NODATA)?;
        sized(&value, size, out)
    }

    fn list_xattr(&self, node: NodeId, size: u32, out: &mut Vec<u8>) -> Result<(), Errno> {
        let mut names = Vec::new();
        for (name, _) in self.tree.xattrs(node)? {
            names.extend_from_slice(&name);
            names.push(0);
        }
        sized(&names, size, out)
    }
}

/// The kernel takes targets of less than a page.
fn link_target(target: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
    const LONGEST: usize = 4095;
    if target.len() > LONGEST {
        return Err(Errno::NAMETOOLONG);
    }
    out.extend_from_slice(target);
    Ok(())
}

/// Answers with the length where the caller offers no room (`struct fuse_getxattr_out`).
fn sized(value: &[u8], size: u32, out: &mut Vec<u8>) -> Result<(), Errno> {
    let length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if size == 0 {
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        return Ok(());
    }
    if length > size {
        return Err(Errno::RANGE);
    }
    out.extend_from_slice(value);
    Ok(())
}

/// Negotiates the protocol.
fn init(
    out: &mut Vec<u8>,
    major: u32,
    minor: u32,
    readahead: u32,
    flags: u32,
) -> Result<Answer, ServerError> {
    if major > KERNEL_VERSION {
        // The kernel repeats INIT with our major version.
        reply::init_out(out, KERNEL_MINOR_VERSION, 0, 0);
        return Ok(Answer::Data);
    }
    if major < KERNEL_VERSION {
        return Err(ServerError::ProtocolVersion(major));
    }
    let wanted = init_flag::ASYNC_READ
        | init_flag::DO_READDIRPLUS
        | init_flag::READDIRPLUS_AUTO
        | init_flag::NO_OPEN_SUPPORT
        | init_flag::PARALLEL_DIROPS
        | init_flag::ABORT_ERROR
        | init_flag::MAX_PAGES
        | init_flag::CACHE_SYMLINKS
        | init_flag::NO_OPENDIR_SUPPORT;
    reply::init_out(out, minor.min(KERNEL_MINOR_VERSION), readahead, flags & wanted);
    Ok(Answer::Data)
}

fn send(device: BorrowedFd<'_>, unique: u64, error: i32, payload: &[u8]) -> Result<(), ServerError> {
    let total = OUT_HEADER_LEN + payload.len();
    let length = u32::try_from(total).map_err(|_| ServerError::WriteReply(Errno::TOOBIG))?;
    let mut header = [0u8; OUT_HEADER_LEN];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    match rustix::io::writev(device.as_fd(), &[IoSlice::new(&header), IoSlice::new(payload)]) {
        // ENOENT: the caller was killed meanwhile. ENODEV: unmounted; the next read tells.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(error) => Err(ServerError::WriteReply(error)),
    }
}
