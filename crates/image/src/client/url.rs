//! The few parts of URLs that a registry client needs.

use std::fmt;

/// An absolute http(s) URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    /// `host[:port]`, without user information.
    pub(crate) authority: String,
    /// Path and query, beginning with a slash.
    pub(crate) path: String,
}

/// Longest URL followed.
const MAX_URL: usize = 16 * 1024;

impl Url {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.split_once("://")? {
            (scheme, rest) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        // User information in a redirect would be a credential from nowhere.
        let clean = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if authority.is_empty() || authority.contains('@') || !clean(text) || text.len() > MAX_URL {
            return None;
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { tls, authority: authority.to_ascii_lowercase(), path })
    }

    /// Resolves a `Location` header against this URL.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        if let Some(path) = location.strip_prefix("//") {
            let scheme = if self.tls { "https" } else { "http" };
            return Self::parse(&format!("{scheme}://{path}"));
        }
        if location.starts_with('/') {
            return Self::parse(&Self { path: location.to_owned(), ..self.clone() }.to_string());
        }
        Self::parse(location)
    }

    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.tls == other.tls && self.authority == other.authority
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path)
    }
}

/// Encodes a query value.
pub(crate) fn query_escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_joins() {
        let base = Url::parse("https://Reg.Example:5000/v2/x").unwrap();
        assert_eq!(base.to_string(), "https://reg.example:5000/v2/x");
        for (location, want) in [
            ("/blob?a=b", Some("https://reg.example:5000/blob?a=b")),
            ("http://other/x#frag", Some("http://other/x")),
            ("//cdn/x", Some("https://cdn/x")),
            ("https://user:pw@evil/x", None),
            ("ftp://x/y", None),
            ("relative", None),
            ("https:///x", None),
            ("/a b", None),
        ] {
            assert_eq!(base.join(location).map(|u| u.to_string()).as_deref(), want, "{location}");
        }
        assert!(!base.same_origin(&Url::parse("http://reg.example:5000/").unwrap()));
        assert!(!base.same_origin(&Url::parse("https://reg.example/").unwrap()));
    }
}
