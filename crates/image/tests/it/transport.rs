//! Connections and patience: certificates, mirrors, pauses, and servers that take their time.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use situla_image::{
    Certificates, Client, ClientCertificate, ClientError, ClientOptions, Credentials, Keyring, KeyringError,
    Proxies, ProxyAddress, Route, Secret, Transport,
};
use situla_oci::{Descriptor, Digest, Reference, Registry, Repository};

use crate::tools::{serve, status};

fn options() -> ClientOptions {
    ClientOptions {
        n_attempts: 3,
        backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(20),
        read_timeout: Duration::from_secs(10),
        ..ClientOptions::default()
    }
}

fn reference(host: &str, port: u16) -> Reference {
    Reference::parse(&format!("{host}:{port}/x:1")).expect("a reference")
}

/// Knows the certificates of one host.
#[derive(Debug)]
struct Files(String, Certificates);

impl Keyring for Files {
    fn login(&self, _: &Registry, _: Option<&Repository>) -> Result<Option<Credentials>, KeyringError> {
        Ok(None)
    }

    fn certificates(&self, host: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok((host == self.0).then(|| self.1.clone()))
    }
}

struct Made {
    der: CertificateDer<'static>,
    pem: Vec<u8>,
    key_der: Vec<u8>,
    key_pem: String,
}

fn certificate(name: &str) -> Made {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate can be made");
    Made {
        der: made.cert.der().clone(),
        pem: pem("CERTIFICATE", made.cert.der()),
        key_der: made.signing_key.serialize_der(),
        key_pem: String::from_utf8(pem("PRIVATE KEY", &made.signing_key.serialize_der())).expect("ASCII"),
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    // Basic's encoding is the one that PEM has.
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let value = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= chunk.len() { char::from(alphabet[value]) } else { '=' });
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

/// A TLS server that answers `{}`; it wants a certificate of its clients if one is given.
fn tls_server(server: &Made, client: Option<&Made>) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring speaks them");
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(client.der.clone()).expect("a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.expect("there is a root"))
        }
    };
    let key = PrivatePkcs8KeyDer::from(server.key_der.clone());
    let config =
        builder.with_single_cert(vec![server.der.clone()], key.into()).expect("they belong together");
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback works");
    let port = listener.local_addr().expect("bound").port();
    // The thread ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection =
                rustls::ServerConnection::new(config.clone()).expect("the configuration is good");
            let mut tls = rustls::StreamOwned::new(connection, stream.expect("loopback works"));
            let mut request = [0; 4096];
            // A client that does not trust us goes away here.
            if tls.read(&mut request).is_ok() {
                let _ = tls.write_all(&status(200, "", b"{}"));
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    });
    port
}

#[test]
fn tls_is_checked_against_known_authorities() {
    let server = certificate("localhost");
    let port = tls_server(&server, None);
    let ask = |host: &str, extra_roots: Vec<Vec<u8>>, transport: Transport| {
        let options = ClientOptions { transport, extra_roots, ..options() };
        Client::new(options).fetch_manifest(&reference(host, port))
    };
    let der = server.der.to_vec();
    assert_eq!(ask("localhost", vec![der.clone()], Transport::Tls).unwrap().bytes, b"{}");
    let unknown = ask("localhost", Vec::new(), Transport::Tls).unwrap_err();
    assert!(matches!(unknown, ClientError::Unreachable { .. } | ClientError::NoRoots { .. }), "{unknown:?}");
    let other_name = ask("127.0.0.1", vec![der], Transport::Tls).unwrap_err();
    assert!(matches!(other_name, ClientError::Unreachable { .. }), "{other_name:?}");
    // A registry that is called insecure is spoken to whoever it is, by TLS or without.
    assert_eq!(ask("127.0.0.1", Vec::new(), Transport::Insecure).unwrap().bytes, b"{}");
    let plain = serve(|_| status(200, "", b"{}"));
    // That server waits for the end of a request that is none, so it is the client that gives up.
    let connect_timeout = Duration::from_millis(300);
    let insecure =
        Client::new(ClientOptions { transport: Transport::Insecure, connect_timeout, ..options() });
    assert_eq!(insecure.fetch_manifest(&reference("127.0.0.1", plain)).unwrap().bytes, b"{}");
}

#[test]
fn a_host_has_certificates_of_its_own() {
    let (server, me, other) = (certificate("localhost"), certificate("me"), certificate("other"));
    let port = tls_server(&server, Some(&me));
    let ask = |host: String, authorities: Vec<Vec<u8>>, client: Option<(&Made, &Made)>| {
        let client = client.map(|(certificate, key)| ClientCertificate {
            chain: certificate.pem.clone(),
            key: Secret::new(key.key_pem.clone()),
        });
        let keyring = Arc::new(Files(host, Certificates { authorities, client }));
        let options = ClientOptions { transport: Transport::Tls, keyring, n_attempts: 1, ..options() };
        Client::new(options).fetch_manifest(&reference("localhost", port))
    };
    let here = || format!("localhost:{port}");
    // Several authorities in a file, and text between them.
    let authorities = || vec![[b"# ours\n", &other.pem[..], &server.pem[..]].concat()];
    assert_eq!(ask(here(), authorities(), Some((&me, &me))).unwrap().bytes, b"{}");
    for (what, host, authorities, client) in [
        ("no certificate", here(), authorities(), None),
        ("another one", here(), authorities(), Some((&other, &other))),
        ("authorities of another host", "localhost".to_owned(), authorities(), Some((&me, &me))),
        ("no authority", here(), Vec::new(), Some((&me, &me))),
    ] {
        let error = ask(host, authorities, client).unwrap_err();
        assert!(
            matches!(error, ClientError::Unreachable { .. } | ClientError::NoRoots { .. }),
            "{what}: {error:?}"
        );
    }
    for (what, authorities, client) in [
        ("a key of another certificate", authorities(), Some((&me, &other))),
        ("no PEM", vec![b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n".to_vec()], None),
    ] {
        let error = ask(here(), authorities, client).unwrap_err();
        assert!(matches!(&error, ClientError::Keyring { .. }), "{what}: {error:?}");
        assert!(!format!("{error:?}").contains("PRIVATE"), "{what}: {error:?}");
    }
}

#[test]
fn pauses_are_those_that_the_registry_asks_for() {
    let asked = |answer: fn(usize) -> Vec<u8>| {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let port = serve(move |_| answer(counter.fetch_add(1, Ordering::SeqCst)));
        let result = Client::new(options()).fetch_manifest(&reference("127.0.0.1", port));
        (result, count.load(Ordering::SeqCst))
    };

    let (result, n_asked) = asked(|n| match n {
        0 => status(
            503,
            "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            b"",
        ),
        1 => status(408, "", b""),
        _ => status(200, "", b"{}"),
    });
    assert_eq!((result.unwrap().bytes, n_asked), (b"{}".to_vec(), 3));
    // An hour is not waited for, and a second is.
    let (result, n_asked) = asked(|_| status(429, "retry-after: 3600\r\n", b""));
    let error = result.unwrap_err();
    assert!(error.to_string().ends_with("(rate limit); it says to wait 3600 s"), "{error}");
    assert!(matches!(error, ClientError::TooManyRequests { .. }));
    assert_eq!(n_asked, 1);
    let began = Instant::now();
    let (result, n_asked) = asked(|n| match n {
        0 => status(503, "retry-after: 1\r\n", b""),
        _ => status(200, "", b"{}"),
    });
    assert_eq!((result.unwrap().bytes, n_asked), (b"{}".to_vec(), 2));
    assert!(began.elapsed() >= Duration::from_secs(1));
    for code in [501, 505, 400, 410] {
        let port = serve(move |_| status(code, "", b""));
        let error = Client::new(options()).fetch_manifest(&reference("127.0.0.1", port)).unwrap_err();
        assert!(matches!(error, ClientError::Server { status, .. } if status == code), "{error:?}");
    }
}

#[test]
fn a_manifest_that_drips_ends() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The thread ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("loopback works");
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 1000000\r\n\r\n");
            std::thread::spawn(move || {
                // Until the client has had enough; the receiver never sends.
                let (_sender, never) = std::sync::mpsc::channel::<()>();
                while stream.write_all(b" ").is_ok() {
                    let _ = never.recv_timeout(Duration::from_millis(20));
                }
            });
        }
    });
    let options = ClientOptions { small_timeout: Duration::from_millis(300), n_attempts: 2, ..options() };
    let began = Instant::now();
    let error = Client::new(options).fetch_manifest(&reference("127.0.0.1", port)).unwrap_err();
    assert!(matches!(error, ClientError::Interrupted { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_blob_of_any_promised_size_is_read_to_its_end() {
    let port = serve(|_| status(200, "", b"short"));
    let client = Client::new(ClientOptions { n_attempts: 1, ..options() });
    for size in [u64::MAX, u64::MAX - 1, 5] {
        let text = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{size}}}"#,
            Digest::sha256(b"short")
        );
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        let mut bytes = Vec::new();
        let mut blob = client.open_blob(&reference("127.0.0.1", port), &descriptor, "layer").unwrap();
        blob.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"short", "{size}");
    }
}

/// A registry that has one blob and its manifest, or neither; counts requests.
fn small_registry(has_it: bool) -> (u16, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let port = serve(move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        if has_it && request.contains("/v2/lib/x/") { status(200, "", b"{}") } else { status(404, "", b"{}") }
    });
    (port, count)
}

#[test]
fn mirrors_are_tried_before_the_registry() {
    let blob: Descriptor = serde_json::from_str(&format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":2}}"#,
        Digest::sha256(b"{}")
    ))
    .unwrap();
    let route = |port: u16| Route {
        registry: format!("127.0.0.1:{port}").parse().unwrap(),
        repository: "lib/x".parse().unwrap(),
        transport: Transport::Auto,
    };
    let name = Reference::parse("registry.example/lib/x:1").unwrap();
    let client = |ports: &[u16]| {
        let key = (name.registry().clone(), name.repository().clone());
        let routes = BTreeMap::from([(key, ports.iter().map(|port| route(*port)).collect())]);
        Client::new(ClientOptions { routes, n_attempts: 2, ..options() })
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let fetch = |client: &Client| {
        client.fetch_manifest(&name)?;
        client.open_blob(&name, &blob, "layer").map(|_| ())
    };
    // The first that has it is asked, and for all of it.
    let ((empty, n_empty), (full, n_full), (last, n_last)) =
        (small_registry(false), small_registry(true), small_registry(true));
    fetch(&client(&[closed, empty, full, last])).unwrap();
    let counts = [&n_empty, &n_full, &n_last].map(|n| n.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 2, 0]);
    // Nobody has it: what is told is what the last one said, or a mirror where that cannot be reached.
    let (empty, _) = small_registry(false);
    for ports in [[closed, empty], [empty, closed]] {
        let error = fetch(&client(&ports)).unwrap_err();
        let ClientError::NotFound { what } = &error else { panic!("{error:?}") };
        assert_eq!(*what, format!("manifest of registry.example/lib/x:1 at 127.0.0.1:{empty}/lib/x"));
    }
    assert!(matches!(fetch(&client(&[closed])).unwrap_err(), ClientError::Unreachable { .. }));
}

#[test]
fn a_proxy_gets_the_password_and_no_message_does() {
    let proxied = serve(|request| {
        let known = request.starts_with("CONNECT registry.example:443 ")
            && request.contains("Proxy-Authorization: Basic bWU6aHVudGVyMg==\r\n");
        // Not a tunnel: the client must fail, and show how.
        status(if known { 502 } else { 407 }, "", b"")
    });
    for (address, want) in [
        (format!("http://me:hunter2@127.0.0.1:{proxied}"), "502"),
        (format!("http://127.0.0.1:{proxied}"), "407"),
        ("http://me:hunter2@".to_owned(), "***@"),
    ] {
        let proxies = Proxies { https: Some(ProxyAddress::new(address)), ..Proxies::default() };
        let options = ClientOptions { proxies, n_attempts: 1, ..options() };
        assert!(!format!("{options:?}").contains("hunter2"));
        let client = Client::new(options);
        let error = client.fetch_manifest(&"registry.example/x:1".parse().unwrap()).unwrap_err();
        // A machine without certificate authorities has no TLS to speak of.
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(want) || matches!(error, ClientError::NoRoots { .. }), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
