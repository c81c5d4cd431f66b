//! What every container is: its files, its privileges, how it starts, is shared, and ends.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::bench::{Bench, Kind, finish, keepers_of, runner, start, text, wait_until};

#[test]
fn both_kinds_of_root_are_read_only_and_show_the_image() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /etc/witness; touch /etc/new 2>/dev/null || echo refused; exit 3";
        let output = bench.run(kind, script, |_| {});
        let (out, err) = text(&output);
        assert_eq!(output.status.code(), Some(3), "{kind:?}: {err}");
        assert_eq!(out, "from the image\nrefused\n", "{kind:?}: {err}");
    }
    let plan = bench.plan(Kind::Directory, "cat /etc/witness", |_| {});
    let output = finish(start(&plan, &["exec-only"]));
    assert_eq!(text(&output).0, "from the image\n");
}

#[test]
fn the_payload_has_no_privileges_and_nothing_open() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /proc/self/status; ls /proc/self/fd | while read fd; do echo fd:$fd; done";
        let (out, err) = text(&bench.run(kind, script, |_| {}));
        for line in [
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "SigBlk:\t0000000000000000",
        ] {
            assert!(out.contains(line), "{kind:?}: no {line:?} in {out}{err}");
        }
        // SIGPIPE (13) is bit 12: Rust's runtime ignores it, the payload must not.
        let ignored = out.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & (1 << 12), 0, "{kind:?}");
        let open: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("fd:")).collect();
        // ls itself has its directory open.
        assert_eq!(open, ["0", "1", "2", "3"], "{kind:?}");
    }
}

#[test]
fn patches_make_mount_points_and_hide_files() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir(bench.path("data")).unwrap();
    fs::write(bench.path("data/file"), "bound\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /new/deep/file /etc/witness; cat /etc/added; ls /etc";
        let output = bench.run(kind, script, |plan| {
            plan["rootfs"]["patches"] = json!([
                {"path": "/new/deep", "kind": "directory", "reason": "test"},
                {"path": "/etc/witness", "kind": "file", "content": "hidden\n", "mode": 0o644, "reason": "test"},
                {"path": "/etc/added", "kind": "file", "content": "added\n", "mode": 0o644, "reason": "test"},
            ]);
            let bind = json!({
                "destination": "/new/deep", "source": bench.path("data"), "type": "bind", "options": ["rbind", "ro"]
            });
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let (out, err) = text(&output);
        let mut listed: Vec<&str> = out.lines().skip(3).collect();
        listed.sort_unstable();
        assert!(out.starts_with("bound\nhidden\nadded\n"), "{kind:?}: {out}{err}");
        assert_eq!(listed, ["added", "witness"], "{kind:?}: {err}");
        assert!(
            !bench.path("root/new").exists() && !bench.path("root/etc/added").exists(),
            "the image was changed"
        );
    }
}

#[test]
fn account_files_are_completed() {
    let Some(bench) = Bench::prepare() else { return };
    let user = json!({"name": "ann", "uid": 77, "gid": 78, "gecos": "", "home": "/h", "shell": "/bin/sh"});
    let groups = json!([{"name": "crew", "gid": 78}]);
    for kind in [Kind::Directory, Kind::Image] {
        // The image's file is no account file: its line stays, and the user's comes after it.
        let output = bench.run(kind, "cat /etc/witness; ls /etc", |plan| {
            let passwd = json!({"path": "/etc/witness", "kind": "passwd", "user": user, "reason": "test"});
            plan["rootfs"]["patches"] = json!([passwd]);
        });
        let (out, err) = text(&output);
        assert_eq!(out, "from the image\nann:x:77:78::/h:/bin/sh\nwitness\n", "{kind:?}: {err}");
        let output = bench.run(kind, "cat /etc/witness", |plan| {
            let group = json!({
                "path": "/etc/witness", "kind": "group", "user": "ann", "groups": groups, "reason": "test"
            });
            plan["rootfs"]["patches"] = json!([group]);
        });
        assert_eq!(text(&output).0, "from the image\ncrew:x:78:ann\n", "{kind:?}");
    }
}

#[test]
fn usual_patches_of_a_directory_need_no_overlay() {
    let Some(bench) = Bench::prepare() else { return };
    let script =
        "cat /etc/witness; ls /real /real/home; touch /real/x /etc/witness; cat /proc/self/mountinfo";
    let show = |patches: Value| {
        let output = bench.run(Kind::Directory, script, |plan| plan["rootfs"]["patches"] = patches);
        let (out, err) = text(&output);
        assert_eq!(err.matches("Read-only file system").count(), 2, "{err}");
        let (seen, mounts) = out.split_at(out.find(" / ").unwrap_or(0));
        (seen.to_owned(), mounts.contains("overlay"))
    };
    let usual = json!([
        {"path": "/etc/witness", "kind": "file", "content": "hidden\n", "mode": 0o644, "reason": "test"},
        {"path": "/real/home/user", "kind": "directory", "reason": "test"},
        {"path": "/real/home/file", "kind": "file", "content": "", "mode": 0o644, "reason": "test"},
        {"path": "/tmp", "kind": "directory", "reason": "there already"},
    ]);
    let (seen, overlay) = show(usual.clone());
    assert!(seen.starts_with("hidden\n/real:\nhome\n\n/real/home:\nfile\nuser\n"), "{seen}");
    assert!(!overlay, "a cover was enough");
    // A new name in a directory that has others cannot be shown without one.
    let mut more = usual;
    let new = json!({"path": "/etc/new", "kind": "file", "content": "", "mode": 0o644, "reason": "test"});
    more.as_array_mut().unwrap().push(new);
    let (seen, overlay) = show(more);
    assert!(seen.starts_with("hidden\n/real:\nhome\n\n/real/home:\nfile\nuser\n"), "{seen}");
    assert!(overlay, "{seen}");
}

#[test]
fn an_overlay_covers_no_more_than_it_must() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir(bench.path("root/etc/sub")).unwrap();
    fs::set_permissions(bench.path("root/etc/sub"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(bench.path("root/etc/sub/old"), "old\n").unwrap();
    let file = |path: &str| json!({"path": path, "kind": "file", "content": "new\n", "mode": 0o640, "reason": "test"});
    let script = "cat /etc/witness /etc/sub/new /etc/sub/old /etc/new; ls /etc /etc/sub; ls -ld /etc/sub /etc/new; \
                  touch /etc/x /etc/sub/x; cat /proc/self/mountinfo";
    // In whatever order they come; a name in the root itself takes an overlay over all.
    let deep_first = json!([file("/etc/sub/new"), file("/etc/witness"), file("/etc/new")]);
    let deep_last = json!([file("/etc/new"), file("/etc/witness"), file("/etc/sub/new")]);
    let root = json!([file("/etc/sub/new"), file("/top"), file("/etc/witness"), file("/etc/new")]);
    for (patches, place) in [(deep_first, "/etc"), (deep_last, "/etc"), (root, "/")] {
        let output = bench.run(Kind::Directory, script, |plan| plan["rootfs"]["patches"] = patches);
        let (out, err) = text(&output);
        let lists = "new\nnew\nold\nnew\n/etc:\nnew\nsub\nwitness\n\n/etc/sub:\nnew\nold\n";
        assert!(out.starts_with(lists), "{place}: {out}{err}");
        assert!(out.contains("drwxr-x--x") && out.contains("-rw-r-----"), "{place}: {out}");
        assert_eq!(err.matches("Read-only file system").count(), 2, "{place}: {err}");
        let overlays = out.lines().filter(|line| line.contains(" - overlay "));
        let places: Vec<&str> = overlays.filter_map(|line| line.split(' ').nth(4)).collect();
        assert_eq!(places, [place], "{out}");
    }
}

#[test]
fn failures_before_exec_are_named() {
    let Some(bench) = Bench::prepare() else { return };
    let bind = |source: &str, destination: &str| json!({"destination": destination, "source": source, "type": "bind", "options": ["rbind"]});
    type Change<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("BindSourceMissing", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/no/such", "/tmp")]))),
        ("MountFailed", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/dev", "/no/such")]))),
        ("MountFailed", Box::new(|plan| plan["spec"]["mounts"] = json!([bind("/dev", "/etc/witness")]))),
        ("WorkingDirectory", Box::new(|plan| plan["spec"]["process"]["cwd"] = json!("/no/such"))),
        ("CommandNotFound", Box::new(|plan| plan["spec"]["process"]["args"] = json!(["nothing"]))),
        ("CommandNotExecutable", Box::new(|plan| plan["spec"]["process"]["args"] = json!(["/etc"]))),
        ("Setup", Box::new(|plan| plan["keep_fds"] = json!([77]))),
    ];
    for kind in [Kind::Directory, Kind::Image] {
        for (class, change) in &cases {
            let output = bench.run(kind, "exit 0", change);
            let (out, err) = text(&output);
            assert_eq!(output.status.code(), Some(125), "{kind:?} {class}: {out}{err}");
            assert!(err.starts_with(&format!("error: {class}: ")), "{kind:?} {class}: {err}");
        }
    }
}

#[test]
fn signals_reach_the_payload_and_its_death_is_ours() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let output = bench.run(kind, "kill -TERM $$", |_| {});
        assert_eq!(output.status.signal(), Some(15), "{kind:?}");
        let ready = bench.path(&format!("ready-{kind:?}"));
        fs::create_dir(&ready).unwrap();
        let script = "trap 'echo caught; exit 7' USR1; touch /real/yes; while :; do sleep 1 & wait $!; done";
        let plan = bench.plan(kind, script, |plan| {
            let bind = json!({"destination": "/real", "source": ready, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let child = start(&plan, &[]);
        wait_until("the payload to be ready", || ready.join("yes").exists());
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
            rustix::process::Signal::USR1,
        )
        .unwrap();
        let output = finish(child);
        assert_eq!((output.status.code(), text(&output).0.as_str()), (Some(7), "caught\n"), "{kind:?}");
    }
}

#[test]
fn tasks_with_one_key_share_namespaces_in_any_order() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let gate = bench.path(&format!("gate-{kind:?}"));
        fs::create_dir(&gate).unwrap();
        let share = |plan: &mut Value| {
            let key = format!("test/{}/{kind:?}", std::process::id());
            plan["share"] = json!({"with": "step", "key": key, "local_tasks": 4});
            let bind = json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        };
        let show = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/user; cat /etc/witness";
        // The first task has gone before the last ones come.
        let first = bench.run(kind, show, share);
        let held = start(
            &bench.plan(
                kind,
                &format!("{show}; touch /real/here; while ! test -e /real/go; do sleep 0.01; done"),
                share,
            ),
            &[],
        );
        wait_until("the second task", || gate.join("here").exists());
        let others: Vec<Child> = (0..2).map(|_| start(&bench.plan(kind, show, share), &[])).collect();
        let expected = text(&first);
        assert!(expected.0.ends_with("from the image\n"), "{kind:?}: {}", expected.1);
        for other in others {
            assert_eq!(text(&finish(other)), expected, "{kind:?}");
        }
        File::create(gate.join("go")).unwrap();
        assert_eq!(text(&finish(held)), expected, "{kind:?}");
    }
}

#[test]
fn a_payload_does_not_survive_its_image_or_its_parent() {
    let Some(bench) = Bench::prepare() else { return };
    let run = |name: &str| {
        let ready = bench.path(name);
        fs::create_dir(&ready).unwrap();
        let plan = bench.plan(Kind::Image, "echo $$ > /real/pid; exec sleep 1000", |plan| {
            let bind = json!({"destination": "/real", "source": ready, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let child = start(&plan, &[]);
        let pid = ready.join("pid");
        wait_until("the payload", || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
        let payload: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        (child, payload)
    };
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let gone = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    };

    let (child, payload) = run("keeper");
    let keepers = keepers_of(child.id());
    assert_eq!(keepers.len(), 1);
    kill(keepers[0]);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).1.contains("ServerLost"), "{}", text(&output).1);
    wait_until("the payload to be gone", || gone(payload));

    let (child, payload) = run("parent");
    let keepers = keepers_of(child.id());
    kill(child.id());
    let output = finish(child);
    assert_eq!(output.status.signal(), Some(9));
    wait_until("payload and keeper to be gone", || gone(payload) && keepers.iter().all(|pid| gone(*pid)));
}

/// The image is lost, and the payload ends because of that before the process that waits for it can look: what is told is
/// the loss, and not how the payload fared with it.
#[test]
fn a_payload_that_ends_by_the_loss_of_its_image_is_told_as_lost() {
    let Some(bench) = Bench::prepare() else { return };
    let gate = bench.path("loss");
    fs::create_dir(&gate).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        gate.join("go"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for ends in ["exit 3", "kill -SEGV $$"] {
        // Nobody has read that file yet.
        let script = format!("echo $$ > /real/pid; read x < /real/go; cat /etc/witness || {ends}");
        let plan = bench.plan(Kind::Image, &script, |plan| {
            let bind = json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        });
        let child = start(&plan, &[]);
        let pid = gate.join("pid");
        wait_until("the payload", || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
        let payload = fs::read_to_string(&pid).unwrap().trim().to_owned();
        let signal = |pid: u32, signal| {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        };
        let state = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
        };
        let keeper = keepers_of(child.id())[0];
        signal(child.id(), rustix::process::Signal::STOP);
        wait_until("the waiting process to stop", || state(&child.id().to_string()) == Some('T'));
        signal(keeper, rustix::process::Signal::KILL);
        wait_until("the keeper's end", || state(&keeper.to_string()) == Some('Z'));
        fs::write(gate.join("go"), "go\n").unwrap();
        wait_until("the payload's end", || state(&payload) == Some('Z'));
        signal(child.id(), rustix::process::Signal::CONT);
        let output = finish(child);
        assert_eq!(output.status.code(), Some(125), "{ends}: {}", text(&output).1);
        assert!(text(&output).1.contains("error: ServerLost"), "{ends}: {}", text(&output).1);
        fs::remove_file(pid).unwrap();
    }
}

/// Images beside the root are served as it is, whatever it is, to all tasks, and their keeper goes with the container.
#[test]
fn image_mounts_are_there_beside_any_root() {
    let Some(bench) = Bench::prepare() else { return };
    let image = bench.path("root.sqsh");
    for kind in [Kind::Directory, Kind::Image] {
        for n_tasks in [1, 2] {
            let gate = bench.path(&format!("images-{kind:?}-{n_tasks}"));
            fs::create_dir(&gate).unwrap();
            let change = |plan: &mut Value| {
                if n_tasks > 1 {
                    let key = format!("images/{}/{kind:?}", std::process::id());
                    plan["share"] = json!({"with": "step", "key": key, "local_tasks": n_tasks});
                }
                let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
                for place in ["/real", "/sys"] {
                    let options = ["nosuid", "nodev", "ro", "noexec"];
                    mounts.push(json!({
                        "destination": place, "source": image, "type": "squashfs", "options": options
                    }));
                }
                let bind =
                    json!({"destination": "/tmp", "source": gate, "type": "bind", "options": ["rbind"]});
                mounts.push(bind);
            };
            let script = "cat /real/etc/witness /sys/etc/witness; touch /real/new 2>/dev/null || echo refused; \
                          /real/bin/true 2>/dev/null || echo not executed; test -e /real/link/x || echo $?; \
                          touch /tmp/$$; while ! test -e /tmp/go; do sleep 0.01; done; cat /sys/etc/witness";
            let children: Vec<Child> =
                (0..n_tasks).map(|_| start(&bench.plan(kind, script, change), &[])).collect();
            wait_until("the tasks", || fs::read_dir(&gate).unwrap().count() == children.len());
            let keepers: Vec<u32> = children.iter().flat_map(|child| keepers_of(child.id())).collect();
            assert_eq!(keepers.len(), 1, "{kind:?}, {n_tasks} tasks");
            File::create(gate.join("go")).unwrap();
            for child in children {
                let (out, err) = text(&finish(child));
                let witness = "from the image\n";
                let wanted = format!("{witness}{witness}refused\nnot executed\n1\n{witness}");
                assert_eq!(out, wanted, "{kind:?}, {n_tasks} tasks: {err}");
            }
            let gone = |pid: u32| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                name.trim() != "situla-keeper" || stat.contains(") Z ")
            };
            wait_until("the keeper to go", || keepers.iter().all(|pid| gone(*pid)));
        }
    }
}

#[test]
fn image_files_of_any_owner_belong_to_the_user() {
    let Some(bench) = Bench::prepare() else { return };
    // Mode 0600 and owned by root in the image.
    let output = bench.run(Kind::Image, "cat /etc/witness", |_| {});
    assert_eq!(text(&output).0, "from the image\n");
}

#[test]
fn the_death_of_one_waiting_process_ends_the_tasks_of_all() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        for victim in 0..3 {
            let gate = bench.path(&format!("death-{kind:?}-{victim}"));
            fs::create_dir(&gate).unwrap();
            let script = |number: usize| format!("touch /real/{number}; exec sleep 1000");
            let share = |plan: &mut Value| {
                let key = format!("death/{}/{kind:?}/{victim}", std::process::id());
                plan["share"] = json!({"with": "step", "key": key, "local_tasks": 3});
                let bind =
                    json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
                plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
            };
            let mut tasks: Vec<Child> = Vec::new();
            for number in 0..3 {
                tasks.push(start(&bench.plan(kind, &script(number), share), &[]));
                wait_until("a task", || gate.join(number.to_string()).exists());
            }
            let pid = rustix::process::Pid::from_raw(i32::try_from(tasks[victim].id()).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            for (number, task) in tasks.into_iter().enumerate() {
                let output = finish(task);
                if number == victim {
                    assert_eq!(output.status.signal(), Some(9), "{kind:?}");
                } else {
                    assert_eq!(output.status.code(), Some(125), "{kind:?}, {number} after {victim}");
                    assert!(text(&output).1.contains("ServerLost"), "{}", text(&output).1);
                }
            }
        }
    }
}

#[test]
fn a_rank_that_comes_again_gets_a_container_of_its_own() {
    let Some(bench) = Bench::prepare() else { return };
    let share = |plan: &mut Value| {
        let key = format!("again/{}", std::process::id());
        plan["share"] = json!({"with": "step", "key": key, "local_tasks": 2});
    };
    // The other task never comes, so the keeper of the first container waits for it.
    let show = bench.plan(Kind::Directory, "readlink /proc/self/ns/mnt", share);
    let run = || {
        let mut command = Command::new(runner());
        command.arg(&show).env("RANK", "7").stdin(Stdio::null());
        text(&command.output().unwrap())
    };
    let (first, second) = (run(), run());
    // It would wait some minutes more; a keeper has the command line of the task that forked it.
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let wanted = show.to_string_lossy().into_owned();
    for pid in pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&wanted))
    }) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(first.0.starts_with("mnt:") && second.0.starts_with("mnt:"), "{first:?} {second:?}");
    assert_ne!(first.0, second.0, "the second run must not see what the first one mounted");
}

#[test]
fn a_task_that_is_not_in_the_cgroup_of_the_step_is_refused() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let key = format!("outside/{}/{kind:?}", std::process::id());
        let gate = bench.path(&format!("outside-{kind:?}"));
        fs::create_dir(&gate).unwrap();
        let task = |script: &str| {
            start(
                &bench.plan(kind, script, |plan| {
                    plan["share"] =
                        json!({"with": "step", "key": key, "local_tasks": 2, "cgroup": "/no/such/step_0"});
                    let bind =
                        json!({"destination": "/real", "source": gate, "type": "bind", "options": ["rbind"]});
                    plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
                }),
                &[],
            )
        };
        let show = "readlink /proc/self/ns/mnt";
        let held = task(&format!("{show}; touch /real/here; while ! test -e /real/go; do sleep 0.01; done"));
        wait_until("the first task", || gate.join("here").exists());
        let keepers = keepers_of(held.id());
        let other = text(&finish(task(show)));
        File::create(gate.join("go")).unwrap();
        let first = text(&finish(held));
        // Nobody of the step comes, which it waits for.
        for pid in keepers {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        assert!(first.0.starts_with("mnt:") && other.0.starts_with("mnt:"), "{first:?} {other:?}");
        assert_ne!(first.0, other.0, "{kind:?}");
    }
}

/// The first task fails while it sets the container up, and others wait for it: one of them leads in its place,
/// and the rest joins that one.
#[test]
fn a_first_task_that_fails_in_set_up_is_succeeded() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let bind = |source: &str| json!({"destination": "/real", "source": source, "type": "bind", "options": ["rbind"]});
        let key = format!("fails/{}/{kind:?}", std::process::id());
        let plan = |mounts: Vec<Value>| {
            bench.plan(kind, "readlink /proc/self/ns/mnt; sleep 0.2", |plan| {
                plan["share"] = json!({"with": "step", "key": key, "local_tasks": 4});
                plan["spec"]["mounts"].as_array_mut().unwrap().extend(mounts);
            })
        };
        // So many sources are looked up before the one that is missing that the others have time to come.
        let mut mounts = vec![bind("/"); 4000];
        mounts.push(bind("/no/such"));
        let failing = start(&plan(mounts), &[]);
        let name = format!("@situla/{key}");
        wait_until("the first task to lead", || {
            fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.contains(&name))
        });
        let others: Vec<Child> = (0..3).map(|_| start(&plan(Vec::new()), &[])).collect();
        let output = finish(failing);
        assert_eq!(output.status.code(), Some(125), "{kind:?}");
        assert!(text(&output).1.starts_with("error: BindSourceMissing: "), "{kind:?}: {}", text(&output).1);
        let shown: Vec<(String, String)> = others.into_iter().map(|other| text(&finish(other))).collect();
        assert!(
            shown.iter().all(|(out, _)| out.starts_with("mnt:") && *out == shown[0].0),
            "{kind:?}: {shown:?}"
        );
        // The one that failed is still expected: the keeper waits for it, where Slurm would end it with the step.
        for pid in keepers_by_command_line(&bench.path("plan-").display().to_string()) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
}

fn keepers_by_command_line(part: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(part)
    })
    .collect()
}
