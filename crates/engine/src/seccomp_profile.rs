//! Filters of system calls in files: `--security seccomp:FILE`.
//!
//! A file holds the filter of a runtime-spec document, or a profile as Docker, Podman and Apptainer have
//! them: the same with rules that hold for some architectures, kernels or capabilities only. Those are
//! decided here, so that the Plan has a plain filter. A key that is not known is refused: a filter that is
//! understood in part protects from nothing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use situla_plan::{Capabilities, Seccomp, SeccompAction, SeccompArch, SeccompArg, SeccompFlag, SeccompRule};

use crate::error::EngineError;

/// The longest file: the largest profile that is passed around has 20 KiB.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: SeccompAction,
    default_errno_ret: Option<u32>,
    /// Its name, as Podman has it.
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Vec<SeccompArch>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<SeccompFlag>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: SeccompArch,
    #[serde(default)]
    sub_architectures: Option<Vec<SeccompArch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: SeccompAction,
    errno_ret: Option<u32>,
    /// Its name, as Podman has it.
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<SeccompArg>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

/// When a rule holds, or does not.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Conditions {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// What the rules of a profile depend on.
#[derive(Debug)]
struct Machine<'a> {
    capabilities: &'a [String],
    kernel: (u32, u32),
}

/// Reads the filter in a file, for a payload with these capabilities.
pub(crate) fn load(path: &Path, capabilities: Option<&Capabilities>) -> Result<Seccomp, EngineError> {
    let bad = |what: String| EngineError::BadOption {
        message: format!("cannot use the filter of system calls {}: {what}", path.display()),
        remedy: "name a seccomp profile in JSON, as the OCI runtime specification or Docker has them"
            .to_owned(),
    };
    let mut text = Vec::new();
    // Nothing is waited for, should it be a FIFO.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let file =
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|errno| bad(errno.to_string()))?;
    File::from(file).take(MAX_FILE + 1).read_to_end(&mut text).map_err(|error| bad(error.to_string()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(bad("it is longer than 1 MiB".to_owned()));
    }
    let uname = rustix::system::uname();
    let machine = Machine {
        capabilities: capabilities.map_or(&[], |sets| &sets.bounding),
        kernel: version(&uname.release().to_string_lossy()).unwrap_or((0, 0)),
    };
    let filter = parse(&text, &machine).map_err(bad)?;
    situla_runtime::check_filter(&filter).map_err(|failure| bad(failure.to_string()))?;
    Ok(filter)
}

fn parse(text: &[u8], machine: &Machine<'_>) -> Result<Seccomp, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err("it has both architectures and archMap".to_owned());
    }
    let mut architectures = profile.architectures;
    let native = if cfg!(target_arch = "aarch64") { SeccompArch::Aarch64 } else { SeccompArch::X86_64 };
    for map in profile.arch_map.into_iter().filter(|map| map.architecture == native) {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures.unwrap_or_default());
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if !holds(&rule, machine)? {
            continue;
        }
        let names = rule.names.into_iter().chain(rule.name).collect();
        let args = rule.args.unwrap_or_default();
        let errno_ret = errno(rule.errno_ret, rule.errno.as_deref())?;
        syscalls.push(SeccompRule { names, action: rule.action, errno_ret, args });
    }
    Ok(Seccomp {
        default_action: profile.default_action,
        default_errno_ret: errno(profile.default_errno_ret, profile.default_errno.as_deref())?,
        architectures,
        flags: profile.flags,
        syscalls,
    })
}

/// Errors that profiles name; linux/errno.h, the same on x86 and Arm.
const ERRNOS: [(&str, u32); 24] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("ESRCH", 3),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EFAULT", 14),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("ENFILE", 23),
    ("EMFILE", 24),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("ENOSYS", 38),
    ("EPROTONOSUPPORT", 93),
    ("ENOTSUP", 95),
    ("EOPNOTSUPP", 95),
    ("EAFNOSUPPORT", 97),
];

/// The errno of an action, which a profile may give as a number, by its name, or both. An empty name is none.
fn errno(number: Option<u32>, name: Option<&str>) -> Result<Option<u32>, String> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(number) };
    let named = ERRNOS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    match (number, named) {
        (None, None) => Err(format!("the errno {name:?} is not known; give its number")),
        (Some(number), Some(named)) if number != named => {
            Err(format!("the errno {name} is {named}, and not {number}"))
        }
        // Which the number says as well.
        (number, named) => Ok(number.or(named)),
    }
}

/// Whether a rule is meant for this machine and payload.
fn holds(rule: &Rule, machine: &Machine<'_>) -> Result<bool, String> {
    // Go's names, which these profiles use.
    let native = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let new_enough = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match version(text) {
            Some(version) => Ok(Some(machine.kernel >= version)),
            None => Err(format!("{text:?} is no version of a kernel")),
        },
    };
    if let Some(includes) = &rule.includes {
        let arch = includes.arches.is_empty() || includes.arches.iter().any(|arch| arch == native);
        let caps = includes.caps.iter().all(|cap| machine.capabilities.contains(cap));
        if !arch || !caps || new_enough(&includes.min_kernel)? == Some(false) {
            return Ok(false);
        }
    }
    if let Some(excludes) = &rule.excludes {
        let arch = excludes.arches.iter().any(|arch| arch == native);
        let caps = excludes.caps.iter().any(|cap| machine.capabilities.contains(cap));
        if arch || caps || new_enough(&excludes.min_kernel)? == Some(true) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.splitn(3, '.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part.get(..digits)?.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: [&str; 1] = ["CAP_SYS_ADMIN"];

    fn names(text: &str, capabilities: &[&str], kernel: (u32, u32)) -> Result<Vec<String>, String> {
        let capabilities: Vec<String> = capabilities.iter().map(|&name| name.to_owned()).collect();
        let filter = parse(text.as_bytes(), &Machine { capabilities: &capabilities, kernel })?;
        Ok(filter.syscalls.into_iter().flat_map(|rule| rule.names).collect())
    }

    #[test]
    fn rules_hold_where_they_say() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "always", "includes": {}, "excludes": {}},
                {"name": "old", "action": "SCMP_ACT_ALLOW"},
                {"names": ["root"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["others"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "errno": "ENOSYS", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.8"}},
                {"names": ["here"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "arm64"]}},
                {"names": ["there"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
                {"names": ["not-here"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64", "arm64"]}}
            ]
        }"#;
        let common = ["read", "write", "old"];
        for (capabilities, kernel, more) in [
            (&[][..], (5, 7), &["others", "here"][..]),
            (&[], (5, 8), &["others", "new", "here"]),
            (&ROOT, (6, 1), &["root", "new", "here"]),
        ] {
            let expected = [&common[..], more].concat();
            assert_eq!(names(text, capabilities, kernel).unwrap(), expected);
        }
        let filter = parse(text.as_bytes(), &Machine { capabilities: &[], kernel: (6, 0) }).unwrap();
        assert_eq!(filter.architectures.len(), if cfg!(target_arch = "aarch64") { 2 } else { 3 });
    }

    /// What the profiles that come with Docker and Podman are made of, each kind of entry once.
    #[test]
    fn profiles_of_other_engines_are_understood() {
        let docker = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}
            ],
            "syscalls": [
                {"names": ["read", "newfstatat", "set_tls"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {
                    "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]
                },
                {
                    "names": ["clone"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}],
                    "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]}
                },
                {
                    "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
                    "excludes": {"caps": ["CAP_SYS_ADMIN"]}
                },
                {"names": ["breakpoint"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm"]}}
            ]
        }"#;
        let podman = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "defaultErrno": "ENOSYS",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                {
                    "names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "args": [], "comment": "",
                    "includes": {}, "excludes": {}, "errnoRet": 1, "errno": "EPERM"
                },
                {
                    "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {},
                    "excludes": {}
                },
                {
                    "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "errno": "EINVAL", "comment": "",
                    "args": [
                        {"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_EQ"},
                        {"index": 2, "value": 9, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
                    ],
                    "includes": {}, "excludes": {"caps": ["CAP_AUDIT_WRITE"]}
                }
            ]
        }"#;
        let machine = Machine { capabilities: &[], kernel: (6, 1) };
        for (text, default, errnos) in [
            (docker, 1, [None, None, None, None, Some(38)].as_slice()),
            (podman, 38, &[Some(1), None, Some(22)]),
        ] {
            let filter = parse(text.as_bytes(), &machine).unwrap();
            assert_eq!(filter.default_errno_ret, Some(default));
            assert_eq!(filter.syscalls.iter().map(|rule| rule.errno_ret).collect::<Vec<_>>(), errnos);
            situla_runtime::check_filter(&filter).unwrap();
        }
    }

    #[test]
    fn an_errno_has_a_number_a_name_or_both() {
        for (number, name, want) in [
            (None, None, Some(None)),
            (Some(38), None, Some(Some(38))),
            (None, Some("ENOSYS"), Some(Some(38))),
            (Some(38), Some("ENOSYS"), Some(Some(38))),
            (Some(5), Some(""), Some(Some(5))),
            (Some(133), Some("EHWPOISON"), Some(Some(133))),
            (Some(1), Some("ENOSYS"), None),
            (None, Some("EHWPOISON"), None),
            (None, Some("38"), None),
        ] {
            assert_eq!(errno(number, name).ok(), want, "{number:?} {name:?}");
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"defaultAction": "ALLOW"}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "unknown": 1}"#,
            r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"]}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "if": 1}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}]}"#,
        ] {
            assert!(names(text, &[], (6, 1)).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        for (content, message) in [
            (None, "No such file"),
            (Some("{".to_owned()), "EOF"),
            (Some(" ".repeat(1 << 21)), "longer than"),
            (Some(r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#.to_owned()), "has no errno"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = load(&path, None).unwrap_err().to_string();
            assert!(error.contains("profile.json") && error.contains(message), "{error}");
        }
    }
}
