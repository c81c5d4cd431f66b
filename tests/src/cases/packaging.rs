//! What an installation brings for other programs of the host.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Desk;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, TestEnv};
use crate::tier::{Check, Skip};

/// A parser of AppArmor 4 at work: it reads what is in `directory`, and loads nothing into a kernel.
fn parse(env: &TestEnv, directory: &Path, words: &[&str]) -> Result<Output, String> {
    let mut parser = Command::new(env.script("apptainer-tree"));
    parser
        .arg("run")
        .arg("--bind")
        .arg(directory)
        .args(["--", "apparmor_parser"])
        .args(words)
        .current_dir("/");
    command::run(parser, PATIENCE)
}

/// Needs the parser.
///
/// # Errors
/// It is not there.
pub(super) fn parser(env: &TestEnv) -> Result<(), Skip> {
    let version = parse(env, Path::new("/tmp"), &["--version"]).and_then(Output::success);
    let missing =
        |why: String| Skip(format!("needs AppArmor's parser: run scripts/apptainer-tree up ({why})"));
    version.map(drop).map_err(missing)
}

/// The plugin gives Slurm, in whose processes it is loaded, the names that Slurm looks for and the number of its protocol:
/// any other could stand in for one of Slurm's or of another plugin's.
///
/// # Errors
/// It has others, or lacks one.
pub fn symbols_of_the_plugin(desk: &Desk) -> Check {
    let plugin = desk.env.spank().display().to_string();
    let listed = command::run(command::words(["nm", "--dynamic", "--defined-only", &plugin]), PATIENCE)?;
    let listed = listed.success()?;
    let mut names: Vec<&str> =
        listed.stdout.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    names.sort_unstable();
    let wanted = [
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "situla_protocol",
        "slurm_spank_init",
        "slurm_spank_init_post_opt",
        "slurm_spank_local_user_init",
        "slurm_spank_task_exit",
        "slurm_spank_task_init",
        "spank_plugin_version",
    ];
    if names == wanted { Ok(()) } else { Err(format!("wanted {wanted:?}\n{listed}").into()) }
}

/// AppArmor's own parser takes the profile, which is of the program's name; one with a rule that does not exist it refuses,
/// and names the file.
///
/// # Errors
/// It does not.
pub fn apparmor_profile(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("apparmor")?;
    let profile = fs::read_to_string(desk.env.file("packaging/apparmor/situla"))?;
    let broken = profile.replace("  userns,", "  usernames,");
    if broken == profile {
        return Err("the profile does not speak of user namespaces".into());
    }
    for (name, text, is_good) in [("situla", &profile, true), ("broken", &broken, false)] {
        let path = dir.write(name, text)?.display().to_string();
        // Neither the kernel nor a cache is written to.
        let output = parse(&desk.env, dir.path(), &["--skip-kernel-load", "--skip-cache", &path])?;
        if is_good {
            output.success().map_err(|e| format!("packaging/apparmor/situla: {e}"))?;
            let names = parse(&desk.env, dir.path(), &["--names", &path])?.success()?;
            if names.stdout.trim() != "situla" {
                return Err(format!("packaging/apparmor/situla has other profiles\n{names}").into());
            }
        } else if output.status.success() || !output.stderr.contains(&path) {
            return Err(format!("a rule that does not exist is not refused\n{output}").into());
        }
    }
    Ok(())
}
