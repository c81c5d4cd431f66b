//! The policy file.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::glob::{GlobError, ImageGlob};

/// Bytes of a policy file.
pub const MAX_POLICY_BYTES: usize = 1 << 20;

/// Entries in one list of a policy.
pub const MAX_RULES: usize = 4096;

/// Options that a policy may refuse by name. A name outside this list is an error, because a rule
/// with a typing mistake would protect nothing.
pub const KNOWN_OPTIONS: &[&str] = &[
    "add-caps",
    "allow-setuid",
    "apply-cgroups",
    "bind",
    "cgroupns",
    "cleanenv",
    "compat",
    "contain",
    "containall",
    "device",
    "dns",
    "drop-caps",
    "entrypoint",
    "env",
    "env-file",
    "environment",
    "fakeroot",
    "fusemount",
    "home",
    "hostname",
    "ipc",
    "keep-fd",
    "keep-privs",
    "mount-home",
    "name",
    "net",
    "network",
    "no-home",
    "no-mount",
    "nv",
    "overlay",
    "pid",
    "remap-root",
    "rocm",
    "rootfs",
    "save",
    "scratch",
    "security",
    "slurm",
    "subids",
    "unsquash",
    "userns",
    "uts",
    "workdir",
    "writable",
    "writable-tmpfs",
];

/// A policy file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file is too long.
    #[error("policy {origin} of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// The file.
        origin: String,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The file is not TOML, or has a key or value that is not defined.
    #[error("cannot read policy {origin}")]
    Syntax {
        /// The file.
        origin: String,
        /// What the TOML reader says, with the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A list is too long.
    #[error("{key} in policy {origin} has more than {limit} entries")]
    TooMany {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// The limit.
        limit: usize,
    },
    /// An image pattern is malformed.
    #[error("bad entry in {key} of policy {origin}")]
    Glob {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// What is wrong.
        #[source]
        source: GlobError,
    },
    /// A path prefix is not absolute, or has `.` or `..` in it.
    #[error("{path:?} in {key} of policy {origin} is not a plain absolute path")]
    Path {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// The path.
        path: String,
    },
    /// A refused option is not known.
    #[error("unknown option {option:?} in options.refuse of policy {origin}; known: {}", KNOWN_OPTIONS.join(", "))]
    Option {
        /// The file.
        origin: String,
        /// The option.
        option: String,
    },
}

/// How broken rules become a decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A broken rule denies the run.
    #[default]
    Enforce,
    /// A broken rule is shown and the run goes on.
    Warn,
    /// A broken rule is recorded and the run goes on.
    Audit,
}

/// A site's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How broken rules become a decision.
    pub mode: Mode,
    /// Rules over registry images.
    pub registry: RegistryRules,
    /// Rules over image files and directories.
    pub files: FileRules,
    /// Rules over options.
    pub options: OptionRules,
    /// The name under which reasons quote this policy, usually its path.
    pub source: String,
}

/// Rules over registry images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryRules {
    /// If present, only these; an empty list allows no registry.
    pub allow: Option<Vec<ImageGlob>>,
    /// Never these, whatever `allow` says.
    pub deny: Vec<ImageGlob>,
    /// The image must be named by digest.
    pub require_digest: bool,
}

/// Rules over image files and directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileRules {
    /// If present, only at or below these; an empty list allows no file.
    pub allow: Option<Vec<PathPrefix>>,
    /// Never at or below these, whatever `allow` says.
    pub deny: Vec<PathPrefix>,
    /// The content must have a digest that was verified. Who asks for a verdict decides for which files it has
    /// one; without, the file is refused.
    pub require_digest: bool,
}

/// Rules over options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionRules {
    /// Options that are refused.
    pub refuse: Vec<OptionRule>,
}

/// One refused option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionRule {
    /// An option by name.
    Named(String),
    /// `bind:/path`: a bind that shows something at or below the path.
    Bind(PathPrefix),
    /// `bind-rw:/path`: the same, if writable.
    BindWritable(PathPrefix),
}

impl fmt::Display for OptionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Bind(path) => write!(f, "bind:{path}"),
            Self::BindWritable(path) => write!(f, "bind-rw:{path}"),
        }
    }
}

/// An absolute path without `.` and `..`, compared component by component: `/apps` covers `/apps/x`
/// and not `/apps-old`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(PathBuf);

impl PathPrefix {
    /// Takes a path if it is plain and absolute.
    pub fn new(path: &Path) -> Option<Self> {
        is_plain(path).then(|| Self(path.components().collect()))
    }

    /// Tells whether a path is the prefix or lies below it.
    pub fn covers(&self, path: &Path) -> bool {
        path.starts_with(&self.0)
    }

    /// Tells whether the prefix lies below a path, so that showing the path shows the prefix.
    pub fn is_within(&self, path: &Path) -> bool {
        self.0.starts_with(path)
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Tells whether a path is absolute and free of `..`; `Path::components` itself drops inner `.`.
pub(crate) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
}

impl Default for Policy {
    /// Allows everything: what runs where a site wrote no policy.
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            registry: RegistryRules::default(),
            files: FileRules::default(),
            options: OptionRules::default(),
            source: "embedded default".to_owned(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct RawPolicy {
    mode: Mode,
    registry: RawSources,
    files: RawSources,
    options: RawOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct RawSources {
    allow: Option<Vec<String>>,
    deny: Vec<String>,
    require_digest: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct RawOptions {
    refuse: Vec<String>,
}

impl Policy {
    /// Reads a policy file; `source` is the name that reasons and errors quote.
    ///
    /// # Errors
    /// Anything that is not understood completely: a policy is never half applied.
    pub fn parse(text: &str, source: &str) -> Result<Self, PolicyError> {
        let origin = || source.to_owned();
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLong {
                origin: origin(),
                length: text.len(),
                limit: MAX_POLICY_BYTES,
            });
        }
        let raw: RawPolicy = toml::from_str(text)
            .map_err(|error| PolicyError::Syntax { origin: origin(), source: Box::new(error) })?;
        let lists = Lists { origin: source };
        Ok(Self {
            mode: raw.mode,
            registry: RegistryRules {
                allow: raw.registry.allow.map(|list| lists.globs("registry.allow", &list)).transpose()?,
                deny: lists.globs("registry.deny", &raw.registry.deny)?,
                require_digest: raw.registry.require_digest,
            },
            files: FileRules {
                allow: raw.files.allow.map(|list| lists.paths("files.allow", &list)).transpose()?,
                deny: lists.paths("files.deny", &raw.files.deny)?,
                require_digest: raw.files.require_digest,
            },
            options: OptionRules { refuse: lists.options(&raw.options.refuse)? },
            source: origin(),
        })
    }
}

/// Turns the text lists of one file into rules.
struct Lists<'a> {
    origin: &'a str,
}

impl Lists<'_> {
    fn check_length(&self, key: &'static str, list: &[String]) -> Result<(), PolicyError> {
        if list.len() > MAX_RULES {
            return Err(PolicyError::TooMany { origin: self.origin.to_owned(), key, limit: MAX_RULES });
        }
        Ok(())
    }

    fn globs(&self, key: &'static str, list: &[String]) -> Result<Vec<ImageGlob>, PolicyError> {
        self.check_length(key, list)?;
        let bad = |source| PolicyError::Glob { origin: self.origin.to_owned(), key, source };
        list.iter().map(|text| ImageGlob::parse(text).map_err(bad)).collect()
    }

    fn paths(&self, key: &'static str, list: &[String]) -> Result<Vec<PathPrefix>, PolicyError> {
        self.check_length(key, list)?;
        list.iter().map(|text| self.path(key, text)).collect()
    }

    fn path(&self, key: &'static str, text: &str) -> Result<PathPrefix, PolicyError> {
        PathPrefix::new(Path::new(text)).ok_or_else(|| PolicyError::Path {
            origin: self.origin.to_owned(),
            key,
            path: text.to_owned(),
        })
    }

    fn options(&self, list: &[String]) -> Result<Vec<OptionRule>, PolicyError> {
        let key = "options.refuse";
        self.check_length(key, list)?;
        let rule = |text: &String| {
            if let Some(path) = text.strip_prefix("bind:") {
                return Ok(OptionRule::Bind(self.path(key, path)?));
            }
            if let Some(path) = text.strip_prefix("bind-rw:") {
                return Ok(OptionRule::BindWritable(self.path(key, path)?));
            }
            if !KNOWN_OPTIONS.contains(&text.as_str()) {
                return Err(PolicyError::Option { origin: self.origin.to_owned(), option: text.clone() });
            }
            Ok(OptionRule::Named(text.clone()))
        };
        list.iter().map(rule).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_read() {
        let text = r#"
            mode = "warn"
            [registry]
            allow = ["127.0.0.1:5000/demo/*", "registry.example/library/*"]
            deny = ["registry.example/library/evil"]
            require-digest = true
            [files]
            allow = ["/apps/images"]
            deny = ["/apps/images/old"]
            [options]
            refuse = ["writable", "bind:/etc", "bind-rw:/apps"]
        "#;
        let policy = Policy::parse(text, "/site/policy.toml").expect("well formed");
        assert_eq!(policy.mode, Mode::Warn);
        assert_eq!(policy.registry.allow.as_ref().map(Vec::len), Some(2));
        assert!(policy.registry.require_digest && !policy.files.require_digest);
        let refused: Vec<_> = policy.options.refuse.iter().map(ToString::to_string).collect();
        assert_eq!(refused, ["writable", "bind:/etc", "bind-rw:/apps"]);
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let policy = Policy::parse("", "embedded default").expect("empty is fine");
        assert_eq!(policy, Policy::default());
    }

    #[test]
    fn files_not_understood_completely_are_refused() {
        for text in [
            "mode = \"strict\"",
            "unknown = 1",
            "require-digest = true",
            "[registry]\nalow = []",
            "[registry]\nallow = \"x\"",
            "[registry]\nallow = [\"x/\"]",
            "[files]\nallow = [\"relative\"]",
            "[files]\ndeny = [\"/a/../b\"]",
            "[options]\nrefuse = [\"writeable\"]",
            "[options]\nrefuse = [\"bind:etc\"]",
            "[options]\nrefuse = [\"bind:\"]",
            "mode = ",
        ] {
            assert!(Policy::parse(text, "p").is_err(), "{text}");
        }
        let many = format!("[files]\nallow = [{}]", "\"/a\",".repeat(MAX_RULES + 1));
        assert!(matches!(Policy::parse(&many, "p"), Err(PolicyError::TooMany { .. })));
        assert!(matches!(
            Policy::parse(&"#".repeat(MAX_POLICY_BYTES + 1), "p"),
            Err(PolicyError::TooLong { .. })
        ));
    }

    #[test]
    fn prefixes_go_by_component() {
        let prefix = PathPrefix::new(Path::new("/apps/./images/")).expect("plain");
        assert_eq!(prefix.to_string(), "/apps/images");
        assert!(prefix.covers(Path::new("/apps/images")) && prefix.covers(Path::new("/apps/images/a.sif")));
        assert!(!prefix.covers(Path::new("/apps/images-old/a.sif")) && !prefix.covers(Path::new("/apps")));
        assert!(prefix.is_within(Path::new("/")) && prefix.is_within(Path::new("/apps")));
        assert!(!prefix.is_within(Path::new("/app")));
    }
}
