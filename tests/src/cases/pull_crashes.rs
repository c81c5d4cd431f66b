//! Pulls that are killed at each step of their work, and pulls that come all at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::Desk;
use super::image_trees::root;
use super::kills::{names, no_partial_file, whole_store};
use super::privileged::registry;
use super::registry_sinks::layered;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::processes::Watch;
use crate::random::Random;
use crate::slow_proxy::{SlowProxy, UNLIMITED};
use crate::tier::Check;

/// How many kills, in `make test` and in `make test-full`.
const KILLS: (usize, usize) = (20, 200);

/// Each so many kills one is of an image of several layers.
const SEVERAL_LAYERS: usize = 5;

/// How often in all a pull may come to its end before the chosen call was made: how a layer arrives is not always the same.
const MISSES: usize = 20;

/// A pull must not wait for the dead as long as for a lease of another machine (a minute).
const TAKEOVER: Duration = Duration::from_secs(10);

/// What lies in the store at a moment, and so how far a pull has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    /// Neither a lease nor an image: the store is made, the registry is asked.
    Nothing,
    /// The right to make the image is taken.
    Leased,
    /// The image's record is there, and the image is not.
    Recorded,
    /// The image is there, and the right not yet given back.
    Published,
    /// The same, given back; the reference is not known.
    Unnamed,
    /// All of the store, but not the file that was asked for.
    Stored,
    /// All.
    Complete,
}

/// A step of the work: where the store is, and whether a layer arrives meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Phase {
    progress: Progress,
    arriving: bool,
}

/// All that must be hit.
const PHASES: [Phase; 8] = [
    Phase { progress: Progress::Nothing, arriving: false },
    Phase { progress: Progress::Leased, arriving: false },
    Phase { progress: Progress::Leased, arriving: true },
    Phase { progress: Progress::Recorded, arriving: false },
    Phase { progress: Progress::Published, arriving: false },
    Phase { progress: Progress::Unnamed, arriving: false },
    Phase { progress: Progress::Stored, arriving: false },
    Phase { progress: Progress::Complete, arriving: false },
];

impl Progress {
    /// As it is found.
    fn found(store: &Path, output: &Path) -> Option<Self> {
        let has =
            |part: &str, suffix: &str| names(&store.join(part)).iter().any(|name| name.ends_with(suffix));
        let found = [
            has("leases", ".lease"),
            has("images", ".json"),
            has("images", ".sqsh"),
            has("refs", ".json"),
            output.exists(),
        ];
        Some(match found {
            [false, false, false, false, false] => Self::Nothing,
            [true, false, false, false, false] => Self::Leased,
            [true, true, false, false, false] => Self::Recorded,
            [true, true, true, false, false] => Self::Published,
            [false, true, true, false, false] => Self::Unnamed,
            [false, true, true, true, false] => Self::Stored,
            [false, true, true, true, true] => Self::Complete,
            _ => return None,
        })
    }

    /// As it is after a call that has succeeded, by what strace shows of it.
    fn after(self, call: &str, line: &str, output: &str) -> Self {
        match call {
            "linkat" if line.contains("/leases/") => Self::Leased,
            "unlink" if line.contains("/leases/") => Self::Unnamed,
            "linkat" if line.contains("/images/") && line.contains(".json\"") => Self::Recorded,
            "linkat" if line.contains("/images/") => Self::Published,
            "linkat" if line.contains("/refs/") => Self::Stored,
            "linkat" if line.contains(&format!("\"{output}\"")) => Self::Complete,
            _ => self,
        }
    }
}

/// Calls at which a pull can be killed: all that change files, and those that speak with the registry.
/// How often the others (openat for one) are made is not the same each time.
const CALLS: [&str; 10] = [
    "mkdir",
    "write",
    "fallocate",
    "ftruncate",
    "fsync",
    "linkat",
    "unlink",
    "connect",
    "sendto",
    "recvfrom",
];

/// The n-th of a call in one thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    call: &'static str,
    n: usize,
}

/// Where a pull can be killed in each phase.
type Steps = BTreeMap<Phase, Vec<Point>>;

/// A pull that is killed leaves nothing partial and is no obstacle to the next one, whatever it was doing: at each step
/// of its work, in turn, it dies on entering a system call.
///
/// # Errors
/// Something partial is left, the next pull fails, waits or makes another image, or a step was not hit.
pub fn at_every_step(desk: &Desk) -> Check {
    let mut random = Random::new();
    let seed = random.seed();
    killed_in_turn(desk, &mut random)
        .map_err(|story| format!("SITULA_TEST_SEED={seed}: {}", story.message().unwrap_or("")).into())
}

const OUTPUT: &str = "pulled.sif";

fn killed_in_turn(desk: &Desk, random: &mut Random) -> Check {
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let images = [
        Image::look_at(desk, format!("docker://{address}/tiny:1"))?,
        Image::look_at(desk, of_several_layers(desk, &address)?)?,
    ];
    let wanted = if desk.env.full() { KILLS.1 } else { KILLS.0 };
    let mut hits: BTreeMap<Phase, usize> = BTreeMap::new();
    let (mut n_missed, mut n_hit) = (0, 0);
    while n_hit < wanted {
        let phase = PHASES[n_hit % PHASES.len()];
        let image = &images[usize::from(n_hit % SEVERAL_LAYERS == SEVERAL_LAYERS - 1)];
        let of_phase = &image.steps[&phase];
        let point = &of_phase[usize::try_from(random.below(of_phase.len() as u64))?];
        let story = |why: String| format!("kill {n_hit} of {}, {phase:?}, {point:?}: {why}", image.source);
        let was_hit = killed_at(desk, &image.source, phase, point, &image.expected)
            .map_err(|why| story(why.message().unwrap_or("").to_owned()))?;
        if was_hit {
            n_hit += 1;
            *hits.entry(phase).or_default() += 1;
        } else {
            n_missed += 1;
            if n_missed > MISSES {
                return Err(story(format!("{n_missed} pulls came to their end")).into());
            }
        }
    }
    let mut out = std::io::stdout().lock();
    for (phase, n) in &hits {
        writeln!(out, "  a pull killed in {phase:?}: {n}")?;
    }
    Ok(())
}

/// An image whose pulls are killed.
struct Image {
    source: String,
    steps: Steps,
    /// The file that a pull makes.
    expected: Vec<u8>,
}

impl Image {
    fn look_at(desk: &Desk, source: String) -> Result<Self, libtest_mimic::Failed> {
        let (steps, expected) = steps(desk, &source)?;
        if let Some(missing) = PHASES.iter().find(|phase| !steps.contains_key(phase)) {
            return Err(format!("{source}: no call is made in {missing:?}: {steps:#?}").into());
        }
        Ok(Self { source, steps, expected })
    }
}

/// Pushes a small image of several layers, which arrive at the same time; tells its name.
fn of_several_layers(desk: &Desk, address: &str) -> Result<String, libtest_mimic::Failed> {
    let dir = desk.env.work_dir("layered")?;
    layered(desk, dir.path())?;
    let source = format!("docker://{address}/layered-{}:1", std::process::id());
    let situla = desk.env.situla().display().to_string();
    root(&[&situla, "push", "--quiet", &format!("oci:{}:1", dir.path().join("gzip").display()), &source])?;
    Ok(source)
}

/// Kills one pull; false where it came to its end before.
fn killed_at(
    desk: &Desk,
    source: &str,
    phase: Phase,
    point: &Point,
    expected: &[u8],
) -> Result<bool, libtest_mimic::Failed> {
    let dir = desk.env.work_dir("crash")?;
    let (store, target) = (dir.path().join("cache/situla"), dir.path().join(OUTPUT));
    let inject = format!("inject={}:signal=KILL:when={}", point.call, point.n);
    let trace = format!("trace={}", point.call);
    let killed = pull(desk, dir.path(), source, &["-e", &trace, "-e", &inject, "-o", "/dev/null"])?;
    if killed.code() == 0 {
        return Ok(false);
    }
    if killed.code() != 128 + 9 {
        return Err(format!("it was not killed\n{killed}").into());
    }
    let found = Progress::found(&store, &target);
    if found != Some(phase.progress) {
        return Err(format!("it was at {found:?}\n{killed}").into());
    }
    no_partial_file_but_a_record(&store)?;
    if target.exists() && fs::read(&target)? != expected {
        return Err("a partial file is under its name".into());
    }
    let begun = Instant::now();
    let next = pull_again(desk, dir.path(), source)?.success()?;
    if begun.elapsed() > TAKEOVER {
        return Err(format!("the next pull waited {:?}\n{next}", begun.elapsed()).into());
    }
    whole_store(&store)?;
    let mut left = names(dir.path());
    left.sort();
    if left != ["cache", OUTPUT] || fs::read(&target)? != expected {
        return Err(format!("the next pull gave something else; there is {left:?}\n{next}").into());
    }
    Ok(true)
}

/// A record may be there before its image, which nothing takes for one.
fn no_partial_file_but_a_record(store: &Path) -> Check {
    let images = names(&store.join("images"));
    if images.iter().any(|name| name.ends_with(".sqsh")) || images.len() > 1 {
        return no_partial_file(store);
    }
    if names(&store.join("tmp")).is_empty() { Ok(()) } else { Err("there are temporary files".into()) }
}

/// A pull under strace.
fn pull(desk: &Desk, dir: &Path, source: &str, strace: &[&str]) -> Result<Output, String> {
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    let words = ["env", &cache, "strace", "-f", "-qq"].into_iter().chain(strace.iter().copied());
    let words = words.chain(["situla", "pull", "--force", source, "-o", OUTPUT]);
    command::start(desk.env.user_command(dir, words)?)?.finish(PATIENCE)
}

fn pull_again(desk: &Desk, dir: &Path, source: &str) -> Result<Output, String> {
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    let words = ["env", &cache, "situla", "pull", "--force", source, "-o", OUTPUT];
    command::start(desk.env.user_command(dir, words)?)?.finish(PATIENCE)
}

/// What a pull publishes is on the disk before it has its name, and the name before the pull goes on: the image of the store
/// and its record, and the file that was asked for.
///
/// # Errors
/// It is not.
pub fn synced_before_named(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("order")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let log = dir.path().join("log").display().to_string();
    let calls = "trace=write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,linkat,rename,renameat,renameat2";
    let strace = ["-y", "-e", calls, "-o", &log];
    pull(desk, dir.path(), &format!("docker://{address}/tiny:1"), &strace)?.success()?;
    let text = fs::read_to_string(&log)?;
    let calls: Vec<&str> =
        text.lines().filter_map(|line| Some(line.split_once(' ')?.1.trim_start())).collect();
    let images = dir.path().join("cache/situla/images");
    for (place, ends) in [(images.as_path(), ".sqsh"), (images.as_path(), ".json"), (dir.path(), OUTPUT)] {
        published_in_order(&calls, place, ends)
            .map_err(|why| format!("*{ends} in {}: {why}\n{text}", place.display()))?;
    }
    Ok(())
}

/// What the calls of a pull must be around the one by which a file gets its name in a directory.
fn published_in_order(calls: &[&str], place: &Path, ends: &str) -> Result<(), String> {
    // linkat(AT_FDCWD</where>, "/proc/self/fd/7", AT_FDCWD</where>, "/images/a.sqsh", AT_SYMLINK_FOLLOW) = 0
    let named = |call: &&str| {
        let target = call.rsplit('"').nth(1).unwrap_or_default();
        let below = target.starts_with(&format!("{}/", place.display())) || target == ends;
        call.starts_with("linkat(") && call.ends_with(" = 0") && below && target.ends_with(ends)
    };
    let at = calls.iter().position(named).ok_or("nothing gets that name by linkat")?;
    // A file without a name is called after its inode, which it keeps.
    let path = place.join(calls[at].rsplit('"').nth(1).unwrap_or_default());
    let inode = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.ino();
    let of_file = |call: &&&str| call.contains(&format!("/#{inode}>"));
    let last = calls[..at].iter().rfind(of_file).ok_or("nothing was done with the file")?;
    if !last.starts_with("fsync(") && !last.starts_with("fdatasync(") {
        return Err(format!("before it got its name, the last of it was {last}"));
    }
    let directory = format!("<{}>", place.display());
    let next = calls[at + 1..].iter().find(|call| !call.starts_with("write("));
    match next {
        Some(next) if next.starts_with("fsync(") && next.contains(&directory) => Ok(()),
        next => Err(format!("after that came {next:?}, and not a sync of the directory")),
    }
}

/// Where the user's quota has no room for an image, its pull is refused before a byte of a layer is asked for, and leaves
/// nothing.
///
/// # Errors
/// It is not.
pub fn beyond_a_quota(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("quota")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    let (name, asked) = own_repository(desk, dir.path(), &address, "quota")?;
    let source = format!("docker://{address}/{name}:1");
    let inject = ["-e", "trace=fallocate", "-e", "inject=fallocate:error=EDQUOT", "-o", "/dev/null"];
    let refused = pull(desk, dir.path(), &source, &inject)?.expect_code(125)?.expect_text("quota")?;
    let left: Vec<String> = ["images", "refs", "leases", "tmp"]
        .iter()
        .flat_map(|part| names(&dir.path().join("cache/situla").join(part)))
        .collect();
    if !left.is_empty() || dir.path().join(OUTPUT).exists() {
        return Err(format!("what was refused left {left:?}\n{refused}").into());
    }
    let layer = only_layer(desk)?;
    if asked()?.contains_key(&layer) {
        return Err(format!("{layer} was asked for\n{refused}").into());
    }
    // With room it is asked for, so that the log would have shown it.
    pull_again(desk, dir.path(), &source)?.success()?;
    if asked()?.contains_key(&layer) { Ok(()) } else { Err(format!("{layer} was never asked for").into()) }
}

/// The digest of the layer of the small image.
fn only_layer(desk: &Desk) -> Result<String, libtest_mimic::Failed> {
    let layout = desk.env.image_layout("tiny");
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest = index["manifests"][0]["digest"].as_str().ok_or("no manifest")?.replace(':', "/");
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("blobs").join(manifest))?)?;
    Ok(manifest["layers"][0]["digest"].as_str().ok_or("no layer")?.to_owned())
}

/// Which calls a pull makes in each phase, and the file that it makes.
fn steps(desk: &Desk, source: &str) -> Result<(Steps, Vec<u8>), libtest_mimic::Failed> {
    let dir = desk.env.work_dir("steps")?;
    let log = dir.path().join("log");
    let trace = format!("trace={}", CALLS.join(","));
    pull(desk, dir.path(), source, &["-e", &trace, "-o", &log.display().to_string()])?.success()?;
    let text = fs::read_to_string(&log)?;
    Ok((phases(&text), fs::read(dir.path().join(OUTPUT))?))
}

/// Reads what strace has written: `TID CALL(ARGUMENTS) = RESULT` for each.
fn phases(log: &str) -> Steps {
    let mut found = Steps::new();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let main = log.split_whitespace().next().unwrap_or_default();
    let mut progress = Progress::Nothing;
    // strace counts in each thread, and kills at the first that comes to the number: beyond those of the first
    // thread a number is surely another's.
    let of_main = |call: &str| {
        let begins = format!("{call}(");
        log.lines()
            .filter(|line| line.strip_prefix(main).is_some_and(|rest| rest.trim_start().starts_with(&begins)))
            .count()
    };
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let Some(call) =
            CALLS.iter().find(|call| rest.strip_prefix(**call).is_some_and(|rest| rest.starts_with('(')))
        else {
            continue;
        };
        let n = counts.entry((thread, call)).or_default();
        *n += 1;
        let point = Point { call, n: *n };
        let arriving = thread != main;
        if !arriving {
            found.entry(Phase { progress, arriving }).or_default().push(point);
            if !rest.contains(") = -1 ") {
                progress = progress.after(call, rest, OUTPUT);
            }
        } else if *call == "recvfrom" && *n > of_main(call) && progress == Progress::Leased {
            found.entry(Phase { progress, arriving }).or_default().push(point);
        }
    }
    found
}

/// Fifty processes that pull one image at once fetch it once: the registry's own log has each blob one time.
///
/// # Errors
/// One fails, or a blob was asked for again.
pub fn fifty_at_once(desk: &Desk) -> Check {
    pulled_once(desk, "fifty", 50, &[])
}

/// The same of processes on several machines. What tells machines apart is what a PID namespace has of its own: nobody can
/// see there whether the holder of a lease lives, but by its signs of life.
///
/// # Errors
/// One fails, or a blob was asked for again.
pub fn several_machines_at_once(desk: &Desk) -> Check {
    const ELSEWHERE: [&str; 6] =
        ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--mount-proc"];
    pulled_once(desk, "machines", 8, &ELSEWHERE)
}

/// Pulls one image in so many processes at once, each entered by a command; each blob must be fetched once.
fn pulled_once(desk: &Desk, name: &str, n_processes: usize, enter: &[&str]) -> Check {
    let dir = desk.env.work_dir(name)?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    let (name, asked) = own_repository(desk, dir.path(), &address, name)?;
    let cache = format!("XDG_CACHE_HOME={}", dir.path().join("cache").display());
    // The way there is slow, so that all have come before the first is done.
    let proxy = SlowProxy::before(&address)?;
    proxy.hold_after(300_000);
    let source = format!("docker://{}/{name}:1", proxy.address());
    let watch = Watch::begin(desk.env.uid()?);
    let pulls: Vec<_> = (0..n_processes)
        .map(|n| {
            let output = format!("{n}.sif");
            let pull = ["env", &cache, "situla", "pull", &source, "-o", &output];
            let words: Vec<&str> = enter.iter().copied().chain(pull).collect();
            command::start(desk.env.user_command(dir.path(), &words)?)
        })
        .collect::<Result<_, String>>()?;
    let all_are_there = wait_until(PATIENCE, || proxy.holds() && watch.look().len() >= n_processes);
    proxy.pace(UNLIMITED);
    for pull in pulls {
        pull.finish(PATIENCE)?.success()?;
    }
    if !all_are_there {
        return Err("they were not all at work at once".into());
    }
    let first = fs::read(dir.path().join("0.sif"))?;
    for n in 1..n_processes {
        if fs::read(dir.path().join(format!("{n}.sif")))? != first {
            return Err(format!("{n}.sif differs from the first").into());
        }
    }
    whole_store(&dir.path().join("cache/situla"))?;
    let fetched = asked()?;
    // A configuration and a layer.
    if fetched.len() == 2 && fetched.values().all(|times| *times == 1) {
        return Ok(());
    }
    Err(format!("each blob should have been fetched once: {fetched:?}").into())
}

/// How often each blob was asked for.
type Asked = BTreeMap<String, usize>;

/// Puts the small image into a repository of its own, of which the registry's log has nothing else; gives its name, and what
/// finds out how often each of its blobs was asked for since.
fn own_repository(
    desk: &Desk,
    dir: &Path,
    address: &str,
    name: &str,
) -> Result<(String, impl Fn() -> Result<Asked, libtest_mimic::Failed> + use<>), libtest_mimic::Failed> {
    let name = format!("{name}-{}", std::process::id());
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let target = format!("docker://{address}/{name}:1");
    let words = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &layout, &target];
    desk.env.as_user(dir, words)?.success()?;
    let log = PathBuf::from(std::env::var_os("SITULA_REGISTRY_STATE").ok_or("no SITULA_REGISTRY_STATE")?);
    let log = log.join("log/registry.out");
    let pushed = usize::try_from(fs::metadata(&log)?.len())?;
    let begins = format!("/v2/{name}/blobs/");
    let asked = move || {
        let text = fs::read(&log)?;
        let text = String::from_utf8_lossy(text.get(pushed..).unwrap_or_default()).into_owned();
        let mut asked = Asked::new();
        for line in text.lines().filter(|line| line.contains("\"GET ")) {
            let digest = line.split(begins.as_str()).nth(1).and_then(|rest| rest.split_whitespace().next());
            if let Some(digest) = digest {
                *asked.entry(digest.to_owned()).or_default() += 1;
            }
        }
        Ok(asked)
    };
    Ok((name, asked))
}

/// A network that breaks connections off, is slow, stalls, or changes a byte: what can be had is had whole, and the rest is
/// refused and leaves nothing.
///
/// # Errors
/// It is not.
pub fn through_a_bad_network(desk: &Desk) -> Check {
    const CUTS: u64 = 4;
    /// Bytes in which a layer is cut, and where one is changed; the layer has a mebibyte.
    const PART: u64 = 150_000;
    /// Much shorter than the client waits for the next byte.
    const SILENCE: Duration = Duration::from_millis(1500);
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let dir = desk.env.work_dir("network")?;
    let proxy = SlowProxy::before(&address)?;
    let source = format!("docker://{}/tiny:1", proxy.address());
    let expected = {
        let direct = desk.env.work_dir("direct")?;
        pull_again(desk, direct.path(), &format!("docker://{address}/tiny:1"))?.success()?;
        fs::read(direct.path().join(OUTPUT))?
    };
    let fresh = || -> Result<(), std::io::Error> {
        let _ = fs::remove_file(dir.path().join(OUTPUT));
        fs::remove_dir_all(dir.path().join("cache"))
    };
    let is_whole = |story: &str, output: Output| -> Check {
        output.success()?;
        whole_store(&dir.path().join("cache/situla"))?;
        if fs::read(dir.path().join(OUTPUT))? == expected {
            Ok(())
        } else {
            Err(format!("{story}: other bytes").into())
        }
    };

    proxy.cut(PART, CUTS);
    let broken = pull_again(desk, dir.path(), &source)?;
    if proxy.cuts_left() > 0 {
        return Err(format!("only {} connections broke off\n{broken}", CUTS - proxy.cuts_left()).into());
    }
    is_whole("broken off", broken)?;

    fresh()?;
    proxy.pace(1 << 20);
    let begun = Instant::now();
    let slow = pull_again(desk, dir.path(), &source)?;
    if begun.elapsed() < Duration::from_millis(700) {
        return Err(format!("it was not slow: {:?}", begun.elapsed()).into());
    }
    is_whole("slow", slow)?;
    proxy.pace(UNLIMITED);

    fresh()?;
    proxy.hold_after(PART * 3);
    let (held, again, resumed) = stalled(desk, dir.path(), &source, &proxy, SILENCE)?;
    if !held || again > 0 {
        return Err(format!("held up: {held}, {again} more connections\n{resumed}").into());
    }
    is_whole("silent for a while", resumed)?;

    fresh()?;
    proxy.lie_after(PART * 3);
    let lied = pull_again(desk, dir.path(), &source)?.expect_code(125)?;
    let left: Vec<String> = ["images", "refs", "leases", "tmp"]
        .iter()
        .flat_map(|part| names(&dir.path().join("cache/situla").join(part)))
        .collect();
    if !left.is_empty() || dir.path().join(OUTPUT).exists() {
        return Err(format!("what was refused left {left:?}\n{lied}").into());
    }
    lied.expect_text("changed the bytes")?;
    is_whole("after all that", pull_again(desk, dir.path(), &source)?)
}

/// Pulls through a proxy that stops in the middle of the layer and goes on after so long; tells whether the pull was
/// waiting then, and how many connections it has made since.
fn stalled(
    desk: &Desk,
    dir: &Path,
    source: &str,
    proxy: &SlowProxy,
    silence: Duration,
) -> Result<(bool, u64, Output), String> {
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    let watch = Watch::begin(desk.env.uid()?);
    let words = ["env", &cache, "situla", "pull", "--force", source, "-o", OUTPUT];
    let running = command::start(desk.env.user_command(dir, words)?)?;
    let held = wait_until(PATIENCE, || proxy.holds());
    let connections = proxy.n_connections();
    // Not a wait for anything: for so long nothing comes.
    thread::sleep(silence);
    let waits = !watch.look().is_empty() && !dir.join(OUTPUT).exists();
    proxy.pace(UNLIMITED);
    let output = running.finish(PATIENCE * 2)?;
    Ok((held && waits, proxy.n_connections() - connections, output))
}

/// A connection that brings nothing for longer than the client waits (a minute) is given up, and another one asks for the
/// rest.
///
/// # Errors
/// The pull fails, or waits on.
pub fn through_a_silent_network(desk: &Desk) -> Check {
    /// Longer than the longest silence that the client bears, and shorter than all its attempts.
    const SILENCE: Duration = Duration::from_secs(70);
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let dir = desk.env.work_dir("silence")?;
    let proxy = SlowProxy::before(&address)?;
    let source = format!("docker://{}/tiny:1", proxy.address());
    proxy.hold_after(450_000);
    let (held, again, resumed) = stalled(desk, dir.path(), &source, &proxy, SILENCE)?;
    let resumed = resumed.success()?;
    if !held || again == 0 {
        return Err(format!("held up: {held}, {again} more connections\n{resumed}").into());
    }
    whole_store(&dir.path().join("cache/situla"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_a_trace() {
        let log = "\
10 mkdir(\"/c/situla\", 0700) = 0
10 linkat(AT_FDCWD, \"/c/situla/tmp/.a.1.2.lease\", AT_FDCWD, \"/c/situla/leases/a.lease\", 0) = 0
10 recvfrom(4, \"x\", 9, 0, NULL, NULL) = 9
11 recvfrom(4, \"x\", 9, 0, NULL, NULL) = 9
11 recvfrom(4,  <unfinished ...>
11 <... recvfrom resumed>\"y\", 9, 0, NULL, NULL) = 9
10 linkat(AT_FDCWD, \"/proc/self/fd/7\", AT_FDCWD, \"/c/situla/images/a.json\", AT_SYMLINK_FOLLOW) = 0
10 fsync(8) = 0
10 linkat(AT_FDCWD, \"/proc/self/fd/6\", AT_FDCWD, \"/c/situla/images/a.sqsh\", AT_SYMLINK_FOLLOW) = 0
10 unlink(\"/c/situla/leases/a.lease\") = 0
10 linkat(AT_FDCWD, \"/proc/self/fd/5\", AT_FDCWD, \"/c/situla/refs/b.json\", AT_SYMLINK_FOLLOW) = 0
10 linkat(AT_FDCWD, \"/proc/self/fd/5\", AT_FDCWD, \"pulled.sif\", AT_SYMLINK_FOLLOW) = 0
10 fsync(8) = 0
";
        let found = phases(log);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), PHASES);
        let of = |progress, arriving| found[&Phase { progress, arriving }].clone();
        assert_eq!(of(Progress::Leased, true), [Point { call: "recvfrom", n: 2 }]);
        assert_eq!(of(Progress::Complete, false), [Point { call: "fsync", n: 2 }]);
        let recorded = [Point { call: "fsync", n: 1 }, Point { call: "linkat", n: 3 }];
        assert_eq!(of(Progress::Recorded, false), recorded);
    }
}
