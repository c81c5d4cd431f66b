//! Keeping the file of this program out of the container.
//!
//! Until exec, `/proc/self/exe` leads to the file of this program on the host. A payload that is that
//! file (because the command, a link of the image or the first line of a script leads there) would
//! give others inside a way to open it, and to write it once it runs no more, where it belongs to
//! the user who runs it. A file that is somebody else's is protected by its owner already.
//!
//! This looks before the kernel does. Where others change the command's path at the very moment,
//! in a directory that is writable inside, they can still win that race; while any process of ours runs,
//! the kernel refuses to open the file for writing (`ETXTBSY`).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat, stat};
use rustix::io::Errno;

use crate::inside::open_without_magic;

/// Where the kernel shows the program of the process that looks.
const OWN: &str = "/proc/self/exe";

/// How many scripts may be each other's interpreter: what the kernel allows (`exec_binprm`, fs/exec.c).
const MAX_SCRIPTS: usize = 6;

/// What the kernel reads of a program to find an interpreter (`BINPRM_BUF_SIZE`, linux/binfmts.h).
const MAX_HEAD: usize = 256;

/// Tells whether the user could change the file of this program: it is his, or open to him.
pub(crate) fn is_changeable() -> bool {
    let owned = stat(OWN).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
    owned || accessat(CWD, OWN, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// How a program that is not this one is to be executed.
#[derive(Debug)]
pub(crate) enum Another {
    /// By its path.
    ByPath,
    /// By this descriptor. It may be executed and not read, so nobody can tell whether it is a script: that
    /// way the kernel executes no script, which its interpreter could not read anyway.
    Unreadable(OwnedFd),
}

/// Fails with `ELOOP` where executing `path` leads through a link of `/proc` that is no path.
pub(crate) fn expect_another(path: &[u8]) -> Result<Another, Errno> {
    let mut path = path.to_vec();
    for nth in 0..MAX_SCRIPTS {
        // Nothing is waited for, should it be a FIFO.
        let file = match open_without_magic(&path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Errno::ACCESS) if nth == 0 => {
                return open_without_magic(&path, OFlags::PATH).map(Another::Unreadable);
            }
            other => other?,
        };
        if rustix::fs::fstat(file.as_fd()).is_ok_and(|stat| is_no_program(stat.st_mode)) {
            // Exec says why it is not one.
            return Ok(Another::ByPath);
        }
        let mut head = Vec::with_capacity(MAX_HEAD);
        let limit = u64::try_from(MAX_HEAD).unwrap_or(u64::MAX);
        File::from(file).take(limit).read_to_end(&mut head).map_err(|_| Errno::IO)?;
        match script_interpreter(&head) {
            Some(next) => path = next.to_vec(),
            None => return Ok(Another::ByPath),
        }
    }
    Err(Errno::LOOP)
}

fn is_no_program(mode: u32) -> bool {
    rustix::fs::FileType::from_raw_mode(mode) != rustix::fs::FileType::RegularFile
}

/// The interpreter that the first line of a script names.
pub(crate) fn script_interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| matches!(byte, b'\n' | 0)).next()?;
    line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn interpreters_are_found_as_the_kernel_does() {
        for (head, want) in [
            (&b"#!/bin/sh\necho"[..], Some(&b"/bin/sh"[..])),
            (b"#! \t/bin/env -S x", Some(b"/bin/env")),
            (b"#!/bin/sh\0/other", Some(b"/bin/sh")),
            (b"#!\n/bin/sh", None),
            (b"#!", None),
            (b"\x7fELF", None),
            (b"", None),
        ] {
            assert_eq!(script_interpreter(head), want, "{head:?}");
        }
    }

    #[test]
    fn a_test_program_is_its_users() {
        assert!(is_changeable());
    }

    #[test]
    fn what_leads_to_this_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        symlink(OWN, at("link")).unwrap();
        symlink("link", at("twice")).unwrap();
        std::fs::write(at("script"), "#!/proc/self/exe\n").unwrap();
        std::fs::write(at("nested"), format!("#! {} x\n", at("script").display())).unwrap();
        std::fs::write(at("endless"), format!("#!{}\n", at("endless").display())).unwrap();
        std::fs::write(at("plain"), "#!/bin/sh\n").unwrap();
        let expect = |path: &[u8]| expect_another(path).map(|another| matches!(another, Another::ByPath));
        let check = |name: &str| expect(at(name).as_os_str().as_bytes());
        for name in ["link", "twice", "script", "nested", "endless"] {
            assert_eq!(check(name), Err(Errno::LOOP), "{name}");
        }
        assert_eq!(expect(b"/proc/thread-self/exe"), Err(Errno::LOOP));
        assert_eq!(check("plain"), Ok(true));
        assert_eq!(check("missing"), Err(Errno::NOENT));
        assert_eq!(expect(b"/"), Ok(true));
    }
}
