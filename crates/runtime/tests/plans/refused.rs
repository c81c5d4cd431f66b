//! The same on kernels and under filters that refuse some system calls.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bench::{Bench, Kind, finish, runner, skip, start, text, wait_until};

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
    again_without("38:mount_setattr", &["root", "patches", "mounts", "above", "masked", "masks"]);
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

/// Where no thread can be started nobody is kept waiting: tasks that do not find the first one lead themselves.
#[test]
fn without_threads_tasks_go_on() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let gate = bench.path(&format!("alone-{kind:?}"));
        fs::create_dir(&gate).unwrap();
        let plan = |script: &str| {
            bench.plan(kind, script, |plan| {
                let key = format!("alone/{}/{kind:?}", std::process::id());
                plan["share"] = json!({"with": "step", "key": key, "local_tasks": 3});
                let bind =
                    json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
                plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
            })
        };
        // EAGAIN is 11.
        let start = |plan: &std::path::Path| {
            let mut command = Command::new(runner());
            command.arg(plan).env("REFUSE", "11:clone3").stdin(Stdio::null());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let first =
            start(&plan("touch /real/here; while ! test -e /real/go; do sleep 0.01; done; cat /etc/witness"));
        wait_until("the first task", || gate.join("here").exists());
        let others = [start(&plan("cat /etc/witness")), start(&plan("cat /etc/witness"))];
        for other in others {
            let (out, err) = text(&finish(other));
            assert_eq!(out, "from the image\n", "{kind:?}: {err}");
        }
        fs::write(gate.join("go"), "").unwrap();
        assert_eq!(text(&finish(first)).0, "from the image\n", "{kind:?}");
        // With the containers their keepers go; each has the command line of the task that forked it.
        let left = || {
            let entries = fs::read_dir("/proc").unwrap().flatten();
            entries.into_iter().any(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&bench.path("plan-").display().to_string())
            })
        };
        wait_until("the keepers to go", || !left());
    }
}

/// What fails after something was attached fails once, with its own reason: there is no second attempt on
/// top of the first.
#[test]
fn what_is_refused_late_is_not_tried_again() {
    let Some(bench) = Bench::prepare() else { return };
    let host = bench.path("kept");
    fs::create_dir(&host).unwrap();
    // Writing there is refused with EPERM, as a filter refuses a call.
    let immutable = |set: &str| {
        Command::new("chattr").arg(set).arg(&host).output().is_ok_and(|output| output.status.success())
    };
    if !immutable("+i") {
        skip("needs root and a file system with immutable directories");
        return;
    }
    let plan = bench.plan(Kind::Directory, "exit 0", |plan| {
        plan["rootfs"]["overlay"] = json!({"upper": {"kind": "directory", "path": host}});
    });
    let output = finish(start(&plan, &[]));
    assert!(immutable("-i"));
    let err = text(&output).1;
    assert!(err.starts_with("error: Overlay: ") && err.contains("cannot be written to"), "{err}");
}
