//! What `pull` and `convert` have in common: options, settings, and what they say in the end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use situla_image::{ConvertOptions, Recipe, Timings};
use situla_oci::{Digest, Platform};

use crate::command_error::CommandError;
use crate::output::size;
use crate::progress::Show;
use crate::resources;

/// Options of both commands.
#[derive(Args, Clone, Debug)]
pub(crate) struct TransferOptions {
    /// Replace the output file
    #[arg(short, long)]
    force: bool,
    /// Of several images of a name, the one for this kind of machine, such as linux/arm64 or linux/amd64/v3 (otherwise:
    /// for this one, and any processor of its kind)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Speak plain HTTP to the registry (loopback addresses always do)
    #[arg(long)]
    plain_http: bool,
    /// Look for logins in this file first, which has the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Print one JSON object, of success or of failure
    #[arg(long)]
    pub(crate) json: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl TransferOptions {
    /// What they ask for.
    pub(crate) fn transfer(&self) -> Transfer {
        Transfer {
            platform: self.platform.clone().unwrap_or_else(Platform::native),
            overwrite: self.force,
            plain_http: self.plain_http,
            authfile: self.authfile.clone(),
            show: if self.json || self.quiet { Show::Nothing } else { Show::Suitable },
            warn: !self.json,
            ..Transfer::default()
        }
    }
}

/// How images are made here: with what of the machine may be used, and by the times that the environment asks for.
pub(crate) fn convert_options(overwrite: bool) -> Result<ConvertOptions, CommandError> {
    Ok(ConvertOptions { overwrite, source_date_epoch: epoch()?, ..resources::convert_options()? })
}

/// What images that are made here are known by. It does not depend on what of the machine may be used.
pub(crate) fn recipe() -> Result<Recipe, CommandError> {
    Ok(Recipe::of(&ConvertOptions { source_date_epoch: epoch()?, ..ConvertOptions::default() }))
}

fn epoch() -> Result<Option<u32>, CommandError> {
    parse_epoch(std::env::var_os(EPOCH_VARIABLE).as_deref())
}

/// See <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Seconds since 1970, in digits; SquashFS has 32 bits for them. By the specification other values are errors.
fn parse_epoch(value: Option<&OsStr>) -> Result<Option<u32>, CommandError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = value.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
        CommandError::usage(
            format!("{EPOCH_VARIABLE}={} is no time that an image can have", value.display()),
            format!("unset it, or set it to seconds since 1970, at most {}", u32::MAX),
        )
    })
}

/// How an image is brought from one place to another, whichever command asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    /// The machine it is for.
    pub(crate) platform: Platform,
    /// Whether an output file is replaced.
    pub(crate) overwrite: bool,
    /// Whether registries are spoken to over plain HTTP.
    pub(crate) plain_http: bool,
    /// A file with logins that counts before all others.
    pub(crate) authfile: Option<PathBuf>,
    /// What is shown meanwhile.
    pub(crate) show: Show,
    /// Whether warnings are told.
    pub(crate) warn: bool,
    /// Whether an image that needs a login is put into the site's store.
    pub(crate) for_all: bool,
    /// Whether this happens on the way to a run: progress then says what it is about.
    pub(crate) for_run: bool,
}

impl Default for Transfer {
    fn default() -> Self {
        Transfer {
            platform: Platform::native(),
            overwrite: false,
            plain_http: false,
            authfile: None,
            show: Show::Suitable,
            warn: true,
            for_all: false,
            for_run: false,
        }
    }
}

/// What a pull or a conversion made.
pub(crate) struct Made<'a> {
    pub(crate) path: &'a Path,
    pub(crate) manifest_digest: Option<&'a Digest>,
    pub(crate) rootfs_digest: &'a Digest,
    pub(crate) bytes: u64,
    pub(crate) timings: Timings,
}

impl Made<'_> {
    pub(crate) fn to_json(&self) -> Value {
        let ns = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        json!({
            "path": absolute(self.path).to_string_lossy(),
            "manifest_digest": self.manifest_digest.map(ToString::to_string),
            "rootfs_digest": self.rootfs_digest.to_string(),
            "bytes": self.bytes,
            "timings": {
                "resolve_ns": ns(self.timings.resolve),
                "convert_ns": ns(self.timings.convert),
                "finish_ns": ns(self.timings.finish),
            },
        })
    }

    pub(crate) fn described(&self) -> String {
        let mut text = format!("{} ({})\n", self.path.display(), size(self.bytes));
        if let Some(manifest) = self.manifest_digest {
            text.push_str(&format!("manifest {manifest}\n"));
        }
        text.push_str(&format!("rootfs   {}\n", self.rootfs_digest));
        text
    }
}

/// Whoever reads the answer may be elsewhere.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_understood_or_refused() {
        for (text, want) in [("", None), ("0", Some(0)), ("1700000000", Some(1_700_000_000))] {
            assert_eq!(parse_epoch(Some(OsStr::new(text))).unwrap(), want, "{text}");
        }
        assert_eq!(parse_epoch(None).unwrap(), None);
        for text in ["-1", "+1", "1.5", "now", "4294967296", " 1"] {
            let json = parse_epoch(Some(OsStr::new(text))).unwrap_err().to_json();
            assert!(json["message"].as_str().unwrap().contains("SOURCE_DATE_EPOCH"), "{text}: {json}");
        }
    }
}
