//! Images to a registry, with skopeo and real Apptainer as those who fetch them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Desk;
use super::privileged::{apptainer, apptainer_into, registry};
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::tier::Check;

/// Runs a command as the user, with a store below `dir`, and nothing to be pushed in the directory of others.
fn run(desk: &Desk, dir: &Path, words: &[&str]) -> Result<Output, String> {
    let variables = surroundings(dir);
    desk.env.as_user(
        dir,
        ["env"].into_iter().chain(variables.iter().map(String::as_str)).chain(words.iter().copied()),
    )
}

fn surroundings(dir: &Path) -> [String; 2] {
    ["XDG_CACHE_HOME=cache", "TMPDIR=tmp"].map(|text| {
        let (name, below) = text.split_once('=').unwrap_or((text, ""));
        format!("{name}={}", dir.join(below).display())
    })
}

fn json(output: &Output) -> Result<Value, String> {
    serde_json::from_str(&output.stdout).map_err(|e| format!("no JSON: {e}\n{output}"))
}

fn nothing_in(dir: &Path) -> Check {
    let left: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left in {}: {left:?}", dir.display()).into()) }
}

/// What is pushed from every kind of source is what skopeo finds, what runs, and the same when it is pushed again, of
/// which nothing is sent then.
///
/// # Errors
/// It is not.
pub fn every_source(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("push")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    run(&["mkdir", "tmp"])?.success()?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    let layout = desk.env.image_layout("tiny").display().to_string();
    run(&["situla", "convert", &format!("oci:{layout}:1"), "docker-archive:saved.tar:tiny:1"])?.success()?;
    run(&["tar", "-C", &layout, "-cf", "layout.tar", "."])?.success()?;
    let index: Value = serde_json::from_str(&fs::read_to_string(format!("{layout}/index.json"))?)?;
    let own = index["manifests"][0]["digest"].as_str().ok_or("the layout has no manifest")?.to_owned();
    for (name, source, digest) in [
        ("sqsh", desk.images.path("tiny.sqsh"), None),
        ("sif", desk.images.path("tiny.sif"), None),
        ("tree", desk.env.image_tree("tiny").display().to_string(), None),
        ("layout", format!("oci:{layout}:1"), Some(&own)),
        ("layout-archive", "oci-archive:layout.tar:1".to_owned(), Some(&own)),
        ("saved", "docker-archive:saved.tar".to_owned(), None),
        ("registry", format!("docker://{address}/pushed/layout:1"), Some(&own)),
    ] {
        let target = format!("docker://{address}/pushed/{name}:1");
        let push = || json(&run(&["situla", "push", "--json", &source, &target])?.success()?);
        let (first, second) = (push()?, push()?);
        let found = run(&["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", &target])?
            .success()?;
        let found = found.stdout.trim();
        if first["manifest_digest"] != *found || digest.is_some_and(|digest| digest != found) {
            return Err(format!("{name}: {first}, and skopeo finds {found}").into());
        }
        if second["manifest_digest"] != *found || second["bytes_sent"] != 0 {
            return Err(format!("{name}, once more: {second}").into());
        }
        let copied = format!("oci:copied-{name}:1");
        run(&[
            "skopeo",
            "--insecure-policy",
            "copy",
            "--src-tls-verify=false",
            "--preserve-digests",
            &target,
            &copied,
        ])?
        .success()?;
        run(&[
            "situla",
            "convert",
            &format!("copied-{name}").replace("copied", "oci:copied"),
            &format!("{name}.sqsh"),
        ])?
        .success()?;
        for image in [&target, &format!("./{name}.sqsh")] {
            run(&["situla", "exec", image, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
        }
        nothing_in(&dir.path().join("tmp"))?;
    }
    let told = run(&[
        "situla",
        "push",
        &desk.images.path("tiny.sqsh"),
        &format!("docker://{address}/pushed/sqsh:2"),
    ])?;
    told.success()?.expect_text("1 layer")?.expect_text("0 B sent")?;
    Ok(())
}

/// A SIF that we push is fetched and run by real Apptainer, and one of Apptainer's by us; neither changes a byte.
///
/// # Errors
/// It is not.
pub fn sif_both_ways(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("oras")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    let ours = desk.images.path("tiny.sif");
    let target = format!("oras://{address}/sif/ours:1");
    let first = json(&run(&["situla", "push", "--json", &ours, &target])?.success()?)?;
    let second = json(&run(&["situla", "push", "--json", &ours, &target])?.success()?)?;
    if first["manifest_digest"] != second["manifest_digest"] || second["bytes_sent"] != 0 {
        return Err(format!("{first}\n{second}").into());
    }
    apptainer(desk, dir.path(), &["pull", "--no-https", "theirs.sif", &target])?.success()?;
    apptainer(desk, dir.path(), &["exec", "theirs.sif", "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny image")?;
    let tree = desk.env.image_tree("tiny").display().to_string();
    apptainer(desk, dir.path(), &["build", "built.sif", &tree])?.success()?;
    let target = format!("oras://{address}/sif/theirs:1");
    apptainer(desk, dir.path(), &["push", "--no-https", "built.sif", &target])?.success()?;
    let pulled = json(&run(&["situla", "pull", "--json", &target, "-o", "fetched.sif"])?.success()?)?;
    run(&["apptainer", "pull", "again.sif", &target])?.success()?;
    run(&["apptainer", "pull", &target])?.success()?;
    run(&["situla", "exec", "./fetched.sif", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    // What we make of the same file is the same artifact, so that nothing is sent.
    let again = json(&run(&["situla", "push", "--json", "built.sif", &target])?.success()?)?;
    if again["bytes_sent"] != 0 {
        return Err(format!("{again}\n{pulled}").into());
    }
    run(&["apptainer", "push", "built.sif", &format!("oras://{address}/sif/more:1")])?.success()?;
    of_apptainers_sqsh(desk, dir.path())?;
    let read = |name: &str| fs::read(dir.path().join(name));
    let same = read("built.sif")? == read("fetched.sif")?
        && read("fetched.sif")? == read("again.sif")?
        && read("again.sif")? == read("theirs_1.sif")?
        && read("theirs.sif")? == fs::read(&ours)?;
    if same { Ok(()) } else { Err("a file has changed on the way".into()) }
}

/// The root file system that Apptainer has packed itself, taken out of its SIF by its own program, is an image as others are.
fn of_apptainers_sqsh(desk: &Desk, dir: &Path) -> Check {
    let run = |words: &[&str]| run(desk, dir, words);
    let listed = json(&run(&["situla", "sif", "list", "--json", "built.sif"])?.success()?)?;
    let objects = listed["objects"].as_array().cloned().unwrap_or_default();
    let partition = objects.iter().find(|object| object["kind"] == "partition");
    let id = partition.map(|object| object["id"].to_string());
    let id = id.ok_or_else(|| format!("no root file system in {listed}"))?;
    apptainer_into(desk, dir, "theirs.sqsh", &["sif", "dump", &id, "built.sif"])?;
    run(&["situla", "exec", "./theirs.sqsh", "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    let facts = json(&run(&["situla", "inspect", "--json", "theirs.sqsh"])?.success()?)?;
    if facts["kind"] != "squashfs" || facts["squashfs"]["compressor"] == "zstd" {
        return Err(format!("that is no image of Apptainer's: {facts}").into());
    }
    run(&["situla", "convert", "theirs.sqsh", "from-theirs.sif"])?.success()?;
    run(&["situla", "exec", "./from-theirs.sif", "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny image")?;
    apptainer(desk, dir, &["exec", "from-theirs.sif", "cat", WITNESS])?
        .success()?
        .expect_text("situla tiny image")?;
    Ok(())
}

/// What cannot be pushed is refused by name, and a registry that cannot be reached is told from a failed fetch.
///
/// # Errors
/// It is not.
pub fn refused(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("push-refuse")?;
    dir.write("text", "no image")?;
    let run = |words: &[&str]| run(desk, dir.path(), words);
    run(&["mkdir", "tmp"])?.success()?;
    let (sqsh, tree) = (desk.images.path("tiny.sqsh"), desk.env.image_tree("tiny").display().to_string());
    for (source, target, code, text) in [
        (sqsh.as_str(), "docker://tiny:1", 2, "names no registry"),
        (sqsh.as_str(), "oci:dir:1", 2, "docker://REGISTRY/NAME:TAG"),
        (sqsh.as_str(), "oras://127.0.0.1:1/a:1", 125, "situla convert"),
        (tree.as_str(), "oras://127.0.0.1:1/a:1", 2, "situla convert"),
        (sqsh.as_str(), "docker://127.0.0.1:1/a:1", 125, "cannot push to '127.0.0.1:1/a:1'"),
        ("./text", "docker://127.0.0.1:1/a:1", 125, "text"),
        ("./none", "docker://127.0.0.1:1/a:1", 125, "none"),
        ("library://a/b:1", "docker://127.0.0.1:1/a:1", 2, "oras://REGISTRY/NAME:TAG"),
        ("oras://127.0.0.1:1/a:1", "docker://127.0.0.1:1/a:1", 125, "cannot pull '127.0.0.1:1/a:1'"),
        ("docker://127.0.0.1:1/a:1", "oras://127.0.0.1:1/a:1", 2, "situla convert"),
    ] {
        run(&["situla", "push", source, target])?.expect_code(code)?.expect_text(text)?;
    }
    let told = run(&["situla", "push", "--json", &sqsh, "docker://127.0.0.1:1/a:1"])?.expect_code(125)?;
    let told = json(&told)?;
    if told["class"] != "push-failed" || !told["remedy"].is_string() {
        return Err(told.to_string().into());
    }
    run(&["apptainer", "push", &sqsh, "library://a/b:1"])?.expect_code(255)?.expect_text("oras://")?;
    nothing_in(&dir.path().join("tmp"))
}

/// A push that is ended while a layer goes dies by the signal, leaves no file, and no tag.
///
/// # Errors
/// It does not.
pub fn interrupted(desk: &Desk) -> Check {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let dir = desk.env.work_dir("push-ended")?;
        run(desk, dir.path(), &["mkdir", "tmp"])?.success()?;
        let server = Silent::serve()?;
        let target = format!("docker://{}/tiny:1", server.address);
        let source = desk.images.path("tiny.sqsh");
        let variables = surroundings(dir.path());
        let words = ["env", &variables[0], &variables[1], "situla", "push", &source, &target];
        let running = command::start(desk.env.user_command(dir.path(), words)?)?;
        let began = wait_until(PATIENCE, || server.sends.load(Ordering::Acquire));
        let pid = i32::try_from(running.pid()).ok().and_then(Pid::from_raw).ok_or("no pid")?;
        let sent = kill_process(pid, signal);
        let output = running.finish(PATIENCE)?;
        sent.map_err(|e| format!("{e}\n{output}"))?;
        if !began || output.status.signal() != Some(signal.as_raw()) {
            return Err(format!("{signal:?} (began: {began})\n{output}").into());
        }
        if server.named.load(Ordering::Acquire) {
            return Err("there is a tag for what is not there".into());
        }
        nothing_in(&dir.path().join("tmp"))?;
    }
    Ok(())
}

/// A registry that takes uploads, and never says that it has one.
struct Silent {
    address: String,
    /// Something was sent.
    sends: Arc<AtomicBool>,
    /// A manifest was put.
    named: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Silent {
    fn serve() -> Result<Self, String> {
        let io = |e: std::io::Error| format!("the silent registry: {e}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let [sends, named, stop] = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
        let shared = [&sends, &named, &stop].map(Arc::clone);
        thread::spawn(move || {
            let [sends, named, stop] = shared;
            let mut open = Vec::new();
            for mut stream in listener.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                // One request for each connection, so that one thread serves all.
                let verb = verb(&stream).unwrap_or_default();
                let answer = match verb.as_str() {
                    "HEAD" => "404 Not Found\r\n",
                    "POST" => "202 Accepted\r\nLocation: /v2/tiny/blobs/uploads/1\r\n",
                    _ => {
                        named.fetch_or(verb == "PUT manifest", Ordering::AcqRel);
                        sends.store(true, Ordering::Release);
                        open.push(stream);
                        continue;
                    }
                };
                // Whoever has gone gets no answer.
                let _ = write!(stream, "HTTP/1.1 {answer}Content-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        Ok(Self { address, sends, named, stop })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which then closes everything.
        let _ = TcpStream::connect(&self.address);
    }
}

/// What a request does, when its head has come.
fn verb(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let kind = if first.contains("/manifests/") { " manifest" } else { "" };
    (!head.is_empty()).then(|| format!("{}{kind}", first.split(' ').next().unwrap_or_default()))
}
