//! Who the payload is inside: the user himself, or root in his place.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use situla_plan::{Capabilities, HostGroup, HostUser, IdMapping, UserSpec};

use crate::error::EngineError;
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
pub(crate) fn identity(request: &RunRequest, host: &Host) -> Result<Identity, EngineError> {
    let (uid, gid) = (host.user.uid, host.user.gid);
    let map = |inside, outside| vec![IdMapping { container_id: inside, host_id: outside, size: 1 }];
    if !request.root {
        return Ok(Identity {
            account: host.user.clone(),
            groups: host.groups.clone(),
            user: UserSpec { uid, gid },
            maps: [map(uid, uid), map(gid, gid)],
            capabilities: None,
        });
    }
    let all: Vec<String> = OF_ROOT.map(str::to_owned).to_vec();
    let name = "root".to_owned();
    let mut maps = [map(0, uid), map(0, gid)];
    if request.subids {
        for (maps, file) in maps.iter_mut().zip(["/etc/subuid", "/etc/subgid"]) {
            maps.extend(subordinate_ids(Path::new(file), host)?);
        }
    }
    Ok(Identity {
        account: HostUser { name: name.clone(), uid: 0, gid: 0, gecos: name.clone(), ..host.user.clone() },
        groups: vec![HostGroup { name, gid: 0 }],
        user: UserSpec { uid: 0, gid: 0 },
        maps,
        capabilities: Some(Capabilities {
            bounding: all.clone(),
            permitted: all.clone(),
            effective: all,
            ..Capabilities::default()
        }),
    })
}

/// The longest file of subordinate ids: one line for each of some ten thousand users.
const MAX_FILE: u64 = 4 << 20;

/// The most ranges that a user has.
const MAX_RANGES: usize = 32;

/// The ids of a user in a file such as `/etc/subuid`, as ids from 1 on.
fn subordinate_ids(file: &Path, host: &Host) -> Result<Vec<IdMapping>, EngineError> {
    let shown = file.display();
    let mut text = Vec::new();
    let read = File::open(file).and_then(|open| open.take(MAX_FILE).read_to_end(&mut text));
    if let Err(error) = read
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(EngineError::BadOption {
            message: format!("cannot read {shown}: {error}"),
            remedy: "leave --subids out, or report it to the administrator".to_owned(),
        });
    }
    let found = ranges(&String::from_utf8_lossy(&text), &host.user.name, host.user.uid);
    if found.is_empty() {
        let option = if file.ends_with("subuid") { "--add-subuids" } else { "--add-subgids" };
        return Err(EngineError::BadOption {
            message: format!("{shown} has no range of ids for {} on {}", host.user.name, host.hostname),
            remedy: format!(
                "the administrator can add one with `usermod {option} FIRST-LAST {}`; or leave --subids out",
                host.user.name
            ),
        });
    }
    Ok(found)
}

/// The ranges of a user in the text of such a file, one after the other from 1 on; subuid(5).
fn ranges(text: &str, name: &str, uid: u32) -> Vec<IdMapping> {
    let uid = uid.to_string();
    let of_user = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.parse::<u32>().ok()?, fields.next()?.trim().parse::<u32>().ok()?);
        (owner == name || owner == uid).then_some(range)
    });
    let mut next = 1_u32;
    let mut found = Vec::new();
    for (host_id, size) in of_user.take(MAX_RANGES) {
        let Some(end) = next.checked_add(size) else { break };
        if size > 0 && host_id.checked_add(size).is_some() {
            found.push(IdMapping { container_id: next, host_id, size });
            next = end;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_user_one_after_the_other() {
        let text =
            "# none\nada:100000:65536\nbob:1:2\n1000:300000:10\nada:x:1\nada:5\nada:7:0\nada:4294967295:9\n";
        let map = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        assert_eq!(ranges(text, "ada", 1000), [map(1, 100_000, 65536), map(65537, 300_000, 10)]);
        assert_eq!(ranges(text, "bob", 1001), [map(1, 1, 2)]);
        assert_eq!(ranges(text, "eve", 1002), []);
    }
}
