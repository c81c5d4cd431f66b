//! Slurm of other releases: the plugin built for each, and the uses on one node of it. There is no accounting
//! here; what `srun` returns and what the controller remembers of the job is compared instead.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Desk;
use super::ends::KILL_WAIT;
use crate::command::{self, Output, wait_until};
use crate::environment::{PATIENCE, TestEnv};
use crate::foreign::Foreign;
use crate::images::WITNESS;
use crate::processes::{Kind, Watch, kill_if};
use crate::tier::{Check, Skip};

/// Where `scripts/test --full` puts the plugins that it builds for other releases.
fn plugin(env: &TestEnv, suite: &str) -> Option<PathBuf> {
    let path = env.spank().parent()?.join(format!("{suite}/spank_situla.so"));
    path.is_file().then_some(path)
}

/// Needs the tree of a release, and the plugin for it.
///
/// # Errors
/// One is not there.
pub fn prepared(env: &TestEnv, suite: &str) -> Result<(), Skip> {
    let why = |what| Skip(format!("no {what} of {suite}: scripts/test --full makes it"));
    version(env, suite).map_err(|_| why("Slurm"))?;
    plugin(env, suite).map(drop).ok_or_else(|| why("plugin for the Slurm"))
}

/// The version of a release's Slurm, such as `24.11.5`.
fn version(env: &TestEnv, suite: &str) -> Result<String, String> {
    let script = env.script("slurm-tree");
    let words = [script.as_os_str(), "version".as_ref(), suite.as_ref()];
    let version = command::run(command::words(words), PATIENCE)?.success()?.stdout.trim().to_owned();
    if version.is_empty() { Err(format!("the Slurm of {suite} has no version")) } else { Ok(version) }
}

/// Slurm 24.11, of Debian 13.
///
/// # Errors
/// A use does not work.
pub fn trixie(desk: &Desk) -> Check {
    uses(desk, "trixie")
}

/// The newest Slurm in Debian.
///
/// # Errors
/// A use does not work.
pub fn sid(desk: &Desk) -> Check {
    uses(desk, "sid")
}

fn uses(desk: &Desk, suite: &str) -> Check {
    let plugin = plugin(&desk.env, suite).ok_or("the plugin has gone")?;
    let dist = desk.env.situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let images = desk.env.image_tree("");
    let trampoline = desk.env.situla().display().to_string();
    let slurm = Foreign::start_release(&desk.env, suite, &[dist, &images], |dir| {
        let line = format!("required {} trampoline={trampoline}\n", plugin.display());
        let write = |name: &str, text: &str| {
            fs::write(dir.join("etc").join(name), text).map_err(|e| format!("{name}: {e}"))
        };
        write("plugstack.conf", &line)?;
        write("cgroup.conf", "CgroupPlugin=disabled\n")?;
        let prolog = "#!/bin/sh\necho \"export PROLOG_MNT=$(readlink /proc/self/ns/mnt)\"\n";
        write("taskprolog", prolog)?;
        let path = dir.join("etc/taskprolog");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| e.to_string())?;
        Ok(format!("PlugStackConfig=/etc/slurm/plugstack.conf\nTaskProlog={}\n", path.display()))
    })?;
    slurm.healthy()?;
    let version = version(&desk.env, suite)?;
    slurm.run(&["srun", "--version"])?.expect_text(&version)?;
    if version.starts_with("22.05") {
        return Err(format!("{suite} has the same Slurm as this machine").into());
    }
    writeln!(std::io::stdout(), "  Slurm {version}")?;
    let dir = desk.env.work_dir(suite)?;
    let here = dir.path();
    dir.write("train.py", &fs::read_to_string(desk.env.demo_file("train.py"))?)?;
    std::os::unix::fs::symlink(desk.images.path("demo.sqsh"), here.join("image.sqsh"))?;
    std::os::unix::fs::symlink(desk.images.path("demo.sif"), here.join("image.sif"))?;
    let run = |words: &[&str]| as_user(desk, &slurm, here, words);
    let cwd = here.display().to_string();
    let (mounts, workdir) = (format!("--container-mounts={cwd}"), format!("--container-workdir={cwd}"));

    run(&["srun", "apptainer", "exec", "image.sif", "python3", "-V"])?.success()?.expect_text("Python 3.")?;
    let script = "#!/bin/bash\n#SBATCH --job-name=container-demo\napptainer exec image.sif python train.py\n";
    let script = dir.write("job.sh", script)?.display().to_string();
    run(&["sbatch", "--wait", "--output", "job.log", &script])?.success()?;
    let log = fs::read_to_string(here.join("job.log"))?;
    if !log.contains("slope 3.00") || !log.contains("image: situla demo image") {
        return Err(format!("the batch script wrote {log:?}").into());
    }
    let image = "--container-image=./image.sqsh";
    run(&["srun", "-N1", image, &mounts, &workdir, "python3", "train.py"])?
        .success()?
        .expect_text("slope 3.00")?
        .expect_text("image: situla demo image")?;

    // Tasks in one container, TaskProlog on the host.
    let script = format!("cat {WITNESS}; readlink /proc/self/ns/mnt; echo $PROLOG_MNT");
    let output = run(&["srun", "-n2", "--overcommit", image, "sh", "-c", &script])?.success()?;
    let lines: std::collections::BTreeSet<&str> = output.stdout.lines().collect();
    if output.stdout.lines().count() != 6 || lines.len() != 3 {
        return Err(format!("not two tasks in one container, with TaskProlog outside\n{output}").into());
    }
    // Ends, refusals, and nothing on the host.
    run(&["srun", image, "sh", "-c", "exit 3"])?.expect_code(3)?;
    run(&["srun", image, "sh", "-c", "kill -TERM $$"])?.expect_code(143)?;
    run(&["srun", "--container-image=./none.sqsh", "echo", "ON-THE-HOST"])?
        .expect_code(125)?
        .expect_text("none.sqsh")?;
    dir.write("table", &format!("0 cat {WITNESS}\n"))?;
    run(&["srun", "-n1", image, "--multi-prog", "table"])?.success()?.expect_text("situla demo image")?;
    let refused = run(&["srun", "--container-mounts=/tmp", "echo", "ON-THE-HOST"])?;
    if refused.status.success() || refused.stdout.contains("ON-THE-HOST") {
        return Err(format!("mounts without an image\n{refused}").into());
    }
    run(&["srun", "--export=NONE", image, "cat", WITNESS])?.success()?.expect_text("situla demo image")?;
    lost_keeper(desk, &slurm, here)?;
    run(&["srun", "-n2", "--overcommit", image, "cat", WITNESS])?
        .success()?
        .expect_text("situla demo image")?;
    // Steps from inside: the C library of the tools is newer than the image's.
    let demo = desk.images.path("demo.sqsh");
    dir.write("slurm.toml", &format!("image = \"{demo}\"\nslurm = true\n"))?;
    super::site_machines::from_inside(&run, &demo)?;
    let records = run(&["situla", "runs", "--json", "--limit", "1000"])?.success()?;
    records.clone().expect_text("\"engine-server-lost\"")?;
    if !records.stdout.contains("\"cluster\": \"foreign\"") {
        return Err(format!("no record of this cluster\n{records}").into());
    }
    // No node was drained by any of that.
    slurm.healthy()?;
    Ok(())
}

/// Where Slurm itself says who a user is (`AuthType=auth/slurm`), and there is no munge, steps start from inside as well.
///
/// # Errors
/// They do not.
pub fn without_munge(desk: &Desk) -> Check {
    let plugin = plugin(&desk.env, "trixie").ok_or("the plugin has gone")?;
    let dist = desk.env.situla().parent().and_then(Path::parent).ok_or("the program has no prefix")?;
    let images = desk.env.image_tree("");
    let trampoline = desk.env.situla().display().to_string();
    let slurm = Foreign::start_release(&desk.env, "trixie", &[dist, &images], |dir| {
        let write = |name: &str, bytes: &[u8]| {
            fs::write(dir.join("etc").join(name), bytes).map_err(|e| format!("{name}: {e}"))
        };
        let line = format!("required {} trampoline={trampoline}\n", plugin.display());
        write("plugstack.conf", line.as_bytes())?;
        write("cgroup.conf", b"CgroupPlugin=disabled\n")?;
        let mut key = [0; 64];
        fs::File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut key))
            .map_err(|e| e.to_string())?;
        write("slurm.key", &key)?;
        fs::set_permissions(dir.join("etc/slurm.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(|e| e.to_string())?;
        // The last line counts.
        let own = "AuthType=auth/slurm\nCredType=cred/slurm\n";
        Ok(format!("{own}PlugStackConfig=/etc/slurm/plugstack.conf\n"))
    })?;
    let dir = desk.env.work_dir("auth-slurm")?;
    let run = |words: &[&str]| as_user(desk, &slurm, dir.path(), words);
    let image = desk.images.path("demo.sqsh");
    dir.write("slurm.toml", &format!("image = \"{image}\"\nslurm = true\n"))?;
    let inside = ["srun", "-n1", "--environment=./slurm.toml", "sh", "-c", "ls /run/slurm; ls /run/munge"];
    let shown = run(&inside)?;
    if !shown.stdout.contains("sack.socket") || shown.stdout.contains("munge.socket") {
        return Err(format!("wanted Slurm's socket alone\n{shown}").into());
    }
    super::site_machines::from_inside(&run, &image)?;
    slurm.healthy()?;
    Ok(())
}

/// `kill -9` of the process that serves the image ends a step of two tasks in time, with a bad status, and nobody of
/// ours is left.
fn lost_keeper(desk: &Desk, slurm: &Foreign, here: &Path) -> Check {
    let cwd = here.display();
    let watch = Watch::begin(desk.env.uid()?);
    let (mounts, workdir) = (format!("--container-mounts={cwd}"), format!("--container-workdir={cwd}"));
    let script = "touch go.$SLURM_PROCID; exec sleep 1000";
    let words = ["srun", "-n2", "--overcommit", "--container-image=./image.sqsh", &mounts, &workdir];
    let words: Vec<&str> = words.into_iter().chain(["sh", "-c", script]).collect();
    let running = command::start(user_command(desk, slurm, here, &words)?)?;
    let begun = || (0..2).all(|rank| here.join(format!("go.{rank}")).exists());
    let hit = wait_until(PATIENCE, begun)
        && match watch.look().into_iter().find(|one| one.kind == Kind::Keeper) {
            Some(keeper) => kill_if(keeper, || true)?,
            None => false,
        };
    if !hit {
        as_user(desk, slurm, here, &["scancel", "--user", desk.env.user()])?;
    }
    let output = running.finish_within(KILL_WAIT)?;
    if !hit || output.timed_out || output.status.success() {
        as_user(desk, slurm, here, &["scancel", "--user", desk.env.user()])?;
        return Err(format!("hit: {hit}\n{output}").into());
    }
    if !wait_until(PATIENCE, || watch.look().is_empty()) {
        return Err(format!("these go on: {:?}\n{output}", watch.look()).into());
    }
    Ok(())
}

/// A command as the user, on the machine of that Slurm.
fn as_user(desk: &Desk, slurm: &Foreign, dir: &Path, words: &[&str]) -> Result<Output, String> {
    command::run(user_command(desk, slurm, dir, words)?, PATIENCE)
}

pub(super) fn user_command(
    desk: &Desk,
    slurm: &Foreign,
    dir: &Path,
    words: &[&str],
) -> Result<Command, String> {
    user_line(desk, dir, words, |line| slurm.command(line))
}

/// The same, on a machine that `on` makes commands for.
pub(super) fn user_line(
    desk: &Desk,
    dir: &Path,
    words: &[&str],
    on: impl FnOnce(&[&str]) -> Command,
) -> Result<Command, String> {
    let (uid, home) = (desk.env.uid()?.to_string(), desk.env.home()?.display().to_string());
    // nsenter leaves the working directory behind.
    let around = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "env", "-i", "-C"];
    let here = dir.display().to_string();
    let variables = [
        format!("PATH={}", desk.env.search_path()),
        format!("HOME={home}"),
        format!("USER={}", desk.env.user()),
        "LANG=C.UTF-8".to_owned(),
    ];
    let words: Vec<&str> = around
        .into_iter()
        .chain([here.as_str()])
        .chain(variables.iter().map(String::as_str))
        .chain(words.iter().copied())
        .collect();
    Ok(on(&words))
}
