//! The plugin's line in `plugstack.conf`: what each of its words does, on a Slurm of its own whose line can be changed
//! without anybody else noticing. `srun`, `sbatch` and slurmstepd read the file anew each time.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::{Desk, pyxis, releases};
use crate::command::{self, Output, Running, wait_until};
use crate::environment::{PATIENCE, WorkDir};
use crate::foreign::Foreign;
use crate::tier::Check;

/// A Slurm, and a directory of the user's.
pub(super) struct Bench<'a> {
    desk: &'a Desk,
    pub(super) slurm: Foreign,
    pub(super) dir: WorkDir,
}

impl<'a> Bench<'a> {
    pub(super) fn start(desk: &'a Desk, name: &str) -> Result<Self, String> {
        let slurm = Foreign::start_with(|dir| {
            fs::write(dir.join("etc/plugstack.conf"), "").map_err(|e| e.to_string())?;
            // A job that waits for its predecessor shall not wait for the default intervals.
            let prompt = "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0";
            Ok(format!("PlugStackConfig=/etc/slurm/plugstack.conf\n{prompt}\n"))
        })?;
        Ok(Bench { desk, slurm, dir: desk.env.work_dir(name)? })
    }

    /// The plugin under test, with these words behind its trampoline.
    pub(super) fn line(&self, words: &str) -> Result<(), String> {
        let trampoline = self.desk.env.situla().display();
        self.write_line(self.desk.env.spank(), &format!("trampoline={trampoline} {words}"))
    }

    pub(super) fn write_line(&self, plugin: &Path, words: &str) -> Result<(), String> {
        let file = self.slurm.dir().join("etc/plugstack.conf");
        let new = file.with_extension("new");
        let line = format!("required {} {words}\n", plugin.display());
        fs::write(&new, line).and_then(|()| fs::rename(&new, &file)).map_err(|e| e.to_string())
    }

    fn command(&self, variables: &[&str], words: &[&str]) -> Result<std::process::Command, String> {
        // Numbers of jobs begin anew with every such Slurm.
        let state = format!("XDG_STATE_HOME={}", self.dir.path().join("state").display());
        let line: Vec<&str> = ["env", &state]
            .into_iter()
            .chain(variables.iter().copied())
            .chain(words.iter().copied())
            .collect();
        releases::user_command(self.desk, &self.slurm, self.dir.path(), &line)
    }

    pub(super) fn run_with(&self, variables: &[&str], words: &[&str]) -> Result<Output, String> {
        command::run(self.command(variables, words)?, PATIENCE)
    }

    pub(super) fn run(&self, words: &[&str]) -> Result<Output, String> {
        self.run_with(&[], words)
    }

    pub(super) fn begin(&self, words: &[&str]) -> Result<Running, String> {
        command::start(self.command(&[], words)?)
    }

    /// The lines that a command prints.
    fn said(&self, variables: &[&str], words: &[&str]) -> Result<Vec<String>, String> {
        Ok(self.run_with(variables, words)?.success()?.stdout.lines().map(str::to_owned).collect())
    }

    /// A step without a container runs, and nobody says a word.
    pub(super) fn plain_step_runs(&self) -> Result<(), String> {
        let output = self.run(&["srun", "--quiet", "-n1", "echo", "plain"])?.success()?;
        match (output.stdout.trim(), output.stderr.trim()) {
            ("plain", "") => Ok(()),
            _ => Err(format!("a step without a container\n{output}")),
        }
    }

    /// The step is refused by srun, in a line that says these things, and no job comes of it.
    pub(super) fn refused(&self, words: &[&str], told: &[&str]) -> Result<(), String> {
        let before = self.n_jobs()?;
        let output = self.run(words)?;
        let about = |line: &&str| told.iter().all(|told| line.contains(told));
        if output.status.success()
            || output.stdout.contains("INSIDE")
            || output.stderr.lines().filter(about).count() != 1
        {
            return Err(format!("wanted one line with {told:?}\n{output}"));
        }
        match self.n_jobs()? == before {
            true => Ok(()),
            false => Err(format!("a job came of it\n{output}")),
        }
    }

    fn n_jobs(&self) -> Result<usize, String> {
        Ok(self.slurm.run(&["squeue", "-h", "-t", "all", "-o", "%A"])?.stdout.lines().count())
    }

    /// Submits a script that waits, changes something, lets it begin, and gives what it wrote and how it ended.
    fn submitted(
        &self,
        options: &[&str],
        script: &str,
        meanwhile: impl FnOnce() -> Result<(), String>,
    ) -> Result<(String, String), String> {
        let script = self.dir.write("script", &format!("#!/bin/sh\n{script}\n"))?.display().to_string();
        let _ = fs::remove_file(self.dir.path().join("script.log"));
        let words = ["sbatch", "--parsable", "--hold", "--output", "script.log"];
        let words: Vec<&str> =
            words.into_iter().chain(options.iter().copied()).chain([script.as_str()]).collect();
        let id = self.run(&words)?.success()?.stdout.trim().to_owned();
        meanwhile()?;
        self.slurm.run(&["scontrol", "release", &id])?;
        let mut state = String::new();
        let ended = wait_until(PATIENCE, || {
            let shown = self.slurm.run(&["squeue", "-h", "-t", "all", "-j", &id, "-o", "%T"]);
            state = shown.map_or_else(|e| e, |output| output.stdout.trim().to_owned());
            ["COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"].contains(&state.as_str())
        });
        let log = fs::read_to_string(self.dir.path().join("script.log")).unwrap_or_default();
        if ended { Ok((log, state)) } else { Err(format!("the script is {state}: {log}")) }
    }
}

/// `execute_entrypoint=1`: the image's entry point runs where nobody says anything, and the image has one.
///
/// # Errors
/// It does not, or an option or variable does not count.
pub fn entry_point(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "entry-point")?;
    let image = pyxis::image(&bench.dir, &desk.env)?;
    // Says nothing of an entry point.
    let none = format!("--container-image={}", desk.env.image_tree("tiny").display());
    let environment =
        bench.dir.write("e.toml", &format!("image = \"{}\"\n", &image["--container-image=".len()..]))?;
    let environment = format!("--environment={}", environment.display());
    for (words, variables, options, wanted) in [
        ("", &[][..], &[image.as_str()][..], &["command"][..]),
        ("execute_entrypoint=0", &[], &[&image], &["command"]),
        ("execute_entrypoint=0", &[], &[&image, "--container-entrypoint"], &["entry point of 2", "command"]),
        ("execute_entrypoint=1", &[], &[&image], &["entry point of 2", "command"]),
        ("execute_entrypoint=1", &[], &[&image, "--no-container-entrypoint"], &["command"]),
        ("execute_entrypoint=1", &["PYXIS_CONTAINER_ENTRYPOINT=0"], &[&image], &["command"]),
        ("execute_entrypoint=1", &[], &[&none], &["command"]),
        // What an environment says of it is in its file.
        ("execute_entrypoint=1", &[], &[&environment], &["command"]),
    ] {
        bench.line(words)?;
        let line: Vec<&str> =
            ["srun", "-n1"].into_iter().chain(options.iter().copied()).chain(["echo", "command"]).collect();
        let got = bench.said(variables, &line)?;
        if got != wanted {
            return Err(format!("{words:?} {variables:?} {options:?}: wanted {wanted:?}, got {got:?}").into());
        }
    }
    // Who asks for one by name is told that there is none.
    bench
        .run(&["srun", "-n1", &none, "--container-entrypoint", "true"])?
        .expect_code(125)?
        .expect_text("says nothing of an entry point")?;
    bench.slurm.healthy()?;
    Ok(())
}

/// `sbatch_support=0`: sbatch and salloc do not know the options, batch scripts run on the host, and `srun` goes on as ever.
///
/// # Errors
/// A script is in a container, or a step is not.
pub fn batch_scripts(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "batch-scripts")?;
    let tiny = desk.images.path("tiny.sqsh");
    let image = format!("--container-image={tiny}");
    let is_inside = "[ -e /etc/situla-image-witness ] && echo INSIDE || echo outside";
    let profile = format!("--export=ALL,PYXIS_CONTAINER_IMAGE={tiny}");
    let script = format!("{is_inside}\nsrun -n1 sh -c '{is_inside}'");

    bench.line("")?;
    let (log, state) = bench.submitted(&[&image], is_inside, || Ok(()))?;
    if (log.trim(), state.as_str()) != ("INSIDE", "COMPLETED") {
        return Err(format!("by default: {log} {state}").into());
    }
    let (log, state) = bench.submitted(&[&profile], is_inside, || Ok(()))?;
    if (log.trim(), state.as_str()) != ("INSIDE", "COMPLETED") {
        return Err(format!("by default, from a profile: {log} {state}").into());
    }

    bench.line("sbatch_support=0")?;
    for program in ["sbatch", "salloc"] {
        let refused = bench.run(&[program, &image, "/bin/true"])?;
        if refused.status.success() || !refused.stderr.contains("unrecognized option") {
            return Err(format!("{program} knows the options\n{refused}").into());
        }
    }
    let (log, state) = bench.submitted(&[&profile], &script, || Ok(()))?;
    if (log.lines().collect::<Vec<_>>(), state.as_str()) != (vec!["outside", "INSIDE"], "COMPLETED") {
        return Err(format!("with sbatch_support=0: {log} {state}").into());
    }
    bench.run(&["srun", "-n1", &image, "sh", "-c", is_inside])?.success()?.expect_text("INSIDE")?;
    // What an outer step was told, a script that it submits does not hear.
    let inner = "sbatch --wait --output inner.log --wrap 'echo script; [ -e /etc/situla-image-witness ] || echo outside'";
    let outer = ["env", &format!("SLURM_SITULA_IMAGE={tiny}"), "sh", "-c", inner].map(str::to_owned);
    bench.run(&outer.iter().map(String::as_str).collect::<Vec<_>>())?.success()?;
    let log = fs::read_to_string(bench.dir.path().join("inner.log"))?;
    if log.lines().collect::<Vec<_>>() != ["script", "outside"] {
        return Err(format!("a script of an outer step: {log:?}").into());
    }

    // Submitted where it was allowed, and begun on a node where it is not: not on the host, and not in silence.
    bench.line("")?;
    let (log, state) = bench.submitted(&[&image], is_inside, || bench.line("sbatch_support=0"))?;
    if state != "FAILED" || log.contains("side") || !log.contains("(sbatch_support=0)") {
        return Err(format!("a script for a container on such a node: {log} {state}").into());
    }
    bench.slurm.healthy()?;
    Ok(())
}

/// `prefix=WORD`: the options are called by it, and not as elsewhere; `container_scope=`: a container with a name stays for
/// the user's other jobs, or for its own alone, whatever the user's variables say of that.
///
/// # Errors
/// It is otherwise.
pub fn prefix_and_scope(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "prefix-scope")?;
    let tiny = desk.images.path("tiny.sqsh");
    let image = format!("--box-image={tiny}");
    bench.dir.write("e.toml", &format!("image = \"{tiny}\"\nworkdir = \"/usr\"\n"))?;
    bench.line("prefix=box container_scope=global")?;
    let unknown = bench.run(&["srun", "-n1", &image.replace("box", "container"), "echo", "INSIDE"])?;
    if unknown.status.success() || !unknown.stderr.contains("unrecognized option") {
        return Err(format!("the options have two names\n{unknown}").into());
    }
    bench.refused(
        &["srun", "-n1", "--box-workdir=/usr", "echo", "INSIDE"],
        &["--box-workdir has no effect", "--box-image="],
    )?;
    let script = "test -e /etc/situla-image-witness && pwd; echo kept > /etc/kept";
    for (options, wanted) in [
        (&[image.as_str(), "--box-workdir=/etc", "--box-writable", "--box-name=stays"][..], "/etc"),
        (&["--box-environment=./e.toml", "--box-writable"], "/usr"),
    ] {
        let line = [&["srun", "-n1"], options, &["sh", "-c", script]].concat();
        let got = bench.said(&[], &line)?;
        if got != [wanted] {
            return Err(format!("{options:?}: wanted {wanted}, got {got:?}").into());
        }
    }
    let look = |name: &str, scope: &str| {
        let name = format!("--box-name={name}");
        let line = ["srun", "-n1", &image, &name, "sh", "-c", "cat /etc/kept 2>/dev/null || echo nothing"];
        bench.said(&[&format!("SITULA_TASK_SCOPE={scope}")], &line)
    };
    let of_another_job = look("stays", "job")?;
    bench.line("prefix=box container_scope=job")?;
    let line = ["srun", "-n1", &image, "--box-writable", "--box-name=goes", "sh", "-c", script];
    bench.run(&line)?.success()?;
    let own = look("goes", "global")?;
    let hidden = look("stays", "global")?;
    bench.run(&["situla", "container", "rm", "--job", "global", "stays"])?.success()?;
    let mut left = String::new();
    let swept = wait_until(PATIENCE, || {
        let listed = bench
            .run(&["situla", "container", "prune"])
            .and_then(|_| bench.run(&["situla", "container", "list"]));
        left = listed.map_or_else(|error| error, |output| output.stdout);
        !["stays", "goes"].iter().any(|name| left.contains(name))
    });
    let told = [of_another_job, own, hidden].concat();
    if told != ["kept", "nothing", "nothing"] || !swept {
        return Err(format!("other jobs found {told:?}; at last there is: {left}").into());
    }
    bench.slurm.healthy()?;
    Ok(())
}

/// `config=PATH`: the site's settings and policy are there, if nobody but root can have written them.
///
/// # Errors
/// They do not count, or what anybody can have written does.
pub fn named_settings(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "named-settings")?;
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    let place = bench.slurm.dir().join("etc/site");
    fs::create_dir(&place)?;
    let environments = bench.dir.path().join("environments");
    let file = place.join("own.toml");
    let store = bench.dir.path().join("store-{uid}");
    let (path, user) = (environments.display(), store.display());
    fs::write(&file, format!("[environments]\npath = [\"{path}\"]\n[store]\nuser = \"{user}\"\n"))?;
    desk.env.as_user(bench.dir.path(), ["mkdir", "environments"])?.success()?;
    bench.dir.write("environments/ours.toml", &format!("image = \"{}\"\n", desk.images.path("tiny.sqsh")))?;
    let witness = ["cat", "/etc/situla-image-witness"];
    let step = |option: &str| bench.run(&["srun", "-n1", option, witness[0], witness[1]]);

    bench.line("")?;
    bench.refused(&["srun", "-n1", "--environment=ours", "true"], &["ours"])?;
    bench.line(&format!("config={}", file.display()))?;
    step("--environment=ours")?.success()?.expect_text("situla tiny image")?;
    // The process that fetches for the task goes by the same settings.
    let layout = format!("--container-image=oci:{}", desk.env.image_layout("tiny").display());
    step(&layout)?.success()?.expect_text("situla tiny image")?;
    let store = bench.dir.path().join(format!("store-{}/images", desk.env.uid()?));
    if fs::read_dir(&store).map_or(0, Iterator::count) == 0 {
        return Err(format!("nothing was stored in {}", store.display()).into());
    }
    // The payload is told nothing of it.
    let told = bench.run(&["srun", "-n1", &image, "sh", "-c", "echo =$SITULA_TASK_CONFIG="])?.success()?;
    told.expect_text("==")?;

    // The policy beside it.
    let policy = place.join("policy.toml");
    fs::write(
        &policy,
        format!("mode = \"enforce\"\n[files]\ndeny = [\"{}\"]\n", desk.images.path("").trim_end_matches('/')),
    )?;
    step(&image)?
        .expect_code(125)?
        .expect_text("the site's policy refuses")?
        .expect_text(&policy.display().to_string())?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o666))?;
    step(&image)?.expect_code(125)?.expect_text("others than its owner can write to it")?;
    fs::remove_file(&policy)?;
    step(&image)?.success()?.expect_text("situla tiny image")?;

    let uid = desk.env.uid()?;
    let own = |uid: u32, mode: u32| {
        chown(&file, Some(uid), None)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
    };
    own(uid, 0o644)?;
    step(&image)?.expect_code(125)?.expect_text("own.toml: it does not belong to root")?;
    own(0, 0o664)?;
    step(&image)?.expect_code(125)?.expect_text("own.toml: others than its owner can write to it")?;
    own(0, 0o644)?;
    // Somebody else's directory: he could put another file there.
    chown(&place, Some(uid), None)?;
    step(&image)?.expect_code(125)?.expect_text("is not safe")?;
    chown(&place, Some(0), None)?;
    step(&image)?.success()?.expect_text("situla tiny image")?;
    fs::write(&file, "[colours]\n")?;
    step(&image)?.expect_code(125)?.expect_text("colours")?;
    fs::remove_file(&file)?;
    step(&image)?.expect_code(125)?.expect_text("own.toml: it is not there")?;
    bench.plain_step_runs()?;
    // A variable of the user's is not the site's line.
    bench.line("")?;
    let forged = format!("SITULA_TASK_CONFIG={}", file.display());
    bench
        .run_with(&[&forged], &["srun", "-n1", &image, witness[0], witness[1]])?
        .success()?
        .expect_text("situla tiny image")?;
    bench.slurm.healthy()?;
    Ok(())
}

/// `disabled=PATH`: while the file exists nobody gets a container, and who wants none does not notice.
///
/// # Errors
/// One starts, or a plain step suffers.
pub fn switched_off(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "switched-off")?;
    let tiny = desk.images.path("tiny.sqsh");
    let image = format!("--container-image={tiny}");
    let switch = bench.slurm.dir().join("etc/no-containers");
    let name = switch.display().to_string();
    let step = ["srun", "-n1", &image, "echo", "INSIDE"];
    bench.line(&format!("disabled={name}"))?;
    bench.run(&step)?.success()?.expect_text("INSIDE")?;

    fs::write(&switch, "")?;
    let told = ["situla: the site has switched containers off", &name, "exists; try again when"];
    bench.refused(&step, &told)?;
    bench.refused(&["sbatch", &image, "--wrap", "echo INSIDE"], &told)?;
    bench.refused(
        &["env", &format!("PYXIS_CONTAINER_IMAGE={tiny}"), "srun", "-n1", "echo", "INSIDE"],
        &told,
    )?;
    // The options are known: what is refused is told by us.
    bench.run(&["srun", "--help"])?.success()?.expect_text("--container-image")?;
    bench.plain_step_runs()?;

    // Submitted before, begun after: it does not run on the host.
    fs::remove_file(&switch)?;
    let (log, state) =
        bench.submitted(&[&image], "echo INSIDE", || fs::write(&switch, "").map_err(|e| e.to_string()))?;
    if state != "FAILED" || log.contains("INSIDE") || !log.contains(&name) {
        return Err(format!("a script that begins after it: {log} {state}").into());
    }
    fs::remove_file(&switch)?;
    bench.run(&step)?.success()?.expect_text("INSIDE")?;
    bench.slurm.healthy()?;
    Ok(())
}

/// A line with a word that makes no sense refuses containers, by that word, and nobody else's steps.
///
/// # Errors
/// A plain step is stopped, or a container is not.
pub fn not_understood(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "not-understood")?;
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    for (words, told) in [
        ("colour=red", "colour=red is no setting of this plugin"),
        ("runtime_path=/run/pyxis", "runtime_path=/run/pyxis is no setting of this plugin"),
        ("sbatch_support=yes", "sbatch_support=yes is neither 0 nor 1"),
        ("execute_entrypoint=", "execute_entrypoint= is neither 0 nor 1"),
        ("config=site.toml", "config=site.toml is no absolute path"),
        ("prefix=", "prefix= is no setting of this plugin"),
    ] {
        bench.line(words)?;
        bench.plain_step_runs()?;
        bench.refused(&["srun", "-n1", &image, "echo", "INSIDE"], &[told, "plugstack.conf"])?;
        bench.refused(&["sbatch", &image, "--wrap", "echo INSIDE"], &[told, "plugstack.conf"])?;
    }
    bench.write_line(desk.env.spank(), "prefix=box")?;
    bench.plain_step_runs()?;
    bench.refused(
        &["srun", "-n1", &image.replace("container", "box"), "true"],
        &["trampoline=PATH is missing"],
    )?;

    // On the node alone: the task fails, the node does not.
    bench.line("")?;
    let (log, state) = bench.submitted(&[&image], "echo INSIDE", || bench.line("colour=red"))?;
    if state != "FAILED" || log.contains("INSIDE") || !log.contains("colour=red") {
        return Err(format!("a script on such a node: {log} {state}").into());
    }
    bench.plain_step_runs()?;
    bench.slurm.healthy()?;
    Ok(())
}

/// A copy of the plugin in which one of its numbers is another.
pub(super) fn changed_plugin(plugin: &Path, to: &Path, symbol: &str, number: u32) -> Result<(), String> {
    let mut bytes = fs::read(plugin).map_err(|e| format!("{}: {e}", plugin.display()))?;
    let place = place_of(&bytes, symbol).ok_or_else(|| format!("{} has no {symbol}", plugin.display()))?;
    bytes[place..place + 4].copy_from_slice(&number.to_le_bytes());
    let new = to.with_extension("new");
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, to)).map_err(|e| format!("{}: {e}", to.display()))
}

/// Where in an ELF file what a dynamic symbol names lies.
fn place_of(bytes: &[u8], symbol: &str) -> Option<usize> {
    let number = |at: usize, length: usize| {
        let mut value = [0u8; 8];
        value[..length].copy_from_slice(bytes.get(at..at + length)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    let sections = (0..number(60, 2)?).map(|index| Some(number(40, 8)? + index * number(58, 2)?));
    let sections: Vec<usize> = sections.collect::<Option<_>>()?;
    // SHT_DYNSYM, and the names that it is linked to.
    let table = *sections.iter().find(|section| number(*section + 4, 4) == Some(11))?;
    let names = number(sections.get(number(table + 40, 4)?)? + 24, 8)?;
    let (first, size) = (number(table + 24, 8)?, number(table + 32, 8)?);
    let wanted = [symbol.as_bytes(), b"\0"].concat();
    let entry = (first..first + size).step_by(24).find(|entry| {
        number(*entry, 4)
            .is_some_and(|name| bytes.get(names + name..).is_some_and(|text| text.starts_with(&wanted)))
    })?;
    let address = number(entry + 8, 8)?;
    (0..number(56, 2)?).find_map(|index| {
        let header = number(32, 8)? + index * number(54, 2)?;
        // PT_LOAD.
        let (offset, start, length) =
            (number(header + 8, 8)?, number(header + 16, 8)?, number(header + 32, 8)?);
        let is_here = number(header, 4)? == 1 && (start..start + length).contains(&address);
        is_here.then(|| offset + address - start)
    })
}

/// A plugin that speaks another protocol than the program is refused in srun and on the node; an older one is taken.
///
/// # Errors
/// It is not.
pub fn another_protocol(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "another-protocol")?;
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    let trampoline = format!("trampoline={}", desk.env.situla().display());
    let plugin = |number: u32| -> Result<PathBuf, String> {
        let path = bench.slurm.dir().join(format!("etc/spank_situla-{number}.so"));
        changed_plugin(desk.env.spank(), &path, "situla_protocol", number)?;
        Ok(path)
    };
    let (older, newer) = (plugin(0)?, plugin(99)?);
    let step = ["srun", "-n1", &image, "cat", "/etc/situla-image-witness"];
    bench.write_line(&older, &trampoline)?;
    bench.run(&step)?.success()?.expect_text("situla tiny image")?;

    let program = desk.env.situla().display().to_string();
    let told = ["the plugin speaks protocol 99", program.as_str(), "knows 0 to 2", "situla site install"];
    bench.write_line(&newer, &trampoline)?;
    bench.refused(&step, &told)?;
    bench.plain_step_runs()?;

    // A submit host has the older one, the node has the newer one.
    let etc = bench.slurm.dir().join("etc");
    let conf = fs::read_to_string(etc.join("slurm.conf"))?
        .replace("/etc/slurm/plugstack.conf", "/etc/slurm/submit.conf");
    fs::write(etc.join("slurm-submit.conf"), conf)?;
    fs::write(etc.join("submit.conf"), format!("required {} {trampoline}\n", older.display()))?;
    let output = bench.run_with(&["SLURM_CONF=/etc/slurm/slurm-submit.conf"], &step)?.expect_code(125)?;
    let about = |line: &&str| told.iter().all(|told| line.contains(told));
    if output.stderr.lines().filter(about).count() != 1 || output.stdout.contains("tiny image") {
        return Err(format!("wanted one line with {told:?}\n{output}").into());
    }
    let runs = bench.run(&["situla", "runs", "--json"])?.success()?;
    runs.expect_text("engine-setup-failed")?;
    bench.slurm.healthy()?;
    Ok(())
}

/// A table of `--multi-prog` that leads to the submit host's trampoline, where the node has another, is refused there.
///
/// # Errors
/// A program of it ran, or the refusal does not say why.
pub fn another_trampoline(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "another-trampoline")?;
    let image = format!("--container-image={}", desk.images.path("tiny.sqsh"));
    let table = bench.dir.write("table", "0 /bin/echo ON-THE-HOST\n")?.display().to_string();
    let step = ["srun", "-n1", &image, "--multi-prog", &table];
    bench.line("")?;
    let etc = bench.slurm.dir().join("etc");
    let other = etc.join("other-situla");
    std::os::unix::fs::symlink(desk.env.situla(), &other)?;
    let conf = fs::read_to_string(etc.join("slurm.conf"))?
        .replace("/etc/slurm/plugstack.conf", "/etc/slurm/submit.conf");
    fs::write(etc.join("slurm-submit.conf"), conf)?;
    let line = format!("required {} trampoline={}\n", desk.env.spank().display(), other.display());
    fs::write(etc.join("submit.conf"), line)?;
    let output = bench.run_with(&["SLURM_CONF=/etc/slurm/slurm-submit.conf"], &step)?;
    if output.status.success()
        || output.stdout.contains("ON-THE-HOST")
        || !output.stderr.contains("does not lead to")
    {
        return Err(format!("a table for another trampoline\n{output}").into());
    }
    bench.slurm.healthy()?;
    Ok(())
}
