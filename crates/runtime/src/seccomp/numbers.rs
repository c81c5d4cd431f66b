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

    /// All calls of that name: none where the architecture does not have it.
    pub(super) fn calls(self, name: &str) -> Vec<Call> {
        let number = match self {
            Table::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|call| call.id()),
            Table::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|call| call.id()),
        };
        let own = number.and_then(|number| u32::try_from(number).ok());
        let own = own.map(|number| Call { number, selector: None });
        let shared = (self == Table::X86).then(|| multiplexed(name)).flatten();
        own.into_iter().chain(shared).collect()
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
