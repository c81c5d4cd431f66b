use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::convert::{ConvertOptions, OutputFormat, convert_directory};
use crate::progress::{Event, Progress};
use crate::source::Owners;

struct Scene {
    directory: tempfile::TempDir,
    cache: TreeCache,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cache = TreeCache::new(directory.path().join("cache"));
        Scene { directory, cache }
    }

    /// An image with one file of this text. It has the same bytes whenever it is made: files of a later second would make
    /// another image.
    fn image(&self, name: &str, text: &str) -> PathBuf {
        let tree = self.directory.path().join(format!("{name}.tree"));
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/text"), text).unwrap();
        let path = self.directory.path().join(format!("{name}.sqsh"));
        let (overwrite, source_date_epoch) = (true, Some(1_000_000_000));
        let options = ConvertOptions { overwrite, source_date_epoch, ..ConvertOptions::default() };
        convert_directory(&tree, Owners::Keep, &path, OutputFormat::Sqsh, &options, &()).unwrap();
        path
    }

    fn fill(&self, path: &Path, progress: &dyn Progress) -> Result<Digest, TreeError> {
        let file = File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        self.cache.fill(&file, (0, length), path, None, 2, progress)
    }

    fn digests(&self) -> Vec<Digest> {
        self.cache.list().unwrap().into_iter().map(|tree| tree.digest).collect()
    }

    /// Waits until a change has another time than all before it: clocks of file systems have steps.
    fn let_time_pass(&self) {
        let probe = self.directory.path().join("probe");
        let changed = || {
            fs::write(&probe, "").unwrap();
            fs::set_permissions(&probe, fs::Permissions::from_mode(0o600)).unwrap();
            let metadata = fs::metadata(&probe).unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        let first = changed();
        while changed() == first {}
    }

    /// Lets a tree look as if it had not been used for so long.
    fn age(&self, digest: &Digest, seconds: u64) {
        let lock = File::options().write(true).open(self.cache.lock_path(&digest.file_stem())).unwrap();
        lock.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }
}

/// Gives a lease back. A process that another test is just starting has all descriptors of this one until it executes
/// its program, and so the lock as well: to close ours would not be enough.
fn give_back(lease: TreeLease) {
    for descriptor in lease.descriptors() {
        flock(descriptor, FlockOperation::Unlock).unwrap();
    }
}

#[test]
fn a_tree_is_known_by_what_the_file_holds() {
    let scene = Scene::new();
    let (one, other) = (scene.image("one", "text"), scene.image("other", "another text"));
    let digest = scene.fill(&one, &()).unwrap();
    assert_eq!(digest, Digest::sha256(&fs::read(&one).unwrap()));
    let lease = scene.cache.lease(&digest).unwrap().unwrap();
    assert_eq!(fs::read(lease.path().join("etc/text")).unwrap(), b"text");
    assert_eq!(fs::metadata(&scene.cache.directory).unwrap().permissions().mode() & 0o777, 0o700);
    // The same bytes under another name are the same tree.
    let copy = scene.directory.path().join("copy.sqsh");
    fs::copy(&one, &copy).unwrap();
    assert_eq!(scene.fill(&copy, &()).unwrap(), digest);
    assert_eq!(scene.digests(), std::slice::from_ref(&digest));
    let second = scene.fill(&other, &()).unwrap();
    assert_ne!(second, digest);
    // Replaced under its name: it is what it holds now.
    fs::rename(&other, &one).unwrap();
    assert_eq!(scene.fill(&one, &()).unwrap(), second);
    assert!(fs::read_dir(scene.cache.directory.join("building")).unwrap().next().is_none());
}

#[test]
fn a_digest_is_remembered_once_a_change_would_show() {
    let scene = Scene::new();
    let path = scene.image("one", "text");
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        FileIdentity::of(&metadata, (0, metadata.len()))
    };
    let digest = scene.fill(&path, &()).unwrap();
    assert_eq!(scene.cache.find_digest(&identity(&path)), None, "it was made a moment ago");
    assert!(!identity(&path).is_settled());
    let old = identity(&path).changed_at(1);
    assert!(old.is_settled());
    scene.cache.identities().remember(&old, &digest).unwrap();
    assert_eq!(scene.cache.find_digest(&old), Some(digest));
}

#[test]
fn of_many_that_come_at_once_one_works() {
    #[derive(Default)]
    struct Seen {
        extracted: AtomicUsize,
        waited: AtomicUsize,
    }
    impl Progress for Seen {
        fn event(&self, event: Event) {
            let count = match event {
                Event::Waiting { .. } => &self.waited,
                Event::Extracting => &self.extracted,
                _ => return,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    let scene = Scene::new();
    let path = scene.image("one", &"text ".repeat(200_000));
    let seen = Seen::default();
    let leases: Vec<(Digest, PathBuf, u64)> = std::thread::scope(|scope| {
        let one = || {
            // Another one may look just now whether it is made, with a lock that keeps this one out: as a run does, it
            // asks again.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let (digest, lease) = loop {
                let digest = scene.fill(&path, &seen).unwrap();
                match scene.cache.lease(&digest).unwrap() {
                    Some(lease) => break (digest, lease),
                    None => assert!(std::time::Instant::now() < deadline, "it is never free"),
                }
            };
            let inode = fs::metadata(lease.path()).unwrap().ino();
            (digest, lease.path().to_owned(), inode)
        };
        let all: Vec<_> = (0..16).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(leases.iter().all(|lease| *lease == leases[0]), "{leases:?}");
    let [extracted, waited] = [&seen.extracted, &seen.waited].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(extracted, 1, "{waited} have waited");
}

#[test]
fn a_tree_that_has_lost_files_is_made_anew() {
    let scene = Scene::new();
    let path = scene.image("one", "text");
    let digest = scene.fill(&path, &()).unwrap();
    let name = digest.file_stem();
    let etc = scene.cache.tree(&name).join("etc");
    let is_there = || scene.cache.lease(&digest).unwrap().is_some();
    let damages: [(&str, &dyn Fn()); 4] = [
        ("a file", &|| fs::remove_file(etc.join("text")).unwrap()),
        ("a directory", &|| fs::remove_dir_all(&etc).unwrap()),
        ("the record", &|| fs::remove_file(scene.cache.record_path(&name)).unwrap()),
        ("everything below the root", &|| {
            fs::remove_dir_all(scene.cache.tree(&name)).unwrap();
            fs::create_dir(scene.cache.tree(&name)).unwrap();
        }),
    ];
    for (what, damage) in damages {
        assert!(is_there(), "before {what}");
        scene.let_time_pass();
        damage();
        assert!(!is_there(), "{what}");
        assert_eq!(scene.fill(&path, &()).unwrap(), digest);
        assert_eq!(fs::read(etc.join("text")).unwrap(), b"text", "{what}");
        assert_eq!(names(&scene.cache.directory.join("trees")).unwrap().len(), 1);
        assert_eq!(fs::read_dir(scene.cache.directory.join("trees")).unwrap().count(), 1, "{what}");
    }
}

#[test]
fn what_is_used_stays() {
    let scene = Scene::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| scene.fill(&scene.image(name, name), &()).unwrap());
    for (digest, age) in [(&a, 3000), (&b, 2000), (&c, 1000)] {
        scene.age(digest, age);
    }
    let older = |seconds| TreeLimits { age: Some(Duration::from_secs(seconds)), bytes: None };
    assert!(scene.cache.prune(&older(5000)).unwrap().removed.is_empty());
    // Two who use the same; one of them goes.
    let lease = scene.cache.lease(&b).unwrap().unwrap();
    drop(scene.cache.lease(&b).unwrap().unwrap());
    scene.age(&b, 2000);
    let pruned = scene.cache.prune(&older(1500)).unwrap();
    let digests = |trees: &[CachedTree]| trees.iter().map(|tree| tree.digest.clone()).collect::<Vec<_>>();
    assert_eq!((digests(&pruned.removed), digests(&pruned.used)), (vec![a.clone()], vec![b.clone()]));
    assert!(scene.cache.lease(&a).unwrap().is_none());
    // Each holds one byte.
    let pruned = scene.cache.prune(&TreeLimits { bytes: Some(1), age: None }).unwrap();
    assert_eq!((digests(&pruned.removed), digests(&pruned.used)), (vec![c], vec![b.clone()]));
    give_back(lease);
    let pruned = scene.cache.prune(&TreeLimits { bytes: Some(0), age: None }).unwrap();
    assert_eq!((digests(&pruned.removed), pruned.bytes_left), (vec![b.clone()], 0));
    assert!(!scene.cache.directory.exists(), "an empty cache goes");
    assert!(scene.cache.list().unwrap().is_empty());
    // And comes again.
    assert_eq!(scene.fill(&scene.image("b", "b"), &()).unwrap(), b);
}

#[test]
fn what_killed_processes_have_left_is_removed() {
    let scene = Scene::new();
    scene.cache.create().unwrap();
    let building = scene.cache.directory.join("building");
    let (dead, alive) = (building.join("sha256-x.1.0"), building.join("sha256-y.1.0"));
    for path in [&dead, &alive] {
        fs::create_dir_all(path.join("tree/etc")).unwrap();
    }
    let lock = File::open(&alive).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let begun = scene.cache.directory.join("trees/.removed.sha256-z.1");
    fs::create_dir_all(begun.join("etc")).unwrap();
    assert_eq!(scene.cache.remove_abandoned(), [1], "who is at work");
    assert!(!dead.exists() && alive.exists());
    fs::create_dir_all(dead.join("tree/etc")).unwrap();
    let digest = scene.fill(&scene.image("one", "text"), &()).unwrap();
    assert!(!dead.exists() && alive.exists());
    assert_eq!(scene.digests(), [digest]);
    scene.cache.prune(&TreeLimits::default()).unwrap();
    assert!(!begun.exists() && alive.exists());
}

#[test]
fn a_tree_whose_maker_was_killed_before_its_record_goes() {
    let scene = Scene::new();
    let (one, other) = (scene.image("one", "text"), scene.image("other", "another text"));
    let name = scene.fill(&one, &()).unwrap().file_stem();
    let (tree, record) = (scene.cache.tree(&name), scene.cache.record_path(&name));
    let lose_record = || fs::remove_file(&record).unwrap();
    let is_there = || tree.exists();
    lose_record();
    // Somebody who has the lock is about to write it.
    let lock = scene.cache.try_lock(&name, Locking::Exclusive).unwrap().unwrap();
    scene.cache.remove_abandoned();
    scene.cache.prune(&TreeLimits::default()).unwrap();
    assert!(is_there());
    flock(&lock, FlockOperation::Unlock).unwrap();
    scene.cache.remove_abandoned();
    assert!(!is_there() && !scene.cache.lock_path(&name).exists());
    // Whoever makes another tree comes by as well.
    scene.fill(&one, &()).unwrap();
    lose_record();
    let other = scene.fill(&other, &()).unwrap();
    assert!(!is_there());
    scene.fill(&one, &()).unwrap();
    lose_record();
    scene.cache.prune(&TreeLimits::default()).unwrap();
    assert!(!is_there());
    assert_eq!(scene.digests(), [other]);
}

#[test]
fn records_without_a_tree_go_unless_somebody_makes_it() {
    let scene = Scene::new();
    let kept = scene.fill(&scene.image("one", "text"), &()).unwrap();
    let records = scene.cache.directory.join("records");
    let [alone, begun, made] = ["aa.json", "aa.7.new", "bb.7.new"].map(|file| {
        let path = records.join(format!("sha256-{file}"));
        fs::write(&path, "{}").unwrap();
        path
    });
    let [digest, being_computed] = ["aa", "bb"].map(|key| {
        let path = scene.cache.directory.join("identities").join(format!(".identity-{key}.h.7.0.tmp"));
        fs::write(&path, "{}").unwrap();
        path
    });
    let makers = ["sha256-bb", "identity-bb"]
        .map(|name| scene.cache.try_lock(name, Locking::Exclusive).unwrap().unwrap());
    scene.cache.prune(&TreeLimits::default()).unwrap();
    assert!(!alone.exists() && !begun.exists() && made.exists());
    assert!(!digest.exists() && being_computed.exists());
    for maker in &makers {
        flock(maker, FlockOperation::Unlock).unwrap();
    }
    let pruned = scene.cache.prune(&TreeLimits { bytes: Some(0), age: None }).unwrap();
    assert_eq!(pruned.removed.len(), 1);
    assert_eq!(pruned.removed[0].digest, kept);
    assert!(!scene.cache.directory.exists(), "nothing keeps the empty cache");
}

#[test]
fn in_a_directory_that_is_not_the_users_alone_nothing_is_removed() {
    let scene = Scene::new();
    scene.cache.create().unwrap();
    let building = scene.cache.directory.join("building");
    // As somebody would plant it who wants to have the user's own directories removed.
    let victims = tempfile::tempdir().unwrap();
    fs::create_dir_all(victims.path().join("work/kept")).unwrap();
    fs::remove_dir(&building).unwrap();
    std::os::unix::fs::symlink(victims.path(), &building).unwrap();
    fs::set_permissions(&scene.cache.directory, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(scene.cache.remove_abandoned().is_empty());
    assert!(victims.path().join("work/kept").exists());
}

#[test]
fn a_damaged_tree_stays_for_those_who_use_it() {
    let scene = Scene::new();
    let path = scene.image("one", "text");
    let digest = scene.fill(&path, &()).unwrap();
    let used = scene.cache.lease(&digest).unwrap().unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let old = inode(used.path());
    scene.let_time_pass();
    fs::remove_file(used.path().join("etc/text")).unwrap();
    // Nobody waits for the end of whoever uses it.
    assert_eq!(scene.fill(&path, &()).unwrap(), digest);
    let anew = scene.cache.lease(&digest).unwrap().unwrap();
    assert_eq!(fs::read(anew.path().join("etc/text")).unwrap(), b"text");
    assert_ne!(inode(anew.path()), old);
    let aside = || {
        let entries = fs::read_dir(scene.cache.directory.join("trees")).unwrap().flatten();
        let mut entries = entries.map(|entry| entry.path());
        entries.find(|path| path.to_string_lossy().contains(".removed.")).map(|path| inode(&path))
    };
    let all = TreeLimits { bytes: Some(0), age: None };
    assert_eq!(scene.cache.prune(&all).unwrap().used.len(), 1);
    assert_eq!(aside(), Some(old), "it is used");
    give_back(used);
    assert_eq!(scene.cache.prune(&all).unwrap().used.len(), 1);
    assert_eq!(aside(), None);
    give_back(anew);
    assert_eq!(scene.cache.prune(&all).unwrap().removed.len(), 1);
    assert!(!scene.cache.directory.exists());
}

#[test]
fn a_directory_of_others_is_not_used() {
    let scene = Scene::new();
    let path = scene.image("one", "text");
    fs::create_dir(&scene.cache.directory).unwrap();
    fs::set_permissions(&scene.cache.directory, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(scene.fill(&path, &()), Err(TreeError::NotOwn { .. })));
    fs::remove_dir(&scene.cache.directory).unwrap();
    let elsewhere = scene.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &scene.cache.directory).unwrap();
    assert!(matches!(scene.fill(&path, &()), Err(TreeError::NotOwn { .. })));
    assert!(matches!(scene.cache.list(), Err(TreeError::NotOwn { .. })));
    assert!(fs::read_dir(&elsewhere).unwrap().next().is_none());
}

#[test]
fn what_all_users_share_is_not_made_for_one_of_them() {
    let mut scene = Scene::new();
    let path = scene.image("one", "text");
    let parent = scene.directory.path().join("scratch/trees");
    scene.cache = TreeCache::new(parent.join("situla-7"));
    assert!(matches!(scene.fill(&path, &()), Err(TreeError::NoPlace { path }) if path == parent));
    assert!(!scene.directory.path().join("scratch").exists());
    fs::create_dir_all(&parent).unwrap();
    let digest = scene.fill(&path, &()).unwrap();
    assert!(scene.cache.lease(&digest).unwrap().is_some());
}

#[test]
fn an_image_that_is_none_leaves_nothing() {
    let scene = Scene::new();
    let path = scene.directory.path().join("none.sqsh");
    fs::write(&path, vec![7; 10_000]).unwrap();
    assert!(matches!(scene.fill(&path, &()), Err(TreeError::Extract(_))));
    assert!(scene.digests().is_empty());
    assert!(fs::read_dir(scene.cache.directory.join("building")).unwrap().next().is_none());
}
