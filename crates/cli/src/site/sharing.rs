//! Who sees what lies in a directory: this machine alone, or others too.

use std::path::Path;

use rustix::fs::statfs;

/// Who sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody else, and not for long: what it is.
    Passing(String),
    /// Nobody else: the kind of file system.
    Own(&'static str),
    /// Others too: the kind of file system.
    Shared(&'static str),
    /// It cannot be known.
    Unknown,
}

impl Sharing {
    /// Whether this machine alone sees it, as far as can be known.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Sharing::Own(_) | Sharing::Passing(_))
    }

    /// Of a path, and what there is of it.
    pub(crate) fn of(path: &Path, there: &Path) -> Self {
        if PASSING.iter().any(|place| path.starts_with(place)) {
            return Sharing::Passing("in a directory that every node has for itself".to_owned());
        }
        // The number has 32 bits, sign-extended in the C type.
        let kind = statfs(there).map(|found| u64::from_ne_bytes(found.f_type.to_ne_bytes()) & 0xffff_ffff);
        match kind.ok().and_then(|kind| FILE_SYSTEMS.iter().find(|(number, ..)| *number == kind)) {
            Some((_, kind, None)) => Sharing::Passing(format!("on {kind}: other nodes do not see it")),
            Some((_, kind, Some(false))) => Sharing::Own(kind),
            Some((_, kind, Some(true))) => Sharing::Shared(kind),
            None => Sharing::Unknown,
        }
    }

    /// Of a path that need not be there.
    pub(crate) fn of_future(path: &Path) -> Self {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        Sharing::of(path, there)
    }
}

/// File systems by the number that statfs(2) gives, and who sees them: `None` where that is nobody else, and not
/// for long.
const FILE_SYSTEMS: [(u64, &str, Option<bool>); 14] = [
    (0x0102_1994, "tmpfs", None),
    (0x8584_58f6, "ramfs", None),
    (0xef53, "ext4", Some(false)),
    (0x5846_5342, "xfs", Some(false)),
    (0x9123_683e, "btrfs", Some(false)),
    (0x2fc1_2fc1, "zfs", Some(false)),
    (0x794c_7630, "overlay", Some(false)),
    (0x6969, "nfs", Some(true)),
    (0x0bd0_0bd0, "lustre", Some(true)),
    (0x4750_4653, "gpfs", Some(true)),
    (0x00c3_6400, "ceph", Some(true)),
    (0x1983_0326, "beegfs", Some(true)),
    (0xaad7_aaea, "panfs", Some(true)),
    (0x0102_1997, "9p", Some(true)),
];

/// Directories that belong to one machine, or to one boot.
const PASSING: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_one_machine_is_told_from_others() {
        assert!(Sharing::of_future(Path::new("/run/none/at/all")).is_own());
        assert_eq!(Sharing::of(Path::new("/x"), Path::new("/proc")), Sharing::Unknown);
        assert!(!Sharing::Shared("nfs").is_own() && !Sharing::Unknown.is_own());
    }
}
