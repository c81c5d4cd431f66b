//! Many steps, one after another: what a single step leaves behind is too little to see, three hundred times
//! it is not.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Instant;

use super::Site;
use super::kills::whole_store;
use super::privileged::registry;
use crate::environment::PATIENCE;
use crate::random::Random;
use crate::tier::Check;

/// How many steps, in `make test` and in `make test-full`.
const STEPS: (usize, usize) = (8, 300);

/// Steps that are started before the next is waited for.
const AT_ONCE: usize = 4;

/// Before the first measurement: daemons fill their caches in their first steps.
const WARM_UP: usize = 8;

/// What slurmd may grow by from the first measurement to the last, in KiB. With four nodes and 300 steps
/// each slurmd has started about as many: 64 bytes lost in each would be 20 KiB; its allocator takes a few
/// hundred at a time.
const GROWTH: u64 = 4096;

/// Steps of one to eight tasks, of each kind of image: all succeed, and nothing grows.
///
/// # Errors
/// A step fails, or something of it stays.
pub fn many_steps(site: &Site) -> Check {
    let n_steps = if site.env().full() { STEPS.1 } else { STEPS.0 };
    let mut random = Random::new();
    let seed = random.seed();
    soak(site, n_steps, &mut random)
        .map_err(|story| format!("SITULA_TEST_SEED={seed}: {}", story.message().unwrap_or("")).into())
}

fn soak(site: &Site, n_steps: usize, random: &mut Random) -> Check {
    let desk = site.desk();
    let address = registry(&desk, "up")?.stdout.trim().to_owned();
    registry(&desk, "push")?;
    super::faults::forget_pulled(site)?;
    let images = [
        site.images.path("tiny.sqsh"),
        site.images.path("tiny.sif"),
        site.env().image_tree("tiny").display().to_string(),
        format!("docker://{address}/tiny:1"),
    ];
    steps(site, WARM_UP, &images, random)?;
    let before = daemons(site)?;
    let began = Instant::now();
    steps(site, n_steps, &images, random)?;
    let took = began.elapsed();
    site.cluster.settled()?;
    let after = daemons(site)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "  {n_steps} steps in {took:.1?}")?;
    for (node, (memory, fds)) in &after {
        let (old_memory, old_fds) = before.get(node).copied().unwrap_or_default();
        writeln!(out, "  slurmd of {node}: {old_memory} -> {memory} KiB, {old_fds} -> {fds} descriptors")?;
        if *memory > old_memory + GROWTH || *fds > old_fds {
            return Err(format!("slurmd of {node} grew: {before:?} {after:?}").into());
        }
    }
    // Fetched once, and never again.
    whole_store(&site.env().home()?.join(".cache/situla"))
}

/// Runs so many steps of random size, a few at a time.
fn steps(site: &Site, n_steps: usize, images: &[String], random: &mut Random) -> Check {
    let dir = site.env().work_dir("soak")?;
    let mut running = std::collections::VecDeque::new();
    for n in 0..n_steps {
        let image = &images[n % images.len()];
        let n_tasks = 1 + random.below(8);
        let args = [
            format!("-n{n_tasks}"),
            "-N1".to_owned(),
            "--overcommit".to_owned(),
            "--mem=100".to_owned(),
            format!("--container-image={image}"),
        ];
        let args = args.iter().map(String::as_str).chain(["sh", "-c", "cat /etc/situla-image-witness"]);
        running.push_back((n_tasks, site.cluster.start_srun(dir.path(), args)?.1));
        while running.len() >= AT_ONCE || (n + 1 == n_steps && !running.is_empty()) {
            let Some((n_tasks, step)) = running.pop_front() else { break };
            let output = step.finish(PATIENCE)?.success()?;
            if output.stdout.matches("situla tiny image").count() as u64 != n_tasks {
                return Err(format!("not {n_tasks} tasks in the image\n{output}").into());
            }
        }
    }
    Ok(())
}

/// Resident memory in KiB and open descriptors of each node's slurmd.
fn daemons(site: &Site) -> Result<BTreeMap<String, (u64, usize)>, String> {
    let mut found = BTreeMap::new();
    for (node, pid) in site.cluster.nodes() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("{node}: {e}"))?;
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        if field("Name:") != "slurmd" {
            return Err(format!("process {pid} of {node} is {:?}, not slurmd", field("Name:")));
        }
        let memory = field("VmRSS:").trim_end_matches(" kB").parse().map_err(|e| format!("{node}: {e}"))?;
        let descriptors =
            fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| format!("{node}: {e}"))?.count();
        found.insert(node.clone(), (memory, descriptors));
    }
    Ok(found)
}
