//! A run that has to fetch its image first: what is shown meanwhile, and what is left when it is ended.

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::installation::{Installation, text};
use crate::stalling::Stalling;

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "it never came so far: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process group of its own, and what it has written so far.
struct Running {
    child: Child,
    group: Pid,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let also = writer.try_clone().expect("a descriptor");
        let child = command.process_group(0).stdout(writer).stderr(also).spawn().expect("it starts");
        // It holds the ends for writing.
        drop(command);
        let written = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = reader.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                shared.lock().expect("no panic").extend_from_slice(&bytes[..n]);
            }
        });
        let group = Pid::from_child(&child);
        Running { child, group, written }
    }

    fn said(&self) -> String {
        text(&self.written.lock().expect("no panic"))
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it was started")
    }

    /// The processes of the group that are alive.
    fn members(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").expect("readable").flatten();
        let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        let group = self.group.as_raw_nonzero().to_string();
        stats
            .filter(|stat| {
                let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
                let mut words = rest.split(' ');
                !matches!(words.next(), Some("Z" | "X")) && words.nth(1) == Some(&group)
            })
            .collect()
    }
}

/// Whatever the store holds that was not there before a fetch.
fn left(site: &Installation) -> Vec<String> {
    let store = site.path().join("cache/situla");
    ["images", "tmp", "leases", "refs"]
        .iter()
        .filter_map(|part| fs::read_dir(store.join(part)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path().display().to_string()))
        .collect()
}

fn exec(site: &Installation, server: &Stalling, name: &str, before: &[&str], after: &[&str]) -> Running {
    let image = server.image();
    Running::start(site.command(name, &[before, &["exec"], after, &[&image, "true"]].concat()))
}

#[test]
fn a_log_gets_lines_unless_it_shall_be_quiet() {
    let (server, loud) = (Stalling::serve(), Installation::new());
    let quiet = [
        (Installation::new(), "situla", &[][..], &["--quiet"][..]),
        (Installation::new(), "apptainer", &["-q"], &[]),
    ];
    let mut silent: Vec<Running> =
        quiet.iter().map(|(site, name, before, after)| exec(site, &server, name, before, after)).collect();
    wait_until("the quiet ones fetch", || server.n_stalled() == silent.len());
    let mut shown = exec(&loud, &server, "situla", &[], &[]);
    // Those that were there first have waited longer than this line has taken to come.
    wait_until("a line", || shown.said().contains("fetching tool:1: layer 1/1, 1.0 KiB of 1.0 MiB"));
    assert!(shown.said().ends_with('\n') && !shown.said().contains('\r'), "{:?}", shown.said());
    for running in &mut silent {
        assert_eq!(running.said(), "");
    }
    for running in silent.iter_mut().chain([&mut shown]) {
        kill_process_group(running.group, Signal::INT).expect("it is there");
        assert_eq!(running.wait().signal(), Some(2));
        wait_until("the group is empty", || running.members().is_empty());
    }
    for site in quiet.iter().map(|(site, ..)| site).chain([&loud]) {
        assert_eq!(left(site), Vec::<String>::new());
    }
}

#[test]
fn a_terminal_gets_one_line_that_is_rewritten() {
    let (server, site) = (Stalling::serve(), Installation::new());
    let program = site.command("situla", &[]);
    let line = format!("exec {} exec {} true", program.get_program().display(), server.image());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_clear().stdin(Stdio::null());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.env("SHELL", "/bin/sh").current_dir(site.path().join("work"));
    let mut running = Running::start(command);
    wait_until("the line", || running.said().contains("\r\x1b[Kfetching tool:1: layer 1/1"));
    assert!(!running.said().contains('\n'), "{:?}", running.said());
    kill_process_group(running.group, Signal::TERM).expect("it is there");
    running.wait();
    wait_until("nothing is left", || left(&site).is_empty());
}

#[test]
fn nothing_goes_on_without_the_run() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (server, site) = (Stalling::serve(), Installation::new());
        let mut running = exec(&site, &server, "situla", &[], &[]);
        wait_until("the layer", || server.n_stalled() == 1 && !left(&site).is_empty());
        // Not the group: the fetching process is not told.
        kill_process(running.group, signal).expect("it is there");
        assert_eq!(running.wait().signal(), Some(signal.as_raw()));
        wait_until("the group is empty", || running.members().is_empty());
        assert_eq!(left(&site), Vec::<String>::new(), "{signal:?}");
    }
}
