//! Refusing system calls to this process and all that come of it: seccomp(2) with a filter.

use rustix::io::Errno;

/// A system call, by its number on this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall(libc::c_long);

impl SystemCall {
    /// clone3(2), by which the C library starts threads
    pub const CLONE3: SystemCall = SystemCall(libc::SYS_clone3);
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
            "clone3" => Self::CLONE3,
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

/// An instruction of a filter; `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// How many instructions are left out where a comparison holds.
    pub jump_true: u8,
    /// How many are where it does not.
    pub jump_false: u8,
    /// A number, an offset or a distance.
    pub value: u32,
}

/// How a filter is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterFlags {
    /// What it does not let succeed is logged: `SECCOMP_FILTER_FLAG_LOG`, Linux 4.14.
    pub log: bool,
    /// It does not switch speculative store bypass off: `SECCOMP_FILTER_FLAG_SPEC_ALLOW`, Linux 4.17.
    pub spec_allow: bool,
}

/// Installs a filter for this process, its children and whatever they execute. It cannot be undone. Without
/// `CAP_SYS_ADMIN` it needs `PR_SET_NO_NEW_PRIVS` (`EACCES`). The kernel checks the program (`EINVAL`).
pub fn install_filter(program: &[Instruction], flags: FilterFlags) -> Result<(), Errno> {
    // #define SECCOMP_SET_MODE_FILTER 1
    const SET_MODE_FILTER: libc::c_uint = 1;
    let mut program: Vec<libc::sock_filter> = program
        .iter()
        .map(|one| libc::sock_filter { code: one.code, jt: one.jump_true, jf: one.jump_false, k: one.value })
        .collect();
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SECCOMP_FILTER_FLAG_LOG (1UL << 1), SECCOMP_FILTER_FLAG_SPEC_ALLOW (1UL << 2)
    let flags = (libc::c_uint::from(flags.log) << 1) | (libc::c_uint::from(flags.spec_allow) << 2);
    // SAFETY: the kernel reads `len` instructions from the vector, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const filter) };
    if result == -1 { Err(crate::last_errno()) } else { Ok(()) }
}

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
    let instruction = |code, jump_true, value| Instruction { code, jump_true, jump_false: 0, value };
    // The number is the first word of `struct seccomp_data`.
    let mut program = vec![instruction(LOAD, 0, 0)];
    for (done, call) in calls.iter().enumerate() {
        let number = u32::try_from(call.0).map_err(|_| Errno::INVAL)?;
        let to_refusal = u8::try_from(calls.len() - done).map_err(|_| Errno::INVAL)?;
        program.push(instruction(JUMP_IF_EQUAL, to_refusal, number));
    }
    program.push(instruction(RETURN, 0, ALLOW));
    let errno = u32::try_from(errno.raw_os_error()).map_err(|_| Errno::INVAL)?;
    program.push(instruction(RETURN, 0, REFUSE | errno));
    rustix::thread::set_no_new_privs(true)?;
    install_filter(&program, FilterFlags::default())
}
