//! What goes wrong while a step fetches its image: the registry goes away, the disk is full, whoever converts the image is
//! killed. The step ends and says why, nothing half is left, and the next step gets the image.

use std::path::Path;

use libtest_mimic::Failed;

use super::Site;
use super::bare::expect_account;
use super::exhaustion::MountedOnNode;
use super::kills::{names, no_partial_file, whole_store};
use crate::cluster::Job;
use crate::command::wait_until;
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit};
use crate::processes::{self, Kind, Process, Watch, kill_if};
use crate::reached_registry::ReachedRegistry;
use crate::slow_proxy::UNLIMITED;
use crate::tier::Check;

/// Bytes after which the layer has begun and is not over: manifest and configuration have passed.
const IN_THE_LAYER: u64 = 300_000;

/// Two tasks on each of two nodes, which all need the image.
const LAYOUT: [&str; 3] = ["-N2", "--ntasks-per-node=2", "--kill-on-bad-exit=0"];

/// The registry breaks off in the middle of the layer and does not come back while the step asks again: every task fails and
/// names it.
///
/// # Errors
/// One runs, or hangs, or says something else, or something is left.
pub fn registry_goes_away(site: &Site) -> Check {
    let proxy = site.registry()?;
    let (source, option) = names_of(&proxy);
    super::faults::forget_pulled(site)?;
    let dir = site.env().work_dir("gone")?;
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    proxy.hold_after(IN_THE_LAYER);
    let step = LAYOUT.into_iter().chain([option.as_str(), "echo", "THE-PAYLOAD-RAN"]);
    let (name, running) = site.cluster.start_srun(dir.path(), step)?;
    let in_the_middle = wait_until(PATIENCE, || {
        proxy.holds() && names(&store(site).unwrap_or_default().join("leases")).len() == 1
    });
    // What is under way breaks off, and so does whatever is asked for from now on.
    proxy.cut(0, UNLIMITED);
    proxy.pace(UNLIMITED);
    let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
    if !in_the_middle || proxy.cuts_left() == UNLIMITED {
        return Err(format!("in the middle: {in_the_middle}\n{}", job.output).into());
    }
    all_failed(site, &job, &[&source, "cannot fetch"], "engine-fetch-failed")?;
    clean.expect_clean()?;
    nothing_half(&store(site)?)?;
    proxy.cut(UNLIMITED, 0);
    next_step_runs(site, dir.path(), &option)
}

/// There is no room where images are kept: every task fails and names the place.
///
/// # Errors
/// One runs, or says something else, or something is left.
pub fn no_room_in_the_store(site: &Site) -> Check {
    let proxy = site.registry()?;
    let (_, option) = names_of(&proxy);
    let dir = site.env().work_dir("room")?;
    let nodes: Vec<&str> = site.cluster.nodes().keys().take(2).map(String::as_str).collect();
    let point = dir.path().join("full");
    let full = nodes.iter().map(|node| MountedOnNode::full(site, node, point.clone()));
    let full = full.collect::<Result<Vec<_>, _>>()?;
    let (place, list) = (point.display().to_string(), nodes.join(","));
    let cache = [("XDG_CACHE_HOME", place.as_str())];
    let step = LAYOUT.into_iter().chain(["-w", &list, &option, "echo", "THE-PAYLOAD-RAN"]);
    let (name, running) = site.cluster.start_srun_with(dir.path(), &cache, step)?;
    let job = site.cluster.job(&name, running.finish(PATIENCE)?)?;
    all_failed(site, &job, &[&place, "No space left on device"], "engine-setup-failed")?;
    drop(full);
    Ok(())
}

/// Who fetches and converts for a task is killed while the others wait for the image: the step goes on with another of them,
/// or ends and says so; the lease that the dead one leaves keeps nobody waiting.
///
/// # Errors
/// A task hangs, or is on the host, or something is left.
pub fn converter_is_killed(site: &Site) -> Check {
    let proxy = site.registry()?;
    let (source, option) = names_of(&proxy);
    super::faults::forget_pulled(site)?;
    let dir = site.env().work_dir("converter")?;
    let store = store(site)?;
    let watch = Watch::begin(site.env().uid()?);
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    proxy.hold_after(IN_THE_LAYER);
    let step = LAYOUT.into_iter().chain([option.as_str(), "cat", WITNESS]);
    let (name, running) = site.cluster.start_srun(dir.path(), step)?;
    let fetchers = || watch.look().into_iter().filter(|one| one.kind == Kind::Fetcher).collect::<Vec<_>>();
    let in_the_middle = wait_until(PATIENCE, || {
        proxy.holds() && names(&store.join("leases")).len() == 1 && fetchers().len() == 4
    });
    // The lease says whose it is.
    let lease = names(&store.join("leases")).first().cloned().unwrap_or_default();
    let text = std::fs::read_to_string(store.join("leases").join(&lease)).unwrap_or_default();
    let holder = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    let is_holder = |one: &Process| {
        processes::in_its_namespace(one.pid).is_some_and(|(space, number)| {
            holder["pid"] == number && holder["realm"].as_str().is_some_and(|realm| realm.ends_with(&space))
        })
    };
    let victim = fetchers().into_iter().find(is_holder);
    let hit = victim.filter(|_| in_the_middle).map(|victim| kill_if(victim, || true));
    proxy.pace(UNLIMITED);
    let output = running.finish(PATIENCE * 2)?;
    if !matches!(hit, Some(Ok(true))) || output.timed_out {
        site.cluster.admin(&["scancel", "--name", &name])?;
        return Err(
            format!("in the middle: {in_the_middle}, lease of {holder}, killed: {hit:?}\n{output}").into()
        );
    }
    // As after any kill of a process of ours: the step ends, and not well, though others may come to their end.
    let job = site.cluster.job(&name, output)?;
    let is_told =
        |line: &&str| line.contains(&source) && line.contains("the fetching process ended with signal: 9");
    let n_told = job.output.stderr.lines().filter(is_told).count();
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let n_failed = records.iter().filter(|record| record.class.starts_with("engine-")).count();
    if job.output.status.success()
        || !["FAILED", "CANCELLED"].contains(&job.account.state.as_str())
        || n_told != 1
        || n_failed != 1
        || records.len() != 2
    {
        return Err(format!("{:?}, the records say {records:#?}\n{}", job.account, job.output).into());
    }
    site.cluster.settled()?;
    clean.expect_clean()?;
    nothing_half(&store)?;
    // What the dead one would have left, had nobody been there to take it away.
    super::faults::forget_pulled(site)?;
    dir.write("lease", &text)?;
    let plant = format!("mkdir -p {0}/leases && cp -p lease {0}/leases/{lease}", store.display());
    site.env().as_user(dir.path(), ["sh", "-c", &plant])?.success()?;
    let mut nodes = site.cluster.nodes().keys();
    let Some(his_own) = nodes.find(|node| holder["host"] == **node) else {
        return next_step_runs(site, dir.path(), &option);
    };
    // On another node nobody can know that he is dead, and he is waited for; on his own one it shows, and what is fetched there the
    // other one has as well.
    let another =
        site.cluster.nodes().keys().find(|node| *node != his_own).ok_or("there is one node alone")?;
    let words = ["-n1", "-w", another, "--error=waits", &option, "cat", WITNESS];
    let (name, running) = site.cluster.start_srun(dir.path(), words)?;
    let waits = format!("waiting for process {} on {his_own}", holder["pid"]);
    let said = || std::fs::read_to_string(dir.path().join("waits")).unwrap_or_default();
    let is_waiting = wait_until(PATIENCE, || said().contains(&waits));
    let next = site.cluster.srun(dir.path(), ["-n1", "-w", his_own, &option, "cat", WITNESS]);
    if !is_waiting {
        site.cluster.admin(&["scancel", "--name", &name])?;
        return Err(format!("it does not wait: {}", said()).into());
    }
    let at_last = running.finish(PATIENCE)?;
    next?.output.success()?.expect_text("situla tiny image")?;
    at_last.success().map_err(|story| format!("{story}\n{}", said()))?.expect_text("situla tiny image")?;
    whole_store(&store)
}

fn names_of(proxy: &ReachedRegistry) -> (String, String) {
    let source = format!("{}/tiny:1", proxy.address());
    let option = format!("--container-image=docker://{source}");
    (source, option)
}

/// The user's store.
fn store(site: &Site) -> Result<std::path::PathBuf, String> {
    Ok(site.env().home()?.join(".cache/situla"))
}

/// All four tasks have failed alike, in a line each; accounting and the records of both nodes say so.
fn all_failed(site: &Site, job: &Job, told: &[&str], class: &str) -> Check {
    let place = format!("(job {}, step 0, node ", job.id);
    let says = |line: &&str| line.contains(&place) && told.iter().all(|word| line.contains(word));
    let n_lines = job.output.stderr.lines().filter(says).count();
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let fits = |record: &outcome::Outcome| record.class == class && record.exits == [Exit::Code(125); 2];
    if n_lines != 4
        || job.output.stdout.contains("THE-PAYLOAD-RAN")
        || records.len() != 2
        || !records.iter().all(fits)
    {
        let told = format!("wanted 4 lines with {told:?}, the records say {records:#?}");
        return Err(Failed::from(format!("{told}\n{}", job.output)));
    }
    expect_account(job, "FAILED", "125:0", "FAILED", "125:0")?;
    site.cluster.settled()?;
    Ok(())
}

/// Neither a partial file nor a lease.
fn nothing_half(store: &Path) -> Check {
    no_partial_file(store)?;
    match names(&store.join("leases")) {
        leases if leases.is_empty() => Ok(()),
        leases => Err(format!("leases are left: {leases:?}").into()),
    }
}

fn next_step_runs(site: &Site, dir: &Path, option: &str) -> Check {
    let next = site.cluster.srun(dir, ["-n1", option, "cat", WITNESS])?;
    next.output.success()?.expect_text("situla tiny image")?;
    whole_store(&store(site)?)
}
