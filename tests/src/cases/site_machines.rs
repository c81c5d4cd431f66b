//! `situla site` where machines differ: some have their configuration from the controller, others share files, and other plugins
//! are there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::Desk;
use super::plugin_lines::Bench;
use super::releases;
use super::site_install::{everything, parsed, site, wrong};
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::foreign::Foreign;
use crate::images::WITNESS;
use crate::tier::{Check, Skip};

/// What a configless cluster needs.
const CONFIGLESS: &str = "SlurmctldParameters=enable_configless\n";

/// `situla site` on a machine of such a cluster.
fn on(
    command: impl FnOnce(&[&str]) -> std::process::Command,
    program: &Path,
    words: &[&str],
) -> Result<Output, String> {
    let program = program.display().to_string();
    let line = [&["env", "-C", "/", "-u", "SLURM_CONF", &program, "site"], words].concat();
    command::run(command(&line), PATIENCE)
}

/// On a node that has its configuration from the controller: the copy is left as it is, the controller's file is named, and the
/// line is added there once the plugin is on all machines; steps run then, and start others from inside an image with the GNU C library.
/// Away go first the line, then the plugin.
///
/// # Errors
/// One does not hold.
pub fn configless(desk: &Desk) -> Check {
    let slurm = Foreign::start_configless(|dir| {
        fs::write(dir.join("etc/plugstack.conf"), "include plugstack.conf.d/*.conf\n")
            .map_err(|e| e.to_string())?;
        fs::create_dir(dir.join("etc/plugstack.conf.d")).map_err(|e| e.to_string())?;
        Ok(CONFIGLESS.to_owned())
    })?;
    let dir = desk.env.work_dir("site-configless")?;
    let prefix = slurm.dir().join("opt/situla");
    let place = format!("--prefix={}", prefix.display());
    let own = desk.env.situla();
    let node = |words: &[&str]| on(|line| slurm.on_node(line), own, words);
    let controller = |words: &[&str]| on(|line| slurm.command(line), own, words);
    let cached = "/run/slurm/conf/plugstack.conf";
    let copy = || slurm.run_on_node(&["cat", cached]).map(|output| output.stdout);
    let host = slurm.run(&["hostname", "-s"])?.stdout.trim().to_owned();
    let file = format!("/etc/slurm/plugstack.conf on {host}");
    let before = copy()?;

    let report = parsed(&node(&["check", "--json", &place])?.expect_code(1)?)?;
    let told = wrong(&report).join("\n");
    if report["plugstack"] != cached
        || !told.contains(&file)
        || !report.to_string().contains("from the controller")
    {
        return Err(format!("{report:#}").into());
    }
    let shown = node(&["install", "--dry-run", &place])?.success()?;
    let told = ["left out the line", file.as_str(), "scontrol reconfigure", "required "];
    let about = |line: &&str| told.iter().all(|part| line.contains(part));
    if shown.stdout.lines().filter(about).count() != 1 || prefix.exists() {
        return Err(format!("wanted one line with {told:?}\n{shown}").into());
    }
    node(&["install", &place])?.success()?.expect_text(&file)?;
    if copy()? != before || !prefix.join("lib/spank_situla.so").exists() {
        return Err("the copy was changed, or nothing was installed".into());
    }
    slurm.run_on_node(&["test", "!", "-e", "/etc/slurm/plugstack.conf"])?;

    // On the controller: what it has is everybody's.
    let refused = controller(&["install", &place])?.expect_code(125)?.expect_text("is handed to machines")?;
    refused.expect_text("--without-line")?.expect_text("--with-line")?;
    controller(&["install", "--with-line", &place])?.success()?;
    let line = fs::read_to_string(slurm.dir().join("etc/plugstack.conf"))?;
    // What is included is not handed out, so the line is in the file itself.
    if !line.contains("\nrequired ") || fs::read_dir(slurm.dir().join("etc/plugstack.conf.d"))?.count() != 0 {
        return Err(format!("the line is not there: {line}").into());
    }
    let reconfigured = |has_line: bool| -> Result<(), String> {
        slurm.run(&["scontrol", "reconfigure"])?;
        match wait_until(PATIENCE, || copy().is_ok_and(|text| text.contains("spank_situla") == has_line)) {
            true => Ok(()),
            false => Err(format!("the node has {:?}", copy())),
        }
    };
    reconfigured(true)?;
    let report = parsed(&node(&["check", "--json", &place])?)?;
    let told = wrong(&report);
    if told.iter().any(|line| !line.starts_with("proctrack: ") && !line.starts_with("subordinate-ids: ")) {
        return Err(format!("{told:#?}").into());
    }
    node(&["install", &place])?.success()?.expect_text("nothing to do")?;

    let run = |words: &[&str]| -> Result<Output, String> {
        let state = format!("XDG_STATE_HOME={}", dir.path().join("state").display());
        let line: Vec<&str> = ["env", &state].into_iter().chain(words.iter().copied()).collect();
        command::run(releases::user_line(desk, dir.path(), &line, |line| slurm.on_node(line))?, PATIENCE)
    };
    let image = desk.images.path("demo.sqsh");
    let option = format!("--container-image={image}");
    run(&["srun", "-n1", &option, "cat", WITNESS])?.success()?.expect_text("situla demo image")?;
    dir.write("slurm.toml", &format!("image = \"{image}\"\nslurm = true\n"))?;
    from_inside(&run, &image)?;

    // Who would lose the plugin before the line is told what to change.
    let refused = node(&["uninstall", &place])?.expect_code(125)?;
    refused.expect_text(&format!("remove its line from {file}"))?;
    controller(&["uninstall", "--only-line", &place])?
        .success()?
        .expect_text("/etc/slurm/plugstack.conf: take out")?;
    reconfigured(false)?;
    run(&["srun", "-n1", "true"])?.success()?;
    node(&["uninstall", &place])?.success()?;
    if prefix.exists() || copy()? != before {
        return Err("not all is as before".into());
    }
    slurm.healthy()?;
    Ok(())
}

/// In a container of an image with the GNU C library and Python, a program starts steps of its job: on the host and in the
/// same image, and hears how they end. A file `slurm.toml` describes it.
pub(super) fn from_inside(run: &dyn Fn(&[&str]) -> Result<Output, String>, image: &str) -> Check {
    let script = format!(
        "import subprocess as s\n\
         def run(*words): print(s.run(['srun', '--overlap', '-n1', *words], stdout=s.PIPE, text=True).stdout.strip())\n\
         run('sh', '-c', 'test -e {WITNESS} || echo on the host')\n\
         run('--container-image={image}', 'head', '-c17', '{WITNESS}')\n\
         print(s.run(['srun', '--overlap', '-n1', 'sh', '-c', 'exit 7']).returncode)\n\
         print(s.run('squeue -h -j $SLURM_JOB_ID -o %T', shell=True, stdout=s.PIPE, text=True).stdout.strip())\n"
    );
    let output = run(&["srun", "-n1", "--environment=./slurm.toml", "python3", "-c", &script])?.success()?;
    let got: Vec<&str> = output.stdout.lines().collect();
    let wanted = ["on the host", "situla demo image", "7", "RUNNING"];
    if got != wanted {
        return Err(format!("wanted {wanted:?}\n{output}").into());
    }
    Ok(())
}

/// A plugin of somebody else's with an option of ours: `install` names it and adds nothing, `check` says that the option is one
/// plugin's, as it is, and with another prefix both are there.
///
/// # Errors
/// It is not so.
pub fn rival_plugin(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "site-rival")?;
    let etc = bench.slurm.dir().join("etc");
    let source = bench.dir.write("engine.c", ENGINE)?.display().to_string();
    let plugin = etc.join("engine.so").display().to_string();
    command::run(command::words(["cc", "-shared", "-fPIC", "-o", &plugin, &source]), PATIENCE)?.success()?;
    let line = format!("optional {plugin}\n");
    fs::write(etc.join("plugstack.conf"), &line)?;
    bench.run(&["srun", "--help"])?.success()?.expect_text("--environment=")?;
    let prefix = bench.slurm.dir().join("opt/situla");
    let place = format!("--prefix={}", prefix.display());
    let own = desk.env.situla();

    let refused = site(&bench, own, &["install", &place])?.expect_code(125)?.expect_text(&plugin)?;
    refused.expect_text("such as --environment")?.expect_text("prefix=WORD")?;
    if prefix.exists() || fs::read_to_string(etc.join("plugstack.conf"))? != line {
        return Err("something was installed".into());
    }
    // With both, as somebody could write it.
    let both = format!("{line}required {} trampoline={}\n", desk.env.spank().display(), own.display());
    fs::write(etc.join("plugstack.conf"), both)?;
    bench
        .run(&["srun", "-n1", "--environment=theirs", "echo", "ran"])?
        .success()?
        .expect_text("taken by engine")?;
    let told = wrong(&parsed(&site(&bench, own, &["check", "--json", &place])?.expect_code(1)?)?);
    let about = |line: &String| {
        line.starts_with("options: ")
            && line.contains("engine.so have the same options, such as --environment")
    };
    if !told.iter().any(about) {
        return Err(format!("{told:#?}").into());
    }
    fs::write(etc.join("plugstack.conf"), &line)?;
    site(&bench, own, &["install", "--setting", "prefix=box", &place])?.success()?;
    let image = format!("--box-image={}", desk.images.path("tiny.sqsh"));
    bench
        .run(&["srun", "-n1", "--environment=theirs", &image, "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny")?;
    let report = parsed(&site(&bench, own, &["check", "--json", &place])?.success()?)?;
    if wrong(&report).iter().any(|line| line.starts_with("options")) {
        return Err(format!("{report:#}").into());
    }
    bench.slurm.healthy()?;
    Ok(())
}

/// Needs a C compiler.
///
/// # Errors
/// There is none.
pub fn compiler() -> Result<(), Skip> {
    let found = command::run(command::words(["cc", "--version"]), PATIENCE);
    found.and_then(Output::success).map(drop).map_err(|_| Skip("no C compiler".to_owned()))
}

/// A SPANK plugin with one option; what it needs of `slurm/spank.h` (22.05) is written out.
const ENGINE: &str = r#"
#include <stdio.h>
const char plugin_name[] = "engine", plugin_type[] = "spank";
const unsigned int plugin_version = 0x160500, spank_plugin_version = 1;
int slurm_spank_init(void *spank, int argc, char **argv) { return 0; }
static int taken(int value, const char *argument, int is_remote) { if (!is_remote) puts("taken by engine"); return 0; }
struct spank_option {
  char *name, *arginfo, *usage;
  int has_arg, value;
  int (*callback)(int, const char *, int);
} spank_options[] = {
  { "environment", "NAME", "an environment of another engine", 1, 0, taken },
  { 0, 0, 0, 0, 0, 0 },
};
"#;

/// The list of what is installed is not believed where somebody else could have written it, or where it names what no
/// installation has.
///
/// # Errors
/// It is.
pub fn planted_list(desk: &Desk) -> Check {
    let bench = Bench::start(desk, "site-planted")?;
    let prefix = bench.slurm.dir().join("opt/situla");
    let place = format!("--prefix={}", prefix.display());
    let own = desk.env.situla();
    site(&bench, own, &["install", &place])?.success()?;
    let list = prefix.join("share/situla/manifest.json");
    let text = fs::read_to_string(&list)?;
    let victim = bench.slurm.dir().join("etc/victim");
    let planted = bench.slurm.dir().join("etc/planted");
    fs::write(&victim, "of the site\n")?;
    fs::write(&planted, "of somebody\n")?;
    let before = everything(bench.slurm.dir())?;
    let with = |key: &str, more: String| {
        text.replacen(&format!("\"{key}\": {{"), &format!("\"{key}\": {{{more},"), 1)
    };
    let backups = format!("\"{}\":\"{}\"", victim.display(), planted.display());
    let mut empty = text.clone();
    if empty.contains("\"backups\": {}") {
        empty = empty.replace("\"backups\": {}", &format!("\"backups\": {{{backups}}}"));
    }
    let entry = format!("\"{}\":{{\"link\":\"x\"}}", victim.display());
    for (name, changed) in [("backups", empty), ("entries", with("entries", entry))] {
        if changed == text {
            return Err(format!("{name}: the list has another form: {text}").into());
        }
        fs::write(&list, &changed)?;
        for words in [&["uninstall"][..], &["install"], &["uninstall", "--dry-run"]] {
            let refused = site(&bench, own, &[words, &[&place]].concat())?.expect_code(125)?;
            refused
                .expect_text("is not believed")?
                .expect_text(&bench.slurm.dir().join("etc").display().to_string())?;
        }
    }
    fs::write(&list, &text)?;
    for (uid, mode, why) in [
        (desk.env.uid()?, 0o644, "it does not belong to root"),
        (0, 0o664, "others than its owner can write"),
    ] {
        chown(&list, Some(uid), None)?;
        fs::set_permissions(&list, fs::Permissions::from_mode(mode))?;
        site(&bench, own, &["uninstall", &place])?.expect_code(125)?.expect_text(why)?;
    }
    chown(&list, Some(0), None)?;
    fs::set_permissions(&list, fs::Permissions::from_mode(0o644))?;
    if everything(bench.slurm.dir())?.keys().ne(before.keys()) {
        return Err("something was changed".into());
    }
    site(&bench, own, &["uninstall", &place])?.success()?;
    Ok(())
}

/// Links in the tree of `--root` that name a place by its full path lead to that place in the tree, and never out of it.
///
/// # Errors
/// Something appears elsewhere, or does not appear there.
pub fn links_in_a_tree(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("site-links")?;
    let outside = dir.path().join("outside");
    let inside = format!("root{}", outside.display());
    desk.env
        .as_user(
            dir.path(),
            ["mkdir", "-p", "root/etc", "root/srv/conf/plugstack.conf.d", "outside", &inside],
        )?
        .success()?;
    symlink("/srv/conf", dir.path().join("root/etc/slurm"))?;
    symlink(&outside, dir.path().join("root/opt"))?;
    dir.write("root/srv/conf/plugstack.conf", "include /etc/slurm/plugstack.conf.d/*.conf\n")?;
    let root = format!("--root={}", dir.path().join("root").display());
    let situla = |words: &[&str]| {
        desk.env.as_user(dir.path(), ["situla", "site"].iter().chain(words).copied().chain([root.as_str()]))
    };
    let before = everything(dir.path())?;
    situla(&["install"])?.success()?;
    if fs::read_dir(&outside)?.count() != 0 {
        return Err("something was installed outside of the tree".into());
    }
    let installed = dir.path().join(&inside).join("situla/bin/situla");
    let line = fs::read_to_string(dir.path().join("root/srv/conf/plugstack.conf.d/situla.conf"))?;
    if !installed.is_file() || !line.contains("required /opt/situla/lib/spank_situla.so") {
        return Err(format!("nothing in the tree: {line}").into());
    }
    situla(&["check"])?.success()?;
    situla(&["uninstall"])?.success()?;
    if everything(dir.path())? != before {
        return Err("the tree is not as before".into());
    }
    Ok(())
}
