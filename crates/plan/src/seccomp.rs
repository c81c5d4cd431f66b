//! The filter of system calls of a runtime-spec document: `config-linux.md`, "Seccomp".
//!
//! Actions, operators, flags and architectures are closed lists: a document with another one is refused
//! when it is read. What needs a process that is asked about each call (`SCMP_ACT_NOTIFY`, `listenerPath`)
//! is not among them. Names of system calls are open: one that no architecture has is passed over.

use serde::{Deserialize, Serialize};

/// The most rules that a filter may have: each needs two instructions at least, of which there can be 4096.
pub const MAX_SECCOMP_RULES: usize = 4096;

/// Which system calls the payload may make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seccomp {
    /// What happens to a call that no rule is about.
    pub default_action: SeccompAction,
    /// The errno of that action.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub default_errno_ret: Option<u32>,
    /// Which architectures' calls can be made at all, beside the machine's own.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub architectures: Vec<SeccompArch>,
    /// How the filter is installed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub flags: Vec<SeccompFlag>,
    /// Rules; the first that fits a call decides.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub syscalls: Vec<SeccompRule>,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompRule {
    /// Their names.
    pub names: Vec<String>,
    /// What happens.
    pub action: SeccompAction,
    /// The errno of that action.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errno_ret: Option<u32>,
    /// What must be so of the arguments. Conditions on different arguments must all be so; of several on one
    /// argument any.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub args: Vec<SeccompArg>,
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompArg {
    /// Which argument, from 0.
    pub index: u32,
    /// What it is compared with; the mask of [`SeccompOperator::MaskedEqual`].
    pub value: u64,
    /// What the masked argument is compared with.
    #[serde(default)]
    pub value_two: u64,
    /// How they are compared.
    pub op: SeccompOperator,
}

/// What happens to a call; seccomp(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompAction {
    /// The thread ends.
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// The process ends.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The thread gets SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// The call fails.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// A tracer decides; without one the call fails with ENOSYS.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// The call is made, and logged.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// The call is made.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

impl SeccompAction {
    /// Whether the action has an errno.
    pub fn has_errno(self) -> bool {
        matches!(self, SeccompAction::Errno | SeccompAction::Trace)
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompOperator {
    /// It is another.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// It is less.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// It is not more.
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// It is the same.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// It is not less.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// It is more.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// What the mask `value` leaves of it is `valueTwo`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// How a filter is installed; seccomp(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompFlag {
    /// In all threads; there is one only.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Calls that do not succeed are logged.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// Speculative store bypass is not switched off.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
}

/// An architecture, by libseccomp's names for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are names")]
pub enum SeccompArch {
    #[serde(rename = "SCMP_ARCH_X86")]
    X86,
    #[serde(rename = "SCMP_ARCH_X86_64")]
    X86_64,
    #[serde(rename = "SCMP_ARCH_X32")]
    X32,
    #[serde(rename = "SCMP_ARCH_ARM")]
    Arm,
    #[serde(rename = "SCMP_ARCH_AARCH64")]
    Aarch64,
    #[serde(rename = "SCMP_ARCH_MIPS")]
    Mips,
    #[serde(rename = "SCMP_ARCH_MIPS64")]
    Mips64,
    #[serde(rename = "SCMP_ARCH_MIPS64N32")]
    Mips64N32,
    #[serde(rename = "SCMP_ARCH_MIPSEL")]
    Mipsel,
    #[serde(rename = "SCMP_ARCH_MIPSEL64")]
    Mipsel64,
    #[serde(rename = "SCMP_ARCH_MIPSEL64N32")]
    Mipsel64N32,
    #[serde(rename = "SCMP_ARCH_PPC")]
    Ppc,
    #[serde(rename = "SCMP_ARCH_PPC64")]
    Ppc64,
    #[serde(rename = "SCMP_ARCH_PPC64LE")]
    Ppc64Le,
    #[serde(rename = "SCMP_ARCH_S390")]
    S390,
    #[serde(rename = "SCMP_ARCH_S390X")]
    S390X,
    #[serde(rename = "SCMP_ARCH_PARISC")]
    Parisc,
    #[serde(rename = "SCMP_ARCH_PARISC64")]
    Parisc64,
    #[serde(rename = "SCMP_ARCH_RISCV64")]
    Riscv64,
    #[serde(rename = "SCMP_ARCH_LOONGARCH64")]
    Loongarch64,
    #[serde(rename = "SCMP_ARCH_M68K")]
    M68k,
    #[serde(rename = "SCMP_ARCH_SH")]
    Sh,
    #[serde(rename = "SCMP_ARCH_SHEB")]
    Sheb,
}
