//! By which way an image file becomes a root, and the extracted trees of one of them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use situla_image::{FileIdentity, TreeCache, TreeLease};
use situla_oci::Digest;
use situla_plan::{RootfsIdentity, RootfsSource};
use situla_records::EngineClass;

use crate::error::EngineError;
use crate::host::Host;
use crate::own_process::{self, Work, WorkFailure};
use crate::request::RunRequest;
use crate::resolve::{self, Resolved};
use crate::site::Site;

/// How an image file becomes a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsWay {
    /// By our FUSE server; without `/dev/fuse` the run fails.
    #[default]
    Fuse,
    /// From a tree that is extracted once on each node.
    Extract,
    /// By FUSE where that can be, else extracted.
    Auto,
}

impl RootfsWay {
    /// The way of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "fuse" => RootfsWay::Fuse,
            "extract" => RootfsWay::Extract,
            "auto" => RootfsWay::Auto,
            _ => return None,
        })
    }
}

/// The directory of the user's extracted trees on this node.
pub fn tree_directory(site: &Site, host: &Host) -> PathBuf {
    site.rootfs.cache.join(format!("situla-{}", host.user.uid))
}

/// Why an image is to be extracted; `None` where it is not.
pub(crate) fn reason_to_extract(request: &RunRequest, site: &Site) -> Option<String> {
    match request.rootfs.unwrap_or(site.rootfs.way) {
        RootfsWay::Fuse => None,
        RootfsWay::Extract if request.rootfs.is_some() => {
            Some("an image file, extracted as asked for".to_owned())
        }
        RootfsWay::Extract => Some("an image file, extracted as the site has it".to_owned()),
        RootfsWay::Auto => {
            let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
            device
                .err()
                .map(|error| format!("an image file, extracted because /dev/fuse cannot be used: {error}"))
        }
    }
}

/// Replaces an open image by its extracted tree, which is made if need be. The lease keeps it.
pub(crate) fn extract(
    image: Resolved,
    request: &RunRequest,
    (host, site): (&Host, &Site),
) -> Result<(Resolved, Option<TreeLease>), EngineError> {
    let (RootfsSource::Squashfs { offset, length, .. }, Some(descriptor)) = (&image.source, image.descriptor)
    else {
        return Ok((image, None));
    };
    let part = (*offset, *length);
    let directory = tree_directory(site, host);
    let cache = TreeCache::new(directory.clone());
    let failed = |source| EngineError::Trees { source: Box::new(source) };
    let known = match &image.identity.rootfs {
        RootfsIdentity::Verified(digest) => digest.parse::<Digest>().ok(),
        RootfsIdentity::Unverified => None,
    };
    let shown = image.path.clone();
    // The store's digest is that of the whole file.
    let known = known.filter(|_| part.0 == 0);
    let file = situla_runtime::duplicate(descriptor).map_err(|errno| EngineError::OpenImage {
        path: shown.display().to_string(),
        source: errno.into(),
    })?;
    let file = std::fs::File::from(file);
    let metadata = file
        .metadata()
        .map_err(|source| EngineError::OpenImage { path: shown.display().to_string(), source })?;
    let identity = FileIdentity::of(&metadata, part);
    let mut digest = known.clone().or_else(|| cache.find_digest(&identity));
    /// Trees that are removed as soon as they are made are somebody's mistake.
    const MAX_TRIES: u32 = 10;
    for _ in 0..MAX_TRIES {
        if let Some(digest) = &digest
            && let Some(lease) = cache.lease(digest).map_err(failed)?
        {
            let mut resolved = resolve::open_tree(lease.path(), image)?;
            if resolved.identity.rootfs == RootfsIdentity::Unverified {
                // It was hashed, as this very file or as one with the same bytes.
                resolved.identity.rootfs = RootfsIdentity::Verified(digest.to_string());
            }
            return Ok((resolved, Some(lease)));
        }
        let filled = fill(&file, part, (&directory, &shown, known.as_ref()), request.progress)?;
        digest = Some(filled);
    }
    Err(EngineError::Extract {
        image: shown.display().to_string(),
        message: format!("its tree below {} is removed as soon as it is made", directory.display()),
        class: EngineClass::SetupFailed,
        remedy: None,
    })
}

/// Makes a tree in a process of its own. The image is its standard input, so that it reads what was opened here.
fn fill(
    file: &std::fs::File,
    (offset, length): (u64, u64),
    (directory, shown, known): (&Path, &Path, Option<&Digest>),
    progress: bool,
) -> Result<Digest, EngineError> {
    let fail = |WorkFailure { class, message, remedy }| EngineError::Extract {
        image: shown.display().to_string(),
        message,
        class,
        remedy,
    };
    let input = file.try_clone().map_err(|error| {
        let message = format!("cannot pass the image on: {error}");
        fail(WorkFailure { class: EngineClass::SetupFailed, message, remedy: None })
    })?;
    let mut command = own_process::own_command();
    command
        .args(["cache", "fill", "--for-process", &std::process::id().to_string()])
        .args(["--offset", &offset.to_string(), "--length", &length.to_string()])
        .args(known.map(|digest| format!("--digest={digest}")))
        .args((!progress).then_some("--quiet"))
        .arg("--")
        .args([directory, shown])
        .stdin(Stdio::from(OwnedFd::from(input)));
    let work = Work { name: "extracting", unsaid: EngineClass::SetupFailed };
    own_process::ask(&mut command, work, |answer| answer.text("digest")?.parse().ok()).map_err(fail)
}

/// The descriptors that keep a lease.
pub(crate) fn lease_descriptors(lease: Option<&TreeLease>) -> Vec<i32> {
    use std::os::fd::AsRawFd;
    lease.into_iter().flat_map(TreeLease::descriptors).map(|descriptor| descriptor.as_raw_fd()).collect()
}
