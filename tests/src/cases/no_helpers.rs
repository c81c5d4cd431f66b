//! Images are made by our own code: no program is started for it. And a container is started without waiting for a disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::Desk;
use super::privileged::registry;
use crate::command;
use crate::environment::PATIENCE;
use crate::tier::{self, Check, Skip};

pub(super) const STRACE: &str = "/usr/bin/strace";

/// Needs a tracer.
///
/// # Errors
/// It is not there, or may not trace.
pub fn tracer() -> Result<(), Skip> {
    tier::succeeds(STRACE, &["-f", "-o", "/dev/null", "/bin/true"])
        .map_err(|why| Skip(format!("needs strace: {why}")))
}

/// Calls that start a process or a thread, execute a program, make a file, or lock one.
const WATCHED: &str = "trace=execve,execveat,clone,clone3,fork,vfork,open,openat,creat,mkdir,mkdirat,mknod,mknodat,\
                       symlink,symlinkat,link,linkat,rename,renameat,renameat2,flock,fcntl";

/// Pulls and conversions of all kinds execute nothing but the program itself, need no search path, and make no
/// file but the one that was asked for and those of the store: nothing is extracted, and what has to be decompressed or fetched
/// first has no name. None locks a file, and where an image is
/// present nobody claims the right to make it.
///
/// # Errors
/// One starts something, makes other files, or fails.
pub fn nothing_is_started(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("alone")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let situla = desk.env.situla().display().to_string();
    let tree = desk.env.image_tree("tiny").display().to_string();
    let layout = format!("oci:{}:1", desk.env.image_layout("tiny").display());
    let several_layers = format!("oci:{}:1", desk.env.image_layout("demo").display());
    let source = format!("docker://{address}/tiny:1");
    let sif = format!("oras://{address}/alone-{}:1", std::process::id());
    let script = format!(
        "tar -C {} -czf packed.tar.gz . && situla convert --quiet {layout} docker-archive:saved.tar:tiny:1 && gzip saved.tar &&
         situla push --quiet {} {sif}",
        desk.env.image_layout("tiny").display(),
        desk.images.path("tiny.sif")
    );
    desk.env.as_user(dir.path(), ["sh", "-c", &script])?.success()?;
    let first = ["oci-archive:packed.tar.gz", "docker-archive:saved.tar.gz", &sif];
    let mut leased = 0;
    for words in [
        &["convert", &tree, "a.sqsh"][..],
        &["convert", &tree, "a.sif"],
        &["convert", &layout, "b.sif"],
        &["convert", &several_layers, "f.sqsh"],
        &["convert", "b.sif", "c.sqsh"],
        &["convert", "c.sqsh", "d.sif"],
        &["convert", first[0], "g.sqsh"],
        &["convert", first[1], "h.sqsh"],
        &["convert", first[2], "i.sqsh"],
        &["pull", "--store-only", &source],
        &["pull", &source, "-o", "e.sqsh"],
        &["pull", &source, "-o", "e.sif"],
        &["inspect", "--hash", "e.sif"],
        &["images"],
    ] {
        let seen = traced(desk, dir.path(), &[&[situla.as_str()], words].concat())?;
        if seen.started != [situla.clone()] || seen.n_processes > 0 || !seen.locks.is_empty() {
            return Err(format!("situla {words:?}: {seen:?}").into());
        }
        leased += usize::from(seen.has_leased());
        let target = words.last().filter(|word| word.contains('.') && !word.contains('/'));
        let expected =
            |path: &&PathBuf| is_target(dir.path(), target.copied(), path) || of_store(dir.path(), path);
        if let Some(other) = seen.made.iter().find(|path| !expected(path)) {
            return Err(format!("situla {words:?} made {}: {:#?}", other.display(), seen.made).into());
        }
        // The other one is the target, until it is complete.
        let n_unnamed = seen.made.iter().filter(|path| *path == dir.path()).count();
        if words.get(1).is_some_and(|word| first.contains(word)) && n_unnamed != 2 {
            return Err(
                format!("situla {words:?} made {n_unnamed} files without a name: {:#?}", seen.made).into()
            );
        }
        if target.is_some_and(|name| words[0] != "inspect" && !seen.made.contains(&dir.path().join(name))) {
            return Err(format!("the tracer did not see what situla {words:?} made: {:#?}", seen.made).into());
        }
    }
    // The first pull alone had to make it; the other two found it.
    if leased != 1 {
        return Err(format!("{leased} pulls have claimed the right to make the image").into());
    }
    for words in [&["pull", "--store-only", &source][..], &["exec", &source, "true"]] {
        let seen = traced(desk, dir.path(), &[&[situla.as_str()], words].concat())?;
        if seen.has_leased() || !seen.locks.is_empty() {
            return Err(format!("situla {words:?}, of an image that is present: {seen:?}").into());
        }
    }
    let seen = traced(desk, dir.path(), &["/usr/bin/flock", "lock", "/bin/true"])?;
    if seen.locks.is_empty() {
        return Err(format!("the tracer sees no locks: {seen:?}").into());
    }
    // The tracer does see what is started by what is started, and what that makes.
    let script = "/bin/tar --version; /bin/mkdir there; : >file; /bin/true";
    let seen = traced(desk, dir.path(), &["/bin/sh", "-c", script])?;
    let made = ["there", "file"].map(|name| dir.path().join(name));
    if seen.started != ["/bin/sh", "/bin/tar", "/bin/mkdir", "/bin/true"]
        || seen.n_processes == 0
        || !made.iter().all(|path| seen.made.contains(path))
    {
        return Err(format!("the tracer saw {seen:?}").into());
    }
    Ok(())
}

/// A file is hashed once: as long as it does not change, its digest is known without its data being read, and a Plan says it;
/// before that, and once it has changed, a Plan says that nobody has verified it.
///
/// # Errors
/// It is not.
pub fn a_file_is_hashed_once(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("hashed")?;
    let image = dir.path().join("a.sqsh");
    let name = image.display().to_string();
    desk.env.as_user(dir.path(), ["cp", &desk.images.path("tiny.sqsh"), &name])?.success()?;
    let size = fs::metadata(&image)?.len();
    let cache = format!("XDG_CACHE_HOME={}", dir.path().join("cache").display());
    let planned = || -> Result<Value, libtest_mimic::Failed> {
        let words = ["env", &cache, "situla", "plan", &name, "true"];
        let plan = desk.env.as_user(dir.path(), words)?.success()?;
        Ok(serde_json::from_str::<Value>(&plan.stdout)?["image"]["rootfs"].clone())
    };
    let trace = dir.path().join("trace").display().to_string();
    // Its digest, and how much of the file was read for that.
    let hashed = || -> Result<(Value, u64), libtest_mimic::Failed> {
        let calls = "trace=read,pread64,readv,preadv,preadv2,mmap";
        let strace = [STRACE, "-f", "-qq", "-y", "-e", calls, "-o", &trace];
        let words = ["env", &cache].into_iter().chain(strace);
        let words = words.chain(["situla", "inspect", "--hash", "--json", &name]);
        let told = command::run(desk.env.user_command(dir.path(), words)?, PATIENCE)?.success()?;
        let of_image = format!("<{name}>");
        let text = fs::read_to_string(&trace)?;
        let lines = text.lines().filter(|line| line.contains(&of_image));
        let read = lines.map(|line| match line.contains("mmap(") {
            true => size,
            false => line.rsplit(" = ").next().and_then(|n| n.trim().parse().ok()).unwrap_or(0),
        });
        Ok((serde_json::from_str::<Value>(&told.stdout)?["rootfs_digest"].clone(), read.sum()))
    };
    let unverified = |story: &str| -> Check {
        let plan = planned()?;
        if plan["state"] == "unverified" { Ok(()) } else { Err(format!("{story}: {plan}").into()) }
    };
    unverified("before it was hashed")?;
    // A change right after the last one might not show in the times of a file.
    let settled = || {
        let age = fs::metadata(&image).and_then(|meta| {
            let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
            SystemTime::now().duration_since(changed).map_err(std::io::Error::other)
        });
        age.is_ok_and(|age| age > Duration::from_secs(4))
    };
    if !command::wait_until(PATIENCE, settled) {
        return Err("the file does not grow old".into());
    }
    let (digest, read) = hashed()?;
    if read < size {
        return Err(format!("of {size} bytes it read {read}").into());
    }
    let (again, read) = hashed()?;
    if again != digest || read > size / 4 {
        return Err(format!("the second time it read {read} of {size} bytes: {digest}, {again}").into());
    }
    let plan = planned()?;
    if !digest.is_string() || !plan.to_string().contains(&digest.to_string()) {
        return Err(format!("{digest} was found, and the plan says {plan}").into());
    }
    desk.env.as_user(dir.path(), ["touch", &name])?.success()?;
    unverified("after it was touched")
}

/// Calls that wait until something is on a disk; and those that open files, of which flags can ask for it.
const SYNCING: &str = "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync,open,openat,openat2";

/// No process of a start, by either command line or as the plugin has it, with a record and without, waits for a disk.
///
/// # Errors
/// One does, or the tracer does not see it where one must.
pub fn a_start_syncs_nothing(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("syncs")?;
    let situla = desk.env.situla().display().to_string();
    let apptainer = desk.env.situla().with_file_name("apptainer").display().to_string();
    let state = format!("XDG_STATE_HOME={}", dir.path().join("state").display());
    let trace = dir.path().join("trace").display().to_string();
    let around = ["/usr/bin/env", &state, STRACE, "-f", "-qq", "-e", SYNCING, "-o", &trace];
    // What was traced: how many calls there were at all, and those that wait.
    let syncs = |words: &[&str]| -> Result<(usize, Vec<String>), String> {
        let all = around.into_iter().chain(words.iter().copied());
        command::run(desk.env.user_command(dir.path(), all)?, PATIENCE)?.success()?;
        let text = fs::read_to_string(&trace).map_err(|e| format!("{trace}: {e}"))?;
        let waits =
            |line: &&str| !line.contains("open") || line.contains("O_SYNC") || line.contains("O_DSYNC");
        // A process that goes on when strace ends is left in the middle of a call that it does not name: `???(`.
        let calls = || text.lines().filter(|line| line.contains('(') && !line.contains("???("));
        Ok((calls().count(), calls().filter(waits).map(str::to_owned).collect()))
    };
    let [sqsh, sif] = ["tiny.sqsh", "tiny.sif"].map(|name| desk.images.path(name));
    for image in [desk.env.image_tree("tiny").display().to_string(), sqsh.clone(), sif] {
        let task_image = format!("SITULA_TASK_IMAGE={image}");
        let ways: [&[&str]; 6] = [
            &[&situla, "exec", &image, "true"],
            &[&situla, "exec", "--record", &image, "true"],
            &[&situla, "exec", "--pid", "--writable-tmpfs", "--record", &image, "true"],
            &[&apptainer, "exec", &image, "true"],
            &[&apptainer, "exec", "--record", &image, "true"],
            &["/usr/bin/env", "SITULA_TASK_PROGRAM=/bin/true", &task_image, &situla],
        ];
        for way in ways {
            let (n_calls, waiting) = syncs(way)?;
            if n_calls == 0 || !waiting.is_empty() {
                return Err(format!("{way:?}: of {n_calls} calls these wait: {waiting:#?}").into());
            }
        }
    }
    // Records were written meanwhile, and an image that is made does wait.
    if !dir.path().join("state/situla/records").is_dir() {
        return Err("there are no records".into());
    }
    let (_, waiting) = syncs(&[&situla, "convert", &sqsh, "made.sif"])?;
    if !waiting.iter().any(|line| line.contains("sync(")) {
        return Err(format!("the tracer sees nothing: {waiting:#?}").into());
    }
    Ok(())
}

/// The target, under its name or without one yet, or beside it under another until it is complete.
fn is_target(dir: &Path, target: Option<&str>, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    target.is_some_and(|target| path == dir || (path.parent() == Some(dir) && name.contains(target)))
}

/// A directory of the store, or a file of it: an image, its record, a reference, a lease, each by its digest.
fn of_store(dir: &Path, path: &Path) -> bool {
    let Ok(inner) = path.strip_prefix(dir.join("cache")) else { return false };
    let parts: Vec<String> = inner.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
    match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["images" | "refs" | "leases" | "tmp" | "uses" | "identities"] => true,
        // Before it has its name, a reference that replaces one has another.
        ["refs", name] => name.ends_with(".json") || name.starts_with(".small."),
        ["identities", name] => name.ends_with(".json") || name.starts_with(".identity-"),
        // One of a moment, by which a client of NFS forgets what it knew of the directory.
        ["images" | "uses", ".probe"] => true,
        ["images" | "leases" | "tmp" | "uses", name] => name.starts_with("sha256-"),
        _ => false,
    }
}

/// What a command did, and its children.
#[derive(Debug)]
pub(super) struct Traced {
    /// What they tried to execute.
    pub(super) started: Vec<String>,
    /// How many processes they made; threads do not count.
    pub(super) n_processes: usize,
    /// Files, directories and links that they made.
    pub(super) made: Vec<PathBuf>,
    /// Calls by which they locked files.
    locks: Vec<String>,
}

impl Traced {
    /// Whether somebody has claimed the right to make an image.
    fn has_leased(&self) -> bool {
        self.made.iter().any(|path| path.parent().is_some_and(|parent| parent.ends_with("leases")))
    }
}

/// Runs a command as the user without a search path; its caches are below `dir`.
pub(super) fn traced(desk: &Desk, dir: &Path, words: &[&str]) -> Result<Traced, String> {
    let trace = dir.join("trace").display().to_string();
    let home = format!("HOME={}", desk.env.home()?.display());
    let cache = format!("XDG_CACHE_HOME={}", dir.join("cache").display());
    // -y: directories that paths are relative to are shown by name; whole strings.
    let around = ["/usr/bin/env", "-i", &home, &cache, STRACE, "-f", "-qq", "-y", "-s", "4096"];
    let around = around.into_iter().chain(["-e", WATCHED, "-o", &trace]);
    let command = desk.env.user_command(dir, around.chain(words.iter().copied()))?;
    command::run(command, PATIENCE)?.success()?;
    let text = fs::read_to_string(&trace).map_err(|e| format!("{trace}: {e}"))?;
    let _ = fs::remove_file(&trace);
    let mut seen = Traced { started: Vec::new(), n_processes: 0, made: Vec::new(), locks: Vec::new() };
    for line in text.lines() {
        // 1234 execve("/bin/true", ["/bin/true"], 0x7ffc0 /* 2 vars */) = 0
        let Some((call, rest)) =
            line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').split_once('(')
        else {
            continue;
        };
        let mut quoted = rest.split('"').skip(1).step_by(2);
        match call {
            "execve" | "execveat" => seen.started.extend(quoted.next().map(str::to_owned)),
            "flock" => seen.locks.push(line.to_owned()),
            "fcntl" if ["F_SETLK", "F_OFD_SETLK"].iter().any(|lock| rest.contains(lock)) => {
                seen.locks.push(line.to_owned());
            }
            "fcntl" => {}
            "clone" | "clone3" if rest.contains("CLONE_THREAD") => {}
            "clone" | "clone3" | "fork" | "vfork" => seen.n_processes += 1,
            "open" | "openat" if !["O_CREAT", "O_TMPFILE"].iter().any(|flag| rest.contains(flag)) => {}
            _ if rest.contains(" = -1 ") => {}
            // The last path is the new one; in front of it may be the directory: 7</some/where>, "name"
            _ => {
                let Some(path) = quoted.last() else { continue };
                let before = rest.rsplit_once(&format!("\"{path}\"")).map_or("", |(before, _)| before);
                let base =
                    before.rsplit_once('<').and_then(|(_, b)| b.split('>').next()).map_or(dir, Path::new);
                seen.made.push(base.join(path));
            }
        }
    }
    Ok(seen)
}
