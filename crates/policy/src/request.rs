//! What a run asks for, in the terms that policy speaks about.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One run, before anything of it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The image.
    pub image: Image,
    /// What the user asked for beyond running the image. Default binds are the site's own doing and
    /// do not belong here.
    #[serde(default)]
    pub options: Vec<RequestedOption>,
    /// Who asks.
    #[serde(default)]
    pub subject: Subject,
}

/// Where the image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Image {
    /// An OCI registry.
    Registry(RegistryImage),
    /// A SIF, SquashFS or archive file.
    File {
        /// Absolute path, symbolic links resolved.
        path: PathBuf,
        /// Digest of the content if it has been computed, as `sha256:…`.
        digest: Option<String>,
    },
    /// A directory: an extracted root filesystem or an OCI layout.
    Directory {
        /// Absolute path, symbolic links resolved.
        path: PathBuf,
    },
}

/// An image in an OCI registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryImage {
    /// Host, with the port if it is not the default one: `registry.example`, `127.0.0.1:5000`.
    pub registry: String,
    /// Repository without the host: `library/debian`.
    pub repository: String,
    /// Tag, if given.
    pub tag: Option<String>,
    /// Manifest digest the user (or the submission) pinned, as `sha256:…`.
    pub digest: Option<String>,
}

/// One thing the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestedOption {
    /// An option by its long name without dashes, as listed in [`crate::KNOWN_OPTIONS`].
    Named(String),
    /// A bind mount.
    Bind(BindUse),
}

/// A bind mount the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindUse {
    /// Host path, absolute, symbolic links resolved.
    pub source: PathBuf,
    /// Whether it is read-only inside.
    pub read_only: bool,
}

/// Who asks. No rule of this version reads it; it is part of the request so that a recorded request
/// can be replayed against rules over identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Numeric user id.
    pub uid: Option<u32>,
    /// Login name.
    pub user: Option<String>,
    /// Slurm account.
    pub account: Option<String>,
    /// Slurm partition.
    pub partition: Option<String>,
}
