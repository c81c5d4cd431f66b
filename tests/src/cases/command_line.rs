//! The command line without Slurm: an ordinary user, an image, and what is said when something is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use super::Desk;
use crate::command::{self, Output};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::tier::Check;

fn run(desk: &Desk, cwd: &std::path::Path, words: &[&str]) -> Result<Output, String> {
    desk.env.as_user(cwd, words)
}

/// Every kind of image starts, in a mount namespace of its own, with the user's identity and directory.
///
/// # Errors
/// One does not.
pub fn exec_each_kind(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("exec")?;
    let host = fs::read_link("/proc/self/ns/mnt")?.display().to_string();
    let tree = desk.env.image_tree("tiny").display().to_string();
    let script = format!("cat {WITNESS}; readlink /proc/self/ns/mnt; id -u; pwd");
    for program in ["situla", "apptainer"] {
        for image in [desk.images.path("tiny.sif"), desk.images.path("tiny.sqsh"), tree.clone()] {
            let output = run(desk, dir.path(), &[program, "exec", &image, "sh", "-c", &script])?.success()?;
            let lines: Vec<&str> = output.stdout.lines().collect();
            let uid = desk.env.uid()?.to_string();
            let here = dir.path().display().to_string();
            if lines.len() != 4
                || !lines[0].starts_with("situla tiny image")
                || lines[1] == host
                || lines[2] != uid
                || lines[3] != here
            {
                return Err(output.to_string().into());
            }
        }
    }
    Ok(())
}

/// Python and numpy of the demo image work.
///
/// # Errors
/// They do not.
pub fn python_and_numpy(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("python")?;
    let image = desk.images.path("demo.sif");
    run(desk, dir.path(), &["situla", "exec", &image, "python3", "-V"])?
        .success()?
        .expect_text("Python 3.")?;
    let sum = "import numpy; print(int(numpy.arange(10).sum()))";
    run(desk, dir.path(), &["apptainer", "exec", &image, "python3", "-c", sum])?
        .success()?
        .expect_text("45")?;
    Ok(())
}

/// Codes pass through; our own failures have the codes of the personality; signals are raised again.
///
/// # Errors
/// They do not.
pub fn exit_codes(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("codes")?;
    let image = desk.images.path("tiny.sqsh");
    for (program, engine) in [("situla", 125), ("apptainer", 255)] {
        run(desk, dir.path(), &[program, "exec", &image, "sh", "-c", "exit 3"])?.expect_code(3)?;
        run(desk, dir.path(), &[program, "exec", "./none.sqsh", "true"])?
            .expect_code(engine)?
            .expect_text("none.sqsh")?;
        let output = run(desk, dir.path(), &[program, "exec", &image, "sh", "-c", "kill -TERM $$"])?;
        if output.status.signal() != Some(15) {
            return Err(format!("the signal was not raised again\n{output}").into());
        }
    }
    run(desk, dir.path(), &["situla", "exec", &image, "/no/such"])?.expect_code(127)?;
    run(desk, dir.path(), &["situla", "exec", &image, "/etc/passwd"])?.expect_code(126)?;
    Ok(())
}

/// A conversion's result holds exactly the tree, as an independent reader sees it.
///
/// # Errors
/// It differs.
pub fn unsquashfs_reads_ours(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("unsquashfs")?;
    for name in ["tiny", "demo"] {
        // As root: only root can restore owners, and they are part of what is compared.
        let out = dir.path().join(name);
        let image = desk.images.path(&format!("{name}.sqsh"));
        let words = ["unsquashfs", "-quiet", "-no-progress", "-dest", &out.display().to_string(), &image]
            .map(String::from);
        command::run(command::words(words), PATIENCE)?.success()?;
        same_trees(&desk.env.image_tree(name), &out)?;
    }
    Ok(())
}

/// `plan` prints one JSON value and runs nothing: it executes no program, makes no process and no file. An image of a registry
/// that was not fetched is not fetched for it either.
///
/// # Errors
/// It does not.
pub fn plan_runs_nothing(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("plan")?;
    let image = desk.images.path("tiny.sqsh");
    let output = run(desk, dir.path(), &["situla", "plan", &image, "touch", "ran"])?.success()?;
    let plan: serde_json::Value =
        serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
    if !plan.is_object() || dir.path().join("ran").exists() {
        return Err(format!("not a plan, or it ran\n{output}").into());
    }
    let situla = desk.env.situla().display().to_string();
    let seen = super::no_helpers::traced(desk, dir.path(), &[&situla, "plan", &image, "touch", "ran"])?;
    if seen.started != [situla] || seen.n_processes != 0 || !seen.made.is_empty() {
        return Err(format!("plan did more than to print: {seen:?}").into());
    }
    // Nobody listens there; who tried to reach it would be refused, and say so.
    let absent = "docker://127.0.0.1:9/absent:1";
    let refused = run(desk, dir.path(), &["situla", "plan", absent, "true"])?.expect_code(125)?;
    refused
        .expect_text("a plan fetches nothing")?
        .expect_text("situla pull docker://127.0.0.1:9/absent:1")?;
    Ok(())
}

/// A run shows up in `situla runs`, and a failed one with its class.
///
/// # Errors
/// It does not.
pub fn runs_are_recorded(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("runs")?;
    let image = desk.images.path("tiny.sqsh");
    let listed = || -> Result<BTreeMap<String, String>, String> {
        let output = run(desk, dir.path(), &["situla", "runs", "--json", "--limit", "1000000"])?.success()?;
        let value: serde_json::Value =
            serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
        let list = value.as_array().ok_or_else(|| format!("no list\n{output}"))?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list.iter().map(|one| (text(&one["id"]), text(&one["outcome"]["class"]))).collect())
    };
    let before = listed()?;
    run(desk, dir.path(), &["situla", "exec", "--record", &image, "true"])?.success()?;
    run(desk, dir.path(), &["situla", "exec", "--record", &image, "sh", "-c", "exit 4"])?.expect_code(4)?;
    // Outside Slurm a run is recorded only where that is asked for.
    run(desk, dir.path(), &["situla", "exec", &image, "true"])?.success()?;
    let mut new: Vec<(String, String)> =
        listed()?.into_iter().filter(|(id, _)| !before.contains_key(id)).collect();
    new.sort_by(|a, b| a.1.cmp(&b.1));
    let classes: Vec<&str> = new.iter().map(|(_, class)| class.as_str()).collect();
    if classes != ["app-error", "ok"] {
        return Err(format!("two runs were to make two records, not {new:?}").into());
    }
    // In words, with every phase from the policy to the payload.
    let id = new.first().map(|(id, _)| id.as_str()).unwrap_or_default();
    let shown = run(desk, dir.path(), &["situla", "show", id])?.success()?;
    let phases =
        shown.stdout.lines().find(|line| line.trim_start().starts_with("phases ")).unwrap_or_default();
    let named: Vec<&str> = phases
        .split([' ', ','])
        .filter(|word| !matches!(*word, "" | "us") && word.parse::<u64>().is_err())
        .collect();
    if named != ["phases", "admit", "resolve", "plan", "meet", "start"] {
        return Err(format!("not every phase is shown\n{shown}").into());
    }
    Ok(())
}

/// `run` starts what the image says, with the arguments given or its own; `shell` reads commands; an image
/// file is a program, if `run-singularity` is in the search path.
///
/// # Errors
/// One of them does something else.
pub fn run_and_shell(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("run")?;
    let tree = dir.path().join("tree");
    let copy = ["cp", "-a", &desk.env.image_tree("tiny").display().to_string(), &tree.display().to_string()]
        .map(String::from);
    command::run(command::words(copy), PATIENCE)?.success()?;
    fs::create_dir(tree.join(".singularity.d"))?;
    let script = dir.write("runscript", "#!/bin/sh\nprintf 'script %s:' $#\nprintf '<%s>' \"$@\"\n")?;
    fs::copy(script, tree.join(".singularity.d/runscript"))?;
    let layout = dir.path().join("layout");
    layout_with_command(&desk.env.image_layout("tiny"), &layout)?;
    let layout = format!("oci:{}:1", layout.display());
    let plain = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    for (source, image) in [
        (layout.as_str(), "entry.sqsh"),
        (&layout, "entry.sif"),
        (&plain, "command.sif"),
        ("./tree", "script.sqsh"),
        ("./tree", "script.sif"),
    ] {
        run(desk, dir.path(), &["situla", "convert", source, image])?.success()?;
    }
    let nothing = desk.images.path("tiny.sqsh");
    let own = format!("PATH={}:{}", dir.path().display(), desk.env.search_path());
    std::os::unix::fs::symlink(desk.env.situla(), dir.path().join("run-singularity"))?;
    for program in [&["situla", "run"][..], &["apptainer", "run"], &["env", &own, "run-singularity"]] {
        for (image, arguments, expected) in [
            ("./entry.sqsh", &[][..], "<a default>"),
            ("./entry.sqsh", &["one", "two words"], "<one><two words>"),
            ("./entry.sif", &[], "<a default>"),
            ("./entry.sif", &["one", "two words"], "<one><two words>"),
            // An image with a command and no entry point: arguments replace the command.
            ("./command.sif", &["echo", "-n", "replaced"], "replaced"),
            ("./tree", &["one", "two words"], "script 2:<one><two words>"),
            ("./script.sqsh", &["one", "two words"], "script 2:<one><two words>"),
            ("./script.sif", &[], "script 0:<>"),
        ] {
            let words: Vec<&str> =
                program.iter().copied().chain([image]).chain(arguments.iter().copied()).collect();
            let output = run(desk, dir.path(), &words)?.success()?;
            if output.stdout != expected {
                return Err(format!("expected {expected:?}\n{output}").into());
            }
        }
        // Without any of these, and with a shell as its command, it is a shell.
        for image in [nothing.as_str(), "./command.sif"] {
            commands_on_stdin(desk, dir.path(), &[program, &[image]].concat())?;
        }
    }
    for words in [
        &["situla", "shell", &nothing][..],
        &["apptainer", "shell", &nothing],
        &["apptainer", "shell", "--shell", "/bin/ash", &nothing],
        // The demo image has bash, which then is the shell.
        &["situla", "shell", &desk.images.path("demo.sif")],
    ] {
        commands_on_stdin(desk, dir.path(), words)?;
    }
    // A SIF begins with a line for the kernel, and the conversion made it executable.
    let output = run(desk, dir.path(), &["env", &own, "./entry.sif", "started", "directly"])?.success()?;
    if output.stdout != "<started><directly>" {
        return Err(output.to_string().into());
    }
    Ok(())
}

/// The shell that `words` start reads its commands from standard input, inside, and ends with their status.
fn commands_on_stdin(desk: &Desk, cwd: &std::path::Path, words: &[&str]) -> Check {
    let script = format!("printf 'cat {WITNESS}\\nexit 7\\n' | \"$@\"");
    let words = ["sh", "-c", script.as_str(), "sh"].iter().chain(words).copied().collect::<Vec<_>>();
    run(desk, cwd, &words)?.expect_code(7)?.expect_text(" image, recipe ")?;
    Ok(())
}

/// Copies an OCI layout and gives its image an entry point and a default argument, both visible in the
/// output of a run.
fn layout_with_command(from: &std::path::Path, to: &std::path::Path) -> Check {
    let copy = ["cp", "-a", &from.display().to_string(), &to.display().to_string()].map(String::from);
    command::run(command::words(copy), PATIENCE)?.success()?;
    let blob = |digest: &serde_json::Value| {
        let hex = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).ok_or("no digest")?;
        Ok::<_, String>(to.join("blobs/sha256").join(hex))
    };
    let read = |path: &std::path::Path| -> Result<serde_json::Value, String> {
        let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))
    };
    // Writes a document under its digest, and the digest and size into the descriptor of it.
    let store = |document: &serde_json::Value, descriptor: &mut serde_json::Value| -> Check {
        let bytes = document.to_string();
        let new = to.join("blobs/sha256/new");
        fs::write(&new, &bytes)?;
        let sum =
            command::run(command::words(["sha256sum".as_ref(), new.as_os_str()]), PATIENCE)?.success()?;
        let hex = sum.stdout.split(' ').next().unwrap_or_default().to_owned();
        fs::rename(new, to.join("blobs/sha256").join(&hex))?;
        descriptor["digest"] = format!("sha256:{hex}").into();
        descriptor["size"] = bytes.len().into();
        Ok(())
    };
    let mut index = read(&to.join("index.json"))?;
    let mut manifest = read(&blob(&index["manifests"][0]["digest"])?)?;
    let mut config = read(&blob(&manifest["config"]["digest"])?)?;
    config["config"]["Entrypoint"] = serde_json::json!(["printf", "<%s>"]);
    config["config"]["Cmd"] = serde_json::json!(["a default"]);
    store(&config, &mut manifest["config"])?;
    store(&manifest, &mut index["manifests"][0])?;
    fs::write(to.join("index.json"), index.to_string())?;
    Ok(())
}

/// What a program finds by default in a container, and what the options change of it.
///
/// # Errors
/// It finds something else.
pub fn defaults_from_inside(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("inside")?;
    let image = desk.images.path("demo.sif");
    let here = dir.path().display().to_string();
    let home = desk.env.home()?.display().to_string();
    let user = desk.env.user();
    dir.write("beside", "a file beside\n")?;
    // Of a name that no other run has; removed below.
    let shared = format!("/tmp/situla-test-{}-shared", std::process::id());
    let host = ["env", "FROM_HOST=visible", "LD_LIBRARY_PATH=/host/lib"];
    let inside = |options: &[&str], script: &str| -> Result<String, String> {
        let words = host.iter().copied().chain(["apptainer", "exec"]).chain(options.iter().copied());
        let words: Vec<&str> = words.chain([image.as_str(), "sh", "-c", script]).collect();
        Ok(run(desk, dir.path(), &words)?.success()?.stdout)
    };
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with(&format!("{user}:"))).ok_or("no such user")?;
    let ids = line.split(':').skip(2).take(2).collect::<Vec<_>>().join(":");
    let library_path = "/.singularity.d/libs".to_owned();
    for (options, script, expected) in [
        (&[][..], "id -un", user.to_owned()),
        (&[], "echo $(id -u):$(id -g)", ids.clone()),
        (&[], "echo \"$HOME\"", home.clone()),
        (&[], "pwd; cat beside", format!("{here}\na file beside")),
        (&[], &format!("grep '^{user}:' /etc/passwd | cut -d: -f3,4,6"), format!("{ids}:{home}")),
        (&[], "cat /etc/resolv.conf", resolver.trim_end().to_owned()),
        (&[], &format!("echo from inside > {shared}; cat {shared}"), "from inside".to_owned()),
        (&[], "echo \"$FROM_HOST\"", "visible".to_owned()),
        (&[], "echo \"$LD_LIBRARY_PATH\"", library_path),
        (&[], "echo \"$PATH\"", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        (&[], "echo \"$APPTAINER_CONTAINER $APPTAINER_NAME\"", format!("{image} demo.sif")),
        (&["--cleanenv"], "echo \"<$FROM_HOST> $HOME\"", format!("<> {home}")),
        (&["--cleanenv", "--env", "A=one,B=two words"], "echo \"$A/$B\"", "one/two words".to_owned()),
        (&["--env", "FROM_HOST=changed"], "echo \"$FROM_HOST\"", "changed".to_owned()),
        (&["--pwd", "/usr/share"], "pwd", "/usr/share".to_owned()),
        // Without the home directory its files are gone; the working directory below it is still bound.
        (
            &["--no-home", "--pwd", "/"],
            "ls -d $HOME/.situla-test-images 2>/dev/null || echo gone",
            "gone".to_owned(),
        ),
        (
            &["-B", &format!("{here}:/data:ro")],
            "cat /data/beside; touch /data/new 2>/dev/null || echo refused",
            "a file beside\nrefused".to_owned(),
        ),
        (&["-B", &format!("{here}:/data")], "touch /data/written && echo written", "written".to_owned()),
        (&[], "touch /usr/new 2>/dev/null || echo read-only", "read-only".to_owned()),
    ] {
        let found = inside(options, script)?;
        if found.trim_end() != expected {
            let _ = fs::remove_file(&shared);
            return Err(format!(
                "{options:?} {script}\nexpected {expected:?}\nfound    {:?}",
                found.trim_end()
            )
            .into());
        }
    }
    let outside = fs::read_to_string(&shared);
    let _ = fs::remove_file(&shared);
    if outside? != "from inside\n" || !dir.path().join("written").exists() {
        return Err("what was written inside is not outside".into());
    }
    mounts_are_restricted(&inside(&[], "cat /proc/self/mountinfo")?, &here)
}

/// The image is read-only; nothing brings set-user-id programs, and only `/dev` brings devices.
fn mounts_are_restricted(table: &str, here: &str) -> Check {
    let mut seen = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [point, options] = [fields.get(4), fields.get(5)].map(|field| field.copied().unwrap_or_default());
        let options: Vec<&str> = options.split(',').collect();
        let of_dev = point == "/dev" || point.starts_with("/dev/");
        if !options.contains(&"nosuid")
            || !(of_dev || options.contains(&"nodev"))
            || (point == "/" && !options.contains(&"ro"))
        {
            return Err(format!("{point} is mounted {options:?}\n{table}").into());
        }
        seen.push(point);
    }
    for point in ["/", "/proc", "/sys", "/dev", "/tmp", "/etc/resolv.conf"] {
        if !seen.contains(&point) {
            return Err(format!("{point} is no mount\n{table}").into());
        }
    }
    // The working directory may come with the home directory.
    if !seen.iter().any(|point| *point != "/" && here.starts_with(point)) {
        return Err(format!("no mount for {here}\n{table}").into());
    }
    Ok(())
}

/// Compares two trees by an independent program: names, types, contents; then modes, owners and times.
///
/// # Errors
/// The first differences.
pub(super) fn same_trees(a: &std::path::Path, b: &std::path::Path) -> Result<(), String> {
    let diff = ["diff", "--no-dereference", "-r", "-q", &a.display().to_string(), &b.display().to_string()]
        .map(String::from);
    let output = command::run(command::words(diff), PATIENCE)?;
    // diff(1) cannot compare device nodes and complains; the images have none.
    output.success()?;
    let listing = |root: &std::path::Path| -> Result<String, String> {
        let mut find = command::words(["find", ".", "-printf", "%p %y %m %U %G %T@ %l\\n"]);
        find.current_dir(root);
        let mut lines: Vec<String> =
            command::run(find, PATIENCE)?.success()?.stdout.lines().map(whole_seconds).collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    };
    let (left, right) = (listing(a)?, listing(b)?);
    if left == right {
        return Ok(());
    }
    let differences: Vec<String> = left
        .lines()
        .zip(right.lines())
        .filter(|(l, r)| l != r)
        .take(5)
        .map(|(l, r)| format!("{l}\n{r}"))
        .collect();
    Err(format!("{} and {} differ:\n{}", a.display(), b.display(), differences.join("\n")))
}

/// SquashFS keeps whole seconds.
fn whole_seconds(line: &str) -> String {
    line.split(' ')
        .map(|word| match word.split_once('.') {
            Some((seconds, fraction))
                if seconds.parse::<i64>().is_ok() && fraction.parse::<u64>().is_ok() =>
            {
                seconds
            }
            _ => word,
        })
        .collect::<Vec<_>>()
        .join(" ")
}
