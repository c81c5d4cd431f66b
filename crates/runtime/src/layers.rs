//! Layers above the image: an overlay that the user asked for, of directories of the host that are shown,
//! and of a place for what the payload writes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use situla_plan::{Overlay, Patch, Plan, Text, Upper};
use situla_sys::MountAttributes;

use crate::covers::shown;
use crate::failure::{Context, Failure, FailureClass};
use crate::mount_api::{Detached, MountApi, Source, fd_path};
use crate::mounts::new_tmpfs;
use crate::overlay::{copy_mode, lay_patch};

/// The directories of an overlay, looked up.
#[derive(Debug)]
pub(crate) struct LayerSources {
    lowers: Vec<Source>,
    upper: Option<Source>,
}

/// Looks the directories of `overlay` up.
pub(crate) fn open_layers(api: &MountApi, plan: &Plan, overlay: &Overlay) -> Result<LayerSources, Failure> {
    let open = |path: &Text| {
        let shown = Path::new(path.as_os_str());
        let source = api.open(shown, true).or_fail(FailureClass::Overlay, || {
            format!("the overlay directory {} cannot be opened", shown.display())
        })?;
        source.expect_planned(plan, path)?;
        Ok(source)
    };
    let lowers = overlay.lowers.iter().map(open);
    let upper = match &overlay.upper {
        Some(Upper::Directory { path }) => Some(open(path)?),
        Some(Upper::Tmpfs { .. }) | None => None,
    };
    Ok(LayerSources { lowers: lowers.collect::<Result<_, _>>()?, upper })
}

/// Lays `overlay`, which gets this name, over `root`. `patches` are those that `root` does not show by itself. The tmpfs that is
/// returned as well is attached at `place`, because overlayfs wants its layers to have a place.
pub(crate) fn mount_layers(
    api: &MountApi,
    (overlay, name): (&Overlay, Option<&str>),
    sources: LayerSources,
    (root, patches): (&Detached, &[Patch]),
    place: BorrowedFd<'_>,
) -> Result<(Detached, Detached), Failure> {
    let fail = |what: &'static str| move |errno| Failure::of_call(FailureClass::Overlay, what, errno);
    let session = new_tmpfs(api, &settings_of_tmpfs(overlay))?;
    session.settle(place).map_err(fail("cannot attach a tmpfs for the overlay"))?;
    let session_path = PathBuf::from(fd_path(session.as_fd()));
    let root_path = PathBuf::from(fd_path(root.as_fd()));
    root.settle_within(&session, "root").map_err(fail("cannot attach the root below the overlay"))?;
    let mut layers = Vec::new();
    let mut lowers = Vec::new();
    for (number, source) in sources.lowers.into_iter().enumerate() {
        let attached = api.copy(source).and_then(|layer| {
            layer.settle_within(&session, &format!("lower-{number}"))?;
            Ok(layer)
        });
        let layer = attached.map_err(fail("cannot attach a layer of the overlay"))?;
        layers.push(fd_path(layer.as_fd()));
        lowers.push(layer);
    }
    if !patches.is_empty() {
        let shown_patches = new_directory(&session_path, "patches")?;
        copy_mode(root.as_fd(), "", &shown_patches)?;
        for patch in patches {
            lay_patch(root.as_fd(), &shown_patches, &patch.path, &shown(root.as_fd(), patch))?;
        }
        layers.push(shown_patches.display().to_string());
    }
    layers.push(root_path.display().to_string());
    let upper = match (&overlay.upper, sources.upper) {
        (None, _) => None,
        (Some(Upper::Tmpfs { .. }), _) => {
            let (upper, work) =
                (new_directory(&session_path, "upper")?, new_directory(&session_path, "work")?);
            copy_mode(root.as_fd(), "", &upper)?;
            Some((None, upper, work))
        }
        (Some(Upper::Directory { path }), source) => {
            let path = Path::new(path.as_os_str());
            let prepared = prepare_upper(api, source, &session, root.as_fd());
            let UserLayer { layer, upper, work } = prepared.map_err(|error| unusable_upper(path, error))?;
            let paths = (PathBuf::from(fd_path(upper.as_fd())), PathBuf::from(fd_path(work.as_fd())));
            Some((Some((layer, upper, work)), paths.0, paths.1))
        }
    };
    let layers = layers.join(":");
    let text = |path: &Path| path.display().to_string();
    let above = upper.as_ref().map(|(_, upper, work)| (text(upper), text(work)));
    let mut settings = vec![("lowerdir", Some(layers.as_str())), ("userxattr", None)];
    settings.extend(name.map(|name| ("source", Some(name))));
    if let Some((upper, work)) = &above {
        settings.extend([("upperdir", Some(upper.as_str())), ("workdir", Some(work.as_str()))]);
    }
    let mount = api.create("overlay", &settings, MountAttributes::default()).map_err(|errno| {
        match (&overlay.upper, errno) {
            (
                Some(Upper::Directory { path }),
                Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSPC | Errno::DQUOT | Errno::ROFS,
            ) => unusable_upper(Path::new(path.as_os_str()), errno),
            _ => Failure::of_call(FailureClass::Overlay, "cannot lay an overlay over the image", errno),
        }
    })?;
    Ok((mount, session))
}

/// Options of the tmpfs that holds the layers, and with them what the payload writes.
fn settings_of_tmpfs(overlay: &Overlay) -> Vec<String> {
    /// A file without content takes memory, too: as many as there could be of one page, which is the kernel's own measure.
    const PAGE: u64 = 4096;
    let mut settings = vec!["mode=0755".to_owned()];
    if let Some(Upper::Tmpfs { size: Some(size) }) = &overlay.upper {
        settings.extend([format!("size={size}"), format!("nr_inodes={}", (size / PAGE).max(1))]);
    }
    settings
}

fn unusable_upper(path: &Path, errno: Errno) -> Failure {
    let path = path.display();
    let message = match errno {
        Errno::INVAL | Errno::OPNOTSUPP => {
            format!("the file system of {path} cannot take what is written above an image")
        }
        _ => format!("the overlay directory {path} cannot be written to"),
    };
    Failure::of_call(FailureClass::Overlay, message, errno)
}

/// A directory of the user's that takes what is written: its mount, and the two directories in it.
struct UserLayer {
    layer: Detached,
    upper: OwnedFd,
    work: OwnedFd,
}

/// Makes the two directories that overlayfs needs of the user's, where they do not exist. They are looked
/// up without following links, and used by these descriptors alone: what the user's directory holds, and
/// whoever changes it meanwhile, leads nowhere else.
fn prepare_upper(
    api: &MountApi,
    source: Option<Source>,
    session: &Detached,
    root: BorrowedFd<'_>,
) -> Result<UserLayer, Errno> {
    let layer = source.ok_or(Errno::INVAL).and_then(|source| api.copy(source))?;
    layer.settle_within(session, "upper-layer")?;
    let directory = |name: &str| {
        let made = match mkdirat(layer.as_fd(), name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(layer.as_fd(), name, flags, Mode::empty()).map(|found| (found, made))
    };
    let ((upper, made), (work, _)) = (directory("upper")?, directory("work")?);
    if made {
        copy_mode(root, "", Path::new(&fd_path(upper.as_fd()))).map_err(|_| Errno::ACCESS)?;
    }
    Ok(UserLayer { layer, upper, work })
}

fn new_directory(session: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = session.join(name);
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&path)
        .or_fail(FailureClass::Overlay, || format!("cannot make {}", path.display()))?;
    Ok(path)
}
