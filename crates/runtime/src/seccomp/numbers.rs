//! Numbers of system calls, and which architectures' calls a machine makes.

use std::str::FromStr;

use situla_plan::{SeccompArch, SeccompOperator};

use super::Condition;

/// An architecture whose calls are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    X86,
    X86_64,
    Arm,
    Aarch64,
}

/// What an argument of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// The lower half of what a filter is shown.
    Bits32,
    /// All of it.
    Bits64,
}

/// A call of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// Its number.
    pub(super) number: u32,
    /// Where several calls have one number: what their first argument is like.
    pub(super) selector: Option<Condition>,
}

impl Table {
    /// The architectures that this machine's kernel can have and `listed` has; its own is always among them.
    pub(super) fn of_machine(listed: &[SeccompArch]) -> Vec<Table> {
        let (own, other) = if cfg!(target_arch = "aarch64") {
            (Table::Aarch64, (SeccompArch::Arm, Table::Arm))
        } else {
            (Table::X86_64, (SeccompArch::X86, Table::X86))
        };
        let other = listed.contains(&other.0).then_some(other.1);
        [own].into_iter().chain(other).collect()
    }

    /// How the kernel names it to a filter: linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        // __AUDIT_ARCH_64BIT 0x80000000, __AUDIT_ARCH_LE 0x40000000, and EM_386 3, EM_ARM 40, EM_X86_64 62,
        // EM_AARCH64 183.
        match self {
            Table::X86 => 0x4000_0003,
            Table::X86_64 => 0xc000_003e,
            Table::Arm => 0x4000_0028,
            Table::Aarch64 => 0xc000_00b7,
        }
    }

    /// How wide its arguments are.
    pub(super) fn width(self) -> Width {
        match self {
            Table::X86 | Table::Arm => Width::Bits32,
            Table::X86_64 | Table::Aarch64 => Width::Bits64,
        }
    }

    /// All calls of that name: none where the architecture does not have it.
    pub(super) fn calls(self, name: &str) -> Vec<Call> {
        let number = match self {
            Table::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|call| call.id()),
        };
        let own = number.and_then(|number| u32::try_from(number).ok()).or_else(|| self.missing(name));
        let own = own.map(|number| Call { number, selector: None });
        let shared = (self == Table::X86).then(|| multiplexed(name)).flatten();
        own.into_iter().chain(shared).collect()
    }

    /// Calls that the kernel and profiles have by these names, and the tables of crate `syscalls` do not.
    fn missing(self, name: &str) -> Option<u32> {
        match (self, name) {
            // asm-generic/unistd.h: `__NR_newfstatat`; the table has `fstatat`.
            (Table::Aarch64, "newfstatat") => Some(79),
            // asm/unistd.h of arm: `__NR_sync_file_range2` is `__NR_arm_sync_file_range`.
            (Table::Arm, "sync_file_range2") => Some(341),
            // The same: `__ARM_NR_BASE`, 0x0f0000, and more. No program of 32 bits gets by without `set_tls`.
            (Table::Arm, "breakpoint") => Some(0x000f_0001),
            (Table::Arm, "cacheflush") => Some(0x000f_0002),
            (Table::Arm, "usr26") => Some(0x000f_0003),
            (Table::Arm, "usr32") => Some(0x000f_0004),
            (Table::Arm, "set_tls") => Some(0x000f_0005),
            (Table::Arm, "get_tls") => Some(0x000f_0006),
            _ => None,
        }
    }
}

/// Calls that 32-bit x86 has under one number, with their code in the first argument.
fn multiplexed(name: &str) -> Option<Call> {
    // socketcall(2) and linux/net.h.
    const SOCKETCALL: u32 = 102;
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    // ipc(2) and linux/ipc.h; the upper half of the argument is a version.
    const IPC: u32 = 117;
    const OF_IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    let masked = |value, value_two| {
        Some(Condition { index: 0, operator: SeccompOperator::MaskedEqual, value, value_two })
    };
    if let Some(place) = SOCKET.iter().position(|socket| *socket == name) {
        let code = u64::try_from(place).ok()? + 1;
        return Some(Call { number: SOCKETCALL, selector: masked(u64::from(u32::MAX), code) });
    }
    let (_, code) = OF_IPC.iter().find(|(ipc, _)| *ipc == name)?;
    Some(Call { number: IPC, selector: masked(0xffff, *code) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as the kernel's headers have them, not as a table of ours does.
    #[test]
    fn names_have_the_kernels_numbers() {
        for (table, name, number) in [
            (Table::X86_64, "read", 0),
            (Table::X86_64, "newfstatat", 262),
            (Table::X86_64, "fchmodat2", 452),
            (Table::X86, "fstatat64", 300),
            (Table::X86, "clone3", 435),
            (Table::Aarch64, "newfstatat", 79),
            (Table::Aarch64, "fstat", 80),
            (Table::Aarch64, "openat", 56),
            (Table::Aarch64, "fadvise64", 223),
            (Table::Aarch64, "mmap", 222),
            (Table::Arm, "fstatat64", 327),
            (Table::Arm, "arm_fadvise64_64", 270),
            (Table::Arm, "arm_sync_file_range", 341),
            (Table::Arm, "sync_file_range2", 341),
            (Table::Arm, "breakpoint", 983_041),
            (Table::Arm, "cacheflush", 983_042),
            (Table::Arm, "set_tls", 983_045),
        ] {
            assert_eq!(table.calls(name), [Call { number, selector: None }], "{table:?} {name}");
        }
        for (table, name) in [
            (Table::X86_64, "set_tls"),
            (Table::Aarch64, "set_tls"),
            (Table::Aarch64, "stat"),
            (Table::Arm, "newfstatat"),
            (Table::X86, "no_such_call"),
        ] {
            assert_eq!(table.calls(name), [], "{table:?} {name}");
        }
    }
}
