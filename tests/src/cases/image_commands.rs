//! The commands that make images: pull, convert, images, inspect, and Apptainer's pull and build.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Desk;
use super::privileged::{apptainer, registry, with_bad_layer};
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::processes::{Kind, Watch};
use crate::tier::Check;

/// Runs a command as the user, with a store below `dir`.
fn run(desk: &Desk, dir: &Path, words: &[&str]) -> Result<Output, String> {
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    desk.env.as_user(dir, ["env", &cache].iter().chain(words))
}

fn json(output: &Output) -> Result<Value, String> {
    serde_json::from_str(&output.stdout).map_err(|e| format!("no JSON: {e}\n{output}"))
}

/// The names in a directory; none where it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A directory becomes a SIF, a SquashFS and a SIF again: the same bytes, and each one starts.
///
/// # Errors
/// It does not.
pub fn convert_there_and_back(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("convert")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    run(desk, dir.path(), &["situla", "convert", &tree, "a.sif"])?.success()?;
    run(desk, dir.path(), &["situla", "convert", "a.sif", "b.sqsh"])?.success()?;
    run(desk, dir.path(), &["situla", "convert", "b.sqsh", "c.sif"])?.success()?;
    run(desk, dir.path(), &["situla", "convert", &layout, "d.sqsh"])?.success()?;
    run(desk, dir.path(), &["apptainer", "build", "e.sif", &tree])?.success()?;
    if fs::read(dir.path().join("a.sif"))? != fs::read(dir.path().join("c.sif"))? {
        return Err("the way back gave another file".into());
    }
    for image in ["./a.sif", "./b.sqsh", "./c.sif", "./d.sqsh", "./e.sif"] {
        run(desk, dir.path(), &["situla", "exec", image, "cat", WITNESS])?
            .success()?
            .expect_text("situla tiny image")?;
    }
    let found = json(&run(desk, dir.path(), &["situla", "inspect", "--json", "--hash", "a.sif"])?)?;
    let bare = json(&run(desk, dir.path(), &["situla", "inspect", "--json", "--hash", "b.sqsh"])?)?;
    let sum = command::run(
        command::words(["sha256sum".as_ref(), dir.path().join("b.sqsh").as_os_str()]),
        PATIENCE,
    )?;
    let expected = format!("sha256:{}", sum.stdout.split(' ').next().unwrap_or_default());
    if found["rootfs_digest"] != *expected || bare["rootfs_digest"] != *expected || found["kind"] != "sif" {
        return Err(format!("not {expected}: {found}\n{bare}").into());
    }
    Ok(())
}

/// What cannot be converted is refused by name, and nothing is overwritten or left.
///
/// # Errors
/// It is not.
pub fn convert_refuses(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("refuse")?;
    dir.write("taken.sif", "precious")?;
    dir.write("text.def", "Bootstrap: docker")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    let image = desk.images.path("tiny.sqsh");
    for (words, code, text) in [
        (vec!["situla", "convert", &tree, "taken.sif"], 125, "taken.sif"),
        (vec!["situla", "convert", &tree, "new/"], 2, "cp -a"),
        (vec!["situla", "convert", "--force", &image, "new/"], 2, "remove it first"),
        (vec!["situla", "convert", &image, "taken.sif/"], 125, "taken.sif"),
        (vec!["situla", "convert", &image, "none/new/"], 125, "none"),
        (vec!["situla", "convert", "text.def", "new/"], 125, "text.def"),
        (vec!["situla", "convert", "./none", "a.sif"], 125, "none"),
        (vec!["situla", "convert", "text.def", "a.sif"], 125, "text.def"),
        (vec!["situla", "convert", "oci:.", "a.sif"], 125, "OCI image layout"),
        (vec!["situla", "pull", "library://a/b"], 2, "docker://"),
        (vec!["apptainer", "build", "taken.sif", &tree], 255, "already exists"),
        (vec!["apptainer", "build", "a.sif", "text.def"], 255, "definition"),
        (vec!["apptainer", "pull", "taken.sif", "docker://localhost:1/a"], 255, "will not overwrite"),
        (vec!["apptainer", "build", "--sandbox", "a", &tree], 1, "is a directory already"),
        (vec!["apptainer", "build", "--update", "a", &tree], 1, "--update"),
    ] {
        run(desk, dir.path(), &words)?.expect_code(code)?.expect_text(text)?;
    }
    let mut left = names(dir.path());
    left.sort();
    if left != ["taken.sif", "text.def"] || fs::read(dir.path().join("taken.sif"))? != b"precious" {
        return Err(format!("something was left or lost: {left:?}").into());
    }
    // To a program a failure is one object on standard output, and nothing else.
    for words in [
        ["situla", "convert", "--json", "./none", "a.sif"],
        ["situla", "pull", "--json", "--store-only", "docker://127.0.0.1:1/a"],
        ["situla", "pull", "--json", "--store-only", "Not/A:reference"],
    ] {
        let output = run(desk, dir.path(), &words)?.expect_code(125)?;
        let value = json(&output)?;
        if !output.stderr.is_empty() || !value["class"].is_string() || !value["remedy"].is_string() {
            return Err(output.to_string().into());
        }
    }
    Ok(())
}

/// An image becomes a directory that runs like it, from every kind of source, and unsquashfs makes the
/// same of it.
///
/// # Errors
/// It does not.
pub fn unpacked(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("unpacked")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    let image = desk.images.path("tiny.sqsh");
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    run(&["unsquashfs", "-no-progress", "-user-xattrs", "-d", "theirs", &image])?.success()?;
    run(&["situla", "convert", &image, "of-sqsh/"])?.success()?.expect_text("unpacked in")?;
    // Content, types, modes and links of everything; what the owner may not read is the exception.
    run(&["rsync", "--version"])?.success()?;
    let compared = [
        "rsync",
        "-rlpHn",
        "--itemize-changes",
        "--delete",
        "--checksum",
        "--chmod=Du+rwx,Fu+r",
        "theirs/",
        "of-sqsh/",
    ];
    let differences = run(&compared)?.success()?.stdout;
    if !differences.trim().is_empty() {
        return Err(format!("unsquashfs makes something else\n{differences}").into());
    }
    run(&["situla", "convert", &image, "image.sif"])?.success()?;
    let json = json(&run(&["situla", "convert", "--json", &layout, "of-layout/"])?.success()?)?;
    if json["entries"].as_u64().is_none_or(|entries| entries < 10) || !json["manifest_digest"].is_string() {
        return Err(format!("{json}").into());
    }
    run(&["apptainer", "build", "--sandbox", "of-sif", "image.sif"])?.success()?;
    for directory in ["of-sqsh", "of-layout", "of-sif"] {
        let path = format!("./{directory}");
        run(&["situla", "exec", &path, "cat", "/etc/situla-image-witness"])?
            .success()?
            .expect_text("situla tiny image")?;
    }
    let mut left = names(dir.path());
    left.sort();
    if left != ["image.sif", "of-layout", "of-sif", "of-sqsh", "theirs"] {
        return Err(format!("something was left: {left:?}").into());
    }
    Ok(())
}

/// A pulled image starts from the store and as a file, here and in real Apptainer; the second pull fetches
/// nothing.
///
/// # Errors
/// It does not.
pub fn pull_and_exec(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("pulled")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let source = format!("docker://{address}/tiny:1");
    let run = |words: &[&str]| run(desk, dir.path(), words);
    let first = json(&run(&["situla", "pull", "--json", "--store-only", &source])?.success()?)?;
    let second = json(&run(&["situla", "pull", "--json", "--store-only", &source])?.success()?)?;
    let stored = first["path"].as_str().map(fs::read).ok_or("no path")??;
    if first["was_present"] != false || second["was_present"] != true || first["path"] != second["path"] {
        return Err(format!("{first}\n{second}").into());
    }
    run(&["situla", "exec", &source, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    let images = json(&run(&["situla", "images", "--json"])?.success()?)?;
    let reference = format!("{address}/tiny:1");
    if images[0]["references"][0] != *reference || images[0]["rootfs_digest"] != first["rootfs_digest"] {
        return Err(format!("{images}").into());
    }
    run(&["situla", "pull", &source, "-o", "a.sqsh"])?.success()?;
    run(&["situla", "pull", &source, "-o", "a.sif"])?.success()?;
    run(&["apptainer", "pull", &source])?.success()?;
    run(&["apptainer", "pull", "--disable-cache", "b.sif", &source])?.success()?;
    let read = |name: &str| fs::read(dir.path().join(name));
    if read("a.sqsh")? != stored || read("a.sif")? != read("tiny_1.sif")? || read("a.sif")? != read("b.sif")?
    {
        return Err("the files of one image differ".into());
    }
    run(&["situla", "exec", "./a.sif", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    apptainer(desk, dir.path(), &["exec", "./a.sif", "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny image")?;
    let found = run(&["situla", "inspect", &source])?.success()?;
    found.expect_text(first["manifest_digest"].as_str().unwrap_or("no digest"))?;
    Ok(())
}

/// Layouts and archives, plain and compressed, are inspected as they are, and run: converted once into the store, and found
/// there by a plan and by the next run. An instance of one is entered from another directory.
///
/// # Errors
/// They are not.
pub fn layouts_and_archives(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("layouts")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    let theirs = desk.env.image_layout("tiny").display().to_string();
    run(&["cp", "-r", &theirs, "layout"])?.success()?;
    run(&["tar", "-C", "layout", "-cf", "plain.tar", "."])?.success()?;
    run(&["tar", "-C", "layout", "-czf", "packed.tar.gz", "."])?.success()?;
    run(&["situla", "convert", "oci:layout:1", "docker-archive:saved.tar:tiny:1"])?.success()?;
    let index: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("layout/index.json"))?)?;
    let images = dir.path().join("cache/situla/images");
    let stored = || names(&images).iter().filter(|name| name.ends_with(".sqsh")).count();
    for (name, kind, n_stored) in [
        ("oci:layout:1", "oci-layout", 1),
        ("oci-archive:plain.tar:1", "oci-archive", 1),
        ("oci-archive:packed.tar.gz", "oci-archive", 1),
        ("docker-archive:saved.tar:tiny:1", "docker-archive", 2),
    ] {
        let told = |output: Output| output.expect_text(name);
        let before = stored();
        let found = json(&run(&["situla", "inspect", "--json", name])?.success()?)?;
        let is_theirs = found["manifest_digest"] == index["manifests"][0]["digest"];
        if found["kind"] != kind || is_theirs != (kind != "docker-archive") || found["platform"].is_null() {
            return Err(format!("{name}: {found}").into());
        }
        run(&["situla", "inspect", name])?.success()?.expect_text("layer")?;
        told(run(&["situla", "inspect", "--hash", name])?.expect_code(2)?)?.expect_text("situla convert")?;
        if stored() != before {
            return Err(format!("{name} was converted to be inspected").into());
        }
        if n_stored > before {
            let planned = run(&["situla", "plan", name, "true"])?.expect_code(125)?;
            planned.expect_text("a plan fetches nothing")?.expect_text("situla pull")?;
        }
        for personality in ["situla", "apptainer", "situla"] {
            run(&[personality, "exec", name, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
        }
        if stored() != n_stored {
            return Err(format!("{name}: {:?}", names(&images)).into());
        }
        let plan = json(&run(&["situla", "plan", name, "true"])?.success()?)?;
        if plan["image"]["manifest_digest"] != found["manifest_digest"] || plan["image"]["requested"] != name
        {
            return Err(format!("{name}: {}", plan["image"]).into());
        }
        let pulled = json(&run(&["situla", "pull", "--json", name])?.success()?)?;
        if pulled["was_present"] != true || pulled["manifest_digest"] != found["manifest_digest"] {
            return Err(format!("{name}: {pulled}").into());
        }
    }
    run(&["situla", "pull", "oci:layout:1", "-o", "out.sqsh"])?.success()?;
    run(&["situla", "exec", "./out.sqsh", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    run(&["situla", "run", "oci:layout", "cat", WITNESS])?.success()?;

    let state = format!("XDG_STATE_HOME={}", dir.path().join("state").display());
    run(&["env", &state, "situla", "instance", "start", "oci:layout:1", "of-a-layout"])?.success()?;
    let entered = ["env", "-C", "/", &state, "situla", "instance", "exec", "of-a-layout", "cat", WITNESS];
    let entered = run(&entered);
    run(&["env", &state, "situla", "instance", "stop", "of-a-layout"])?.success()?;
    entered?.success()?.expect_text("situla tiny image")?;

    for (words, code, text) in [
        (["situla", "exec", "oci:none", "true"], 125, "none"),
        (["situla", "exec", "oci:layout:2", "true"], 125, "no image '2'"),
        (["situla", "exec", "docker-daemon:tiny:1", "true"], 125, "docker save"),
        (["situla", "exec", "oci-archive:out.sqsh", "true"], 125, "not a tar archive"),
        (["apptainer", "exec", "oci:none", "true"], 255, "FATAL"),
    ] {
        run(&words)?.expect_code(code)?.expect_text(text)?;
    }
    let inspected = json(&run(&["situla", "inspect", "--json", "oci:none"])?.expect_code(125)?)?;
    if inspected["class"] != "image-missing" && inspected["class"] != "image-corrupt" {
        return Err(format!("{inspected}").into());
    }
    // A layer that is not what its digest says is not run.
    let manifest = index["manifests"][0]["digest"].as_str().unwrap_or_default().replace(':', "/");
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("layout/blobs").join(manifest))?)?;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap_or_default().replace(':', "/");
    let layer = dir.path().join("layout/blobs").join(layer);
    let mut bytes = fs::read(&layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes)?;
    run(&["situla", "prune", "--all"])?.success()?;
    run(&["situla", "exec", "oci:layout:1", "true"])?.expect_code(125)?;
    if stored() != 0 {
        return Err(format!("a damaged image was stored: {:?}", names(&images)).into());
    }
    Ok(())
}

/// A layer whose bytes are not those promised: the class, the digest and a remedy, from `pull` and from a
/// run that would fetch it; the store stays empty.
///
/// # Errors
/// It is believed.
pub fn wrong_digest(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("wrong")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    with_bad_layer(desk, |source, layer| {
        let output = run(&["situla", "pull", "--json", source])?.expect_code(125)?.expect_text(layer)?;
        let value = json(&output)?;
        if value["class"] != "digest-mismatch" || !output.stderr.is_empty() {
            return Err(output.to_string().into());
        }
        let output = run(&["situla", "exec", source, "true"])?.expect_code(125)?.expect_text(layer)?;
        output.expect_text("changed the bytes")?;
        run(&["apptainer", "pull", "a.sif", source])?.expect_code(255)?.expect_text("FATAL")?;
        Ok(())
    })?;
    let store = dir.path().join("cache/situla");
    let left: Vec<String> =
        ["images", "tmp", "leases", "refs"].iter().flat_map(|part| names(&store.join(part))).collect();
    if !left.is_empty() || names(dir.path()) != ["cache"] {
        return Err(format!("a refused pull left {left:?}").into());
    }
    Ok(())
}

/// A pull that is ended while a layer arrives dies by the signal and leaves no lease and no file; so does a run that waits
/// for one, and with it who pulls for it, also when that one is killed.
///
/// # Errors
/// It does not.
pub fn interrupted_pull(desk: &Desk) -> Check {
    let watch = Watch::begin(desk.env.uid()?);
    let runs = [&["pull", "-o", "out.sif"][..], &["exec", "--quiet"]];
    let signals = [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL];
    for (run, signal) in runs.into_iter().flat_map(|run| signals.map(|signal| (run, signal))) {
        let pulls = run[0] == "pull";
        if pulls && signal == Signal::KILL {
            // Nobody is left to take away anything: another case.
            continue;
        }
        let dir = desk.env.work_dir("interrupted")?;
        let server = Stalling::serve(desk.env.image_layout("tiny"))?;
        let source = format!("docker://{}/tiny:1", server.address);
        let cache = format!("XDG_CACHE_HOME={}", dir.path().join("cache").display());
        let what = [source.as_str(), "true"];
        let what = if pulls { &what[..1] } else { &what[..] };
        let words =
            ["env", &cache, "situla"].into_iter().chain(run.iter().copied()).chain(what.iter().copied());
        let running = command::start(desk.env.user_command(dir.path(), words)?)?;
        let leases = dir.path().join("cache/situla/leases");
        let began =
            wait_until(PATIENCE, || server.stalled.load(Ordering::Acquire) && !names(&leases).is_empty());
        let fetcher = watch.look().into_iter().find(|one| one.kind == Kind::Fetcher).map(|one| one.pid);
        // Who is killed is the one that pulls for the run; the run itself ends by what it is told.
        let victim = if signal == Signal::KILL { fetcher } else { Some(running.pid()) };
        let pid = victim.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let sent = pid.ok_or("no pid").map(|pid| kill_process(pid, signal));
        let output = running.finish(PATIENCE)?;
        sent?.map_err(|e| format!("{e}\n{output}"))?;
        let as_asked = match signal {
            Signal::KILL => output.code() == 125 && output.stderr.contains("the fetching process ended"),
            _ => output.status.signal() == Some(signal.as_raw()) && (pulls || output.stderr.is_empty()),
        };
        if !began || !as_asked || !watch.look().is_empty() {
            return Err(format!("{signal:?} (began: {began}), {:?}\n{output}", watch.look()).into());
        }
        let store = dir.path().join("cache/situla");
        let left: Vec<String> =
            ["images", "tmp", "leases", "refs"].iter().flat_map(|part| names(&store.join(part))).collect();
        if !left.is_empty() || names(dir.path()) != ["cache"] {
            return Err(format!("{signal:?} left {left:?}\n{output}").into());
        }
    }
    Ok(())
}

/// A run that is asked to end while its image is fetched says so in its record at once, though it waits for the process
/// that fetches; asked once more it ends without waiting.
///
/// # Errors
/// The record has nothing of it, or it goes on waiting.
pub fn interrupted_twice(desk: &Desk) -> Check {
    /// How long the one that fetches may take.
    const WAIT: Duration = Duration::from_secs(3);
    let watch = Watch::begin(desk.env.uid()?);
    let dir = desk.env.work_dir("twice")?;
    let server = Stalling::serve(desk.env.image_layout("tiny"))?;
    let source = format!("docker://{}/tiny:1", server.address);
    let (cache, state) = (dir.path().join("cache"), dir.path().join("state"));
    let records = state.join("situla/records");
    let places =
        [format!("XDG_CACHE_HOME={}", cache.display()), format!("XDG_STATE_HOME={}", state.display())];
    let words = ["situla", "exec", "--quiet", "--record", &source, "true"];
    let words = ["env"].into_iter().chain(places.iter().map(String::as_str)).chain(words);
    let running = command::start(desk.env.user_command(dir.path(), words)?)?;
    let fetcher = || watch.look().into_iter().find(|one| one.kind == Kind::Fetcher);
    let began = wait_until(PATIENCE, || server.stalled.load(Ordering::Acquire) && fetcher().is_some());
    let process = |pid: u32| Pid::from_raw(i32::try_from(pid).ok()?);
    let (starter, fetcher) = (process(running.pid()), fetcher().and_then(|one| process(one.pid)));
    let (starter, fetcher) = starter.zip(fetcher).filter(|_| began).ok_or("nothing is fetched")?;
    // It does not end by itself, whatever it is told.
    kill_process(fetcher, Signal::STOP)?;
    kill_process(starter, Signal::TERM)?;
    let told = Instant::now();
    let said = |what: &str| {
        let files = names(&records).into_iter().map(|name| fs::read_to_string(records.join(name)));
        files.flatten().any(|text| text.contains(what))
    };
    let recorded = wait_until(PATIENCE, || said("\"task-signal\"") || watch.look().is_empty());
    let still_waits = recorded && !said("\"task-exit\"");
    // Two in a row may be one wish that came by two ways.
    let hurried = wait_until(PATIENCE, || {
        told.elapsed() > Duration::from_millis(500) && kill_process(starter, Signal::INT).is_ok()
    });
    let output = running.finish(PATIENCE)?;
    let took = told.elapsed();
    // Who was waiting for it may have killed it.
    let _ = kill_process(fetcher, Signal::CONT);
    let all_gone = wait_until(PATIENCE, || watch.look().is_empty());
    let is_right = still_waits && hurried && took < WAIT && all_gone && said("\"task-exit\"");
    if !is_right || output.status.signal() != Some(Signal::TERM.as_raw()) {
        return Err(format!(
            "recorded: {recorded}, it waits: {still_waits}, gone after {took:?}, {:?}\n{output}",
            watch.look()
        )
        .into());
    }
    let store = cache.join("situla");
    let left: Vec<String> = ["tmp", "leases"].iter().flat_map(|part| names(&store.join(part))).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("{left:?} is left").into()) }
}

/// A registry that serves an OCI layout, but only the first half of layers, and then says no more.
struct Stalling {
    address: String,
    stalled: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Stalling {
    fn serve(layout: PathBuf) -> Result<Self, String> {
        let io = |e: std::io::Error| format!("the stalling registry: {e}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let index = fs::read_to_string(layout.join("index.json")).map_err(io)?;
        let index: Value = serde_json::from_str(&index).map_err(|e| e.to_string())?;
        let top = index["manifests"][0].clone();
        let (stalled, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&stalled), Arc::clone(&stop));
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().flatten() {
                if shared.1.load(Ordering::Acquire) {
                    break;
                }
                // One request for each connection, so that one thread serves all.
                open.extend(answer(stream, &layout, &top, &shared.0));
            }
        });
        Ok(Self { address, stalled, stop })
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which then closes everything.
        let _ = TcpStream::connect(&self.address);
    }
}

/// Answers a request; gives the connection back if it shall stay open.
fn answer(mut stream: TcpStream, layout: &Path, top: &Value, stalled: &AtomicBool) -> Option<TcpStream> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    reader.read_line(&mut request).ok()?;
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1)?.to_owned();
    let blob =
        |digest: &str| fs::read(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:")?)).ok();
    let manifest = blob(top["digest"].as_str()?)?;
    let config = serde_json::from_slice::<Value>(&manifest).ok()?["config"]["digest"].as_str()?.to_owned();
    let wanted = path.rsplit('/').next()?;
    let (kind, body) = match path.contains("/manifests/") {
        true => (top["mediaType"].as_str()?, manifest),
        false => ("application/octet-stream", blob(wanted)?),
    };
    let is_layer = path.contains("/blobs/") && wanted != config;
    let shown = if is_layer { body.len() / 2 } else { body.len() };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body[..shown]).ok()?;
    stalled.fetch_or(is_layer, Ordering::AcqRel);
    is_layer.then_some(stream)
}
