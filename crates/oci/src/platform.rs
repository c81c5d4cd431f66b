//! Platforms, and the choice of one manifest from an index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::manifest::{Descriptor, Index};

/// An operating system, CPU architecture and optional CPU variant, in Go's naming.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system (`linux`).
    #[serde(default)]
    pub os: String,
    /// Architecture (`amd64`, `arm64`).
    #[serde(default)]
    pub architecture: String,
    /// Variant (`v2` for amd64 micro-architecture levels, `v8` for arm64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why no manifest of an index fits, or a platform text is malformed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlatformError {
    /// The index has nothing for the wanted platform.
    #[error("no image for platform {wanted} (available: {available})")]
    NoMatch {
        /// What was looked for.
        wanted: Platform,
        /// What the index offers, comma separated.
        available: String,
    },
    /// The text is not `os/arch[/variant]`.
    #[error("not a platform of the form os/arch[/variant]: '{0}'")]
    Malformed(String),
}

impl Platform {
    /// Linux on the architecture this program was built for. On amd64 without a variant it takes only
    /// images that every amd64 processor runs.
    #[must_use]
    pub fn native() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Ranks an offer for a machine of this platform: higher is better, `None` does not run.
    fn rank(&self, offer: &Platform) -> Option<u32> {
        if offer.os != self.os || offer.architecture != self.architecture {
            return None;
        }
        let level = |p: &Platform| -> Option<u32> {
            let base = match p.architecture.as_str() {
                "amd64" => 1,
                "arm64" => 8,
                // 32-bit ARM images without a variant are ambiguous; by convention they are v7.
                "arm" => 7,
                _ => 0,
            };
            match p.variant.as_deref() {
                None | Some("") => Some(base),
                Some(text) => text.strip_prefix('v').and_then(|n| n.parse().ok()),
            }
        };
        match (level(self), level(offer)) {
            (Some(have), Some(want)) => (want <= have).then_some(want),
            _ => (self.variant == offer.variant).then_some(0),
        }
    }

    /// Picks the best manifest of `index` for a machine of this platform; among equals the first.
    ///
    /// An entry without platform is taken only if it is the only entry, or an index (whose own entries
    /// will say).
    ///
    /// # Errors
    /// When nothing fits.
    pub fn select<'a>(&self, index: &'a Index) -> Result<&'a Descriptor, PlatformError> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for entry in &index.manifests {
            let rank = match &entry.platform {
                Some(platform) => self.rank(platform),
                None if index.manifests.len() == 1 || entry.is_index() => Some(0),
                None => None,
            };
            if let Some(rank) = rank
                && best.is_none_or(|(r, _)| rank > r)
            {
                best = Some((rank, entry));
            }
        }
        best.map(|(_, entry)| entry)
            .ok_or_else(|| PlatformError::NoMatch { wanted: self.clone(), available: describe(index) })
    }
}

/// Platforms listed in a message before the list is cut.
const MAX_DESCRIBED: usize = 16;

fn describe(index: &Index) -> String {
    let names: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .take(MAX_DESCRIBED)
        .map(ToString::to_string)
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(v) if !v.is_empty() => write!(f, "/{v}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |s: &&str| {
            !s.is_empty()
                && s.len() <= 64
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(PlatformError::Malformed(crate::digest::clip(text)));
        }
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|s| (*s).to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let entries: Vec<String> = platforms
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let platform = match p.parse::<Platform>() {
                    Ok(p) => format!(",\"platform\":{}", serde_json::to_string(&p).unwrap()),
                    Err(_) => String::new(),
                };
                format!(
                    "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":{i},\"digest\":\"sha256:{}\"{platform}}}",
                    "a".repeat(64)
                )
            })
            .collect();
        serde_json::from_str(&format!("{{\"manifests\":[{}]}}", entries.join(","))).unwrap()
    }

    #[test]
    fn picks_the_best_variant_the_machine_runs() {
        let cases: &[(&str, &[&str], Option<u64>)] = &[
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/arm64/v8", &["linux/arm64"], Some(0)),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &["-"], Some(0)),
            ("linux/amd64", &["-", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64", "linux/amd64"], Some(0)),
            ("linux/amd64", &[], None),
        ];
        for (wanted, offers, want) in cases {
            let index = index(offers);
            let got = wanted.parse::<Platform>().unwrap().select(&index).ok().map(|d| d.size);
            assert_eq!(got, *want, "{wanted} of {offers:?}");
        }
    }

    #[test]
    fn parses_and_displays() {
        for text in ["linux/amd64", "linux/arm64/v8"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
