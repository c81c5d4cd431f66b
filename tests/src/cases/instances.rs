//! Instances, judged from inside them, by the kernel's view of their processes, and by what is left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::small_jobs::{Group, in_group};
use super::{Desk, Site};
use crate::cluster::Job;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::leaks::process_ids;
use crate::tier::Check;

fn run(desk: &Desk, cwd: &Path, words: &[&str]) -> Result<Output, String> {
    desk.env.as_user(cwd, words)
}

/// What `situla instance list --json` says of one.
pub(super) fn listed(desk: &Desk, cwd: &Path, name: &str) -> Result<Option<Value>, String> {
    let output = run(desk, cwd, &["situla", "instance", "list", "--json"])?.success()?;
    let value: Value = serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))?;
    let all = value["instances"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().find(|one| one["name"] == name))
}

fn number(value: &Value, key: &str) -> Result<i32, String> {
    let found = value[key].as_i64().and_then(|number| i32::try_from(number).ok());
    found.ok_or_else(|| format!("no {key} in {value}"))
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn kill(pid: i32, signal: Signal) -> Result<(), String> {
    let pid = Pid::from_raw(pid).ok_or("no process")?;
    kill_process(pid, signal).map_err(|errno| format!("{pid:?}: {errno}"))
}

/// A copy of the small image, the user's own, with this start script.
fn image_with(desk: &Desk, dir: &Path, script: &str) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt;
    let tree = dir.join("tree");
    let copy = [Path::new("cp"), Path::new("-a"), &desk.env.image_tree("tiny"), &tree];
    command::run(command::words(copy.map(|word| word.as_os_str().to_owned())), PATIENCE)?.success()?;
    let io = |e: std::io::Error| format!("{}: {e}", tree.display());
    fs::create_dir_all(tree.join(".singularity.d")).map_err(io)?;
    let path = tree.join(".singularity.d/startscript");
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .map_err(io)?;
    let owner = format!("{}:", desk.env.user());
    let words = ["chown", "-R", &owner, &tree.display().to_string()].map(String::from);
    command::run(command::words(words), PATIENCE)?.success()?;
    Ok(tree.display().to_string())
}

/// An instance of each kind of image is one container for everybody who enters, ends when it is told to, and
/// leaves nothing.
///
/// # Errors
/// It is not, or does.
pub fn life(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("instance")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    for (program, image) in [
        ("situla", tree.clone()),
        ("situla", desk.images.path("tiny.sqsh")),
        ("apptainer", desk.images.path("tiny.sif")),
    ] {
        run(desk, dir.path(), &[program, "instance", "start", &image, "life"])?.success()?;
        let state = listed(desk, dir.path(), "life")?.ok_or("it is not listed")?;
        if state["state"] != "running" || !runs(number(&state, "pid")?) {
            return Err(format!("it does not run: {state}").into());
        }
        // Two who enter are in the same namespaces, one of them of processes; a file of one is there for the
        // other; neither is the first process; and the command is the caller's child in every way.
        let look = "for n in user mnt pid; do readlink /proc/self/ns/$n; done; cat /proc/1/comm; echo $APPTAINER_INSTANCE";
        let first =
            run(desk, dir.path(), &["situla", "instance", "exec", "life", "sh", "-c", look])?.success()?;
        let second =
            run(desk, dir.path(), &["apptainer", "exec", "instance://life", "sh", "-c", look])?.success()?;
        if first.stdout != second.stdout || !first.stdout.ends_with("situla-init\nlife\n") {
            return Err(format!("not in one container\n{first}\n{second}").into());
        }
        let host = fs::read_link("/proc/self/ns/pid")?.display().to_string();
        if first.stdout.contains(&host) {
            return Err(format!("the host's processes are seen\n{first}").into());
        }
        run(desk, dir.path(), &["situla", "exec", "instance://life", "sh", "-c", "exit 7"])?
            .expect_code(7)?;
        run(desk, dir.path(), &["situla", "instance", "exec", "life", "/no/such"])?.expect_code(127)?;
        run(desk, dir.path(), &["apptainer", "shell", "--shell", "/bin/true", "instance://life"])?
            .success()?;
        // What informs does not end it, whichever of its processes has it.
        for (process, signal) in [("pid", Signal::WINCH), ("holder_pid", Signal::CONT), ("pid", Signal::USR1)]
        {
            kill(number(&state, process)?, signal)?;
            run(desk, dir.path(), &["situla", "instance", "exec", "life", "true"])?.success()?;
        }
        let killed =
            run(desk, dir.path(), &["situla", "instance", "exec", "life", "sh", "-c", "kill -USR1 $$"])?;
        if killed.code() != 138 {
            return Err(format!("the signal was not raised again\n{killed}").into());
        }
        run(desk, dir.path(), &[program, "instance", "start", &image, "life"])?
            .expect_code(if program == "situla" { 125 } else { 255 })?
            .expect_text("instance life already exists")?;
        run(desk, dir.path(), &[program, "instance", "stop", "life"])?.success()?;
        // At once, without waiting: that is what stop has done.
        if runs(number(&state, "pid")?) || runs(number(&state, "holder_pid")?) {
            return Err(format!("processes are left: {state}").into());
        }
        if listed(desk, dir.path(), "life")?.is_some() {
            return Err("it is still listed".into());
        }
        run(desk, dir.path(), &["situla", "exec", "instance://life", "true"])?
            .expect_code(125)?
            .expect_text("there is no instance life")?;
    }
    Ok(())
}

/// A start script runs with the image's environment and its arguments, its output goes to the logs, and the
/// instance stays when it has ended. An image that cannot be started leaves nothing.
///
/// # Errors
/// It does not.
pub fn start_script(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("script")?;
    let image = image_with(desk, dir.path(), "echo out $1 $APPTAINER_INSTANCE; echo err >&2; cat; exit 3")?;
    run(desk, dir.path(), &["situla", "instance", "start", &image, "script", "word"])?.success()?;
    let state = listed(desk, dir.path(), "script")?.ok_or("it is not listed")?;
    let read = |key: &str| fs::read_to_string(state[key].as_str().unwrap_or_default()).unwrap_or_default();
    // Its input is empty, so cat ends.
    if !wait_until(PATIENCE, || read("log_out") == "out word script\n" && read("log_err") == "err\n") {
        return Err(format!("the logs hold {:?} and {:?}", read("log_out"), read("log_err")).into());
    }
    run(desk, dir.path(), &["situla", "instance", "exec", "script", "true"])?.success()?;
    run(desk, dir.path(), &["situla", "instance", "stop", "script"])?.success()?;
    for key in ["log_out", "log_err"] {
        fs::remove_file(state[key].as_str().unwrap_or_default())?;
    }
    fs::write(Path::new(&image).join(".singularity.d/startscript"), "#!/no/such/shell\n")?;
    run(desk, dir.path(), &["situla", "instance", "start", &image, "script"])?
        .expect_code(125)?
        .expect_text("startscript")?;
    let left =
        fs::read_dir(Path::new(state["log_out"].as_str().unwrap_or_default()).parent().ok_or("no parent")?)?;
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).filter(|name| name != ".lock").collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}").into()) }
}

/// Processes that do not end when asked are killed when their time is up; those that do have the signal first.
///
/// # Errors
/// They are not.
pub fn stop(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("stop")?;
    let image = image_with(
        desk,
        dir.path(),
        "trap 'echo told; exit 0' TERM; trap 'echo usr1; exit 0' USR1; trap '' INT; echo up; while :; do sleep 0.05; done",
    )?;
    fs::create_dir_all(Path::new(&image).join(".situla"))?;
    let config = r#"{"architecture":"amd64","os":"linux","config":{"StopSignal":"SIGUSR1"},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    fs::write(Path::new(&image).join(".situla/config.json"), config)?;
    // What is asked ends by itself, long before it would be killed; what is not asked is not waited for.
    let long = &["--timeout", "3600"][..];
    for (words, told, waits) in [
        ([&["--signal", "SIGTERM"], long].concat(), "up\ntold\n", None),
        ([&["-s", "10"], long].concat(), "up\nusr1\n", None),
        // What the image's configuration names.
        (long.to_vec(), "up\nusr1\n", None),
        (vec!["--signal", "INT", "--timeout", "1"], "up\n", Some(Duration::from_secs(1))),
        ([&["--force"], long].concat(), "up\n", None),
    ] {
        run(desk, dir.path(), &["situla", "instance", "start", &image, "stubborn"])?.success()?;
        let state = listed(desk, dir.path(), "stubborn")?.ok_or("it is not listed")?;
        let log = state["log_out"].as_str().unwrap_or_default().to_owned();
        if !wait_until(PATIENCE, || fs::read_to_string(&log).unwrap_or_default() == "up\n") {
            return Err("its script does not run".into());
        }
        let command =
            ["situla", "instance", "stop", "stubborn"].into_iter().chain(words.clone()).collect::<Vec<_>>();
        let output = run(desk, dir.path(), &command)?.success()?;
        let text = fs::read_to_string(&log)?;
        let early = waits.is_some_and(|limit| output.took < limit);
        if text != told || early || runs(number(&state, "pid")?) {
            return Err(format!("{words:?}: the log holds {text:?}\n{output}").into());
        }
        fs::remove_file(&log)?;
    }
    run(desk, dir.path(), &["situla", "instance", "stop", "--signal", "STOP", "x"])?.expect_code(2)?;
    for name in ["all-1", "all-2"] {
        run(desk, dir.path(), &["apptainer", "instance", "start", &desk.images.path("tiny.sqsh"), name])?
            .success()?;
    }
    run(desk, dir.path(), &["apptainer", "instance", "stop", "--all"])?
        .success()?
        .expect_text("Stopping all-2")?;
    let output = run(desk, dir.path(), &["apptainer", "instance", "list", "--json"])?.success()?;
    let value: Value = serde_json::from_str(&output.stdout)?;
    if value == serde_json::json!({ "instances": [] }) { Ok(()) } else { Err(output.to_string().into()) }
}

/// Whoever of an instance's processes is killed: all of it ends, the list says so once, its name is free, and
/// whoever was inside hears why he has ended.
///
/// # Errors
/// They do not.
pub fn killed(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("killed")?;
    for image in [desk.images.path("tiny.sqsh"), desk.env.image_tree("tiny").display().to_string()] {
        for victim in ["holder", "init", "keeper"] {
            run(desk, dir.path(), &["situla", "instance", "start", &image, "victim"])?.success()?;
            let state = listed(desk, dir.path(), "victim")?.ok_or("it is not listed")?;
            let (init, holder) = (number(&state, "pid")?, number(&state, "holder_pid")?);
            let keeper = child_of(holder, "situla-keeper").ok_or("there is no keeper")?;
            let inside = ["situla", "instance", "exec", "victim", "sh", "-c", "touch inside; exec sleep 600"];
            let visitor = command::start(desk.env.user_command(dir.path(), inside)?)?;
            if !wait_until(PATIENCE, || dir.path().join("inside").exists()) {
                return Err("nobody is inside".into());
            }
            kill(
                match victim {
                    "holder" => holder,
                    "init" => init,
                    _ => keeper,
                },
                Signal::KILL,
            )?;
            let output = visitor.finish(PATIENCE)?;
            output.expect_code(125)?.expect_text("the instance has ended")?;
            if !wait_until(PATIENCE, || ![init, holder, keeper].into_iter().any(runs)) {
                return Err(format!("{victim} was killed, and others go on").into());
            }
            let seen = listed(desk, dir.path(), "victim")?.map(|state| state["state"].clone());
            // A holder that lives takes its file away; one that was killed is seen, once.
            let expected = (victim == "holder").then(|| Value::from("killed"));
            if seen != expected || listed(desk, dir.path(), "victim")?.is_some() {
                return Err(format!("{victim} was killed, and the list says {seen:?}").into());
            }
            fs::remove_file(dir.path().join("inside"))?;
        }
    }
    Ok(())
}

/// The child of a process that has this name.
fn child_of(parent: i32, name: &str) -> Option<i32> {
    let is_it = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |key: &str| {
            status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim().to_owned()
        };
        field("Name:") == name && field("PPid:") == parent.to_string()
    };
    process_ids().into_iter().find(is_it).and_then(|pid| i32::try_from(pid).ok())
}

/// A start that is interrupted, wherever it is, leaves nothing: no process, no mount, no file.
///
/// # Errors
/// It leaves something.
pub fn interrupted_start(desk: &Desk) -> Check {
    const TRIES: u64 = 24;
    let dir = desk.env.work_dir("interrupted")?;
    let image = desk.images.path("tiny.sqsh");
    let words = ["situla", "instance", "start", &image, "interrupted"];
    run(desk, dir.path(), &words)?.success()?;
    let state = listed(desk, dir.path(), "interrupted")?.ok_or("it is not listed")?;
    let log = Path::new(state["log_out"].as_str().unwrap_or_default()).to_owned();
    run(desk, dir.path(), &["situla", "instance", "stop", "interrupted"])?.success()?;
    let mut n_interrupted = 0;
    for attempt in 0..TRIES {
        if !wait_until(PATIENCE, || !log.exists()) {
            return Err(format!("{} is left", log.display()).into());
        }
        let started = command::start(desk.env.user_command(dir.path(), words)?)?;
        // Some at once, others when their log is there: then the container is about to be made, which is what is
        // to be interrupted. A wait that sleeps could miss it.
        let begun = Instant::now();
        while attempt % 4 != 0 && !log.exists() && begun.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        // At another moment each time: this is what is tried, not a wait for something.
        std::thread::sleep(Duration::from_millis(attempt % 8));
        let is_begun = log.exists();
        // as-user becomes the program, so that this reaches it, as Ctrl-C would.
        let _ = kill(i32::try_from(started.pid())?, Signal::INT);
        let output = started.finish(PATIENCE)?;
        match listed(desk, dir.path(), "interrupted")? {
            // It was complete already.
            Some(_) if output.code() == 0 || output.code() == 130 => {
                run(desk, dir.path(), &["situla", "instance", "stop", "interrupted"])?.success()?;
            }
            None if output.code() != 0 => n_interrupted += u64::from(is_begun && output.code() == 130),
            other => return Err(format!("listed: {other:?}\n{output}").into()),
        }
    }
    if n_interrupted == 0 { Err("no container was interrupted while it was made".into()) } else { Ok(()) }
}

/// What is counted is what the instance does, and says where it comes from.
///
/// # Errors
/// It is not.
pub fn stats(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("stats")?;
    let image = image_with(desk, dir.path(), "sleep 600 & while :; do :; done")?;
    run(desk, dir.path(), &["situla", "instance", "start", &image, "busy"])?.success()?;
    let look = || -> Result<Value, String> {
        let words = ["situla", "instance", "stats", "--no-stream", "--json", "busy"];
        let output = run(desk, dir.path(), &words)?.success()?;
        serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))
    };
    let is_busy = |value: &Value| {
        value["cpu_percent"].as_f64().is_some_and(|percent| percent > 20.0)
            && value["cpu_ns"].as_u64().is_some_and(|used| used > 100_000_000)
            && value["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000)
            // init, the shell, sleep
            && value["n_processes"] == 3
            && value["source"] == "processes"
    };
    let mut last = Ok(Value::Null);
    let seen = wait_until(PATIENCE, || {
        last = look();
        last.as_ref().is_ok_and(is_busy)
    });
    run(desk, dir.path(), &["apptainer", "instance", "stats", "--no-stream", "busy"])?
        .success()?
        .expect_text("INSTANCE NAME")?;
    run(desk, dir.path(), &["situla", "instance", "stop", "--force", "busy"])?.success()?;
    if seen { Ok(()) } else { Err(format!("{last:?}").into()) }
}

/// In a control group of its own what that counts is shown, with its limit; where others are in the group, or it counts memory
/// alone, the processes are added up.
///
/// # Errors
/// It is otherwise.
pub fn stats_of_a_control_group(desk: &Desk) -> Check {
    const LIMIT: u64 = 256 << 20;
    let dir = desk.env.work_dir("group-stats")?;
    let image = image_with(desk, dir.path(), "sleep 600 & while :; do :; done")?;
    let memory = Group::new("stats", LIMIT)?;
    let cpu = (!memory.is_unified).then(|| Group::below("cpuacct", "stats")).transpose()?;
    let start = |name: &str, groups: &[&Group]| -> Result<(), String> {
        let mut command = desk.env.user_command(dir.path(), ["situla", "instance", "start", &image, name])?;
        for group in groups {
            command = in_group(&command, dir.path(), &group.path);
        }
        command::run(command, PATIENCE)?.success().map(drop)
    };
    let look = |name: &str| -> Result<Value, String> {
        let words = ["situla", "instance", "stats", "--no-stream", "--json", name];
        let output = run(desk, dir.path(), &words)?.success()?;
        serde_json::from_str(&output.stdout).map_err(|e| format!("{e}\n{output}"))
    };
    let all: Vec<&Group> = [&memory].into_iter().chain(&cpu).collect();
    let begun = Instant::now();
    start("grouped", &all)?;
    let of_group = |value: &Value| {
        let percent = value["cpu_percent"].as_f64();
        let most = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        value["source"] == "cgroup"
            && value["memory_limit_bytes"] == LIMIT
            && value["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0 && bytes <= LIMIT)
            && value["n_processes"] == 3
            // One shell that turns in a circle, and not what the machine has done since it was started.
            && value["cpu_ns"].as_u64().is_some_and(|used| used > 100_000_000 && used < most * 2)
            && percent.is_some_and(|percent| percent > 20.0 && percent < 110.0)
    };
    let mut last = Ok(Value::Null);
    let seen = wait_until(PATIENCE, || {
        last = look("grouped");
        last.as_ref().is_ok_and(of_group)
    });
    // A neighbour in the same groups, and one in the group of memory alone.
    let shared = start("neighbour", &all).and_then(|()| look("grouped"));
    for name in ["neighbour", "grouped"] {
        run(desk, dir.path(), &["situla", "instance", "stop", "--force", name])?;
    }
    if !seen {
        return Err(format!("in a group of its own: {last:?}").into());
    }
    let shared = shared?;
    if shared["source"] != "processes" {
        return Err(format!("beside a neighbour: {shared}").into());
    }
    if cpu.is_some() {
        start("half", &[&memory])?;
        let half = look("half");
        run(desk, dir.path(), &["situla", "instance", "stop", "--force", "half"])?.success()?;
        let half = half?;
        if half["source"] != "processes" {
            return Err(format!("with everybody's processor time: {half}").into());
        }
    }
    Ok(())
}

/// The filter that an instance was started with holds for its command, and for whoever enters: as it was read then,
/// unless he has one of his own.
///
/// # Errors
/// It does not.
pub fn filters(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("filters")?;
    let image = desk.images.path("tiny.sqsh");
    let forbid = |names: &str| {
        let rule = format!(r#"{{"names": [{names}], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}}"#);
        format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#)
    };
    dir.write("mkdir.json", &forbid(r#""mkdir", "mkdirat""#))?;
    dir.write("symlink.json", &forbid(r#""symlink", "symlinkat""#))?;
    let start = ["situla", "instance", "start", "--security", "seccomp:mkdir.json", &image, "filtered"];
    run(desk, dir.path(), &start)?.success()?;
    fs::remove_file(dir.path().join("mkdir.json"))?;
    // Judged from inside: by what the calls do, and by what the kernel says of the process.
    let look = "grep Seccomp: /proc/self/status; mkdir made 2>/dev/null || echo no directory; \
                ln -s x linked 2>/dev/null || echo no link; rm -rf made linked";
    let own =
        ["situla", "exec", "--security", "seccomp:symlink.json", "instance://filtered", "sh", "-c", look];
    for (words, seen) in [
        (&["situla", "instance", "exec", "filtered", "sh", "-c", look][..], "no directory"),
        (&["apptainer", "exec", "instance://filtered", "sh", "-c", look], "no directory"),
        (&own, "no link"),
    ] {
        let output = run(desk, dir.path(), words)?.success()?;
        if output.stdout != format!("Seccomp:\t2\n{seen}\n") {
            return Err(output.to_string().into());
        }
    }
    run(desk, dir.path(), &["situla", "instance", "stop", "filtered"])?.success()?;
    Ok(())
}

/// State that somebody has tampered with leads nowhere: not to a process with the same number, not to the
/// instance of another name, and not out of the directory.
///
/// # Errors
/// It does.
pub fn tampered_state(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("tampered")?;
    let image = desk.images.path("tiny.sqsh");
    run(desk, dir.path(), &["situla", "instance", "start", &image, "honest"])?.success()?;
    let state = listed(desk, dir.path(), "honest")?.ok_or("it is not listed")?;
    let log = state["log_out"].as_str().unwrap_or_default();
    let path = Path::new(log).with_extension("json");
    let text = fs::read_to_string(&path)?;
    let mut forged: Value = serde_json::from_str(&text)?;
    let bystander = command::start(desk.env.user_command(dir.path(), ["sleep", "600"])?)?;
    // as-user becomes the program: the number is the sleeper's.
    forged["name"] = "forged".into();
    forged["holder"]["pid"] = bystander.pid().into();
    forged["init"]["pid"] = bystander.pid().into();
    let forged_path = path.with_file_name("forged.json");
    let write = |path: &Path, value: &Value| -> Check {
        fs::write(path, value.to_string())?;
        std::os::unix::fs::chown(path, Some(desk.env.uid()?), None)?;
        Ok(())
    };
    write(&forged_path, &forged)?;
    // The number is right and the start is not.
    run(desk, dir.path(), &["situla", "instance", "stop", "--force", "forged"])?
        .expect_code(125)?
        .expect_text("there is no instance forged")?;
    // Both are right, and the meeting point is the other's.
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.pid()))?;
    let begun = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).unwrap_or("0");
    forged["holder"]["started"] = begun.parse::<u64>()?.into();
    write(&forged_path, &forged)?;
    run(desk, dir.path(), &["situla", "exec", "instance://forged", "true"])?
        .expect_code(125)?
        .expect_text("does not answer")?;
    fs::remove_file(&forged_path)?;
    // A file of root's is nobody's instance.
    fs::write(&forged_path, text.replace("honest", "forged"))?;
    run(desk, dir.path(), &["situla", "exec", "instance://forged", "true"])?
        .expect_code(125)?
        .expect_text("forged.json")?;
    fs::remove_file(&forged_path)?;
    // One that says nothing is nobody's either, and the name is free.
    write(&forged_path, &Value::Null)?;
    run(desk, dir.path(), &["situla", "instance", "stop", "forged"])?
        .expect_code(125)?
        .expect_text("forged.json")?;
    run(desk, dir.path(), &["situla", "instance", "start", &image, "forged"])?.success()?;
    run(desk, dir.path(), &["situla", "instance", "stop", "forged"])?.success()?;
    // Root is another user.
    let words =
        [desk.env.situla().display().to_string(), "exec".into(), "instance://honest".into(), "true".into()];
    let mut as_root = command::words(words);
    as_root.env("XDG_STATE_HOME", desk.env.home()?.join(".local/state"));
    command::run(as_root, PATIENCE)?.expect_code(125)?;
    if !runs(i32::try_from(bystander.pid())?) {
        return Err("the bystander was hit".into());
    }
    kill(i32::try_from(bystander.pid())?, Signal::TERM)?;
    bystander.finish(PATIENCE)?;
    run(desk, dir.path(), &["situla", "instance", "exec", "honest", "true"])?.success()?;
    run(desk, dir.path(), &["situla", "instance", "stop", "honest"])?.success()?;
    Ok(())
}

/// An instance that a step starts is entered by other steps of the job, and ends with its own.
///
/// # Errors
/// It is not, or does not.
pub fn ends_with_its_step(site: &Site) -> Check {
    let dir = site.env().work_dir("step-instance")?;
    let image = site.images.path("tiny.sqsh");
    let script = format!(
        "#!/bin/bash\n\
         situla instance start {image} job-$SLURM_JOB_ID || exit 1\n\
         srun -n2 apptainer exec instance://job-$SLURM_JOB_ID sh -c 'echo inside $SLURM_PROCID $(readlink /proc/self/ns/pid)'\n\
         situla instance list --json\n"
    );
    let job: Job = site.cluster.sbatch(dir.path(), &["-N1", "-n2"], &dir.write("job.sh", &script)?)?;
    let mut lines: Vec<&str> = job.output.stdout.lines().filter(|line| line.starts_with("inside ")).collect();
    lines.sort_unstable();
    let inside: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    let host = fs::read_link("/proc/self/ns/pid")?.display().to_string();
    if lines.len() != 2 || inside[0] != inside[1] || inside[0] == host {
        return Err(format!("not in one instance\n{}", job.output).into());
    }
    let step = format!("\"step\": \"{}.batch\"", job.id);
    job.output.clone().expect_text(&step)?;
    // Slurm has killed what waited for it, so its file is left: that is seen once, and the file goes. All
    // nodes are this host, and the look for leaks afterwards says that nothing else is left.
    let name = format!("job-{}", job.id);
    let mut seen = Ok(None);
    let has_ended = wait_until(PATIENCE, || {
        seen = listed(&site.desk(), dir.path(), &name);
        !matches!(&seen, Ok(Some(state)) if state["state"] == "running")
    });
    let seen = seen?.map(|state| state["state"].clone());
    if !has_ended || seen != Some("killed".into()) || listed(&site.desk(), dir.path(), &name)?.is_some() {
        return Err(format!("it is {seen:?}").into());
    }
    Ok(())
}
