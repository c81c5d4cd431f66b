//! The anonymous token protocol: a 401 names a token service, which gives a token to anybody.

use situla_oci::Reference;

use super::url::{Url, query_escape};

/// A `WWW-Authenticate: Bearer` challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
}

/// Longest header looked at.
const MAX_HEADER: usize = 8 * 1024;

impl Challenge {
    /// Parses a challenge; `None` if it is of another kind or malformed.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        if header.len() > MAX_HEADER {
            return None;
        }
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if rest.is_empty() {
                break;
            }
            let (key, after) = rest.split_once('=')?;
            let (value, after) = take_value(after)?;
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(Url::parse(&value)?),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after;
        }
        Some(Self { realm: realm?, service, scope })
    }

    /// Returns where to ask for a token to read `reference`'s repository.
    pub(crate) fn token_url(&self, reference: &Reference) -> Url {
        let default_scope = format!("repository:{}:pull", reference.repository());
        let mut url = self.realm.clone();
        let mut separator = if url.path.contains('?') { '&' } else { '?' };
        let mut add = |key: &str, value: &str| {
            url.path.push_str(&format!("{separator}{key}={}", query_escape(value)));
            separator = '&';
        };
        if let Some(service) = &self.service {
            add("service", service);
        }
        add("scope", self.scope.as_deref().unwrap_or(&default_scope));
        url
    }
}

/// Takes a token or quoted string; returns it and what follows.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
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

/// Takes the token out of the service's answer.
pub(crate) fn parse_token(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    // It goes into a header line.
    (!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let reference = Reference::parse("reg.example/a/b:1").unwrap();
        let url = |header: &str| Challenge::parse(header).map(|c| c.token_url(&reference).to_string());
        for (header, want) in [
            (
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull""#,
                Some("https://auth.example/token?service=reg.example&scope=repository:a/b:pull"),
            ),
            (
                r#"bearer realm=https://h/t?x=1 , error="bad\"x""#,
                Some("https://h/t?x=1&scope=repository:a/b:pull"),
            ),
            (r#"Bearer realm="https://h/t",scope="a b&c""#, Some("https://h/t?scope=a%20b%26c")),
            (r#"Basic realm="x""#, None),
            (r#"Bearer realm="file:///etc/passwd""#, None),
            (r#"Bearer service="x""#, None),
            (r#"Bearer realm="https://h/"#, None),
            ("Bearer", None),
        ] {
            assert_eq!(url(header).as_deref(), want, "{header}");
        }
    }

    #[test]
    fn reads_tokens() {
        assert_eq!(parse_token(br#"{"token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(parse_token(br#"{"access_token":"x.y","expires_in":3}"#).as_deref(), Some("x.y"));
        for bad in ["", "{}", r#"{"token":""}"#, "{\"token\":\"a\\r\\nX: y\"}", "<html>"] {
            assert_eq!(parse_token(bad.as_bytes()), None, "{bad}");
        }
    }
}
