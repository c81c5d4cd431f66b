//! Who the payload is inside: the user himself, or root in his place.

use situla_plan::{Capabilities, HostGroup, HostUser, IdMapping, UserSpec};

use crate::host::Host;
use crate::request::RunRequest;

/// What root has in the container's own namespaces, and nowhere else: all capabilities of Linux 5.9
/// (capabilities(7)). A kernel leaves out what it does not know.
const OF_ROOT: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The user as the container knows him.
#[derive(Debug)]
pub(crate) struct Identity {
    /// His account, but for the home directory, which a bind decides.
    pub(crate) account: HostUser,
    /// His groups.
    pub(crate) groups: Vec<HostGroup>,
    /// His ids inside.
    pub(crate) user: UserSpec,
    /// How these ids come about.
    pub(crate) maps: [Vec<IdMapping>; 2],
    /// What he may do to the container's own namespaces.
    pub(crate) capabilities: Option<Capabilities>,
}

/// The id of the user inside.
pub(crate) fn uid_inside(request: &RunRequest, host: &Host) -> u32 {
    if request.root { 0 } else { host.user.uid }
}

/// Decides who the user is inside. An unprivileged process can map one user and one group.
pub(crate) fn identity(request: &RunRequest, host: &Host) -> Identity {
    let (uid, gid) = (host.user.uid, host.user.gid);
    let map = |inside, outside| vec![IdMapping { container_id: inside, host_id: outside, size: 1 }];
    if !request.root {
        return Identity {
            account: host.user.clone(),
            groups: host.groups.clone(),
            user: UserSpec { uid, gid },
            maps: [map(uid, uid), map(gid, gid)],
            capabilities: None,
        };
    }
    let all: Vec<String> = OF_ROOT.map(str::to_owned).to_vec();
    let name = "root".to_owned();
    Identity {
        account: HostUser { name: name.clone(), uid: 0, gid: 0, gecos: name.clone(), ..host.user.clone() },
        groups: vec![HostGroup { name, gid: 0 }],
        user: UserSpec { uid: 0, gid: 0 },
        maps: [map(0, uid), map(0, gid)],
        capabilities: Some(Capabilities {
            bounding: all.clone(),
            permitted: all.clone(),
            effective: all,
            ..Capabilities::default()
        }),
    }
}
