//! Pushes to a real registry, with skopeo as the judge, and to registries that refuse, redirect and fail.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use situla_image::{
    BuiltImage, Certificates, Client, ClientError, ClientOptions, ConvertOptions, Credentials,
    DockerArchiveImage, FetchedManifest, ImageSource, Keyring, KeyringError, LayerSource, LayoutImage, Login,
    OutputFormat, Owners, PackedImage, PushError, PushTarget, Pushed, Route, Secret, SifTransferError,
    SourceError, Target, Transport, Which, convert_directory, convert_file, push_image, push_sif, resolve,
    save_directory, save_image, save_sif,
};
use situla_oci::{Descriptor, Digest, Platform, Reference, Registry, Repository};

use crate::tar_builder::TarBuilder;
use crate::tools::{TestRegistry, gzip, have, layout, open, run, serve, status, zstd};

const TOOLS: &[&str] = &["docker-registry", "skopeo"];
const BASIC: &str = "Basic bWU6aHVudGVyMg==";

/// Has one login for every registry.
#[derive(Debug)]
struct One;

impl Keyring for One {
    fn login(&self, _: &Registry, _: Option<&Repository>) -> Result<Option<Credentials>, KeyringError> {
        let login = Login::Password { user: "me".to_owned(), password: Secret::new("hunter2") };
        Ok(Some(Credentials { login, origin: "the file".to_owned(), of_any_port: false }))
    }

    fn certificates(&self, _: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok(None)
    }
}

fn client() -> Client {
    Client::new(ClientOptions {
        keyring: Arc::new(One),
        n_attempts: 3,
        backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(20),
        read_timeout: Duration::from_secs(20),
        ..ClientOptions::default()
    })
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn target(port: u16, name: &str) -> PushTarget {
    let route = Route {
        registry: format!("127.0.0.1:{port}").parse().unwrap(),
        repository: name.parse().unwrap(),
        transport: Transport::Auto,
    };
    PushTarget { route, tag: "1".parse().unwrap() }
}

/// An image with layers of every kind, one of them twice, and one of several megabytes.
fn image(dir: &Path) -> LayoutImage {
    let noise: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(2_246_822_519) >> 24) as u8).collect();
    let low = TarBuilder::new().file("data", &noise).build();
    let mid = TarBuilder::new().file("a", b"mid").build();
    let top = TarBuilder::new().file("b", b"top").build();
    let layers = [
        (low.clone(), gzip(&low)),
        (mid.clone(), zstd(&mid)),
        (top.clone(), top.clone()),
        (mid.clone(), zstd(&mid)),
    ];
    LayoutImage::open(&layout(dir, &layers, r#"{"Cmd":["/a"]}"#), &Which::Only).unwrap()
}

/// One of plain text alone, which servers of text understand.
fn small_image(dir: &Path) -> LayoutImage {
    let tar = TarBuilder::new().file("a", b"text").build();
    LayoutImage::open(&layout(dir, &[(tar.clone(), tar)], "{}"), &Which::Only).unwrap()
}

fn push(client: &Client, image: &LayoutImage, target: &PushTarget) -> Result<Pushed, PushError> {
    push_image(client, image, &amd64(), target, None, &())
}

fn skopeo(registry: &TestRegistry, words: &[&str]) -> String {
    let mut command = Command::new("skopeo");
    // Root's skopeo keeps its cache in /var/lib unless it takes itself for somebody else.
    command.env("_CONTAINERS_ROOTLESS_UID", "65534");
    command.env("XDG_DATA_HOME", registry.dir.path().join("skopeo"));
    run(command.arg("--insecure-policy").args(words))
}

#[test]
fn what_was_pushed_is_what_skopeo_finds() {
    if !have("what_was_pushed_is_what_skopeo_finds", TOOLS) {
        return;
    }
    let (dir, registry) = (tempfile::tempdir().unwrap(), TestRegistry::start());
    let (image, to) = (image(dir.path()), target(registry.port, "team/tool"));
    let parts = resolve(&image, &amd64()).unwrap();
    let first = push(&client(), &image, &to).unwrap();
    assert_eq!((&first.manifest_digest, first.n_layers, first.bytes_sent), (&parts.digest, 4, first.bytes));
    let there = dir.path().join("there");
    let (from, into) =
        (format!("docker://{}", registry.name("team/tool:1")), format!("oci:{}:1", there.display()));
    skopeo(&registry, &["copy", "--src-tls-verify=false", "--preserve-digests", &from, &into]);
    let theirs = LayoutImage::open(&there, &Which::Only).unwrap();
    let found = resolve(&theirs, &amd64()).unwrap();
    assert_eq!((found.digest, found.manifest_bytes), (parts.digest.clone(), parts.manifest_bytes));
    for layer in &parts.manifest.layers {
        let name = format!("blobs/sha256/{}", layer.digest.hex());
        let ours = dir.path().join("layout").join(&name);
        assert!(fs::read(ours).unwrap() == fs::read(there.join(&name)).unwrap(), "{name}");
    }
    // Once more, and from another repository of the registry: nothing is sent.
    let again = push(&client(), &image, &to).unwrap();
    assert_eq!((again.bytes_sent, again.n_present, &again.manifest_digest), (0, 4, &parts.digest));
    let other = target(registry.port, "elsewhere");
    let mounted = push_image(&client(), &image, &amd64(), &other, Some(&to.route.repository), &()).unwrap();
    assert_eq!((mounted.bytes_sent, mounted.n_mounted), (0, 4));
    skopeo(
        &registry,
        &["inspect", "--tls-verify=false", &format!("docker://{}", registry.name("elsewhere:1"))],
    );
}

#[test]
fn files_trees_and_archives_are_pushed_as_they_are_saved() {
    if !have("files_trees_and_archives_are_pushed_as_they_are_saved", TOOLS) {
        return;
    }
    let (dir, registry) = (tempfile::tempdir().unwrap(), TestRegistry::start());
    let at = |name: &str| dir.path().join(name);
    let root = at("tree");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/witness"), "here").unwrap();
    let options = ConvertOptions { source_date_epoch: Some(1_000_000), ..ConvertOptions::default() };
    convert_directory(&root, Owners::Root, &at("a.sqsh"), OutputFormat::Sqsh, &options, &()).unwrap();
    convert_file(&open(&at("a.sqsh")), &at("a.sif"), OutputFormat::Sif, &options, &()).unwrap();
    let to_layout = Target::parse(&format!("oci:{}:v", at("saved").display())).unwrap().unwrap();
    let saved = save_directory(&root, Owners::Root, &to_layout, &options, &()).unwrap();
    let native = Platform::native();
    let of_dir = || BuiltImage::of_directory(&root, Owners::Root, dir.path(), &options, &()).unwrap();
    for (name, built) in [
        ("dir", of_dir()),
        ("again", of_dir()),
        ("sqsh", BuiltImage::of_file(&open(&at("a.sqsh")), dir.path(), &options, &()).unwrap()),
        ("sif", BuiltImage::of_file(&open(&at("a.sif")), dir.path(), &options, &()).unwrap()),
    ] {
        let pushed = push_image(&client(), &built, &native, &target(registry.port, name), None, &()).unwrap();
        assert_eq!(pushed.manifest_digest, saved.manifest_digest, "{name}");
    }
    // An archive of `docker save` has plain layers; what is pushed has none, and means the same.
    let source = image(dir.path());
    let archive = Target::parse(&format!("docker-archive:{}", at("a.tar").display())).unwrap().unwrap();
    save_image(&source, &amd64(), &archive, false, &()).unwrap();
    let plain = DockerArchiveImage::open(&at("a.tar"), None, dir.path()).unwrap();
    let mut digests = Vec::new();
    for name in ["packed", "packed-again"] {
        let packed = PackedImage::of(&plain, &amd64(), dir.path()).unwrap();
        let pushed =
            push_image(&client(), &packed, &amd64(), &target(registry.port, name), None, &()).unwrap();
        digests.push(pushed.manifest_digest);
    }
    assert_eq!(digests[0], digests[1]);
    let into = format!("oci:{}:1", at("packed").display());
    skopeo(
        &registry,
        &["copy", "--src-tls-verify=false", &format!("docker://{}", registry.name("packed:1")), &into],
    );
    let found = resolve(&LayoutImage::open(&at("packed"), &Which::Only).unwrap(), &amd64()).unwrap();
    assert_eq!(found.config_bytes, resolve(&source, &amd64()).unwrap().config_bytes);
    assert!(found.manifest.layers.iter().all(|layer| layer.media_type.ends_with("+gzip")));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
}

#[test]
fn a_registry_that_wants_a_login_gets_it() {
    if !have("a_registry_that_wants_a_login_gets_it", TOOLS) {
        return;
    }
    // The password of `One`, by crypt(3) with as little work as it allows.
    const USER: &str = "me:$2b$04$uQoICtoSnc/XYTsJNZ8Tq..g5k3cPadTTrMU5RHJWbDUhuMrNgxYu\n";
    let (dir, registry) = (tempfile::tempdir().unwrap(), TestRegistry::start_for(Some(USER)));
    let (image, to) = (image(dir.path()), target(registry.port, "team/private"));
    let stranger = Client::new(ClientOptions { n_attempts: 1, ..ClientOptions::default() });
    let error = push(&stranger, &image, &to).unwrap_err();
    let PushError::Registry { source: ClientError::Unauthorized { .. }, .. } = &error else {
        panic!("{error:?}")
    };
    let pushed = push(&client(), &image, &to).unwrap();
    let name = format!("docker://{}", registry.name("team/private:1"));
    let found = skopeo(
        &registry,
        &["inspect", "--tls-verify=false", "--creds", "me:hunter2", "--format", "{{.Digest}}", &name],
    );
    assert_eq!(found.trim(), pushed.manifest_digest.to_string());
}

/// What a server has been asked: verb, path without its digest, and the login.
type Seen = Arc<Mutex<Vec<String>>>;

fn first_words(request: &str) -> (&str, &str) {
    let mut words = request.split(' ');
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

fn header<'r>(request: &'r str, name: &str) -> &'r str {
    let head = request.split("\r\n\r\n").next().unwrap_or_default();
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// A registry that keeps what it gets in memory, and has an opinion of some requests before.
fn registry(
    seen: &Seen,
    opinion: impl Fn(&str, &str, &str) -> Option<Vec<u8>> + Send + 'static,
) -> (u16, Arc<Mutex<BTreeMap<String, String>>>) {
    let kept = Arc::new(Mutex::new(BTreeMap::<String, String>::new()));
    let (shared, noted) = (kept.clone(), seen.clone());
    let sessions = Mutex::new((0_u32, BTreeMap::<String, String>::new()));
    let port = serve(move |request| {
        let (verb, path) = first_words(request);
        let short = path.split("sha256").next().unwrap_or_default();
        noted.lock().unwrap().push(format!("{verb} {short} {}", header(request, "authorization")));
        if let Some(answer) = opinion(verb, path, request) {
            return answer;
        }
        let (place, query) = path.split_once('?').unwrap_or((path, ""));
        let mut sessions = sessions.lock().unwrap();
        let mut kept = shared.lock().unwrap();
        match verb {
            "HEAD" => status(if kept.contains_key(place) { 200 } else { 404 }, "", b""),
            "POST" => {
                sessions.0 += 1;
                let location = format!("location: {place}{}?state=a%2Bb\r\n", sessions.0);
                status(202, &location, b"")
            }
            "PATCH" => {
                let session = sessions.1.entry(place.to_owned()).or_default();
                let (first, last) = header(request, "content-range").split_once('-').unwrap();
                assert_eq!(first.parse::<usize>().unwrap(), session.len());
                session.push_str(body(request));
                assert_eq!(last.parse::<usize>().unwrap() + 1, session.len());
                status(202, &format!("location: {place}?state=next\r\n"), b"")
            }
            "PUT" if place.contains("/manifests/") => {
                kept.insert(place.to_owned(), body(request).to_owned());
                status(201, "", b"")
            }
            "PUT" => {
                let whole = sessions.1.remove(place).unwrap_or_default() + body(request);
                let digest = query.rsplit_once("digest=").unwrap().1;
                if Digest::sha256(whole.as_bytes()).to_string() != digest {
                    return status(400, "", br#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                kept.insert(format!("/v2/x/blobs/{digest}"), whole);
                status(201, "", b"")
            }
            _ => status(405, "", b""),
        }
    });
    (port, kept)
}

fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[test]
fn a_blob_goes_in_parts_where_it_is_too_long_in_one() {
    let (dir, seen) = (tempfile::tempdir().unwrap(), Seen::default());
    let text = "long text\n".repeat(2_000_000);
    let tar = TarBuilder::new().file("a", text.as_bytes()).build();
    let source = layout(dir.path(), &[(tar.clone(), tar.clone())], "{}");
    let image = LayoutImage::open(&source, &Which::Only).unwrap();
    let (port, kept) = registry(&seen, |verb, _, request| {
        (verb == "PUT" && body(request).len() > 9_000_000).then(|| status(413, "", b"<html>"))
    });
    push(&client(), &image, &target(port, "x")).unwrap();
    let digest = Digest::sha256(&tar);
    assert!(kept.lock().unwrap()[&format!("/v2/x/blobs/{digest}")].as_bytes() == tar);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|line| line.starts_with("PATCH")).count(), 3, "{seen:?}");
    assert!(seen.iter().last().unwrap().starts_with("PUT /v2/x/manifests/1"), "{seen:?}");
}

#[test]
fn a_token_is_for_pushing_and_goes_to_nobody_else() {
    let (dir, seen, elsewhere) = (tempfile::tempdir().unwrap(), Seen::default(), Seen::default());
    let image = small_image(dir.path());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    let tokens = serve(move |request| {
        noted.lock().unwrap().push(format!(
            "{} {}",
            first_words(request).1,
            header(request, "authorization")
        ));
        status(200, "", br#"{"token":"t0k3n"}"#)
    });
    // Uploads go to another host, with a place of its own that proves who may write there.
    let storage = registry(&elsewhere, |_, _, _| None).0;
    let (port, kept) = registry(&seen, move |verb, path, request| {
        if header(request, "authorization") != "Bearer t0k3n" {
            let challenge = format!(
                "www-authenticate: Bearer realm=\"http://127.0.0.1:{tokens}/t\",scope=\"repository:other:pull\"\r\n"
            );
            return Some(status(401, &challenge, b""));
        }
        let location = format!("location: http://127.0.0.1:{storage}/upload?signature=1\r\n");
        (verb == "POST" && path.ends_with("/uploads/")).then(|| status(202, &location, b""))
    });
    let pushed = push(&client(), &image, &target(port, "x")).unwrap();
    assert_eq!((pushed.bytes_sent, kept.lock().unwrap().len()), (pushed.bytes, 1));
    let asked = asked.lock().unwrap();
    assert!(
        !asked.is_empty()
            && asked.iter().all(|line| *line == format!("/t?scope=repository:x:pull%2Cpush {BASIC}")),
        "{asked:?}"
    );
    let elsewhere = elsewhere.lock().unwrap();
    assert_eq!(elsewhere.len(), 2);
    assert!(elsewhere.iter().all(|line| line.ends_with(' ')), "{elsewhere:?}");

    // A redirect of what is sent: followed as it is, without the token, or refused where it would be another request.
    for (code, follows) in [(307, true), (302, false)] {
        let (seen, elsewhere) = (Seen::default(), Seen::default());
        let storage = registry(&elsewhere, |_, _, _| None).0;
        let (port, _) = registry(&seen, move |verb, path, request| {
            if header(request, "authorization").is_empty() {
                return Some(status(401, "www-authenticate: Basic realm=\"x\"\r\n", b""));
            }
            let location = format!("location: http://127.0.0.1:{storage}{path}\r\n");
            (verb == "PUT" && path.contains("digest=")).then(|| status(code, &location, b""))
        });
        let result = push(&client(), &image, &target(port, "x"));
        assert_eq!(result.is_ok(), follows, "{code}: {result:?}");
        let elsewhere = elsewhere.lock().unwrap();
        assert_eq!(elsewhere.is_empty(), !follows, "{elsewhere:?}");
        assert!(elsewhere.iter().all(|line| line.ends_with(' ')), "{elsewhere:?}");
    }
}

#[test]
fn failures_are_tried_again_and_then_told() {
    let dir = tempfile::tempdir().unwrap();
    let image = small_image(dir.path());
    // How often which request fails, and how often the manifest was put in the end.
    for (verb, n_failures, code, works) in [
        ("PUT", 2, 503, true),
        ("POST", 2, 500, true),
        ("HEAD", 2, 502, true),
        // What asks only need not work.
        ("HEAD", 1000, 403, true),
        ("PUT", 1000, 503, false),
        ("POST", 1000, 403, false),
        ("PUT", 1000, 507, false),
    ] {
        let seen = Seen::default();
        let left = Mutex::new(BTreeMap::<String, usize>::new());
        let (port, kept) = registry(&seen, move |found, path, _| {
            let key = path.split(['?', '@']).next().unwrap_or_default();
            // Each session has a path of its own; failures are counted for the kind of path.
            let key = key.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
            let mut left = left.lock().unwrap();
            let n = left.entry(key).or_insert(0);
            (found == verb && *n < n_failures).then(|| {
                *n += 1;
                status(code, "", br#"{"errors":[{"code":"X","message":"not now"}]}"#)
            })
        });
        let result = push(&client(), &image, &target(port, "x"));
        assert_eq!(result.is_ok(), works, "{verb} {code}: {result:?}");
        let has_manifest = kept.lock().unwrap().contains_key("/v2/x/manifests/1");
        assert_eq!(has_manifest, works, "{verb} {code}");
        assert!(seen.lock().unwrap().len() < 40, "{verb} {code}");
        if let Err(error) = result {
            let told = told(&error);
            assert!(told.contains("not now") && told.contains("cannot push to"), "{told}");
        }
    }
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = small_image(dir.path());
    for (location, plain) in [
        ("", false),
        ("location: \r\n", false),
        ("location: uploads/1\r\n", false),
        ("location: http://me:pw@127.0.0.1/x\r\n", false),
        ("location: file:///etc/passwd\r\n", false),
        // From this machine to another one, without TLS.
        ("location: http://192.0.2.1/x\r\n", true),
    ] {
        let seen = Seen::default();
        let (port, kept) =
            registry(&seen, move |verb, _, _| (verb == "POST").then(|| status(202, location, b"")));
        let error = push(&client(), &image, &target(port, "x")).unwrap_err();
        let PushError::Registry { source, .. } = &error else { panic!("{error:?}") };
        let want = if plain {
            matches!(source, ClientError::PlainHttp { .. })
        } else {
            matches!(source, ClientError::Protocol { .. })
        };
        assert!(want, "{location}: {error:?}");
        assert!(kept.lock().unwrap().is_empty());
    }
}

#[test]
fn a_damaged_source_does_not_become_whole_there() {
    let (dir, seen) = (tempfile::tempdir().unwrap(), Seen::default());
    let image = small_image(dir.path());
    let layer = resolve(&image, &amd64()).unwrap().manifest.layers.remove(0);
    let blob = dir.path().join("layout/blobs/sha256").join(layer.digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let (port, kept) = registry(&seen, |_, _, _| None);
    let error = push(&client(), &image, &target(port, "x")).unwrap_err();
    let PushError::Registry { source: ClientError::Content { .. }, .. } = &error else { panic!("{error:?}") };
    assert!(told(&error).contains("does not match its digest"), "{}", told(&error));
    let kept = kept.lock().unwrap();
    let layer = format!("/v2/x/blobs/{}", layer.digest);
    assert!(!kept.contains_key(&layer) && !kept.contains_key("/v2/x/manifests/1"), "{:?}", kept.keys());
    let posts = seen.lock().unwrap().iter().filter(|line| line.starts_with("POST")).count();
    assert!(posts <= 2, "what is wrong here is not sent again and again");
    // And what the registry says that it has stored must be what was sent.
    let (dir, seen) = (tempfile::tempdir().unwrap(), Seen::default());
    let (port, _) = registry(&seen, |verb, path, _| {
        let other = format!("docker-content-digest: {}\r\n", Digest::sha256(b"other"));
        (verb == "PUT" && path.contains("/manifests/")).then(|| status(201, &other, b""))
    });
    let error = push(&client(), &small_image(dir.path()), &target(port, "x")).unwrap_err();
    assert!(matches!(error, PushError::Registry { source: ClientError::Verify(_), .. }), "{error:?}");
}

#[test]
fn a_manifest_that_is_accepted_for_later_is_pushed() {
    let (dir, seen) = (tempfile::tempdir().unwrap(), Seen::default());
    let (port, _) = registry(&seen, |verb, path, _| {
        (verb == "PUT" && path.contains("/manifests/")).then(|| status(202, "", b""))
    });
    push(&client(), &small_image(dir.path()), &target(port, "x")).unwrap();
    let n_puts = seen.lock().unwrap().iter().filter(|line| line.contains("/manifests/")).count();
    assert_eq!(n_puts, 1);
}

/// An image with a layer that nobody lives to see the end of.
struct Endless {
    config: Vec<u8>,
    manifest: FetchedManifest,
}

impl Endless {
    fn new() -> Self {
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
        let layer = Digest::sha256(b"never");
        let bytes = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1_u64 << 50,
            }],
        }));
        let bytes = bytes.unwrap();
        let digest = Digest::sha256(&bytes);
        Self { config, manifest: FetchedManifest { bytes, digest, content_type: None } }
    }
}

impl LayerSource for Endless {
    fn open_layer(&self, _: &str, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let is_config = descriptor.digest == Digest::sha256(&self.config);
        Ok(if is_config { Box::new(self.config.as_slice()) } else { Box::new(io::repeat(1)) })
    }
}

impl ImageSource for Endless {
    fn fetch_top(&self) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }

    fn fetch_child(&self, _: &Descriptor) -> Result<FetchedManifest, SourceError> {
        Ok(self.manifest.clone())
    }
}

/// A registry that takes whatever of a blob comes, in several connections, and refuses a second blob once the first is
/// on its way.
fn patient_registry() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::channel();
    let arrived = Arc::new(Mutex::new(receiver));
    // The threads end with the test process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (sender, arrived) = (sender.clone(), arrived.clone());
            thread::spawn(move || -> io::Result<()> {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
                    head.extend_from_slice(&byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                match first_words(&head) {
                    ("HEAD", _) => stream.write_all(&status(404, "", b"")),
                    ("POST", _) => stream.write_all(&status(202, "location: /upload?a=b\r\n", b"")),
                    _ if header(&head, "content-length").len() < 6 => {
                        let _ = arrived.lock().unwrap().recv_timeout(PATIENCE);
                        stream.write_all(&status(403, "", br#"{"errors":[{"message":"not this"}]}"#))
                    }
                    _ => {
                        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                        stream.read_exact(&mut vec![0; 1 << 20])?;
                        let _ = sender.send(());
                        io::copy(&mut stream, &mut io::sink()).map(drop)
                    }
                }
            });
        }
    });
    port
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn nothing_is_sent_after_a_failure() {
    let port = patient_registry();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let pushed = push_image(&client(), &Endless::new(), &amd64(), &target(port, "x"), None, &());
        sender.send(pushed.map_err(|error| told(&error)))
    });
    let told = receiver.recv_timeout(PATIENCE).expect("it ends").unwrap_err();
    assert!(told.contains("not this"), "what failed first is told: {told}");
}

#[test]
fn whoever_may_read_a_pulled_sif_may_execute_it() {
    // The umask is that of the process, and other tests have theirs: it is set for another process.
    const CHILD: &str = "SITULA_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let script = "umask 027; exec \"$0\" --exact push::whoever_may_read_a_pulled_sif_may_execute_it";
        let mut shell = Command::new("sh");
        run(shell.args(["-c", script]).arg(std::env::current_exe().unwrap()).env(CHILD, "1"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    let options = ConvertOptions::default();
    convert_directory(&at("tree"), Owners::Root, &at("a.sif"), OutputFormat::Sif, &options, &()).unwrap();
    let sif = fs::read(at("a.sif")).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.sylabs.sif.config.v1+json",
            "digest": Digest::sha256(b"{}"), "size": 2,
        },
        "layers": [{
            "mediaType": "application/vnd.sylabs.sif.layer.v1.sif", "digest": Digest::sha256(&sif), "size": sif.len(),
        }],
    });
    let port = serve(move |request| match first_words(request).1 {
        path if path.contains("/manifests/") => status(200, "", manifest.to_string().as_bytes()),
        _ => status(200, "", &sif),
    });
    let reference = Reference::parse(&format!("127.0.0.1:{port}/a:1")).unwrap();
    save_sif(&client(), &reference, &Platform::native(), &at("b.sif"), &options, &()).unwrap();
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a.sif"), mode("b.sif")), (0o750, 0o750));
}

#[test]
fn sif_files_go_there_and_back() {
    if !have("sif_files_go_there_and_back", TOOLS) {
        return;
    }
    let (dir, registry) = (tempfile::tempdir().unwrap(), TestRegistry::start());
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/witness"), "here").unwrap();
    let options = ConvertOptions::default();
    convert_directory(&at("tree"), Owners::Root, &at("a.sif"), OutputFormat::Sif, &options, &()).unwrap();
    let to = target(registry.port, "sif/a");
    let push_as_it_is = |name: &str| push_sif(&client(), &open(&at(name)), name, &to, &());
    let pushed = push_as_it_is("a.sif").unwrap();
    assert_eq!(push_as_it_is("a.sif").unwrap().manifest_digest, pushed.manifest_digest);
    let reference = Reference::parse(&registry.name("sif/a:1")).unwrap();
    let fetch = |out: &str, reference: &Reference| {
        save_sif(&client(), reference, &Platform::native(), &at(out), &options, &())
    };
    let pulled = fetch("b.sif", &reference).unwrap();
    assert_eq!(pulled.manifest_digest, pushed.manifest_digest);
    assert!(fs::read(at("a.sif")).unwrap() == fs::read(at("b.sif")).unwrap());
    assert!(matches!(fetch("b.sif", &reference), Err(SifTransferError::File(_))), "it is there already");
    // What is not one is told from it, on both ways and from both sides.
    push(&client(), &image(dir.path()), &target(registry.port, "layers")).unwrap();
    let layers = Reference::parse(&registry.name("layers:1")).unwrap();
    let error = fetch("c.sif", &layers).unwrap_err();
    assert!(matches!(error, SifTransferError::NotASif { .. }), "{error:?}");
    let error = resolve(&client().image(&reference), &Platform::native()).unwrap_err();
    assert!(error.to_string().contains("it is a SIF file"), "{error}");
    fs::write(at("text.sif"), "no SIF").unwrap();
    assert!(push_as_it_is("text.sif").is_err());
    // A registry that delivers other bytes.
    let blob = registry.blob_path(&pulled.file_digest.to_string());
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = fetch("d.sif", &reference).unwrap_err();
    assert!(told(&error).contains("does not match its digest"), "{}", told(&error));
    assert!(!at("c.sif").exists() && !at("d.sif").exists());
}
