//! Logins: who is told them, when they are renewed, and that nobody else sees them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use situla_image::{
    Certificates, Client, ClientError, ClientOptions, Credentials, Keyring, KeyringError, Login, LoginCheck,
    Secret,
};
use situla_oci::{Reference, Registry, Repository};

use crate::tools::{serve, status};

const PASSWORD: &str = "pa:ss w\u{f6}rd-hunter2";
/// base64("me:" + PASSWORD)
const BASIC: &str = "Basic bWU6cGE6c3Mgd8O2cmQtaHVudGVyMg==";

/// Knows one login for one host, and counts who asks.
#[derive(Debug)]
struct One {
    host: String,
    login: Login,
    n_asked: AtomicUsize,
}

impl Keyring for One {
    fn login(
        &self,
        registry: &Registry,
        _: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError> {
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        let known = registry.as_str() == self.host;
        Ok(known.then(|| Credentials {
            login: self.login.clone(),
            origin: "the file".to_owned(),
            of_any_port: false,
        }))
    }

    fn certificates(&self, _: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok(None)
    }
}

fn password() -> Login {
    Login::Password { user: "me".to_owned(), password: Secret::new(PASSWORD) }
}

fn keyring(port: u16, login: Login) -> Arc<One> {
    Arc::new(One { host: format!("127.0.0.1:{port}"), login, n_asked: AtomicUsize::new(0) })
}

fn client(keyring: Arc<One>) -> Client {
    Client::new(ClientOptions {
        keyring,
        n_attempts: 2,
        backoff: Duration::from_millis(5),
        read_timeout: Duration::from_secs(10),
        ..ClientOptions::default()
    })
}

fn reference(port: u16) -> Reference {
    Reference::parse(&format!("127.0.0.1:{port}/a/b:1")).expect("a reference")
}

fn authorization(request: &str) -> String {
    let line = request.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization:"));
    line.map_or("-", |line| line["authorization:".len()..].trim()).to_owned()
}

fn path(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

/// What servers have seen, in order.
type Seen = Arc<Mutex<Vec<String>>>;

fn note(seen: &Seen, who: &str, request: &str) {
    let line = format!("{who} {} {}", path(request), authorization(request));
    seen.lock().expect("no test panics while it notes").push(line);
}

fn shown(error: &ClientError) -> String {
    use std::error::Error;
    format!("{error} {error:?} {:?}", error.source().map(ToString::to_string))
}

#[test]
fn a_password_is_sent_when_it_is_asked_for() {
    let seen = Seen::default();
    let noted = seen.clone();
    let port = serve(move |request| {
        note(&noted, "registry", request);
        match (path(request), authorization(request).as_str()) {
            ("/v2/open/manifests/1", _) | (_, BASIC) => status(200, "", b"{}"),
            // The registry repeats what it was sent, which must not show.
            (_, sent) => {
                let body = format!(r#"{{"errors":[{{"code":"UNAUTHORIZED","message":"{sent}"}}]}}"#);
                status(401, "www-authenticate: Basic realm=\"a, b\"\r\n", body.as_bytes())
            }
        }
    });
    let known = keyring(port, password());
    let asked = client(known.clone());
    let open = Reference::parse(&format!("127.0.0.1:{port}/open:1")).unwrap();
    asked.fetch_manifest(&open).unwrap();
    assert_eq!(known.n_asked.load(Ordering::SeqCst), 0, "nobody wanted a login");
    asked.fetch_manifest(&reference(port)).unwrap();
    asked.fetch_manifest(&reference(port)).unwrap();
    assert_eq!(known.n_asked.load(Ordering::SeqCst), 1, "once for both");
    let manifest = "registry /v2/a/b/manifests/1";
    let want = [
        "registry /v2/open/manifests/1 -".to_owned(),
        format!("{manifest} -"),
        format!("{manifest} {BASIC}"),
        format!("{manifest} {BASIC}"),
    ];
    assert_eq!(*seen.lock().unwrap(), want);

    let wrong = Login::Password { user: "me".to_owned(), password: Secret::new("wrong-hunter2") };
    let error = client(keyring(port, wrong)).fetch_manifest(&reference(port)).unwrap_err();
    let ClientError::LoginRejected { origin, message, .. } = &error else { panic!("{error:?}") };
    assert_eq!((origin.as_str(), message.as_str()), ("the file", ": UNAUTHORIZED Basic ***"));
    assert!(!shown(&error).contains("hunter2"), "{error:?}");
    let error = client(keyring(1, password())).fetch_manifest(&reference(port)).unwrap_err();
    assert!(matches!(error, ClientError::Unauthorized { .. }), "{error:?}");
}

#[test]
fn a_login_is_told_to_the_token_service_alone() {
    let seen = Seen::default();
    let (noted, noted_too, noted_three) = (seen.clone(), seen.clone(), seen.clone());
    let registry_port = Arc::new(AtomicUsize::new(0));
    let back_to = registry_port.clone();
    let cdn = serve(move |request| {
        note(&noted, "cdn", request);
        // Sends back to where we came from: without the token that is a stranger's request.
        let back = format!("location: http://127.0.0.1:{}/back\r\n", back_to.load(Ordering::SeqCst));
        status(302, &back, b"")
    });
    let tokens = serve(move |request| {
        note(&noted_too, "tokens", request);
        status(200, "", br#"{"token":"t0k3n","expires_in":300}"#)
    });
    let registry = serve(move |request| {
        note(&noted_three, "registry", request);
        match (path(request), authorization(request).as_str()) {
            ("/back", _) => status(200, "", b"{}"),
            (_, "Bearer t0k3n") => status(307, &format!("location: http://127.0.0.1:{cdn}/blob\r\n"), b""),
            _ => {
                let realm = format!("http://127.0.0.1:{tokens}/token");
                status(401, &format!("www-authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n"), b"")
            }
        }
    });
    registry_port.store(registry.into(), Ordering::SeqCst);
    let manifest = "registry /v2/a/b/manifests/1";
    // The login is found under the registry's name, else under that of the token service.
    for host in [registry, tokens] {
        client(keyring(host, password())).fetch_manifest(&reference(registry)).unwrap();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let want = [
            format!("{manifest} -"),
            format!("tokens /token?service=s&scope=repository:a/b:pull {BASIC}"),
            format!("{manifest} Bearer t0k3n"),
            "cdn /blob -".to_owned(),
            "registry /back -".to_owned(),
        ];
        assert_eq!(seen, want);
    }
}

#[test]
fn a_password_does_not_follow_a_redirect() {
    let seen = Seen::default();
    let (noted, noted_too) = (seen.clone(), seen.clone());
    // It may want a login as well.
    let cdn = serve(move |request| {
        note(&noted, "cdn", request);
        match path(request) {
            "/asks" => status(401, "www-authenticate: Basic realm=\"cdn\"\r\n", b""),
            _ => status(200, "", b"{}"),
        }
    });
    let registry = serve(move |request| {
        note(&noted_too, "registry", request);
        let to = |place: &str| status(307, &format!("location: {place}\r\n"), b"");
        match (path(request), authorization(request).as_str()) {
            (_, "-") => status(401, "www-authenticate: Basic realm=\"r\"\r\n", b""),
            ("/v2/a/port/manifests/1", _) => to(&format!("http://127.0.0.1:{cdn}/blob")),
            ("/v2/a/host/manifests/1", _) => to(&format!("http://localhost:{cdn}/blob")),
            ("/v2/a/slashes/manifests/1", _) => to(&format!("//127.0.0.1:{cdn}/blob")),
            ("/v2/a/asks/manifests/1", _) => to(&format!("http://127.0.0.1:{cdn}/asks")),
            // A login that the registry has brought itself.
            ("/v2/a/user/manifests/1", _) => to(&format!("http://me:x@127.0.0.1:{cdn}/blob")),
            _ => status(404, "", b""),
        }
    });
    for (name, reached) in [("port", 1), ("host", 1), ("slashes", 1), ("asks", 1), ("user", 0)] {
        let reference = Reference::parse(&format!("127.0.0.1:{registry}/a/{name}:1")).unwrap();
        let fetched = client(keyring(registry, password())).fetch_manifest(&reference);
        assert_eq!(fetched.is_ok(), reached == 1 && name != "asks", "{name}: {fetched:?}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let told = |line: &&String| line.starts_with("registry") && line.ends_with(BASIC);
        assert!(seen.iter().filter(told).count() >= 1, "{name}: {seen:?}");
        let elsewhere: Vec<&String> = seen.iter().filter(|line| line.starts_with("cdn")).collect();
        assert!(
            elsewhere.len() >= reached && elsewhere.iter().all(|line| line.ends_with(" -")),
            "{name}: {seen:?}"
        );
    }
}

#[test]
fn a_registry_gets_no_token_by_the_login_of_another_host() {
    let seen = Seen::default();
    let noted = seen.clone();
    let tokens = serve(move |request| {
        note(&noted, "tokens", request);
        status(200, "", br#"{"token":"t0k3n"}"#)
    });
    let registry = serve(move |request| match authorization(request).as_str() {
        "Bearer t0k3n" => status(200, "", b"{}"),
        _ => {
            // Another host by its name, whose login is there.
            let realm = format!("http://localhost:{tokens}/token");
            let scope = "repository:other/private:pull,push";
            status(401, &format!("www-authenticate: Bearer realm=\"{realm}\",scope=\"{scope}\"\r\n"), b"")
        }
    });
    let of_another = Arc::new(One {
        host: format!("localhost:{tokens}"),
        login: password(),
        n_asked: AtomicUsize::new(0),
    });
    // Whatever comes of it, the login was not told.
    let _ = client(of_another).fetch_manifest(&reference(registry));
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.ends_with(" -")), "{seen:?}");
}

#[test]
fn a_token_service_is_not_followed_elsewhere_with_a_login() {
    let seen = Seen::default();
    let noted = seen.clone();
    let elsewhere = serve(move |request| {
        note(&noted, "elsewhere", request);
        status(200, "", br#"{"token":"t0k3n"}"#)
    });
    let port = serve(move |request| {
        if path(request).starts_with("/token") {
            return status(302, &format!("location: http://127.0.0.1:{elsewhere}/token\r\n"), b"");
        }
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        status(401, &format!("www-authenticate: Bearer realm=\"http://{host}/token\"\r\n"), b"")
    });
    let error = client(keyring(port, password())).fetch_manifest(&reference(port)).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
    assert!(seen.lock().unwrap().is_empty());

    // A service that nobody may be sent to gets nothing, with or without a login.
    let port = serve(|_| status(401, "www-authenticate: Bearer realm=\"http://192.0.2.1/token\"\r\n", b""));
    let error = client(keyring(port, password())).fetch_manifest(&reference(port)).unwrap_err();
    assert!(matches!(&error, ClientError::Realm { realm, .. } if realm == "http://192.0.2.1"), "{error:?}");
    let error = client(keyring(1, password())).fetch_manifest(&reference(port)).unwrap_err();
    assert!(matches!(error, ClientError::PlainHttp { .. }), "{error:?}");
}

#[test]
fn rejected_logins_say_where_they_come_from() {
    let port = serve(|request| {
        if path(request).starts_with("/token") {
            let body = format!(r#"{{"details":"no {}"}}"#, authorization(request));
            return status(401, "", body.as_bytes());
        }
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        status(401, &format!("www-authenticate: Bearer realm=\"http://{host}/token\"\r\n"), b"")
    });
    let error = client(keyring(port, password())).fetch_manifest(&reference(port)).unwrap_err();
    let ClientError::LoginRejected { origin, message, .. } = &error else { panic!("{error:?}") };
    assert_eq!((origin.as_str(), message.as_str()), ("the file", ": no Basic ***"));
    assert!(!shown(&error).contains("hunter2") && !shown(&error).contains("bWU6"), "{error:?}");
}

/// A registry whose tokens are good for `n_uses` requests each, and its token service.
fn forgetful_registry(n_uses: usize, seen: &Seen) -> u16 {
    let n_tokens = Arc::new(AtomicUsize::new(0));
    let (counter, noted) = (n_tokens.clone(), seen.clone());
    let tokens = serve(move |request| {
        let n = counter.fetch_add(1, Ordering::SeqCst) + 1;
        let form = request.split("\r\n\r\n").nth(1).unwrap_or_default();
        noted
            .lock()
            .expect("no test panics while it notes")
            .push(format!("{} {form}", request.split(' ').next().unwrap_or_default()));
        let body = format!(r#"{{"access_token":"t{n}","expires_in":300,"refresh_token":"r{n}"}}"#);
        status(200, "", body.as_bytes())
    });
    let uses = Mutex::new((0, 0));
    serve(move |request| {
        let current = n_tokens.load(Ordering::SeqCst);
        let mut uses = uses.lock().expect("no test panics while it counts");
        if uses.0 != current {
            *uses = (current, 0);
        }
        if authorization(request) == format!("Bearer t{current}") && uses.1 < n_uses {
            uses.1 += 1;
            return status(200, "", b"{}");
        }
        let realm = format!("http://127.0.0.1:{tokens}/token");
        status(401, &format!("www-authenticate: Bearer realm=\"{realm}\"\r\n"), b"")
    })
}

#[test]
fn a_token_that_has_expired_is_renewed() {
    let seen = Seen::default();
    let port = forgetful_registry(2, &seen);
    let client = client(keyring(1, password()));
    for n in 0..6 {
        client.fetch_manifest(&reference(port)).unwrap_or_else(|error| panic!("{n}: {error:?}"));
    }
    assert_eq!(seen.lock().unwrap().len(), 3, "two requests a token");
    // One that is never good is not asked for again and again.
    let seen = Seen::default();
    let port = forgetful_registry(0, &seen);
    let error = client.fetch_manifest(&reference(port)).unwrap_err();
    assert!(matches!(error, ClientError::Unauthorized { .. }), "{error:?}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn identity_tokens_are_exchanged_and_replaced() {
    let seen = Seen::default();
    let port = forgetful_registry(1, &seen);
    let client = client(keyring(port, Login::IdentityToken(Secret::new("r+0"))));
    for _ in 0..3 {
        client.fetch_manifest(&reference(port)).unwrap();
    }
    let form = |token: &str| {
        format!(
            "POST grant_type=refresh_token&client_id=situla&refresh_token={token}&scope=repository:a/b:pull"
        )
    };
    assert_eq!(*seen.lock().unwrap(), [form("r%2B0"), form("r1"), form("r2")]);
}

/// Has the login of one user at a token service, and of nobody of that name at the registry.
#[derive(Debug)]
struct Elsewhere(String);

impl Keyring for Elsewhere {
    fn login(
        &self,
        registry: &Registry,
        _: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError> {
        if registry.as_str() == self.0 {
            return Ok(Some(Credentials {
                login: password(),
                origin: "the file".to_owned(),
                of_any_port: false,
            }));
        }
        let message = format!("no password of me is known at {registry}");
        Err(KeyringError { message, remedy: String::new() })
    }

    fn certificates(&self, _: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok(None)
    }
}

#[test]
fn the_login_of_one_user_may_be_kept_with_the_token_service() {
    let tokens = serve(|request| match authorization(request).as_str() {
        BASIC => status(200, "", br#"{"token":"t"}"#),
        _ => status(401, "", b""),
    });
    let port = serve(move |request| match authorization(request).as_str() {
        "Bearer t" => status(200, "", b"{}"),
        _ => {
            let challenge = format!("www-authenticate: Bearer realm=\"http://127.0.0.1:{tokens}/token\"\r\n");
            status(401, &challenge, b"")
        }
    });
    let ask = |host: String| {
        let options = ClientOptions { keyring: Arc::new(Elsewhere(host)), ..ClientOptions::default() };
        Client::new(options).fetch_manifest(&reference(port))
    };
    ask(format!("127.0.0.1:{tokens}")).unwrap();
    // Where neither has it, what is said is about the registry that was named.
    let error = ask("127.0.0.1:1".to_owned()).unwrap_err();
    assert!(shown(&error).contains(&format!("is known at 127.0.0.1:{port}")), "{error:?}");
}

#[test]
fn registry_tokens_are_sent_as_they_are() {
    let port = serve(|request| match authorization(request).as_str() {
        "Bearer given" => status(200, "", b"{}"),
        _ => status(401, "www-authenticate: Bearer realm=\"https://192.0.2.1/t\"\r\n", b""),
    });
    let client = client(keyring(port, Login::RegistryToken(Secret::new("given"))));
    client.fetch_manifest(&reference(port)).unwrap();
}

#[test]
fn a_registry_token_is_for_its_port_alone() {
    let seen = Seen::default();
    let (noted, noted_too) = (seen.clone(), seen.clone());
    let tokens = serve(move |request| {
        note(&noted, "tokens", request);
        status(200, "", br#"{"token":"t0k3n"}"#)
    });
    let port = serve(move |request| {
        note(&noted_too, "registry", request);
        match authorization(request).as_str() {
            "Bearer t0k3n" => status(200, "", b"{}"),
            _ => {
                let challenge = format!("www-authenticate: Bearer realm=\"http://127.0.0.1:{tokens}/t\"\r\n");
                status(401, &challenge, b"")
            }
        }
    });
    let given = Login::RegistryToken(Secret::new("given"));
    client(keyring(tokens, given)).fetch_manifest(&reference(port)).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 3 && !seen.iter().any(|request| request.contains("given")), "{seen:?}");
}

#[test]
fn logins_are_checked_before_they_are_kept() {
    let guarded = serve(|request| match authorization(request).as_str() {
        BASIC if path(request) == "/v2/" => status(200, "", b"{}"),
        _ => status(401, "www-authenticate: Basic realm=\"x\"\r\n", b""),
    });
    let open = serve(|_| status(200, "", b"{}"));
    let page = serve(|_| status(200, "content-type: text/html\r\n", b"<html>"));
    let check = |port: u16, login: Login| {
        let registry: Registry = format!("127.0.0.1:{port}").parse().unwrap();
        client(keyring(port, login)).check_login(&registry)
    };
    assert_eq!(check(guarded, password()).unwrap(), LoginCheck::Accepted);
    assert_eq!(check(open, password()).unwrap(), LoginCheck::NotAsked);
    let wrong = Login::Password { user: "me".to_owned(), password: Secret::new("wrong") };
    assert!(matches!(check(guarded, wrong).unwrap_err(), ClientError::LoginRejected { .. }));
    assert!(matches!(check(page, password()).unwrap_err(), ClientError::NotARegistry { .. }));
}
