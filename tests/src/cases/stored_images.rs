//! What is kept in stores of images, and what is removed: a user's own, and the site's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Desk;
use super::policy::Installation;
use super::privileged::registry;
use crate::command::{self, Output, wait_until};
use crate::environment::PATIENCE;
use crate::images::WITNESS;
use crate::tier::Check;

fn json(output: &Output) -> Result<Value, String> {
    serde_json::from_str(&output.stdout).map_err(|e| format!("no JSON: {e}\n{output}"))
}

/// The names in a directory; none where it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// An image stays as long as a run uses it, whatever is asked of `prune`, and `rm` says who that is. When the run was
/// killed it goes, and nothing of it is left. What is damaged is found.
///
/// # Errors
/// It is otherwise.
pub fn used_ones_stay(desk: &Desk) -> Check {
    let dir = desk.env.work_dir("used")?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let (source, cache) = (format!("docker://{address}/tiny:1"), dir.path().join("cache"));
    // Where Apptainer's users want images to be, so do we.
    let place = format!("APPTAINER_CACHEDIR={}", cache.display());
    let words = |words: &[&str]| -> Vec<String> {
        ["env", &place, "situla"].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let run = |more: &[&str]| desk.env.as_user(dir.path(), words(more));
    let store = cache.join("situla");
    let marks = || names(&store.join("uses")).iter().filter(|name| name.contains('.')).count();

    let running =
        command::start(desk.env.user_command(dir.path(), words(&["exec", &source, "sleep", "600"]))?)?;
    if !wait_until(PATIENCE, || marks() == 1) {
        return Err(format!("no mark of the run\n{:?}", running.finish_within(Duration::ZERO)).into());
    }
    let kept = (|| -> Check {
        let listed = json(&run(&["images", "--json"])?.success()?)?;
        if listed[0]["users"].as_array().map(Vec::len) != Some(1) || listed[0]["store"] != "user" {
            return Err(format!("{listed}").into());
        }
        for dry_run in [&["--dry-run"][..], &[]] {
            let pruned = json(&run(&[&["prune", "--all", "--json"], dry_run].concat())?.success()?)?;
            if pruned["in_use"][0]["manifest_digest"] != listed[0]["manifest_digest"] {
                return Err(format!("{pruned}").into());
            }
        }
        run(&["rm", &source])?.expect_code(125)?.expect_text("is in use by process")?;
        run(&["images", "--verify"])?.success()?.expect_text("yes")?;
        Ok(())
    })();
    let ended = running.finish_within(Duration::ZERO);
    kept?;
    ended?;

    // One that has ended by itself has taken its mark away; the killed one's counts for nothing.
    run(&["exec", &source, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    if marks() > 1 {
        return Err(format!("{:?}", names(&store.join("uses"))).into());
    }
    let image =
        json(&run(&["images", "--json"])?.success()?)?[0]["path"].as_str().unwrap_or_default().to_owned();
    let mut bytes = fs::read(&image)?;
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    fs::write(&image, bytes)?;
    let damaged = run(&["images", "--verify", "--json"])?.expect_code(125)?;
    if json(&damaged)?[0]["verified"] != false {
        return Err(damaged.to_string().into());
    }
    run(&["images", "--verify"])?.expect_code(125)?.expect_text("DAMAGED")?.expect_text(&image)?;
    run(&["prune", "--all"])?.success()?.expect_text("removed 1")?;
    for part in ["images", "refs", "uses", "leases", "tmp"] {
        let left = names(&store.join(part));
        if !left.is_empty() {
            return Err(format!("{part}: {left:?}").into());
        }
    }
    let missing = run(&["rm", "--json", &source])?.expect_code(125)?;
    if json(&missing)?["class"] != "image-missing" {
        return Err(missing.to_string().into());
    }
    Ok(())
}

/// What the site's store has is not fetched by a user, and the site names his store where he has not.
///
/// # Errors
/// It is fetched.
pub fn of_the_site(desk: &Desk) -> Check {
    let site = Installation::make(desk)?;
    let address = registry(desk, "up")?.stdout.trim().to_owned();
    registry(desk, "push")?;
    let source = format!("docker://{address}/tiny:1");
    let place = |name: &str| site.path().join(name).display().to_string();
    let (shared, users) = (place("shared"), place("users"));
    let settings = format!("[store]\nsite = \"{shared}\"\nuser = \"{users}/{{uid}}/images\"\n");
    site.dir.write("etc/situla/site.toml", &settings)?;
    command::run(command::words(["install", "-d", "-m", "1777", &users].map(String::from)), PATIENCE)?
        .success()?;
    let program = place("bin/situla");
    let run = |variables: &[&str], words: &[&str]| {
        let program = [program.as_str()];
        let all = ["env"].iter().chain(variables).chain(&program).chain(words);
        desk.env.as_user(site.path(), all)
    };
    let administrator = format!("SITULA_STORE={shared}");
    let put = json(&run(&[&administrator], &["pull", "--json", &source])?.success()?)?;
    let found = json(&run(&[], &["pull", "--json", &source])?.success()?)?;
    if put["was_present"] != false || found["was_present"] != true || found["store"] != "site" {
        return Err(format!("{put}\n{found}").into());
    }
    if found["path"] != put["path"] || found["rootfs_digest"] != put["rootfs_digest"] {
        return Err(format!("{put}\n{found}").into());
    }
    run(&[], &["exec", &source, "cat", WITNESS])?.success()?.expect_text("situla tiny image")?;
    run(&[], &["rm", &source])?.expect_code(125)?.expect_text("site's store")?;
    run(&[], &["prune", "--all"])?.success()?.expect_text("removed 0")?;
    let own = Path::new(&users).join(desk.env.uid()?.to_string()).join("images");
    if !names(&own.join("images")).is_empty() || !own.join("refs").is_dir() {
        return Err(format!("{:?}", names(&own)).into());
    }
    // Whoever may write there would choose what others run.
    command::run(command::words(["chmod", "o+w", &shared].map(String::from)), PATIENCE)?.success()?;
    run(&[], &["exec", &source, "true"])?.expect_code(125)?.expect_text("everybody may write")?;
    Ok(())
}
