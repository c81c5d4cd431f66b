//! What needs root to look at: the kernel's view of our images, real Apptainer, and a real registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Desk;
use super::command_line::same_trees;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, TestEnv};
use crate::images::WITNESS;
use crate::tier::{self, Check, Skip};

/// A mount that ends with the case.
pub(super) struct Mounted(pub(super) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays mounted is found by the look for leaks.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The kernel mounts our `.sqsh` and sees exactly the tree.
///
/// # Errors
/// It differs.
pub fn kernel_mounts_ours(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("mount")?;
    for name in ["tiny", "demo"] {
        let point = dir.path().join(name);
        fs::create_dir(&point)?;
        let image = desk.images.path(&format!("{name}.sqsh"));
        let mount =
            ["mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", &image, &point.display().to_string()]
                .map(String::from);
        command::run(command::words(mount), PATIENCE)?.success()?;
        let mounted = Mounted(point);
        same_trees(&desk.env.image_tree(name), &mounted.0)?;
    }
    Ok(())
}

/// Needs real Apptainer.
///
/// # Errors
/// Its tree is not there.
pub(super) fn apptainer_tree(env: &TestEnv) -> Result<(), Skip> {
    let mut version = Command::new(env.script("apptainer-tree"));
    version.arg("version");
    let missing = |why: String| Skip(format!("needs Apptainer: run scripts/apptainer-tree up ({why})"));
    command::run(version, PATIENCE).and_then(Output::success).map(drop).map_err(missing)
}

/// Needs a registry server, and a program that pushes to it.
///
/// # Errors
/// One of them is not installed.
pub(super) fn registry_program() -> Result<(), Skip> {
    for (program, arguments) in [("docker-registry", ["--version"]), ("skopeo", ["--version"])] {
        tier::succeeds(program, &arguments).map_err(|why| Skip(format!("needs {program}: {why}")))?;
    }
    Ok(())
}

/// Real Apptainer, as the unprivileged user.
pub(super) fn apptainer(desk: &Desk, cwd: &Path, words: &[&str]) -> Result<Output, String> {
    in_apptainers_tree(desk, cwd, &[&["apptainer"], words].concat())
}

/// The same; its output, which need not be text, goes into a file.
pub(super) fn apptainer_into(desk: &Desk, cwd: &Path, file: &str, words: &[&str]) -> Result<Output, String> {
    let shell = ["sh", "-c", "file=$1; shift; exec apptainer \"$@\" >\"$file\"", "sh", file];
    in_apptainers_tree(desk, cwd, &[&shell, words].concat())?.success()
}

fn in_apptainers_tree(desk: &Desk, cwd: &Path, words: &[&str]) -> Result<Output, String> {
    let mut command = Command::new(desk.env.script("apptainer-tree"));
    command.args(["run", "--user", desk.env.user(), "--bind"]).arg(desk.env.image_tree("tiny")).arg("--");
    command.args(words).current_dir(cwd);
    command::run(command, PATIENCE)
}

/// Real Apptainer runs the `.sif` we wrote.
///
/// # Errors
/// It does not.
pub fn apptainer_runs_ours(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("theirs")?;
    apptainer(desk, dir.path(), &["exec", &desk.images.path("tiny.sif"), "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny image")?;
    let python = [
        "exec",
        &desk.images.path("demo.sif"),
        "python3",
        "-c",
        "import numpy; print(numpy.arange(10).sum())",
    ];
    apptainer(desk, dir.path(), &python)?.success()?.expect_text("45")?;
    Ok(())
}

/// We run the `.sif` that real Apptainer built.
///
/// # Errors
/// We do not.
pub fn we_run_apptainers(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("build")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    apptainer(desk, dir.path(), &["build", "built.sif", &tree])?.success()?;
    for program in ["situla", "apptainer"] {
        desk.env
            .as_user(dir.path(), [program, "exec", "./built.sif", "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
    }
    Ok(())
}

/// The version of Apptainer that is the judge; another one may rightly behave differently.
const APPTAINER: &str = "1.4.5";

/// Lines that only one of the two shows, by their beginnings, and why that is right.
const ACCEPTED: &[(&str, &str)] = &[
    ("theirs: env PROMPT_COMMAND=", "it sets PS1 once more in bash; we set PS1 itself, as they do too"),
    ("theirs: env USER_PATH=", "the host's PATH, kept for the start of their own helper programs"),
    (
        "theirs: mount /etc/passwd ",
        "our server shows the image's file with the user's line in it, so it needs no mount",
    ),
    (
        "theirs: mount /etc/group ",
        "our server shows the image's file with the user's line in it, so it needs no mount",
    ),
];

/// The same command in the same `.sif`: real Apptainer and our `apptainer` give it the same variables, mounts,
/// account and directory.
///
/// # Errors
/// A difference that is not in the list above.
pub fn same_as_apptainer(desk: &Desk) -> Check {
    let mut version = Command::new(desk.env.script("apptainer-tree"));
    version.arg("version");
    let version = command::run(version, PATIENCE)?.success()?;
    if !version.stdout.trim().starts_with(APPTAINER) {
        return Err(format!("not Apptainer {APPTAINER}\n{version}").into());
    }
    let dir = desk.env.work_dir("same")?;
    let image = desk.images.path("tiny.sif");
    let user = desk.env.user();
    let home = desk.env.home()?.display().to_string();
    // The shell adds nothing of its own to `env`'s list but PWD and SHLVL, and is the same in both.
    let script = format!(
        "env | sed 's/^/env /'; cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'; \
         echo \"passwd $(grep '^{user}:' /etc/passwd)\"; echo \"group $(grep \":$(id -g):\" /etc/group)\"; \
         echo \"pwd $(pwd)\"; echo \"id $(id)\"; echo \"umask $(umask)\"; echo \"0 $0 1 $1\""
    );
    let around = [
        format!("HOME={home}"),
        format!("USER={user}"),
        "LANG=C.UTF-8".to_owned(),
        "FROM_HOST=a value with 'quotes' and $dollars".to_owned(),
        "LD_LIBRARY_PATH=/of/the/host".to_owned(),
        "APPTAINERENV_SET_OUTSIDE=1".to_owned(),
    ];
    let mut differences = Vec::new();
    let command = ["sh", "-c", &script, "zero", "one"];
    for (action, options, command) in [
        ("exec", &[][..], &command[..]),
        ("exec", &["--cleanenv", "--env", "A=1"], &command),
        ("exec", &["--no-home", "--pwd", "/usr"], &command),
        // These two read commands.
        ("run", &[], &[]),
        ("shell", &[], &[]),
    ] {
        let tail = std::iter::once(action).chain(options.iter().copied()).chain([image.as_str()]);
        let tail: Vec<&str> = tail.chain(command.iter().copied()).collect();
        let feed = ["sh", "-c", "printf '%s\\n' \"$0\" | \"$@\"", &script];
        let feed = if command.is_empty() { &feed[..] } else { &[] };
        let around = around.iter().map(String::as_str);
        let path = format!("PATH={}", desk.env.search_path());
        let ours = ["env", "-i", &path].into_iter().chain(around.clone()).chain(feed.iter().copied());
        let ours = ours.chain(["apptainer"]).chain(tail.clone());
        let ours = desk.env.as_user(dir.path(), ours)?.success()?;
        let mut theirs = Command::new(desk.env.script("apptainer-tree"));
        theirs.args(["run", "--user", user, "--", "env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"]);
        theirs.args(around).args(feed).arg("apptainer").args(tail).current_dir(dir.path());
        let theirs = command::run(theirs, PATIENCE)?.success()?;
        let lines = |output: &Output| output.stdout.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let (ours, theirs) = (lines(&ours), lines(&theirs));
        differences
            .extend(ours.difference(&theirs).map(|line| format!("ours:   {line} {action} {options:?}")));
        differences
            .extend(theirs.difference(&ours).map(|line| format!("theirs: {line} {action} {options:?}")));
    }
    differences.retain(|line| !ACCEPTED.iter().any(|(accepted, _)| line.starts_with(accepted)));
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n").into()) }
}

pub(super) fn registry(desk: &Desk, word: &str) -> Result<Output, String> {
    command::run(command::words([desk.env.script("registry").as_os_str(), word.as_ref()]), PATIENCE)?
        .success()
}

/// A pull from a real registry gives the tree, from gzip and from zstd layers.
///
/// # Errors
/// It does not.
pub fn pull(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("pull")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    for (reference, tree) in [("tiny:1", "tiny"), ("demo:1", "demo"), ("demo:zstd", "demo")] {
        let file = dir.path().join(format!("{}.sqsh", reference.replace(':', "-"))).display().to_string();
        let source = format!("docker://{address}/{reference}");
        desk.env.as_user(dir.path(), ["situla", "pull", &source, "-o", &file])?.success()?;
        let out = dir.path().join("tree").display().to_string();
        let words =
            ["unsquashfs", "-quiet", "-no-progress", "-force", "-dest", &out, &file].map(String::from);
        command::run(command::words(words), PATIENCE)?.success()?;
        let pulled = fs::read_to_string(format!("{out}{WITNESS}"))?;
        if pulled != fs::read_to_string(desk.env.image_tree(tree).join(&WITNESS[1..]))? {
            return Err(format!("{reference} gave another image: {pulled}").into());
        }
        // A whiteout and an opaque directory of the demo image.
        if tree == "demo"
            && (fs::exists(format!("{out}/usr/share/bug"))?
                || fs::exists(format!("{out}/opt/situla/stale/hidden"))?)
        {
            return Err(format!("{reference}: what a later layer deleted is there").into());
        }
        fs::remove_dir_all(out)?;
    }
    Ok(())
}

/// A registry that serves a layer whose bytes do not match their digest is refused, and no file appears.
///
/// # Errors
/// It is believed.
pub fn pull_of_a_tampered_layer(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("tampered")?;
    // A store of its own: in the user's the image may be, from before.
    let store = desk.env.work_dir("tampered-store")?;
    let cache = format!("XDG_CACHE_HOME={}", store.path().display());
    with_bad_layer(desk, |source, layer| {
        desk.env
            .as_user(dir.path(), ["env", &cache, "situla", "pull", source, "-o", "out.sqsh"])?
            .expect_code(125)?
            .expect_text(layer)?;
        Ok(())
    })?;
    if fs::read_dir(dir.path())?.next().is_some() {
        return Err("a refused pull left a file".into());
    }
    Ok(())
}

/// Calls `check` with a reference and the beginning of a digest, while the registry serves other bytes for
/// the layer of that digest.
pub(super) fn with_bad_layer(desk: &Desk, check: impl FnOnce(&str, &str) -> Check) -> Check {
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let state = PathBuf::from(
        std::env::var_os("SITULA_REGISTRY_STATE").unwrap_or_else(|| "/var/lib/situla-registry".into()),
    );
    let manifest = fs::read_to_string(desk.env.image_layout("tiny").join("index.json"))?;
    let digest = |text: &str| text.split("sha256:").nth(1).map(|d| d.chars().take(64).collect::<String>());
    let manifest = digest(&manifest).ok_or("index.json names no manifest")?;
    let manifest = fs::read_to_string(desk.env.image_layout("tiny").join("blobs/sha256").join(manifest))?;
    let layers = manifest.split("\"layers\"").nth(1).and_then(digest).ok_or("the manifest names no layer")?;
    let blob = state.join(format!("data/docker/registry/v2/blobs/sha256/{}/{layers}/data", &layers[..2]));
    let good = fs::read(&blob)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&blob, bad)?;
    let source = format!("docker://{address}/tiny:1");
    let checked = check(&source, &layers[..12]);
    fs::write(&blob, good)?;
    checked
}
