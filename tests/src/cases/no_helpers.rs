//! Images are made by our own code: no program is started for it.

use std::fs;
use std::path::Path;

use super::Desk;
use super::privileged::registry;
use crate::command;
use crate::environment::PATIENCE;
use crate::tier::{self, Check, Skip};

const STRACE: &str = "/usr/bin/strace";

/// Needs a tracer.
///
/// # Errors
/// It is not there, or may not trace.
pub fn tracer() -> Result<(), Skip> {
    tier::succeeds(STRACE, &["-f", "-o", "/dev/null", "/bin/true"])
        .map_err(|why| Skip(format!("needs strace: {why}")))
}

/// Pulls and conversions of all kinds execute nothing but the program itself, and need no search path.
///
/// # Errors
/// One starts something, or fails.
pub fn nothing_is_started(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("alone")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let situla = desk.env.situla().display().to_string();
    let tree = desk.env.image_tree("tiny").display().to_string();
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let source = format!("docker://{address}/tiny:1");
    for words in [
        &["convert", &tree, "a.sqsh"][..],
        &["convert", &tree, "a.sif"],
        &["convert", &layout, "b.sif"],
        &["convert", "b.sif", "c.sqsh"],
        &["convert", "c.sqsh", "d.sif"],
        &["pull", "--store-only", &source],
        &["pull", &source, "-o", "e.sqsh"],
        &["pull", &source, "-o", "e.sif"],
        &["inspect", "--hash", "e.sif"],
        &["images"],
    ] {
        let started = traced(desk, dir.path(), &[&[situla.as_str()], words].concat())?;
        if started != [situla.clone()] {
            return Err(format!("situla {words:?} started {started:?}").into());
        }
    }
    // The tracer does see what is started by what is started.
    let started = traced(desk, dir.path(), &["/bin/sh", "-c", "/bin/tar --version; /bin/true"])?;
    if started != ["/bin/sh", "/bin/tar", "/bin/true"] {
        return Err(format!("the tracer saw {started:?}").into());
    }
    Ok(())
}

/// Runs a command as the user without a search path; returns what it and its children tried to execute.
fn traced(desk: &Desk, dir: &Path, words: &[&str]) -> Result<Vec<String>, String> {
    let trace = dir.join("trace").display().to_string();
    let home = format!("HOME={}", desk.env.home()?.display());
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    let around = [
        "/usr/bin/env",
        "-i",
        &home,
        &cache,
        STRACE,
        "-f",
        "-qq",
        "-e",
        "trace=execve,execveat",
        "-o",
        &trace,
    ];
    let command = desk.env.user_command(dir, around.iter().chain(words))?;
    command::run(command, PATIENCE)?.success()?;
    let text = fs::read_to_string(&trace).map_err(|e| format!("{trace}: {e}"))?;
    // 1234 execve("/bin/true", ["/bin/true"], 0x7ffc0 /* 2 vars */) = 0
    let programs =
        text.lines().filter(|line| line.contains("execve")).filter_map(|line| line.split('"').nth(1));
    Ok(programs.map(str::to_owned).collect())
}
