//! Image references: which registry, which repository, which tag or digest.
//!
//! Two spellings are read: Docker's (`[docker://]host[:port]/repo[:tag][@digest]`, with the default
//! registry and `library/` rules) and enroot's (`[USER@][REGISTRY#]IMAGE[:TAG|@digest]`). Both give the
//! same [`Reference`], whose `Display` is the one canonical spelling and reads back to an equal value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::digest::{Digest, DigestError, clip};

/// The registry meant when a reference names none.
pub const DOCKER_HUB: &str = "docker.io";
/// Tag meant when a reference names neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest registry plus repository name; longer ones cannot be told to many registries.
const MAX_NAME: usize = 255;
/// Longest tag (distribution specification).
const MAX_TAG: usize = 128;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// Nothing but a scheme.
    #[error("image reference is empty")]
    Empty,
    /// The part before the first slash or `#` is no host name.
    #[error("not a registry host: '{0}'")]
    BadRegistry(String),
    /// The repository breaks the specification's grammar.
    #[error(
        "not a repository name: '{0}' (lower-case letters, digits, and single '.', '_', '-' between them)"
    )]
    BadRepository(String),
    /// The tag breaks the specification's grammar.
    #[error("not a tag: '{0}'")]
    BadTag(String),
    /// The part after `@` is no digest.
    #[error("malformed digest in image reference")]
    BadDigest(#[source] DigestError),
    /// The user part of enroot's spelling is empty or malformed.
    #[error("not a user name: '{0}'")]
    BadUser(String),
    /// Another scheme than `docker://`.
    #[error("scheme '{0}' is not a registry scheme")]
    BadScheme(String),
    /// Registry and repository together are too long.
    #[error("image name is longer than {MAX_NAME} characters")]
    TooLong,
}

/// A registry: host name or address, with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registry(String);

impl Registry {
    /// Returns `host[:port]`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the host without the port, and without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        split_port(&self.0).0.trim_start_matches('[').trim_end_matches(']')
    }

    /// Tells whether the host is this machine's loopback: `localhost`, `127.0.0.0/8` or `[::1]`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Registry {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError::BadRegistry(clip(text));
        let (host, port) = split_port(text);
        let valid_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.split('.').all(is_host_label),
        };
        let valid_port = port
            .is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0) && p.bytes().all(|b| b.is_ascii_digit()));
        if !valid_host || !valid_port || text.len() > MAX_NAME {
            return Err(bad());
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    // In "[::1]:5000" only the colon after the bracket separates the port.
    let from = text.find(']').map_or(0, |i| i + 1);
    match text[from..].find(':') {
        Some(i) => (&text[..from + i], Some(&text[from + i + 1..])),
        None => (text, None),
    }
}

fn is_host_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
}

/// A repository: slash-separated lower-case components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() <= MAX_NAME && text.split('/').all(is_path_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::BadRepository(clip(text)))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let is_alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(is_alnum) || !bytes.last().copied().is_some_and(is_alnum) {
        return false;
    }
    let separators =
        |run: &[u8]| run == b"." || run == b"_" || run == b"__" || run.iter().all(|b| *b == b'-');
    bytes.split(|b| is_alnum(*b)).filter(|run| !run.is_empty()).all(separators)
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// Returns the tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let first = text.bytes().next().is_some_and(word);
        let rest = text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if first && rest && text.len() <= MAX_TAG {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::BadTag(clip(text)))
        }
    }
}

/// A complete image reference. At least one of tag and digest is present.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: Registry,
    repository: Repository,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

/// A reference in enroot's spelling, with the user it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrootReference {
    /// User to log in as, if given.
    pub user: Option<String>,
    /// The image.
    pub reference: Reference,
}

impl Reference {
    /// Parses Docker's spelling, with or without `docker://`; also `REGISTRY#IMAGE`, the only way to name
    /// a registry host without dot and port.
    ///
    /// # Errors
    /// When any part breaks its grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let text = strip_scheme(text)?;
        if let Some((registry, image)) = text.split_once('#') {
            return Self::assemble(registry.parse()?, image);
        }
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => (first.parse()?, rest),
            _ => (Registry(DOCKER_HUB.to_owned()), text),
        };
        Self::assemble(registry, rest)
    }

    /// Parses enroot's spelling, with or without `docker://`: `[USER@][REGISTRY#]IMAGE[:TAG|@digest]`.
    /// Docker's spelling is read as well if its first component is a host.
    ///
    /// # Errors
    /// When any part breaks its grammar.
    pub fn parse_enroot(text: &str) -> Result<EnrootReference, ReferenceError> {
        let text = strip_scheme(text)?;
        // The last "@" may start a digest; a user name holds neither '/', '#' nor ':'.
        let (user, rest) = match text.split_once('@') {
            Some((user, rest)) if !user.contains(['/', '#', ':']) && !is_digest_start(rest) => {
                (Some(user), rest)
            }
            _ => (None, text),
        };
        if let Some(user) = user
            && (user.is_empty() || user.len() > MAX_NAME || user.chars().any(|c| c.is_control() || c == ' '))
        {
            return Err(ReferenceError::BadUser(clip(user)));
        }
        Ok(EnrootReference { user: user.map(str::to_owned), reference: Self::parse(rest)? })
    }

    fn assemble(registry: Registry, rest: &str) -> Result<Self, ReferenceError> {
        if rest.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(ReferenceError::BadDigest)?)),
            None => (rest, None),
        };
        let (name, tag) = match name.split_once(':') {
            Some((name, tag)) => (name, Some(tag.parse()?)),
            None => (name, None),
        };
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Registry(DOCKER_HUB.to_owned()),
            _ => registry,
        };
        let repository = if registry.as_str() == DOCKER_HUB && !name.contains('/') {
            format!("library/{name}").parse().map_err(|_| ReferenceError::BadRepository(clip(name)))?
        } else {
            name.parse::<Repository>()?
        };
        if registry.0.len() + 1 + repository.0.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(Tag(DEFAULT_TAG.to_owned())),
            (tag, _) => tag,
        };
        Ok(Self { registry, repository, tag, digest })
    }

    /// Returns the registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the repository.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the tag, if any.
    #[must_use]
    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// Returns the digest, if the reference is pinned. It wins over the tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns what to ask the registry for: the digest if pinned, else the tag.
    #[must_use]
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.0.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// Returns the same reference pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

fn strip_scheme(text: &str) -> Result<&str, ReferenceError> {
    match text.split_once("://") {
        Some(("docker", rest)) => Ok(rest.strip_prefix("//").unwrap_or(rest)),
        Some((scheme, _)) => Err(ReferenceError::BadScheme(clip(scheme))),
        None if text.is_empty() => Err(ReferenceError::Empty),
        None => Ok(text),
    }
}

/// Docker's rule: the first component is a host if it could not be a Hub name.
fn looks_like_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_digest_start(text: &str) -> bool {
    text.split_once(':').is_some_and(|(name, _)| matches!(name, "sha256" | "sha512"))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A host without dot or port would be read back as part of a Hub repository; enroot's `#` says
        // where it ends.
        let separator = if looks_like_host(self.registry.as_str()) { '/' } else { '#' };
        write!(f, "{}{separator}{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn reads_docker_spellings() {
        let pinned = format!("host.example/a/b@{D}");
        let both = format!("host.example:5000/a:t@{D}");
        let cases = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker://alpine:3.20", "docker.io/library/alpine:3.20"),
            ("docker:////alpine", "docker.io/library/alpine:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Host.Example/x", "host.example/x:latest"),
            ("a/b/c--d__e.f:T_1-x.y", "docker.io/a/b/c--d__e.f:T_1-x.y"),
            (&pinned, &pinned),
            (&both, &both),
        ];
        for (text, want) in cases {
            let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), want, "{text}");
            assert_eq!(Reference::parse(want).unwrap(), reference, "round trip of {want}");
        }
    }

    #[test]
    fn refuses_bad_references() {
        let long = "a/".repeat(200) + "b";
        let tag = format!("a:{}", "t".repeat(129));
        let cases = [
            "",
            "docker://",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a@",
            "a@sha256:12",
            "a b",
            "a:b:c",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "host.example/",
            "host.example:0/a",
            "host.example:99999/a",
            "host.example:/a",
            "host.example:+5/a",
            "-x.example/a",
            "a:.t",
            "oci:dir",
            "library://x",
            "../a",
            "a/../b",
            "a\0",
            "a\n",
            "[::1/a",
            "[zz]:1/a",
            "http://h/a",
            &long,
            &tag,
        ];
        for text in cases {
            // "oci:dir" is image "oci" with tag "dir" by grammar; schemes without slashes are the caller's.
            if text == "oci:dir" {
                assert!(Reference::parse(text).is_ok());
                continue;
            }
            assert!(Reference::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn reads_enroot_spellings() {
        let pinned = format!("alpine@{D}");
        let pinned_user = format!("me@host#alpine@{D}");
        let cases = [
            ("alpine", None, "docker.io/library/alpine:latest".to_owned()),
            ("docker://me@alpine:3", Some("me"), "docker.io/library/alpine:3".to_owned()),
            ("reg.example#team/app:1", None, "reg.example/team/app:1".to_owned()),
            ("$oauthtoken@reg.example#a/b", Some("$oauthtoken"), "reg.example/a/b:latest".to_owned()),
            ("reg.example:5000#app", None, "reg.example:5000/app:latest".to_owned()),
            ("reg.example/app", None, "reg.example/app:latest".to_owned()),
            (&pinned, None, format!("docker.io/library/alpine@{D}")),
            (&pinned_user, Some("me"), format!("host#alpine@{D}")),
        ];
        for (text, user, want) in cases {
            let got = Reference::parse_enroot(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((got.user.as_deref(), got.reference.to_string()), (user, want), "{text}");
            assert_eq!(Reference::parse(&got.reference.to_string()).unwrap(), got.reference, "{text}");
        }
        for text in ["@alpine", "reg#", "#alpine", "a b@alpine", "reg/x#alpine"] {
            assert!(Reference::parse_enroot(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn knows_loopback() {
        for (text, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:80", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("127.0.0.1.example", false),
        ] {
            assert_eq!(text.parse::<Registry>().unwrap().is_loopback(), want, "{text}");
        }
    }
}
