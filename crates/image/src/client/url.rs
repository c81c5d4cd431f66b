//! The few parts of URLs that a registry client needs.

use std::fmt;

use situla_oci::Registry;

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

    /// Tells whether scheme, host and port are the same: whoever answers there is the same (RFC 6454 section 4).
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.tls == other.tls && self.host() == other.host() && self.port() == other.port()
    }

    /// The host, without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        let host = self.split_port().0;
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, or that of the scheme; 0 if it is none.
    pub(crate) fn port(&self) -> u16 {
        match self.split_port().1 {
            Some(port) => port.parse().unwrap_or(0),
            None if self.tls => 443,
            None => 80,
        }
    }

    /// Tells whether the host is this machine's loopback.
    pub(crate) fn is_loopback(&self) -> bool {
        self.authority.parse::<Registry>().is_ok_and(|registry| registry.is_loopback())
    }

    fn split_port(&self) -> (&str, Option<&str>) {
        // In "[::1]:5000" only the colon after the bracket separates the port.
        let from = self.authority.find(']').map_or(0, |at| at + 1);
        match self.authority[from..].find(':') {
            Some(at) => (&self.authority[..from + at], Some(&self.authority[from + at + 1..])),
            None => (&self.authority, None),
        }
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

    #[test]
    fn origins_are_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        for (a, b, same) in [
            ("https://a.example/x", "https://A.example:443/y", true),
            ("http://a.example", "http://a.example:80", true),
            ("http://a.example:443", "https://a.example", false),
            ("https://a.example", "https://a.example.evil", false),
            ("https://a.example", "https://b.a.example", false),
            ("https://[::1]:443", "https://[::1]", true),
            ("https://[::1]:5000", "https://[::1]", false),
        ] {
            assert_eq!(url(a).same_origin(&url(b)), same, "{a} {b}");
        }
        for (text, host, port, loopback) in [
            ("https://[::1]:5000/", "::1", 5000, true),
            ("http://localhost", "localhost", 80, true),
            ("https://a.example:x/", "a.example", 0, false),
            ("https://127.0.0.1.example/", "127.0.0.1.example", 443, false),
        ] {
            let url = url(text);
            assert_eq!((url.host(), url.port(), url.is_loopback()), (host, port, loopback), "{text}");
        }
    }
}
