//! `situla site`: what an administrator installs, checks and removes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Desk;
use super::plugin_lines::{Bench, changed_plugin};
use crate::command::{self, Output, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::tier::Check;

/// Everything below a directory: modes, sizes and where links lead.
pub(super) fn everything(top: &Path) -> Result<BTreeMap<PathBuf, String>, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        let io = |e: std::io::Error| format!("{}: {e}", directory.display());
        for entry in fs::read_dir(&directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let about = fs::symlink_metadata(&path).map_err(io)?;
            let size = if about.is_dir() { 0 } else { about.len() };
            found.insert(path.clone(), format!("{:o} {} {size}", about.mode(), about.uid()));
            if about.is_dir() {
                waiting.push(path);
            }
        }
    }
    Ok(found)
}

pub(super) fn parsed(output: &Output) -> Result<Value, String> {
    serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))
}

/// The messages of what is wrong, with what to do.
pub(super) fn wrong(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .filter(|finding| finding["level"] != "ok")
        .map(|finding| {
            format!(
                "{}: {}; {}",
                text(&finding["check"]),
                text(&finding["message"]),
                text(&finding["remedy"])
            )
        })
        .collect()
}

/// A tree with Slurm's configuration as a package leaves it.
fn tree(desk: &Desk, name: &str) -> Result<(WorkDir, String), String> {
    let dir = desk.env.work_dir(name)?;
    desk.env.as_user(dir.path(), ["mkdir", "-p", "root/etc/slurm/plugstack.conf.d"])?.success()?;
    dir.write("root/etc/slurm/plugstack.conf", "include /etc/slurm/plugstack.conf.d/*.conf\n")?;
    dir.write("root/etc/slurm/slurm.conf", "ClusterName=c\nProctrackType=proctrack/cgroup\n")?;
    let root = format!("--root={}", dir.path().join("root").display());
    Ok((dir, root))
}

/// Into the tree of a machine, as an ordinary user, with the version of this machine's Slurm: shown first, done, looked
/// at, done again without effect, and removed.
///
/// # Errors
/// What is shown is not what is done, or something else changes.
pub fn in_a_tree(desk: &Desk) -> Check {
    let (dir, root) = tree(desk, "site-tree")?;
    let situla = |words: &[&str]| {
        desk.env.as_user(dir.path(), ["situla", "site"].iter().chain(words).copied().chain([root.as_str()]))
    };
    let before = everything(dir.path())?;
    let shown = situla(&["install", "--dry-run", "--setting", "prefix=box"])?.success()?;
    if everything(dir.path())? != before {
        return Err(format!("what was only to be shown was done\n{shown}").into());
    }
    let done = situla(&["install", "--setting", "prefix=box"])?.success()?;
    let as_done = |line: &str| {
        let verbs = [("would make ", "made "), ("would write ", "wrote "), ("would link ", "linked ")];
        let verb = verbs.iter().find_map(|(would, did)| Some(format!("{did}{}", line.strip_prefix(would)?)));
        verb.unwrap_or_else(|| line.to_owned())
    };
    let expected: Vec<String> = shown.stdout.lines().map(as_done).collect();
    if shown.stdout.lines().any(|line| !line.starts_with("would "))
        || done.stdout.lines().ne(expected.iter().map(String::as_str))
    {
        return Err(format!("shown and done differ\n{shown}\n{done}").into());
    }
    let line = fs::read_to_string(dir.path().join("root/etc/slurm/plugstack.conf.d/situla.conf"))?;
    if !line.ends_with(
        "\nrequired /opt/situla/lib/spank_situla.so trampoline=/opt/situla/bin/situla prefix=box\n",
    ) {
        return Err(format!("the line is {line:?}").into());
    }
    let place = dir.path().join("root/opt/situla");
    for (installed, own) in [("bin/apptainer", desk.env.situla()), ("lib/spank_situla.so", desk.env.spank())]
    {
        if fs::read(place.join(installed))? != fs::read(own)? {
            return Err(format!("{installed} is not what was under test").into());
        }
    }
    situla(&["install"])?.success()?.expect_text("nothing to do")?;

    let report = parsed(&situla(&["check", "--json"])?.success()?)?;
    if report["result"] != "ok"
        || !wrong(&report).is_empty()
        || report["findings"].as_array().is_none_or(|all| all.len() < 5)
    {
        return Err(format!("{report:#}").into());
    }
    // An upgrade of Slurm.
    let stale = situla(&["check", "--json", "--slurm-version", "23.11.4"])?.expect_code(1)?;
    let told = wrong(&parsed(&stale)?);
    let about = |line: &String| {
        [
            "was built for 22.05 and Slurm is 23.11",
            "every srun, sbatch and salloc would fail",
            "SITULA_SLURM_VERSION=23.11",
        ]
        .iter()
        .all(|part| line.contains(part))
    };
    if told.len() != 1 || !about(&told[0]) {
        return Err(stale.to_string().into());
    }
    situla(&["check", "--slurm-version", "23.11.4"])?.expect_code(1)?.expect_text("problem  the plugin")?;
    fs::write(dir.path().join("root/opt/situla/bin/situla"), "by somebody else")?;
    let told = wrong(&parsed(&situla(&["check", "--json"])?.success()?)?);
    if !told.iter().any(|line| line.contains("/opt/situla/bin/situla is not what was installed")) {
        return Err(format!("a changed program is not told: {told:?}").into());
    }
    situla(&["install"])?.expect_code(125)?.expect_text("--replace")?;
    situla(&["install", "--replace"])?.success()?;
    fs::remove_file(place.join("bin/situla.before-situla"))?;

    let shown = situla(&["uninstall", "--dry-run"])?.success()?;
    shown.expect_text("would remove /etc/slurm/plugstack.conf.d/situla.conf")?;
    situla(&["uninstall"])?.success()?;
    let after = everything(dir.path())?;
    if after != before {
        let left: Vec<_> = after.iter().filter(|one| !before.contains_key(one.0)).collect();
        return Err(format!("the tree is not as before: {left:?}").into());
    }
    situla(&["uninstall"])?.expect_code(125)?.expect_text("nothing was installed")?;
    Ok(())
}

/// What cannot be installed changes nothing and says what to do.
///
/// # Errors
/// Something is there afterwards, or the message does not help.
pub fn refused(desk: &Desk) -> Check {
    let (dir, root) = tree(desk, "site-refused")?;
    let before = everything(dir.path())?;
    let empty = dir.path().join("root/etc").display().to_string();
    for (words, code, told) in [
        (
            &["--slurm-version", "99.11"][..],
            125,
            &["no plugin for Slurm 99.11", "is for 22.05", "SITULA_SLURM_VERSION=99.11"][..],
        ),
        (&["--from", &empty], 2, &["there is no program"]),
        (&["--prefix", "opt"], 2, &["no absolute path"]),
        (&["--prefix", "/opt/my situla"], 2, &["without blanks"]),
        (&["--setting", "colour=red"], 2, &["the plugin's settings are"]),
        (&["--setting", "trampoline=/x"], 2, &["the plugin's settings are"]),
        (&["--slurm-version", "new"], 2, &["23.11"]),
    ] {
        let line = ["situla", "site", "install", &root];
        let output = desk.env.as_user(dir.path(), line.iter().chain(words))?;
        let mut output = output.expect_code(code)?;
        for told in told {
            output = output.expect_text(told)?;
        }
    }
    dir.write("root/etc/slurm/plugstack.conf", "required spank_pyxis.so\n")?;
    let output = desk.env.as_user(dir.path(), ["situla", "site", "install", &root])?.expect_code(125)?;
    output.expect_text("pyxis")?.expect_text("--setting prefix=WORD")?;
    dir.write("root/etc/slurm/plugstack.conf", "include /etc/slurm/plugstack.conf.d/*.conf\n")?;
    // On the machine itself, by somebody who is not root.
    let own = format!("--prefix={}", dir.path().join("own").display());
    let output = desk.env.as_user(dir.path(), ["situla", "site", "install", &own])?.expect_code(125)?;
    output.expect_text("others could change what is installed")?;
    let output = desk.env.as_user(dir.path(), ["situla", "site", "install"])?.expect_code(125)?;
    output.expect_text("only root can install")?;
    // Nor by root where others can write.
    let mut as_root = command::words(["env", "-u", "SLURM_CONF"]);
    as_root.arg(desk.env.situla()).args(["site", "install", &own]);
    command::run(as_root, PATIENCE)?.expect_code(125)?.expect_text("it does not belong to root")?;
    if everything(dir.path())? != before {
        return Err("something was changed".into());
    }
    Ok(())
}

/// `situla site` on the bench's machine.
pub(super) fn site(bench: &Bench<'_>, program: &Path, words: &[&str]) -> Result<Output, String> {
    let program = program.display().to_string();
    let line = [&["env", "-C", "/", &program, "site"], words].concat();
    command::run(bench.slurm.command(line), PATIENCE)
}

/// Installed on a running Slurm, found by what the controller says; a step runs; a plugin for another Slurm is told, and is
/// what it is said to be; removed, the options are unknown and all files as before.
///
/// # Errors
/// One does not hold.
pub fn on_a_cluster(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "site-cluster")?;
    let etc = bench.slurm.dir().join("etc");
    fs::write(etc.join("plugstack.conf"), "# of the site\n")?;
    let prefix = bench.slurm.dir().join("opt/situla");
    let (own, program) = (desk.env.situla(), prefix.join("bin/situla"));
    let place = format!("--prefix={}", prefix.display());
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    let step = ["srun", "-n1", &image, "cat", "/etc/situla-image-witness"];
    let before = everything(&etc)?;
    let unknown =
        |output: Output| match output.status.success() || !output.stderr.contains("unrecognized option") {
            true => Err(format!("the option is known\n{output}")),
            false => Ok(()),
        };
    unknown(bench.run(&step)?)?;
    site(&bench, own, &["check", &place])?.expect_code(1)?.expect_text("loads no plugin of ours")?;

    site(&bench, own, &["install", &place])?.success()?.expect_text("changed /etc/slurm/plugstack.conf")?;
    bench.run(&step)?.success()?.expect_text("situla tiny image")?;
    // By the program itself, which knows where it is.
    let report = parsed(&site(&bench, &program, &["check", "--json"])?.success()?)?;
    let told = wrong(&report);
    // The nodes of this Slurm have no control groups, and this machine may lack what --subids needs.
    if told.iter().any(|line| !line.starts_with("proctrack: ") && !line.starts_with("subordinate-ids: ")) {
        return Err(format!("{told:#?}").into());
    }
    if report["plugstack"] != "/etc/slurm/plugstack.conf" || report["prefix"] != prefix.display().to_string()
    {
        return Err(format!("{report:#}").into());
    }
    site(&bench, &program, &["install"])?.success()?.expect_text("nothing to do")?;

    // Slurm was upgraded, or as good as that.
    changed_plugin(desk.env.spank(), &prefix.join("lib/spank_situla.so"), "plugin_version", 0x17_0b04)?;
    site(&bench, &program, &["check"])?
        .expect_code(1)?
        .expect_text("was built for 23.11 and slurmd is 22.05: every srun")?;
    let plain = bench.run(&["srun", "-n1", "true"])?;
    if plain.status.success() {
        return Err(format!("srun takes a plugin for another Slurm\n{plain}").into());
    }
    site(&bench, own, &["install", "--replace", &place])?.success()?;
    bench.run(&step)?.success()?.expect_text("situla tiny image")?;
    fs::remove_file(prefix.join("lib/spank_situla.so.before-situla"))?;

    site(&bench, &program, &["uninstall"])?.success()?.expect_text("changed /etc/slurm/plugstack.conf")?;
    unknown(bench.run(&step)?)?;
    bench.plain_step_runs()?;
    if everything(&etc)? != before || bench.slurm.dir().join("opt").exists() {
        return Err("not all is as before".into());
    }
    bench.slurm.healthy()?;
    Ok(())
}

/// An upgrade while a step runs: it ends well and its record is whole, and the next step has the new program and plugin.
///
/// # Errors
/// One does not hold.
pub fn under_a_running_step(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "site-upgrade")?;
    let prefix = bench.slurm.dir().join("opt");
    let place = format!("--prefix={}", prefix.display());
    site(&bench, desk.env.situla(), &["install", &place])?.success()?;
    // The next release: what stands behind a program's end nobody executes, and the plugin has another number.
    let release = bench.slurm.dir().join("next");
    fs::create_dir(&release)?;
    fs::copy(desk.env.situla(), release.join("situla"))?;
    let mut program = fs::OpenOptions::new().append(true).open(release.join("situla"))?;
    std::io::Write::write_all(&mut program, b"next")?;
    drop(program);
    changed_plugin(desk.env.spank(), &release.join("spank_situla.so"), "situla_protocol", 0)?;
    let sizes =
        [desk.env.situla(), &release.join("situla")].map(|path| fs::metadata(path).map(|file| file.len()));
    let [old, new] = sizes;
    let (old, new) = (old?, new?);

    let here = bench.dir.path();
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    let mounts = format!("--container-mounts={}", here.display());
    let begin = |name: &str| {
        // Slurm's own time limit ends it should this case break off.
        let script = format!(
            "echo $PPID >{0}/{name}.new; mv {0}/{name}.new {0}/{name}.pid; while [ ! -e {0}/{name}.stop ]; do usleep 20000; done; cat /etc/situla-image-witness",
            here.display()
        );
        bench.begin(&["srun", "-n1", "--time=5", &image, &mounts, "sh", "-c", &script])
    };
    // The task: how large its program is, and what the plugin has told it.
    let task = |name: &str| -> Result<(u64, String), String> {
        let file = here.join(format!("{name}.pid"));
        if !wait_until(PATIENCE, || file.exists()) {
            return Err(format!("the step {name} does not begin"));
        }
        let pid = fs::read_to_string(&file).map_err(|e| e.to_string())?.trim().to_owned();
        let io = |e: std::io::Error| format!("task {pid}: {e}");
        let size = fs::metadata(format!("/proc/{pid}/exe")).map_err(io)?.len();
        let told = fs::read(format!("/proc/{pid}/environ")).map_err(io)?;
        let told = String::from_utf8_lossy(&told)
            .split('\0')
            .find_map(|word| word.strip_prefix("SITULA_TASK_PROTOCOL=").map(str::to_owned));
        Ok((size, told.unwrap_or_default()))
    };
    let running = begin("first")?;
    let first = task("first")?;
    let from = format!("--from={}", release.display());
    let upgrade = site(&bench, desk.env.situla(), &["install", &place, &from])?.success()?;
    if fs::metadata(prefix.join("bin/situla"))?.len() != new {
        return Err(format!("nothing new was installed\n{upgrade}").into());
    }
    if task("first")? != first || first != (old, "2".to_owned()) {
        return Err(format!("the running step has {first:?}").into());
    }
    fs::write(here.join("first.stop"), "")?;
    running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;

    let running = begin("second")?;
    let second = task("second");
    fs::write(here.join("second.stop"), "")?;
    running.finish(PATIENCE)?.success()?.expect_text("situla tiny image")?;
    if second != Ok((new, "0".to_owned())) {
        return Err(format!("the next step has {second:?}, not {new} bytes and the new plugin").into());
    }
    let runs = parsed(&bench.run(&["situla", "runs", "--json"])?.success()?)?;
    let records = runs.as_array().cloned().unwrap_or_default();
    let is_whole = |record: &Value| record["ended"] == true && record["outcome"]["class"] == "ok";
    if records.len() != 2 || !records.iter().all(is_whole) {
        return Err(format!("the records are not whole: {runs:#}").into());
    }
    bench.slurm.healthy()?;
    Ok(())
}
