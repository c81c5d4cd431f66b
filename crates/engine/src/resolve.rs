//! From the name of an image to an open root file system.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use situla_image::{
    ConvertOptions, FileIdentity, Identities, Recipe, Scheme, Source, SourceNameError, Store, StoreOptions,
    StoredImage, UseMark,
};
use situla_oci::{Digest, EnrootReference, ExecConfig, ImageConfig, Platform, Reference, ReferenceError};
use situla_plan::{ImageIdentity, Place, RootfsIdentity, RootfsSource, Text};
use situla_policy::{Image as PolicyImage, RegistryImage};
use situla_records::EngineClass;
use situla_runtime::SignalInfo;
use situla_sif::{Arch, FsType, SifError, SifFile};
use situla_squashfs::{Image, ReadOptions, Window};

use crate::error::EngineError;
use crate::image_view::ImageView;
use crate::own_process::{self, Work, WorkFailure};
use crate::pins::Pins;
use crate::places;
use crate::request::Personality;
use crate::site::Site;
use crate::store_place::StorePlaces;
use crate::way::Acts;

/// Where converted images keep the manifest and configuration that they were made from.
const MANIFEST_PATH: &str = "/.situla/manifest.json";
const CONFIG_PATH: &str = "/.situla/config.json";
/// The most that is read of either.
const MAX_DOCUMENT: usize = 4 << 20;

/// First bytes of a SquashFS image.
const SQUASHFS_MAGIC: &[u8] = b"hsqs";
/// Magic of an EROFS image (`EROFS_SUPER_MAGIC_V1`, little-endian), and where it lies.
const EROFS_MAGIC: &[u8] = &[0xe2, 0xe1, 0xf5, 0xe0];
const EROFS_MAGIC_OFFSET: u64 = 1024;
/// Magic of a SIF image, and where it lies.
const SIF_MAGIC: &[u8] = b"SIF_MAGIC";
const SIF_MAGIC_OFFSET: usize = 32;

/// What an image name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// A file or directory of this host.
    Path(PathBuf),
    /// An image in a registry, as layers or as a SIF file, and whose login is used to get it, where the user says so.
    Registry(Scheme, EnrootReference),
    /// An image in a layout or archive of this host, by its full path.
    Layout(Source),
}

/// What an image name leads to.
#[derive(Debug)]
pub(crate) enum Opened {
    /// An image that we can read.
    Readable(Box<Resolved>),
    /// One that the kernel alone can read.
    Erofs(ErofsFile),
}

/// An open image of the kernel's format EROFS.
#[derive(Debug)]
pub(crate) struct ErofsFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    requested: String,
    state: FileState,
}

/// An image, open and looked into.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) identity: ImageIdentity,
    pub(crate) source: RootfsSource,
    pub(crate) view: ImageView,
    /// The descriptor behind `view`, where it is an image file.
    pub(crate) descriptor: Option<RawFd>,
    /// How the image wants to be run, where it says so in OCI's terms.
    pub(crate) config: Option<ExecConfig>,
    /// The path of the file or directory.
    pub(crate) path: PathBuf,
    /// Which file or directory that was when it was opened.
    pub(crate) state: FileState,
}

impl Resolved {
    /// Says which image of a store it is.
    fn identify(&mut self, image: &StoredImage) {
        self.identity.manifest_digest = Some(image.manifest_digest.to_string());
        self.identity.rootfs = RootfsIdentity::Verified(image.rootfs_digest.to_string());
    }

    /// Which directory the root is, where it is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let (RootfsSource::Directory { path }, ImageView::Directory(root)) = (&self.source, &self.view)
        else {
            return None;
        };
        let stat = rustix::fs::fstat(root).ok()?;
        Some(Place { path: path.clone(), dev: stat.st_dev, ino: stat.st_ino })
    }
}

/// What tells one state of a file or directory from another: device, inode, size, and times of
/// change in nanoseconds.
pub(crate) type FileState = (u64, u64, u64, i64, i64);

pub(crate) fn state(metadata: &std::fs::Metadata) -> FileState {
    let changed = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    (metadata.dev(), metadata.ino(), metadata.size(), modified, changed)
}

/// The state of a file.
pub(crate) fn state_of(path: &Path) -> Result<FileState, EngineError> {
    let metadata = std::fs::metadata(path);
    metadata
        .map(|metadata| state(&metadata))
        .map_err(|source| EngineError::OpenImage { path: path.display().to_string(), source })
}

/// Finds out what `text` names. What exists as a file is a file; a reference needs a transport on
/// the Apptainer command line, and elsewhere only a shape that no path has; so does a layout, everywhere.
pub(crate) fn name(
    text: &str,
    cwd: &Path,
    personality: Personality,
    site: &Site,
) -> Result<Named, EngineError> {
    if let Some((scheme, _)) = Scheme::split(text) {
        return reference(scheme, text, site);
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(EngineError::BadOption {
            message: format!("images of the kind {scheme}:// are not supported"),
            remedy: "use docker:// or oras://REGISTRY/NAME:TAG, a .sif or .sqsh file, or a directory"
                .to_owned(),
        });
    }
    let layout = Source::parse_layout(text, cwd).map_err(|error| {
        let remedy = match error {
            SourceNameError::Kind(_) => {
                "save it with `docker save` or `skopeo copy SOURCE oci:DIR:TAG` first"
            }
            _ => "write oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME",
        };
        EngineError::BadOption { message: error.to_string(), remedy: remedy.to_owned() }
    })?;
    if let Some(layout) = layout {
        return Ok(Named::Layout(layout));
    }
    // Without the `.` of `./image.sif`, which would stand in every message.
    let path: PathBuf = cwd.join(text).components().collect();
    let looks_like_path = text.starts_with(['.', '/']) || text.ends_with(".sif") || text.ends_with(".sqsh");
    if looks_like_path || personality != Personality::Task || path.exists() {
        return Ok(Named::Path(path));
    }
    reference(Scheme::Docker, text, site)
}

/// Understands a reference, in Docker's or enroot's spelling; a short name is what the host's files say.
fn reference(scheme: Scheme, text: &str, site: &Site) -> Result<Named, EngineError> {
    let name = Scheme::split(text).map_or(text, |(_, name)| name);
    let parsed = match (Reference::parse_enroot(name), site.short_names) {
        (Err(ReferenceError::NoRegistry { .. }), Some(short_names)) => short_names(text),
        (parsed, _) => parsed.map_err(|source| EngineError::Reference { text: text.to_owned(), source }),
    };
    parsed.map(|image| Named::Registry(scheme, image))
}

/// The name of an image for somebody in another working directory.
pub(crate) fn name_anywhere(text: &str, cwd: &Path) -> String {
    match Source::parse_layout(text, cwd) {
        Ok(Some(layout)) => layout.to_string(),
        _ => text.to_owned(),
    }
}

/// What the policy judges. Files have no digest here: hashing one takes longer than starting it, and what
/// an image says about itself proves nothing. A site that wants digests names registries. Layouts and archives are
/// directories and files.
pub(crate) fn for_policy(named: &Named) -> PolicyImage {
    let path = match named {
        Named::Registry(_, named) => return of_registry(&named.reference),
        Named::Path(path) => path.as_path(),
        Named::Layout(layout) => layout.path().unwrap_or(Path::new("")),
    };
    // Links must not lead around a rule about paths.
    let found = places::find(path).ok();
    let is_directory = found.as_ref().is_some_and(|found| found.is_directory);
    let path = found.map_or_else(|| path.to_owned(), |found| found.path);
    if is_directory { PolicyImage::Directory { path } } else { PolicyImage::File { path, digest: None } }
}

/// The same of a reference.
pub(crate) fn of_registry(reference: &Reference) -> PolicyImage {
    PolicyImage::Registry(RegistryImage {
        registry: reference.registry().to_string(),
        repository: reference.repository().to_string(),
        tag: reference.tag().map(ToString::to_string),
        digest: reference.digest().map(ToString::to_string),
    })
}

/// Fails where what was opened is not what the policy has judged.
pub(crate) fn expect_judged(named: &Named, opened: &Opened, judged: &PolicyImage) -> Result<(), EngineError> {
    let (PolicyImage::Directory { path } | PolicyImage::File { path, .. }) = judged else { return Ok(()) };
    let real = match opened {
        // What was opened is in the store by now; it was looked for by the path that was judged.
        _ if matches!(named, Named::Layout(_)) => places::find(path).map(|found| found.path),
        Opened::Erofs(image) => places::path_of(&image.file),
        Opened::Readable(image) => match (&image.view, image.descriptor) {
            (ImageView::Directory(root), _) => places::path_of(root),
            (_, Some(descriptor)) => places::path_of_number(descriptor),
            (_, None) => return Ok(()),
        },
    };
    if real.is_ok_and(|real| real == *path) { Ok(()) } else { Err(places::exchanged(path)) }
}

/// What an image is opened for.
pub(crate) struct Opening<'a> {
    /// The image as it was asked for.
    pub(crate) requested: &'a str,
    /// Whether standard error shows how a fetch goes on.
    pub(crate) progress: bool,
    /// Whether it is used: then it gets a mark, which keeps it from being pruned.
    pub(crate) acts: Acts,
    /// Digests of files that were hashed before.
    pub(crate) identities: Option<Identities>,
    /// Where a plan looks for an image of a registry.
    pub(crate) stores: StorePlaces,
    /// `SOURCE_DATE_EPOCH`, by which images are made: others are not looked for.
    pub(crate) epoch: Option<u32>,
    /// What tags are in this job.
    pub(crate) pins: Option<Pins>,
    /// Who is told that this process is asked to end meanwhile.
    pub(crate) heard: &'a dyn Fn(&SignalInfo),
}

/// What an image was opened as.
pub(crate) struct Found {
    pub(crate) opened: Opened,
    /// Keeps it in its store.
    pub(crate) mark: Option<UseMark>,
    /// What the user should know.
    pub(crate) warning: Option<String>,
}

impl From<(Opened, Option<UseMark>)> for Found {
    fn from((opened, mark): (Opened, Option<UseMark>)) -> Self {
        Found { opened, mark, warning: None }
    }
}

/// How often an image is fetched that somebody removes as soon as it is there.
const MAX_FETCHES: u32 = 10;

/// Opens what `named` means; a reference is fetched into the store first.
pub(crate) fn open(named: &Named, opening: &Opening<'_>) -> Result<Found, EngineError> {
    match named {
        Named::Path(path) => {
            let mark = mark(path, opening.acts);
            let mut opened = open_any(path, opening.requested)?;
            if let (Opened::Readable(resolved), Some(identities)) = (&mut opened, &opening.identities) {
                recognise(resolved, identities);
            }
            Ok((opened, mark).into())
        }
        Named::Layout(layout) if opening.acts == Acts::No => {
            let resolved = stored_layout(layout, opening)?;
            Ok((Opened::Readable(Box::new(resolved)), None).into())
        }
        Named::Layout(_) => fetched(&Wanted::of(named)?, opening).map(Found::from),
        Named::Registry(scheme, named) => {
            let pins = opening.pins.as_ref().filter(|_| named.reference.digest().is_none());
            let pinned = pins.and_then(|pins| pins.find(&named.reference));
            if opening.acts == Acts::No {
                let resolved = stored(*scheme, named, pinned, opening)?;
                return Ok((Opened::Readable(Box::new(resolved)), None).into());
            }
            let mut warning = None;
            let digest = match (pins, pinned) {
                (_, Some(digest)) => Some(digest),
                (Some(pins), None) => {
                    let fetched = fetch(&Wanted::of_registry(*scheme, named), opening)?;
                    let digest = fetched.manifest_digest.parse().ok();
                    digest.map(|digest| match pins.pin(&named.reference, digest) {
                        Ok(digest) => digest,
                        Err((error, digest)) => {
                            warning = Some(format!(
                                "{} may become another image in this job: its digest cannot be kept: {error}",
                                named.reference
                            ));
                            digest
                        }
                    })
                }
                (None, None) => None,
            };
            let present = digest.as_ref().and_then(|digest| present(digest, opening));
            let (opened, mark) = match (present, digest) {
                // Without asking anybody.
                (Some(present), _) => present,
                (None, Some(digest)) => {
                    let reference = named.reference.with_digest(digest);
                    let named = EnrootReference { reference, ..named.clone() };
                    fetched(&Wanted::of_registry(*scheme, &named), opening)?
                }
                (None, None) => fetched(&Wanted::of_registry(*scheme, named), opening)?,
            };
            Ok(Found { opened, mark, warning })
        }
    }
}

/// Before an image is opened: whoever removes images looks for marks when it is out of its place.
fn mark(path: &Path, acts: Acts) -> Option<UseMark> {
    (acts == Acts::Yes).then(|| UseMark::make(path)).flatten()
}

/// Opens an image that another process fetches or converts into the store.
fn fetched(wanted: &Wanted, opening: &Opening<'_>) -> Result<(Opened, Option<UseMark>), EngineError> {
    let mut attempt = 1;
    loop {
        let fetched = fetch(wanted, opening)?;
        let mark = mark(&fetched.path, opening.acts);
        match open_path(&fetched.path, opening.requested) {
            // It was removed between the fetch and the mark.
            Err(EngineError::ImageMissing { .. }) if attempt < MAX_FETCHES => attempt += 1,
            other => {
                let mut resolved = other?;
                resolved.identity.manifest_digest = Some(fetched.manifest_digest);
                resolved.identity.rootfs = RootfsIdentity::Verified(fetched.rootfs_digest);
                return Ok((Opened::Readable(Box::new(resolved)), mark));
            }
        }
    }
}

/// One that was killed has left what it had begun, and one that was asked to end may have been killed before it had taken
/// that away.
fn forget_killed(opening: &Opening<'_>) {
    let StorePlaces { own, site } = &opening.stores;
    let Some(own) = own else { return };
    let store = Store::look(own, site.as_deref(), StoreOptions::default());
    // What cannot be removed now, the next one removes.
    let _ = store.and_then(|store| store.remove_abandoned());
}

/// The image of a manifest in the user's store or the site's. Whatever is wrong with it is for the fetching process to find.
fn present(digest: &Digest, opening: &Opening<'_>) -> Option<(Opened, Option<UseMark>)> {
    let StorePlaces { own, site } = &opening.stores;
    let store = Store::look(own.as_deref()?, site.as_deref(), StoreOptions::default()).ok()?;
    let image = store.get(digest, &recipe(opening)).ok()??;
    let mark = mark(&image.path, opening.acts);
    let resolved = open_stored(&image, opening).ok()?;
    Some((Opened::Readable(Box::new(resolved)), mark))
}

/// Opens an image of a registry as it was fetched last; nothing is asked for and nothing changes.
fn stored(
    scheme: Scheme,
    named: &EnrootReference,
    pinned: Option<Digest>,
    opening: &Opening<'_>,
) -> Result<Resolved, EngineError> {
    let reference = &named.reference;
    let shown = format!("{scheme}{reference}");
    let absent = || EngineError::NotFetched { image: shown.clone() };
    let own = opening.stores.own.as_deref().ok_or_else(absent)?;
    let store = Store::look(own, opening.stores.site.as_deref(), StoreOptions::default());
    let found = store.and_then(|store| {
        let manifest = match pinned {
            Some(manifest) => Some(manifest),
            None => store.lookup(reference, &Platform::native())?,
        };
        manifest.map_or(Ok(None), |manifest| store.get(&manifest, &recipe(opening)))
    });
    // A store that cannot be read has nothing for us; whoever fetches is told what is wrong with it.
    open_stored(&found.ok().flatten().ok_or_else(absent)?, opening)
}

/// The same of an image of a layout or archive: that is looked into, to know which image it is.
fn stored_layout(layout: &Source, opening: &Opening<'_>) -> Result<Resolved, EngineError> {
    let Wanted { argument, shown } = Wanted::of(&Named::Layout(layout.clone()))?;
    let mut command = own_process::own_command();
    command.args(["inspect", "--json", &argument]);
    let work = Work { name: "inspecting", unsaid: EngineClass::ImageCorrupt };
    let manifest = own_process::ask(&mut command, work, &mut |signal| (opening.heard)(signal), |answer| {
        answer.text("manifest_digest")?.parse().ok()
    });
    let manifest: Digest = manifest.map_err(|failure| failed_fetch(&shown, failure))?;
    let absent = || EngineError::NotFetched { image: argument.clone() };
    let own = opening.stores.own.as_deref().ok_or_else(absent)?;
    let store = Store::look(own, opening.stores.site.as_deref(), StoreOptions::default());
    let found = store.and_then(|store| store.get(&manifest, &recipe(opening)));
    open_stored(&found.ok().flatten().ok_or_else(absent)?, opening)
}

/// How images are made that this run can use.
fn recipe(opening: &Opening<'_>) -> Recipe {
    Recipe::of(&ConvertOptions { source_date_epoch: opening.epoch, ..ConvertOptions::default() })
}

/// Opens an image of a store.
fn open_stored(image: &StoredImage, opening: &Opening<'_>) -> Result<Resolved, EngineError> {
    let mut resolved = open_path(&image.path, opening.requested)?;
    resolved.identify(image);
    Ok(resolved)
}

/// Gives a plain file the digest with which it was hashed before, if it is still in that state. Starting never waits
/// for a file to be hashed.
fn recognise(resolved: &mut Resolved, identities: &Identities) {
    let (RootfsSource::Squashfs { offset, length, .. }, Some(descriptor)) =
        (&resolved.source, resolved.descriptor)
    else {
        return;
    };
    let Ok(file) = situla_runtime::duplicate(descriptor).map(File::from) else { return };
    let Ok(metadata) = file.metadata() else { return };
    if let Some(digest) = identities.find(&FileIdentity::of(&metadata, (*offset, *length))) {
        resolved.identity.rootfs = RootfsIdentity::Verified(digest.to_string());
    }
}

/// Opens the image at `opened`, which is `path` for whoever asks.
pub(crate) fn open_as(opened: &Path, path: &Path, requested: &str) -> Result<Opened, EngineError> {
    let mut opened = open_any(opened, requested)?;
    match &mut opened {
        Opened::Readable(resolved) => {
            let (RootfsSource::Squashfs { path: shown, .. } | RootfsSource::Directory { path: shown }) =
                &mut resolved.source;
            *shown = text(path);
            path.clone_into(&mut resolved.path);
        }
        Opened::Erofs(file) => path.clone_into(&mut file.path),
    }
    Ok(opened)
}

/// Finds out whether a file that is on this machine is an image. One that is missing or closed here may be on the nodes,
/// and a SIF image for another kind of processor may be for theirs.
pub(crate) fn expect_image(path: &Path, requested: &str) -> Result<(), EngineError> {
    if !std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(());
    }
    match open_any(path, requested) {
        Err(EngineError::ImageMissing { .. } | EngineError::OpenImage { .. }) => Ok(()),
        Err(EngineError::Sif { source, .. })
            if matches!(source.downcast_ref(), Some(SifError::OtherArch { .. })) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn open_any(path: &Path, requested: &str) -> Result<Opened, EngineError> {
    match open_path(path, requested) {
        Err(unknown @ EngineError::UnknownFormat { .. }) => {
            erofs(path, requested)?.map(Opened::Erofs).ok_or(unknown)
        }
        other => other.map(|resolved| Opened::Readable(Box::new(resolved))),
    }
}

/// Opens a file of a format that is not ours, if it is an EROFS image.
fn erofs(path: &Path, requested: &str) -> Result<Option<ErofsFile>, EngineError> {
    let unreadable = |source| EngineError::OpenImage { path: path.display().to_string(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mut magic = [0; EROFS_MAGIC.len()];
    if file.read_exact_at(&mut magic, EROFS_MAGIC_OFFSET).is_err() || magic != EROFS_MAGIC {
        return Ok(None);
    }
    let state = state(&file.metadata().map_err(unreadable)?);
    Ok(Some(ErofsFile { file, path: path.to_owned(), requested: requested.to_owned(), state }))
}

/// Opens the tree at `place`, where `image` is mounted.
pub(crate) fn open_mounted(place: &Path, image: ErofsFile) -> Result<Resolved, EngineError> {
    let opened = open_path(place, &image.requested)?;
    Ok(Resolved { path: image.path, state: image.state, ..opened })
}

/// Opens the tree that was extracted from `image`, or that it is mounted as, in its place.
pub(crate) fn open_tree(tree: &Path, image: Resolved) -> Result<Resolved, EngineError> {
    let opened = open_path(tree, &image.identity.requested)?;
    let Resolved { source, view, descriptor, .. } = opened;
    Ok(Resolved { source, view, descriptor, ..image })
}

fn open_path(path: &Path, requested: &str) -> Result<Resolved, EngineError> {
    let shown = path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            EngineError::ImageMissing { path: shown.clone() }
        }
        _ => EngineError::OpenImage { path: shown.clone(), source },
    })?;
    let (source, view, descriptor) = if metadata.is_dir() {
        let view = ImageView::open_directory(path)
            .map_err(|errno| EngineError::OpenImage { path: shown.clone(), source: errno.into() })?;
        (RootfsSource::Directory { path: text(path) }, view, None)
    } else {
        open_file(path, &shown)?
    };
    let manifest = view.read_file(MANIFEST_PATH, MAX_DOCUMENT).map_err(EngineError::look_into(&shown))?;
    let config = view.read_file(CONFIG_PATH, MAX_DOCUMENT).map_err(EngineError::look_into(&shown))?;
    let digest = |bytes: &Vec<u8>| Digest::sha256(bytes).to_string();
    let identity = ImageIdentity {
        requested: requested.to_owned(),
        manifest_digest: manifest.as_ref().map(digest),
        config_digest: config.as_ref().map(digest),
        rootfs: RootfsIdentity::Unverified,
    };
    let config = config.and_then(|bytes| ImageConfig::parse(&bytes).ok()).map(|config| config.config);
    let state = state(&metadata);
    Ok(Resolved { identity, source, view, descriptor, config, path: path.to_owned(), state })
}

fn open_file(path: &Path, shown: &str) -> Result<(RootfsSource, ImageView, Option<RawFd>), EngineError> {
    let opened = open_squashfs(path, shown, &|file| root_partition(file, shown))?;
    let SquashfsFile { image, descriptor, offset, length } = opened;
    let source = RootfsSource::Squashfs { path: text(path), offset, length };
    Ok((source, ImageView::Squashfs(Box::new(image)), Some(descriptor)))
}

/// An open SquashFS, alone in its file or part of a SIF image.
#[derive(Debug)]
pub(crate) struct SquashfsFile {
    pub(crate) image: Image,
    /// The descriptor that is read from.
    pub(crate) descriptor: RawFd,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Finds offset and length of a part of a file.
type PartOf<'a> = dyn Fn(&File) -> Result<(u64, u64), EngineError> + 'a;

/// Opens the image file at `path`; `of_sif` finds offset and length in one that is a SIF image.
pub(crate) fn open_squashfs(
    path: &Path,
    shown: &str,
    of_sif: &PartOf<'_>,
) -> Result<SquashfsFile, EngineError> {
    let unreadable = |source| EngineError::OpenImage { path: shown.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let mut head = [0; SIF_MAGIC_OFFSET + SIF_MAGIC.len()];
    let n_read = file.read_at(&mut head, 0).map_err(unreadable)?;
    let head = head.get(..n_read).unwrap_or_default();
    let (offset, length) = if head.starts_with(SQUASHFS_MAGIC) {
        (0, length)
    } else if head.get(SIF_MAGIC_OFFSET..).is_some_and(|magic| magic == SIF_MAGIC) {
        of_sif(&file)?
    } else {
        return Err(EngineError::UnknownFormat { path: shown.to_owned() });
    };
    let descriptor = file.as_raw_fd();
    let image = Image::open(Window::new(file, offset, length), ReadOptions::default())
        .map_err(|source| EngineError::Squashfs { path: shown.to_owned(), source })?;
    Ok(SquashfsFile { image, descriptor, offset, length })
}

/// Offset and length of the root file system that a SIF image has for this machine.
pub(crate) fn root_partition(file: &File, shown: &str) -> Result<(u64, u64), EngineError> {
    let fail = |source| EngineError::Sif { path: shown.to_owned(), source };
    let sif = SifFile::open(file).map_err(|error| fail(error.into()))?;
    let native = Arch::from_go_name(&Platform::native().architecture);
    let partition = sif.root_partition(native).map_err(|error| fail(error.into()))?;
    if partition.fs != FsType::Squashfs {
        return Err(fail(format!("its root file system is {:?}, not SquashFS", partition.fs).into()));
    }
    Ok((partition.offset, partition.len))
}

fn text(path: &Path) -> Text {
    path.as_os_str().to_owned().into()
}

/// What is fetched.
struct Wanted {
    /// How the fetching process is told.
    argument: String,
    /// How messages call it.
    shown: String,
}

impl Wanted {
    fn of_registry(scheme: Scheme, EnrootReference { user, reference }: &EnrootReference) -> Self {
        let argument = match user {
            Some(user) => format!("{scheme}{user}@{reference}"),
            None => format!("{scheme}{reference}"),
        };
        Self { argument, shown: reference.to_string() }
    }

    fn of(named: &Named) -> Result<Self, EngineError> {
        match named {
            Named::Registry(scheme, named) => Ok(Self::of_registry(*scheme, named)),
            Named::Layout(layout) => {
                let path = layout.path().unwrap_or(Path::new(""));
                let missing = |error: io::Error| match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                        EngineError::ImageMissing { path: path.display().to_string() }
                    }
                    _ => EngineError::OpenImage { path: path.display().to_string(), source: error },
                };
                // Where the policy has been asked about: a link on the way may lead elsewhere by now.
                let real = places::find(path).map_err(missing)?.path;
                if real.to_str().is_none() {
                    return Err(missing(io::Error::other("its path is no text in UTF-8")));
                }
                let argument = layout.clone().at(real).to_string();
                Ok(Self { argument, shown: layout.to_string() })
            }
            Named::Path(path) => {
                let path = path.display().to_string();
                Ok(Self { argument: path.clone(), shown: path })
            }
        }
    }
}

/// What a fetch gives.
struct Fetched {
    path: PathBuf,
    manifest_digest: String,
    rootfs_digest: String,
}

/// Fetches or converts an image in a process of its own.
fn fetch(wanted: &Wanted, opening: &Opening<'_>) -> Result<Fetched, EngineError> {
    let mut command = own_process::own_command();
    command
        .args(["pull", "--json", "--store-only", "--for-process", &std::process::id().to_string()])
        .args((!opening.progress).then_some("--quiet"))
        .arg(&wanted.argument);
    let work = Work { name: "fetching", unsaid: EngineClass::FetchFailed };
    let fetched = own_process::ask(&mut command, work, &mut |signal| (opening.heard)(signal), |answer| {
        Some(Fetched {
            path: answer.text("path")?.into(),
            manifest_digest: answer.text("manifest_digest")?,
            rootfs_digest: answer.text("rootfs_digest")?,
        })
    });
    let fetched = fetched.map_err(|failure| failed_fetch(&wanted.shown, failure));
    fetched.inspect_err(|error| {
        if error.is_loss() || matches!(error, EngineError::Interrupted { .. }) {
            forget_killed(opening);
        }
    })
}

fn failed_fetch(shown: &str, failure: WorkFailure) -> EngineError {
    let WorkFailure { class, message, remedy, interrupted } = failure;
    match interrupted {
        Some(signal) => EngineError::Interrupted { signal },
        None => EngineError::Fetch { reference: shown.to_owned(), message, class, remedy },
    }
}

#[cfg(test)]
mod tests {
    use situla_image::Which;

    use super::*;

    const EVERYONE: [Personality; 3] = [Personality::Apptainer, Personality::Native, Personality::Task];

    #[test]
    fn a_name_without_transport_is_a_path_unless_a_task_names_a_registry() {
        let cwd = Path::new("/nonexistent");
        let path = |text: &str| Named::Path(PathBuf::from(text));
        let image_of =
            |scheme, text: &str| Named::Registry(scheme, Reference::parse_enroot(text).expect("a reference"));
        let image = |text: &str| image_of(Scheme::Docker, text);
        let site = Site::default();
        for personality in EVERYONE {
            for (text, want) in [
                ("./a.sif", path("/nonexistent/a.sif")),
                ("a.sqsh", path("/nonexistent/a.sqsh")),
                ("/images/a", path("/images/a")),
                ("docker://registry.example/a/b:1", image("registry.example/a/b:1")),
                ("oras://registry.example/a/b:1", image_of(Scheme::Oras, "registry.example/a/b:1")),
                ("oras://me@registry.example#b", image_of(Scheme::Oras, "me@registry.example#b")),
            ] {
                assert_eq!(name(text, cwd, personality, &site).expect(text), want, "{personality:?}");
            }
        }
        for personality in [Personality::Apptainer, Personality::Native] {
            let got = name("alpine", cwd, personality, &site).expect("a path");
            assert_eq!(got, path("/nonexistent/alpine"), "{personality:?}");
        }
        let layout = Source::Layout("/nonexistent/a".into(), "1".parse().map(Which::Tag).expect("a tag"));
        for personality in EVERYONE {
            let got = name("oci:a:1", cwd, personality, &site).expect("a layout");
            assert_eq!(got, Named::Layout(layout.clone()), "{personality:?}");
            let error = name("docker-daemon:a:1", cwd, personality, &site).expect_err("no source");
            assert_eq!(error.class(), EngineClass::BadOption);
            let error = name("oras://alpine", cwd, personality, &site).expect_err("no registry");
            let remedy = error.remedy().expect("a remedy");
            assert_eq!(remedy, "name the registry, as in oras://REGISTRY/NAME:TAG", "{personality:?}");
        }
        // Whoever has another working directory means the same.
        let anywhere = name_anywhere("oci:a:1", cwd);
        assert_eq!(anywhere, "oci:/nonexistent/a:1");
        let got = name(&anywhere, Path::new("/elsewhere"), Personality::Native, &site).expect("a layout");
        assert_eq!(got, Named::Layout(layout));
        assert_eq!(name_anywhere("docker://a.example/b", cwd), "docker://a.example/b");
        let got = name("127.0.0.1:5000#a:1", cwd, Personality::Task, &site).expect("a reference");
        assert_eq!(got, image("127.0.0.1:5000/a:1"));
    }

    #[test]
    fn a_reference_without_registry_is_refused_with_the_remedy() {
        let (cwd, site) = (Path::new("/nonexistent"), Site::default());
        for personality in EVERYONE {
            let error = name("docker://alpine", cwd, personality, &site).expect_err("no registry");
            assert_eq!(error.to_string(), "cannot tell which image docker://alpine means");
            let remedy = error.remedy().expect("a remedy");
            assert_eq!(remedy, "name the registry, as in docker://REGISTRY/NAME:TAG", "{personality:?}");
            assert_eq!(error.class(), EngineClass::BadOption);
        }
        // It may have been meant as a file, too.
        let error = name("alpine", cwd, Personality::Task, &site).expect_err("no such file, no registry");
        assert_eq!(
            error.remedy().as_deref(),
            Some("name a file, or a reference such as docker://REGISTRY/NAME:TAG")
        );
    }

    #[test]
    fn short_names_and_users_are_understood() {
        let short_names: crate::ShortNames = |text| {
            let name = text.trim_start_matches("oras://").replace("tool", "short.example/tool");
            Reference::parse_enroot(&name)
                .map_err(|source| EngineError::Reference { text: text.to_owned(), source })
        };
        let site = Site { short_names: Some(short_names), ..Site::default() };
        let cwd = Path::new("/nonexistent");
        for (text, personality, user, reference) in [
            ("oras://tool:2", Personality::Native, None, "short.example/tool:2"),
            ("docker://tool:2", Personality::Native, None, "short.example/tool:2"),
            ("docker://tool:2", Personality::Apptainer, None, "short.example/tool:2"),
            ("tool", Personality::Task, None, "short.example/tool:latest"),
            ("docker://me@a.example#tool", Personality::Task, Some("me"), "a.example/tool:latest"),
            ("me@a.example#tool", Personality::Task, Some("me"), "a.example/tool:latest"),
        ] {
            let Ok(Named::Registry(_, named)) = name(text, cwd, personality, &site) else { panic!("{text}") };
            assert_eq!(
                (named.user.as_deref(), named.reference.to_string().as_str()),
                (user, reference),
                "{text}"
            );
        }
        let path = name("tool", cwd, Personality::Native, &site).expect("a path");
        assert_eq!(path, Named::Path("/nonexistent/tool".into()));
    }
}
