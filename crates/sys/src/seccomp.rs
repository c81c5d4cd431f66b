//! Refusing system calls to this process and all that come of it: seccomp(2) with a filter.

use rustix::io::Errno;

use crate::checked;

/// A system call, by its number on this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall(libc::c_long);

impl SystemCall {
    /// close_range(2)
    pub const CLOSE_RANGE: SystemCall = SystemCall(libc::SYS_close_range);
    /// fsopen(2)
    pub const FSOPEN: SystemCall = SystemCall(libc::SYS_fsopen);
    /// mount(2)
    pub const MOUNT: SystemCall = SystemCall(libc::SYS_mount);
    /// move_mount(2)
    pub const MOVE_MOUNT: SystemCall = SystemCall(libc::SYS_move_mount);
    /// mount_setattr(2)
    pub const MOUNT_SETATTR: SystemCall = SystemCall(libc::SYS_mount_setattr);
    /// open_tree(2)
    pub const OPEN_TREE: SystemCall = SystemCall(libc::SYS_open_tree);
    /// openat2(2)
    pub const OPENAT2: SystemCall = SystemCall(libc::SYS_openat2);
    /// pivot_root(2)
    pub const PIVOT_ROOT: SystemCall = SystemCall(libc::SYS_pivot_root);

    /// The system call of that name; `None` for one that is not listed here.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "close_range" => Self::CLOSE_RANGE,
            "fsopen" => Self::FSOPEN,
            "mount" => Self::MOUNT,
            "move_mount" => Self::MOVE_MOUNT,
            "mount_setattr" => Self::MOUNT_SETATTR,
            "open_tree" => Self::OPEN_TREE,
            "openat2" => Self::OPENAT2,
            "pivot_root" => Self::PIVOT_ROOT,
            _ => return None,
        })
    }
}

/// The most calls in one filter: a jump inside it has one byte.
const MAX_CALLS: usize = 200;

/// Lets `calls` fail with `errno` from now on, for this process, its children and whatever they
/// execute. It cannot be undone, and no program gains privileges any more (`PR_SET_NO_NEW_PRIVS`).
pub fn refuse_calls(calls: &[SystemCall], errno: Errno) -> Result<(), Errno> {
    // #define BPF_LD 0x00, BPF_W 0x00, BPF_ABS 0x20; BPF_JMP 0x05, BPF_JEQ 0x10; BPF_RET 0x06
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // #define SECCOMP_RET_ERRNO 0x00050000U, SECCOMP_RET_ALLOW 0x7fff0000U
    const REFUSE: u32 = 0x0005_0000;
    const ALLOW: u32 = 0x7fff_0000;
    if calls.len() > MAX_CALLS {
        return Err(Errno::INVAL);
    }
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number is the first word of `struct seccomp_data`.
    let mut program = vec![instruction(LOAD, 0, 0, 0)];
    for (done, call) in calls.iter().enumerate() {
        let number = u32::try_from(call.0).map_err(|_| Errno::INVAL)?;
        let to_refusal = u8::try_from(calls.len() - done).map_err(|_| Errno::INVAL)?;
        program.push(instruction(JUMP_IF_EQUAL, to_refusal, 0, number));
    }
    program.push(instruction(RETURN, 0, 0, ALLOW));
    let errno = u32::try_from(errno.raw_os_error()).map_err(|_| Errno::INVAL)?;
    program.push(instruction(RETURN, 0, 0, REFUSE | errno));
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the kernel reads `len` instructions from the vector, which outlives the call.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })
        .map(|_| ())
}
