//! Hooks: when and where they run, what they are told, and what comes of their failures.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Bench, Kind, finish, start, text};

const STAGES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A place that hooks can write to: where one of the stages runs, the container covers `/tmp`.
fn logs() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A hook that runs a script of busybox's shell; inside, that is at the same path.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin", "WHO=hook"]})
}

/// Has `script` run at `stages`.
fn with(plan: &mut Value, stages: &[&str], script: &dyn Fn(&str) -> String) {
    for stage in stages {
        plan["spec"]["hooks"][*stage] = json!([hook(&script(stage))]);
    }
}

#[test]
fn hooks_run_in_order_each_in_its_place() {
    let Some(bench) = Bench::prepare() else { return };
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    for kind in [Kind::Directory, Kind::Image] {
        for pid in [false, true] {
            let logs = logs();
            let log = logs.path().to_owned();
            // Each writes what it sees; the payload writes after the fourth and before the sixth.
            let script = |stage: &str| {
                let place =
                    if stage == "startContainer" { "/real".to_owned() } else { log.display().to_string() };
                format!(
                    "cd {place}; echo {stage} >> order; {{ cat; echo; busybox readlink /proc/self/ns/mnt; \
                     busybox ls /etc/witness; echo $WHO $#; busybox env | busybox wc -l; \
                     busybox grep CapEff /proc/self/status; }} > {stage} 2>&1"
                )
            };
            let payload = "echo payload >> /real/order; while ! test -e /real/poststart; do sleep 0.01; done";
            let output = bench.run(kind, payload, |plan| {
                with(plan, &STAGES, &script);
                plan["spec"]["annotations"] = json!({"example.key": "value"});
                let bind =
                    json!({"destination": "/real", "source": log, "type": "bind", "options": ["rbind"]});
                plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
                if pid {
                    plan["spec"]["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
                }
            });
            assert_eq!(output.status.code(), Some(0), "{kind:?} {pid}: {}", text(&output).1);
            let order = fs::read_to_string(log.join("order")).unwrap();
            let mut lines: Vec<&str> = order.lines().collect();
            // The payload and the hook that runs when it begins do not wait for each other.
            lines.retain(|line| *line != "payload");
            assert_eq!(lines, STAGES, "{kind:?} {pid}");
            let place = |name: &str| order.lines().position(|line| line == name).unwrap();
            assert!(place("startContainer") < place("payload") && place("payload") < place("poststop"));
            let mut pids = Vec::new();
            for stage in STAGES {
                let said = fs::read_to_string(log.join(stage)).unwrap();
                let lines: Vec<&str> = said.lines().collect();
                let state: Value = serde_json::from_str(lines[0]).unwrap();
                let status = match stage {
                    "startContainer" => "created",
                    "poststart" => "running",
                    "poststop" => "stopped",
                    _ => "creating",
                };
                assert_eq!(
                    (
                        &state["status"],
                        &state["ociVersion"],
                        &state["id"],
                        &state["annotations"]["example.key"]
                    ),
                    (&json!(status), &json!("1.2.0"), &json!("run"), &json!("value")),
                    "{kind:?} {stage}"
                );
                assert!(state["bundle"].as_str().unwrap().starts_with('/'));
                pids.extend(state["pid"].as_i64());
                let on_host = !["createContainer", "startContainer"].contains(&stage);
                assert_eq!(lines[1] == host("mnt"), on_host, "{kind:?} {stage}: {said}");
                assert_eq!(lines[2] == "/etc/witness", stage == "startContainer", "{kind:?} {stage}: {said}");
                assert_eq!(lines[3], "hook 0");
                // PATH and WHO, and what the shell sets.
                assert!(lines[4].trim().parse::<u32>().unwrap() <= 5, "{stage}: {said}");
                if stage == "startContainer" {
                    assert!(lines[5].ends_with("0000000000000000"), "{kind:?}: {said}");
                }
            }
            assert!(pids.len() == 5 && pids.iter().all(|pid| *pid == pids[0] && *pid > 1), "{pids:?}");
        }
    }
}

#[test]
fn a_hook_that_fails_has_its_consequences() {
    let Some(bench) = Bench::prepare() else { return };
    let patient = "echo ran; sleep 1000";
    for kind in [Kind::Directory, Kind::Image] {
        for stage in STAGES {
            let logs = logs();
            let log = logs.path().join("end");
            let change = |plan: &mut Value| {
                with(plan, &[stage], &|_| "echo complaint; exit 4".to_owned());
                if stage != "poststop" {
                    plan["spec"]["hooks"]["poststop"] =
                        json!([hook(&format!("echo end > {}", log.display()))]);
                }
            };
            let payload = match stage {
                "poststart" => patient,
                _ => "echo ran; exit 3",
            };
            let begin = Instant::now();
            let output = bench.run(kind, payload, change);
            assert!(begin.elapsed() < Duration::from_secs(15), "{kind:?} {stage}");
            let (out, err) = text(&output);
            assert!(err.contains("complaint"), "{kind:?} {stage}: {err}");
            let message = format!("the {stage} hook /bin/busybox ended with status 4");
            if stage == "poststop" {
                assert_eq!((output.status.code(), out.as_str()), (Some(3), "ran\n"), "{kind:?}: {err}");
                assert!(err.contains(&format!("warning: {message}")), "{kind:?}: {err}");
                continue;
            }
            assert_eq!(output.status.code(), Some(125), "{kind:?} {stage}: {err}");
            assert!(err.contains(&format!("error: Hook: {message}")), "{kind:?} {stage}: {err}");
            assert!(stage == "poststart" || out.is_empty(), "{kind:?} {stage}: {out}");
            assert_eq!(fs::read_to_string(&log).unwrap(), "end\n", "{kind:?} {stage}");
        }
        for (hook, message) in [
            (json!({"path": "/no/such/hook"}), "the createRuntime hook /no/such/hook cannot be started"),
            (
                json!({"path": "/bin/busybox", "args": ["sh", "-c", "kill -USR1 $$"]}),
                "the createRuntime hook /bin/busybox died by signal 10",
            ),
            (json!({"path": "bin/hook"}), "is no absolute path"),
            (json!({"path": "/bin/true", "timeout": 0}), "is given no time"),
        ] {
            let plan = |plan: &mut Value| plan["spec"]["hooks"] = json!({"createRuntime": [hook]});
            let (out, err) = text(&bench.run(kind, "echo ran", plan));
            assert!(
                out.is_empty() && err.contains("error: Hook: ") && err.contains(message),
                "{kind:?}: {out}{err}"
            );
        }
    }
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
    let Some(bench) = Bench::prepare() else { return };
    for stage in ["createRuntime", "createContainer", "startContainer"] {
        let mark = format!("1000.{}", std::process::id());
        let begin = Instant::now();
        let output = bench.run(Kind::Image, "echo ran", |plan| {
            with(plan, &[stage], &|_| format!("busybox sleep {mark} & busybox sleep {mark}"));
            plan["spec"]["hooks"][stage][0]["timeout"] = json!(1);
        });
        let (out, err) = text(&output);
        assert!(out.is_empty() && err.contains("took longer than 1 s"), "{stage}: {out}{err}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{stage}");
        let left = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&mark))
        });
        assert!(!left, "{stage}: something of the hook is left");
    }
}

#[test]
fn hooks_are_refused_where_they_cannot_be_right() {
    let Some(bench) = Bench::prepare() else { return };
    let share = json!({"with": "step", "key": format!("hooks/{}", std::process::id()), "local_tasks": 2});
    for stage in ["startContainer", "poststart", "poststop"] {
        let output = bench.run(Kind::Image, "echo ran", |plan| {
            with(plan, &[stage], &|_| "exit 0".to_owned());
            plan["share"] = share.clone();
        });
        assert!(text(&output).1.contains("that tasks share"), "{stage}: {}", text(&output).1);
    }
    let plan = bench.plan(Kind::Directory, "echo ran", |plan| with(plan, &["prestart"], &|_| String::new()));
    assert!(text(&finish(start(&plan, &["exec-only"]))).1.contains("hooks need a process"));
    // A container that cannot be built has no hooks to wait for.
    let begin = Instant::now();
    let output = bench.run(Kind::Directory, "echo ran", |plan| {
        with(plan, &["createRuntime"], &|_| "exit 0".to_owned());
        let bind = json!({"destination": "/real", "source": "/no/such", "type": "bind", "options": []});
        plan["spec"]["mounts"].as_array_mut().unwrap().push(bind);
    });
    assert!(text(&output).1.contains("BindSourceMissing"), "{}", text(&output).1);
    assert!(begin.elapsed() < Duration::from_secs(10));
    // Those that run once for all are no obstacle to sharing.
    let logs = logs();
    let log = logs.path().join("once");
    let run = |name: &str| {
        let output = bench.run(Kind::Image, &format!("echo {name}"), |plan| {
            with(plan, &["createRuntime", "createContainer"], &|stage| {
                format!("echo {stage} >> {}", log.display())
            });
            plan["share"] = share.clone();
        });
        assert_eq!((output.status.code(), output.status.signal()), (Some(0), None), "{}", text(&output).1);
    };
    run("first");
    run("second");
    assert_eq!(fs::read_to_string(&log).unwrap(), "createRuntime\ncreateContainer\n");
}
