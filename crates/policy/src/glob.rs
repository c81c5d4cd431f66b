//! Patterns over registry images: `registry.example/demo/*`, `127.0.0.1:5000/demo/*`, `*.example.org`.
//!
//! The host and the repository are matched apart. Over the joined text, `*.example.org/x` would
//! also match `evil.net/a.example.org/x`.

use std::fmt;

use thiserror::Error;

/// Bytes of one pattern.
const MAX_PATTERN: usize = 1024;

/// A pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GlobError {
    /// The host or the repository part is empty.
    #[error("image pattern {pattern:?} has an empty part")]
    Empty {
        /// The pattern.
        pattern: String,
    },
    /// The pattern holds a blank, a control character, `@` or a scheme.
    #[error("image pattern {pattern:?} may only hold a host, a repository, `*` and `?`")]
    BadCharacter {
        /// The pattern.
        pattern: String,
    },
    /// The pattern is too long.
    #[error("image pattern of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// A pattern over host and repository.
///
/// `*` stands for any run of characters, `/` included, and `?` for one. A pattern without `/` means
/// the whole registry. A pattern holds no tag and no digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGlob {
    text: String,
    host: String,
    repository: Option<String>,
}

impl ImageGlob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Empty parts, overlong patterns, and characters that no image name has.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        if text.len() > MAX_PATTERN {
            return Err(GlobError::TooLong { length: text.len(), limit: MAX_PATTERN });
        }
        let pattern = || text.to_owned();
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '@' || c == '[' || c == '{';
        if text.contains("://") || text.chars().any(odd) {
            return Err(GlobError::BadCharacter { pattern: pattern() });
        }
        let (host, repository) = match text.split_once('/') {
            Some((host, repository)) => (host, Some(repository)),
            None => (text, None),
        };
        if host.is_empty() || repository.is_some_and(str::is_empty) {
            return Err(GlobError::Empty { pattern: pattern() });
        }
        Ok(Self { text: pattern(), host: canonical_host(host), repository: repository.map(str::to_owned) })
    }

    /// Tells whether an image falls under the pattern.
    pub fn matches(&self, registry: &str, repository: &str) -> bool {
        let host = canonical_host(registry);
        matches(&self.host, &host) && self.repository.as_ref().is_none_or(|glob| matches(glob, repository))
    }
}

impl fmt::Display for ImageGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Removes the spellings under which one registry could slip past a rule about it: letter case, the
/// trailing dot of a full domain name, and the default port.
fn canonical_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    let host = host.strip_suffix('.').unwrap_or(host);
    host.to_owned()
}

/// Matches with one level of backtracking: after a later `*` an earlier one never needs to move, so
/// the time is at most pattern length times text length.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    p = after_star;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_images() {
        let table = [
            ("registry.example/library/*", "registry.example", "library/debian", true),
            ("registry.example/library/*", "registry.example", "librarian/debian", false),
            ("registry.example/library/*", "registry.example", "library", false),
            ("127.0.0.1:5000/demo/*", "127.0.0.1:5000", "demo/a/b", true),
            ("127.0.0.1:5000/demo/*", "127.0.0.1:5001", "demo/a", false),
            ("127.0.0.1:5000/demo/*", "127.0.0.1:5000", "demos/a", false),
            ("registry.example", "registry.example", "anything/at/all", true),
            ("registry.example", "registry.example.evil.net", "x", false),
            ("*.example.org/x", "a.example.org", "x", true),
            ("*.example.org/x", "example.org", "x", false),
            ("*.example.org/x", "evil.net", "a.example.org/x", false),
            ("*/x", "evil.net", "x", true),
            ("hub.example/v?/a", "hub.example", "v1/a", true),
            ("hub.example/v?/a", "hub.example", "v12/a", false),
            ("Registry.EXAMPLE/x", "registry.example", "x", true),
            ("registry.example", "REGISTRY.example.:443", "x", true),
            ("registry.example", "registry.example:443", "x", true),
            ("registry.example", "registry.example.", "x", true),
            ("registry.example", "hub.example", "library/x", false),
            ("registry.example", "index.registry.example", "library/x", false),
            ("a*b*c", "aXXbYYbZc", "x", true),
            ("a*b*c", "aXXc", "x", false),
        ];
        for (pattern, host, repository, want) in table {
            let glob = ImageGlob::parse(pattern).expect(pattern);
            assert_eq!(glob.matches(host, repository), want, "{pattern} on {host}/{repository}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        let long = "x".repeat(MAX_PATTERN + 1);
        for pattern in ["", "/x", "x/", "docker://x/y", "x/y@sha256:0", "a b/c", "x/\n", "[a-z]/x", &long] {
            assert!(ImageGlob::parse(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn matching_time_is_not_exponential() {
        let pattern = "*a".repeat(400) + "b";
        assert!(!matches(&pattern, &"a".repeat(100_000)));
    }
}
