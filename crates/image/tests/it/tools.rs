//! Independent tools and a registry of our own, found or skipped with a printed reason.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use situla_image::ImageFile;

/// Tells whether all `tools` are installed. If not, says so and returns false, or fails where nothing may
/// be skipped.
pub(crate) fn have(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !found(tool)).collect();
    if missing.is_empty() {
        return true;
    }
    skip(&format!("{test}: skipped: {} not installed", missing.join(", ")));
    false
}

/// Says why a test is skipped, or fails it where nothing may be.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("SITULA_TEST_REQUIRE").is_none(), "{reason}");
    say(reason);
}

#[expect(clippy::print_stdout, reason = "a skipped test must say so")]
fn say(text: &str) {
    println!("{text}");
}

/// Opens an image file.
pub(crate) fn open(path: &Path) -> ImageFile {
    ImageFile::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a command that must succeed and returns its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A real registry on a loopback port; stopped when dropped.
#[derive(Debug)]
pub(crate) struct TestRegistry {
    child: Child,
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
}

impl TestRegistry {
    pub(crate) fn start() -> Self {
        Self::start_for(None)
    }

    /// Starts one for the user of a line of an htpasswd file alone, or for everybody.
    pub(crate) fn start_for(user: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        // The port is free now; the registry cannot tell us which it chose.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback works").port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            dir.path().join("data").display(),
            user.map_or_else(String::new, |_| format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                dir.path().join("htpasswd").display()
            ))
        );
        fs::write(dir.path().join("htpasswd"), user.unwrap_or_default()).expect("the directory is ours");
        fs::write(dir.path().join("config.yml"), config).expect("the directory is ours");
        let child = Command::new("docker-registry")
            .args(["serve"])
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the registry is installed");
        let registry = Self { child, port, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry did not start");
            std::thread::yield_now();
        }
        registry
    }

    pub(crate) fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// Returns where the registry keeps a blob.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("registry blobs are sha256");
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers every request with what `answer` makes of the request's text, one connection at a time.
pub(crate) fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback works");
    let port = listener.local_addr().expect("bound").port();
    // The thread ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !is_complete(&request) {
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            if !request.is_empty() {
                // The client may have gone away on purpose.
                let _ = stream.write_all(&answer(&String::from_utf8_lossy(&request)));
            }
        }
    });
    port
}

/// Tells whether a request has all its headers, and the body that they promise.
fn is_complete(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let headers = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    request.len() >= end + 4 + length.unwrap_or(0)
}

/// An answer of a server.
pub(crate) fn status(code: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {code} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Writes an OCI layout with one image of the given layer blobs; returns its directory.
pub(crate) fn layout(dir: &Path, layers: &[(Vec<u8>, Vec<u8>)], exec_config: &str) -> PathBuf {
    use situla_oci::Digest;
    let layout = dir.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("the directory is ours");
    let put = |bytes: &[u8]| -> String {
        let digest = Digest::sha256(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).expect("the directory is ours");
        format!("\"digest\":\"{digest}\",\"size\":{}", bytes.len())
    };
    let diff_ids: Vec<String> =
        layers.iter().map(|(tar, _)| format!("\"{}\"", Digest::sha256(tar))).collect();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{exec_config},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        diff_ids.join(",")
    );
    let descriptors: Vec<String> = layers
        .iter()
        .map(|(_, blob)| {
            let suffix = match blob.as_slice() {
                [0x1f, 0x8b, ..] => "+gzip",
                [0x28, 0xb5, 0x2f, 0xfd, ..] => "+zstd",
                _ => "",
            };
            format!("{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar{suffix}\",{}}}", put(blob))
        })
        .collect();
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",{}}},\"layers\":[{}]}}",
        put(config.as_bytes()),
        descriptors.join(",")
    );
    let index = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",{},\"annotations\":{{\"org.opencontainers.image.ref.name\":\"latest\"}}}}]}}",
        put(manifest.as_bytes())
    );
    fs::write(layout.join("index.json"), index).expect("the directory is ours");
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")
        .expect("the directory is ours");
    layout
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("memory takes everything")
}
