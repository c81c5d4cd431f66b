//! SIF files of a registry in the store, and on their way to something else.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use situla_image::{
    Client, ClientOptions, ConvertOptions, OutputFormat, Owners, PulledImage, Recipe, SifAddition,
    SifTransferError, Store, StoreLimits, StoreOptions, UseMark, add_sif_object, convert_directory,
    convert_file, fetch_sif, pull_sif, sif,
};
use situla_oci::{Digest, Platform, Reference};
use situla_sif::{SifOptions, SifWriter};

use crate::tools::{open, serve, status};

/// A registry that has one SIF file, and counts how often it was asked for that.
struct Scene {
    dir: tempfile::TempDir,
    reference: Reference,
    n_fetches: Arc<AtomicUsize>,
}

/// What a registry makes of a file that it has promised.
type Delivery = fn(Vec<u8>) -> Vec<u8>;

/// The files of a scene: a SquashFS, and it in SIF files of all sorts.
fn files(dir: &Path) {
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/witness"), "here").unwrap();
    let options = ConvertOptions::default();
    convert_directory(&at("tree"), Owners::Root, &at("a.sqsh"), OutputFormat::Sqsh, &options, &()).unwrap();
    convert_file(&open(&at("a.sqsh")), &at("a.sif"), OutputFormat::Sif, &options, &()).unwrap();
    let write = |name: &str, arch: &str, mut content: &[u8]| {
        let options = SifOptions { arch: arch.to_owned(), ..SifOptions::default() };
        let file = fs::File::create_new(at(name)).unwrap();
        SifWriter::new(file, options).unwrap().write_partition(&mut content).unwrap();
    };
    let squashfs = fs::read(at("a.sqsh")).unwrap();
    write("other-machine.sif", if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" }, &squashfs);
    write("no-image.sif", &Platform::native().architecture, b"what nobody can mount");
    fs::copy(at("a.sif"), at("two-roots.sif")).unwrap();
    let (fs_type, part) = (sif::FsType::Squashfs, sif::PartType::System);
    let kind = sif::Kind::Partition { fs: fs_type, part, arch: sif::Arch::from_go_name("riscv64") };
    let object = sif::NewObject {
        kind,
        name: "second".to_owned(),
        group: None,
        link: sif::Link::None,
        alignment: None,
    };
    add_sif_object(&at("two-roots.sif"), SifAddition { content: &at("a.sqsh"), object }).unwrap();
    fs::write(at("text.sif"), "called a SIF file").unwrap();
}

impl Scene {
    /// The registry promises the file `promised`, and delivers `delivered`.
    fn new(promised: &str, delivered: Delivery) -> Self {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path());
        let sif = fs::read(dir.path().join(promised)).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.sylabs.sif.config.v1+json",
                "digest": Digest::sha256(b"{}"), "size": 2,
            },
            "layers": [{
                "mediaType": "application/vnd.sylabs.sif.layer.v1.sif",
                "digest": Digest::sha256(&sif), "size": sif.len(),
                "annotations": { "org.opencontainers.image.title": "once.sif" },
            }],
        });
        let (sif, n_fetches) = (delivered(sif), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&n_fetches);
        let port = serve(move |request| match request.contains("/manifests/") {
            true => status(200, "", manifest.to_string().as_bytes()),
            false => {
                counted.fetch_add(1, Ordering::Relaxed);
                status(200, "", &sif)
            }
        });
        let reference = Reference::parse(&format!("127.0.0.1:{port}/a:1")).unwrap();
        Self { dir, reference, n_fetches }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> Store {
        Store::open(&self.path("store"), None, StoreOptions::default()).unwrap()
    }

    fn pull(&self, store: &Store) -> Result<PulledImage, SifTransferError> {
        pull_sif(&client(), &self.reference, &Platform::native(), store, &())
    }

    /// What is in the store, by the names of its directories' entries.
    fn stored(&self) -> Vec<String> {
        let entries = |part: &str| fs::read_dir(self.path("store").join(part)).unwrap();
        let parts = ["images", "refs", "leases", "tmp"].into_iter().flat_map(entries);
        parts.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn client() -> Client {
    let (backoff, max_backoff) = (Duration::from_millis(5), Duration::from_millis(20));
    Client::new(ClientOptions { n_attempts: 2, backoff, max_backoff, ..ClientOptions::default() })
}

#[test]
fn a_sif_is_kept_as_it_came() {
    let scene = Scene::new("a.sif", |sif| sif);
    let store = scene.store();
    let pulled = scene.pull(&store).unwrap();
    let read = |path: &Path| fs::read(path).unwrap();
    assert!(read(&pulled.path) == read(&scene.path("a.sif")));
    assert_eq!(pulled.path.extension().unwrap(), "sif");
    // By what is mounted, and by what was delivered.
    assert_eq!(pulled.rootfs_digest, Digest::sha256(&read(&scene.path("a.sqsh"))));
    assert_eq!(pulled.sif_digest, Some(Digest::sha256(&read(&scene.path("a.sif")))));
    assert!(!pulled.was_present);
    let again = scene.pull(&store).unwrap();
    assert_eq!((again.was_present, &again.path), (true, &pulled.path));
    assert_eq!(scene.n_fetches.load(Ordering::Relaxed), 1, "it is there");
    let known = store.lookup(&scene.reference, &Platform::native()).unwrap();
    assert_eq!(known.as_ref(), Some(&pulled.manifest_digest));

    // Nothing that is chosen of a conversion makes another one of it.
    let dated = ConvertOptions { source_date_epoch: Some(7), ..ConvertOptions::default() };
    let found = store.get(&pulled.manifest_digest, &Recipe::of(&dated)).unwrap().unwrap();
    assert_eq!((&found.path, &found.sif_digest), (&pulled.path, &pulled.sif_digest));
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&found));
    assert!(store.verify(&found, &()).unwrap());

    // It is kept while it is used, and goes like any other.
    let everything = StoreLimits { bytes: Some(0), age: None };
    let mark = UseMark::make(&pulled.path).unwrap();
    assert_eq!(store.prune(&everything, false).unwrap().used.len(), 1);
    drop(mark);
    // A byte beside the root file system, which nobody mounts.
    let mut bytes = read(&pulled.path);
    bytes[0] ^= 1;
    fs::write(&pulled.path, bytes).unwrap();
    assert!(!store.verify(&found, &()).unwrap());
    assert_eq!(store.prune(&everything, false).unwrap().removed.len(), 1);
    assert!(scene.stored().is_empty(), "{:?}", scene.stored());
}

#[test]
fn what_cannot_be_mounted_or_is_not_what_was_promised_is_not_kept() {
    let change = |mut sif: Vec<u8>| {
        *sif.last_mut().unwrap() ^= 1;
        sif
    };
    let cut = |mut sif: Vec<u8>| {
        sif.truncate(sif.len() - 1);
        sif
    };
    let all: [(&str, Delivery, &str); 6] = [
        ("a.sif", change, "does not match its digest"),
        ("a.sif", cut, "bytes"),
        ("text.sif", |file| file, "is no SIF file"),
        ("other-machine.sif", |file| file, "no image for"),
        ("two-roots.sif", |file| file, "several root file systems"),
        ("no-image.sif", |file| file, "is not a usable SquashFS"),
    ];
    for (promised, delivered, why) in all {
        let scene = Scene::new(promised, delivered);
        let error = scene.pull(&scene.store()).unwrap_err();
        let mut told = error.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(error) = cause {
            told.push_str(&format!(": {error}"));
            cause = error.source();
        }
        assert!(told.contains(why), "{promised}: {told}");
        assert!(scene.stored().is_empty(), "{promised}: {:?}", scene.stored());
    }
}

#[test]
fn a_fetched_file_has_no_name_and_becomes_what_is_asked_for() {
    let scene = Scene::new("a.sif", |sif| sif);
    let scratch = scene.path("scratch");
    fs::create_dir(&scratch).unwrap();
    let fetched = fetch_sif(&client(), &scene.reference, &Platform::native(), &scratch, &()).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    assert_eq!(fetched.title, "once.sif");
    assert_eq!(fetched.file.name(), Path::new(&format!("oras://{}", scene.reference)));
    let options = ConvertOptions::default();
    for (name, original, format) in
        [("b.sqsh", "a.sqsh", OutputFormat::Sqsh), ("b.sif", "a.sif", OutputFormat::Sif)]
    {
        let made = convert_file(&fetched.file, &scene.path(name), format, &options, &()).unwrap();
        assert_eq!(made.manifest_digest.as_ref(), fetched.file.manifest_digest());
        assert!(fs::read(scene.path(name)).unwrap() == fs::read(scene.path(original)).unwrap(), "{name}");
    }
}

#[test]
fn the_root_of_a_fetched_file_is_for_the_machine_that_was_asked_for() {
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let native = Platform::native().architecture;
    // The second of the file with two is for another one still.
    for (promised, wanted, is_there) in [
        ("a.sif", native.as_str(), true),
        ("a.sif", other, false),
        ("other-machine.sif", other, true),
        ("other-machine.sif", native.as_str(), false),
        ("two-roots.sif", "riscv64", true),
        ("two-roots.sif", other, false),
    ] {
        let scene = Scene::new(promised, |sif| sif);
        let platform = Platform { architecture: wanted.to_owned(), ..Platform::native() };
        let fetched = fetch_sif(&client(), &scene.reference, &platform, scene.dir.path(), &()).unwrap();
        let (made, options) = (scene.path("made.sqsh"), ConvertOptions::default());
        let result = convert_file(&fetched.file, &made, OutputFormat::Sqsh, &options, &());
        assert_eq!(result.is_ok(), is_there, "{promised} for {wanted}: {result:?}");
    }
}
