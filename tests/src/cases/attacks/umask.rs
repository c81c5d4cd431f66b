//! What others may do with the files that are made for a user whose umask takes nothing away.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::Desk;
use crate::cases::policy::Installation;
use crate::cases::private_images::{Asks, Guarded, PASSWORD};
use crate::command::{self, wait_until};
use crate::environment::PATIENCE;
use crate::slow_proxy::{SlowProxy, UNLIMITED};
use crate::tier::Check;

/// Where what is made goes. Into all but the first two nobody else may look: logins, images, records, what is known of
/// instances, and extracted trees.
const PLACES: [&str; 8] = [
    "work",
    "shared",
    "home/.docker",
    "cache/situla",
    "state/situla/records",
    "state/situla/instances",
    "trees/situla-UID",
    "above",
];
const OPEN_TO_READERS: [&str; 3] = ["work", "shared", "above"];

/// How much of an image passes before the fetching process is looked at.
const A_PART: u64 = 20_000;

/// With an umask of 0 what is made is nobody else's to change: files that are asked for, stores of images, the site's too,
/// logins, records, what is known of instances, extracted trees, layers above an image, and what is there while an image
/// is fetched. Into what is private nobody else may look. The payload has the umask of its user.
///
/// # Errors
/// Others may write, or look.
pub fn open_umask(desk: &Desk) -> Check {
    let [usual, open] =
        ["022", "000"].map(|umask| made_with(desk, umask).map_err(|e| super::story(umask, &e)));
    let (usual, open) = (usual?, open?);
    // What was extracted has the modes that it has in the image, whatever the umask.
    if usual != open || usual.len() < 20 {
        let differing: Vec<_> = open.iter().filter(|(path, mode)| usual.get(*path) != Some(*mode)).collect();
        return Err(format!("of {} extracted these differ: {differing:?}", usual.len()).into());
    }
    Ok(())
}

/// Has everything made with a umask, and looks at it. Gives the modes of what was extracted.
fn made_with(desk: &Desk, umask: &str) -> Result<BTreeMap<PathBuf, u32>, libtest_mimic::Failed> {
    let site = Installation::make(desk)?;
    let shown = |name: &str| site.path().join(name).display().to_string();
    for name in ["work", "trees", "above", "home", "cache", "state"] {
        fs::create_dir(shown(name))?;
        chown(shown(name), Some(desk.env.uid()?), None)?;
    }
    let settings =
        format!("[rootfs]\ncache = \"{}\"\n[store]\nsite = \"{}\"\n", shown("trees"), shown("shared"));
    site.dir.write("etc/situla/site.toml", &settings)?;
    let server = Guarded::serve(desk.env.image_layout("tiny"), Asks::Password)?;
    let slow = SlowProxy::before(&server.address)?;
    let script = format!(
        "umask {umask}; cd {}; export HOME={} XDG_CACHE_HOME={} XDG_STATE_HOME={} PATH={}:$PATH; eval \"$1\"",
        shown("work"),
        shown("home"),
        shown("cache"),
        shown("state"),
        shown("bin")
    );
    let start = |line: &str| -> Result<command::Running, String> {
        command::start(desk.env.user_command(Path::new("/"), ["sh", "-c", &script, "sh", line])?)
    };
    let run = |line: &str| start(line)?.finish(PATIENCE)?.success();
    let (layout, address) = (desk.env.image_layout("tiny").display().to_string(), slow.address());
    run(&format!("printf '%s\\n' '{PASSWORD}' | situla login {address} -u me --password-stdin"))?;

    // While an image is fetched there are a lease and perhaps a file that has not got its name yet.
    let pull = format!("situla pull --store-only docker://{address}/tiny:1");
    slow.hold_after(A_PART);
    let fetching = start(&pull)?;
    let leases = Path::new(&shown("cache")).join("situla/leases");
    let is_leased = || fs::read_dir(&leases).is_ok_and(|mut leases| leases.next().is_some());
    let held = wait_until(PATIENCE, || is_leased() && slow.holds());
    let looked = look(desk, site.path());
    slow.pace(UNLIMITED);
    fetching.finish(PATIENCE)?.success()?;
    if !held {
        return Err("it was not seen fetching".into());
    }
    looked?;

    let image = "image.sqsh";
    for line in [
        format!("SITULA_STORE={} {pull} --for-all", shown("shared")),
        format!("situla convert oci:{layout}:1 {image} && situla convert {image} image.sif"),
        format!(
            "situla convert {image} oci:layout:one && situla convert {image} docker-archive:archive.tar:name:1"
        ),
        format!("situla convert {image} directory/"),
        format!("situla exec --record {image} true"),
        format!("situla exec --record --rootfs extract {image} true"),
        format!(
            "situla exec --overlay {} --bind /usr:/made/for/this {image} test -d /made/for/this/bin",
            shown("above")
        ),
        "situla exec --writable-tmpfs --bind /usr:/made/for/this directory test -d /made/for/this/bin"
            .to_owned(),
        format!("situla instance start --pid-file pid {image} open && situla instance stop --force open"),
    ] {
        run(&line)?;
    }
    let inside = run(&format!("situla exec {image} sh -c umask"))?.stdout;
    if inside.trim() != format!("0{umask}") {
        return Err(format!("the payload's umask is {inside}").into());
    }
    look(desk, site.path()).and_then(|modes| {
        let missing = PLACES
            .map(|name| site.path().join(of_user(desk, name)))
            .into_iter()
            .find(|place| !place.exists());
        missing.map_or(Ok(modes), |place| Err(format!("nothing was made at {}", place.display()).into()))
    })
}

fn of_user(desk: &Desk, name: &str) -> String {
    name.replace("UID", &desk.env.uid().unwrap_or_default().to_string())
}

/// Fails where others may write to something, or look into what is private. Gives the modes of what was extracted.
fn look(desk: &Desk, site: &Path) -> Result<BTreeMap<PathBuf, u32>, libtest_mimic::Failed> {
    let trees = of_user(desk, "trees/situla-UID/trees");
    let mut extracted = BTreeMap::new();
    for name in PLACES.map(|name| of_user(desk, name)) {
        let place = site.join(&name);
        let Ok(metadata) = fs::symlink_metadata(&place) else { continue };
        let mode = metadata.mode() & 0o7777;
        if !OPEN_TO_READERS.contains(&name.as_str()) && mode & 0o077 != 0 {
            return Err(format!("others may look into {}: {mode:o}", place.display()).into());
        }
        let mut pending = vec![place];
        while let Some(path) = pending.pop() {
            let metadata = fs::symlink_metadata(&path)?;
            let (below, mode) =
                (path.strip_prefix(site).unwrap_or(&path).to_owned(), metadata.mode() & 0o7777);
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    pending.push(entry?.path());
                }
            }
            let is_in = |directory: &str| below.starts_with(directory) && below != Path::new(directory);
            if is_in("work/directory") || is_in(&trees) {
                extracted.insert(below, mode);
            } else if !metadata.is_symlink() && mode & 0o022 != 0 {
                return Err(format!("others may write to {}: {mode:o}", path.display()).into());
            }
        }
    }
    Ok(extracted)
}
