//! The site's policy, seen from outside: what it forbids does not start and is not fetched, and its verdict
//! stands in the plan.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use super::Desk;
use super::privileged::registry;
use crate::command::{self, Output};
use crate::environment::{PATIENCE, WorkDir};
use crate::images::WITNESS;
use crate::tier::Check;

/// An installation of its own, with a policy that no other case sees, and an empty store.
pub(super) struct Installation<'a> {
    desk: &'a Desk,
    pub(super) dir: WorkDir,
}

impl<'a> Installation<'a> {
    pub(super) fn make(desk: &'a Desk) -> Result<Self, String> {
        let dir = desk.env.work_dir("site")?;
        let io = |e: std::io::Error| format!("{}: {e}", dir.path().display());
        for part in ["bin", "etc/situla"] {
            fs::create_dir_all(dir.path().join(part)).map_err(io)?;
        }
        fs::copy(desk.env.situla(), dir.path().join("bin/situla")).map_err(io)?;
        Ok(Self { desk, dir })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn set(&self, policy: &str) -> Result<(), String> {
        self.dir.write("etc/situla/policy.toml", policy).map(drop)
    }

    fn situla(&self, words: &[&str]) -> Result<Output, String> {
        let program = self.path().join("bin/situla").display().to_string();
        let cache = format!("XDG_CACHE_HOME={}", self.path().join("cache").display());
        self.desk.env.as_user(self.path(), ["env", &cache, &program].iter().chain(words))
    }

    /// The images in the store.
    fn stored(&self) -> usize {
        fs::read_dir(self.path().join("cache/situla/images")).map_or(0, Iterator::count)
    }
}

/// Counts the connections that arrive, and closes each.
struct Counting {
    address: String,
    count: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Counting {
    fn listen() -> Result<Self, String> {
        let io = |e: std::io::Error| format!("the counting listener: {e}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let (count, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&count), Arc::clone(&stop));
        thread::spawn(move || {
            for _connection in listener.incoming() {
                if shared.1.load(Ordering::Acquire) {
                    break;
                }
                shared.0.fetch_add(1, Ordering::AcqRel);
            }
        });
        Ok(Self { address, count, stop })
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

/// A registry that the policy forbids is not even asked, by no command that would fetch.
///
/// # Errors
/// It is asked, or the refusal does not name the rule.
pub fn forbidden_registry(desk: &Desk) -> Check {
    let site = Installation::make(desk)?;
    let server = Counting::listen()?;
    let (address, image) = (server.address.as_str(), format!("docker://{}/demo/a:1", server.address));
    let sif = image.replace("docker://", "oras://");
    for (policy, rule) in [
        ("allow = [\"registry.example\"]".to_owned(), "registry.allow"),
        ("allow = []".to_owned(), "registry.allow"),
        (format!("allow = [\"{address}\"]\ndeny = [\"{address}/demo/*\"]"), "registry.deny"),
        ("require-digest = true".to_owned(), "registry.require-digest"),
    ] {
        site.set(&format!("[registry]\n{policy}\n"))?;
        for words in [
            &["exec", &image, "true"][..],
            &["run", &image],
            &["plan", &image, "true"],
            &["pull", &image],
            &["exec", &sif, "true"],
            &["plan", &sif, "true"],
            &["pull", &sif],
            &["pull", &sif, "-o", "a.sif"],
            &["convert", &sif, "a.sqsh"],
            &["push", &sif, "oras://registry.example/a:1"],
            // What comes from there does not go elsewhere either.
            &["push", &image, "docker://registry.example/a:1"],
        ] {
            site.situla(words)?.expect_code(125)?.expect_text(rule)?;
        }
    }
    if server.count() != 0 || site.path().join("cache/situla/images").exists() {
        return Err(format!("{} connections to a forbidden registry", server.count()).into());
    }
    // The same image, allowed: now the registry is asked, so the count above means something.
    site.set(&format!("[registry]\nallow = [\"{address}/demo/*\"]\n"))?;
    site.situla(&["exec", &image, "true"])?.expect_code(125)?;
    if server.count() == 0 {
        return Err("an allowed registry was not asked".into());
    }
    Ok(())
}

/// What the policy says about files and options: `plan` shows the verdict, a denied run does not start.
///
/// # Errors
/// It is otherwise.
pub fn verdict_in_the_plan(desk: &Desk) -> Check {
    let site = Installation::make(desk)?;
    let image = desk.images.path("tiny.sqsh");
    let images = Path::new(&image).parent().ok_or("the image has no directory")?.display().to_string();
    let marker = ["touch", "ran"];
    for (rules, options, keys) in [
        (format!("[files]\ndeny = [\"{images}\"]"), &[][..], &["files.deny"][..]),
        ("[files]\nallow = [\"/no/such\"]".to_owned(), &[], &["files.allow"]),
        ("[files]\nrequire-digest = true".to_owned(), &[], &["files.require-digest"]),
        ("[options]\nrefuse = [\"env\"]".to_owned(), &["--env", "A=1"], &["options.refuse"]),
        // All broken rules, not the first alone.
        (
            format!("[files]\ndeny = [\"{images}\"]\n[options]\nrefuse = [\"bind:/etc\"]"),
            &["--bind", "/etc:/mnt"],
            &["files.deny", "options.refuse"],
        ),
        // A rule that this run does not break.
        ("[options]\nrefuse = [\"env\"]".to_owned(), &[], &[]),
    ] {
        for mode in ["enforce", "warn", "audit"] {
            site.set(&format!("mode = \"{mode}\"\n{rules}\n"))?;
            let words = |command| [&[command], options, &[image.as_str()][..], &marker].concat();
            let (plan, exec) = (site.situla(&words("plan"))?, site.situla(&words("exec"))?);
            let ran = fs::remove_file(site.path().join("ran")).is_ok();
            let denied = mode == "enforce" && !keys.is_empty();
            if ran == denied {
                return Err(format!("it ran: {ran}\n{exec}").into());
            }
            if denied {
                for output in [plan, exec] {
                    let output = output.expect_code(125)?;
                    if let Some(key) = keys.iter().find(|key| !output.stderr.contains(**key)) {
                        return Err(format!("nothing of {key}\n{output}").into());
                    }
                }
                continue;
            }
            let decision = if mode == "warn" && !keys.is_empty() { "warn" } else { "allow" };
            verdict(&plan.success()?, decision, keys)?;
            let shown = exec.success()?;
            // `warn` tells the user, `audit` does not.
            if keys.iter().any(|key| shown.stderr.contains(key) != (mode == "warn")) {
                return Err(shown.to_string().into());
            }
        }
    }
    Ok(())
}

/// Who enters an instance is judged by its image, also where the root is a tree that was extracted from it; and that
/// is the image that is listed.
///
/// # Errors
/// He is judged by something else.
pub fn entered_instances(desk: &Desk) -> Check {
    let site = Installation::make(desk)?;
    let image = desk.images.path("tiny.sqsh");
    let images = Path::new(&image).parent().ok_or("the image has no directory")?.display().to_string();
    let trees = site.path().join("trees").display().to_string();
    site.dir.write("etc/situla/site.toml", &format!("[rootfs]\ncache = \"{trees}\"\n"))?;
    command::run(command::words(["install", "-d", "-m", "1777", &trees].map(String::from)), PATIENCE)?
        .success()?;
    let (allowed, denied) =
        (format!("[files]\nallow = [\"{images}\"]\n"), format!("[files]\nallow = [\"{trees}\"]\n"));
    for way in ["fuse", "extract"] {
        site.set(&allowed)?;
        site.situla(&["instance", "start", "--rootfs", way, &image, "judged"])?.success()?;
        let listed = site.situla(&["instance", "list", "--json"])?.success()?;
        let value: Value = serde_json::from_str(&listed.stdout).map_err(|e| format!("{e}\n{listed}"))?;
        let entered = site.situla(&["instance", "exec", "judged", "cat", WITNESS])?;
        site.set(&denied)?;
        let refused = site.situla(&["instance", "exec", "judged", "cat", WITNESS])?;
        site.situla(&["instance", "stop", "judged"])?.success()?;
        entered.success()?.expect_text("situla tiny image")?;
        refused.expect_code(125)?.expect_text("files.allow")?;
        if value["instances"][0]["image_path"] != image {
            return Err(format!("{way}: {value}").into());
        }
    }
    Ok(())
}

/// The plan on standard output holds this decision, for reasons of exactly these rules.
fn verdict(plan: &Output, decision: &str, keys: &[&str]) -> Result<(), String> {
    let value: Value = serde_json::from_str(&plan.stdout).map_err(|e| format!("{e}\n{plan}"))?;
    let verdict = &value["verdict"];
    let reasons: Vec<&Value> = verdict["reasons"].as_array().into_iter().flatten().collect();
    let found: Vec<&str> = reasons.iter().filter_map(|reason| reason["rule"]["key"].as_str()).collect();
    let told = reasons.iter().all(|reason| {
        ["message", "remedy"].iter().all(|part| reason[*part].as_str().is_some_and(|text| !text.is_empty()))
    });
    if verdict["decision"] == decision && found == keys && told {
        Ok(())
    } else {
        Err(format!("expected {decision} because of {keys:?}: {verdict}"))
    }
}

/// With a real registry: what is allowed is fetched and runs, its neighbour is not; a digest satisfies the
/// rule that asks for one.
///
/// # Errors
/// It is otherwise.
pub fn allowed_registry(desk: &Desk) -> Check {
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let site = Installation::make(desk)?;
    let (tiny, demo) = (format!("docker://{address}/tiny:1"), format!("docker://{address}/demo:1"));
    site.set(&format!("[registry]\nallow = [\"{address}/tiny\"]\n"))?;
    site.situla(&["exec", &demo, "true"])?.expect_code(125)?.expect_text("registry.allow")?;
    if site.stored() != 0 {
        return Err("a forbidden image is in the store".into());
    }
    site.situla(&["exec", &tiny, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    let pulled = site.situla(&["pull", "--json", "--store-only", &tiny])?.success()?;
    let pulled: Value = serde_json::from_str(&pulled.stdout).map_err(|e| format!("{e}\n{pulled}"))?;
    let digest = pulled["manifest_digest"].as_str().ok_or("no manifest digest")?;
    site.set(&format!("[registry]\nallow = [\"{address}/tiny\"]\nrequire-digest = true\n"))?;
    site.situla(&["exec", &tiny, "true"])?.expect_code(125)?.expect_text("registry.require-digest")?;
    let pinned = format!("docker://{address}/tiny@{digest}");
    site.situla(&["exec", &pinned, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    verdict(&site.situla(&["plan", &pinned, "true"])?.success()?, "allow", &[])?;
    Ok(())
}
