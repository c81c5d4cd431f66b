//! Facts about the host and the user, gathered once at the edge.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use situla_plan::{HostGroup, HostUser};
use situla_slurm::{Allocation, Confirmation, cgroup};

use crate::slurm_conf;

/// What a run needs to know of the machine and of who runs it.
#[derive(Debug)]
pub struct Host {
    /// The account of the user.
    pub user: HostUser,
    /// The groups of the process, primary one first.
    pub groups: Vec<HostGroup>,
    /// The host's name.
    pub hostname: String,
    /// The working directory, as the shell shows it.
    pub cwd: PathBuf,
    /// The environment, in its order.
    pub env: Vec<(OsString, OsString)>,
    /// The Slurm allocation, where there is one and the cgroup confirms it.
    pub allocation: Option<Allocation>,
    /// The cgroup of the step, relative to the memory hierarchy's root.
    pub step_cgroup: Option<String>,
    /// Where this user's records go.
    pub records: Option<PathBuf>,
    /// Where tags stand that have become digests. By the account alone: variables are not the same in all steps.
    pub pins: Option<PathBuf>,
    /// Where what is known of this user's instances on this host goes.
    pub instances: Option<PathBuf>,
}

/// A fact that must be known cannot be found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The working directory is gone or cannot be reached.
    #[error("cannot determine the working directory")]
    WorkingDirectory(#[source] std::io::Error),
    /// The environment contradicts itself about the job.
    #[error("cannot read the Slurm job from the environment")]
    Allocation(#[source] situla_slurm::SlurmError),
}

impl Host {
    /// Gathers the facts; `env` is the environment of the process.
    ///
    /// # Errors
    /// The working directory cannot be determined, or a variable of Slurm holds no number.
    pub fn gather(env: Vec<(OsString, OsString)>) -> Result<Self, HostError> {
        let lookup = |name: &str| {
            let found = env.iter().find(|(key, _)| key == name).map(|(_, value)| value);
            found.and_then(|value| value.to_str()).map(str::to_owned)
        };
        let cwd = working_directory(lookup("PWD").as_deref())?;
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let user = account(uid, gid, &lookup);
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let placed = cgroup::parse(&text).ok().flatten();
        let mut allocation = match Allocation::from_env(&lookup) {
            Ok(allocation) => allocation,
            // Left-over variables outside Slurm are nobody's fault.
            Err(_) if placed.is_none() => None,
            Err(error) => return Err(HostError::Allocation(error)),
        };
        let mut step_cgroup = None;
        if let Some(found) = &mut allocation {
            match placed.as_ref().map(|placed| found.confirm(placed)) {
                // Variables left over from another job say nothing about this process.
                Some(Confirmation::OtherJob) => allocation = None,
                _ => step_cgroup = placed.and_then(|placed| placed.hierarchy("memory")?.step_path.clone()),
            }
        }
        // A step that was started from outside of its job (`srun --jobid`) is not told.
        if let Some(found) = allocation.as_mut().filter(|found| found.cluster.is_none()) {
            found.cluster = cluster(lookup("SLURM_CONF").as_deref());
        }
        let home = Path::new(&user.home).to_owned();
        let below = |name: &str, default: &str| {
            let base = lookup(name).map(PathBuf::from).filter(|path| path.is_absolute());
            base.or_else(|| home.is_absolute().then(|| home.join(default))).map(|base| base.join("situla"))
        };
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let state = below("XDG_STATE_HOME", ".local/state");
        // The home may be that of many hosts, whose processes have nothing to do with each other.
        let on_this_host = Path::new("instances").join(hostname.replace('/', "_"));
        Ok(Host {
            groups: groups(gid),
            hostname,
            instances: state.as_ref().map(|state| state.join(on_this_host)),
            records: state.map(|state| state.join("records")),
            pins: home.is_absolute().then(|| home.join(".local/state/situla/pins")),
            user,
            cwd,
            env,
            allocation,
            step_cgroup,
        })
    }

    /// The value of a variable, where it is text.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str())
    }
}

/// The name of the cluster, by the configuration that Slurm's programs would take here.
fn cluster(named: Option<&str>) -> Option<String> {
    slurm_conf::places(named.map(Path::new)).find_map(|path| slurm_conf::load(&path)?.cluster_name())
}

/// The working directory: `PWD` where it leads there, since it shows links as the user knows them.
fn working_directory(pwd: Option<&str>) -> Result<PathBuf, HostError> {
    use std::os::unix::fs::MetadataExt;
    // A directory that was deleted meanwhile is like one that the container does not have.
    let real = match std::env::current_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PathBuf::from("/"),
        other => other.map_err(HostError::WorkingDirectory)?,
    };
    let same = |path: &Path| {
        let (Ok(a), Ok(b)) = (std::fs::metadata(path), std::fs::metadata(".")) else { return false };
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    };
    match pwd.map(Path::new) {
        Some(path) if path.is_absolute() && same(path) => Ok(path.to_owned()),
        _ => Ok(real),
    }
}

/// The account of the user: from `/etc/passwd`, else from getent(1), which asks all name services
/// that the site has configured, else from what the environment says.
fn account(uid: u32, gid: u32, lookup: &dyn Fn(&str) -> Option<String>) -> HostUser {
    let file = std::fs::read("/etc/passwd").unwrap_or_default();
    let key = uid.to_string();
    let asked = || getent("passwd", std::slice::from_ref(&key))?.lines().next().map(str::to_owned);
    let line = find_line(&file, 2, &key).or_else(asked);
    let fields = |line: &str| {
        let mut fields = line.split(':').map(str::to_owned);
        let name = fields.next()?;
        let mut rest = fields.skip(3);
        Some((name, rest.next()?, rest.next()?, rest.next()?))
    };
    match line.as_deref().and_then(fields) {
        Some((name, gecos, home, shell)) => HostUser { name, uid, gid, gecos, home, shell },
        None => HostUser {
            name: lookup("USER").or_else(|| lookup("LOGNAME")).unwrap_or_else(|| format!("uid{uid}")),
            uid,
            gid,
            gecos: String::new(),
            home: lookup("HOME").unwrap_or_else(|| "/".to_owned()),
            shell: lookup("SHELL").unwrap_or_else(|| "/bin/sh".to_owned()),
        },
    }
}

/// The home of the user's account, where there is one: for what is looked up by a variable that the environment may lack, as
/// in a step of `srun --export=NONE`.
#[must_use]
pub fn home_of_account() -> Option<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let home = PathBuf::from(account(uid, rustix::process::getgid().as_raw(), &|_| None).home);
    // Accounts without a home have the root directory.
    (home.is_absolute() && home != Path::new("/")).then_some(home)
}

/// The groups of this process that have a name.
fn groups(primary: u32) -> Vec<HostGroup> {
    let mut ids = vec![primary];
    let others = rustix::process::getgroups().unwrap_or_default();
    ids.extend(others.into_iter().map(rustix::process::Gid::as_raw).filter(|gid| *gid != primary));
    let file = std::fs::read("/etc/group").unwrap_or_default();
    let lines: Vec<Option<String>> = ids.iter().map(|gid| find_line(&file, 2, &gid.to_string())).collect();
    let unknown = ids.iter().zip(&lines).filter(|(_, line)| line.is_none()).map(|(gid, _)| gid.to_string());
    // One question for all: a directory service takes milliseconds for each.
    let asked: Vec<String> = unknown.take(MAX_ASKED).collect();
    let answered = if asked.is_empty() { String::new() } else { getent("group", &asked).unwrap_or_default() };
    let lines = lines.into_iter().flatten().chain(answered.lines().map(str::to_owned));
    let mut groups: Vec<HostGroup> = lines
        .filter_map(|line| {
            let mut fields = line.split(':').map(str::to_owned);
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some(HostGroup { name, gid })
        })
        .collect();
    let place = |group: &HostGroup| ids.iter().position(|gid| *gid == group.gid);
    groups.sort_by_key(place);
    groups
}

/// The most groups whose names are asked for.
const MAX_ASKED: usize = 256;

/// The account of this name, from `/etc/passwd` or getent(1).
pub(crate) fn account_of(name: &str) -> Option<HostUser> {
    let file = std::fs::read("/etc/passwd").unwrap_or_default();
    let asked = || getent("passwd", &[name.to_owned()])?.lines().next().map(str::to_owned);
    let line = find_line(&file, 0, name).or_else(asked)?;
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, gecos, home, shell] = fields[..] else { return None };
    let [name, gecos, home, shell] = [name, gecos, home, shell].map(str::to_owned);
    Some(HostUser { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, gecos, home, shell })
}

/// The first line whose field `index` is `key`.
fn find_line(file: &[u8], index: usize, key: &str) -> Option<String> {
    let lines = file.split(|byte| *byte == b'\n');
    let mut matching =
        lines.filter(|line| line.split(|byte| *byte == b':').nth(index) == Some(key.as_bytes()));
    matching.next().map(|line| OsStr::from_bytes(line).to_string_lossy().into_owned())
}

/// Asks the site's name services through a helper program, because this binary is static and
/// cannot load their libraries.
fn getent(database: &str, keys: &[String]) -> Option<String> {
    // A user's search path need not have it, and may have another.
    let output = ["/usr/bin/getent", "/bin/getent", "getent"].into_iter().find_map(|program| {
        let asked = Command::new(program)
            .arg(database)
            .args(keys)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        // Status 2: one of the keys was not found; the others were.
        asked.ok()
    })?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_of_an_account_needs_no_variable() {
        let uid = rustix::process::getuid().as_raw().to_string();
        let file = std::fs::read("/etc/passwd").unwrap();
        let line = find_line(&file, 2, &uid);
        // What a name service knows is asked for in the same way.
        let Some(line) = line else { return };
        let home = line.split(':').nth(5).filter(|home| *home != "/").map(PathBuf::from);
        assert_eq!(home_of_account(), home);
    }

    #[test]
    fn lines_are_found_by_field() {
        let file = b"root:x:0:0:root:/root:/bin/sh\nbad\nx:y:10:1::/:\n";
        assert!(find_line(file, 2, "0").unwrap().starts_with("root:"));
        assert!(find_line(file, 2, "10").unwrap().starts_with("x:"));
        assert_eq!(find_line(file, 2, "1"), None);
    }

    #[test]
    fn the_cluster_is_that_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("slurm.conf");
        std::fs::write(&conf, b"# \xff\nClusterName=Demo\n").unwrap();
        assert_eq!(cluster(conf.to_str()).as_deref(), Some("demo"));
        assert_eq!(cluster(dir.path().join("none").to_str()), None);
    }
}
