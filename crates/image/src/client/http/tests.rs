use std::sync::Arc;

use super::*;
use crate::client::{Certificates, Keyring, KeyringError};

#[test]
fn what_is_asked_for_one_host_is_no_leave_for_others() {
    let target = |registry: &str| Target {
        registry: registry.parse().unwrap(),
        repository: None,
        access: Access::Pull,
        transport: Transport::Auto,
    };
    // The registry and how it is spoken to; what it names; how that may be spoken to, and whether a login may go there.
    for (registry, channel, named, allowed, login) in [
        ("reg.example", Channel::Tls, "https://reg.example/token", Some(Channel::Tls), true),
        ("reg.example", Channel::Tls, "https://auth.other/token", Some(Channel::Tls), true),
        ("reg.example", Channel::Tls, "http://reg.example/token", None, false),
        ("reg.example", Channel::Tls, "http://127.0.0.1/token", None, false),
        ("reg.example", Channel::Plain, "http://reg.example:81/token", Some(Channel::Plain), true),
        ("reg.example", Channel::Plain, "https://reg.example/token", Some(Channel::Tls), true),
        ("reg.example", Channel::Plain, "http://auth.other/token", None, false),
        ("reg.example", Channel::Plain, "https://auth.other/token", Some(Channel::Tls), false),
        ("reg.example", Channel::Plain, "http://localhost/token", None, false),
        ("reg.example", Channel::Unverified, "https://reg.example/token", Some(Channel::Unverified), true),
        ("reg.example", Channel::Unverified, "https://auth.other/token", Some(Channel::Tls), false),
        ("reg.example", Channel::Unverified, "http://reg.example/token", None, false),
        ("localhost:5000", Channel::Plain, "http://127.0.0.1:5001/token", Some(Channel::Plain), true),
        ("localhost:5000", Channel::Plain, "https://auth.other/token", Some(Channel::Tls), true),
        ("localhost:5000", Channel::Plain, "http://auth.other/token", None, false),
        ("localhost:5000", Channel::Tls, "http://localhost:5000/token", None, false),
    ] {
        let target = target(registry);
        let tls = channel != Channel::Plain;
        let url = Url { tls, authority: registry.to_owned(), path: "/v2/".to_owned() };
        let origin = Origin { target: &target, url, channel };
        let named = Url::parse(named).unwrap();
        assert_eq!(origin.channel_to(&named), allowed, "{registry} {channel:?} {named}");
        assert_eq!(origin.may_name(&named), login, "{registry} {channel:?} {named}");
    }
}

/// Has a login under one name.
#[derive(Debug)]
struct Kept(&'static str, Login);

impl Keyring for Kept {
    fn login(
        &self,
        registry: &Registry,
        _: Option<&Repository>,
    ) -> Result<Option<Credentials>, KeyringError> {
        let known = registry.as_str() == self.0;
        let (login, origin) = (self.1.clone(), "a file".to_owned());
        Ok(known.then_some(Credentials { login, origin, of_any_port: false }))
    }

    fn certificates(&self, _: &str) -> Result<Option<Certificates>, KeyringError> {
        Ok(None)
    }
}

#[test]
fn the_login_of_another_port_is_not_given_away() {
    let password = Login::Password { user: "me".to_owned(), password: Secret::new("hunter2") };
    let token = Login::RegistryToken(Secret::new("hunter2"));
    let (tls, plain) = (Channel::Tls, Channel::Plain);
    // Where the login is kept and what it is; the registry and how it is spoken to; what it names; whether it is used.
    for (kept, login, registry, channel, realm, used) in [
        ("reg.example", &password, "reg.example:5000", tls, "https://reg.example/t", true),
        ("reg.example", &password, "reg.example:5000", plain, "http://reg.example/t", false),
        ("reg.example:81", &password, "reg.example:5000", plain, "http://reg.example:81/t", false),
        ("reg.example", &password, "reg.example:5000", plain, "https://reg.example/t", false),
        ("reg.example", &password, "reg.example:5000", Channel::Unverified, "https://reg.example/t", false),
        ("reg.example", &password, "reg.example:5000", tls, "http://reg.example/t", false),
        ("localhost:5001", &password, "localhost:5000", plain, "http://localhost:5001/t", true),
        ("reg.example", &token, "reg.example:5000", tls, "https://reg.example/t", false),
        ("localhost:5001", &token, "localhost:5000", plain, "http://localhost:5001/t", false),
        // Its own is used however it is spoken to.
        ("reg.example:5000", &password, "reg.example:5000", plain, "http://reg.example/t", true),
        ("reg.example:5000", &token, "reg.example:5000", tls, "https://reg.example/t", true),
    ] {
        let target = Target {
            registry: registry.parse().unwrap(),
            repository: None,
            access: Access::Pull,
            transport: Transport::Auto,
        };
        let url = Url { tls: channel != plain, authority: registry.to_owned(), path: "/v2/".to_owned() };
        let origin = Origin { target: &target, url, channel };
        let challenge = Challenge::choose([format!("Bearer realm=\"{realm}\"").as_str()].into_iter());
        let keyring = Arc::new(Kept(kept, login.clone()));
        let http = Http::new(ClientOptions { keyring, ..ClientOptions::default() });
        let found = http.login_for(&origin, &challenge.unwrap()).unwrap();
        assert_eq!(found.is_some(), used, "{kept} {registry} {channel:?} {realm}");
    }
}

#[test]
fn a_login_is_not_told_to_whoever_listens() {
    use Channel::{Plain, Tls, Unverified};
    let (clear, port) = (Some(Withheld::InClear), Some(Withheld::AnotherPort));
    // The registry, how it is to be and is spoken to; why its own login, and that of all ports, do not go there.
    for (registry, transport, channel, own, of_any_port) in [
        ("reg.example:5000", Transport::Auto, Tls, None, None),
        ("reg.example:5000", Transport::Plain, Plain, None, port),
        ("reg.example:5000", Transport::Insecure, Unverified, None, port),
        ("reg.example:5000", Transport::Insecure, Plain, clear, clear),
        ("localhost:5000", Transport::Auto, Plain, None, None),
        ("127.0.0.1:5000", Transport::Insecure, Unverified, None, None),
    ] {
        let target =
            Target { registry: registry.parse().unwrap(), repository: None, access: Access::Pull, transport };
        let url = Url { tls: channel != Plain, authority: registry.to_owned(), path: "/v2/".to_owned() };
        let origin = Origin { target: &target, url, channel };
        let credentials = |of_any_port| Credentials {
            login: Login::RegistryToken(Secret::new("hunter2")),
            origin: "a file".to_owned(),
            of_any_port,
        };
        assert_eq!(origin.withholds(&credentials(false)), own, "{registry} {transport:?} {channel:?}");
        let found = origin.withholds(&credentials(true));
        assert_eq!(found, of_any_port, "{registry} {transport:?} {channel:?}");
    }
}

#[test]
fn what_is_stored_first_may_take_longer() {
    let minute = Duration::from_secs(60);
    for (bytes, seconds) in [(0, 60), (1 << 20, 60), (8 << 30, 60 + 1024), (u64::MAX, 60 + (u64::MAX >> 23))]
    {
        assert_eq!(answer_within(minute, bytes).as_secs(), seconds);
    }
}

#[test]
fn servers_are_quoted() {
    for (body, want) in [
        (r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#, ": DENIED not you"),
        (r#"{"details":"incorrect username or password"}"#, ": incorrect username or password"),
        (r#"{"error":"invalid_grant","error_description":"gone \u001b"}"#, ": gone \\u{1b}"),
        (r#"{"errors":[]}"#, ""),
        ("[]", ""),
        ("<html>", ""),
    ] {
        assert_eq!(message_of(body.as_bytes(), &[]), want, "{body}");
    }
    let secrets = [Secret::new("t0k3n".repeat(200))];
    let body = format!(r#"{{"details":"bad token {}"}}"#, secrets[0].expose());
    assert_eq!(message_of(body.as_bytes(), &secrets), ": bad token ***");
}
