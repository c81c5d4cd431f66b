//! The binds that Apptainer makes without being asked.
//!
//! A function of facts about the host. What is left out is reported too, since "why is my directory
//! not there" is the commoner question.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bind::{BindRequest, BindSource, Origin, Skipped};

/// Working directories that are never bound: the image has its own.
const CWD_NEVER: &[&str] = &["/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64"];

/// Trees in which a working directory is never bound.
const CWD_NEVER_BELOW: &[&str] = &["/sys", "/proc", "/dev"];

/// What the host looks like to the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The user, as he will be inside.
    pub uid: u32,
    /// Home directory from the account database.
    pub home: Option<PathBuf>,
    /// Working directory, as the shell shows it.
    pub cwd: Option<PathBuf>,
    /// Which of the paths asked about exist: see [`HostFacts::paths_of_interest`].
    pub existing: BTreeSet<PathBuf>,
    /// Where those lead that are, or pass through, symbolic links. A path not listed is real.
    pub resolved: BTreeMap<PathBuf, PathBuf>,
}

impl HostFacts {
    /// Lists the paths whose existence and resolution matter.
    pub fn paths_of_interest(home: Option<&Path>, cwd: Option<&Path>) -> Vec<PathBuf> {
        let fixed =
            ["/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/etc/hosts", "/etc/localtime", "/etc/resolv.conf"];
        fixed
            .iter()
            .map(PathBuf::from)
            .chain(home.map(Path::to_owned))
            .chain(cwd.map(Path::to_owned))
            .collect()
    }

    fn exists(&self, path: &Path) -> bool {
        self.existing.contains(path)
    }

    fn real<'a>(&'a self, path: &'a Path) -> &'a Path {
        self.resolved.get(path).map_or(path, PathBuf::as_path)
    }
}

/// A default that can be switched off (`--no-mount`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoMount {
    /// `/proc`.
    Proc,
    /// `/sys`.
    Sys,
    /// `/dev`.
    Dev,
    /// The home directory.
    Home,
    /// `/tmp` and `/var/tmp`.
    Tmp,
    /// The working directory.
    Cwd,
    /// `/etc/hosts` and `/etc/localtime`.
    BindPaths,
    /// `/etc/hosts`.
    Hosts,
    /// `/etc/localtime`.
    Localtime,
    /// `/etc/resolv.conf`.
    ResolvConf,
}

impl NoMount {
    /// Reads a word of `--no-mount`; Apptainer only warns about words it does not know.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "proc" => Self::Proc,
            "sys" => Self::Sys,
            "dev" => Self::Dev,
            "home" => Self::Home,
            "tmp" => Self::Tmp,
            "cwd" => Self::Cwd,
            "bind-paths" => Self::BindPaths,
            "/etc/hosts" => Self::Hosts,
            "/etc/localtime" => Self::Localtime,
            "/etc/resolv.conf" => Self::ResolvConf,
            _ => return None,
        })
    }
}

/// A home directory the user chose (`--home SRC[:DST]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomHome {
    /// On the host.
    pub source: PathBuf,
    /// Inside.
    pub destination: PathBuf,
}

/// What the command line says about the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultOptions {
    /// `--contain`: own `/dev`, empty `/tmp`, `/var/tmp` and home, no working directory.
    pub contain: bool,
    /// `--no-home`.
    pub no_home: bool,
    /// `--no-mount`.
    pub no_mount: Vec<NoMount>,
    /// `--home`.
    pub home: Option<CustomHome>,
    /// Where nothing is mounted that is not asked for (`umount:` of pyxis).
    pub unmounted: Vec<PathBuf>,
}

/// The default binds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultBinds {
    /// In the order in which they are to be mounted.
    pub binds: Vec<BindRequest>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
    /// The home directory inside, whether or not it is bound.
    pub home: Option<PathBuf>,
}

/// Decides the default binds. `user_binds` are those of the command line, which come after them and
/// before the working directory.
pub fn plan_default_binds(
    facts: &HostFacts,
    options: &DefaultOptions,
    user_binds: &[BindRequest],
) -> DefaultBinds {
    let mut planner = Planner { facts, options, out: DefaultBinds::default() };
    planner.kernel_trees();
    planner.etc_files();
    planner.home();
    planner.tmp();
    planner.cwd(user_binds);
    planner.out
}

struct Planner<'a> {
    facts: &'a HostFacts,
    options: &'a DefaultOptions,
    out: DefaultBinds,
}

impl Planner<'_> {
    fn off(&self, what: NoMount) -> bool {
        self.options.no_mount.contains(&what)
    }

    fn skip(&mut self, what: &str, reason: &str) {
        self.out.skipped.push(Skipped { what: what.to_owned(), reason: reason.to_owned() });
    }

    fn add(&mut self, source: BindSource, destination: &Path, reason: &str) -> &mut BindRequest {
        let bind = BindRequest::new(source, destination.to_owned(), Origin::Default, reason.to_owned());
        self.out.binds.push(bind);
        let last = self.out.binds.len() - 1;
        &mut self.out.binds[last]
    }

    fn add_host(&mut self, path: &Path, reason: &str) -> &mut BindRequest {
        let source = BindSource::Host(self.facts.real(path).to_owned());
        self.add(source, path, reason)
    }

    fn kernel_trees(&mut self) {
        let trees = [
            (NoMount::Dev, "/dev", "devices of the host, as the step's cgroup allows"),
            (NoMount::Proc, "/proc", "processes; programs expect it"),
            (NoMount::Sys, "/sys", "topology and devices; programs expect it"),
        ];
        for (what, path, reason) in trees {
            if self.off(what) {
                self.skip(path, "switched off by --no-mount");
            } else if what == NoMount::Dev && self.options.contain {
                self.add(BindSource::MinimalDev, Path::new(path), "--contain: standard device nodes only");
            } else if self.facts.exists(Path::new(path)) {
                self.add_host(Path::new(path), reason);
            } else {
                self.skip(path, "does not exist on this host");
            }
        }
    }

    fn etc_files(&mut self) {
        let files = [
            (NoMount::Hosts, "/etc/hosts", "names of the host's network"),
            (NoMount::Localtime, "/etc/localtime", "time zone of the host"),
            (NoMount::ResolvConf, "/etc/resolv.conf", "name servers of the host"),
        ];
        for (what, path, reason) in files {
            let group = what != NoMount::ResolvConf && self.off(NoMount::BindPaths);
            if self.off(what) || group {
                self.skip(path, "switched off by --no-mount");
            } else if self.facts.exists(Path::new(path)) {
                let bind = self.add_host(Path::new(path), reason);
                // The image's /etc/localtime is a link into its zone files, one of which would be
                // covered; a name server file may link to a directory that the image lacks.
                bind.no_follow = true;
                bind.optional = true;
                bind.recursive = false;
            } else {
                self.skip(path, "does not exist on this host");
            }
        }
    }

    fn home(&mut self) {
        if let Some(CustomHome { source, destination }) = self.options.home.clone() {
            // Asked for by name, so it is kept even with --contain.
            self.add(BindSource::Host(source), &destination, "--home").origin =
                Origin::User("--home".to_owned());
            self.out.home = Some(destination);
            return;
        }
        let Some(home) = self.facts.home.clone() else {
            self.skip("home", "the account has no home directory");
            return;
        };
        // The superuser of a user namespace expects /root, wherever the account's home is.
        let destination = if self.facts.uid == 0 { PathBuf::from("/root") } else { home.clone() };
        self.out.home = Some(destination.clone());
        if self.options.no_home || self.off(NoMount::Home) {
            self.skip("home", "switched off by --no-home or --no-mount home");
        } else if home == Path::new("/") {
            self.skip("home", "the account's home is /");
        } else if self.options.contain {
            self.add(BindSource::Tmpfs { size: None }, &destination, "--contain: empty home directory");
        } else if !self.facts.exists(&home) {
            self.skip("home", "the home directory does not exist on this host");
        } else {
            let source = BindSource::Host(self.facts.real(&home).to_owned());
            self.add(source, &destination, "home directory");
        }
    }

    fn tmp(&mut self) {
        let [tmp, var_tmp] = [Path::new("/tmp"), Path::new("/var/tmp")];
        let same = self.facts.real(tmp) == self.facts.real(var_tmp);
        for path in [tmp, var_tmp] {
            let name = path.display().to_string();
            if self.off(NoMount::Tmp) {
                self.skip(&name, "switched off by --no-mount");
            } else if self.options.contain {
                self.add(BindSource::Tmpfs { size: None }, path, "--contain: empty temporary directory");
            } else if path == var_tmp && same {
                self.skip(&name, "is the same directory as /tmp");
            } else if self.facts.exists(path) {
                self.add_host(path, "temporary files");
            } else {
                self.skip(&name, "does not exist on this host");
            }
        }
    }

    fn cwd(&mut self, user_binds: &[BindRequest]) {
        let Some(cwd) = self.facts.cwd.clone() else {
            self.skip("working directory", "it cannot be determined");
            return;
        };
        let real = self.facts.real(&cwd).to_owned();
        let refused = [&cwd, &real].into_iter().any(|path| {
            CWD_NEVER.iter().any(|never| path == Path::new(never))
                || CWD_NEVER_BELOW.iter().any(|tree| path.starts_with(tree))
        });
        let binds = || self.out.binds.iter().chain(user_binds);
        let path_visible = binds().any(|bind| shows(bind, &cwd, &real));
        let real_visible = binds().any(|bind| shows(bind, &real, &real));
        // Below another bind the link itself is visible inside, and what it names must be there.
        let below_bind = binds().any(|bind| cwd.starts_with(&bind.destination));
        let name = format!("working directory {}", cwd.display());
        if self.options.contain {
            self.skip(&name, "not with --contain");
        } else if self.off(NoMount::Cwd) {
            self.skip(&name, "switched off by --no-mount");
        } else if refused {
            self.skip(&name, "the image has its own");
        } else if path_visible || (real_visible && (cwd == real || below_bind)) {
            self.skip(&name, "already visible through another bind");
        } else if !self.facts.exists(&cwd) {
            self.skip(&name, "does not exist on this host");
        } else {
            let destination = if below_bind { real.clone() } else { cwd };
            self.add(BindSource::Host(real), &destination, "working directory");
        }
    }
}

/// Tells whether a bind shows the host path `real` at `path` inside.
fn shows(bind: &BindRequest, path: &Path, real: &Path) -> bool {
    let BindSource::Host(source) = &bind.source else { return false };
    match path.strip_prefix(&bind.destination) {
        Ok(below) if below.as_os_str().is_empty() => source == real,
        Ok(below) => source.join(below) == real,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
