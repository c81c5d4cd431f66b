//! What the name of an image source means: a registry, a layout, an archive, or a path.

use std::fmt;
use std::path::{Path, PathBuf};

use situla_oci::{Digest, DigestError, EnrootReference, Reference, ReferenceError, Tag};
use thiserror::Error;

use super::scheme::Scheme;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A registry, what is wanted of it, and whose login is used there.
    Registry(Scheme, EnrootReference),
    /// An OCI layout directory, and which of its images.
    Layout(PathBuf, Which),
    /// An OCI layout in a tar archive, and which of its images.
    LayoutArchive(PathBuf, Which),
    /// An archive as `docker save` writes it, and the name of one of its images.
    DockerArchive(PathBuf, Option<String>),
    /// A file or directory.
    Path(PathBuf),
}

/// Which image of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// The only one.
    #[default]
    Only,
    /// The one with a tag; if several have it, the one for the platform.
    Tag(Tag),
    /// The one with a digest.
    Digest(Digest),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => Ok(()),
            Self::Tag(tag) => f.write_str(tag.as_str()),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// Why a text names no source.
#[derive(Debug, Error)]
pub enum SourceNameError {
    /// No reference to an image in a registry.
    #[error("{text} is no image reference: {source}")]
    Reference {
        /// The text.
        text: String,
        /// The cause.
        source: ReferenceError,
    },
    /// A scheme other than those of registries.
    #[error("images of the kind {0}:// cannot be pulled")]
    Scheme(String),
    /// What follows the last colon is no tag.
    #[error("{text}: {source}")]
    Tag {
        /// The text.
        text: String,
        /// The cause.
        source: ReferenceError,
    },
    /// What follows the `@` is no digest.
    #[error("{text}: {source}")]
    Digest {
        /// The text.
        text: String,
        /// The cause.
        source: DigestError,
    },
    /// A kind that other tools know.
    #[error("images of the kind {0} cannot be read")]
    Kind(&'static str),
}

/// Kinds that other tools know: such a name is no file that was mistyped.
const OTHERS: [&str; 3] = ["docker-daemon:", "containers-storage:", "instance:"];

impl Source {
    /// Understands `docker://REF`, `oras://REF`, `oci:DIR[:TAG|@DIGEST]`, `oci-archive:FILE[:TAG|@DIGEST]`,
    /// `docker-archive:FILE[:NAME]` and paths.
    ///
    /// # Errors
    /// When the text has one of these forms and breaks its rules, or another form that is known elsewhere.
    pub fn parse(text: &str) -> Result<Self, SourceNameError> {
        if let Some((scheme, name)) = Scheme::split(text) {
            let reference = Reference::parse(name);
            return reference
                .map(|reference| Source::Registry(scheme, EnrootReference { user: None, reference }))
                .map_err(|source| SourceNameError::Reference { text: text.to_owned(), source });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(SourceNameError::Scheme(scheme.to_owned()));
        }
        match Self::parse_layout(text, Path::new(""))? {
            Some(layout) => Ok(layout),
            None => Ok(Source::Path(text.into())),
        }
    }

    /// Understands the name of a layout or archive, whose path begins in `base`; `None` where the text is none.
    ///
    /// # Errors
    /// As [`Source::parse`].
    pub fn parse_layout(text: &str, base: &Path) -> Result<Option<Self>, SourceNameError> {
        if text.contains("://") {
            return Ok(None);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return which_in(text, rest, base).map(|(path, which)| Some(Source::Layout(path, which)));
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return which_in(text, rest, base).map(|(path, which)| Some(Source::LayoutArchive(path, which)));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, name) = split_name_in(rest, base);
            return Ok(Some(Source::DockerArchive(path, name)));
        }
        match OTHERS.iter().find(|kind| text.starts_with(**kind)) {
            Some(kind) => Err(SourceNameError::Kind(kind)),
            None => Ok(None),
        }
    }

    /// The path of a layout, archive, file or directory.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Registry(..) => None,
            Self::Layout(path, _)
            | Self::LayoutArchive(path, _)
            | Self::DockerArchive(path, _)
            | Self::Path(path) => Some(path),
        }
    }

    /// The same at another path; an image in a registry has none.
    #[must_use]
    pub fn at(self, path: PathBuf) -> Self {
        match self {
            Self::Registry(..) => self,
            Self::Layout(_, which) => Self::Layout(path, which),
            Self::LayoutArchive(_, which) => Self::LayoutArchive(path, which),
            Self::DockerArchive(_, name) => Self::DockerArchive(path, name),
            Self::Path(_) => Self::Path(path),
        }
    }
}

/// As [`Source::parse`] understands it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(scheme, EnrootReference { user: None, reference }) => {
                write!(f, "{scheme}{reference}")
            }
            Self::Registry(scheme, EnrootReference { user: Some(user), reference }) => {
                write!(f, "{scheme}{user}@{reference}")
            }
            Self::Layout(path, which) => write!(f, "oci:{}{}", path.display(), suffix(which)),
            Self::LayoutArchive(path, which) => write!(f, "oci-archive:{}{}", path.display(), suffix(which)),
            Self::DockerArchive(path, None) => write!(f, "docker-archive:{}", path.display()),
            Self::DockerArchive(path, Some(name)) => write!(f, "docker-archive:{}:{name}", path.display()),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

fn suffix(which: &Which) -> String {
    match which {
        Which::Tag(tag) => format!(":{tag}"),
        other => other.to_string(),
    }
}

/// Splits `PATH[:TAG|@DIGEST]`. A path may have these characters itself: what exists as it is has nothing
/// to be cut off.
pub(crate) fn which(text: &str, rest: &str) -> Result<(PathBuf, Which), SourceNameError> {
    which_in(text, rest, Path::new(""))
}

fn which_in(text: &str, rest: &str, base: &Path) -> Result<(PathBuf, Which), SourceNameError> {
    if base.join(rest).exists() {
        return Ok((base.join(rest), Which::Only));
    }
    if let Some((path, digest)) = rest.rsplit_once('@')
        && digest.contains(':')
        && !digest.contains('/')
    {
        let digest = digest
            .parse::<Digest>()
            .map_err(|source| SourceNameError::Digest { text: text.to_owned(), source })?;
        return Ok((base.join(path), Which::Digest(digest)));
    }
    match rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        None => Ok((base.join(rest), Which::Only)),
        Some((path, tag)) => match tag.parse::<Tag>() {
            Ok(tag) => Ok((base.join(path), Which::Tag(tag))),
            Err(source) => Err(SourceNameError::Tag { text: text.to_owned(), source }),
        },
    }
}

/// Splits `PATH[:NAME]`, where the name of an image may have a port, slashes and a tag.
pub(crate) fn split_name(rest: &str) -> (PathBuf, Option<String>) {
    split_name_in(rest, Path::new(""))
}

fn split_name_in(rest: &str, base: &Path) -> (PathBuf, Option<String>) {
    if base.join(rest).exists() {
        return (base.join(rest), None);
    }
    // The shortest path that exists; else the first colon ends it.
    let cuts = || rest.match_indices(':').map(|(at, _)| (&rest[..at], &rest[at + 1..]));
    let found = cuts().find(|(path, _)| base.join(path).exists()).or_else(|| cuts().next());
    match found {
        Some((path, name)) if !name.is_empty() => (base.join(path), Some(name.to_owned())),
        _ => (base.join(rest), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn sources_are_told_apart() {
        let tag = |text: &str| Which::Tag(text.parse().unwrap());
        let digest = |text: &str| Which::Digest(text.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("with:colon");
        std::fs::create_dir(&odd).unwrap();
        let registry = |scheme| {
            let reference = "r.example/a:1".parse().unwrap();
            Source::Registry(scheme, EnrootReference { user: None, reference })
        };
        let sha256 = format!("sha256:{HEX}");
        let sha512 = format!("sha512:{HEX}{HEX}");
        for (text, expected) in [
            ("oci:layout", Source::Layout("layout".into(), Which::Only)),
            ("oci:/a/layout:1.0", Source::Layout("/a/layout".into(), tag("1.0"))),
            ("oci:/a:b/layout", Source::Layout("/a:b/layout".into(), Which::Only)),
            (&format!("oci:{}", odd.display()), Source::Layout(odd.clone(), Which::Only)),
            (&format!("oci:{}:x", odd.display()), Source::Layout(odd.clone(), tag("x"))),
            (&format!("oci:l@{sha256}"), Source::Layout("l".into(), digest(&sha256))),
            (&format!("oci:l@{sha512}"), Source::Layout("l".into(), digest(&sha512))),
            ("oci-archive:a.tar", Source::LayoutArchive("a.tar".into(), Which::Only)),
            ("oci-archive:a.tar:v1", Source::LayoutArchive("a.tar".into(), tag("v1"))),
            (&format!("oci-archive:a.tar@{sha256}"), Source::LayoutArchive("a.tar".into(), digest(&sha256))),
            ("docker-archive:a.tar", Source::DockerArchive("a.tar".into(), None)),
            (
                "docker-archive:a.tar:r.example:5000/b:1",
                Source::DockerArchive("a.tar".into(), Some("r.example:5000/b:1".to_owned())),
            ),
            (
                &format!("docker-archive:{}:b:1", odd.display()),
                Source::DockerArchive(odd.clone(), Some("b:1".to_owned())),
            ),
            ("./a.sif", Source::Path("./a.sif".into())),
            ("docker://r.example/a:1", registry(Scheme::Docker)),
            ("oras://r.example/a:1", registry(Scheme::Oras)),
        ] {
            assert_eq!(Source::parse(text).unwrap(), expected, "{text}");
            // What it is called leads to it again.
            assert_eq!(Source::parse(&expected.to_string()).unwrap(), expected, "{text}");
        }
        for text in [
            "oci:dir:b@d",
            "oci:dir@sha256:12",
            "oci-archive:a.tar:",
            "docker-daemon:x:1",
            "library://a/b:1",
            "oras://A/b",
            "docker://A/b",
        ] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn layouts_begin_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("with:colon");
        std::fs::create_dir(&odd).unwrap();
        let parse = |text: &str| Source::parse_layout(text, dir.path()).unwrap();
        let below = |name: &str| dir.path().join(name);
        for (text, expected) in [
            ("oci:with:colon", Some(Source::Layout(odd.clone(), Which::Only))),
            ("oci:a:1", Some(Source::Layout(below("a"), Which::Tag("1".parse().unwrap())))),
            ("oci-archive:/a.tar", Some(Source::LayoutArchive("/a.tar".into(), Which::Only))),
            ("docker-archive:a.tar:b:1", Some(Source::DockerArchive(below("a.tar"), Some("b:1".into())))),
            ("docker-archive:with:colon:b", Some(Source::DockerArchive(odd.clone(), Some("b".into())))),
            ("with:colon", None),
            ("oci://a", None),
            ("docker://a.example/oci:1", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
            assert_eq!(expected.as_ref().and_then(Source::path).is_some(), expected.is_some());
        }
        let moved = parse("oci:a:1").unwrap().at("/b".into());
        assert_eq!(moved.to_string(), "oci:/b:1");
        assert!(Source::parse_layout("docker-daemon:x:1", dir.path()).is_err());
    }
}
