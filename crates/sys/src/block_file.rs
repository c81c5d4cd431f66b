//! Files as block devices, and whether anybody can still write to them: loop(4) and fcntl(2) leases.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;

use crate::{checked, last_errno};

/// How often another device is asked for: whoever asks at the same moment is told the same number.
const MAX_TRIES: u32 = 64;

/// A read-only block device over a part of a file. It is given back when nobody has it open or mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its path.
    pub path: PathBuf,
    /// Keeps it, until something else does.
    pub device: File,
}

/// `struct loop_info64` of `include/uapi/linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `include/uapi/linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `#define LOOP_CONFIGURE 0x4C0A`, Linux 5.8
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// `#define LOOP_CTL_GET_FREE 0x4C82`
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// `LO_FLAGS_READ_ONLY = 1`, `LO_FLAGS_AUTOCLEAR = 4`
const READ_ONLY_UNTIL_CLOSED: u32 = 1 | 4;

impl LoopDevice {
    /// Makes a device of `length` bytes of `file` from `offset` on, which is a multiple of 512. Needs
    /// `CAP_SYS_ADMIN` in the first user namespace and access to the devices: `ENOSYS` before Linux 5.8.
    pub fn attach(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<Self, Errno> {
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(failed)?;
        let config = LoopConfig {
            fd: file.as_raw_fd().cast_unsigned(),
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset,
                size_limit: length,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: READ_ONLY_UNTIL_CLOSED,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        for _ in 0..MAX_TRIES {
            // SAFETY: takes no argument, and gives a number.
            let number = checked(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).open(&path).map_err(failed)?;
            // SAFETY: the kernel reads a structure of the layout that this call takes.
            let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            match if done == -1 { Err(last_errno()) } else { Ok(()) } {
                Ok(()) => return Ok(LoopDevice { path, device }),
                // Somebody else was faster.
                Err(Errno::BUSY) => {}
                // A kernel that does not know the call.
                Err(Errno::INVAL | Errno::NOTTY) => return Err(Errno::NOSYS),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }
}

/// Whether somebody has `file`, a regular file that is open for reading alone, open for writing. Only its
/// owner and who has `CAP_LEASE` may ask (fcntl(2), `F_SETLEASE`). `EINVAL` where the file system cannot tell.
pub fn has_writers(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: takes numbers alone. The lease is given back at once, so nobody is kept waiting.
    match checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }) {
        Ok(_) => {
            // SAFETY: takes numbers alone.
            checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })?;
            Ok(false)
        }
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}
