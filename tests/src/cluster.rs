//! Talks to one of our clusters as its users do: `srun`, `sbatch`, `sacct`, `scontrol`, `scancel`.
//!
//! Every job gets a name of its own, so that accounting can be asked about exactly that job even when `srun`
//! failed before it could tell a number. Accounting arrives late (slurmctld hands new jobs to slurmdbd in batches,
//! every five seconds); everything here waits for the condition it needs, with a deadline, and cases start
//! what does not depend on each other together.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::command::{self, Output, Running, wait_until};
use crate::environment::{PATIENCE, TestEnv};

/// Which of the two clusters of `scripts/slurm-cluster`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Nodes that share the host's hostname, network and /tmp.
    Loopback,
    /// Nodes with their own.
    Isolated,
}

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    env: TestEnv,
    variant: Variant,
    conf: PathBuf,
    nodes: BTreeMap<String, u32>,
}

/// State and exit status as `sacct` shows them, of a job or of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// `COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT`, … (without the `by UID` of a cancelled job).
    pub state: String,
    /// `CODE:SIGNAL`.
    pub exit: String,
}

/// What became of one `srun` or `sbatch`.
#[derive(Debug, Clone)]
pub struct Job {
    /// What the command printed and returned.
    pub output: Output,
    /// The job's number.
    pub id: String,
    /// The job's own line in accounting.
    pub account: Account,
    /// The lines of its steps, by name after the dot: `0`, `1`, `batch`, `extern`.
    pub steps: BTreeMap<String, Account>,
}

impl Job {
    /// The accounting line of a step.
    ///
    /// # Errors
    /// The job has no such step.
    pub fn step(&self, name: &str) -> Result<&Account, String> {
        self.steps
            .get(name)
            .ok_or_else(|| format!("job {} has no step {name} in accounting: {:?}", self.id, self.steps))
    }
}

impl Cluster {
    /// Finds the cluster of a variant and makes sure that it is healthy.
    ///
    /// # Errors
    /// It does not run: the text says how to start it.
    pub fn find(env: &TestEnv, variant: Variant) -> Result<Self, String> {
        let script = |words: &[&str]| {
            let mut command = Command::new(env.script("slurm-cluster"));
            if variant == Variant::Isolated {
                command.arg("--isolated");
            }
            command.args(words);
            command::run(command, PATIENCE)
        };
        let hint = match variant {
            Variant::Loopback => "run scripts/slurm-cluster up",
            Variant::Isolated => "run scripts/slurm-cluster --isolated up",
        };
        if !script(&["status"])?.status.success() {
            return Err(format!("no healthy cluster: {hint}"));
        }
        let conf = script(&["env"])?
            .success()?
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("export SLURM_CONF=").map(PathBuf::from))
            .ok_or("slurm-cluster env names no SLURM_CONF")?;
        let mut cluster = Self { env: env.clone(), variant, conf, nodes: BTreeMap::new() };
        cluster.refresh_nodes()?;
        Ok(cluster)
    }

    /// The same cluster, for another user of it.
    #[must_use]
    pub fn of_user(&self, name: &str) -> Self {
        Self { env: self.env.of_user(name), ..self.clone() }
    }

    /// The surroundings it was found in.
    #[must_use]
    pub fn env(&self) -> &TestEnv {
        &self.env
    }

    /// Which variant it is.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Its name in slurm.conf, which stands before the names of its records.
    ///
    /// # Errors
    /// The configuration cannot be read, or names no cluster.
    pub fn name(&self) -> Result<String, String> {
        let text =
            std::fs::read_to_string(&self.conf).map_err(|e| format!("{}: {e}", self.conf.display()))?;
        let name = text.lines().find_map(|line| line.strip_prefix("ClusterName="));
        name.map(str::to_owned).ok_or_else(|| format!("{} names no cluster", self.conf.display()))
    }

    /// The address of this machine at which its nodes reach it.
    ///
    /// # Errors
    /// The configuration cannot be read, or names none.
    pub fn address(&self) -> Result<String, String> {
        let text =
            std::fs::read_to_string(&self.conf).map_err(|e| format!("{}: {e}", self.conf.display()))?;
        // SlurmctldHost=NAME(ADDRESS)
        let host = text.lines().find_map(|line| line.strip_prefix("SlurmctldHost="));
        let address = host.and_then(|host| host.split_once('(')?.1.strip_suffix(')'));
        address.map(str::to_owned).ok_or_else(|| format!("{} names no address", self.conf.display()))
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.conf.parent().and_then(Path::parent).unwrap_or(Path::new("/"))
    }

    /// Whether Slurm keeps each step to its devices here: it needs control groups.
    #[must_use]
    pub fn constrains_devices(&self) -> bool {
        fs::read_to_string(self.state_dir().join("etc/cgroup-kind")).is_ok_and(|kind| kind.trim() != "none")
    }

    /// Its nodes, each with a process whose namespaces are the node's.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, u32> {
        &self.nodes
    }

    /// The name of one node.
    #[must_use]
    pub fn a_node(&self) -> &str {
        self.nodes.keys().next().map_or("", String::as_str)
    }

    /// Runs `slurm-cluster` on it: `fault NODE nofuse on`, `plugin install …`.
    ///
    /// # Errors
    /// The script failed.
    pub fn control(&self, words: &[&str]) -> Result<Output, String> {
        let mut command = Command::new(self.env.script("slurm-cluster"));
        command.arg("--state").arg(self.state_dir()).args(words);
        command::run(command, PATIENCE)?.success()
    }

    /// Makes one node sick for as long as the guard lives.
    ///
    /// # Errors
    /// The fault cannot be switched on.
    pub fn fault(&mut self, node: &str, kind: &str) -> Result<Fault, String> {
        self.control(&["fault", node, kind, "on"])?;
        let fault = Fault { cluster: self.clone(), node: node.into(), kind: kind.into() };
        // Some faults restart slurmd.
        self.refresh_nodes()?;
        Ok(fault)
    }

    fn refresh_nodes(&mut self) -> Result<(), String> {
        self.nodes = self
            .control(&["nodes"])?
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' ').and_then(|(n, p)| Some((n.to_owned(), p.parse().ok()?))))
            .collect();
        if self.nodes.is_empty() { Err("slurm-cluster nodes names no node".into()) } else { Ok(()) }
    }

    /// A Slurm command as the unprivileged user.
    ///
    /// # Errors
    /// There is no such user.
    pub fn user_command<I, S>(&self, cwd: &Path, words: I) -> Result<Command, String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.env.user_command(cwd, words)?;
        command.env("SLURM_CONF", &self.conf);
        Ok(command)
    }

    /// As [`Cluster::user_command`], as the user would call it on one of its nodes.
    ///
    /// # Errors
    /// There is no such user, or no such node.
    pub fn command_on<I, S>(&self, node: &str, cwd: &Path, words: I) -> Result<Command, String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let pid = self.nodes.get(node).ok_or_else(|| format!("there is no node {node}"))?;
        let command = self.user_command(cwd, words)?;
        let mut inside = Command::new("nsenter");
        inside.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--target", &pid.to_string(), "--"]);
        inside.args(["sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"]).arg(cwd);
        inside.arg(command.get_program()).args(command.get_args());
        inside.env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(inside)
    }

    /// Lets a command find this cluster.
    pub fn talks_to(&self, command: &mut Command) {
        command.env("SLURM_CONF", &self.conf);
    }

    /// Runs a Slurm command as root: to ask, to cancel, never to run a payload.
    ///
    /// # Errors
    /// The command failed.
    pub fn admin(&self, words: &[&str]) -> Result<Output, String> {
        let mut command = command::words(words);
        command.env("SLURM_CONF", &self.conf);
        command::run(command, PATIENCE)?.success()
    }

    /// Runs `srun` with these arguments as the user and waits for its accounting.
    ///
    /// # Errors
    /// `srun` cannot be started, made no job, or accounting has no end of it. What the payload did is in [`Job`].
    pub fn srun<I, S>(&self, cwd: &Path, args: I) -> Result<Job, String>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.srun_within(cwd, PATIENCE, args)
    }

    /// As [`Cluster::srun`], with a deadline of its own.
    ///
    /// # Errors
    /// As [`Cluster::srun`].
    pub fn srun_within<I, S>(&self, cwd: &Path, deadline: Duration, args: I) -> Result<Job, String>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let (name, running) = self.start_srun(cwd, args)?;
        let output = running.finish(deadline)?;
        self.job(&name, output)
    }

    /// Starts `srun` and returns the job's name with the running command.
    ///
    /// # Errors
    /// `srun` cannot be started.
    pub fn start_srun<I, S>(&self, cwd: &Path, args: I) -> Result<(String, Running), String>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.start_srun_with(cwd, &[], args)
    }

    /// As [`Cluster::start_srun`], with more variables in the environment it is called in.
    ///
    /// # Errors
    /// As [`Cluster::start_srun`].
    pub fn start_srun_with<I, S>(
        &self,
        cwd: &Path,
        env: &[(&str, &str)],
        args: I,
    ) -> Result<(String, Running), String>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let name = unique_name();
        let mut words: Vec<OsString> = ["srun", "--quiet", "--job-name", &name].map(OsString::from).into();
        words.extend(args.into_iter().map(Into::into));
        let mut command = self.user_command(cwd, words)?;
        command.envs(env.iter().copied());
        Ok((name, command::start(command)?))
    }

    /// Submits a batch script, whose output goes to `NAME.log` in `cwd`; returns the job's name and number.
    ///
    /// # Errors
    /// `sbatch` failed.
    pub fn submit(&self, cwd: &Path, args: &[String], script: &Path) -> Result<(String, String), String> {
        let name = unique_name();
        let mut command =
            self.user_command(cwd, ["sbatch", "--parsable", "--job-name", &name, "--output"])?;
        command.arg(cwd.join(format!("{name}.log"))).args(args).arg(script);
        let output = command::run(command, PATIENCE)?.success()?;
        let id = output.stdout.trim().split(';').next().unwrap_or_default().to_owned();
        Ok((name, id))
    }

    /// Submits a batch script, waits for its end, and puts what it wrote into the output.
    ///
    /// # Errors
    /// `sbatch` failed, or the job has no end in time.
    pub fn sbatch(&self, cwd: &Path, args: &[&str], script: &Path) -> Result<Job, String> {
        let name = unique_name();
        let log = cwd.join(format!("{name}.log"));
        let mut command =
            self.user_command(cwd, ["sbatch", "--parsable", "--job-name", &name, "--output"])?;
        command.arg(&log).args(args).arg(script);
        let mut output = command::run(command, PATIENCE)?.success()?;
        let id = output.stdout.trim().split(';').next().unwrap_or_default().to_owned();
        let ended = wait_until(PATIENCE * 2, || {
            self.admin(&["squeue", "-h", "-j", &id]).map_or(true, |o| o.stdout.trim().is_empty())
        });
        if !ended {
            let _ = self.admin(&["scancel", &id]);
            return Err(format!("batch job {id} did not end\n{output}"));
        }
        output.stdout = fs::read_to_string(&log).unwrap_or_default();
        self.job(&name, output)
    }

    /// What accounting says about the job of that name, once it has ended.
    ///
    /// # Errors
    /// There is no such job, or its end does not arrive.
    pub fn job(&self, name: &str, output: Output) -> Result<Job, String> {
        let mut rows = Vec::new();
        let settled = wait_until(Duration::from_secs(20), || {
            rows = self.accounting(name).unwrap_or_default();
            !rows.is_empty()
                && rows
                    .iter()
                    .all(|(_, a)| !matches!(a.state.as_str(), "" | "RUNNING" | "PENDING" | "COMPLETING"))
        });
        if !settled {
            return Err(format!("accounting has no end of job {name}: {rows:?}\n{output}"));
        }
        if may_be_of_the_job(&rows) {
            self.told_everything(&rows[0].0)?;
            rows = self.accounting(name)?;
        }
        let mut steps = BTreeMap::new();
        let mut whole = None;
        for (id, account) in rows {
            match id.split_once('.') {
                Some((_, step)) => drop(steps.insert(step.to_owned(), account)),
                None => whole = Some((id, account)),
            }
        }
        let (id, account) =
            whole.ok_or_else(|| format!("accounting has steps but no job {name}\n{output}"))?;
        Ok(Job { output, id, account, steps })
    }

    /// Whether Slurm knows a job of that name at all. slurmctld is asked first: it knows a job at once, and for
    /// minutes after its end, while accounting hears of it seconds later.
    ///
    /// # Errors
    /// `squeue` or `sacct` failed.
    pub fn knows(&self, name: &str) -> Result<bool, String> {
        let queued = self.admin(&["squeue", "-h", "-t", "all", "-n", name, "-o", "%A"])?;
        Ok(!queued.stdout.trim().is_empty() || !self.accounting(name)?.is_empty())
    }

    /// Waits until slurmctld has heard of the end of every step of a job, and has told accounting what it knows.
    fn told_everything(&self, id: &str) -> Result<(), String> {
        let told = wait_until(PATIENCE, || {
            let completing = self.admin(&["squeue", "-h", "-j", id, "-t", "COMPLETING", "-o", "%A"]);
            // slurmctld may have forgotten the job.
            let completing = completing.is_ok_and(|o| !o.stdout.trim().is_empty());
            !completing
                && self.admin(&["sdiag"]).is_ok_and(|o| {
                    let queue = o.stdout.lines().find_map(|line| line.strip_prefix("DBD Agent queue size:"));
                    queue.map(str::trim) == Some("0")
                })
        });
        if told { Ok(()) } else { Err(format!("slurmctld keeps what it knows of job {id} from accounting")) }
    }

    fn accounting(&self, name: &str) -> Result<Vec<(String, Account)>, String> {
        let query =
            ["sacct", "-a", "-n", "-P", "-S", "now-1day", "--name", name, "-o", "JobID,State,ExitCode"];
        let rows = self.admin(&query)?.stdout;
        // --name picks jobs; their steps need the numbers.
        let ids: Vec<&str> = rows.lines().filter_map(|l| l.split(['|', '.']).next()).collect();
        let Some(id) = ids.first() else { return Ok(Vec::new()) };
        let rows = self.admin(&["sacct", "-a", "-n", "-P", "-j", id, "-o", "JobID,State,ExitCode"])?.stdout;
        Ok(rows
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('|');
                let id = fields.next()?.to_owned();
                let state = fields.next()?.split(' ').next()?.to_owned();
                Some((id, Account { state, exit: fields.next()?.to_owned() }))
            })
            .collect())
    }

    /// The number of the job of that name, as soon as it runs.
    ///
    /// # Errors
    /// It does not run within the deadline.
    pub fn wait_running(&self, name: &str) -> Result<String, String> {
        let mut id = String::new();
        let runs = wait_until(PATIENCE, || {
            id = self
                .admin(&["squeue", "-h", "-n", name, "-t", "RUNNING", "-o", "%A"])
                .map(|o| o.stdout.trim().to_owned())
                .unwrap_or_default();
            !id.is_empty()
        });
        if runs { Ok(id) } else { Err(format!("job {name} does not run")) }
    }

    /// Waits until no job is left and every node is idle; a drained or down node is an error at once.
    ///
    /// # Errors
    /// The names and reasons of nodes that are not usable.
    pub fn settled(&self) -> Result<(), String> {
        let mut states = String::new();
        let mut bad = false;
        let idle = wait_until(PATIENCE, || {
            states = self.admin(&["sinfo", "-h", "-N", "-o", "%N %T %E"]).map_or_else(|e| e, |o| o.stdout);
            bad = states.lines().any(|l| l.contains("drain") || l.contains("down") || l.contains("fail"));
            bad || states.lines().all(|l| l.split(' ').nth(1) == Some("idle"))
        });
        if idle && !bad {
            return Ok(());
        }
        // The next case shall not suffer from this one.
        for node in self.nodes.keys() {
            let _ = self.admin(&["scontrol", "update", &format!("nodename={node}"), "state=resume"]);
        }
        Err(format!("nodes are not idle:\n{states}"))
    }
}

/// A fault that is switched off when this is dropped.
#[derive(Debug)]
pub struct Fault {
    cluster: Cluster,
    node: String,
    kind: String,
}

impl Drop for Fault {
    fn drop(&mut self) {
        // If this fails, the next `Cluster::settled` or case on that node says so.
        let _ = self.cluster.control(&["fault", &self.node, &self.kind, "off"]);
    }
}

/// Whether a step's end may not have arrived: accounting then shows the job's state for it, and no code, once the job has
/// ended (`as_mysql_jobacct_process.c`). `srun` tells of the job's end itself; of a step's end slurmstepd does, later.
fn may_be_of_the_job(rows: &[(String, Account)]) -> bool {
    let Some((_, job)) = rows.iter().find(|(id, _)| !id.contains('.')) else { return false };
    job.state != "COMPLETED"
        && rows.iter().any(|(id, step)| id.contains('.') && step.state == job.state && step.exit == "0:0")
}

fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis());
    format!("t{now:x}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
