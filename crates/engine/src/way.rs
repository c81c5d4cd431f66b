//! By which way an image file becomes a root: served, mounted by the kernel, or extracted.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use situla_image::{FileIdentity, TreeCache, TreeLease};
use situla_oci::Digest;
use situla_plan::{RootfsIdentity, RootfsSource, Rung};
use situla_records::EngineClass;
use situla_runtime::{Failure, KernelFormat, MountableFile, SignalInfo, mount_by_kernel};

use crate::error::EngineError;
use crate::hearing::Hearing;
use crate::host::Host;
use crate::journal::Phases;
use crate::own_process::{self, Answer, Work, WorkFailure};
use crate::request::RunRequest;
use crate::resolve::{self, ErofsFile, Opened, Resolved};
use crate::site::Site;

/// How an image file becomes a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsWay {
    /// Mounted: by the kernel where root runs a file that only root can write, else by our FUSE server. Without
    /// either the run fails.
    #[default]
    Mount,
    /// Mounted by the kernel, or not at all.
    Kernel,
    /// By our FUSE server, or not at all.
    Fuse,
    /// From a tree that is extracted once on each node.
    Extract,
    /// Mounted where that can be, else extracted.
    Auto,
}

impl RootfsWay {
    /// The way of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "mount" => RootfsWay::Mount,
            "kernel" => RootfsWay::Kernel,
            "fuse" => RootfsWay::Fuse,
            "extract" => RootfsWay::Extract,
            "auto" => RootfsWay::Auto,
            _ => return None,
        })
    }

    fn tries_kernel(self) -> bool {
        matches!(self, RootfsWay::Mount | RootfsWay::Kernel | RootfsWay::Auto)
    }
}

/// Where the kernel mounts an image, in a mount namespace that the container alone has.
const KERNEL_PLACE: &str = "/run/situla/root";

/// Why the kernel mounts an image.
const BY_KERNEL: &str = "an image file that only root can write, run by root";

/// An image with what its root is made of.
#[derive(Debug)]
pub(crate) struct Rooted {
    pub(crate) image: Resolved,
    /// Keeps an extracted tree.
    pub(crate) lease: Option<TreeLease>,
    /// By which way an image file becomes a root, and why, where it is not served by FUSE for want of another.
    pub(crate) rung: Option<(Rung, String)>,
}

/// Whether an image is mounted by the kernel or extracted, where it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acts {
    /// It is only said that it would be.
    No,
    /// It is.
    Yes,
}

/// Chooses the way for an open image and goes it.
pub(crate) fn to_root(
    opened: Opened,
    request: &RunRequest,
    (host, site): (&Host, &Site),
    phases: &mut Phases,
    (acts, hearing): (Acts, &Hearing<'_>),
) -> Result<Rooted, EngineError> {
    let way = request.rootfs.unwrap_or(site.rootfs.way);
    let image = match opened {
        Opened::Readable(image) => *image,
        Opened::Erofs(image) => return mount_erofs(image, way, phases),
    };
    let Some(descriptor) = image.descriptor else {
        return Ok(Rooted { image, lease: None, rung: None });
    };
    let mut why_served = None;
    if way.tries_kernel() {
        match mount_squashfs(&image, descriptor, acts) {
            Ok(()) => {
                let image = match acts {
                    Acts::Yes => resolve::open_tree(Path::new(KERNEL_PLACE), image)?,
                    Acts::No => image,
                };
                phases.end("mount");
                return Ok(Rooted { image, lease: None, rung: Some((Rung::Kernel, BY_KERNEL.to_owned())) });
            }
            Err(why) if way == RootfsWay::Kernel => return Err(no_kernel_mount(&image.path, why)),
            Err(NoMount::NotRoot) => {}
            Err(NoMount::Because(why) | NoMount::Failed(why)) => {
                why_served = Some((Rung::Fuse, format!("an image file, not mounted by the kernel: {why}")));
            }
        }
    }
    let Some(reason) = reason_to_extract(request, site) else {
        return Ok(Rooted { image, lease: None, rung: why_served });
    };
    let (image, lease) = match acts {
        Acts::Yes => {
            let so_far = phases.clone();
            extract(image, request, (host, site), &|signal| hearing.heard(signal, &so_far))?
        }
        Acts::No => (image, None),
    };
    phases.end("extract");
    Ok(Rooted { image, lease, rung: Some((Rung::Extracted, reason)) })
}

/// Why the kernel does not mount an image.
enum NoMount {
    /// Nobody would expect it to.
    NotRoot,
    /// What is wrong with the file, as the end of a sentence.
    Because(String),
    /// What the kernel says.
    Failed(String),
}

impl NoMount {
    fn failed(failure: &Failure) -> Self {
        let cause = std::error::Error::source(failure).map(|cause| format!(": {cause}"));
        NoMount::Failed(format!("{failure}{}", cause.unwrap_or_default()))
    }
}

fn no_kernel_mount(image: &Path, why: NoMount) -> EngineError {
    let (why, remedy) = match why {
        NoMount::NotRoot => ("you are not root".to_owned(), "leave --rootfs kernel out"),
        NoMount::Because(why) => (
            why,
            "let root own the file, and nobody else write to it, on a file system of this machine; or leave \
             --rootfs kernel out",
        ),
        NoMount::Failed(why) => (why, "leave --rootfs kernel out"),
    };
    EngineError::KernelMount { image: image.display().to_string(), why, remedy }
}

fn mount_squashfs(image: &Resolved, descriptor: RawFd, acts: Acts) -> Result<(), NoMount> {
    let RootfsSource::Squashfs { offset, length, .. } = &image.source else { return Err(NoMount::NotRoot) };
    expect_root()?;
    let file = situla_runtime::duplicate(descriptor).map_err(|errno| NoMount::Because(errno.to_string()))?;
    let file = MountableFile::check(File::from(file)).map_err(NoMount::Because)?;
    if acts == Acts::No {
        return Ok(());
    }
    let mounted = mount_by_kernel(&file, KernelFormat::Squashfs, (*offset, *length), Path::new(KERNEL_PLACE));
    mounted.map_err(|failure| NoMount::failed(&failure))
}

fn expect_root() -> Result<(), NoMount> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(NoMount::NotRoot) }
}

/// Mounts an image that only the kernel can read. Its tree has to be seen to plan anything, so it is mounted
/// for a Plan as well; the mount ends with this process.
fn mount_erofs(image: ErofsFile, way: RootfsWay, phases: &mut Phases) -> Result<Rooted, EngineError> {
    const CONVERT: &str = "make an image that everybody can run of the same tree, with \
                           `situla convert DIRECTORY image.sqsh`";
    let refused =
        |why| EngineError::KernelMount { image: image.path.display().to_string(), why, remedy: CONVERT };
    if !way.tries_kernel() {
        return Err(refused("it is an EROFS image, which has no other way than --rootfs kernel".to_owned()));
    }
    let mounted = expect_root().and_then(|()| {
        let file = image.file.try_clone().map_err(|error| NoMount::Because(error.to_string()))?;
        let length = file.metadata().map_err(|error| NoMount::Because(error.to_string()))?.len();
        let file = MountableFile::check(file).map_err(NoMount::Because)?;
        mount_by_kernel(&file, KernelFormat::Erofs, (0, length), Path::new(KERNEL_PLACE))
            .map_err(|failure| NoMount::failed(&failure))
    });
    match mounted {
        Ok(()) => {}
        Err(NoMount::NotRoot) => {
            return Err(refused("it is an EROFS image, which only root can run".to_owned()));
        }
        Err(NoMount::Because(why) | NoMount::Failed(why)) => return Err(refused(why)),
    }
    let image = resolve::open_mounted(Path::new(KERNEL_PLACE), image)?;
    phases.end("mount");
    Ok(Rooted { image, lease: None, rung: Some((Rung::Kernel, BY_KERNEL.to_owned())) })
}

/// Opens the tree of an image that is a container's root already, to look into it.
pub(crate) fn look_into(opened: Opened, phases: &mut Phases) -> Result<Resolved, EngineError> {
    match opened {
        Opened::Readable(image) => Ok(*image),
        Opened::Erofs(image) => mount_erofs(image, RootfsWay::Kernel, phases).map(|rooted| rooted.image),
    }
}

/// The directory of the user's extracted trees on this node.
pub fn tree_directory(site: &Site, host: &Host) -> PathBuf {
    site.rootfs.cache.join(format!("situla-{}", host.user.uid))
}

/// Why an image is to be extracted; `None` where it is not.
fn reason_to_extract(request: &RunRequest, site: &Site) -> Option<String> {
    match request.rootfs.unwrap_or(site.rootfs.way) {
        RootfsWay::Mount | RootfsWay::Kernel | RootfsWay::Fuse => None,
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
fn extract(
    image: Resolved,
    request: &RunRequest,
    (host, site): (&Host, &Site),
    heard: &dyn Fn(&SignalInfo),
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
    let file = File::from(file);
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
        let filled = fill(&file, part, (&directory, &shown, known.as_ref()), request.progress, heard);
        if filled.is_err() {
            // One that was killed has left what it had begun.
            cache.remove_abandoned();
        }
        digest = Some(filled?);
    }
    Err(EngineError::Extract {
        image: shown.display().to_string(),
        message: format!("its tree below {} is removed as soon as it is made", directory.display()),
        class: EngineClass::SetupFailed,
        remedy: None,
    })
}

/// Makes a tree in a process of its own, in the cache in `directory`. The image is its standard input, so that it reads what was opened here.
pub(crate) fn fill(
    file: &File,
    (offset, length): (u64, u64),
    (directory, shown, known): (&Path, &Path, Option<&Digest>),
    progress: bool,
    heard: &dyn Fn(&SignalInfo),
) -> Result<Digest, EngineError> {
    let fail = |WorkFailure { class, message, remedy, interrupted }| match interrupted {
        Some(signal) => EngineError::Interrupted { signal },
        None => EngineError::Extract { image: shown.display().to_string(), message, class, remedy },
    };
    let input = file.try_clone().map_err(|error| {
        let message = format!("cannot pass the image on: {error}");
        fail(WorkFailure { class: EngineClass::SetupFailed, message, remedy: None, interrupted: None })
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
    let read = |answer: &Answer| answer.text("digest")?.parse().ok();
    own_process::ask(&mut command, work, &mut |signal| heard(signal), read).map_err(fail)
}

/// The descriptors that keep a lease.
pub(crate) fn lease_descriptors(lease: Option<&TreeLease>) -> Vec<i32> {
    use std::os::fd::AsRawFd;
    lease.into_iter().flat_map(TreeLease::descriptors).map(|descriptor| descriptor.as_raw_fd()).collect()
}
