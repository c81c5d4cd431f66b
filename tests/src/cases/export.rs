//! `--export`: what it keeps from a step must not be that there was to be a container.

use std::fs;
use std::path::Path;

use super::Site;
use super::uses::spaces_inside;
use crate::command::{self, Output, Running};
use crate::environment::PATIENCE;
use crate::tier::Check;

/// What users write after `--export=`.
const KINDS: [&str; 4] = ["NONE", "NIL", "ALL", "FLAVOUR=sweet"];

/// How an image is asked for: by the option, and by two variables.
const WAYS: [&str; 3] = ["--container-image", "PYXIS_CONTAINER_IMAGE", "SLURM_SITULA_IMAGE"];

/// A payload that tells where it is, and what a mount and a working directory have come to.
const PAYLOAD: &str =
    "cat /etc/situla-image-witness || echo ON-THE-HOST; readlink /proc/self/ns/mnt; cat fact";

/// A started command, the story of how, and where a batch script writes to.
struct Started {
    what: String,
    running: Running,
    log: Option<String>,
}

/// With every form of `--export`, steps and batch scripts are in the container that they were given, with
/// their mounts, by an option or by a variable.
///
/// # Errors
/// One is on the host, or does not see its mount.
pub fn keeps_the_container(site: &Site) -> Check {
    let dir = site.env().work_dir("export")?;
    dir.write("fact", "a fact of the host\n")?;
    let image = site.images.path("tiny.sqsh");
    let inner = dir.write("inside.sh", &format!("#!/bin/sh\n{PAYLOAD}\n"))?.display().to_string();
    let mut started = Vec::new();
    for kind in KINDS {
        for way in WAYS {
            let export = format!("--export={kind}");
            let (env, options) = given(way, &image, dir.path());
            let what = format!("srun {export} with {way}");
            let words = ["srun", "-n1", "--overcommit", &export].into_iter().map(str::to_owned);
            let words = words.chain(options.clone()).chain(["sh", "-c", PAYLOAD].map(str::to_owned));
            started.push(start(site, dir.path(), what, &env, words, None)?);
            let log = format!("{kind}-{way}.log");
            let what = format!("sbatch {export} with {way}");
            let words = ["sbatch", "--wait", "-n1", "--overcommit", "--output", &log, &export].into_iter();
            let words = words.map(str::to_owned).chain(options).chain([inner.clone()]);
            started.push(start(site, dir.path(), what, &env, words, Some(log.clone()))?);
        }
        for one in started.drain(..) {
            one.inside(site, dir.path())?;
        }
    }
    Ok(())
}

/// A batch script that was given no environment starts steps in containers, by an option and by variables.
///
/// # Errors
/// A step is on the host.
pub fn steps_of_a_bare_script(site: &Site) -> Check {
    let dir = site.env().work_dir("bare")?;
    dir.write("fact", "a fact of the host\n")?;
    let image = site.images.path("tiny.sqsh");
    let mut started = Vec::new();
    for way in WAYS {
        let (env, options) = given(way, &image, dir.path());
        let set: String = env.iter().map(|(name, value)| format!("export {name}={value}\n")).collect();
        let payload = format!("sh -c '{PAYLOAD}'");
        let name = format!("{way}.sh");
        // What the script sets is for the step; the profile below is for sbatch and its steps.
        let script = format!("#!/bin/sh\n{set}srun -n1 {} {payload}\n", options.join(" "));
        let script = dir.write(&name, &script)?.display().to_string();
        let log = format!("{way}.log");
        let words = ["sbatch", "--wait", "-n1", "--overcommit", "--output", &log, &script].map(str::to_owned);
        let profile = vec![("SBATCH_EXPORT".to_owned(), "NONE".to_owned())];
        let what = format!("srun with {way} in a script of sbatch --export=NONE");
        started.push(start(site, dir.path(), what, &profile, words, Some(log.clone()))?);
        let mut env = env;
        env.push(("SLURM_EXPORT_ENV".to_owned(), "NONE".to_owned()));
        let words = ["srun", "-n1", "--overcommit"].into_iter().map(str::to_owned);
        let words = words.chain(options).chain(["sh", "-c", PAYLOAD].map(str::to_owned));
        let what = format!("srun with {way} and SLURM_EXPORT_ENV=NONE");
        started.push(start(site, dir.path(), what, &env, words, None)?);
    }
    for one in started {
        one.inside(site, dir.path())?;
    }
    Ok(())
}

/// Variables and options by which a way asks for the image, a mount and a working directory.
fn given(way: &str, image: &str, dir: &Path) -> (Vec<(String, String)>, Vec<String>) {
    let values = [
        ("IMAGE", image.to_owned()),
        ("MOUNTS", dir.display().to_string()),
        ("WORKDIR", dir.display().to_string()),
    ];
    match way.strip_suffix("IMAGE") {
        Some(prefix) => {
            (values.into_iter().map(|(part, value)| (format!("{prefix}{part}"), value)).collect(), Vec::new())
        }
        None => {
            let option =
                |(part, value): (&str, String)| format!("--container-{}={value}", part.to_lowercase());
            (Vec::new(), values.into_iter().map(option).collect())
        }
    }
}

fn start(
    site: &Site,
    dir: &Path,
    what: String,
    env: &[(String, String)],
    words: impl IntoIterator<Item = String>,
    log: Option<String>,
) -> Result<Started, String> {
    let mut command = site.cluster.user_command(dir, words)?;
    command.envs(env.iter().map(|(name, value)| (name, value)));
    Ok(Started { what, running: command::start(command)?, log })
}

impl Started {
    fn inside(self, site: &Site, dir: &Path) -> Check {
        let mut output: Output = self.running.finish(PATIENCE * 2)?;
        if let Some(log) = &self.log {
            output.stdout = fs::read_to_string(dir.join(log)).unwrap_or_default();
        }
        let inside =
            output.stdout.contains("situla tiny image") && output.stdout.contains("a fact of the host");
        if inside && output.status.success() && !output.stdout.contains("ON-THE-HOST") {
            spaces_inside(site, &output.stdout, 1)
                .map_err(|story| format!("{}: {story}\n{output}", self.what))?;
            Ok(())
        } else {
            Err(format!("{}: not in the container\n{output}", self.what).into())
        }
    }
}
