//! Events of runs: every line as published, in the order in which things happen, and nobody else's streams
//! touched.

use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Desk;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::tier::Check;

/// The instance that is entered.
const NAME: &str = "events";

/// Debian's Python, for which Debian has the validator.
const PYTHON: &str = "/usr/bin/python3";

fn lines(text: &str) -> Result<Vec<Value>, String> {
    text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))).collect()
}

fn kinds(events: &[Value]) -> Vec<String> {
    let kind = |event: &Value| event["event"].as_str().unwrap_or("?").to_owned();
    let mut kinds: Vec<String> = events.iter().map(kind).collect();
    kinds.dedup();
    kinds
}

/// What a run must tell, beside its phases.
const RAN: [&str; 5] = ["phase", "planned", "phase", "started", "exit"];

/// Ordinary ends of all commands that tell events, signals, and every kind of error, each judged by an independent
/// validator.
///
/// # Errors
/// An event is wrong, missing, or where it does not belong.
pub fn are_as_published(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("events")?;
    let image = desk.images.path("tiny.sqsh");
    let tree = desk.env.image_tree("tiny").display().to_string();
    let start = ["situla", "instance", "start", &image, NAME];
    desk.env.as_user(dir.path(), start)?.success()?;
    let mut all = String::new();
    let mut told = |output: &Output| -> Result<Vec<Value>, String> {
        all.push_str(&output.stderr);
        lines(&output.stderr)
    };
    for (words, code, last) in [
        (&["exec", "--json", &image, "echo", "data"][..], 0, serde_json::json!({ "code": 0 })),
        // An image that is a directory needs nobody who waits; now somebody does.
        (&["exec", "--json", &tree, "sh", "-c", "echo data; exit 3"], 3, serde_json::json!({ "code": 3 })),
        (
            &["exec", "--json", &image, "sh", "-c", "echo data; kill -KILL $$"],
            137,
            serde_json::json!({ "signal": 9 }),
        ),
        (&["run", "--json", &tree, "-c", "echo data; exit 4"], 4, serde_json::json!({ "code": 4 })),
        (&["shell", "--json", &image], 5, serde_json::json!({ "code": 5 })),
        (&["instance", "exec", "--json", NAME, "echo", "data"], 0, serde_json::json!({ "code": 0 })),
    ] {
        // A shell reads what it is to do.
        let piped = ["sh", "-c", "echo 'echo data; exit 5' | situla \"$@\"", "situla"];
        let program = if words[0] == "shell" { &piped[..] } else { &["situla"] };
        let words: Vec<&str> = program.iter().chain(words).copied().collect();
        let output = desk.env.as_user(dir.path(), &words)?.expect_code(code)?;
        let events = told(&output)?;
        let end = &events[events.len() - 1];
        if kinds(&events) != RAN || end["exit"] != last || output.stdout != "data\n" {
            return Err(format!("{:?}\n{output}", kinds(&events)).into());
        }
        let run = &events[0]["run"];
        if run == "" || events.iter().any(|event| event["run"] != *run) {
            return Err(format!("not one run\n{output}").into());
        }
    }
    desk.env.as_user(dir.path(), ["situla", "instance", "stop", NAME])?.success()?;
    for (words, status, class) in [
        (&["exec", "--json", "./none.sqsh", "true"][..], 125, "image-missing"),
        (&["exec", "--json", &image, "/no/such"], 127, "command-missing"),
        (&["exec", "--json", &image, "/etc/passwd"], 126, "command-missing"),
        (&["exec", "--json", "--bind", "/no/such", &image, "true"], 125, "bind-source-missing"),
        (&["exec", "--json", "--env", "x", &image, "true"], 2, "bad-option"),
        (&["exec", "--json", "--no-such-option", &image, "true"], 2, "bad-option"),
        (&["exec", "--json"], 2, "bad-option"),
        (&["exec", "--json", "instance://none", "true"], 125, "bad-option"),
        (&["instance", "exec", "--json", "none", "true"], 125, "bad-option"),
    ] {
        let words: Vec<&str> = ["situla"].iter().chain(words).copied().collect();
        let output = desk.env.as_user(dir.path(), &words)?.expect_code(status)?;
        let events = told(&output)?;
        let last = events.last().ok_or("nothing was told")?;
        if last["event"] != "error" || last["class"] != class || last["status"] != status {
            return Err(output.to_string().into());
        }
    }
    signal(desk, dir.path(), &image, &mut all)?;
    let file = dir.write("events.jsonl", &all)?;
    let mut validate = Command::new(PYTHON);
    validate.arg(desk.env.file("tests/validate_events.py"));
    validate.arg(desk.env.file("docs/formats/events.schema.json")).arg(file);
    let output = command::run(validate, PATIENCE)?.success()?;
    for kind in ["phase ", "planned ", "started ", "signal ", "exit ", "error "] {
        if !output.stdout.lines().any(|line| line.starts_with(kind)) {
            return Err(format!("no event is {kind:?}\n{output}").into());
        }
    }
    Ok(())
}

/// A signal is told with its sender, and passed on.
fn signal(desk: &Desk, dir: &Path, image: &str, all: &mut String) -> Check {
    let script = "trap 'exit 5' TERM; touch up; while :; do sleep 0.05; done";
    let words = ["situla", "exec", "--json", image, "sh", "-c", script];
    let running = command::start(desk.env.user_command(dir, words)?)?;
    if !wait_until(PATIENCE, || dir.join("up").exists()) {
        return Err("it does not run".into());
    }
    let pid = Pid::from_raw(i32::try_from(running.pid())?).ok_or("no process")?;
    kill_process(pid, Signal::TERM)?;
    let output = running.finish(PATIENCE)?.expect_code(5)?;
    let events = lines(&output.stderr)?;
    let told = events.iter().find(|event| event["event"] == "signal").ok_or("no signal was told")?;
    if told["signal"] != 15 || told["sender"]["pid"] != std::process::id() {
        return Err(output.to_string().into());
    }
    all.push_str(&output.stderr);
    Ok(())
}

/// Events on a descriptor of their own: both streams are the payload's, which does not see the descriptor, and
/// whose reader sees the end of events although something of the payload's goes on.
///
/// # Errors
/// One is touched.
pub fn on_a_descriptor(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("event-fd")?;
    let image = desk.images.path("tiny.sqsh");
    let inside = "echo out; echo err >&2; ls /proc/self/fd | tr '\\n' ' '; [ ! -e /proc/self/fd/7 ]";
    let script = format!("situla exec --json-fd 7 {image} sh -c \"{inside}\" 7>events.jsonl");
    let output = desk.env.as_user(dir.path(), ["bash", "-c", &script])?.success()?;
    let events = lines(&std::fs::read_to_string(dir.path().join("events.jsonl"))?)?;
    if kinds(&events) != RAN || !output.stdout.starts_with("out\n") || output.stderr != "err\n" {
        return Err(format!("{:?}\n{output}", kinds(&events)).into());
    }
    for (fd, what) in [("1", "invalid value"), ("799", "cannot go to descriptor 799")] {
        let words = ["situla", "exec", "--json-fd", fd, &image, "true"];
        desk.env.as_user(dir.path(), words)?.expect_code(2)?.expect_text(what)?;
    }
    // Nobody reads: the run goes on all the same.
    let script = format!("situla exec --json-fd 7 {image} echo ran 7> >(exit 0)");
    desk.env.as_user(dir.path(), ["bash", "-c", &script])?.success()?.expect_text("ran")?;
    Ok(())
}
