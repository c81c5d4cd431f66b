//! A registry with one image of one layer, of which it never sends the end.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use situla_oci::{Digest, Platform};

/// Bytes of the layer that are promised, and that are sent.
const LAYER: usize = 1 << 20;
const SENT: usize = 1 << 10;

pub(crate) struct Stalling {
    address: String,
    n_stalled: Arc<AtomicUsize>,
}

impl Stalling {
    /// Serves until the test ends.
    pub(crate) fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let n_stalled = Arc::new(AtomicUsize::new(0));
        let shared = Arc::clone(&n_stalled);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().flatten() {
                open.extend(answer(stream, &shared));
            }
        });
        Stalling { address, n_stalled }
    }

    pub(crate) fn image(&self) -> String {
        format!("docker://{}/a/tool:1", self.address)
    }

    /// How many wait for the rest of a layer.
    pub(crate) fn n_stalled(&self) -> usize {
        self.n_stalled.load(Ordering::Acquire)
    }
}

/// Answers one request; gives a connection that must stay open.
fn answer(stream: TcpStream, n_stalled: &AtomicUsize) -> Option<TcpStream> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let request = lines.next()?;
    let _ = lines.find(String::is_empty)?;
    let platform = Platform::native();
    let layer = Digest::sha256(b"nobody gets this far").to_string();
    let config = json!({
        "architecture": platform.architecture, "os": platform.os, "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::sha256(config.as_bytes()).to_string(), "size": config.len(),
        },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": LAYER }],
    })
    .to_string();
    let mut stream = stream;
    let mut send = |kind: &str, length: usize, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body))
    };
    if request.contains("/manifests/") {
        send("application/vnd.oci.image.manifest.v1+json", manifest.len(), manifest.as_bytes()).ok()?;
    } else if request.contains(&layer) {
        send("application/octet-stream", LAYER, &[0; SENT]).ok()?;
        n_stalled.fetch_add(1, Ordering::AcqRel);
        return Some(stream);
    } else if request.contains("/blobs/") {
        send("application/octet-stream", config.len(), config.as_bytes()).ok()?;
    } else {
        send("application/json", 2, b"{}").ok()?;
    }
    None
}
