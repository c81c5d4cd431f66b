//! Who is converting an image: a file made with `O_EXCL`, kept warm by its owner.
//!
//! A lease only saves work: two owners at once would each write a file of their own and publish the same
//! bytes atomically. So takeovers may err on the side of doing work twice, never of waiting for the dead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use situla_oci::Digest;

use super::records::{list_dir, read_record};
use super::shelf::stem;
use super::{Acquired, Store, StoreError};
use crate::file_error::FileError;
use crate::key::Recipe;
use crate::output::{Existing, PendingFile, temporary_name};
use crate::process_identity::{self, host_name, start_time};
use crate::progress::{Event, Progress};
use crate::traces::Trace;

/// Shortest pause between looks at another's lease.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause, where a thousand nodes may wait for one: each look is some requests to one file server.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Longest pause where the holder is on this machine: the kernel alone is asked.
const LONGEST_LOCAL_PAUSE: Duration = Duration::from_millis(200);

/// What is written into a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Machine, boot and process namespace: within one, process ids can be compared.
    realm: String,
    host: String,
    pid: u32,
    /// Start time of the process in clock ticks since boot; tells a reused process id.
    started: u64,
    /// Tells leases of one process apart.
    serial: u64,
}

/// The right and duty to make one image; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    manifest: Digest,
    recipe: Recipe,
    stem: String,
    path: PathBuf,
    holder: Holder,
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
    _trace: Trace,
}

impl Lease {
    /// Returns the manifest digest of the image.
    #[must_use]
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The name of the image's files, and of what is made for it.
    pub(crate) fn stem(&self) -> &str {
        &self.stem
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            // A heart that panicked has stopped too.
            let _ = heart.join();
        }
        // Somebody may have taken it over while we were suspended: then it is no longer ours to remove.
        if read_record::<Holder>(&self.path).ok().flatten().as_ref() == Some(&self.holder) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn acquire(
    store: &Store,
    manifest: &Digest,
    recipe: &Recipe,
    progress: &dyn Progress,
) -> Result<Acquired, StoreError> {
    let began = Instant::now();
    let mut told = false;
    let mut watch: Option<(Option<Holder>, Option<SystemTime>, Instant)> = None;
    let path = store.lease_path(&stem(manifest, recipe));
    loop {
        if let Some(image) = store.get(manifest, recipe)? {
            return Ok(Acquired::Present(image));
        }
        if let Some(lease) = try_create(store, stem(manifest, recipe), manifest, recipe)? {
            // Somebody may have been killed while he removed it.
            store.settle_leaving(&lease.stem)?;
            // The one who had it may have published between our two looks.
            store.see_others_files();
            if let Some(image) = store.get(manifest, recipe)? {
                return Ok(Acquired::Present(image));
            }
            store.remove_leftovers(Some(&lease.stem))?;
            return Ok(Acquired::Ours(lease));
        }
        let holder = read_record::<Holder>(&path)?;
        let beat = fs::metadata(&path).and_then(|m| m.modified()).ok();
        let silent = match &watch {
            Some((old, old_beat, since)) if *old == holder && *old_beat == beat => since.elapsed(),
            _ => {
                watch = Some((holder.clone(), beat, Instant::now()));
                Duration::ZERO
            }
        };
        let name =
            holder.as_ref().map_or("unknown".to_owned(), |h| format!("process {} on {}", h.pid, h.host));
        let is_over = holder.as_ref().is_some_and(is_dead) || silent > store.options.stale_after;
        // Where there was nothing to take away the next look comes after a pause, like any other.
        if is_over && take_away(store, &path, holder.as_ref(), manifest)? {
            continue;
        }
        if !told {
            told = true;
            progress.event(Event::Waiting { holder: name.clone() });
        }
        if began.elapsed() > store.options.wait_limit {
            return Err(StoreError::Busy { holder: name, waited: began.elapsed() });
        }
        let is_local = holder.as_ref().is_some_and(is_local);
        thread::sleep(pause(began.elapsed(), store.options.stale_after, is_local, std::process::id()));
    }
}

/// How long to wait before the next look: an eighth of what was waited already, so that nobody waits much longer
/// than he must. Those who began together drift apart by `seed`.
fn pause(waited: Duration, stale_after: Duration, is_local: bool, seed: u32) -> Duration {
    let longest = if is_local { LONGEST_LOCAL_PAUSE } else { LONGEST_PAUSE };
    // A holder that is silent is to be noticed in time.
    let longest = longest.min(stale_after / 8).max(SHORTEST_PAUSE);
    let pause = (waited / 8).clamp(SHORTEST_PAUSE, longest);
    // Between three and five quarters of it.
    pause * 3 / 4 + pause * (seed % 64) / 128
}

/// Makes the lease of `stem`, unless somebody has it who may be alive.
pub(super) fn try_take(
    store: &Store,
    stem: String,
    manifest: &Digest,
    recipe: &Recipe,
) -> Result<Option<Lease>, StoreError> {
    if let Some(lease) = try_create(store, stem.clone(), manifest, recipe)? {
        return Ok(Some(lease));
    }
    let path = store.lease_path(&stem);
    let holder = read_record::<Holder>(&path)?;
    let is_over = match &holder {
        Some(holder) if is_local(holder) => is_dead(holder),
        _ => is_silent(store, &path)?,
    };
    if is_over {
        take_away(store, &path, holder.as_ref(), manifest)?;
    }
    try_create(store, stem, manifest, recipe)
}

/// Watches the lease of another machine; tells whether it showed no sign of life for as long as one counts that shows
/// none. Whoever was killed there while he had an image in its place would keep it from being removed for ever: who
/// wants the image itself asks for no lease.
fn is_silent(store: &Store, path: &Path) -> Result<bool, StoreError> {
    let look = || -> Result<_, StoreError> {
        let beat = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        Ok(beat.zip(Some(read_record::<Holder>(path)?)))
    };
    let (began, first) = (Instant::now(), look()?);
    while first.is_some() && began.elapsed() <= store.options.stale_after {
        thread::sleep(pause(began.elapsed(), store.options.stale_after, false, std::process::id()));
        if look()? != first {
            return Ok(false);
        }
    }
    Ok(first.is_some())
}

/// Makes the lease, unless somebody has it. It appears with its content: whoever is killed while making it must not
/// leave one of which nobody can tell that its holder is dead. Where the file system cannot do that, it is made in its
/// place, and who is killed at that moment leaves an empty one, which counts until it was silent for long enough.
fn try_create(
    store: &Store,
    stem: String,
    manifest: &Digest,
    recipe: &Recipe,
) -> Result<Option<Lease>, StoreError> {
    let path = store.lease_path(&stem);
    // Those who wait for it look often, and need not write each time.
    if path.exists() {
        return Ok(None);
    }
    let failed = || FileError::write(&path);
    let holder = this_process();
    let text = serde_json::to_vec(&holder).map_err(io::Error::other).map_err(failed())?;
    let pending = PendingFile::create(&store.own.dir.join("tmp"), &stem).map_err(failed())?;
    let mut file = pending.file().map_err(failed())?;
    file.write_all(&text).map_err(failed())?;
    let has_name = pending.has_name();
    let appear = || match pending.appear(&path, Existing::Refuse) {
        Ok(()) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // Somebody has it, and has removed what lay about for it.
        Err(e) if e.kind() == io::ErrorKind::NotFound && has_name && store.own.leases().is_dir() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        // There are file systems without links, with none between directories, or full of them; and machines
        // without /proc, by which a file without a name gets one.
        Err(_) => create_in_place(&path, &text).map(Some),
    };
    let (trace, appeared) = Trace::made(&path, &text, appear);
    match appeared {
        Ok(in_place) => file = in_place.unwrap_or(file),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(failed()(e).into()),
    }
    let (stop, stopped) = channel();
    let pause = store.options.stale_after / 4;
    let heart = thread::Builder::new().name("lease".to_owned()).spawn(move || beat(&file, pause, &stopped));
    let heart = Some(heart.map_err(failed())?);
    Ok(Some(Lease {
        manifest: manifest.clone(),
        recipe: *recipe,
        stem,
        path,
        holder,
        stop: Some(stop),
        heart,
        _trace: trace,
    }))
}

fn create_in_place(path: &Path, text: &[u8]) -> io::Result<File> {
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path)?;
    let written = file.write_all(text);
    if written.is_err() {
        // Nobody else takes it for his own so soon.
        let _ = fs::remove_file(path);
    }
    written.map(|()| file)
}

/// Shows a sign of life until told to stop.
fn beat(file: &File, pause: Duration, stopped: &std::sync::mpsc::Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
        // If it fails the lease grows stale and another process does the work too: harmless.
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Takes away the lease of one who has published the image and was killed then: nobody else would come for it.
pub(super) fn forget_dead(store: &Store, manifest: &Digest, recipe: &Recipe) -> Result<(), StoreError> {
    let path = store.lease_path(&stem(manifest, recipe));
    match read_record::<Holder>(&path)? {
        Some(holder) if is_dead(&holder) => take_away(store, &path, Some(&holder), manifest).map(drop),
        _ => Ok(()),
    }
}

/// The names of images whose leases are held by processes that are known to be gone, and who holds the others of this
/// machine.
pub(super) fn holders(store: &Store) -> Result<(Vec<String>, Vec<u32>), StoreError> {
    let (mut dead, mut alive) = (Vec::new(), Vec::new());
    for name in list_dir(&store.own.leases())? {
        let Some(stem) = name.strip_suffix(".lease") else { continue };
        match read_record::<Holder>(&store.lease_path(stem))? {
            Some(holder) if is_dead(&holder) => dead.push(stem.to_owned()),
            Some(holder) if is_local(&holder) => alive.push(holder.pid),
            _ => {}
        }
    }
    Ok((dead, alive))
}

/// Moves a stale lease away; tells whether there was one. If another one took its place meanwhile, that one is put
/// back.
fn take_away(
    store: &Store,
    path: &Path,
    stale: Option<&Holder>,
    manifest: &Digest,
) -> Result<bool, StoreError> {
    let away = store.own.dir.join("tmp").join(temporary_name(&manifest.file_stem(), "stale"));
    match fs::rename(path, &away) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(FileError::write(path)(source).into()),
    }
    if read_record::<Holder>(&away)?.as_ref() != stale {
        // If a third one is there already, two work at once; both are right.
        match fs::hard_link(&away, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => drop(fs::rename(&away, path)),
            _ => {}
        }
    }
    let _ = fs::remove_file(&away);
    Ok(true)
}

fn this_process() -> Holder {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    Holder {
        realm: realm(),
        host: host_name(),
        pid,
        started: start_time(pid).unwrap_or_default(),
        serial: SERIAL.fetch_add(1, Ordering::Relaxed),
    }
}

/// Names the set of processes among which ids are unique; empty if that cannot be told.
fn realm() -> String {
    let (boot, namespace) = process_identity::realm();
    if boot.is_empty() || namespace.is_empty() { String::new() } else { format!("{boot} {namespace}") }
}

/// Tells whether a holder is known to be gone; of other machines nothing is known.
fn is_dead(holder: &Holder) -> bool {
    is_local(holder) && start_time(holder.pid) != Some(holder.started)
}

/// Tells whether a holder is where processes can be compared with those that run here.
fn is_local(holder: &Holder) -> bool {
    !holder.realm.is_empty() && holder.realm == realm()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Store {
        open_with(dir, Duration::from_millis(100))
    }

    fn open_with(dir: &Path, soon: Duration) -> Store {
        let options = crate::store::StoreOptions { stale_after: soon, wait_limit: soon };
        Store::open(&dir.join("store"), None, options).unwrap()
    }

    fn key() -> (Digest, Recipe) {
        (Digest::sha256(b"m"), Recipe::of(&crate::ConvertOptions::default()))
    }

    #[test]
    fn a_lease_needs_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let (store, (manifest, recipe)) = (open(dir.path()), key());
        let leases = dir.path().join("store/leases");
        let Some(elsewhere) = crate::store::move_elsewhere(&leases) else { return };
        let take = || try_take(&store, stem(&manifest, &recipe), &manifest, &recipe);
        let lease = take().unwrap().unwrap();
        assert_eq!(read_record::<Holder>(&lease.path).unwrap().as_ref(), Some(&lease.holder));
        assert!(take().unwrap().is_none(), "there is one already");
        // It is kept warm where it is.
        let file = File::options().write(true).open(&lease.path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let began = Instant::now();
        while fs::metadata(&lease.path).unwrap().modified().unwrap() == SystemTime::UNIX_EPOCH {
            assert!(began.elapsed() < Duration::from_secs(20), "it shows no sign of life");
            thread::yield_now();
        }
        drop(lease);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lease_of_another_machine_counts_while_it_shows_life() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, recipe) = key();
        let take = |store: &Store| try_take(store, stem(&manifest, &recipe), &manifest, &recipe).unwrap();
        let alive = open_with(dir.path(), Duration::from_secs(60));
        let path = alive.lease_path(&stem(&manifest, &recipe));
        let there = Holder { realm: "another machine".to_owned(), ..this_process() };
        // The second was made in its place by somebody who was killed then.
        for text in [serde_json::to_vec(&there).unwrap(), Vec::new()] {
            fs::write(&path, &text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let (stop, stopped) = channel::<()>();
            thread::scope(|scope| {
                scope.spawn(move || beat(&file, Duration::from_millis(5), &stopped));
                assert!(take(&alive).is_none());
                assert_eq!(fs::read(&path).unwrap(), text);
                drop(stop);
            });
            assert!(take(&open(dir.path())).is_some(), "nobody shows that he lives");
            assert!(!path.exists());
        }
    }

    #[test]
    fn where_no_lease_can_be_made_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fs::remove_dir(dir.path().join("store/leases")).unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let (manifest, recipe) = key();
            sender.send(acquire(&store, &manifest, &recipe, &()).map(drop).map_err(|error| error.to_string()))
        });
        let error = receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err();
        assert!(error.contains(".lease"), "{error}");
    }

    #[test]
    fn pauses_grow_with_what_was_waited_and_differ() {
        let (ms, stale) = (Duration::from_millis, Duration::from_secs(60));
        for (waited, is_local, longest) in [
            (ms(0), false, ms(25)),
            (ms(800), false, ms(125)),
            (ms(3_600_000), false, ms(5000)),
            (ms(3_600_000), true, ms(250)),
        ] {
            let all: Vec<Duration> = (0..64).map(|seed| pause(waited, stale, is_local, seed)).collect();
            assert!(all.iter().all(|one| *one <= longest && *one >= longest / 2), "{waited:?}: {all:?}");
            assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{waited:?}: {all:?}");
        }
        // However short the time after which a holder counts as silent, it is noticed within a quarter more.
        assert!(pause(ms(3_600_000), ms(400), false, 63) < ms(100));
    }
}
