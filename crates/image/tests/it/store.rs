//! Stores: keys, the site's store, what is kept and what is removed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use situla_image::{
    ConvertOptions, LayoutImage, Place, PullError, PulledImage, Recipe, RoomLeft, Source, Store, StoreEntry,
    StoreError, StoreLimits, StoreOptions, UseMark, Which, pull_from,
};
use situla_oci::{Digest, Reference};

use crate::tar_builder::TarBuilder;
use crate::tools::{gzip, layout};

/// A place with stores, and images to put there.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Scene { dir: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> Store {
        Store::open(&self.path("own"), None, StoreOptions::default()).expect("the directory is ours")
    }

    fn reference(name: &str) -> Reference {
        Reference::parse(&format!("registry.example/{name}:1")).expect("a reference")
    }

    /// What errors call it.
    fn named(name: &str) -> Source {
        Source::parse(&format!("docker://{}", Self::reference(name))).expect("a source")
    }

    /// Puts an image with one file into a store, under the name of `text`.
    fn put(&self, store: &Store, text: &str, options: &ConvertOptions) -> PulledImage {
        let source = self.source(text);
        let (reference, platform) = (Self::reference(text), "linux/amd64".parse().expect("a platform"));
        let pulled =
            pull_from(&source, &Self::named(text), &platform, store, options, &()).expect("it can be pulled");
        store.set_ref(&reference, &platform, &pulled.manifest_digest).expect("the store is ours");
        pulled
    }

    fn source(&self, text: &str) -> LayoutImage {
        let tar = TarBuilder::new().file("file", text.as_bytes()).build();
        let dir = layout(&self.path(&format!("source-{text}")), &[(tar.clone(), gzip(&tar))], "{}");
        LayoutImage::open(&dir, &Which::Only).expect("a layout")
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn recipe(options: &ConvertOptions) -> Recipe {
    Recipe::of(options)
}

#[test]
fn the_same_key_has_the_same_bytes_and_another_key_a_file_of_its_own() {
    let scene = Scene::new();
    let store = scene.store();
    let plain = ConvertOptions { n_threads: 1, ..ConvertOptions::default() };
    let dated = ConvertOptions { source_date_epoch: Some(1000), ..plain.clone() };
    let packed = ConvertOptions { zstd_level: 7, ..plain.clone() };
    let made: Vec<PulledImage> =
        [&plain, &dated, &packed].map(|options| scene.put(&store, "a", options)).into_iter().collect();
    assert!(made.iter().all(|image| !image.was_present && image.manifest_digest == made[0].manifest_digest));
    assert_eq!(made.iter().map(|image| &image.path).collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(names(&scene.path("own/images")).len(), 6);
    for (options, image) in [&plain, &dated, &packed].into_iter().zip(&made) {
        let stored = store.get(&image.manifest_digest, &recipe(options)).unwrap().unwrap();
        assert_eq!((&stored.path, stored.recipe), (&image.path, recipe(options)));
        assert!(scene.put(&store, "a", options).was_present);
        // Made anew, with other threads: the same bytes.
        assert!(store.remove(&stored, false).unwrap());
        let again = scene.put(&store, "a", &ConvertOptions { n_threads: 4, ..(*options).clone() });
        assert_eq!((again.was_present, &again.rootfs_digest), (false, &image.rootfs_digest));
    }
    let image = |made: &PulledImage| {
        let bytes = fs::read(&made.path).unwrap();
        situla_squashfs::Image::open(bytes, situla_squashfs::ReadOptions::default()).unwrap()
    };
    assert_eq!((image(&made[0]).superblock().mtime, image(&made[1]).superblock().mtime), (0, 1000));
}

#[test]
fn an_image_of_another_version_serves_and_one_of_other_choices_does_not() {
    let scene = Scene::new();
    let store = scene.store();
    let options = ConvertOptions::default();
    let made = scene.put(&store, "a", &options);
    // As a store of version 1 has it.
    let (record, stem) = (made.path.with_extension("json"), made.manifest_digest.file_stem());
    let old = scene.path("own/images").join(format!("{stem}.sqsh"));
    fs::rename(&made.path, &old).unwrap();
    fs::remove_file(record).unwrap();
    let text = format!(
        "{{\"version\":1,\"manifest\":\"{}\",\"rootfs\":\"{}\",\"bytes\":{}}}",
        made.manifest_digest, made.rootfs_digest, made.bytes
    );
    fs::write(old.with_extension("json"), &text).unwrap();
    let get = |options: &ConvertOptions| store.get(&made.manifest_digest, &recipe(options)).unwrap();
    assert_eq!(get(&options).map(|image| image.path), Some(old.clone()));
    assert_eq!(get(&ConvertOptions { zstd_level: 4, ..options.clone() }), None);
    assert_eq!(get(&ConvertOptions { source_date_epoch: Some(0), ..options.clone() }), None);
    assert_eq!(store.entries().unwrap()[0].image.rootfs_digest, made.rootfs_digest);
    // A record that does not belong to the file, or of a version that is not known, makes it none.
    for text in [text.replace("\"version\":1", "\"version\":3"), text.replace("\"bytes\":", "\"bytes\":1")] {
        fs::write(old.with_extension("json"), text).unwrap();
        assert_eq!(get(&options), None);
    }
}

#[test]
fn what_the_site_has_is_used_and_not_written() {
    let scene = Scene::new();
    let site = scene.path("site");
    let admin = Store::open(&site, Some(&site), StoreOptions::default()).unwrap();
    let put = scene.put(&admin, "a", &ConvertOptions::default());
    assert_eq!(put.place, Place::Site);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&site.join("images")), 0o055, "others can read it, whatever the umask");
    // By whatever way its administrator comes to it.
    std::os::unix::fs::symlink(&site, scene.path("way")).unwrap();
    let other_way = Store::open(&scene.path("way"), Some(&site), StoreOptions::default()).unwrap();
    assert!(scene.put(&other_way, "a", &ConvertOptions::default()).was_present);
    assert_eq!(mode(&site.join("images")), 0o055);
    let before: Vec<_> =
        ["images", "refs", "uses", "tmp", "leases"].map(|name| names(&site.join(name))).into();

    let own = scene.path("own");
    let store = Store::open(&own, Some(&site), StoreOptions::default()).unwrap();
    let found = scene.put(&store, "a", &ConvertOptions::default());
    assert_eq!((found.was_present, found.place, &found.path), (true, Place::Site, &put.path));
    assert!(names(&own.join("images")).is_empty());
    // What only a user has asked for stays his own.
    let mine = scene.put(&store, "b", &ConvertOptions::default());
    assert_eq!((mine.place, mode(&own.join("images")), mode(&own.join("refs"))), (Place::Own, 0, 0));
    let places: Vec<Place> = store.entries().unwrap().iter().map(|entry| entry.image.place).collect();
    assert_eq!(places.iter().filter(|place| **place == Place::Site).count(), 1, "{places:?}");
    // Pruning is the administrator's there.
    let pruned = store.prune(&StoreLimits { bytes: Some(0), age: None }, false).unwrap();
    assert_eq!(pruned.removed.iter().map(|entry| &entry.image.path).collect::<Vec<_>>(), [&mine.path]);
    let after: Vec<_> =
        ["images", "refs", "uses", "tmp", "leases"].map(|name| names(&site.join(name))).into();
    assert_eq!(before, after);

    // His own prune takes it out of its place, for jobs that run from it may be anywhere.
    let pruned = admin.prune(&StoreLimits { bytes: Some(0), age: None }, false).unwrap();
    assert_eq!((pruned.removed.len(), pruned.bytes_left, pruned.bytes_retired), (1, 0, put.bytes));
    assert!(names(&site.join("images")).is_empty());
    assert_eq!(names(&site.join("tmp")).len(), 1);
    assert_eq!(admin.prune(&StoreLimits::default(), false).unwrap().bytes_retired, put.bytes);
}

#[test]
fn a_store_is_for_its_owner_alone() {
    let scene = Scene::new();
    let mode = |name: &str| fs::metadata(scene.path(name)).unwrap().permissions().mode() & 0o7777;
    let chmod =
        |name: &str, mode| fs::set_permissions(scene.path(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(scene.path("own/images")).unwrap();
    chmod("own/images", 0o777);
    chmod("own", 0o755);
    scene.store();
    for name in ["own/images", "own/refs", "own/leases", "own/tmp", "own/uses"] {
        assert_eq!(mode(name), 0o700, "{name}");
    }
    chmod("own", 0o777);
    let opened = Store::open(&scene.path("own"), None, StoreOptions::default());
    assert!(matches!(opened, Err(StoreError::NotPrivate { .. })), "{opened:?}");
    chmod("own", 0o1777);
    scene.store();
    fs::create_dir_all(scene.path("site/images")).unwrap();
    for (name, bits, is_open) in [("site", 0o777, true), ("site", 0o775, false), ("site/images", 0o777, true)]
    {
        chmod(name, bits);
        let opened = Store::look(&scene.path("own"), Some(&scene.path("site")), StoreOptions::default());
        assert_eq!(matches!(opened, Err(StoreError::OpenToAll { .. })), is_open, "{name} {bits:o}");
        chmod(name, 0o755);
    }
}

#[test]
fn what_is_too_large_is_refused_before_its_first_byte() {
    let scene = Scene::new();
    let store = scene.store();
    scene.source("a");
    // The layer is not there at all: nothing asks for it.
    let blobs = scene.path("source-a/layout/blobs/sha256");
    let mut manifest = None;
    for name in names(&blobs) {
        let text = String::from_utf8_lossy(&fs::read(blobs.join(&name)).unwrap()).into_owned();
        if text.contains("\"layers\"") && text.contains("schemaVersion") {
            let (head, layers) = text.split_once("\"layers\"").unwrap();
            let (layer, rest) = layers.split_once("\"size\":").unwrap();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
            manifest =
                Some((name, format!("{head}\"layers\"{layer}\"size\":{}{}", 1_u64 << 60, &rest[end..])));
        }
    }
    let (old, text) = manifest.expect("there is a manifest");
    let (new, index) = (Digest::sha256(text.as_bytes()), scene.path("source-a/layout/index.json"));
    fs::write(blobs.join(new.hex()), &text).unwrap();
    let listed = fs::read_to_string(&index).unwrap().replace(&old, new.hex());
    let (head, rest) = listed.split_once("\"size\":").unwrap();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
    fs::write(&index, format!("{head}\"size\":{}{}", text.len(), &rest[end..])).unwrap();
    let source = LayoutImage::open(&scene.path("source-a/layout"), &Which::Only).unwrap();
    let (named, platform) = (Scene::named("a"), "linux/amd64".parse().unwrap());
    let refused = pull_from(&source, &named, &platform, &store, &ConvertOptions::default(), &());
    let Err(PullError::Store(StoreError::NoRoom { needed, left, .. })) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(*needed, 1 << 59);
    assert!(matches!(left, RoomLeft::Bytes(_)), "{left:?}");
    for name in ["images", "tmp", "leases", "refs"] {
        assert!(names(&scene.path("own").join(name)).is_empty(), "{name}");
    }
}

/// Makes an image look as if it was used last so many days ago.
fn used(entry: &StoreEntry, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86400);
    let stem = entry.image.path.file_stem().expect("it has a name");
    let store = entry.image.path.ancestors().nth(2).expect("it lies in a store");
    for path in [store.join("uses").join(stem), entry.image.path.clone()] {
        let file = fs::File::options().create(true).append(true).open(path).expect("the store is ours");
        file.set_modified(then).expect("the file is ours");
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_what_is_used_stays() {
    let scene = Scene::new();
    let store = scene.store();
    let images: Vec<PulledImage> =
        ["a", "b", "c", "d"].map(|text| scene.put(&store, text, &ConvertOptions::default())).into();
    let entry_of = |text: &str| -> StoreEntry {
        let reference = Scene::reference(text);
        store.entries().unwrap().into_iter().find(|entry| entry.references.contains(&reference)).unwrap()
    };
    for (text, days) in [("a", 2), ("b", 9), ("c", 5), ("d", 1)] {
        used(&entry_of(text), days);
    }
    let order: Vec<PathBuf> = store.entries().unwrap().into_iter().map(|entry| entry.image.path).collect();
    assert_eq!(order, [&images[1], &images[2], &images[0], &images[3]].map(|image| image.path.clone()));
    let total: u64 = images.iter().map(|image| image.bytes).sum();

    let mark = UseMark::make(&images[2].path).unwrap();
    assert_eq!(entry_of("c").users.len(), 1);
    used(&entry_of("c"), 5);
    let old = StoreLimits { bytes: None, age: Some(Duration::from_secs(3 * 86400)) };
    let paths = |entries: &[StoreEntry]| -> Vec<PathBuf> {
        entries.iter().map(|entry| entry.image.path.clone()).collect()
    };
    let (b, c) = (images[1].path.clone(), images[2].path.clone());
    for dry_run in [true, false] {
        let pruned = store.prune(&old, dry_run).unwrap();
        assert_eq!((paths(&pruned.removed), paths(&pruned.used)), (vec![b.clone()], vec![c.clone()]));
        assert_eq!(pruned.bytes_left, total - images[1].bytes);
        assert_eq!(b.exists(), dry_run);
        assert!(c.exists());
    }
    let platform = "linux/amd64".parse().unwrap();
    assert_eq!(store.lookup(&Scene::reference("b"), &platform).unwrap(), None, "the reference has gone too");
    assert_eq!(
        store.lookup(&Scene::reference("c"), &platform).unwrap().as_ref(),
        Some(&images[2].manifest_digest)
    );
    assert!(!store.remove(&entry_of("c").image, false).unwrap(), "it is in use");
    assert!(store.remove(&entry_of("c").image, true).unwrap(), "it was asked for");
    drop(mark);

    // By size: a was used before d.
    let left = StoreLimits { bytes: Some(images[3].bytes), age: None };
    assert_eq!(paths(&store.prune(&left, false).unwrap().removed), [images[0].path.clone()]);
    assert_eq!(paths(&store.entries().unwrap()), [images[3].path.clone()]);
    assert_eq!(names(&scene.path("own/refs")).len(), 1);
    for name in ["tmp", "leases"] {
        assert!(names(&scene.path("own").join(name)).is_empty(), "{name}");
    }
    assert_eq!(names(&scene.path("own/uses")).len(), 1, "of those that went nothing is known any more");
}

#[test]
fn damage_is_found_and_swept() {
    let scene = Scene::new();
    let store = scene.store();
    let made = scene.put(&store, "a", &ConvertOptions::default());
    let stored = || store.list().unwrap().remove(0);
    assert!(store.verify(&stored(), &()).unwrap());
    let mut bytes = fs::read(&made.path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(&made.path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&made.path, bytes).unwrap();
    assert!(!store.verify(&stored(), &()).unwrap());

    // What a crash may leave: parts of images long ago, and just now.
    let other = Digest::sha256(b"other").file_stem();
    let images = scene.path("own/images");
    let long_ago = SystemTime::now() - Duration::from_secs(86400);
    for name in [format!("{other}-00.sqsh"), format!("{other}-01.json")] {
        fs::write(images.join(&name), b"part").unwrap();
        fs::File::options().append(true).open(images.join(&name)).unwrap().set_modified(long_ago).unwrap();
    }
    fs::write(images.join(format!("{other}-02.json")), b"being published").unwrap();
    fs::write(images.join("notes.txt"), b"not ours").unwrap();
    fs::write(scene.path("own/tmp").join(format!(".{other}.77.0.tmp")), b"left over").unwrap();
    store.prune(&StoreLimits::default(), false).unwrap();
    let left = names(&images);
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(left.contains("notes.txt") && left.contains(&format!("{other}-02.json")), "{left:?}");
    assert!(names(&scene.path("own/tmp")).is_empty());
}

#[test]
fn a_key_keeps_its_bytes_for_ever() {
    let scene = Scene::new();
    // Not compressed: how a library packs a layer is no part of the key.
    let tar =
        TarBuilder::new().mtime(1_000_000).dir("d").file("d/file", b"content").symlink("l", "d/file").build();
    let dir = layout(&scene.path("fixed"), &[(tar.clone(), tar)], "{\"Env\":[\"A=b\"]}");
    let (source, store) = (LayoutImage::open(&dir, &Which::Only).unwrap(), scene.store());
    let (named, platform) = (Scene::named("fixed"), "linux/amd64".parse().unwrap());
    let made = [None, Some(1000)].map(|source_date_epoch| {
        let options = ConvertOptions { source_date_epoch, ..ConvertOptions::default() };
        pull_from(&source, &named, &platform, &store, &options, &()).unwrap()
    });
    let Recipe { converter, zstd, level, .. } = made[0].recipe;
    let digests = made.map(|image| image.rootfs_digest.to_string());
    assert_eq!(
        (converter, zstd, level, digests.each_ref().map(String::as_str)),
        (1, 10507, 3, [PLAIN, DATED]),
        "the same key must have the same bytes: where they have to change, raise CONVERTER_VERSION and write \
         the new ones here"
    );
}

/// Digests of one image, as converter 1 with libzstd 1.5.7 makes it.
const PLAIN: &str = "sha256:791aedc08750cdd069a6fe8d1825186a8219a57674875586aa988b1f7c1cdf5f";
const DATED: &str = "sha256:293edd03ff9c1ac7c57872b815a93819e14516fb2ac5e39d1fa136182ea53738";

#[test]
fn whoever_has_a_mark_keeps_what_he_opens() {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    const RUNS: usize = 40;
    let scene = Scene::new();
    let store = scene.store();
    let (is_done, removed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut missed, options) = (0, ConvertOptions { n_threads: 1, ..ConvertOptions::default() });
    /// Also where an assertion fails: the other thread would go on for ever.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        let _ends = Ends(&is_done);
        scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                let pruned = store.prune(&StoreLimits { bytes: Some(0), age: None }, false).unwrap();
                removed.fetch_add(pruned.removed.len(), Ordering::AcqRel);
            }
        });
        for _ in 0..RUNS {
            // As a run does it: have it fetched, mark it, open it, and once more if it has gone meanwhile.
            let (file, mark) = loop {
                let pulled = scene.put(&store, "a", &options);
                let mark = UseMark::make(&pulled.path).expect("the store can be written");
                match fs::File::open(&pulled.path) {
                    Ok(file) => break (file, mark),
                    Err(_) => missed += 1,
                }
            };
            let before = removed.load(Ordering::Acquire);
            // Whole prunes pass, and another machine could still open it.
            for _ in 0..3 {
                store.prune(&StoreLimits { bytes: Some(0), age: None }, true).unwrap();
                assert_eq!(file.metadata().unwrap().nlink(), 1, "removed under a run");
            }
            assert!(removed.load(Ordering::Acquire) <= before + 1, "only what was begun before the mark");
            drop(mark);
        }
    });
    assert!(removed.load(Ordering::Acquire) > 0, "nothing was ever pruned; {missed} misses");
}
