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

/// What it is about that a user namespace could not be made or used, which `message` and `errno` tell, where `proc` is
/// the mount point of `/proc`.
///
/// A profile that is in force for this program and has no rule for user namespaces forbids them on a kernel without that
/// restriction as well; but so do other things where such profiles are, a seccomp filter for one, and they have the same
/// errno. It is mentioned, and not called the reason.
pub(crate) fn explain(message: String, errno: Errno, proc: &Path) -> Failure {
    let none = |message| Failure::of_call(FailureClass::NoUserNamespaces, message, errno);
    if !matches!(errno, Errno::PERM | Errno::ACCESS) {
        return none(message);
    }
    // attr/apparmor has it where other modules are loaded as well.
    let current = ["self/attr/apparmor/current", "self/attr/current"];
    let profile = current.iter().find_map(|name| read(&proc.join(name)));
    let restricted = read(&proc.join("sys/kernel/apparmor_restrict_unprivileged_userns"));
    match (restricted.as_deref(), profile) {
        (Some("1"), profile) => {
            let profile = profile.unwrap_or_else(|| "unknown".to_owned());
            let program = fs::read_link(proc.join("self/exe")).unwrap_or_default();
            let message = format!(
                "AppArmor keeps {} from using user namespaces: its profile is {profile}, and {PROFILE} is not in force",
                program.display()
            );
            Failure::of_call(FailureClass::AppArmor, message, errno)
        }
        (_, Some(profile)) if profile.ends_with(" (enforce)") => {
            none(format!("{message}; perhaps AppArmor, whose profile {profile} is in force here"))
        }
        _ => none(message),
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
        let explained = |errno| explain("this machine does not let you".to_owned(), errno, proc);
        use FailureClass::{AppArmor, NoUserNamespaces};
        // Not there, and switched off.
        for value in [None, Some("0\n")] {
            if let Some(value) = value {
                fs::write(&sysctl, value).unwrap();
            }
            let failure = explained(Errno::PERM);
            assert_eq!(failure.class(), NoUserNamespaces);
            assert!(!failure.to_string().contains("AppArmor"), "{failure}");
        }
        // A profile is in force, as in a container of another engine.
        for (profile, mentioned) in
            [("unconfined", false), ("site (complain)", false), ("kernel_t", false), ("site (enforce)", true)]
        {
            fs::write(proc.join("self/attr/current"), format!("{profile}\n")).unwrap();
            for (errno, mentioned) in [(Errno::PERM, mentioned), (Errno::NOSPC, false)] {
                let failure = explained(errno);
                assert_eq!(failure.class(), NoUserNamespaces);
                let told = failure.to_string();
                assert!(told.starts_with("this machine does not let you"), "{told}");
                assert_eq!(told.contains("profile site (enforce)"), mentioned, "{profile}, {errno}: {told}");
            }
        }
        fs::remove_file(proc.join("self/attr/current")).unwrap();
        fs::write(&sysctl, "1\n").unwrap();
        for (errno, result) in [
            (Errno::PERM, AppArmor),
            (Errno::ACCESS, AppArmor),
            // The limit is reached.
            (Errno::NOSPC, NoUserNamespaces),
        ] {
            assert_eq!(explained(errno).class(), result, "{errno}");
        }
        fs::write(proc.join("self/attr/current"), "unconfined\n").unwrap();
        let message = explained(Errno::PERM).to_string();
        assert!(message.contains("/opt/situla/bin/situla") && message.contains("is unconfined"), "{message}");
        fs::write(proc.join("self/attr/apparmor/current"), "unprivileged_userns (enforce)\n").unwrap();
        let message = explained(Errno::PERM).to_string();
        assert!(message.contains("is unprivileged_userns (enforce)"), "{message}");
        assert!(message.contains(PROFILE), "{message}");
    }
}
