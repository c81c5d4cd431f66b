//! Two users, each with a job of his own on one node of a real Slurm, at the same time.

use std::path::PathBuf;

use serde_json::json;

use super::all_refused;
use super::tenants::{LOOK, LOOKS_AT_A_PROCESS, VISIT, meeting_points, with_variable};
use crate::cases::Site;
use crate::cluster::Cluster;
use crate::command::{Output, Running, wait_until};
use crate::environment::{PATIENCE, TestEnv, WorkDir};
use crate::leaks::Snapshot;
use crate::tier::Check;

/// Tries of [`VISIT`] on one socket.
const VISITS: usize = 4;

/// The processes of a step of two tasks: for each one that waits and one that is the payload, and the keeper.
const PROCESSES: usize = 5;

/// The first task waits to be told about the other user, then looks for what is his: at his processes, at the doors of his container, in
/// the mounts and variables that it has itself, and where his records are.
const TENANT: &str = r#"
import json, os, sys, time
gate = sys.argv[1]
while os.environ["SLURM_PROCID"] != "0":
    if os.path.exists(gate + "/go"): sys.exit()
    time.sleep(0.02)
open(gate + "/up", "w").close()
while not os.path.exists(gate + "/look"): time.sleep(0.02)
other = json.load(open(gate + "/look"))
sys.argv = ["look", other["private"]] + other["processes"]
exec(other["looker"], {})
for name in other["sockets"]:
    sys.argv = ["visit", name]
    exec(other["visitor"], {})
own = open("/proc/self/mountinfo").read() + repr(os.environ)
for text in other["texts"]: print("done:" if text in own else "refused:", "a view of", text)
for path in other["closed"]:
    try: print("done:", os.listdir(path))
    except OSError as e: print("refused:", e.strerror)
sys.stdout.flush()
open(gate + "/looked", "w").close()
while not os.path.exists(gate + "/go"): time.sleep(0.02)
"#;

/// A user with a job.
struct Tenant {
    cluster: Cluster,
    gate: WorkDir,
    private: String,
    job: String,
    running: Running,
}

impl Tenant {
    /// Starts a step of two tasks on `node`, by a line of Apptainer's or by the plugin.
    fn start(cluster: Cluster, image: &str, node: &str, by_plugin: bool) -> Result<Self, String> {
        let gate = cluster.env().work_dir("tenant")?;
        let shown = gate.path().display().to_string();
        let private = format!("only-{}-knows", cluster.env().user());
        let mut words: Vec<String> =
            ["-N1", "-n2", "--overcommit", "--mem=400", "-w", node].map(str::to_owned).into();
        if by_plugin {
            words.push(format!("--container-image={image}"));
            words.push(format!("--container-mounts={shown}:{shown},/home:/home"));
        } else {
            words.extend(
                ["apptainer", "exec", "--no-home", "--bind", &shown, "--bind", "/home", image]
                    .map(str::to_owned),
            );
        }
        words.extend(["python3", "-c", TENANT, &shown].map(str::to_owned));
        let (name, running) =
            cluster.start_srun_with(gate.path(), &[("PRIVATE_VALUE", private.as_str())], words)?;
        let job = match cluster.wait_running(&name) {
            Ok(job) => job,
            Err(why) => return Err(format!("{why}\n{}", running.finish_within(PATIENCE)?)),
        };
        Ok(Self { cluster, gate, private, job, running })
    }

    fn env(&self) -> &TestEnv {
        self.cluster.env()
    }

    fn has(&self, name: &str) -> bool {
        self.gate.path().join(name).exists()
    }

    fn processes(&self) -> Result<Vec<String>, String> {
        Ok(with_variable(self.env().uid()?, &format!("SLURM_JOB_ID={}", self.job)))
    }

    /// Where his records are, which the step has made.
    fn records(&self) -> Result<PathBuf, String> {
        Ok(self.env().home()?.join(".local/state/situla/records"))
    }

    /// Tells about another one; gives how much there is to be tried.
    fn look_at(&self, other: &Self) -> Result<usize, String> {
        let number = other.job.parse().map_err(|_| format!("job {}", other.job))?;
        let sockets = meeting_points(other.env().uid()?, number);
        let processes = other.processes()?;
        if processes.len() < PROCESSES || sockets.is_empty() || !other.records()?.is_dir() {
            return Err(format!("of {}: {processes:?}, {sockets:?}", other.env().user()));
        }
        let texts = [other.private.clone(), other.gate.path().display().to_string()];
        let tries = LOOKS_AT_A_PROCESS * processes.len() + VISITS * sockets.len() + texts.len() + 1;
        let told = json!({
            "private": other.private, "processes": processes, "sockets": sockets, "texts": texts,
            "closed": [other.records()?], "looker": LOOK, "visitor": VISIT,
        });
        // Complete as soon as it is there.
        let new = self.gate.write("look.new", &told.to_string())?;
        std::fs::rename(new, self.gate.path().join("look")).map_err(|e| e.to_string())?;
        Ok(tries)
    }

    fn finish(self) -> Result<Output, String> {
        self.gate.write("go", "")?;
        self.running.finish_within(PATIENCE)
    }
}

/// Two users have a job each on one node at the same time, one by Apptainer's command line and one by the plugin. Neither gets
/// at the other's processes, container, records or secrets; what is mounted for one and set for one, the other has not.
///
/// # Errors
/// One does.
pub fn two_users_jobs(site: &Site) -> Check {
    let other = site.cluster.of_user(&format!("{}2", site.env().user()));
    let before = Snapshot::take(other.env(), Some(&other))?;
    let cancelled = |why: String| {
        // Should this fail as well, the cases that come will say so.
        let _ = other.admin(&["scancel", "--user", other.env().user()]);
        why
    };
    let (image, node) = (site.images.path("demo.sqsh"), site.cluster.a_node());
    let first = Tenant::start(site.cluster.clone(), &image, node, false)?;
    let second = Tenant::start(other.clone(), &image, node, true).map_err(cancelled)?;
    let both = [&first, &second];
    let up = wait_until(PATIENCE, || {
        both.iter().all(|one| one.has("up") && one.processes().is_ok_and(|found| found.len() >= PROCESSES))
    });
    let tries = first.look_at(&second).and_then(|tries| Ok((tries, second.look_at(&first)?)));
    let looked = tries.is_ok() && wait_until(PATIENCE, || both.iter().all(|one| one.has("looked")));
    let (first, second) = (first.finish(), second.finish().map_err(cancelled));
    let (first, second) = (first?, second?);
    let (of_first, of_second) = tries.map_err(|why| format!("{why}\n{first}\n{second}"))?;
    if !up || !looked {
        return Err(cancelled(format!("they were not there at once\n{first}\n{second}")).into());
    }
    all_refused(first, of_first)?;
    all_refused(second, of_second)?;
    before.expect_clean()?;
    Ok(())
}
