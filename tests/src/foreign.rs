//! A Slurm that is not ours: one node, with Slurm's own default ports where they are free, and its configuration
//! in `/etc/slurm`.
//!
//! It runs in a mount namespace in which `/etc/slurm` and `/run` are its own, so that a machine with a Slurm on
//! it is simulated without touching the machine's. Network, processes and control groups are the machine's.
//! It shares no line with `scripts/slurm-cluster`. With `scripts/slurm-tree` it can be one of another release.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::command::{self, Output, Running, wait_until};
use crate::environment::{PATIENCE, TestEnv};

/// A running Slurm; it ends when this is dropped.
#[derive(Debug)]
pub struct Foreign {
    dir: PathBuf,
    /// Keeps the mount namespace.
    holder: Child,
    /// Keeps that of the node, where the node is another machine.
    node: Option<Child>,
    daemons: Vec<(&'static str, Child)>,
}

impl Foreign {
    /// Starts the machine's own Slurm, with its state in a new directory under `/var/lib`.
    ///
    /// # Errors
    /// A daemon does not come up.
    pub fn start() -> Result<Self, String> {
        Self::start_with(|_| Ok(String::new()))
    }

    /// The same, on which users can run containers. `more` writes what is to be there into its directory, and returns
    /// what to add to `slurm.conf`.
    ///
    /// # Errors
    /// A daemon does not come up.
    pub fn start_with(more: impl FnOnce(&Path) -> Result<String, String>) -> Result<Self, String> {
        Self::start_held(&HOLDER.map(OsStr::new), &[], false, more)
    }

    /// The same, whose node is another machine, without a configuration of its own: `/etc/slurm` is empty there, and
    /// slurmd fetches all from the controller. `more` has to return what allows that.
    ///
    /// # Errors
    /// A daemon does not come up.
    pub fn start_configless(more: impl FnOnce(&Path) -> Result<String, String>) -> Result<Self, String> {
        Self::start_held(&HOLDER.map(OsStr::new), &[], true, more)
    }

    /// Starts the Slurm of another Debian release. `visible` are further directories of the machine that it
    /// sees; `more` writes what is to be there into its directory, and returns what to add to `slurm.conf`.
    ///
    /// # Errors
    /// There is no such tree, or a daemon does not come up.
    pub fn start_release(
        env: &TestEnv,
        suite: &str,
        visible: &[&Path],
        more: impl FnOnce(&Path) -> Result<String, String>,
    ) -> Result<Self, String> {
        let script = env.script("slurm-tree");
        let holder = [script.as_os_str(), OsStr::new("hold"), OsStr::new(suite)];
        Self::start_held(&holder, visible, false, more)
    }

    fn start_held(
        holder: &[&OsStr],
        visible: &[&Path],
        is_configless: bool,
        more: impl FnOnce(&Path) -> Result<String, String>,
    ) -> Result<Self, String> {
        let dir = PathBuf::from(format!("/var/lib/situla-foreign-{}", std::process::id()));
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        for part in ["etc", "munge", "state", "spool", "log"] {
            fs::create_dir_all(dir.join(part)).map_err(io)?;
        }
        let (uid, gid) = owner("munge")?;
        chown(dir.join("munge"), Some(uid), Some(gid)).map_err(io)?;
        let port = first_port();
        let conf = configuration(&dir, port)? + &more(&dir)?;
        fs::write(dir.join("etc/slurm.conf"), conf).map_err(io)?;
        let mut holder = command::words(holder)
            .arg(&dir)
            .args(visible)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(io)?;
        let is_ready = is_ready(&mut holder);
        let mut foreign = Self { dir, holder, node: None, daemons: Vec::new() };
        if !is_ready {
            return Err("the foreign Slurm has no mount namespace".into());
        }
        foreign.munge()?;
        foreign.daemon("slurmctld", &["slurmctld", "-D"])?;
        if is_configless {
            foreign.wait_for("the foreign controller", |it| it.run(&["scontrol", "ping"]).is_ok())?;
            foreign.separate_node()?;
            let server = format!("127.0.0.1:{port}");
            foreign.daemon("slurmd", &["slurmd", "-D", "-N", "foreign1", "--conf-server", &server])?;
        } else {
            foreign.daemon("slurmd", &["slurmd", "-D", "-N", "foreign1"])?;
        }
        foreign.wait_for("the foreign Slurm", |it| it.idle())?;
        Ok(foreign)
    }

    /// A directory of its own, which goes with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its `/etc` and all else as it sees them.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.holder.id()))
    }

    /// A command on the machine that it is on: its `/etc/slurm`, its `/run`.
    pub fn command<I, S>(&self, words: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--"]).args(words);
        command.env_remove("SLURM_CONF");
        command
    }

    /// A command on the node, where that is another machine.
    pub fn on_node<I, S>(&self, words: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let machine = self.node.as_ref().unwrap_or(&self.holder);
        let mut command = Command::new("nsenter");
        command.args(["--target", &machine.id().to_string(), "--mount", "--"]).args(words);
        command.env_remove("SLURM_CONF");
        command
    }

    /// Runs a command on the node.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub fn run_on_node(&self, words: &[&str]) -> Result<Output, String> {
        command::run(self.on_node(words), PATIENCE)?.success()
    }

    fn separate_node(&mut self) -> Result<(), String> {
        let none = self.dir.join("none");
        let script = "mount --bind \"$0\" /etc/slurm && mkdir -p /run/slurm && \
                      mount -t tmpfs -o mode=755 tmpfs /run/slurm && echo ready && exec sleep infinity";
        fs::create_dir(&none).map_err(|e| e.to_string())?;
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script].map(OsStr::new);
        let mut command = self.command(words.into_iter().chain([none.as_os_str()]));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut node = command.spawn().map_err(|e| e.to_string())?;
        let is_ready = is_ready(&mut node);
        self.node = Some(node);
        if is_ready { Ok(()) } else { Err("the foreign node has no mount namespace".to_owned()) }
    }

    /// Runs a command on that machine.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub fn run(&self, words: &[&str]) -> Result<Output, String> {
        command::run(self.command(words), PATIENCE)?.success()
    }

    /// Starts a job that writes how far it has counted to `beat` in [`Foreign::dir`], until `stop` is there.
    ///
    /// # Errors
    /// It does not start.
    pub fn counting_job(&self) -> Result<Running, String> {
        let script = "i=0; while [ ! -e stop ]; do i=$((i + 1)); echo $i >beat.new; mv beat.new beat; sleep 0.1; done; echo counted";
        // nsenter leaves the working directory behind.
        let dir = format!("--chdir={}", self.dir.display());
        let command = self.command(["srun", "-n1", &dir, "sh", "-c", script]);
        let running = command::start(command)?;
        self.wait_for("the foreign job", |it| it.beat() > 0)?;
        Ok(running)
    }

    /// How far the job has counted.
    #[must_use]
    pub fn beat(&self) -> u64 {
        fs::read_to_string(self.dir.join("beat")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether controller, node and munge answer as always.
    ///
    /// # Errors
    /// What does not.
    pub fn healthy(&self) -> Result<(), String> {
        self.run(&["scontrol", "ping"])?.expect_text("is UP")?;
        self.run(&["sh", "-c", "munge -n | unmunge"])?;
        let nodes = self.run(&["sinfo", "-h", "-N", "-o", "%N %T"])?;
        if !["foreign1 idle", "foreign1 mixed", "foreign1 allocated"].contains(&nodes.stdout.trim()) {
            return Err(format!("the foreign node is not well\n{nodes}"));
        }
        Ok(())
    }

    fn idle(&self) -> bool {
        self.run(&["sinfo", "-h", "-N", "-o", "%N %T"])
            .is_ok_and(|output| output.stdout.trim() == "foreign1 idle")
    }

    fn munge(&mut self) -> Result<(), String> {
        let (key, log, seed) =
            (self.dir.join("munge/key"), self.dir.join("munge/log"), self.dir.join("munge/seed"));
        let io = |e: std::io::Error| format!("{}: {e}", key.display());
        let mut bytes = [0; 1024];
        fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
            .map_err(io)?;
        fs::write(&key, bytes).map_err(io)?;
        let (uid, gid) = owner("munge")?;
        chown(&key, Some(uid), Some(gid)).map_err(io)?;
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o400)).map_err(io)?;
        let options = [("key-file", &key), ("log-file", &log), ("seed-file", &seed)]
            .map(|(name, path)| format!("--{name}={}", path.display()));
        // Its socket is where everybody looks for one: below /run/munge.
        let words = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"];
        let words: Vec<&str> = words.into_iter().chain(options.iter().map(String::as_str)).collect();
        self.daemon("munged", &words)?;
        self.wait_for("the foreign munge", |it| it.run(&["sh", "-c", "munge -n | unmunge"]).is_ok())
    }

    fn daemon(&mut self, name: &'static str, words: &[&str]) -> Result<(), String> {
        let log = fs::File::create(self.dir.join(format!("log/{name}.out"))).map_err(|e| e.to_string())?;
        let copy = log.try_clone().map_err(|e| e.to_string())?;
        let mut command = if name == "slurmd" { self.on_node(words) } else { self.command(words) };
        command.stdin(Stdio::null()).stdout(log).stderr(copy).current_dir("/");
        self.daemons.push((name, command.spawn().map_err(|e| format!("{name}: {e}"))?));
        Ok(())
    }

    fn wait_for(&self, what: &str, ready: impl Fn(&Self) -> bool) -> Result<(), String> {
        if wait_until(PATIENCE / 2, || ready(self)) {
            return Ok(());
        }
        let said = |(name, _): &(&str, Child)| {
            let text = fs::read_to_string(self.dir.join(format!("log/{name}.out"))).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(8).collect();
            format!("{name}:\n  {}", last.into_iter().rev().collect::<Vec<_>>().join("\n  "))
        };
        Err(format!(
            "{what} does not come up\n{}",
            self.daemons.iter().map(said).collect::<Vec<_>>().join("\n")
        ))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.run(&["scancel", "--user", "root"]);
        let stop = |child: &mut Child| {
            let pid = child.id().to_string();
            let _ = Command::new("kill").arg(&pid).status();
            if !wait_until(Duration::from_secs(10), || child.try_wait().is_ok_and(|ended| ended.is_some())) {
                let _ = child.kill();
                let _ = child.wait();
            }
        };
        for (_, daemon) in self.daemons.iter_mut().rev() {
            stop(daemon);
        }
        if let Some(node) = &mut self.node {
            stop(node);
        }
        stop(&mut self.holder);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Uid and gid of a system account.
fn owner(name: &str) -> Result<(u32, u32), String> {
    let text = fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let mut ids = line.into_iter().flat_map(|line| line.split(':').skip(2)).map_while(|id| id.parse().ok());
    ids.next().zip(ids.next()).ok_or_else(|| format!("there is no user {name}"))
}

/// Whether who is to keep a mount namespace has one.
fn is_ready(holder: &mut Child) -> bool {
    let mut line = String::new();
    let read = holder.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    read.is_some_and(|read| read.is_ok()) && line.trim() == "ready"
}

/// Makes a machine with a Slurm of its own. mount(8) keeps a directory below /run. The machine's own /dev/fuse stays as it is.
const HOLDER: [&str; 7] = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    "mount --bind \"$0/etc\" /etc/slurm && mount -t tmpfs -o mode=755 tmpfs /run && \
     mkdir -p /run/lock /run/mount && install -d -o munge -g munge /run/munge && \
     mknod -m 666 /run/fuse c 10 229 && mount --bind /run/fuse /dev/fuse && echo ready && \
     exec sleep infinity",
];

/// Slurm's default ports, unless the machine really has a Slurm.
fn first_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    if [6817, 6818].iter().all(free) { 6817 } else { 26817 }
}

fn configuration(dir: &Path, first: u16) -> Result<String, String> {
    let host = command::run(command::words(["hostname", "-s"]), PATIENCE)?.success()?.stdout;
    let (host, dir) = (host.trim(), dir.display());
    let second = first + 1;
    Ok(format!(
        "ClusterName=foreign\n\
         SlurmctldHost={host}(127.0.0.1)\n\
         SlurmctldPort={first}\n\
         SlurmdPort={second}\n\
         SlurmUser=root\n\
         AuthType=auth/munge\n\
         StateSaveLocation={dir}/state\n\
         SlurmdSpoolDir={dir}/spool\n\
         SlurmctldPidFile={dir}/log/slurmctld.pid\n\
         SlurmdPidFile={dir}/log/slurmd.pid\n\
         ProctrackType=proctrack/linuxproc\n\
         TaskPlugin=task/none\n\
         JobAcctGatherType=jobacct_gather/none\n\
         SelectType=select/cons_tres\n\
         SlurmdParameters=config_overrides\n\
         ReturnToService=2\n\
         NodeName=foreign1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=500 State=UNKNOWN\n\
         PartitionName=main Nodes=ALL Default=YES State=UP\n"
    ))
}
