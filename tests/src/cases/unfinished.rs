//! Steps that are cancelled before there is a container: while their image is fetched or extracted.

use std::time::{Duration, Instant};

use super::Site;
use super::ends::KILL_WAIT;
use super::kills::{names, no_partial_file, whole_store};
use crate::cluster::Job;
use crate::command::wait_until;
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::leaks::Snapshot;
use crate::outcome::{self, Exit};
use crate::processes::{Kind, Watch};
use crate::slow_proxy::UNLIMITED;
use crate::tier::Check;

/// `scancel` while the step still fetches its image: nothing is left, neither a partial file nor a lease in the user's
/// store, and the next step gets the image.
///
/// # Errors
/// Something is left, or the step goes on, or the next one fails.
pub fn scancel_while_fetching(site: &Site) -> Check {
    let proxy = site.registry()?;
    let source = format!("docker://{}/tiny:1", proxy.address());
    let option = format!("--container-image={source}");
    let store = site.env().home()?.join(".cache/situla");
    let dir = site.env().work_dir("fetching")?;
    let watch = Watch::begin(site.env().uid()?);
    let clean = Snapshot::take(site.env(), Some(&site.cluster))?;
    for enter in [vec![option.as_str()], vec!["apptainer", "exec", source.as_str()]] {
        super::faults::forget_pulled(site)?;
        // Manifest and configuration pass; the layer begins and stops.
        proxy.hold_after(300_000);
        let args = ["-N2", "--ntasks-per-node=2"].into_iter().chain(enter.iter().copied());
        let (name, running) = site.cluster.start_srun(dir.path(), args.chain(["touch", "ran"]))?;
        let id = site.cluster.wait_running(&name)?;
        // All four wait for the image: one that is not so far yet has nothing to say of its end.
        let fetch = || watch.look().iter().filter(|one| one.kind == Kind::Fetcher).count();
        let in_the_middle = wait_until(PATIENCE, || {
            proxy.holds() && !names(&store.join("leases")).is_empty() && fetch() == 4
        });
        site.cluster.admin(&["scancel", &id])?;
        let cancelled = Instant::now();
        let output = running.finish(PATIENCE)?;
        let took = cancelled.elapsed();
        if !in_the_middle || output.timed_out || took > KILL_WAIT || dir.path().join("ran").exists() {
            return Err(format!("in the middle: {in_the_middle}; it took {took:?}\n{output}").into());
        }
        site.cluster.settled()?;
        clean.expect_clean()?;
        no_partial_file(&store)?;
        let leases = names(&store.join("leases"));
        if !leases.is_empty() {
            return Err(format!("leases are left: {leases:?}\n{output}").into());
        }
        let job = site.cluster.job(&name, output)?;
        expect_cancelled(site, &job, 2, 2)?;
        proxy.pace(UNLIMITED);
        let next = ["-n1"].into_iter().chain(enter).chain(["cat", WITNESS]);
        site.cluster.srun(dir.path(), next)?.output.success()?.expect_text("situla tiny image")?;
        whole_store(&store)?;
    }
    Ok(())
}

/// A pull that takes long, which in the full run is a quarter of an hour: the step waits for it and succeeds, no node is
/// drained meanwhile.
///
/// # Errors
/// It fails, or has not been slow.
pub fn a_slow_pull(site: &Site) -> Check {
    let least = Duration::from_secs(if site.env().full() { 900 } else { 4 });
    let proxy = site.registry()?;
    let option = format!("--container-image=docker://{}/tiny:1", proxy.address());
    let dir = site.env().work_dir("slow")?;
    super::faults::forget_pulled(site)?;
    // The layer alone is longer.
    proxy.pace(1_000_000 / least.as_secs());
    let (name, running) = site.cluster.start_srun(dir.path(), ["-N1", "-n1", &option, "cat", WITNESS])?;
    let output = running.finish(least * 5 / 4 + PATIENCE)?.success()?.expect_text("situla tiny image")?;
    site.cluster.settled()?;
    let job = site.cluster.job(&name, output)?;
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    if job.output.took < least || records.len() != 1 || records[0].class != "ok" {
        return Err(format!("it took {:?}; {records:#?}\n{}", job.output.took, job.output).into());
    }
    Ok(())
}

/// What accounting and the records say of a step that was cancelled before any payload, on so many nodes with so many tasks
/// each: all of them were told to end.
fn expect_cancelled(site: &Site, job: &Job, n_nodes: usize, tasks_per_node: usize) -> Check {
    let records = outcome::records(&site.cluster, &format!("{}.0", job.id))?;
    let is_cancelled = |record: &outcome::Outcome| {
        record.class == "cancelled" && record.exits == vec![Exit::Signal(15); tasks_per_node]
    };
    if job.account.state == "CANCELLED" && records.len() == n_nodes && records.iter().all(is_cancelled) {
        return Ok(());
    }
    Err(format!("accounting says {:?}, the records {records:#?}\n{}", job.account, job.output).into())
}

/// `scancel` while the step still extracts its image: it ends within KillWait, nothing is left of what was begun, and the
/// next step gets the image.
///
/// # Errors
/// The step goes on, the payload runs all the same, or the next one fails.
pub fn scancel_while_extracting(site: &Site) -> Check {
    let dir = site.env().work_dir("extracting")?;
    let sif = site.images.path("demo.sif");
    let desk = site.desk();
    super::extracted::empty(&desk, dir.path())?;
    let watch = Watch::begin(site.env().uid()?);
    let enter = ["apptainer", "exec", "--rootfs", "extract", &sif];
    let args = ["-N1", "--ntasks-per-node=2"].into_iter().chain(enter);
    let (name, running) = site.cluster.start_srun(dir.path(), args.chain(["touch", "ran"]))?;
    let id = site.cluster.wait_running(&name)?;
    let extract = || watch.look().iter().filter(|one| one.kind == Kind::Extractor).count();
    let in_the_middle = wait_until(PATIENCE, || extract() == 2);
    site.cluster.admin(&["scancel", &id])?;
    let cancelled = Instant::now();
    let output = running.finish(PATIENCE)?;
    let took = cancelled.elapsed();
    if !in_the_middle || output.timed_out || took > KILL_WAIT || dir.path().join("ran").exists() {
        return Err(format!("in the middle: {in_the_middle}; it took {took:?}\n{output}").into());
    }
    site.cluster.settled()?;
    if !watch.sees_none() {
        return Err(format!("these go on: {:?}\n{output}", watch.look()).into());
    }
    if let (trees, building @ 1..) = super::extracted::found(&desk)? {
        return Err(format!("{building} are half there, and {trees:?}\n{output}").into());
    }
    let job = site.cluster.job(&name, output)?;
    expect_cancelled(site, &job, 1, 2)?;
    let next = ["-n1"].into_iter().chain(enter).chain(["cat", WITNESS]);
    site.cluster.srun(dir.path(), next)?.output.success()?.expect_text("situla demo image")?;
    let (trees, building) = super::extracted::found(&desk)?;
    super::extracted::empty(&desk, dir.path())?;
    match (trees.len(), building) {
        (1, 0) => Ok(()),
        _ => Err(format!("there are {trees:?}, and {building} begun").into()),
    }
}
