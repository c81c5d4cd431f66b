//! The command line without Slurm: an ordinary user, an image, and what is said when something is wrong.

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

/// `plan` prints one JSON value and runs nothing.
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
    Ok(())
}

/// A run shows up in `situla runs`, and a failed one with its class.
///
/// # Errors
/// It does not.
pub fn runs_are_recorded(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("runs")?;
    let image = desk.images.path("tiny.sqsh");
    let count = |desk: &Desk| -> Result<usize, String> {
        let output = run(desk, dir.path(), &["situla", "runs", "--json"])?.success()?;
        let value: serde_json::Value =
            serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
        value.as_array().map(Vec::len).ok_or_else(|| format!("no list\n{output}"))
    };
    let before = count(desk)?;
    run(desk, dir.path(), &["situla", "exec", "--record", &image, "true"])?.success()?;
    run(desk, dir.path(), &["situla", "exec", "--record", &image, "sh", "-c", "exit 4"])?.expect_code(4)?;
    // Outside Slurm a run is recorded only where that is asked for.
    run(desk, dir.path(), &["situla", "exec", &image, "true"])?.success()?;
    if count(desk)? != before + 2 {
        return Err("two runs did not make two records".into());
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
