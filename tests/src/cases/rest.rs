//! Jobs that come by way of slurmrestd, which loads no plugin of ours: what they ask for is in a container or refused, never
//! on the host.

use std::process::Child;

use serde_json::{Value, json};

use super::Site;
use super::uses::{expect_ok, spaces_inside};
use crate::command::{self, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::outcome;
use crate::tier::{Check, Skip};

/// The daemon, as Debian has it.
const DAEMON: &str = "/usr/sbin/slurmrestd";

/// Needs the daemon.
///
/// # Errors
/// It is not installed.
pub(super) fn daemon() -> Result<(), Skip> {
    if std::path::Path::new(DAEMON).exists() { Ok(()) } else { Err(Skip("needs slurmrestd".into())) }
}

/// A slurmrestd of the user's own, which trusts who may open its socket.
struct Rest<'a> {
    site: &'a Site,
    dir: WorkDir,
    child: Child,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Rest<'a> {
    fn start(site: &'a Site) -> Result<Self, String> {
        let dir = site.env().work_dir("rest")?;
        let socket = dir.path().join("rest.socket");
        let place = format!("unix:{}", socket.display());
        let log = std::fs::File::create(dir.path().join("rest.log")).map_err(|e| e.to_string())?;
        let mut command = site
            .cluster
            .user_command(dir.path(), [DAEMON, "-a", "rest_auth/local", "-s", "openapi/v0.0.38", &place])?;
        let child = command.stderr(log).spawn().map_err(|e| format!("{DAEMON}: {e}"))?;
        let rest = Rest { site, dir, child };
        if wait_until(PATIENCE, || socket.exists()) {
            return Ok(rest);
        }
        let log = std::fs::read_to_string(rest.dir.path().join("rest.log")).unwrap_or_default();
        Err(format!("slurmrestd does not listen\n{log}"))
    }

    /// Submits a script with variables; waits for its end and gives the job with what it has written.
    fn run(
        &self,
        name: &str,
        variables: &[(&str, &str)],
        script: &str,
    ) -> Result<crate::cluster::Job, String> {
        let (dir, env) = (self.dir.path(), self.site.env());
        let log = dir.join(format!("{name}.log"));
        let (home, path) = (env.home()?.display().to_string(), env.search_path());
        let known = [("PATH", path.as_str()), ("HOME", home.as_str()), ("USER", env.user())];
        let environment: serde_json::Map<String, Value> =
            known.iter().chain(variables).map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        // The working directory's name is used once.
        let unique = format!("{}-{name}", dir.file_name().unwrap_or_default().to_string_lossy());
        let request = json!({
            "script": script,
            "job": {
                "name": unique, "nodes": 1, "tasks": 1, "environment": environment,
                "current_working_directory": dir, "standard_output": log, "standard_error": log,
            },
        });
        let request = self.dir.write(&format!("{name}.json"), &request.to_string())?;
        let body = format!("@{}", request.display());
        let socket = dir.join("rest.socket").display().to_string();
        let url = "http://localhost/slurm/v0.0.38/job/submit";
        let words = ["curl", "--silent", "--show-error", "--fail-with-body", "--unix-socket", &socket];
        let words = words.into_iter().chain(["-H", "Content-Type: application/json", "-d", &body, url]);
        let mut output = command::run(self.site.cluster.user_command(dir, words)?, PATIENCE)?.success()?;
        let answer: Value = serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
        let id = answer["job_id"].as_u64().filter(|id| *id > 0);
        let id = id.ok_or_else(|| format!("no job was made\n{output}"))?.to_string();
        let cluster = &self.site.cluster;
        let ended = wait_until(PATIENCE, || {
            cluster.admin(&["squeue", "-h", "-j", &id]).map_or(true, |o| o.stdout.trim().is_empty())
        });
        if !ended {
            return Err(format!("job {id} goes on\n{output}"));
        }
        output.stdout = std::fs::read_to_string(&log).unwrap_or_default();
        cluster.job(&unique, output)
    }
}

/// Steps of a script that was submitted so, by the plugin and by the command line, are in containers; a script that asks for
/// one by a variable, of pyxis's or of ours, is in it as a whole; and what makes no sense there fails, with a message.
///
/// # Errors
/// Something was on the host that should not be.
pub fn submitted(site: &Site) -> Check {
    let rest = Rest::start(site)?;
    let tiny = site.images.path("tiny.sqsh");
    let witness = format!("cat {WITNESS} || echo ON-THE-HOST; echo $(readlink /proc/self/ns/mnt)");
    let steps = format!(
        "#!/bin/bash\nsrun -n1 --container-image={tiny} sh -c '{witness}'\nsitula exec {tiny} sh -c '{witness}'\n\
         echo host $(readlink /proc/self/ns/mnt)\n"
    );
    let job = rest.run("steps", &[], &steps)?;
    let lines: Vec<&str> = job.output.stdout.lines().collect();
    match lines[..] {
        [one, first, two, second, host]
            if one.starts_with("situla tiny image")
                && one == two
                // The second may well have the number that the first had, which has ended by then.
                && ![first, second].iter().any(|space| host.ends_with(space)) => {}
        _ => return Err(format!("not both in containers\n{}", job.output).into()),
    }
    expect_ok(site, &job, 1)?;

    let whole = format!("#!/bin/sh\n{witness}\n");
    for variable in ["PYXIS_CONTAINER_IMAGE", "SLURM_SITULA_IMAGE"] {
        let job = rest.run(variable, &[(variable, tiny.as_str())], &whole)?;
        job.output.clone().expect_text("situla tiny image")?;
        spaces_inside(site, &job.output.stdout, 1)?;
        let records = outcome::records(&site.cluster, &format!("{}.batch", job.id))?;
        if job.output.stdout.contains("ON-THE-HOST") || job.account.state != "COMPLETED" || records.len() != 1
        {
            return Err(format!("{variable}: {:?} {records:#?}\n{}", job.account, job.output).into());
        }
    }

    for (name, variables, says) in [
        ("missing", [("PYXIS_CONTAINER_IMAGE", "/no/such.sqsh"), ("A", "b")], "/no/such.sqsh does not exist"),
        (
            "switch",
            [("PYXIS_CONTAINER_IMAGE", tiny.as_str()), ("PYXIS_CONTAINER_WRITABLE", "perhaps")],
            "neither true nor false",
        ),
    ] {
        let job = rest.run(name, &variables, &whole)?;
        job.output.clone().expect_text(says)?;
        if job.output.stdout.contains("ON-THE-HOST") || job.account.state != "FAILED" {
            return Err(format!("{name}: {:?}\n{}", job.account, job.output).into());
        }
        site.cluster.settled()?;
    }
    Ok(())
}
