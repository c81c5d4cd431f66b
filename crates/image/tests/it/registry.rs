//! Pulls from a real registry, from lying servers, and into the store.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use situla_image::{
    Client, ClientError, ClientOptions, ConvertError, ConvertOptions, Event, FlattenError, Progress,
    PullError, PulledImage, ResolveError, SourceError, Store, StoreOptions, VerifyError, pull,
};
use situla_oci::{Digest, Platform, Reference};

use crate::tar_builder::TarBuilder;
use crate::tools::{TestRegistry, gzip, have, layout, run, serve, status, zstd};

const TOOLS: &[&str] = &["docker-registry", "skopeo"];

fn client() -> Client {
    Client::new(ClientOptions {
        n_attempts: 3,
        backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(20),
        read_timeout: Duration::from_secs(10),
        ..ClientOptions::default()
    })
}

fn store(dir: &Path) -> Store {
    let options =
        StoreOptions { stale_after: Duration::from_millis(400), wait_limit: Duration::from_secs(30) };
    Store::open(&dir.join("store"), None, options).expect("the directory is ours")
}

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

fn pull_with(store: &Store, text: &str, progress: &dyn Progress) -> Result<PulledImage, PullError> {
    let reference = Reference::parse(text).expect("a reference");
    pull(&client(), &reference, &amd64(), store, &ConvertOptions::default(), progress)
}

fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_246_822_519) >> 24) as u8).collect();
    let low = TarBuilder::new().file("data", &noise).file("a", b"1").build();
    let up = TarBuilder::new().file("a", b"2").build();
    vec![(low.clone(), gzip(&low)), (up.clone(), gzip(&up))]
}

/// Pushes the sample image under the given name.
fn push(registry: &TestRegistry, source: &Path, image: &str, args: &[&str]) {
    run(Command::new("skopeo")
        // Root's skopeo keeps its cache in /var/lib unless it takes itself for somebody else.
        .env("_CONTAINERS_ROOTLESS_UID", "65534")
        .env("XDG_DATA_HOME", registry.dir.path().join("skopeo"))
        .args(["copy", "--dest-tls-verify=false", "--insecure-policy"])
        .args(args)
        .arg(format!("oci:{}:latest", source.display()))
        .arg(format!("docker://{}", registry.name(image))));
}

/// Files in the store that are not meant to stay.
fn leftovers(store_dir: &Path) -> Vec<String> {
    ["tmp", "leases"]
        .iter()
        .flat_map(|sub| fs::read_dir(store_dir.join("store").join(sub)).expect("a store"))
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect()
}

#[test]
fn pulls_gzip_zstd_and_docker_images() {
    if !have("pulls_gzip_zstd_and_docker_images", TOOLS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start();
    let source = layout(dir.path(), &layers(), "{}");
    push(&registry, &source, "team/gz:1", &[]);
    let recompressed: Vec<_> = layers().into_iter().map(|(tar, _)| (tar.clone(), zstd(&tar))).collect();
    let zst_dir = tempfile::tempdir().unwrap();
    push(&registry, &layout(zst_dir.path(), &recompressed, "{}"), "team/zst:1", &[]);
    push(&registry, &source, "team/docker:1", &["--format", "v2s2"]);
    let store = store(dir.path());
    let mut contents = Vec::new();
    for image in ["team/gz:1", "team/zst:1", "team/docker:1"] {
        let pulled =
            pull_with(&store, &registry.name(image), &()).unwrap_or_else(|e| panic!("{image}: {e:?}"));
        assert!(!pulled.was_present);
        let bytes = fs::read(&pulled.path).unwrap();
        assert!(pulled.rootfs_digest.matches(&bytes), "{image}");
        let raw = run(Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{}", registry.name(image))));
        assert_eq!(pulled.manifest_digest, Digest::sha256(raw.as_bytes()), "{image}");
        let rootfs = situla_squashfs::Image::open(bytes, situla_squashfs::ReadOptions::default()).unwrap();
        assert_eq!(rootfs.read_file("a", 10).unwrap().unwrap(), b"2");
        contents.push(rootfs.read_file("data", 4_000_000).unwrap().unwrap());
    }
    let compressed =
        fs::read_dir(registry.dir.path().join("data/docker/registry/v2/blobs/sha256")).unwrap().count();
    assert!(compressed > 5, "the pushes made different blobs");
    assert!(contents.windows(2).all(|w| w[0] == w[1]));
    assert_eq!((store.list().unwrap().len(), store.list_refs().unwrap().len()), (3, 3));
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());

    // Again: nothing is fetched; pinned: not even asked for.
    let again = pull_with(&store, &registry.name("team/gz:1"), &()).unwrap();
    assert!(again.was_present);
    let pinned = format!("{}@{}", registry.name("team/gz"), again.manifest_digest);
    pull_with(&store, &pinned, &()).unwrap();
    let missing = pull_with(&store, &registry.name("team/none:1"), &()).unwrap_err();
    assert!(matches!(client_error(&missing), Some(ClientError::NotFound { .. })), "{missing:?}");
    drop(registry);
    assert!(pull_with(&store, &pinned, &()).unwrap().was_present);
    let gone = pull_with(&store, &again_name(&pinned), &()).unwrap_err();
    assert!(matches!(client_error(&gone), Some(ClientError::Unreachable { .. })), "{gone:?}");
}

fn again_name(pinned: &str) -> String {
    format!("{}:1", pinned.split('@').next().expect("a name"))
}

fn client_error(error: &PullError) -> Option<&ClientError> {
    match error {
        PullError::Resolve { source: ResolveError::Source(SourceError::Registry(error)), .. } => Some(error),
        _ => None,
    }
}

fn verify_error(error: &PullError) -> Option<&VerifyError> {
    match error {
        PullError::Convert { source: ConvertError::Flatten(FlattenError::Verify(error)), .. } => Some(error),
        PullError::Resolve { source: ResolveError::Verify(error), .. } => Some(error),
        PullError::Resolve {
            source: ResolveError::Source(SourceError::Registry(ClientError::Verify(e))),
            ..
        } => Some(e),
        _ => None,
    }
}

#[test]
fn a_tampered_registry_is_found_out() {
    if !have("a_tampered_registry_is_found_out", TOOLS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = TestRegistry::start();
    let source = layout(dir.path(), &layers(), "{}");
    push(&registry, &source, "x:1", &[]);
    let raw = run(Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{}", registry.name("x:1"))));
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    let manifest_digest = Digest::sha256(raw.as_bytes()).to_string();
    let store = store(dir.path());
    for (what, digest) in [("layer", layer), ("config", config), ("manifest", manifest_digest.as_str())] {
        let path = registry.blob_path(digest);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = pull_with(&store, &registry.name("x:1"), &()).unwrap_err();
        // The registry itself notices some damage to manifests and refuses to serve them.
        let refused = what == "manifest" && client_error(&error).is_some();
        let found = matches!(verify_error(&error), Some(VerifyError::DigestMismatch { .. }));
        assert!(found || refused, "{what}: {error:?}");
        assert_eq!(leftovers(dir.path()), Vec::<String>::new(), "{what}");
        assert!(store.list().unwrap().is_empty(), "{what}");
        fs::write(&path, &good).unwrap();
    }
    pull_with(&store, &registry.name("x:1"), &()).unwrap();
}

/// A registry of one image, whose answers a test can bend: `bend(path, answer number, honest body)`.
fn fake_registry(
    layers: &[(Vec<u8>, Vec<u8>)],
    bend: impl Fn(&str, usize, &[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> (u16, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let source = layout(dir.path(), layers, "{}");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(source.join("index.json")).expect("made above"))
            .expect("made above");
    let manifest = index["manifests"][0]["digest"].as_str().expect("made above").replace(':', "/");
    let count = AtomicUsize::new(0);
    let port = serve(move |request| {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let digest = path.rsplit('/').next().unwrap_or_default();
        let file = if path.contains("/manifests/") { manifest.clone() } else { digest.replace(':', "/") };
        let n = count.fetch_add(1, Ordering::SeqCst);
        let Ok(body) = fs::read(source.join("blobs").join(file)) else { return status(404, "", b"") };
        if let Some(answer) = bend(request, n, &body) {
            return answer;
        }
        match range_of(request) {
            Some(from) => {
                let range = format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                status(206, &range, &body[from..])
            }
            None => status(200, "", &body),
        }
    });
    (port, dir)
}

fn range_of(request: &str) -> Option<usize> {
    let line = request.lines().find(|l| l.to_ascii_lowercase().starts_with("range: bytes="))?;
    line["range: bytes=".len()..].trim().trim_end_matches('-').parse().ok()
}

#[test]
fn broken_transfers_resume_where_they_stopped() {
    let resumed = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = resumed.clone();
    let (port, dir) = fake_registry(&layers(), move |request, n, body| {
        if body.len() < 100_000 {
            return None;
        }
        let from = range_of(request).unwrap_or(0);
        if from > 0 {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        // Each answer promises all and breaks off in the middle, until little is left.
        let rest = &body[from..];
        (rest.len() > 10_000).then(|| {
            let range = format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
            let full = status(if from > 0 || n == usize::MAX { 206 } else { 200 }, &range, rest);
            full[..full.len() - rest.len() / 2].to_vec()
        })
    });
    let store = store(dir.path());
    let pulled = pull_with(&store, &format!("127.0.0.1:{port}/x"), &()).unwrap();
    assert!(resumed.load(Ordering::SeqCst) >= 3);
    assert!(pulled.rootfs_digest.matches(&fs::read(pulled.path).unwrap()));
}

#[test]
fn what_a_reader_does_meanwhile_is_no_interruption() {
    use std::io::Read;
    let blob: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let (whole, half) = (blob.clone(), blob.len() / 2);
    let port = serve(move |request| match range_of(request) {
        None => {
            let full = status(200, "", &whole);
            full[..full.len() - half].to_vec()
        }
        Some(from) => {
            let range = format!("content-range: bytes {from}-{}/{}\r\n", whole.len() - 1, whole.len());
            status(206, &range, &whole[from..])
        }
    });
    let patience = Duration::from_millis(300);
    let client = Client::new(ClientOptions {
        patience,
        n_attempts: 3,
        backoff: Duration::from_millis(1),
        ..ClientOptions::default()
    });
    let digest = Digest::sha256(&blob);
    let descriptor = serde_json::json!({ "mediaType": "x", "digest": digest, "size": blob.len() });
    let descriptor = serde_json::from_value(descriptor).unwrap();
    let reference = Reference::parse(&format!("127.0.0.1:{port}/x:1")).unwrap();
    let mut reader = client.open_blob(&reference, &descriptor, "the blob").unwrap();
    let mut found = vec![0; blob.len() - half];
    reader.read_exact(&mut found).unwrap();
    // It has work for much longer than interruptions may take.
    let began = Instant::now();
    while began.elapsed() < patience * 3 {
        assert!(Digest::sha256(&blob) == digest);
    }
    reader.read_to_end(&mut found).unwrap();
    assert!(found == blob);
}

#[test]
fn lies_are_errors_of_the_right_kind() {
    type Check = fn(&VerifyError) -> bool;
    type Bend = fn(&str, usize, &[u8]) -> Option<Vec<u8>>;
    let truncated: Bend = |_, _, body| {
        (body.len() > 100_000).then(|| {
            let full = status(200, "", body);
            full[..full.len() - 1000].to_vec()
        })
    };
    let short: Bend = |_, _, body| (body.len() > 100_000).then(|| status(200, "", &body[..body.len() - 1]));
    let long: Bend = |_, _, body| (body.len() > 100_000).then(|| status(200, "", &[body, b"more"].concat()));
    let other: Bend = |_, _, body| {
        (body.len() > 100_000).then(|| {
            let mut bad = body.to_vec();
            bad[50_000] ^= 1;
            status(200, "", &bad)
        })
    };
    let cases: [(&str, Bend, Check); 4] = [
        ("truncated", truncated, |e| matches!(e, VerifyError::Truncated { .. })),
        ("short", short, |e| matches!(e, VerifyError::Truncated { .. })),
        ("long", long, |e| matches!(e, VerifyError::TooLong { .. })),
        ("other bytes", other, |e| matches!(e, VerifyError::DigestMismatch { .. })),
    ];
    for (name, bend, is_right) in cases {
        // Without ranges, every resumption starts anew and breaks at the same place.
        let (port, dir) = fake_registry(&layers(), bend);
        let store = store(dir.path());
        let error = pull_with(&store, &format!("127.0.0.1:{port}/x"), &()).unwrap_err();
        assert!(verify_error(&error).is_some_and(is_right), "{name}: {error:?}");
        assert_eq!(leftovers(dir.path()), Vec::<String>::new(), "{name}");
        assert!(store.list().unwrap().is_empty(), "{name}");
    }
}

/// A registry that names a path where a digest belongs: nothing is asked for by it, and nothing is read or written there.
#[test]
fn digests_that_are_paths_lead_nowhere() {
    let long = format!("sha256:../{}", "a".repeat(61));
    let hostile = [
        "sha256:../../../../outside",
        "../../outside",
        "/outside",
        "sha256:..%2f..%2foutside",
        "sha256:",
        &long,
    ];
    for (digest, place) in
        hostile.iter().flat_map(|digest| ["config", "layers", "index"].map(|at| (*digest, at)))
    {
        let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
        let (seen, named) = (asked.clone(), digest.to_owned());
        let (port, dir) = fake_registry(&layers(), move |request, _, body| {
            seen.lock().unwrap().push(request.lines().next().unwrap_or_default().to_owned());
            if !request.contains("/manifests/") {
                return None;
            }
            let mut manifest: serde_json::Value = serde_json::from_slice(body).unwrap();
            match place {
                "config" => manifest["config"]["digest"] = named.as_str().into(),
                "layers" => manifest["layers"][0]["digest"] = named.as_str().into(),
                _ => {
                    manifest = serde_json::json!({
                        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                        "manifests": [{
                            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": named,
                            "size": body.len(), "platform": { "architecture": "amd64", "os": "linux" }
                        }]
                    });
                }
            }
            Some(status(200, "", manifest.to_string().as_bytes()))
        });
        let store = store(dir.path());
        let outside = dir.path().join("outside");
        fs::write(&outside, "the user's own").unwrap();
        let error = pull_with(&store, &format!("127.0.0.1:{port}/x:1"), &()).unwrap_err();
        let asked = asked.lock().unwrap().clone();
        // The manifest by its tag, and nothing by what it says.
        assert!(
            asked.iter().all(|line| line.starts_with("GET /v2/x/manifests/1 ")),
            "{digest}, {place}: {asked:?}"
        );
        let is_unread = matches!(error, PullError::Resolve { .. }) && format!("{error:?}").contains("Json(");
        assert!(!asked.is_empty() && is_unread, "{digest}, {place}: {error:?}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "the user's own", "{digest}, {place}");
        assert_eq!(leftovers(dir.path()), Vec::<String>::new(), "{digest}, {place}");
        assert!(store.list().unwrap().is_empty(), "{digest}, {place}");
    }
}

/// An index in an index, of OCI's kind and of Docker's, whose manifests are of both kinds; answered to nobody who does not
/// say that he understands all four.
#[test]
fn a_nested_index_leads_to_the_best_variant() {
    const OCI: [&str; 2] =
        ["application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"];
    const DOCKER: [&str; 2] = [
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut blobs: BTreeMap<String, (&str, Vec<u8>)> = BTreeMap::new();
    let mut entry = |kind: &'static str, bytes: Vec<u8>, platform: serde_json::Value| {
        let digest = Digest::sha256(&bytes).to_string();
        let entry = serde_json::json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
        blobs.insert(digest, (kind, bytes));
        match platform {
            serde_json::Value::Null => entry,
            platform => {
                let mut entry = entry;
                entry["platform"] = platform;
                entry
            }
        }
    };
    let platform = |architecture: &str, variant: Option<&str>| {
        let mut platform = serde_json::json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        platform
    };
    let mut image = |name: &str, kind: &'static str, platform: serde_json::Value| {
        let tar = TarBuilder::new().file("which", name.as_bytes()).build();
        let source = layout(&dir.path().join(name), &[(tar.clone(), gzip(&tar))], "{}");
        let (mut manifest, mut config) = (String::new(), (String::new(), String::new()));
        for blob in fs::read_dir(source.join("blobs/sha256")).unwrap() {
            let bytes = fs::read(blob.unwrap().path()).unwrap();
            if bytes.starts_with(b"{\"schemaVersion\"") {
                manifest = String::from_utf8(bytes).unwrap();
            } else if bytes.starts_with(b"{\"architecture\"") {
                // It says what it is for as well; the names are equally long.
                let own = platform["architecture"].as_str().unwrap();
                let text = String::from_utf8(bytes.clone()).unwrap().replace("amd64", own);
                config = (Digest::sha256(&bytes).to_string(), Digest::sha256(text.as_bytes()).to_string());
                entry("application/octet-stream", text.into_bytes(), serde_json::Value::Null);
            } else {
                entry("application/octet-stream", bytes, serde_json::Value::Null);
            }
        }
        manifest = manifest.replace(&config.0, &config.1);
        if kind == DOCKER[1] {
            manifest = manifest
                .replace(OCI[1], kind)
                .replace(
                    "application/vnd.oci.image.config.v1+json",
                    "application/vnd.docker.container.image.v1+json",
                )
                .replace(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    "application/vnd.docker.image.rootfs.diff.tar.gzip",
                );
        }
        entry(kind, manifest.into_bytes(), platform)
    };
    let arm = image("arm64", OCI[1], platform("arm64", None));
    let any = image("any", OCI[1], platform("amd64", None));
    let v2 = image("v2", DOCKER[1], platform("amd64", Some("v2")));
    let v3 = image("v3", OCI[1], platform("amd64", Some("v3")));
    let index = |kind: &str, manifests: &[&serde_json::Value]| {
        serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests })
            .to_string()
            .into_bytes()
    };
    let inner = entry(DOCKER[0], index(DOCKER[0], &[&any, &v3, &v2]), serde_json::Value::Null);
    let outer = entry(OCI[0], index(OCI[0], &[&arm, &inner]), serde_json::Value::Null);
    let digest_of = |entry: &serde_json::Value| entry["digest"].as_str().unwrap().to_owned();
    let (top, nested) = (digest_of(&outer), digest_of(&inner));

    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let lies = std::sync::Arc::new(AtomicUsize::new(0));
    let (seen, lying, within) = (asked.clone(), lies.clone(), nested.clone());
    let port = serve(move |request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = if name == "1" { top.as_str() } else { name };
        let Some((kind, bytes)) = blobs.get(name) else { return status(404, "", b"{}") };
        if path.contains("/manifests/") {
            seen.lock().unwrap().push(name.to_owned());
            let accept = request.lines().find(|line| line.to_ascii_lowercase().starts_with("accept:"));
            let understood =
                OCI.iter().chain(&DOCKER).all(|kind| accept.is_some_and(|line| line.contains(kind)));
            if !understood {
                return status(406, "", b"{}");
            }
        }
        let lie = name == within && lying.load(Ordering::SeqCst) > 0;
        let bytes = if lie { [b" ", &bytes[..]].concat() } else { bytes.clone() };
        status(200, &format!("content-type: {kind}\r\n"), &bytes)
    });
    let reference = Reference::parse(&format!("127.0.0.1:{port}/x:1")).unwrap();
    let (mine, other) = (store(dir.path()), tempfile::tempdir().unwrap());
    let pull_for = |platform: &str, store: &Store| {
        pull(&client(), &reference, &platform.parse().unwrap(), store, &ConvertOptions::default(), &())
    };
    // In one store, so that what was chosen for one machine is not taken for another's.
    for (platform, name, chosen) in [
        ("linux/amd64", "any", &any),
        ("linux/amd64/v2", "v2", &v2),
        ("linux/amd64/v4", "v3", &v3),
        ("linux/arm64/v8", "arm64", &arm),
    ] {
        let pulled = pull_for(platform, &mine).unwrap_or_else(|error| panic!("{platform}: {error:?}"));
        assert_eq!(pulled.manifest_digest.to_string(), digest_of(chosen), "{platform}");
        let bytes = fs::read(&pulled.path).unwrap();
        let rootfs = situla_squashfs::Image::open(bytes, situla_squashfs::ReadOptions::default()).unwrap();
        assert_eq!(rootfs.read_file("which", 10).unwrap().unwrap(), name.as_bytes(), "{platform}");
    }
    // Both levels are asked for by what names them, and of the manifests the chosen one alone.
    asked.lock().unwrap().clear();
    pull_for("linux/amd64/v3", &store(other.path())).unwrap();
    assert_eq!(*asked.lock().unwrap(), [digest_of(&outer), nested.clone(), digest_of(&v3)]);
    let error = pull_for("linux/s390x", &mine).unwrap_err();
    assert!(
        matches!(&error, PullError::Resolve { .. }) && format!("{error:?}").contains("NoMatch"),
        "{error:?}"
    );
    // What is nested is what the outer one has named, or nothing.
    lies.store(1, Ordering::SeqCst);
    let fresh = tempfile::tempdir().unwrap();
    let error = pull_for("linux/amd64", &store(fresh.path())).unwrap_err();
    assert!(matches!(verify_error(&error), Some(VerifyError::DigestMismatch { .. })), "{error:?}");
    assert_eq!(leftovers(fresh.path()), Vec::<String>::new());
}

#[test]
fn servers_that_are_no_registry_or_refuse() {
    let ask = |answer: fn(&str) -> Vec<u8>| {
        let port = serve(answer);
        let reference = Reference::parse(&format!("127.0.0.1:{port}/x:1")).unwrap();
        client().fetch_manifest(&reference).unwrap_err()
    };
    assert!(matches!(
        ask(|_| status(200, "content-type: text/html\r\n", b"<html>")),
        ClientError::NotARegistry { .. }
    ));
    assert!(matches!(
        ask(|_| status(404, "content-type: text/html\r\n", b"<html>")),
        ClientError::NotARegistry { .. }
    ));
    assert!(matches!(ask(|_| status(404, "", b"{}")), ClientError::NotFound { .. }));
    let denied = ask(|_| status(403, "", br#"{"errors":[{"code":"DENIED","message":"not \u001b you"}]}"#));
    assert!(
        matches!(&denied, ClientError::Denied { message, .. } if message == ": DENIED not \\u{1b} you"),
        "{denied}"
    );
    assert!(matches!(
        ask(|_| status(401, "www-authenticate: Basic realm=x\r\n", b"")),
        ClientError::Unauthorized { .. }
    ));
    let limited = ask(|_| status(429, "retry-after: 7\r\n", b""));
    assert!(matches!(limited, ClientError::TooManyRequests { retry_after: Some(d), .. } if d.as_secs() == 7));
    assert!(matches!(ask(|_| status(500, "", b"")), ClientError::Server { status: 500, .. }));
    assert!(matches!(ask(|_| b"garbage\r\n\r\n".to_vec()), ClientError::Unreachable { .. }));
    assert!(matches!(ask(|_| status(200, "", &vec![b' '; (4 << 20) + 1])), ClientError::TooLarge { .. }));
    assert!(matches!(ask(|_| status(302, "", b"")), ClientError::Protocol { .. }));
    assert!(matches!(ask(|_| status(302, "location: /again\r\n", b"")), ClientError::Protocol { .. }));
    assert!(matches!(
        ask(|_| status(302, "location: http://192.0.2.1/x\r\n", b"")),
        ClientError::PlainHttp { .. }
    ));
    let mismatch = ask(|_| {
        let digest = "docker-content-digest: sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\r\n";
        status(200, digest, b"{}")
    });
    assert!(matches!(mismatch, ClientError::Verify(_)));
    // A pinned digest is checked whatever the server says.
    let port = serve(|_| status(200, "", b"{}"));
    let pinned = format!("127.0.0.1:{port}/x@{}", Digest::sha256(b"other"));
    let error = client().fetch_manifest(&Reference::parse(&pinned).unwrap()).unwrap_err();
    assert!(matches!(error, ClientError::Verify(_)));
}

#[test]
fn passing_troubles_are_retried() {
    let count = AtomicUsize::new(0);
    let port = serve(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => status(503, "", b""),
        1 => status(429, "retry-after: 0\r\n", b""),
        _ => status(200, "", b"{}"),
    });
    let reference = Reference::parse(&format!("127.0.0.1:{port}/x:1")).unwrap();
    assert_eq!(client().fetch_manifest(&reference).unwrap().bytes, b"{}");
}

#[test]
fn anonymous_tokens_stay_with_their_registry() {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let note = |who: &str, request: &str| {
        let authorization = request.lines().find(|l| l.to_ascii_lowercase().starts_with("authorization:"));
        let path = request.split(' ').nth(1).unwrap_or_default();
        SEEN.lock().expect("no panic").push(format!("{who} {path} {}", authorization.unwrap_or("-")));
    };
    let cdn = serve(move |request| {
        note("cdn", request);
        status(200, "", b"{}")
    });
    let tokens = serve(move |request| {
        note("tokens", request);
        status(200, "", br#"{"token":"t0k3n"}"#)
    });
    let registry = serve(move |request| {
        note("registry", request);
        if request.contains("Bearer t0k3n") {
            return status(307, &format!("location: http://127.0.0.1:{cdn}/blob\r\n"), b"");
        }
        let challenge =
            format!("www-authenticate: Bearer realm=\"http://127.0.0.1:{tokens}/token\",service=\"s\"\r\n");
        status(401, &challenge, b"")
    });
    let reference = Reference::parse(&format!("127.0.0.1:{registry}/a/b:1")).unwrap();
    let client = client();
    client.fetch_manifest(&reference).unwrap();
    client.fetch_manifest(&reference).unwrap();
    let seen = SEEN.lock().unwrap();
    let manifest = "registry /v2/a/b/manifests/1";
    assert_eq!(
        *seen,
        [
            format!("{manifest} -"),
            "tokens /token?service=s&scope=repository:a/b:pull -".to_owned(),
            format!("{manifest} authorization: Bearer t0k3n"),
            "cdn /blob -".to_owned(),
            format!("{manifest} authorization: Bearer t0k3n"),
            "cdn /blob -".to_owned(),
        ]
    );
}

#[test]
fn only_one_of_many_pulls_converts() {
    let (port, dir) = fake_registry(&layers(), |_, _, _| None);
    let store = store(dir.path());
    let fetched = AtomicUsize::new(0);
    struct Count<'a>(&'a AtomicUsize);
    impl Progress for Count<'_> {
        fn event(&self, event: Event) {
            if let Event::LayerDone { .. } = event {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    let images: Vec<PulledImage> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| pull_with(&store, &format!("127.0.0.1:{port}/x"), &Count(&fetched)).unwrap())
            })
            .collect();
        pulls.into_iter().map(|p| p.join().unwrap()).collect()
    });
    assert!(images.iter().all(|i| i.rootfs_digest == images[0].rootfs_digest));
    assert_eq!(images.iter().filter(|i| !i.was_present).count(), 1);
    assert_eq!(fetched.load(Ordering::SeqCst), 2, "two layers, once");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn leases_of_the_dead_are_taken_over() {
    let (port, dir) = fake_registry(&layers(), |_, _, _| None);
    let store_dir = dir.path().join("store");
    let store = store(dir.path());
    let name = format!("127.0.0.1:{port}/x");
    let pulled = pull_with(&store, &name, &()).unwrap();
    let stem = pulled.path.file_stem().unwrap().to_string_lossy().into_owned();
    let remove = || store.list().unwrap().iter().all(|image| store.remove(image, false).unwrap());
    let lease = store_dir.join(format!("leases/{stem}.lease"));
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let realm = format!("{} {}", boot.trim(), fs::read_link("/proc/self/ns/pid").unwrap().display());
    let holder = |realm: &str, pid: u32| {
        format!("{{\"realm\":\"{realm}\",\"host\":\"h\",\"pid\":{pid},\"started\":1,\"serial\":0}}")
    };
    for (what, text) in [
        ("a process of this machine that ended", holder(&realm, dead.id())),
        ("a reused process id", holder(&realm, std::process::id())),
        ("a silent process of another machine", holder("elsewhere", 1)),
        ("a holder that died while writing its name", String::new()),
    ] {
        assert!(remove());
        fs::write(&lease, text).unwrap();
        fs::write(store_dir.join(format!("tmp/.{stem}.77.0.tmp")), b"left over").unwrap();
        let other = format!("tmp/.sha256-{}.77.0.tmp", "0".repeat(64));
        fs::write(store_dir.join(other), b"left over").unwrap();
        // Somebody else's, in a directory that is a store as well.
        fs::write(store_dir.join("tmp/thesis.tmp"), b"precious").unwrap();
        let again = pull_with(&store, &name, &()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        assert_eq!((again.was_present, &again.rootfs_digest), (false, &pulled.rootfs_digest), "{what}");
        assert_eq!(fs::read(store_dir.join("tmp/thesis.tmp")).unwrap(), b"precious", "{what}");
        fs::remove_file(store_dir.join("tmp/thesis.tmp")).unwrap();
        assert_eq!(leftovers(dir.path()), Vec::<String>::new(), "{what}");
    }
    // One that shows signs of life is waited for.
    assert!(remove());
    fs::write(&lease, holder("elsewhere", 1)).unwrap();
    let waited = AtomicUsize::new(0);
    struct Waits<'a>(&'a AtomicUsize);
    impl Progress for Waits<'_> {
        fn event(&self, event: Event) {
            if let Event::Waiting { .. } = event {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    std::thread::scope(|scope| {
        let done = scope.spawn(|| pull_with(&store, &name, &Waits(&waited)).unwrap());
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            assert!(!done.is_finished(), "did not wait for a living holder");
            fs::File::options()
                .write(true)
                .open(&lease)
                .unwrap()
                .set_modified(std::time::SystemTime::now())
                .unwrap();
            std::thread::yield_now();
        }
        fs::remove_file(&lease).unwrap();
        assert!(!done.join().unwrap().was_present);
    });
    assert_eq!(waited.load(Ordering::SeqCst), 1);
}
