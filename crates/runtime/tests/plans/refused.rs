//! The same on kernels and under filters that refuse some system calls.

use std::process::Command;

use crate::bench::{Bench, Kind, runner, text};

/// Refused calls as `REFUSE` has them: ENOSYS is 38, EPERM 1, EINVAL 22.
const NEW_MOUNT_CALLS: &str = "open_tree,move_mount,mount_setattr,fsopen";

/// Other tests of this file, run again with system calls refused to all that they start.
fn again_without(refused: &str, tests: &[&str]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "without_"])
        .args(tests)
        .env("REFUSE", refused)
        .output()
        .unwrap();
    let (out, err) = text(&output);
    assert!(output.status.success(), "{refused}: {out}{err}");
    assert!(out.contains("test result: ok. ") && !out.contains("ok. 0 passed"), "{refused}: {out}");
}

#[test]
fn without_the_new_mount_calls_everything_is_the_same() {
    if Bench::prepare().is_none() {
        return;
    }
    again_without(&format!("38:{NEW_MOUNT_CALLS},openat2,close_range"), &[]);
    // Linux 5.10 has all of them but one; filters refuse in their own way.
    again_without("38:mount_setattr", &["root", "patches", "mounts", "above", "masked"]);
    again_without(&format!("1:{NEW_MOUNT_CALLS}"), &["root", "patches", "mounts"]);
}

#[test]
fn without_any_mount_call_the_start_fails() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let plan = bench.plan(kind, "exit 0", |_| {});
        let mut command = Command::new(runner());
        let output =
            command.arg(&plan).env("REFUSE", format!("38:mount,{NEW_MOUNT_CALLS}")).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{kind:?}");
        assert!(text(&output).1.starts_with("error: MountFailed: "), "{kind:?}: {}", text(&output).1);
    }
}

#[test]
fn without_openat2_or_pivot_root_everything_is_the_same() {
    if Bench::prepare().is_none() {
        return;
    }
    again_without("38:openat2,close_range", &["root", "patches", "mounts", "failures", "privileges"]);
    // What a host says that runs from its initial RAM file system.
    again_without("22:pivot_root", &["root", "patches", "mounts", "share", "privileges"]);
}
