//! What a registry asks for before it answers: the challenges of a 401, and the answers of its token service.

use std::time::Duration;

use situla_oci::Registry;

use super::secret::Secret;
use super::url::{Url, query_escape};

/// A challenge of a `WWW-Authenticate` header (RFC 9110 section 11.6.1) that we have an answer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password.
    Basic,
    /// A token of a token service.
    Bearer(TokenService),
}

/// Where to ask for a token, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenService {
    pub(crate) realm: Url,
    service: Option<String>,
    scope: Option<String>,
}

/// Longest header looked at.
const MAX_HEADER: usize = 8 * 1024;

/// How we call ourselves to a token service.
const CLIENT_ID: &str = "situla";

impl Challenge {
    /// Reads all challenges of all headers and chooses: a token before a password, since it is the weaker secret.
    pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found: Vec<Self> = headers.flat_map(Self::parse_all).collect();
        let bearer = found.iter().position(|challenge| matches!(challenge, Self::Bearer(_)));
        (!found.is_empty()).then(|| found.swap_remove(bearer.unwrap_or(0)))
    }

    /// The token service of a registry as a place of logins, where it is another port of the same host.
    pub(crate) fn realm_of(&self, registry: &Registry) -> Option<Registry> {
        let Self::Bearer(service) = self else { return None };
        let realm: Registry = service.realm.authority.parse().ok()?;
        (realm != *registry && realm.host() == registry.host()).then_some(realm)
    }

    fn parse_all(header: &str) -> Vec<Self> {
        if header.len() > MAX_HEADER {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut open: Option<Parts> = None;
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if word.is_empty() {
                // At the end, or at what no challenge has: what was complete before counts.
                found.extend(open.take().and_then(Parts::finish));
                return found;
            }
            let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
            match (value, &mut open) {
                (Some(value), Some(parts)) => {
                    let Some((value, after)) = take_value(value) else { return found };
                    parts.set(word, value);
                    rest = after;
                }
                (Some(_), None) => return found,
                (None, _) => {
                    let next = Parts { scheme: word.to_ascii_lowercase(), ..Parts::default() };
                    found.extend(open.replace(next).and_then(Parts::finish));
                    rest = after;
                }
            }
        }
    }
}

/// A challenge while it is read.
#[derive(Default)]
struct Parts {
    scheme: String,
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
}

impl Parts {
    fn set(&mut self, key: &str, value: String) {
        match key.to_ascii_lowercase().as_str() {
            "realm" => self.realm = Some(value),
            "service" => self.service = Some(value),
            "scope" => self.scope = Some(value),
            _ => {}
        }
    }

    fn finish(self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer(TokenService {
                realm: Url::parse(&self.realm?)?,
                service: self.service,
                scope: self.scope,
            })),
            _ => None,
        }
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// Takes a token or quoted string; returns it and what follows.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        // Some servers do not quote URLs, so more than a token's characters are taken.
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

impl TokenService {
    /// Returns where to ask for a token of these scopes; without any, for a token that only says who we are.
    pub(crate) fn token_url(&self, scopes: &[String], with_login: bool) -> Url {
        let mut url = self.realm.clone();
        let mut separator = if url.path.contains('?') { '&' } else { '?' };
        for (key, value) in self.parameters(scopes, with_login) {
            url.path.push_str(&format!("{separator}{key}={}", query_escape(&value)));
            separator = '&';
        }
        url
    }

    /// The form by which a refresh token is exchanged for an access token (RFC 6749 section 6).
    pub(crate) fn refresh_form(&self, scopes: &[String], refresh: &Secret) -> Secret {
        let mut form = format!(
            "grant_type=refresh_token&client_id={CLIENT_ID}&refresh_token={}",
            query_escape(refresh.expose())
        );
        // Here one parameter has all of them (RFC 6749 section 3.3).
        let all: Vec<String> = Some(scopes.join(" ")).filter(|all| !all.is_empty()).into_iter().collect();
        for (key, value) in self.parameters(&all, true) {
            form.push_str(&format!("&{key}={}", query_escape(&value)));
        }
        Secret::new(form)
    }

    /// With a login what is asked for is ours to say: a challenge could name another repository, and more than we want.
    fn parameters(&self, own: &[String], with_login: bool) -> Vec<(&'static str, String)> {
        let service = self.service.clone().map(|service| ("service", service));
        let scopes = match &self.scope {
            Some(named) if !with_login => std::slice::from_ref(named),
            _ => own,
        };
        service.into_iter().chain(scopes.iter().map(|scope| ("scope", scope.clone()))).collect()
    }
}

/// What a token service gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) access: Secret,
    /// How long it is good for.
    pub(crate) lifetime: Duration,
    /// A new refresh token, where the old one is used up.
    pub(crate) refresh: Option<Secret>,
}

/// The lifetime of a token whose service names none (distribution's token specification).
const DEFAULT_LIFETIME: u64 = 60;

impl Token {
    /// Reads the service's answer.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            refresh_token: Option<String>,
            // A number; a service that sends something else says nothing.
            #[serde(default)]
            expires_in: serde_json::Value,
        }
        let answer: Answer = serde_json::from_slice(body).ok()?;
        // They go into a header line or a form.
        let usable = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let either = [answer.token, answer.access_token].into_iter().flatten().find(|text| !text.is_empty());
        let seconds = answer.expires_in.as_u64().filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_LIFETIME);
        Some(Self {
            access: Secret::new(either.filter(usable)?),
            lifetime: Duration::from_secs(seconds),
            refresh: answer.refresh_token.filter(usable).map(Secret::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<String> {
        vec!["repository:a/b:pull".to_owned()]
    }

    fn url_of(challenge: &Challenge) -> Option<String> {
        match challenge {
            Challenge::Basic => Some("basic".to_owned()),
            Challenge::Bearer(service) => Some(service.token_url(&own(), false).to_string()),
        }
    }

    #[test]
    fn reads_challenges() {
        for (headers, want) in [
            (
                &[
                    r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull""#,
                ][..],
                Some("https://auth.example/token?service=reg.example&scope=repository:a/b:pull"),
            ),
            (
                &[r#"bearer realm=https://h/t?x=1 , error="bad\"x""#],
                Some("https://h/t?x=1&scope=repository:a/b:pull"),
            ),
            (&[r#"Bearer realm="https://h/t",scope="a b&c""#], Some("https://h/t?scope=a%20b%26c")),
            (&[r#"Basic realm="x""#], Some("basic")),
            (&["Basic"], Some("basic")),
            (&[r#"Negotiate abc/d==, BASIC realm="x, y""#], None),
            (&["Negotiate", r#"Basic realm="x, y""#], Some("basic")),
            (&[r#"Negotiate, Basic realm="x", charset="UTF-8""#], Some("basic")),
            // A token is asked for where there is a choice, in whatever order and form.
            (
                &[r#"Basic realm="x", Bearer realm="https://h/t""#],
                Some("https://h/t?scope=repository:a/b:pull"),
            ),
            (
                &[r#"Basic realm="x""#, r#"Bearer realm="https://h/t""#],
                Some("https://h/t?scope=repository:a/b:pull"),
            ),
            (&[r#"Digest realm="x""#], None),
            (&[r#"Bearer realm="file:///etc/passwd""#], None),
            (&[r#"Bearer realm="https://u:p@h/t""#], None),
            (&[r#"Bearer service="x""#], None),
            (&[r#"Bearer realm="https://h/"#], None),
            (&["Bearer"], None),
            (&["=, =\"", "", ",,,"], None),
            (&[], None),
        ] {
            let found = Challenge::choose(headers.iter().copied());
            assert_eq!(found.as_ref().and_then(url_of).as_deref(), want, "{headers:?}");
        }
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_HEADER));
        assert_eq!(Challenge::choose([long.as_str()].into_iter()), None);
    }

    #[test]
    fn forms_carry_the_refresh_token() {
        let header = r#"Bearer realm="https://h/t",service="s&x""#;
        let Some(Challenge::Bearer(service)) = Challenge::choose([header].into_iter()) else { panic!() };
        let form = service.refresh_form(&own(), &Secret::new("r+t="));
        assert_eq!(
            form.expose(),
            "grant_type=refresh_token&client_id=situla&refresh_token=r%2Bt%3D&service=s%26x&scope=repository:a/b:pull"
        );
        // A login is used for what we want alone, whatever the challenge names.
        let greedy =
            Challenge::parse_all(r#"Bearer realm="https://h/t",scope="repository:other/x:pull,push""#);
        let greedy = greedy.into_iter().find_map(|challenge| match challenge {
            Challenge::Bearer(service) => Some(service),
            Challenge::Basic => None,
        });
        let greedy = greedy.unwrap();
        assert!(greedy.token_url(&own(), false).to_string().contains("other/x:pull"));
        let with_login = greedy.token_url(&own(), true).to_string();
        assert!(!with_login.contains("other/x") && with_login.contains(":pull"), "{with_login}");
        assert_eq!(service.token_url(&[], false).to_string(), "https://h/t?service=s%26x");
        // Several scopes are several parameters of a URL, and one of a form.
        let two = ["repository:a/b:pull,push".to_owned(), "repository:c:pull".to_owned()];
        let url = service.token_url(&two, true).to_string();
        assert_eq!(url, "https://h/t?service=s%26x&scope=repository:a/b:pull%2Cpush&scope=repository:c:pull");
        let form = service.refresh_form(&two, &Secret::new("r"));
        assert!(
            form.expose().ends_with("&scope=repository:a/b:pull%2Cpush%20repository:c:pull"),
            "{}",
            form.expose()
        );
    }

    #[test]
    fn reads_tokens() {
        let read = |body: &str| {
            Token::parse(body.as_bytes()).map(|token| {
                let refresh = token.refresh.map(|refresh| refresh.expose().to_owned());
                (token.access.expose().to_owned(), token.lifetime.as_secs(), refresh)
            })
        };
        let token = |access: &str, seconds, refresh: Option<&str>| {
            Some((access.to_owned(), seconds, refresh.map(str::to_owned)))
        };
        for (body, want) in [
            (r#"{"token":"abc"}"#, token("abc", 60, None)),
            (r#"{"access_token":"x.y","expires_in":300}"#, token("x.y", 300, None)),
            (r#"{"token":"","access_token":"x","refresh_token":"r"}"#, token("x", 60, Some("r"))),
            (r#"{"token":"a","refresh_token":"","expires_in":"soon"}"#, token("a", 60, None)),
            (r#"{"token":"a","expires_in":-5}"#, token("a", 60, None)),
            ("", None),
            ("{}", None),
            (r#"{"token":""}"#, None),
            ("{\"token\":\"a\\r\\nX: y\"}", None),
            ("<html>", None),
        ] {
            assert_eq!(read(body), want, "{body}");
        }
    }
}
