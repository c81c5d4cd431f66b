//! Connections and patience: certificates, mirrors, pauses, and servers that take their time.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use situla_image::{
    Certificates, Client, ClientCertificate, ClientError, ClientOptions, Credentials, Distrusted, Keyring,
    KeyringError, Proxies, ProxyAddress, Route, Secret, Transport,
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
    assert_eq!(other_name.distrusted(), Some(Distrusted::Registry), "{other_name:?}");
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
        let whose = if ["no certificate", "another one"].contains(&what) {
            Distrusted::Client
        } else {
            Distrusted::Registry
        };
        assert!(
            error.distrusted() == Some(whose) || matches!(error, ClientError::NoRoots { .. }),
            "{what}: {error:?}"
        );
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
    // So it is with too many requests, of a manifest and of a blob: each time when the second is over, and not before.
    let began = Instant::now();
    let (result, n_asked) = asked(|n| match n {
        0 => status(429, "retry-after: 1\r\n", b""),
        _ => status(200, "", b"{}"),
    });
    assert_eq!((result.unwrap().bytes, n_asked), (b"{}".to_vec(), 2));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let count = AtomicUsize::new(0);
    let port = serve(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        // In the middle, too, where the rest is asked for.
        0 | 2 => status(429, "retry-after: 1\r\n", b""),
        1 => broken(b"0123456789", 0, 4),
        _ if request.to_ascii_lowercase().contains("range: bytes=4-\r\n") => broken(b"0123456789", 4, 10),
        _ => status(400, "", b""),
    });
    let began = Instant::now();
    let client = Client::new(options());
    let (name, blob) = (reference("127.0.0.1", port), layer(b"0123456789"));
    let mut bytes = Vec::new();
    client.open_blob(&name, &blob, "layer").unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"0123456789");
    assert!(began.elapsed() >= Duration::from_secs(2));
    for code in [501, 505, 400, 410] {
        let port = serve(move |_| status(code, "", b""));
        let error = Client::new(options()).fetch_manifest(&reference("127.0.0.1", port)).unwrap_err();
        assert!(matches!(error, ClientError::Server { status, .. } if status == code), "{error:?}");
    }
}

/// A layer's descriptor.
fn layer(bytes: &[u8]) -> Descriptor {
    let text = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}"#,
        Digest::sha256(bytes),
        bytes.len()
    );
    serde_json::from_str(&text).expect("a descriptor")
}

/// The answer to a request for a blob, or for its rest, that breaks off before byte `to`.
fn broken(blob: &[u8], from: usize, to: usize) -> Vec<u8> {
    let range = format!("content-range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len());
    let (code, range) = if from > 0 { (206, range.as_str()) } else { (200, "") };
    let whole = status(code, range, &blob[from..]);
    whole[..whole.len() - (blob.len() - to)].to_vec()
}

#[test]
fn a_token_that_ends_within_a_blob_is_replaced() {
    let blob: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    let whole = blob.clone();
    let n_tokens = Arc::new(AtomicUsize::new(0));
    let (given, seen) = (n_tokens.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let noted = seen.clone();
    let port = serve(move |request| {
        let lower = request.to_ascii_lowercase();
        let header = |name: &str| {
            lower
                .lines()
                .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
                .unwrap_or_default()
        };
        let host = header("host:");
        if request.starts_with("GET /token") {
            let n = given.fetch_add(1, Ordering::SeqCst) + 1;
            return status(200, "", format!("{{\"token\":\"t{n}\",\"expires_in\":3600}}").as_bytes());
        }
        let (range, proof) = (header("range: bytes="), header("authorization: bearer"));
        noted.lock().expect("no panic").push(format!("{range} {proof}"));
        let from = range.trim_end_matches('-').parse().unwrap_or(0);
        // The first is good until half of it was sent, and the second until three quarters were, whatever was promised.
        let (quarter, size) = (whole.len() / 4, whole.len());
        let (good, until) = match from {
            0 => ("t1", 2 * quarter),
            _ if from < 3 * quarter => ("t2", 3 * quarter),
            _ => ("t3", size),
        };
        if proof == good {
            return broken(&whole, from, until);
        }
        let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
        status(401, &challenge, b"")
    });
    let client = Client::new(options());
    let name = reference("127.0.0.1", port);
    let mut bytes = Vec::new();
    client.open_blob(&name, &layer(&blob), "layer").unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == blob);
    let (half, most) = (blob.len() / 2, blob.len() / 4 * 3);
    let expected = [
        " ".to_owned(),
        " t1".to_owned(),
        format!("{half}- t1"),
        format!("{half}- t2"),
        format!("{most}- t2"),
        format!("{most}- t3"),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(n_tokens.load(Ordering::SeqCst), 3);
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

/// A proxy that leads to the one server behind it, whatever the name; gives its port, and what it is told.
fn tunnel(to: u16) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = asked.clone();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback works");
    let port = listener.local_addr().expect("bound").port();
    // The threads end with the test process, or with the connection.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("loopback works");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|n| n > 0) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            noted.lock().expect("no panic").push(head.lines().next().unwrap_or_default().to_owned());
            if !head.starts_with("CONNECT ") {
                let _ = client.write_all(&status(405, "", b""));
                continue;
            }
            let mut server = std::net::TcpStream::connect(("127.0.0.1", to)).expect("it listens");
            client.write_all(b"HTTP/1.1 200 X\r\n\r\n").expect("it waits for that");
            let mut back = (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back.0, &mut back.1);
                let _ = back.1.shutdown(std::net::Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut client, &mut server);
                let _ = server.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    (port, asked)
}

#[test]
fn registries_are_reached_through_proxies() {
    let server = certificate("registry.example");
    let (by_tls, tls_asked) = tunnel(tls_server(&server, None));
    let (in_clear, plain_asked) = tunnel(serve(|request| {
        let is_ours = request.to_ascii_lowercase().contains("host: registry.example");
        status(if is_ours { 200 } else { 400 }, "", b"{}")
    }));
    let address = |port: u16| Some(ProxyAddress::new(format!("http://127.0.0.1:{port}")));
    let proxies = |exempt: &str| Proxies {
        https: address(by_tls),
        http: address(in_clear),
        all: None,
        exempt: situla_image::Exempt::parse_list(exempt),
    };
    let ask = |name: &str, transport: Transport, proxies: Proxies| {
        let extra_roots = vec![server.der.to_vec()];
        let connect_timeout = Duration::from_millis(300);
        let options =
            ClientOptions { transport, extra_roots, proxies, connect_timeout, n_attempts: 1, ..options() };
        Client::new(options).fetch_manifest(&Reference::parse(name).unwrap())
    };
    let told = || {
        let taken = |asked: &std::sync::Mutex<Vec<String>>| std::mem::take(&mut *asked.lock().unwrap());
        (taken(&tls_asked), taken(&plain_asked))
    };
    let of = |host: &str| vec![format!("CONNECT {host} HTTP/1.1")];
    // The certificate is that of the registry, which the proxy cannot stand for.
    let found = ask("registry.example/x:1", Transport::Tls, proxies("")).unwrap();
    assert_eq!((found.bytes, told()), (b"{}".to_vec(), (of("registry.example:443"), vec![])));
    let found = ask("registry.example:8443/x:1", Transport::Tls, proxies("")).unwrap();
    assert_eq!((found.bytes, told()), (b"{}".to_vec(), (of("registry.example:8443"), vec![])));
    let stranger = ask("another.example/x:1", Transport::Tls, proxies("")).unwrap_err();
    assert!(matches!(stranger, ClientError::Unreachable { .. }), "{stranger:?}");
    assert_eq!(told(), (of("another.example:443"), vec![]));
    // Plain HTTP goes to the other one.
    let found = ask("registry.example/x:1", Transport::Plain, proxies("another.example")).unwrap();
    assert_eq!((found.bytes, told()), (b"{}".to_vec(), (vec![], of("registry.example:80"))));
    // One for all, where a scheme has none of its own.
    let all = Proxies { all: address(by_tls), ..Proxies::default() };
    ask("registry.example/x:1", Transport::Tls, all).unwrap();
    assert_eq!(told(), (of("registry.example:443"), vec![]));
    // An exempt one, which does not exist (RFC 5737), would be found through either; loopback is exempt as it is.
    for transport in [Transport::Tls, Transport::Plain] {
        let direct = ask("192.0.2.1/x:1", transport, proxies("192.0.2.0/24")).unwrap_err();
        assert!(matches!(direct, ClientError::Unreachable { .. }), "{direct:?}");
    }
    let own = serve(|_| status(200, "", b"{}"));
    ask(&format!("127.0.0.1:{own}/x:1"), Transport::Plain, proxies("")).unwrap();
    assert_eq!(told(), (vec![], vec![]));
}
