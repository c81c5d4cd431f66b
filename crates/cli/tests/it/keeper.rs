//! The process that serves an image.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::installation::Installation;

/// Soft and hard limit of open files, by `/proc/PID/limits`.
fn open_files(pid: &str) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("a line of its own");
    let mut words = line.split_whitespace().skip(3).map(str::to_owned);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

fn is_keeper_of(pid: &str, parent: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let has = |line: &str| status.lines().any(|other| other == line);
    has("Name:\tsitula-keeper") && has(&format!("PPid:\t{parent}"))
}

#[test]
fn it_may_open_more_files_than_the_payload() {
    let Some(site) = Installation::with_image() else { return };
    let script = "ulimit -Sn; ulimit -Hn; echo up; read x";
    let command =
        site.command("situla", &["exec", "--rootfs", "fuse", "image.sqsh", "/bin/sh", "-c", script]);
    let mut limited = std::process::Command::new("/bin/sh");
    limited.env_clear();
    limited
        .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    let mut child = limited
        .current_dir(site.path().join("work"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok).take(3).collect();
    let pids = fs::read_dir("/proc")
        .expect("readable")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let keeper = pids.into_iter().find(|pid| is_keeper_of(pid, child.id()));
    let keeper = keeper.map(|pid| open_files(&pid));
    drop(child.stdin.take());
    child.wait().expect("it ends");
    let [soft, hard, _] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(soft, "64");
    assert_eq!(keeper, Some((hard.clone(), hard.clone())));
}
