//! execve(2) with strings prepared beforehand.

use std::ffi::{CStr, CString, NulError};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::last_errno;

/// A list of strings in the shape that execve(2) wants.
#[derive(Debug)]
pub struct ExecStrings {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl ExecStrings {
    /// Takes over `strings`; fails if one holds a NUL.
    pub fn new<T: Into<Vec<u8>>>(strings: impl IntoIterator<Item = T>) -> Result<Self, NulError> {
        let strings: Vec<CString> =
            strings.into_iter().map(|string| CString::new(string)).collect::<Result<_, _>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(ExecStrings { strings, pointers })
    }

    /// The first string, if there is one.
    pub fn first(&self) -> Option<&CStr> {
        self.strings.first().map(CString::as_c_str)
    }
}

/// Replaces this process by the program `path`; returns only where that failed.
pub fn execute(path: &CStr, arguments: &ExecStrings, environment: &ExecStrings) -> Errno {
    // SAFETY: `path` ends with NUL; both vectors hold pointers to strings that end with NUL and
    // live in the borrowed `ExecStrings`, and both end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    last_errno()
}

/// Replaces this process by the open program `program`; returns only where that failed. `ENOENT` for a script
/// whose descriptor is closed by exec: its interpreter would not find it (execveat(2)).
pub fn execute_open(program: BorrowedFd<'_>, arguments: &ExecStrings, environment: &ExecStrings) -> Errno {
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH wants; both vectors hold pointers to strings
    // that end with NUL and live in the borrowed `ExecStrings`, and both end with a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}
