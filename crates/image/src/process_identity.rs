//! What tells a process from another one that has its number later, or on another machine.

use std::fs;
use std::sync::OnceLock;

use situla_oci::Digest;

/// Hexadecimal digits of each part of a [`realm_name`]: enough to tell machines of a site apart, with few in a name.
const REALM_DIGITS: usize = 8;

/// Names the set of processes among which numbers are unique: this boot of this machine, and this PID namespace.
/// Each is empty where it cannot be told.
#[must_use]
pub fn realm() -> (String, String) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    (boot.trim().to_owned(), namespace.to_string_lossy().into_owned())
}

/// The realm of this process in file names, where several machines may make files in one directory: eight digits
/// for the boot, and eight for the PID namespace together with the host's name. No part is empty.
pub(crate) fn realm_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let (boot, namespace) = realm();
        let host = host_name();
        // Without /proc the host's name has to do for the boot.
        let boot = if boot.is_empty() { host.clone() } else { boot };
        let short = |text: String| {
            Digest::sha256(text.as_bytes()).hex().chars().take(REALM_DIGITS).collect::<String>()
        };
        format!("{}{}", short(boot), short(format!("{namespace} {host}")))
    })
}

/// The part of a [`realm_name`] that tells boots apart.
pub(crate) fn boot_of(realm_name: &str) -> &str {
    realm_name.get(..REALM_DIGITS).unwrap_or(realm_name)
}

/// The name of this host.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The moment at which a process began, in clock ticks since boot: field 22 of `/proc/PID/stat`, see
/// proc_pid_stat(5). `None` where there is no such process, or a zombie.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name may hold anything; fields are counted from its closing bracket.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 3 is gone already.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_realm_has_a_name_that_stays() {
        let name = realm_name();
        assert_eq!((name.len(), boot_of(name).len()), (16, 8));
        assert!(name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        assert_eq!(name, realm_name());
    }

    #[test]
    fn start_times_are_found_behind_any_name() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 99 98\n")
        };
        assert_eq!(parse_start_time(&stat("sh", "S")), Some(4711));
        assert_eq!(parse_start_time(&stat("a) R 1 (b", "R")), Some(4711));
        assert_eq!(parse_start_time(&stat("sh", "Z")), None);
        assert_eq!(parse_start_time("7 (sh) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }
}
