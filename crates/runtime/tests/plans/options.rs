//! What a Plan can ask for beyond that: layers above the root, mounts of its own, namespaces.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bench::{Bench, Kind, finish, runner, skip, start, text, wait_until};

#[test]
fn what_is_written_above_a_root_goes_to_memory_or_to_a_directory() {
    let Some(bench) = Bench::prepare() else { return };
    for kind in [Kind::Directory, Kind::Image] {
        let host = bench.path(&format!("above-{kind:?}"));
        fs::create_dir(&host).unwrap();
        let patches = json!([
            {"path": "/new/deep", "kind": "directory", "reason": "test"},
            {"path": "/etc/added", "kind": "file", "content": "added\n", "mode": 0o644, "reason": "test"},
        ]);
        let over = |overlay: Value, writable: bool| {
            let patches = patches.clone();
            move |plan: &mut Value| {
                plan["rootfs"]["overlay"] = overlay;
                plan["rootfs"]["patches"] = patches;
                plan["spec"]["root"]["readonly"] = json!(!writable);
            }
        };
        let write = "echo mine > /etc/witness; echo more > /real/more; cat /etc/witness /real/more /etc/added; ls /new";
        let seen = "mine\nmore\nadded\ndeep\n";
        let show = "cat /etc/witness /etc/added; test -e /real/more || echo no more";
        let memory = json!({"upper": {"kind": "tmpfs"}});
        let directory = json!({"upper": {"kind": "directory", "path": host}});
        // Written and gone; written and there again.
        for (overlay, after) in [(memory, "from the image\nadded\nno more\n"), (directory, "mine\nadded\n")] {
            let (out, err) = text(&bench.run(kind, write, over(overlay.clone(), true)));
            assert_eq!(out, seen, "{kind:?} {overlay}: {err}");
            let (out, err) = text(&bench.run(kind, show, over(overlay.clone(), true)));
            assert_eq!(out, after, "{kind:?} {overlay}: {err}");
        }
        assert_eq!(fs::read_to_string(host.join("upper/real/more")).unwrap(), "more\n");
        assert!(!bench.path("root/real/more").exists() && !bench.path("root/etc/added").exists());
        // Layers that are shown and not written to, the first one on top.
        let first = bench.path(&format!("first-{kind:?}"));
        fs::create_dir_all(first.join("real")).unwrap();
        fs::write(first.join("real/more"), "first\n").unwrap();
        fs::write(first.join("real/only"), "only\n").unwrap();
        let lowers = json!([first, host.join("upper")]);
        let script = "cat /real/more /real/only /etc/witness; touch /real/x 2>/dev/null || echo refused";
        let (out, err) = text(&bench.run(kind, script, over(json!({"lowers": lowers}), false)));
        assert_eq!(out, "first\nonly\nmine\nrefused\n", "{kind:?}: {err}");
        // With a place for what is written above them, they stay as they are.
        let overlay = json!({"lowers": lowers, "upper": {"kind": "tmpfs"}});
        let script = "echo new > /real/only; cat /real/only; cat /proc/self/mountinfo";
        let (out, err) = text(&bench.run(kind, script, over(overlay, true)));
        assert!(out.starts_with("new\n"), "{kind:?}: {out}{err}");
        assert_eq!(fs::read_to_string(first.join("real/only")).unwrap(), "only\n");
        let root = out.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
        assert!(root.contains("nosuid") && root.contains("nodev"), "{kind:?}: {root}");
        // Memory that is used up is a full disk to the payload, for what it writes and for how many names it makes.
        let overlay = json!({"upper": {"kind": "tmpfs", "size": 1 << 20}});
        let script = "cat /dev/zero > /big; echo status $?; rm /big; \
                      n=0; while true 2>/dev/null > /name$n; do n=$((n + 1)); done; echo names $n; exit 5";
        let script = script.replace("rm ", "busybox rm ");
        let output = bench.run(kind, &script, over(overlay, true));
        let (out, err) = text(&output);
        let names = out.lines().find_map(|line| line.strip_prefix("names ")?.parse::<u32>().ok());
        assert!(err.contains("No space left on device"), "{kind:?}: {out}{err}");
        assert!(out.starts_with("status 1\n") && names.is_some_and(|n| n < 300), "{kind:?}: {out}{err}");
        assert_eq!(output.status.code(), Some(5), "{kind:?}: {err}");
        // A file cannot take anything.
        let overlay = json!({"upper": {"kind": "directory", "path": first.join("real/only")}});
        let (_, err) = text(&bench.run(kind, "exit 0", over(overlay, true)));
        assert!(err.starts_with("error: Overlay: "), "{kind:?}: {err}");
    }
}

#[test]
fn mount_points_are_made_in_memory_and_nowhere_else() {
    let Some(bench) = Bench::prepare() else { return };
    let host = bench.path("host-directory");
    fs::create_dir(&host).unwrap();
    fs::write(bench.path("host-file"), "host\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        let mounts = |more: Value| {
            let bind = |from: &str, to: &str| json!({"destination": to, "source": from, "type": "bind", "options": ["rbind"]});
            let mut all = vec![
                json!({"destination": "/dev", "source": "tmpfs", "type": "tmpfs", "options": ["mode=0755", "nosuid"]}),
                bind("/dev/null", "/dev/null"),
                json!({
                    "destination": "/dev/pts", "source": "devpts", "type": "devpts",
                    "options": ["mode=0620", "ptmxmode=0666"]
                }),
                bind("/proc", "/proc"),
                json!({"destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["mode=1777"]}),
                bind(&bench.path("host-file").display().to_string(), "/tmp/a/b/file"),
                bind(&host.display().to_string(), "/tmp/a/dir"),
            ];
            all.extend(more.as_array().unwrap().iter().cloned());
            move |plan: &mut Value| plan["spec"]["mounts"] = json!(all)
        };
        let script = "cat /tmp/a/b/file; ls -a /dev; echo x > /dev/null; readlink /dev/fd; readlink /dev/ptmx; touch /tmp/x /tmp/a/dir/y";
        let (out, err) = text(&bench.run(kind, script, mounts(json!([]))));
        let expected = "host\n.\n..\nfd\nnull\nptmx\npts\nstderr\nstdin\nstdout\n/proc/self/fd\npts/ptmx\n";
        assert_eq!(out, expected, "{kind:?}: {err}");
        assert!(host.join("y").exists());
        fs::remove_file(host.join("y")).unwrap();
        // Neither a directory of the host nor the image gets a mount point.
        for destination in ["/tmp/a/dir/new", "/etc/new"] {
            let file = bench.path("host-file");
            let more =
                json!([{"destination": destination, "source": file, "type": "bind", "options": ["rbind"]}]);
            let (_, err) = text(&bench.run(kind, "exit 0", mounts(more)));
            assert!(err.starts_with("error: MountFailed: "), "{kind:?} {destination}: {err}");
        }
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
    }
}

/// Adds namespaces to a plan; a PID namespace comes with a new `/proc`.
fn with_namespaces(plan: &mut Value, kinds: &[&str]) {
    let namespaces = plan["spec"]["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.extend(kinds.iter().map(|kind| json!({"type": kind})));
    if kinds.contains(&"pid") {
        let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/proc");
        mounts.push(
            json!({"destination": "/proc", "source": "proc", "type": "proc", "options": ["nosuid", "nodev"]}),
        );
    }
}

/// Whether a process runs whose command line has this in it.
fn runs(mark: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    })
}

#[test]
fn namespaces_are_new_and_work() {
    let Some(bench) = Bench::prepare() else { return };
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    for kind in [Kind::Directory, Kind::Image] {
        let script = "for n in pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done; busybox hostname; \
                      busybox ip -o link show; echo $$; cat /proc/1/comm";
        let output = bench.run(kind, script, |plan| {
            with_namespaces(plan, &["pid", "ipc", "uts", "network", "cgroup"]);
            plan["spec"]["hostname"] = json!("inside.example");
        });
        let (out, err) = text(&output);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 9, "{kind:?}: {out}{err}");
        for (line, name) in lines.iter().zip(["pid", "ipc", "uts", "net", "cgroup"]) {
            assert!(line.starts_with(&format!("{name}:")) && **line != host(name), "{kind:?}: {out}");
        }
        assert_eq!(lines[5], "inside.example", "{kind:?}");
        assert!(lines[6].contains(" lo: <LOOPBACK,UP,"), "{kind:?}: {}", lines[6]);
        assert_eq!(&lines[7..], ["2", "situla-init"], "{kind:?}");
    }
}

#[test]
fn tasks_that_share_are_in_all_namespaces_and_alike() {
    let Some(bench) = Bench::prepare() else { return };
    let all = json!(["CAP_CHOWN"]);
    for kind in [Kind::Directory, Kind::Image] {
        let script = "for n in user mnt ipc uts net cgroup; do readlink /proc/self/ns/$n; done; busybox hostname; \
                      busybox ip -o link show; busybox grep ^Cap /proc/self/status; touch /tmp/$1; busybox ls /tmp";
        let overlay = bench.path(&format!("shared-{kind:?}"));
        fs::create_dir(&overlay).unwrap();
        let run = |name: &str| {
            let output = bench.run(kind, script, |plan| {
                with_namespaces(plan, &["ipc", "uts", "network", "cgroup"]);
                let key = format!("alike/{}/{kind:?}", std::process::id());
                plan["share"] = json!({"with": "step", "key": key, "local_tasks": 2});
                plan["spec"]["hostname"] = json!("shared");
                plan["spec"]["root"]["readonly"] = json!(false);
                plan["spec"]["process"]["args"].as_array_mut().unwrap().extend([json!("sh"), json!(name)]);
                plan["spec"]["process"]["capabilities"] =
                    json!({"bounding": all, "permitted": all, "inheritable": all});
                plan["rootfs"]["overlay"] = json!({"upper": {"kind": "directory", "path": overlay}});
            });
            text(&output)
        };
        let (first, err) = run("first");
        assert!(first.contains("\nshared\n") && first.ends_with("first\n"), "{kind:?}: {first}{err}");
        let (second, err) = run("second");
        assert_eq!(second, format!("{first}second\n"), "{kind:?}: {err}");
    }
}

#[test]
fn init_passes_on_reaps_and_holds_nothing() {
    let Some(bench) = Bench::prepare() else { return };
    let pid = |plan: &mut Value| with_namespaces(plan, &["pid"]);
    for kind in [Kind::Directory, Kind::Image] {
        for (script, code, signal) in
            [("exit 3", Some(3), None), ("kill -TERM $$", None, Some(15)), ("kill -KILL $$", None, Some(9))]
        {
            let output = bench.run(kind, script, pid);
            assert_eq!((output.status.code(), output.status.signal()), (code, signal), "{kind:?} {script}");
        }
        // A zombie that is not reaped stays in /proc for good, and the test does not end.
        let script = "p=$(sleep 0.1 > /dev/null & echo $!); while test -d /proc/$p; do :; done; echo reaped; \
                      cat /proc/1/status; for f in /proc/1/fd/*; do echo fd:$f; done; ls /proc; exit 0";
        let (out, err) = text(&bench.run(kind, script, pid));
        assert!(out.starts_with("reaped\n"), "{kind:?}: {out}{err}");
        for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(out.contains(line), "{kind:?}: {out}");
        }
        // Only root may list them; others see the pattern, unmatched.
        let n_seen = if rustix::process::getuid().is_root() { 2 } else { 1 };
        assert_eq!(out.matches("fd:").count(), n_seen, "{kind:?}: {out}");
        let n_processes = out.lines().filter(|line| line.parse::<u32>().is_ok()).count();
        assert_eq!(n_processes, 3, "init, the shell and ls: {out}");
        let output = bench.run(kind, "", |plan| {
            pid(plan);
            plan["spec"]["process"]["args"] = json!(["nothing"]);
        });
        assert!(text(&output).1.starts_with("error: CommandNotFound: "), "{kind:?}: {}", text(&output).1);
        // Signals arrive, and what the payload leaves behind ends with it.
        let ready = bench.path(&format!("init-{kind:?}"));
        fs::create_dir(&ready).unwrap();
        let mark = format!("1000.{}{}", std::process::id(), u32::from(kind == Kind::Image));
        // HUP, INT, USR1, USR2 and TERM, and a real-time signal that no library keeps for itself.
        let (passed_on, kill) = ([1, 2, 10, 12, 15, 40], 9);
        let traps =
            passed_on.map(|number| format!("trap 'echo caught {number}; exit 7' {number}; ")).concat();
        let script = format!("{traps}sleep {mark} & touch /real/yes; while :; do sleep 1 & wait $!; done");
        let share = |plan: &mut Value| {
            pid(plan);
            let bind = json!({"destination": "/real", "source": ready, "type": "bind", "options": ["rbind"]});
            plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
        };
        for signal in passed_on.into_iter().chain([kill]) {
            let child = start(&bench.plan(kind, &script, share), &[]);
            wait_until("the payload to be ready", || ready.join("yes").exists() && runs(&mark));
            // rustix names no real-time signals.
            let sent = format!("kill -{signal} {}", child.id());
            assert!(std::process::Command::new("sh").args(["-c", &sent]).status().unwrap().success());
            let output = finish(child);
            if signal == kill {
                assert_eq!(output.status.signal(), Some(kill), "{kind:?}");
            } else {
                let caught = format!("caught {signal}\n");
                assert_eq!((output.status.code(), text(&output).0), (Some(7), caught), "{kind:?}");
                assert!(!runs(&mark), "{kind:?}: something is left after {signal}");
            }
            // With the waiting process all of them die, at once but not before it.
            wait_until("the rest to be gone", || !runs(&mark));
            fs::remove_file(ready.join("yes")).unwrap();
        }
    }
    // What cannot be is refused: nobody could join, or wait.
    let plan = bench.plan(Kind::Directory, "exit 0", |plan| {
        pid(plan);
        plan["share"] = json!({"with": "step", "key": "test/pid", "local_tasks": 2});
    });
    assert!(text(&finish(start(&plan, &[]))).1.contains("cannot be shared"));
    let plan = bench.plan(Kind::Directory, "exit 0", pid);
    assert!(text(&finish(start(&plan, &["exec-only"]))).1.contains("waits for it"));
}

/// A payload that is killed while it still looks for its program is a lost process of ours: with an init and
/// without, and nobody says that it had started.
#[test]
fn a_payload_that_is_killed_before_its_exec_is_told_as_lost() {
    let Some(bench) = Bench::prepare() else { return };
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    // What everybody may see of it: it has given up all privileges, so next comes the program.
    let is_ready = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("NoNewPrivs:\t1\n") && status.contains("CapEff:\t0000000000000000\n")
    };
    for kind in [Kind::Directory, Kind::Image] {
        for with_init in [false, true] {
            let plan = bench.plan(kind, "exit 0", |plan| {
                if with_init {
                    with_namespaces(plan, &["pid"]);
                }
                // It is looked for long enough to be hit.
                plan["command_paths"] = json!(vec!["/x"; 1_500_000]);
            });
            let mut command = Command::new(runner());
            command.arg(&plan).env("TELL", "1").stdin(std::process::Stdio::null());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let runner = child.id();
            let payload = || {
                let children = children_of(runner);
                let of_ours = children.iter().copied().find(|pid| name_of(*pid) != "situla-keeper");
                if with_init { of_ours.and_then(|init| children_of(init).first().copied()) } else { of_ours }
            };
            let mut found = None;
            wait_until("the payload", || {
                found = payload().filter(|pid| is_ready(*pid));
                found.is_some() || child.try_wait().unwrap().is_some()
            });
            kill(found.expect("a payload that looks for its program"));
            let output = finish(child);
            let err = text(&output).1;
            assert_eq!(output.status.code(), Some(125), "{kind:?} {with_init}: {:?} {err}", output.status);
            assert!(err.starts_with("error: ServerLost: "), "{kind:?} {with_init}: {err}");
        }
        // One that has started is told, and its death is its own, also if nobody had time to look before.
        for (script, signal) in [("kill -KILL $$", Some(9)), ("exit 0", None)] {
            for kinds in [&[][..], &["pid"]] {
                let plan = bench.plan(kind, script, |plan| {
                    if !kinds.is_empty() {
                        with_namespaces(plan, kinds);
                    }
                });
                let output = Command::new(runner()).arg(&plan).env("TELL", "1").output().unwrap();
                let err = text(&output).1;
                assert_eq!(
                    (output.status.signal(), err.as_str()),
                    (signal, "started\n"),
                    "{kind:?} {kinds:?}"
                );
            }
        }
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Programs that may be executed and not read: they run, but for scripts.
#[test]
fn programs_need_not_be_readable() {
    use std::os::unix::fs::PermissionsExt;
    let Some(bench) = Bench::prepare() else { return };
    // This holds for root as well, who has no capabilities by then.
    fs::write(bench.path("root/script"), "#!/bin/sh\nexit 3\n").unwrap();
    fs::copy(bench.path("root/bin/busybox"), bench.path("root/echo")).unwrap();
    for name in ["script", "echo"] {
        fs::set_permissions(bench.path("root").join(name), fs::Permissions::from_mode(0o111)).unwrap();
    }
    let run = |program: &str| {
        let args = json!([program, "said"]);
        text(&bench.run(Kind::Directory, "", |plan| plan["spec"]["process"]["args"] = args))
    };
    assert_eq!(run("/echo"), ("said\n".to_owned(), String::new()));
    assert!(run("/script").1.starts_with("error: CommandNotExecutable: "), "{}", run("/script").1);
}

/// Whether holder or init is faster: an instance comes up, stays when it is informed of something, and ends when
/// it is told to.
#[test]
fn instances_come_up_and_stay_until_they_are_told_to_end() {
    use rustix::process::{Pid, Signal, kill_process};
    let Some(bench) = Bench::prepare() else { return };
    for attempt in 0..20 {
        for kind in [Kind::Directory, Kind::Image] {
            let up = bench.path("up");
            let script =
                "trap 'echo > /real/told; exit' USR1; echo > /real/up; while :; do busybox sleep 0.01; done";
            let plan = bench.plan(kind, script, |plan| {
                let key = format!("instance/{}/{kind:?}/{attempt}", std::process::id());
                plan["share"] = json!({"with": "instance", "key": key});
                plan["spec"]["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
                let bind = json!({
                    "destination": "/real", "source": bench.path(""), "type": "bind", "options": ["rbind"]
                });
                plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
            });
            let mut holder = start(&plan, &[]);
            wait_until("the instance", || up.exists() || holder.try_wait().unwrap().is_some());
            let pid = Pid::from_child(&holder);
            for signal in [Signal::WINCH, Signal::CONT, Signal::USR1] {
                // One that has ended already shows below.
                let _ = kill_process(pid, signal);
            }
            wait_until("the last of them", || {
                bench.path("told").exists() || holder.try_wait().unwrap().is_some()
            });
            // By now its command has ended. Another start takes longer than its own end would.
            assert_eq!(bench.run(kind, "exit 0", |_| {}).status.code(), Some(0));
            let status = holder.try_wait().unwrap();
            assert!(status.is_none(), "{kind:?} {attempt}: {}", text(&finish(holder)).1);
            kill_process(pid, Signal::TERM).unwrap();
            assert_eq!(finish(holder).status.code(), Some(0), "{kind:?} {attempt}");
            fs::remove_file(up).unwrap();
            fs::remove_file(bench.path("told")).unwrap();
        }
    }
}

#[test]
fn mounts_inside_have_their_flags_and_those_below_them() {
    let Some(bench) = Bench::prepare() else { return };
    fs::create_dir_all(bench.path("host/deep dir/there")).unwrap();
    fs::write(bench.path("host/deep dir/there/file"), "seen\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        // Two levels of mounts that are not the Plan's, one of them at a path with a space in it.
        let outer = bench.path("host").display().to_string();
        let script = "cat '/real/deep dir/there/file'; touch /real/x '/real/deep dir/x' 2>&1; cat /proc/self/mountinfo";
        let plan = bench.plan(kind, script, |plan| {
            // unshare(1) below makes this user root.
            plan["spec"]["linux"]["uidMappings"][0]["hostID"] = json!(0);
            plan["spec"]["linux"]["gidMappings"][0]["hostID"] = json!(0);
            let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
            let options = ["rbind", "nosuid", "nodev", "ro", "rprivate"];
            mounts.push(json!({"destination": "/real", "source": outer, "type": "bind", "options": options}));
            mounts.push(json!({
                "destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["mode=0755", "noexec"]
            }));
        });
        let inner = format!("{outer}/deep dir");
        // In a mount namespace of its own, so that nothing is left.
        let command = format!("mount --bind '{inner}' '{inner}' && exec \"$0\" \"$1\"");
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &command])
            .arg(runner())
            .arg(&plan)
            .output()
            .unwrap();
        let (out, err) = text(&output);
        assert!(out.starts_with("seen\n"), "{kind:?}: {out}{err}");
        assert_eq!(out.matches("Read-only file system").count(), 2, "{kind:?}: {out}{err}");
        let flags = |point: &str| -> String {
            let line = out.lines().find(|line| line.split(' ').nth(4) == Some(point));
            line.and_then(|line| line.split(' ').nth(5)).unwrap_or_default().to_owned()
        };
        for point in ["/real", "/real/deep\\040dir"] {
            for flag in ["ro", "nosuid", "nodev"] {
                assert!(
                    flags(point).split(',').any(|word| word == flag),
                    "{kind:?} {point}: {}",
                    flags(point)
                );
            }
        }
        assert!(flags("/tmp").contains("noexec"), "{kind:?}: {out}");
        // No trace of where mounts were made.
        let points: Vec<&str> = out.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        let below_tmp = points.iter().filter(|point| point.starts_with("/tmp/")).count();
        assert_eq!(below_tmp, 0, "{kind:?}: {out}");
    }
}

#[test]
fn what_was_exchanged_after_planning_is_not_mounted() {
    use std::os::unix::fs::MetadataExt;
    let Some(bench) = Bench::prepare() else { return };
    for name in ["shown", "forbidden", "layer", "layer/upper", "layer/work"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    fs::write(bench.path("forbidden/secret"), "secret\n").unwrap();
    let place = |path: &str, is: &str| {
        let metadata = fs::metadata(bench.path(is)).unwrap();
        json!({"path": bench.path(path), "dev": metadata.dev(), "ino": metadata.ino()})
    };
    let bind =
        json!({"destination": "/real", "source": bench.path("shown"), "type": "bind", "options": ["rbind"]});
    let upper = json!({"upper": {"kind": "directory", "path": bench.path("layer")}});
    let lower = json!({"lowers": [bench.path("layer")]});
    for kind in [Kind::Directory, Kind::Image] {
        let script = "ls /real; echo ran";
        // One that is not mounted may be anything.
        let good = [
            place("shown", "shown"),
            place("layer", "layer"),
            place("root", "root"),
            place("forbidden", "shown"),
        ];
        let mut cases = vec![("shown", true), ("layer", true)];
        cases.extend((kind == Kind::Directory).then_some(("root", true)));
        for (path, refused) in cases.into_iter().chain([("", false)]) {
            for overlay in [&upper, &lower] {
                let output = bench.run(kind, script, |plan| {
                    plan["spec"]["mounts"].as_array_mut().unwrap().push(bind.clone());
                    plan["rootfs"]["overlay"] = overlay.clone();
                    plan["places"] = good
                        .iter()
                        .filter(|good| !good["path"].as_str().unwrap().ends_with(&format!("/{path}")))
                        .cloned()
                        .collect();
                    if refused {
                        plan["places"].as_array_mut().unwrap().push(place(path, "forbidden"));
                    }
                });
                let (out, err) = text(&output);
                assert_eq!(out, if refused { "" } else { "ran\n" }, "{kind:?} {path}: {err}");
                assert_eq!(err.contains("was exchanged"), refused, "{kind:?} {path}: {err}");
            }
        }
    }
}

#[test]
fn masked_and_read_only_paths_are_so() {
    let Some(bench) = Bench::prepare() else { return };
    let host = bench.path("host");
    fs::create_dir_all(host.join("secret/below")).unwrap();
    fs::create_dir_all(host.join("fixed/below")).unwrap();
    fs::write(host.join("secret/file"), "secret\n").unwrap();
    fs::write(host.join("key"), "secret\n").unwrap();
    fs::write(host.join("fixed/below/file"), "fixed\n").unwrap();
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cd /real; ls secret; cat key; cat fixed/below/file; for f in open secret/x key fixed/x fixed/below/file; \
                      do echo x 2>/dev/null >> $f && echo wrote $f; done; cat /etc/witness; ls -d /proc/sys; \
                      echo x 2>/dev/null > /proc/self/comm || echo no comm";
        let output = bench.run(kind, script, |plan| {
            let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
            mounts
                .push(json!({"destination": "/real", "source": host, "type": "bind", "options": ["rbind"]}));
            plan["spec"]["linux"]["maskedPaths"] =
                json!(["/real/secret", "/link/key", "/no/such", "/etc/witness/x", "/etc/witness"]);
            plan["spec"]["linux"]["readonlyPaths"] = json!(["/link/fixed", "/proc", "/no/such"]);
        });
        let (out, err) = text(&output);
        // What is written to the null device is written nowhere.
        assert_eq!(out, "fixed\nwrote open\nwrote key\n/proc/sys\nno comm\n", "{kind:?}: {err}");
        assert_eq!(fs::read_to_string(host.join("key")).unwrap(), "secret\n");
        fs::remove_file(host.join("open")).unwrap();
    }
}

#[test]
fn links_of_the_image_do_not_lead_masks_elsewhere() {
    let Some(bench) = Bench::prepare() else { return };
    let (root, host) = (bench.path("root"), bench.path("host"));
    fs::create_dir_all(host.join("kept")).unwrap();
    for file in ["key", "kept/file", "null"] {
        fs::write(host.join(file), "of the host\n").unwrap();
    }
    // The image has links in place of `/proc`, the null device and what is bound, to each other and to the host.
    let links =
        [("proc", "real"), ("other", "/tmp"), ("etc/up", "../../../../.."), ("dev/null", "../etc/witness")];
    fs::remove_dir(root.join("proc")).unwrap();
    for (link, target) in links {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    std::os::unix::fs::symlink(host.join("null"), root.join("etc/out")).unwrap();
    let script = "cat /proc/version /real/version /other/key /tmp/key /etc/out /etc/up/etc/witness; \
                  for f in /tmp/kept/file /other/kept/file; do echo x >> $f && echo wrote $f; done; \
                  test -c /proc/version && echo null; echo end";
    let output = bench.run(Kind::Directory, script, |plan| {
        let bind = |source: &std::path::Path, destination: &str| json!({"destination": destination, "source": source, "type": "bind", "options": ["rbind"]});
        // Without the host's /dev: the image's own is what an attacker would have.
        plan["spec"]["mounts"] = json!([bind("/proc".as_ref(), "/proc"), bind(&host, "/other")]);
        plan["spec"]["linux"]["maskedPaths"] = json!(["/proc/version", "/other/key", "/etc/out", "/etc/up/etc/witness"]);
        plan["spec"]["linux"]["readonlyPaths"] = json!(["/proc", "/other/kept"]);
    });
    let (out, err) = text(&output);
    // The null device's, wherever the file is seen.
    assert_eq!(out, "null\nend\n", "{err}");
    for file in ["key", "kept/file", "null"] {
        assert_eq!(fs::read_to_string(host.join(file)).unwrap(), "of the host\n", "{file}");
    }
}

#[test]
fn directories_that_are_exchanged_do_not_lead_masks_elsewhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const ROUNDS: u32 = 60;
    let Some(bench) = Bench::prepare() else { return };
    let (root, host) = (bench.path("root"), bench.path("host"));
    for place in [&host, &root.join("evil"), &root.join("real")] {
        fs::create_dir_all(place.join("fixed")).unwrap();
        fs::write(place.join("key"), "decoy\n").unwrap();
        fs::write(place.join("fixed/file"), "").unwrap();
    }
    fs::write(host.join("key"), "secret\n").unwrap();
    let script = "cat /real/key /evil/key; for d in /real /evil; do echo x >> $d/fixed/file; done; true";
    let plan = bench.plan(Kind::Directory, script, |plan| {
        let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/real", "source": host, "type": "bind", "options": ["rbind"]}));
        plan["spec"]["linux"]["maskedPaths"] = json!(["/real/key"]);
        plan["spec"]["linux"]["readonlyPaths"] = json!(["/real/fixed"]);
    });
    let over = AtomicBool::new(false);
    let (real, evil) = (root.join("real"), root.join("evil"));
    let began = std::time::Instant::now();
    let shown = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u32;
            while !over.load(Ordering::Relaxed) && began.elapsed().as_secs() < 60 {
                let cwd = rustix::fs::CWD;
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                swaps += u32::from(rustix::fs::renameat_with(cwd, &real, cwd, &evil, flags).is_ok());
            }
            swaps
        });
        let shown: Vec<_> = (0..ROUNDS).map(|_| text(&finish(start(&plan, &[])))).collect();
        over.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > ROUNDS, "nothing was exchanged");
        shown
    });
    let ran = shown.iter().filter(|(out, _)| out.contains("decoy")).count();
    assert!(ran > 0, "no round has run: {:?}", shown.first());
    for (out, err) in &shown {
        assert!(!out.contains("secret"), "the mask was led elsewhere: {out}{err}");
    }
    assert_eq!(fs::read_to_string(host.join("fixed/file")).unwrap(), "", "what is read-only was written");
}

#[test]
fn limits_and_capabilities_are_those_of_the_plan() {
    let Some(bench) = Bench::prepare() else { return };
    let names = json!(["CAP_CHOWN", "CAP_KILL"]);
    for kind in [Kind::Directory, Kind::Image] {
        let script = "cat /proc/self/limits /proc/self/status";
        let run = |change: &dyn Fn(&mut Value)| text(&bench.run(kind, script, change));
        let line = |out: &str, start: &str| {
            let found = out.lines().find(|line| line.starts_with(start)).unwrap_or_default();
            found.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        let (out, err) = run(&|plan| {
            plan["spec"]["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "hard": 77, "soft": 55},
                {"type": "RLIMIT_CORE", "hard": u64::MAX, "soft": 0},
            ]);
            plan["spec"]["process"]["capabilities"] = json!({
                "bounding": names, "permitted": names, "effective": names, "inheritable": names, "ambient": ["CAP_KILL"]
            });
        });
        assert_eq!(line(&out, "Max open files"), "Max open files 55 77 files", "{kind:?}: {err}");
        assert!(line(&out, "Max core file size").starts_with("Max core file size 0 "), "{kind:?}: {out}");
        // CAP_CHOWN is bit 0, CAP_KILL bit 5. Root keeps what is permitted, others what is ambient.
        let kept = if rustix::process::getuid().is_root() { "21" } else { "20" };
        for (name, bits) in
            [("CapInh", "21"), ("CapPrm", kept), ("CapEff", kept), ("CapBnd", "21"), ("CapAmb", "20")]
        {
            assert_eq!(line(&out, name), format!("{name}: {bits:0>16}"), "{kind:?}");
        }
        assert_eq!(line(&out, "NoNewPrivs"), "NoNewPrivs: 1");
        let (out, _) = run(&|plan| plan["spec"]["process"]["noNewPrivileges"] = json!(false));
        // A filter of system calls needs it, whatever the Plan says.
        let expected = if std::env::var_os("REFUSE").is_some() { "NoNewPrivs: 1" } else { "NoNewPrivs: 0" };
        assert_eq!(line(&out, "NoNewPrivs"), expected);
        for (change, message) in [
            (
                json!({"rlimits": [{"type": "RLIMIT_SPEED", "hard": 1, "soft": 1}]}),
                "unknown resource limit RLIMIT_SPEED",
            ),
            (
                json!({"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]}),
                "cannot set RLIMIT_NOFILE",
            ),
            (json!({"capabilities": {"permitted": ["CAP_FLY"]}}), "unknown capability CAP_FLY"),
            (json!({"capabilities": {"effective": ["CAP_CHOWN"]}}), "cannot set capabilities"),
        ] {
            let (_, err) = run(&|plan| {
                for (key, value) in change.as_object().unwrap() {
                    plan["spec"]["process"][key] = value.clone();
                }
            });
            assert!(err.contains(message), "{kind:?} {change}: {err}");
        }
    }
}

#[test]
fn subordinate_ids_are_mapped_by_the_hosts_programs() {
    let Some(bench) = Bench::prepare() else { return };
    if !rustix::process::getuid().is_root() || !std::path::Path::new("/usr/bin/newuidmap").exists() {
        skip("needs root and Debian's uidmap");
        return;
    }
    // Files of one's own over the machine's, in a mount namespace: newuidmap and newgidmap read them.
    let ranges = bench.path("ranges");
    fs::write(&ranges, "root:500000:10\nroot:600000:5\n").unwrap();
    let maps = json!([
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 500_000, "size": 10},
        {"containerID": 11, "hostID": 600_000, "size": 5},
    ]);
    let all = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
    for kind in [Kind::Directory, Kind::Image] {
        for pid in [false, true] {
            let run = |script: &str, change: &dyn Fn(&mut Value)| {
                let plan = bench.plan(kind, script, |plan| {
                    plan["spec"]["linux"]["uidMappings"] = maps.clone();
                    plan["spec"]["linux"]["gidMappings"] = maps.clone();
                    plan["spec"]["process"]["user"] = json!({"uid": 0, "gid": 0});
                    plan["spec"]["process"]["capabilities"] =
                        json!({"bounding": all, "permitted": all, "effective": all});
                    let tmp =
                        json!({"destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": []});
                    plan["spec"]["mounts"].as_array_mut().unwrap().push(tmp);
                    if pid {
                        with_namespaces(plan, &["pid"]);
                    }
                    change(plan);
                });
                let command = "mount --bind \"$1\" /etc/subuid && mount --bind \"$1\" /etc/subgid && exec \"$2\" \"$3\"";
                let output = Command::new("unshare")
                    .args(["--mount", "--propagation", "private", "sh", "-c", command, "sh"])
                    .args([&ranges, &runner(), &plan])
                    .output()
                    .unwrap();
                (output.status.code(), text(&output))
            };
            let script = "busybox awk '{print $1, $2, $3}' /proc/self/uid_map /proc/self/gid_map; echo > /tmp/f; \
                          busybox chown 15:3 /tmp/f && busybox stat -c %u:%g /tmp/f; busybox chown 16 /tmp/f 2>&1";
            let (code, (out, err)) = run(script, &|_| ());
            let map = "0 0 1\n1 500000 10\n11 600000 5\n";
            assert!(out.starts_with(&format!("{map}{map}15:3\n")), "{kind:?} {pid}: {code:?} {out}{err}");
            assert!(out.contains("Invalid argument"), "{kind:?} {pid}: {out}");
            // What is not the user's is refused by the programs, and nothing is run.
            let (code, (out, err)) = run("echo ran", &|plan| {
                plan["spec"]["linux"]["uidMappings"][1]["size"] = json!(11);
            });
            assert_eq!((code, out.as_str()), (Some(125), ""), "{kind:?} {pid}: {err}");
            assert!(
                err.contains("error: SubordinateIds: /usr/bin/newuidmap does not map these ids: newuidmap: "),
                "{kind:?} {pid}: {err}"
            );
        }
    }
}

/// What a neighbour has laid out as `/proc` is mounted there: nothing of ours goes by it, and nothing is written to it.
#[test]
fn what_is_mounted_over_proc_is_not_believed() {
    let Some(bench) = Bench::prepare() else { return };
    let (fake, host) = (bench.path("fake"), bench.path("host"));
    fs::create_dir(&host).unwrap();
    // By these it would have no descriptors, and many threads.
    for directory in ["self/fd", "self/task/1", "self/task/2", "self/attr", "sys/kernel"] {
        fs::create_dir_all(fake.join(directory)).unwrap();
    }
    let files = [
        "self/attr/current",
        "self/attr/exec",
        "self/uid_map",
        "self/setgroups",
        "sys/kernel/hostname",
        "secret",
    ];
    for file in files {
        fs::write(fake.join(file), "fake\n").unwrap();
    }
    let refused = |refused: &str| match std::env::var("REFUSE") {
        Ok(all) => format!("{all},{refused}"),
        Err(_) => format!("38:{refused}"),
    };
    for kind in [Kind::Directory, Kind::Image] {
        for pid in [false, true] {
            let (up, go) = (bench.path("up"), bench.path("go"));
            let script = "if (: <&9) 2>/dev/null; then echo open; fi; cat /proc/self/attr/current /proc/secret; \
                          echo > /real/up; while ! test -e /real/go; do busybox sleep 0.01; done";
            let plan = bench.plan(kind, script, |plan| {
                if pid {
                    with_namespaces(plan, &["pid"]);
                }
                let bind = |source: &std::path::Path, destination: &str| json!({"destination": destination, "source": source, "type": "bind", "options": ["rbind"]});
                let mounts = plan["spec"]["mounts"].as_array_mut().unwrap();
                mounts.push(bind(&fake, "/proc"));
                mounts.push(bind(&bench.path(""), "/real"));
                plan["spec"]["linux"]["maskedPaths"] = json!(["/proc/secret", "/proc/kcore"]);
                plan["spec"]["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
            });
            let mut command = Command::new("sh");
            command.args(["-c", "exec 9<\"$1\"; exec \"$2\" \"$3\"", "sh"]).args([&host, &runner(), &plan]);
            // Where the kernel does not close all at once, `/proc` says what there is to close.
            command.env("REFUSE", refused("close_range"));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut runner = command.spawn().unwrap();
            wait_until("the payload", || up.exists() || runner.try_wait().unwrap().is_some());
            let kept = has_open("situla-init", &host);
            fs::write(&go, "").unwrap();
            let (out, err) = text(&finish(runner));
            assert_eq!(out, "fake\n", "{kind:?} {pid}: {err}");
            assert!(!kept, "{kind:?}: init has the host's directory open");
            for path in [up, go] {
                fs::remove_file(path).unwrap();
            }
            for file in files {
                assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "fake\n", "{kind:?} {pid}: {file}");
            }
        }
    }
}

/// Whether a process of this name has `path` open; root alone sees that of all.
fn has_open(name: &str, path: &std::path::Path) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let mut named = entries
        .filter(|process| fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    named.any(|process| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
    })
}
