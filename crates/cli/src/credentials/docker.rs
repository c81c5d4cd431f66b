//! Docker's `config.json`, and the files of the same form that Podman, Skopeo and Apptainer keep.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use situla_image::{Login, Secret};
use situla_oci::{Registry, Repository};

/// A file's content, of which all that others have written there stays as it is.
#[derive(Clone)]
pub(super) struct DockerConfig(Map<String, Value>);

/// Where a login is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// In the file itself.
    Login(Login),
    /// With a helper, under this name of the server.
    Helper { suffix: String, server: String, must_know: bool },
}

impl DockerConfig {
    /// Reads a file's content; an empty file holds nothing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self(Map::new()));
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err("it is no JSON object".to_owned()),
            // The message says where, and shows nothing of the content.
            Err(error) => Err(format!("it is no JSON: line {}, column {}", error.line(), error.column())),
        }
    }

    /// The file's content.
    pub(super) fn to_text(&self) -> String {
        // Maps of text have nothing that cannot be written.
        let mut text = serde_json::to_string_pretty(&self.0).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Where to look for a login, the best place first: a helper for this registry, one for all, the file.
    pub(super) fn find(&self, registry: &Registry, repository: Option<&Repository>) -> Vec<Found> {
        let keys = keys(registry, repository);
        let mut found = Vec::new();
        let helpers = self.0.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| named(helpers, &keys));
        if let Some((server, suffix)) = own.and_then(|(key, value)| Some((key, value.as_str()?))) {
            let (suffix, server) = (suffix.to_owned(), server.to_owned());
            found.push(Found::Helper { suffix, server, must_know: true });
        }
        let entries = self.0.get("auths").and_then(Value::as_object);
        let entry = entries.and_then(|entries| named(entries, &keys));
        if let Some(suffix) = self.0.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty())
        {
            // Docker leaves an empty entry in the file for what its store has, and tells the store the entry's name.
            let server = entry.map_or(registry.as_str(), |(key, _)| key).to_owned();
            found.push(Found::Helper { suffix: suffix.to_owned(), server, must_know: entry.is_some() });
        }
        found.extend(entry.and_then(|(_, value)| login_of(value)).map(Found::Login));
        found
    }

    /// The helper that keeps new logins for a registry.
    pub(super) fn helper(&self, registry: &Registry) -> Option<(String, String)> {
        let keys = keys(registry, None);
        let helpers = self.0.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| named(helpers, &keys)).map(|(_, suffix)| suffix);
        let suffix = own.or_else(|| self.0.get("credsStore")).and_then(Value::as_str)?;
        (!suffix.is_empty()).then(|| (suffix.to_owned(), registry.to_string()))
    }

    /// All helpers that may have a login for a registry, the one that keeps new ones first.
    pub(super) fn helpers(&self, registry: &Registry) -> Vec<String> {
        let own = self.0.get("credHelpers").and_then(Value::as_object);
        let own = own.and_then(|helpers| named(helpers, &keys(registry, None))).map(|(_, suffix)| suffix);
        let found = own.into_iter().chain(self.0.get("credsStore")).filter_map(Value::as_str);
        found.filter(|suffix| !suffix.is_empty()).map(str::to_owned).collect()
    }

    /// The names by which the helper of a registry knows it: ours, and those in the file.
    pub(super) fn servers(&self, registry: &Registry) -> BTreeSet<String> {
        let mut servers = BTreeSet::from([registry.to_string()]);
        for part in ["auths", "credHelpers"] {
            let names = self.0.get(part).and_then(Value::as_object).into_iter().flat_map(Map::keys);
            servers.extend(names.filter(|name| is_named(name, registry)).cloned());
        }
        servers
    }

    /// Puts a login into the file; `None` leaves the mark of one that a helper has.
    pub(super) fn insert(&mut self, registry: &Registry, login: Option<&Login>) {
        self.remove(registry);
        let mut entry = Map::new();
        match login {
            None => {}
            Some(Login::IdentityToken(token)) => {
                entry.insert("identitytoken".to_owned(), token.expose().into());
            }
            Some(Login::RegistryToken(token)) => {
                entry.insert("registrytoken".to_owned(), token.expose().into());
            }
            Some(login) => {
                let basic = login.to_basic();
                entry.insert("auth".to_owned(), basic.as_ref().map_or("", Secret::expose).into());
            }
        }
        let entries = self.0.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        if !entries.is_object() {
            *entries = Value::Object(Map::new());
        }
        if let Some(entries) = entries.as_object_mut() {
            entries.insert(registry.to_string(), Value::Object(entry));
        }
    }

    /// Takes the logins of a registry out, under whatever spelling of its name; tells whether there was one.
    pub(super) fn remove(&mut self, registry: &Registry) -> bool {
        let Some(entries) = self.0.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = entries.len();
        entries.retain(|key, _| !is_named(key, registry));
        entries.len() < before
    }
}

/// Names by which any helper may know a registry: ours, and the URLs that Docker writes.
pub(super) fn guesses(registry: &Registry) -> [String; 4] {
    let url = |path: &str| format!("https://{registry}{path}");
    [registry.to_string(), url(""), url("/v1/"), url("/v2/")]
}

/// The names under which a login may stand, the most exact first: containers' tools have some for a part of a registry.
fn keys(registry: &Registry, repository: Option<&Repository>) -> Vec<String> {
    let mut name = registry.to_string();
    let mut keys = vec![name.clone()];
    for part in repository.iter().flat_map(|repository| repository.as_str().split('/')) {
        name.push('/');
        name.push_str(part);
        keys.push(name.clone());
    }
    keys.reverse();
    keys
}

/// The entry under the first of `keys` that there is: as it is written, or as the URL that Docker writes.
fn named<'m>(entries: &'m Map<String, Value>, keys: &[String]) -> Option<(&'m str, &'m Value)> {
    let exact = keys.iter().find_map(|key| entries.get_key_value(key));
    let found =
        exact.or_else(|| keys.iter().find_map(|key| entries.iter().find(|(name, _)| normal(name) == *key)));
    found.map(|(key, value)| (key.as_str(), value))
}

/// Whether a key means a registry, in whatever spelling.
pub(super) fn is_named(key: &str, registry: &Registry) -> bool {
    normal(key) == registry.as_str()
}

/// `https://host/v1/` and the like without what is no host; a repository stays.
fn normal(key: &str) -> String {
    let place = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match place {
        Some(place) => place.split('/').next().unwrap_or_default().to_ascii_lowercase(),
        None => match key.trim_end_matches('/').split_once('/') {
            Some((host, "v1" | "v2")) => host.to_ascii_lowercase(),
            Some((host, path)) => format!("{}/{path}", host.to_ascii_lowercase()),
            None => key.trim_end_matches('/').to_ascii_lowercase(),
        },
    }
}

fn login_of(entry: &Value) -> Option<Login> {
    let text = |name: &str| entry.get(name)?.as_str().filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Some(Login::IdentityToken(Secret::new(token)));
    }
    if let Some(token) = text("registrytoken") {
        return Some(Login::RegistryToken(Secret::new(token)));
    }
    if let Some(login) = text("auth").and_then(Login::from_basic) {
        return Some(login);
    }
    let (user, password) = (text("username")?, text("password")?);
    Some(Login::Password { user: user.to_owned(), password: Secret::new(password) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Login {
        Login::Password { user: user.to_owned(), password: Secret::new(password) }
    }

    fn find(text: &str, registry: &str, repository: &str) -> Vec<Found> {
        let config = DockerConfig::parse(text).expect(text);
        config.find(&registry.parse().unwrap(), repository.parse().ok().as_ref())
    }

    #[test]
    fn logins_are_found_under_every_spelling() {
        // "me:pw"
        let me = || vec![Found::Login(password("me", "pw"))];
        for (key, registry, repository, known) in [
            ("a.example", "a.example", "x", true),
            ("A.Example", "a.example", "x", true),
            ("https://a.example", "a.example", "x", true),
            ("https://a.example/v1/", "a.example", "x", true),
            ("http://a.example:5000/v2/", "a.example:5000", "x", true),
            ("a.example/v2/", "a.example", "x", true),
            ("a.example/team", "a.example", "team/x", true),
            ("a.example/team", "a.example", "teams/x", false),
            ("a.example/team", "a.example", "-", false),
            ("a.example:5000", "a.example", "x", false),
            ("a.example", "a.example:5000", "x", false),
            ("b.example", "a.example", "x", false),
            ("https://evil.example/a.example", "a.example", "x", false),
        ] {
            let text = format!(r#"{{"auths": {{"{key}": {{"auth": "bWU6cHc="}}}}}}"#);
            assert_eq!(
                find(&text, registry, repository),
                if known { me() } else { Vec::new() },
                "{key} {registry}"
            );
        }
        let nested = r#"{"auths": {"a.example": {"auth": "bWU6cHc="}, "a.example/t": {"username": "u", "password": "p"}}}"#;
        assert_eq!(find(nested, "a.example", "t/x"), [Found::Login(password("u", "p"))]);
        assert_eq!(find(nested, "a.example", "x"), me());
    }

    #[test]
    fn entries_hold_passwords_or_tokens() {
        for (entry, want) in [
            (r#"{"auth": "bWU6cHc=", "identitytoken": "t"}"#, Some(Login::IdentityToken(Secret::new("t")))),
            (r#"{"registrytoken": "t"}"#, Some(Login::RegistryToken(Secret::new("t")))),
            (r#"{"auth": "", "username": "u", "password": "p"}"#, Some(password("u", "p"))),
            (r#"{"auth": "????"}"#, None),
            (r#"{"auth": 5}"#, None),
            ("{}", None),
            ("[]", None),
        ] {
            assert_eq!(login_of(&serde_json::from_str(entry).unwrap()), want, "{entry}");
        }
        for (text, want) in [
            ("[]", "no JSON object"),
            ("{\"auths\": {\"a\": {\"auth\": \"c2VjcmV0\" \"x\"", "line 1, column"),
        ] {
            let error = DockerConfig::parse(text).err().unwrap();
            assert!(error.contains(want) && !error.contains("c2Vj"), "{error}");
        }
        for text in ["", "{}", r#"{"auths": []}"#, r#"{"auths": {"a.example": []}, "credHelpers": 3}"#] {
            assert_eq!(find(text, "a.example", "x"), [], "{text}");
        }
    }

    #[test]
    fn helpers_come_before_the_file() {
        let text = r#"{
            "credHelpers": {"a.example": "ecr-login", "https://b.example": "b"},
            "credsStore": "pass",
            "auths": {"https://a.example/v1/": {}, "c.example": {"auth": "bWU6cHc="}}
        }"#;
        let helper = |suffix: &str, server: &str, must_know| Found::Helper {
            suffix: suffix.to_owned(),
            server: server.to_owned(),
            must_know,
        };
        assert_eq!(
            find(text, "a.example", "x"),
            [helper("ecr-login", "a.example", true), helper("pass", "https://a.example/v1/", true),]
        );
        assert_eq!(
            find(text, "b.example", "x"),
            [helper("b", "https://b.example", true), helper("pass", "b.example", false),]
        );
        assert_eq!(
            find(text, "c.example", "x"),
            [helper("pass", "c.example", true), Found::Login(password("me", "pw")),]
        );
        let config = DockerConfig::parse(text).unwrap();
        let keeps = |registry: &str| config.helper(&registry.parse().unwrap());
        assert_eq!(keeps("a.example"), Some(("ecr-login".to_owned(), "a.example".to_owned())));
        assert_eq!(keeps("d.example"), Some(("pass".to_owned(), "d.example".to_owned())));
        assert_eq!(DockerConfig::parse("{}").unwrap().helper(&"a.example".parse().unwrap()), None);
    }

    #[test]
    fn helpers_may_know_a_registry_by_several_names() {
        let text = r#"{
            "credHelpers": {"http://a.example/x": "ecr-login", "b.example": "b"}, "credsStore": "pass",
            "auths": {"A.example/v2": {}, "a.example:5000": {}, "a.example/team": {}}
        }"#;
        let (config, a) = (DockerConfig::parse(text).unwrap(), "a.example".parse().unwrap());
        assert_eq!(config.helpers(&a), ["ecr-login", "pass"]);
        let servers: Vec<String> = config.servers(&a).into_iter().collect();
        assert_eq!(servers, ["A.example/v2", "a.example", "http://a.example/x"]);
        assert!(guesses(&a).iter().all(|name| is_named(name, &a)));
    }

    #[test]
    fn what_others_have_written_stays() {
        let text = r#"{"HttpHeaders": {"a": "b"}, "auths": {"https://a.example/v2/": {"auth": "x"}, "b.example": {"auth": "y"}}}"#;
        let mut config = DockerConfig::parse(text).unwrap();
        let a: Registry = "a.example".parse().unwrap();
        config.insert(&a, Some(&password("me", "pw")));
        let value: Value = serde_json::from_str(&config.to_text()).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "HttpHeaders": {"a": "b"},
                "auths": {"a.example": {"auth": "bWU6cHc="}, "b.example": {"auth": "y"}},
            })
        );
        config.insert(&a, Some(&Login::IdentityToken(Secret::new("t"))));
        assert_eq!(config.find(&a, None), [Found::Login(Login::IdentityToken(Secret::new("t")))]);
        assert!(config.remove(&a));
        assert!(!config.remove(&a));
        config.insert(&a, None);
        assert_eq!(config.find(&a, None), []);
        assert!(config.to_text().contains("\"a.example\": {}"));
    }
}
