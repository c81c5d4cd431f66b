//! What a killed task was making, and has left behind.
//!
//! Whoever fetches or extracts an image for a task ends with it and takes away what it has begun. Slurm kills it while it
//! does, where no task is left on the node, and nobody else would come for that before the next fetch.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use situla_image::{Store, StoreOptions, TreeCache};

use crate::host::Host;
use crate::site::Site;
use crate::store_place::{StorePlaces, store_places};
use crate::way::tree_directory;

/// How long those are waited for that are still taking away what they have begun. The plugin gives this process little more
/// for all that it does.
const PATIENCE: Duration = Duration::from_secs(1);

/// Variables that say where images are. The plugin starts this process in `/`: what is relative was so to another place.
const PLACES: [&str; 3] = ["SITULA_STORE", "APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR"];

/// Takes away what killed processes of this user have left on this node of images that they were fetching or extracting.
/// What cannot be taken away the next fetch takes.
pub fn remove_leavings(host: &Host, site: &Site) {
    let begun = Instant::now();
    let StorePlaces { own, site: shared } = store_places(site, host);
    let is_relative =
        |name: &&str| host.variable(name).is_some_and(|path| !path.is_empty() && !path.starts_with('/'));
    let own = own.filter(|_| !PLACES.iter().any(is_relative));
    let cache = TreeCache::new(tree_directory(site, host));
    let entry = |name: &str| Some(format!("{name}={}", host.variable(name)?));
    let of_step: Option<Vec<String>> = ["SLURM_JOB_ID", "SLURM_STEP_ID"].into_iter().map(entry).collect();
    loop {
        let store =
            own.as_deref().and_then(|own| Store::look(own, shared.as_deref(), StoreOptions::default()).ok());
        let mut at_work = store.and_then(|store| store.remove_abandoned().ok()).unwrap_or_default();
        at_work.extend(cache.remove_abandoned());
        let Some(of_step) = &of_step else { return };
        let Some(orphan) = at_work.into_iter().find(|pid| is_orphan(*pid, of_step)) else { return };
        let Some(left) = PATIENCE.checked_sub(begun.elapsed()) else { return };
        wait_for_end(orphan, left);
    }
}

/// Whether a process has these entries in its environment, and what has started it is gone. What cannot be read is another
/// user's.
fn is_orphan(pid: u32, entries: &[String]) -> bool {
    let directory = Path::new("/proc").join(pid.to_string());
    let environment = fs::read(directory.join("environ")).unwrap_or_default();
    let has = |wanted: &String| environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes());
    entries.iter().all(has) && !parent_is_ours(&directory)
}

/// Whether the parent of a process runs this program. An orphan's parent is slurmstepd or the first process.
fn parent_is_ours(directory: &Path) -> bool {
    let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
    let program = |path: &Path| fs::read_link(path).ok();
    let own = program(Path::new("/proc/self/exe"));
    own.is_some() && parent.and_then(|parent| program(&Path::new("/proc").join(parent).join("exe"))) == own
}

/// Waits until a process has ended, or for so long.
fn wait_for_end(pid: u32, limit: Duration) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    let limit = Timespec::try_from(limit).ok();
    // Interrupted or not: who called looks again.
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], limit.as_ref());
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::*;

    #[test]
    fn an_orphan_of_the_step_is_told_from_other_processes() {
        let entries = ["JOB=7".to_owned(), "STEP=0".to_owned()];
        let start = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.env("JOB", "7").env("STEP", "0").spawn().unwrap()
        };
        // The parent of this one is here.
        let mut child = start("cat", &[]);
        assert!(!is_orphan(child.id(), &entries));
        drop(child.stdin.take());
        wait_for_end(child.id(), Duration::from_secs(20));
        assert!(child.try_wait().unwrap().is_some(), "it was waited for");
        // That of this one is another program.
        let mut parent = start("sh", &["-c", "sleep 60 & echo $!; exec cat"]);
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let orphan: u32 = line.trim().parse().unwrap();
        // The kernel shows no environment of a program that is just being executed.
        let begun = Instant::now();
        let mut found = false;
        while !found && begun.elapsed() < Duration::from_secs(20) {
            found = is_orphan(orphan, &entries);
            std::thread::sleep(Duration::from_millis(1));
        }
        let of_other_step = is_orphan(orphan, &["JOB=7".to_owned(), "STEP=1".to_owned()]);
        kill_process(Pid::from_raw(orphan.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert!(found && !of_other_step);
    }
}
