//! What is wrong with an installation, or with the machine that it is on, and what to do about it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde_json::{Value, json};
use situla_engine::{Site, site_places, untrusted};

use super::manifest::{Entry, Manifest};
use super::plugin_file::{self, MAX_PLUGIN};
use super::rivals::{self, Srun};
use super::root::Root;
use super::sharing::Sharing;
use super::slurm::Slurm;
use super::stack::{Line, SETTINGS, Stack, takes};
use super::steps::{Found, look};
use crate::task::PROTOCOLS;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Good,
    /// Something will not work, or might not.
    Warning,
    /// Containers do not start, or steps of everybody fail.
    Problem,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Good => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Which check, for programs.
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    pub(crate) message: String,
    /// What to do; empty where nothing is wrong.
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn to_json(&self) -> Value {
        json!({ "check": self.check, "level": self.level.name(), "message": self.message, "remedy": self.remedy })
    }
}

/// Findings, as they come.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    fn good(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Level::Good, message, "");
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Level::Warning, message, remedy);
    }

    fn bad(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Level::Problem, message, remedy);
    }

    fn add(
        &mut self,
        check: &'static str,
        level: Level,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Finding { check, level, message: message.into(), remedy: remedy.into() });
    }
}

/// The machine: what containers need of it, whatever is installed.
pub(crate) fn machine(root: &Root, slurm: &Slurm, findings: &mut Findings) {
    match slurm.versions.as_slice() {
        [] => findings.bad(
            "slurm",
            "no Slurm answers here: neither slurmd -V nor scontrol --version",
            "install Slurm first, or say --slurm-version",
        ),
        [(who, first), rest @ ..] => match rest.iter().find(|(_, version)| !version.fits(*first)) {
            Some((other, version)) => findings.bad(
                "slurm",
                format!("{who} is {first} and {other} is {version}: a plugin fits one of them"),
                "upgrade both",
            ),
            None => findings.good("slurm", format!("{who} is {first}")),
        },
    }
    if slurm.source.is_none() {
        findings.warn(
            "configuration",
            format!(
                "no configuration of Slurm can be read; {} is taken for the plugin stack",
                slurm.stack.display()
            ),
            "set SLURM_CONF, or say --plugstack",
        );
    }
    match slurm.proctrack.as_deref() {
        Some("cgroup") => findings.good("proctrack", "Slurm keeps track of processes by control groups"),
        Some(other) => findings.warn(
            "proctrack",
            format!("Slurm keeps track of processes by {other}, which loses those that leave their session"),
            "ProctrackType=proctrack/cgroup in slurm.conf",
        ),
        None => {}
    }
    if !root.is_machine() {
        return;
    }
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        findings.bad(
            "user-namespaces",
            "user.max_user_namespaces is 0",
            "sysctl user.max_user_namespaces=15000",
        );
    } else if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        findings.bad(
            "user-namespaces",
            "kernel.unprivileged_userns_clone is 0",
            "sysctl kernel.unprivileged_userns_clone=1",
        );
    } else if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        findings.warn(
            "user-namespaces",
            "AppArmor lets only programs with a profile use user namespaces",
            "put share/situla/apparmor/situla in force, see docs/administrators/install.md",
        );
    } else {
        findings.good("user-namespaces", "users may make user namespaces");
    }
    const BY_ALL: u32 = 0o006;
    match fs::metadata("/dev/fuse") {
        Ok(device) if !device.file_type().is_char_device() => {
            findings.bad("fuse", "/dev/fuse is no device", "modprobe fuse, and let udev make it");
        }
        Ok(device) if device.mode() & BY_ALL != BY_ALL => {
            findings.bad("fuse", "users may not open /dev/fuse", "chmod 0666 /dev/fuse");
        }
        Ok(_) => findings.good("fuse", "users may open /dev/fuse"),
        Err(error) => findings.bad(
            "fuse",
            format!("/dev/fuse cannot be looked at: {error}"),
            "modprobe fuse; until then, way = \"auto\" in site.toml extracts images",
        ),
    }
    let is_there = |path: &str| Path::new(path).exists();
    match (is_there("/etc/subuid") && is_there("/etc/subgid"), is_there("/usr/bin/newuidmap")) {
        (true, true) => findings.good("subordinate-ids", "there are newuidmap and ranges for --subids"),
        (ranges, _) => findings.warn(
            "subordinate-ids",
            format!(
                "--subids does not work: {} missing",
                if ranges { "newuidmap is" } else { "/etc/subuid or /etc/subgid is" }
            ),
            "install uidmap and give users ranges, if somebody needs it",
        ),
    }
}

/// Where the plugin stack is from.
pub(crate) fn configuration(root: &Root, slurm: &Slurm, findings: &mut Findings) {
    const CHECK: &str = "configless";
    if slurm.hands_out {
        let file = slurm.stack.display();
        findings.good(CHECK, format!("{file} is handed to machines without a configuration of their own"));
    }
    let Some(copy) = &slurm.copy else { return };
    match &copy.beside {
        None => findings.good(
            CHECK,
            format!("this machine has its configuration from the controller: its plugin stack is {}", copy.place()),
        ),
        Some(beside) => findings.warn(
            CHECK,
            format!(
                "slurmd has its configuration from the controller, and srun takes {}: the first reads {}, the other {}",
                beside.display(),
                copy.place(),
                slurm.stack.display()
            ),
            format!("remove {}, or have the plugin's line in both", beside.display()),
        ),
    }
    // What slurmd reads, where that is not what srun does.
    let Some(directory) = copy.directory.as_ref().filter(|_| copy.beside.is_some()) else { return };
    let stack = directory.join("plugstack.conf");
    if Stack::read(root, &stack).is_ok_and(|stack| stack.ours().next().is_none()) {
        findings.bad(
            "plugstack",
            format!("{} loads no plugin of ours: steps for containers run on the host here", stack.display()),
            format!("add the line to {}", copy.place()),
        );
    }
}

/// The place where something is to be installed, before it is there.
pub(crate) fn place(root: &Root, prefix: &Path, findings: &mut Findings) {
    let there = prefix.ancestors().find(|path| root.has(path)).unwrap_or(Path::new("/"));
    owners(root, "prefix-permissions", there, findings);
    for below in ["bin", "lib", "etc/situla", "share/situla"].map(|name| prefix.join(name)) {
        if root.has(&below) {
            owners(root, "prefix-permissions", &below, findings);
        }
    }
    if root.is_machine() {
        file_system(prefix, there, findings);
    }
}

/// The installation that the plugin stack names.
pub(crate) fn installation(
    root: &Root,
    slurm: &Slurm,
    stack: Result<Stack, String>,
    manifest: Option<&Manifest>,
    findings: &mut Findings,
) {
    let stack = match stack {
        Ok(stack) => stack,
        Err(error) => return findings.bad("plugstack", error, "mend the file"),
    };
    let ours: Vec<&Line> = stack.ours().collect();
    if ours.is_empty() {
        let file = stack.file.display();
        findings.bad(
            "plugstack",
            format!("{file} loads no plugin of ours: options of containers are unknown, and a step that was submitted with them elsewhere runs on the host"),
            slurm.copy.as_ref().map_or_else(
                || "situla site install".to_owned(),
                |copy| format!("add the line to {}, which `situla site install` shows", copy.place()),
            ),
        );
    }
    let srun = match ours.is_empty() {
        true => Srun::Silent,
        false => Srun::ask(root),
    };
    for (index, line) in ours.iter().enumerate() {
        look_at_line(root, &ours[..index], line, findings);
        options(root, slurm, &stack, line, &srun, findings);
        plugin(root, slurm, line, findings);
        if let Some(trampoline) = line.setting("trampoline") {
            self::trampoline(root, Path::new(trampoline), line, findings);
        }
    }
    for (path, entry) in manifest.into_iter().flat_map(|manifest| &manifest.entries) {
        let changed = match (entry, look(root, path)) {
            (_, Err(error)) => Some(error),
            (_, Ok(Found::Nothing)) => Some(format!("{} is missing", path.display())),
            // Settings are there to be changed.
            _ if path.extension().is_some_and(|end| end == "toml" || end == "conf") => None,
            (Entry::File(digests), Ok(Found::File { digest, .. })) if digests.contains(&digest) => None,
            (Entry::Link(target), Ok(Found::Link(found))) if *target == found => None,
            _ => Some(format!("{} is not what was installed", path.display())),
        };
        if let Some(changed) = changed {
            findings.warn("files", changed, "situla site install");
        }
    }
}

fn look_at_line(root: &Root, before: &[&Line], line: &Line, findings: &mut Findings) {
    let place = line.place();
    if line.is_optional {
        findings.bad(
            "plugstack",
            format!("{place} makes the plugin optional: where it fails, tasks run on the host"),
            "write `required` there",
        );
    }
    let known = |word: &&String| {
        word.split_once('=').is_some_and(|(name, value)| SETTINGS.contains(&name) && takes(name, value))
    };
    for word in line.arguments.iter().filter(|word| !known(word)) {
        findings.bad(
            "plugstack",
            format!("{place} has {word}, which the plugin does not understand: every container is refused"),
            "take it out, or mend it",
        );
    }
    if line.setting("trampoline").is_none() {
        findings.bad(
            "plugstack",
            format!("{place} names no trampoline: every container is refused"),
            "add trampoline=PATH",
        );
    }
    if let Some(other) = before.iter().find(|other| other.prefix() == line.prefix()) {
        findings.bad(
            "plugstack",
            format!(
                "{} and {place} load plugins with the same options: each goes to one of them",
                other.place()
            ),
            "prefix=WORD for one of them, or one line less",
        );
    }
    if let Some(switch) = line.setting("disabled")
        && root.place(Path::new(switch)).is_ok_and(|place| place.symlink_metadata().is_ok())
    {
        findings.warn(
            "switch",
            format!("containers are switched off: {switch} exists"),
            format!("rm {switch}"),
        );
    }
    if findings.0.iter().all(|finding| finding.check != "plugstack") {
        findings.good("plugstack", format!("{place} loads {}", line.plugin.display()));
    }
}

/// Whether srun has our options, and from us.
fn options(root: &Root, slurm: &Slurm, stack: &Stack, line: &Line, srun: &Srun, findings: &mut Findings) {
    let place = line.place();
    const REMEDY: &str = "prefix=WORD for one of them, or one line less";
    let prefix = line.prefix();
    match srun {
        Srun::Fails(error) => findings.bad(
            "options",
            format!("srun does not start, for anybody: {error}"),
            format!("mend that; until then take {place} out"),
        ),
        Srun::Has { .. } => match (srun.twice(prefix), srun.option(prefix)) {
            (Some(twice), _) => {
                let [one, other] = &twice.plugins;
                findings.bad(
                    "options",
                    format!(
                        "{one} and {other} have the same options, such as --{}: each goes to one of them",
                        twice.option
                    ),
                    REMEDY,
                );
            }
            (None, Some(option)) => findings.good("options", format!("srun has --{option} and the others")),
            (None, None) => findings.bad(
                "options",
                format!("srun has no option --{prefix}-image, although {place} loads the plugin"),
                "see whether srun reads another plugstack.conf (SLURM_CONF)",
            ),
        },
        // Its file may have the name of an option for another purpose.
        Srun::Silent => {
            if let Some(rivals::Rival { line: other, option }) = rivals::rival(root, slurm, stack, prefix) {
                let message = format!(
                    "{} and {place} load plugins with the same options, such as --{option}: each goes to one of them",
                    other.place()
                );
                findings.warn("options", message, REMEDY);
            }
        }
    }
}

fn plugin(root: &Root, slurm: &Slurm, line: &Line, findings: &mut Findings) {
    let path = rivals::file_of(root, slurm, line);
    let name = path.display();
    const REINSTALL: &str = "situla site install";
    let bytes = match root.follow(&path).and_then(|place| place.metadata()) {
        Ok(file) if file.len() > MAX_PLUGIN => Err("it is too large for one".to_owned()),
        Ok(_) => root.read(&path).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => {
            let message =
                format!("the plugin {name} cannot be read, so every srun, sbatch and salloc fails: {error}");
            return findings.bad("plugin", message, REINSTALL);
        }
    };
    let Some(facts) = plugin_file::facts(&bytes) else {
        let message = format!("{name} is no plugin of Slurm, so every srun, sbatch and salloc fails");
        return findings.bad("plugin", message, REINSTALL);
    };
    match slurm.versions.iter().find(|(_, version)| !version.fits(facts.slurm)) {
        Some((who, version)) => findings.bad(
            "plugin",
            format!(
                "the plugin {name} was built for {} and {who} is {}: every srun, sbatch and salloc would fail",
                facts.slurm.release(),
                version.release()
            ),
            format!(
                "build one (SITULA_SLURM_VERSION={} cargo xtask dist), and `situla site install` it; until then take {} out",
                version.release(),
                line.place()
            ),
        ),
        None if slurm.versions.is_empty() => {}
        None => findings.good("plugin", format!("{name} is for Slurm {}", facts.slurm.release())),
    }
    if !PROTOCOLS.contains(&facts.protocol) {
        findings.bad(
            "protocol",
            format!(
                "the plugin {name} speaks protocol {}, and this program knows {} to {}: every container is refused",
                facts.protocol,
                PROTOCOLS.start(),
                PROTOCOLS.end()
            ),
            "install plugin and program of one release: situla site install",
        );
    } else {
        findings.good(
            "protocol",
            format!("the plugin speaks protocol {}, which this program knows", facts.protocol),
        );
    }
    owners(root, "plugin-permissions", &path, findings);
}

/// The program that tasks become, and where it lies.
fn trampoline(root: &Root, path: &Path, line: &Line, findings: &mut Findings) {
    const BY_ALL: u32 = 0o005;
    match root.follow(path).and_then(|place| place.metadata()) {
        Err(error) => {
            let message = format!("the trampoline {} cannot be used: {error}", path.display());
            return findings.bad("trampoline", message, "situla site install");
        }
        Ok(file) if !file.is_file() || file.mode() & BY_ALL != BY_ALL => {
            let message = format!("users may not execute the trampoline {}", path.display());
            findings.bad("trampoline", message, format!("chmod 755 {}", path.display()));
        }
        Ok(_) => findings.good("trampoline", format!("{} can be executed", path.display())),
    }
    owners(root, "trampoline-permissions", path, findings);
    if root.is_machine() {
        file_system(path, path, findings);
    }
    let named = line.setting("config").map(Path::new);
    // The program would look at this machine's files, not the tree's.
    if root.is_machine() {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match Site::load(&real, named) {
            Err(error) => findings.bad(
                "site-files",
                error.to_string(),
                "mend the file: until then every container is refused",
            ),
            Ok(_) => {
                let of = |name| site_places(&real, name).into_iter().find(|path| path.exists());
                let files = [named.map(PathBuf::from).or_else(|| of("site.toml")), of("policy.toml")];
                let files: Vec<String> =
                    files.into_iter().flatten().map(|path| path.display().to_string()).collect();
                let files = if files.is_empty() { "there are none".to_owned() } else { files.join(", ") };
                findings.good("site-files", format!("settings and policy: {files}"));
            }
        }
    }
}

/// Whether somebody else than root could put another file there: it runs as every user, or in slurmstepd as root.
fn owners(root: &Root, check: &'static str, path: &Path, findings: &mut Findings) {
    if !root.is_machine() {
        return;
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    for (index, part) in real.ancestors().enumerate() {
        let Ok(found) = fs::metadata(part) else { continue };
        if let Some(why) = untrusted(found.uid(), found.mode(), index > 0) {
            let remedy = format!("chown root:root {0}; chmod go-w {0}", part.display());
            return findings.bad(check, format!("{} is not safe: {why}", part.display()), remedy);
        }
    }
    findings.good(check, format!("nobody but root can change {}", path.display()));
}

/// `there` is `path`, or what is there of it.
fn file_system(path: &Path, there: &Path, findings: &mut Findings) {
    const CHECK: &str = "file-system";
    let (name, remedy) = (path.display(), "install below a prefix that every node sees: --prefix DIR");
    if statvfs(there).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC)) {
        return findings.bad(
            CHECK,
            format!("{name} is on a file system that is mounted noexec"),
            "mount it without",
        );
    }
    match Sharing::of(path, there) {
        Sharing::Passing(what) => findings.bad(CHECK, format!("{name} is {what}"), remedy),
        Sharing::Own(kind) => findings.good(
            CHECK,
            format!("{name} is on {kind}: every node and submit host needs an installation of its own"),
        ),
        Sharing::Shared(kind) => findings.good(CHECK, format!("{name} is on {kind}, which nodes share")),
        Sharing::Unknown => findings.warn(
            CHECK,
            format!("whether other nodes see {name} cannot be known"),
            "look there for it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::plugin_file::tests::library;
    use crate::site::slurm::Version;

    /// What is found in a tree with a plugin of these numbers and a stack of these lines, by a Slurm of this version.
    fn found(lines: &str, plugin_of: Option<(u32, u32)>, version: &str) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        for part in ["etc/slurm", "p/lib", "p/bin"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        fs::write(dir.path().join("etc/slurm/plugstack.conf"), lines).unwrap();
        if let Some((version, protocol)) = plugin_of {
            let symbols = [("plugin_version", version), ("situla_protocol", protocol)];
            fs::write(dir.path().join("p/lib/spank_situla.so"), library(&symbols)).unwrap();
        }
        fs::write(dir.path().join("p/lib/engine.so"), b"\x7fELF\0environment\0").unwrap();
        fs::copy("/bin/sh", dir.path().join("p/bin/situla")).unwrap();
        let root = Root::tree(dir.path()).unwrap();
        let slurm = Slurm {
            versions: vec![("slurmd".to_owned(), Version::parse(version).unwrap())],
            stack: "/etc/slurm/plugstack.conf".into(),
            ..Slurm::default()
        };
        let mut findings = Findings::default();
        installation(&root, &slurm, Stack::read(&root, &slurm.stack), None, &mut findings);
        findings.0
    }

    fn bad(findings: &[Finding]) -> Vec<String> {
        let bad = findings.iter().filter(|finding| finding.level != Level::Good);
        bad.map(|finding| format!("{}: {}; {}", finding.check, finding.message, finding.remedy)).collect()
    }

    const LINE: &str = "required /p/lib/spank_situla.so trampoline=/p/bin/situla\n";
    const SLURM: u32 = 0x16_0500;

    #[test]
    fn nothing_is_wrong_where_all_fits() {
        let findings = found(LINE, Some((SLURM, *PROTOCOLS.end())), "22.05.8");
        assert_eq!(bad(&findings), [""; 0]);
        let checks: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["plugstack", "plugin", "protocol", "trampoline"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let next = *PROTOCOLS.end() + 1;
        let with = |more: &str| LINE.replace('\n', more);
        for (lines, plugin, version, told) in [
            (
                LINE,
                Some((SLURM, 1)),
                "23.11.4",
                &[
                    "plugin:",
                    "was built for 22.05 and slurmd is 23.11",
                    "SITULA_SLURM_VERSION=23.11",
                    "line 1 of",
                ][..],
            ),
            (LINE, Some((SLURM, next)), "22.05.8", &["protocol:", &format!("speaks protocol {next}")]),
            (LINE, None, "22.05.8", &["plugin:", "cannot be read"]),
            ("", None, "22.05.8", &["plugstack:", "loads no plugin of ours"]),
            (
                &LINE.replace("required", "optional"),
                Some((SLURM, 1)),
                "22.05.8",
                &["optional", "write `required`"],
            ),
            (
                &with(" colour=red\n"),
                Some((SLURM, 1)),
                "22.05.8",
                &["colour=red, which the plugin does not understand"],
            ),
            (&with(" prefix=Box\n"), Some((SLURM, 1)), "22.05.8", &["prefix=Box, which the plugin does not"]),
            (
                &with(" disabled=/p/bin\n"),
                Some((SLURM, 1)),
                "22.05.8",
                &["switched off: /p/bin exists", "rm /p/bin"],
            ),
            (&LINE.repeat(2), Some((SLURM, 1)), "22.05.8", &["the same options"]),
            (
                &format!("optional /p/lib/engine.so\n{LINE}"),
                Some((SLURM, 1)),
                "22.05.8",
                &["line 1 of", "the same options, such as --environment", "prefix="],
            ),
            (
                &format!("required spank_pyxis.so\n{LINE}"),
                Some((SLURM, 1)),
                "22.05.8",
                &["the same options", "prefix="],
            ),
            ("required /p/lib/spank_situla.so\n", Some((SLURM, 1)), "22.05.8", &["names no trampoline"]),
            (
                &LINE.replace("bin/situla", "bin/none"),
                Some((SLURM, 1)),
                "22.05.8",
                &["trampoline:", "/p/bin/none"],
            ),
        ] {
            let bad = bad(&found(lines, plugin, version));
            let [only] = bad.as_slice() else { panic!("{lines}: {bad:?}") };
            for told in told {
                assert!(only.contains(told), "{lines}: {only}");
            }
        }
    }

    #[test]
    fn the_settings_are_those_of_the_plugin() {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spank/src/options.rs");
        let text = fs::read_to_string(place).unwrap();
        let body = text.split_once("fn take(&mut self, argument: &str)").unwrap().1;
        let body = body.split_once("Ok(())\n    }\n").unwrap().0;
        let arms =
            body.lines().map(str::trim_start).filter_map(|line| line.strip_prefix('"')?.split_once('"'));
        let mut names: Vec<&str> =
            arms.map(|(name, _)| name).filter(|name| !["0", "{argument}"].contains(name)).collect();
        names.sort_unstable();
        let mut known = SETTINGS;
        known.sort_unstable();
        assert_eq!(names, known);
    }
}
