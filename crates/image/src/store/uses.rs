//! Who runs what: a file for each process that uses an image, and one with the time of the last use.
//!
//! | name in `uses/` | content |
//! |---|---|
//! | `STEM` | empty; its modification time is that of the last use, give or take an hour |
//! | `STEM.PID.STARTED.REALM.HOST` | empty; the process that uses the image |
//!
//! A run takes no lock. It makes its mark *before* it opens the image; whoever removes an image takes it out of its
//! place first and then looks for marks. So either he sees the mark, or the run misses the image and has it made
//! anew.
//!
//! Whether a process lives is known on its own machine alone. There a mark lasts as long as the process, and one
//! that was left by a kill counts for nothing. For other machines it counts until [`ABANDONED_AFTER`]: nobody renews
//! it, since a job that Slurm has suspended could not, and since a process that has become the payload is no longer
//! ours. Ages are told by the clock of the file system.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW};

use super::records::list_dir;
use super::shelf::{manifest_of, placed};
use super::{Store, StoreError};
use crate::process_identity::{boot_of, host_name, realm_name, start_time};

/// How long a mark of another machine counts: longer than jobs run, since a job that lost its image would fail. It is
/// room on a disk that is lost until then, after a node has died.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(90 * 86400);

/// The time of the last use is not written again within this.
const LAST_USE_STEP: Duration = Duration::from_secs(3600);

/// Bytes of a host's name in a mark: file names end at 255.
const MAX_HOST: usize = 56;

/// The mark of a run; taken away when it is dropped by the process that has made it.
#[derive(Debug)]
pub struct UseMark {
    path: PathBuf,
    pid: u32,
}

impl UseMark {
    /// Marks that this process uses `image`, which is to be opened afterwards. `None` where that is no image of a
    /// store that can be written: in the site's store its administrator sees to what is used. A mark that cannot be
    /// made for another reason, such as a full disk, is missing too: it must not fail a run.
    #[must_use]
    pub fn make(image: &Path) -> Option<Self> {
        let (store, stem) = placed(image)?;
        let pid = std::process::id();
        let name = Mark::name(stem, pid, start_time(pid)?, realm_name(), &host_name());
        let uses = store.join("uses");
        let path = uses.join(name);
        // Any directory of this shape is taken for a store: nothing is written where another user could lead us elsewhere.
        let place = fs::symlink_metadata(&uses).ok()?;
        let is_own = place.uid() == rustix::process::geteuid().as_raw() && place.mode() & 0o022 == 0;
        if !place.is_dir() || !is_own {
            return None;
        }
        drop(open_mark(&path).ok()?);
        let mark = UseMark { path, pid };
        note_use(&uses.join(stem));
        Some(mark)
    }
}

impl Drop for UseMark {
    fn drop(&mut self) {
        // A forked child has this as well, and the process goes on.
        if std::process::id() == self.pid {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes down that an image is used now; the order of pruning suffers where that fails, and nothing else.
fn note_use(path: &Path) {
    let is_recent = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|last| SystemTime::now().duration_since(last).is_ok_and(|age| age < LAST_USE_STEP));
    if is_recent {
        return;
    }
    if let Ok(file) = open_mark(path) {
        // By the clock of the file server, not of this machine.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = rustix::fs::futimens(&file, &times);
    }
}

/// Opens a mark, making it if need be: never through a link, and without waiting, should there be a FIFO.
fn open_mark(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}

/// A process that uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name of its machine.
    pub host: String,
    /// Its number there.
    pub pid: u32,
}

/// What the name of a mark says.
#[derive(Debug, PartialEq, Eq)]
struct Mark<'a> {
    stem: &'a str,
    pid: u32,
    started: u64,
    realm: &'a str,
    host: &'a str,
}

impl<'a> Mark<'a> {
    fn name(stem: &str, pid: u32, started: u64, realm: &str, host: &str) -> String {
        let mut host = host.replace('/', "_");
        while host.len() > MAX_HOST {
            host.pop();
        }
        format!("{stem}.{pid}.{started}.{realm}.{host}")
    }

    fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(5, '.');
        let stem = parts.next().filter(|stem| manifest_of(stem).is_some())?;
        let pid = parts.next()?.parse().ok()?;
        let started = parts.next()?.parse().ok()?;
        Some(Mark { stem, pid, started, realm: parts.next()?, host: parts.next()? })
    }

    /// Whether its process may live; `age` is that of the mark.
    fn counts(&self, age: Duration, here: &Here) -> bool {
        if self.realm == here.realm {
            return start_time(self.pid) == Some(self.started);
        }
        // This machine has been started anew since. Some machines are all called so.
        let was_here = self.host == here.host && boot_of(self.realm) != boot_of(here.realm);
        let is_dead = was_here && !matches!(self.host, "localhost" | "");
        !is_dead && age < ABANDONED_AFTER
    }
}

/// What tells processes of this machine from others.
struct Here<'a> {
    realm: &'a str,
    host: &'a str,
}

/// What `uses/` says.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Processes that may use an image, by its stem.
    pub(super) users: BTreeMap<String, Vec<User>>,
    /// When it was used last.
    pub(super) last: BTreeMap<String, SystemTime>,
    /// Marks that count for nothing.
    pub(super) dead: Vec<PathBuf>,
    /// The present, by the clock of the file system.
    pub(super) now: Option<SystemTime>,
}

impl Uses {
    pub(super) fn read(store: &Path) -> Result<Self, StoreError> {
        let uses = store.join("uses");
        let now = probe(&uses);
        let present = now.unwrap_or_else(SystemTime::now);
        let host: String = host_name();
        let here = Here { realm: realm_name(), host: &host };
        let mut found = Uses { now, ..Uses::default() };
        for name in list_dir(&uses)? {
            let path = uses.join(&name);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            // It may have ended just now.
            let Ok(modified) = modified else { continue };
            if manifest_of(&name).is_some() {
                found.last.insert(name, modified);
                continue;
            }
            let Some(mark) = Mark::parse(&name) else { continue };
            if mark.counts(present.duration_since(modified).unwrap_or_default(), &here) {
                let user = User { host: mark.host.to_owned(), pid: mark.pid };
                found.users.entry(mark.stem.to_owned()).or_default().push(user);
            } else {
                found.dead.push(path);
            }
        }
        Ok(found)
    }
}

/// Makes a file and removes it again; gives its time, which is the present by the clock of the file system. A client of
/// NFS that has changed a directory itself forgets what it remembered of it, so that afterwards it sees what
/// others have made and removed there. All use one name, so that the next one removes what a killed process has left; times
/// are those of the open file.
fn probe(directory: &Path) -> Option<SystemTime> {
    let path = directory.join(".probe");
    // Through no link, and without waiting, should there be a FIFO.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(&path);
    let modified = made.and_then(|file: File| file.metadata()).and_then(|metadata| metadata.modified());
    let _: io::Result<()> = fs::remove_file(&path);
    modified.ok()
}

impl Store {
    /// Makes sure that what others have just published is seen.
    pub(super) fn see_others_files(&self) {
        let _ = probe(&self.own.images());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use situla_oci::Digest;

    use super::*;

    fn stem() -> String {
        format!("{}-0123456789ab", Digest::sha256(b"m").file_stem())
    }

    #[test]
    fn a_mark_is_made_through_no_link() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (store, outside) = (dir.path().join("store"), dir.path().join("outside"));
        fs::create_dir_all(store.join("images")).unwrap();
        fs::create_dir(&outside).unwrap();
        let image = store.join(format!("images/{}.sqsh", stem()));
        fs::write(&image, b"x").unwrap();
        symlink(&outside, store.join("uses")).unwrap();
        assert!(UseMark::make(&image).is_none());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_file(store.join("uses")).unwrap();
        fs::create_dir(store.join("uses")).unwrap();
        fs::set_permissions(store.join("uses"), fs::Permissions::from_mode(0o700)).unwrap();
        // The time of the last use is no way out either.
        symlink(outside.join("made"), store.join("uses").join(stem())).unwrap();
        assert!(UseMark::make(&image).is_some());
        assert!(!outside.join("made").exists());
        fs::set_permissions(store.join("uses"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(UseMark::make(&image).is_none());
    }

    #[test]
    fn a_fifo_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let uses = dir.path().join("uses");
        fs::create_dir(&uses).unwrap();
        let made = std::process::Command::new("mkfifo").arg(uses.join(".probe")).status().unwrap();
        assert!(made.success());
        let (sender, receiver) = std::sync::mpsc::channel();
        let store = dir.path().to_owned();
        std::thread::spawn(move || sender.send(Uses::read(&store).is_ok()));
        assert!(receiver.recv_timeout(Duration::from_secs(20)).unwrap());
        assert!(Uses::read(dir.path()).unwrap().now.is_some(), "it is out of the way");
    }

    #[test]
    fn marks_have_names_that_fit_and_can_be_read() {
        let long = format!("sha512-{}-0123456789ab", "a".repeat(128));
        for (stem, host) in [(stem(), "node1.site.example"), (long, &*"ü".repeat(200)), (stem(), "")] {
            let name = Mark::name(&stem, u32::MAX, u64::MAX, "0123456789abcdef", host);
            assert!(name.len() <= 255, "{name}");
            let mark = Mark::parse(&name).unwrap();
            assert_eq!((mark.stem, mark.pid, mark.started), (stem.as_str(), u32::MAX, u64::MAX));
            assert!(host.starts_with(mark.host), "{name}");
        }
        for other in
            [stem(), format!("{}.1.2.r", stem()), format!("{}.x.2.r.h", stem()), "a.1.2.r.h".to_owned()]
        {
            assert_eq!(Mark::parse(&other), None, "{other}");
        }
    }

    #[test]
    fn a_mark_counts_as_long_as_its_process_may_live() {
        let (pid, host) = (std::process::id(), "node1");
        let started = start_time(pid).unwrap();
        let here = Here { realm: "aaaaaaaa00000001", host };
        let (young, old) = (Duration::ZERO, ABANDONED_AFTER);
        for (realm, name, started, age, counts) in [
            (here.realm, host, started, old, true),
            (here.realm, host, started + 1, young, false),
            // Another namespace of this boot: nothing is known.
            ("aaaaaaaa00000002", host, started, young, true),
            ("aaaaaaaa00000002", host, started, old, false),
            // An earlier boot of this machine, and what only looks like it.
            ("bbbbbbbb00000001", host, started, young, false),
            ("bbbbbbbb00000001", "node2", started, young, true),
            ("bbbbbbbb00000001", "node2", started, old, false),
        ] {
            let mark = Mark { stem: "s", pid, started, realm, host: name };
            assert_eq!(mark.counts(age, &here), counts, "{mark:?} {age:?}");
        }
        let here = Here { realm: "aaaaaaaa00000001", host: "localhost" };
        let mark = Mark { stem: "s", pid, started, realm: "bbbbbbbb00000001", host: "localhost" };
        assert!(mark.counts(young, &here));
    }

    #[test]
    fn a_run_is_seen_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["images", "uses"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let image = dir.path().join("images").join(format!("{}.sqsh", stem()));
        let users = || Uses::read(dir.path()).unwrap().users.get(&stem()).map_or(0, Vec::len);
        assert_eq!(users(), 0);
        let mark = UseMark::make(&image).unwrap();
        let found = Uses::read(dir.path()).unwrap();
        assert_eq!(found.users[&stem()], [User { host: host_name(), pid: std::process::id() }]);
        assert!(found.last.contains_key(&stem()) && found.dead.is_empty() && found.now.is_some());
        drop(mark);
        assert_eq!(users(), 0);
        assert!(Uses::read(dir.path()).unwrap().last.contains_key(&stem()), "the last use is remembered");

        // What was killed, and what is not ours to mark.
        let name = Mark::name(&stem(), std::process::id(), 1, realm_name(), &host_name());
        fs::write(dir.path().join("uses").join(&name), b"").unwrap();
        let found = Uses::read(dir.path()).unwrap();
        assert_eq!((found.users.len(), found.dead), (0, vec![dir.path().join("uses").join(name)]));
        assert!(UseMark::make(&dir.path().join("images/other.sqsh")).is_none());
        fs::remove_dir_all(dir.path().join("uses")).unwrap();
        assert!(UseMark::make(&image).is_none());
    }
}
