//! Image references: which registry, which repository, which tag or digest.
//!
//! Two spellings are read: Docker's (`[docker://]host[:port]/repo[:tag][@digest]`) and enroot's
//! (`[USER@][REGISTRY#]IMAGE[:TAG|@digest]`). Both give the same [`Reference`], whose `Display` is the
//! one canonical spelling and reads back to an equal value.
//!
//! No registry is built in: a reference that names none is refused, unless the caller brings one in
//! [`Defaults`]. Otherwise a name meant for the site's registry would be fetched from somebody else's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::digest::{Digest, DigestError, clip};

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
    /// The reference names no registry, and there is no default one.
    #[error("image reference '{reference}' names no registry")]
    NoRegistry {
        /// The reference without its scheme.
        reference: String,
    },
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

/// What the parts mean that a reference leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Defaults {
    /// The registry of references that name none. Without it they are refused.
    pub registry: Option<Registry>,
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
    /// When any part breaks its grammar, or no registry is named.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_with(text, &Defaults::default())
    }

    /// Parses as [`Reference::parse`] does; `defaults` stand for what the text leaves out.
    ///
    /// # Errors
    /// When any part breaks its grammar, or neither the text nor `defaults` name a registry.
    pub fn parse_with(text: &str, defaults: &Defaults) -> Result<Self, ReferenceError> {
        let text = strip_scheme(text)?;
        if let Some((registry, image)) = text.split_once('#') {
            return Image::parse(image)?.at(registry.parse()?);
        }
        if let Some((first, rest)) = text.split_once('/')
            && is_host(first)
        {
            let registry = first.parse()?;
            return Image::parse(rest)?.at(registry);
        }
        // A malformed name is called that before its lack of a registry is.
        let image = Image::parse(text)?;
        match &defaults.registry {
            Some(registry) => image.at(registry.clone()),
            None => Err(ReferenceError::NoRegistry { reference: clip(text) }),
        }
    }

    /// Parses enroot's spelling, with or without `docker://`: `[USER@][REGISTRY#]IMAGE[:TAG|@digest]`.
    /// Docker's spelling is read as well if its first component is a host.
    ///
    /// # Errors
    /// When any part breaks its grammar, or no registry is named.
    pub fn parse_enroot(text: &str) -> Result<EnrootReference, ReferenceError> {
        Self::parse_enroot_with(text, &Defaults::default())
    }

    /// Parses as [`Reference::parse_enroot`] does; `defaults` stand for what the text leaves out.
    ///
    /// # Errors
    /// When any part breaks its grammar, or neither the text nor `defaults` name a registry.
    pub fn parse_enroot_with(text: &str, defaults: &Defaults) -> Result<EnrootReference, ReferenceError> {
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
        Ok(EnrootReference { user: user.map(str::to_owned), reference: Self::parse_with(rest, defaults)? })
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

    /// Returns the same tag and digest of another repository.
    ///
    /// # Errors
    /// When the name is too long.
    pub fn moved_to(&self, registry: Registry, repository: Repository) -> Result<Self, ReferenceError> {
        let (tag, digest) = (self.tag.clone(), self.digest.clone());
        Image { repository, tag, digest }.at(registry)
    }

    /// Returns the same reference pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

/// A reference without its registry.
struct Image {
    repository: Repository,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Image {
    fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(ReferenceError::BadDigest)?)),
            None => (text, None),
        };
        let (name, tag) = match name.split_once(':') {
            Some((name, tag)) => (name, Some(tag.parse()?)),
            None => (name, None),
        };
        let tag = match (tag, &digest) {
            (None, None) => Some(Tag(DEFAULT_TAG.to_owned())),
            (tag, _) => tag,
        };
        Ok(Self { repository: name.parse()?, tag, digest })
    }

    fn at(self, registry: Registry) -> Result<Reference, ReferenceError> {
        if registry.0.len() + 1 + self.repository.0.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Reference { registry, repository: self.repository, tag: self.tag, digest: self.digest })
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

/// Tells whether the first of several components is a registry and no part of the repository.
fn is_host(first: &str) -> bool {
    first.eq_ignore_ascii_case("localhost") || first.contains(['.', ':'])
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
        // A host without dot or port would be read back as part of the repository; enroot's `#` says
        // where it ends.
        let separator = if is_host(self.registry.as_str()) { '/' } else { '#' };
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

    fn hub() -> Defaults {
        Defaults { registry: Some("hub.example:5000".parse().expect("a registry")) }
    }

    #[test]
    fn reads_docker_spellings() {
        let pinned = format!("host.example/a/b@{D}");
        let both = format!("host.example:5000/a:t@{D}");
        let cases = [
            ("registry.example/alpine", "registry.example/alpine:latest"),
            ("docker://registry.example/alpine:3.20", "registry.example/alpine:3.20"),
            ("docker:////registry.example/alpine", "registry.example/alpine:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("LocalHost/app", "localhost/app:latest"),
            ("hub#user/app", "hub#user/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Host.Example/x", "host.example/x:latest"),
            ("hub.example/a/b/c--d__e.f:T_1-x.y", "hub.example/a/b/c--d__e.f:T_1-x.y"),
            (&pinned, &pinned),
            (&both, &both),
        ];
        for (text, want) in cases {
            let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), want, "{text}");
            assert_eq!(Reference::parse(want).unwrap(), reference, "round trip of {want}");
            assert_eq!(Reference::parse_with(text, &hub()).unwrap(), reference, "{text} with a default");
        }
    }

    #[test]
    fn a_registry_is_named_or_brought() {
        let pinned = format!("alpine@{D}");
        let cases = [
            ("alpine", "hub.example:5000/alpine:latest".to_owned()),
            ("docker://alpine:3.20", "hub.example:5000/alpine:3.20".to_owned()),
            ("docker:////alpine", "hub.example:5000/alpine:latest".to_owned()),
            ("user/app", "hub.example:5000/user/app:latest".to_owned()),
            ("a/registry.example/b:t", "hub.example:5000/a/registry.example/b:t".to_owned()),
            // One component is never a registry, whatever it looks like.
            ("registry.example", "hub.example:5000/registry.example:latest".to_owned()),
            ("localhost", "hub.example:5000/localhost:latest".to_owned()),
            ("localhost:5000", "hub.example:5000/localhost:5000".to_owned()),
            (&pinned, format!("hub.example:5000/alpine@{D}")),
        ];
        for (text, want) in cases {
            let bare = text.trim_start_matches("docker:").trim_start_matches('/');
            let refusal = ReferenceError::NoRegistry { reference: bare.to_owned() };
            assert_eq!(Reference::parse(text), Err(refusal.clone()), "{text}");
            assert_eq!(Reference::parse_enroot(text), Err(refusal), "{text}");
            assert_eq!(serde_json::from_value::<Reference>(text.into()).ok(), None, "{text}");
            assert_eq!(Reference::parse_with(text, &hub()).unwrap().to_string(), want);
            assert_eq!(Reference::parse_enroot_with(text, &hub()).unwrap().reference.to_string(), want);
        }
        let refusal = Reference::parse("user/app").unwrap_err();
        assert_eq!(refusal.to_string(), "image reference 'user/app' names no registry");
        // The limit holds for a default registry as well.
        let registry = Some(format!("{}.example", ["a"; 60].join(".")).parse().unwrap());
        let name = "b".repeat(200);
        assert_eq!(Reference::parse_with(&name, &Defaults { registry }), Err(ReferenceError::TooLong));
    }

    #[test]
    fn refuses_bad_references() {
        let long = "a/".repeat(200) + "b";
        let tag = format!("a:{}", "t".repeat(129));
        let cases = [
            "",
            "docker://",
            "UPPER",
            "UPPER/a",
            "registry.example/UPPER",
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
            let refusal = Reference::parse(text).expect_err(text);
            assert!(!matches!(refusal, ReferenceError::NoRegistry { .. }), "{text:?}: {refusal}");
            assert_eq!(Reference::parse_with(text, &hub()), Err(refusal), "{text:?} with a default");
        }
        // By grammar this is an image "oci" with a tag; schemes without slashes are the caller's.
        assert!(Reference::parse_with("oci:dir", &hub()).is_ok());
    }

    #[test]
    fn reads_enroot_spellings() {
        let pinned = format!("reg.example#alpine@{D}");
        let pinned_user = format!("me@host#alpine@{D}");
        let cases = [
            ("docker://me@hub.example/alpine:3", Some("me"), "hub.example/alpine:3".to_owned()),
            ("reg.example#team/app:1", None, "reg.example/team/app:1".to_owned()),
            ("$oauthtoken@reg.example#a/b", Some("$oauthtoken"), "reg.example/a/b:latest".to_owned()),
            ("reg.example:5000#app", None, "reg.example:5000/app:latest".to_owned()),
            ("reg.example/app", None, "reg.example/app:latest".to_owned()),
            (&pinned, None, format!("reg.example/alpine@{D}")),
            (&pinned_user, Some("me"), format!("host#alpine@{D}")),
        ];
        for (text, user, want) in cases {
            let got = Reference::parse_enroot(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((got.user.as_deref(), got.reference.to_string()), (user, want), "{text}");
            assert_eq!(Reference::parse(&got.reference.to_string()).unwrap(), got.reference, "{text}");
        }
        let with_user = Reference::parse_enroot_with("docker://me@alpine:3", &hub()).unwrap();
        assert_eq!(with_user.user.as_deref(), Some("me"));
        assert_eq!(with_user.reference.to_string(), "hub.example:5000/alpine:3");
        for text in ["@alpine", "reg#", "#alpine", "a b@alpine", "reg/x#alpine"] {
            let refused = Reference::parse_enroot_with(text, &hub()).is_err();
            assert!(refused, "{text:?} was accepted");
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
