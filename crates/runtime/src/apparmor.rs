//! Telling AppArmor's restriction of user namespaces from other reasons why there are none.
//!
//! Where `kernel.apparmor_restrict_unprivileged_userns` is 1, a program without a profile that allows it
//! either gets no user namespace or one in which everything is forbidden. The errno is that of many other
//! reasons; the files read here are not.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::{Failure, FailureClass};

/// The longest answer that is read of any file here.
const MAX_ANSWER: usize = 256;

/// Where this program's profile is installed by the package.
const PROFILE: &str = "/etc/apparmor.d/situla";

/// What a failure to make or use a user namespace is about, where `proc` is the mount point of `/proc`:
/// the same failure, or one that names the restriction.
pub(crate) fn explain(failure: Failure, proc: &Path) -> Failure {
    let restricted = read(&proc.join("sys/kernel/apparmor_restrict_unprivileged_userns"));
    let by_module = matches!(failure.errno(), Some(Errno::PERM | Errno::ACCESS));
    match (failure.class(), restricted.as_deref(), failure.errno()) {
        (FailureClass::NoUserNamespaces, Some("1"), Some(errno)) if by_module => {
            // attr/apparmor has it where other modules are loaded as well.
            let current = ["self/attr/apparmor/current", "self/attr/current"];
            let profile = current.iter().find_map(|name| read(&proc.join(name)));
            let profile = profile.unwrap_or_else(|| "unknown".to_owned());
            let program = fs::read_link(proc.join("self/exe")).unwrap_or_default();
            let message = format!(
                "AppArmor keeps {} from using user namespaces: its profile is {profile}, and {PROFILE} is not in force",
                program.display()
            );
            Failure::of_call(FailureClass::AppArmor, message, errno)
        }
        _ => failure,
    }
}

fn read(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(MAX_ANSWER))?).into_owned();
    Some(text.trim_end_matches(['\n', '\0']).to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shipped, what is told and what is documented are about the same files.
    #[test]
    fn the_profile_is_for_the_documented_places() {
        let profile = include_str!("../../../packaging/apparmor/situla");
        let manual = include_str!("../../../docs/administrators/install.md");
        let installed = format!("apparmor/situla {PROFILE}\n");
        assert!(manual.contains(&format!("share/situla/{installed}")), "{installed}");
        assert!(profile.contains(&format!("packaging/{installed}")), "{installed}");
        let line = profile.lines().find_map(|line| line.strip_prefix("@{situla_program} = ")).unwrap();
        let paths: Vec<&str> = line.split(' ').collect();
        assert!(paths.contains(&"/opt/situla/bin/situla"), "where the manual has it installed");
        for path in paths {
            assert!(manual.contains(&format!("`{path}`")), "{path}");
        }
        assert!(profile.contains("profile situla @{situla_program} ") && profile.contains("\n  userns,\n"));
    }

    #[test]
    fn the_restriction_is_named_where_it_is_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        for path in ["sys/kernel", "self/attr/apparmor"] {
            fs::create_dir_all(proc.join(path)).unwrap();
        }
        std::os::unix::fs::symlink("/opt/situla/bin/situla", proc.join("self/exe")).unwrap();
        let sysctl = proc.join("sys/kernel/apparmor_restrict_unprivileged_userns");
        let failure = |class, errno| Failure::of_call(class, "this machine does not let you", errno);
        let explained = |class, errno| explain(failure(class, errno), proc);
        use FailureClass::{AppArmor, MountFailed, NoUserNamespaces};
        // Not there, and switched off.
        for value in [None, Some("0\n")] {
            if let Some(value) = value {
                fs::write(&sysctl, value).unwrap();
            }
            assert_eq!(explained(NoUserNamespaces, Errno::PERM), failure(NoUserNamespaces, Errno::PERM));
        }
        fs::write(&sysctl, "1\n").unwrap();
        for (class, errno, result) in [
            (NoUserNamespaces, Errno::PERM, AppArmor),
            (NoUserNamespaces, Errno::ACCESS, AppArmor),
            // The limit is reached.
            (NoUserNamespaces, Errno::NOSPC, NoUserNamespaces),
            (MountFailed, Errno::PERM, MountFailed),
        ] {
            assert_eq!(explained(class, errno).class(), result, "{class:?} {errno}");
        }
        fs::write(proc.join("self/attr/current"), "unconfined\n").unwrap();
        let message = explained(NoUserNamespaces, Errno::PERM).to_string();
        assert!(message.contains("/opt/situla/bin/situla") && message.contains("is unconfined"), "{message}");
        fs::write(proc.join("self/attr/apparmor/current"), "unprivileged_userns (enforce)\n").unwrap();
        let message = explained(NoUserNamespaces, Errno::PERM).to_string();
        assert!(message.contains("is unprivileged_userns (enforce)"), "{message}");
        assert!(message.contains(PROFILE), "{message}");
    }
}
