//! What can be said about an image without starting it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::Serialize;
use situla_oci::{Digest, Document, ExecConfig, ImageConfig, MAX_CONFIG_BYTES, Platform};
use situla_sif::{Arch, DataType, DescriptorInfo, FsType, Kind, PartType, SifError, SifFile};
use situla_squashfs::{Image, ReadOptions, Window};

use crate::additions::{CONFIG_PATH, MANIFEST_PATH};
use crate::convert::{ConvertError, hash_telling};
use crate::file_error::FileError;
use crate::identity::{FileIdentity, Identities};
use crate::image_file::ImageFile;
use crate::image_parts::ImageParts;
use crate::progress::{Event, Progress};
use crate::sif_file::SifDescription;
use crate::source::{ImageSource, ResolveError, resolve};

/// First bytes of a SquashFS.
const SQUASHFS_MAGIC: &[u8] = b"hsqs";
/// Magic of a SIF, and where it lies.
const SIF_MAGIC: &[u8] = b"SIF_MAGIC";
const SIF_MAGIC_OFFSET: usize = 32;
/// Name under which tools put the execution parameters into a SIF.
const SIF_CONFIG: &str = "oci-config.json";

/// Format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A bare SquashFS.
    Squashfs,
    /// A SIF.
    Sif,
}

/// What an image is and wants. Fields are `None` or empty where the image does not say.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// `squashfs`, `sif`, `directory`, or what [`inspect_layers`] was told.
    pub kind: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub bytes: Option<u64>,
    /// Digest of the manifest that the image was made from.
    pub manifest_digest: Option<Digest>,
    /// Digest of its configuration.
    pub config_digest: Option<Digest>,
    /// SHA-256 of the root file system, where it is known or was asked for.
    pub rootfs_digest: Option<Digest>,
    /// Operating system and architecture.
    pub platform: Option<String>,
    /// When the image was made, as its maker says.
    pub created: Option<String>,
    /// How it wants to be run.
    pub config: Option<ExecConfig>,
    /// The layers it was made from, lowest first.
    pub layers: Vec<ImageLayer>,
    /// The SIF around the root file system.
    pub sif: Option<SifDescription>,
    /// Facts from the superblock.
    pub squashfs: Option<SquashfsFacts>,
}

/// A layer that an image was made from.
#[derive(Debug, Clone, Serialize)]
pub struct ImageLayer {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Compressed size in bytes.
    pub bytes: u64,
}

/// Facts from a SquashFS superblock.
#[derive(Debug, Clone, Serialize)]
pub struct SquashfsFacts {
    /// Offset of the file system in the file.
    pub offset: u64,
    /// Its length in bytes, without padding.
    pub bytes: u64,
    /// Compressor.
    pub compressor: &'static str,
    /// Bytes of a data block.
    pub block_size: u32,
    /// Number of inodes.
    pub inodes: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// Whether there are extended attributes.
    pub xattrs: bool,
    /// When it was made, in Unix seconds.
    pub mtime: u32,
}

/// Where the root file system lies in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RootWindow {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl RootWindow {
    pub(crate) fn over(self, file: File) -> Window<File> {
        Window::new(file, self.offset, self.len)
    }
}

/// Finds out what an image file is, by its first bytes.
///
/// # Errors
/// When it cannot be read or is neither.
pub fn file_kind(path: &Path) -> Result<FileKind, ConvertError> {
    let file = File::open(path).map_err(FileError::read(path))?;
    kind_of(path, &file)
}

pub(crate) fn kind_of(path: &Path, file: &File) -> Result<FileKind, ConvertError> {
    let mut head = [0; SIF_MAGIC_OFFSET + SIF_MAGIC.len()];
    let mut n_read = 0;
    while n_read < head.len() {
        match file.read_at(&mut head[n_read..], n_read as u64) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(FileError::read(path)(source).into()),
        }
    }
    if head.starts_with(SQUASHFS_MAGIC) {
        Ok(FileKind::Squashfs)
    } else if head[SIF_MAGIC_OFFSET..] == *SIF_MAGIC {
        Ok(FileKind::Sif)
    } else {
        Err(ConvertError::UnknownFormat { path: path.to_owned() })
    }
}

/// Finds the root file system of an image file.
pub(crate) fn root_window(
    path: &Path,
    file: &File,
    machine: Option<&Platform>,
) -> Result<(FileKind, RootWindow), ConvertError> {
    let kind = kind_of(path, file)?;
    let window = match kind {
        FileKind::Squashfs => {
            let len = file.metadata().map_err(FileError::read(path))?.len();
            RootWindow { offset: 0, len }
        }
        FileKind::Sif => sif_window(path, &open_sif(path, file)?, machine)?,
    };
    Ok((kind, window))
}

/// Finds the root file system of a SIF that has one for all who ask, and the kind of machine that it is for.
pub(crate) fn only_root(path: &Path, file: &File) -> Result<(RootWindow, Arch), ConvertError> {
    let sif = open_sif(path, file)?;
    let arch_of_root = |object: &DescriptorInfo| match object.kind {
        Kind::Partition { part: PartType::PrimarySystem | PartType::System, arch, .. } => Some(arch),
        _ => None,
    };
    let mut archs = sif.objects().iter().filter_map(arch_of_root);
    let arch = archs.next().unwrap_or(Arch::UNKNOWN);
    if archs.next().is_some() {
        return Err(ConvertError::SifRoots { path: path.to_owned() });
    }
    let window = sif_window(path, &sif, None)?;
    Ok((window, arch))
}

fn open_sif<'f>(path: &Path, file: &'f File) -> Result<SifFile<&'f File>, ConvertError> {
    SifFile::open(file).map_err(|source| ConvertError::SifRead { path: path.to_owned(), source })
}

/// The root file system for `machine`, or else the one that would be run here: a file with a single root has that for any
/// machine where nobody has asked for one.
fn sif_window(
    path: &Path,
    sif: &SifFile<&File>,
    machine: Option<&Platform>,
) -> Result<RootWindow, ConvertError> {
    let native = Platform::native();
    let wanted = Arch::from_go_name(&machine.unwrap_or(&native).architecture);
    let failed = |source| ConvertError::SifRead { path: path.to_owned(), source };
    let partition = sif.root_partition(wanted).map_err(failed)?;
    if machine.is_some() && ![wanted, Arch::UNKNOWN].contains(&partition.arch) {
        return Err(failed(SifError::OtherArch { wanted, found: vec![partition.arch] }));
    }
    if partition.fs != FsType::Squashfs {
        return Err(ConvertError::SifFs { path: path.to_owned(), fs: partition.fs });
    }
    Ok(RootWindow { offset: partition.offset, len: partition.len })
}

/// Describes an image file or directory. `hash` reads the whole root file system of a file, unless `identities` have
/// its digest: those are looked into also without it.
///
/// # Errors
/// When it cannot be read, or is no image.
pub fn inspect(
    path: &Path,
    hash: bool,
    identities: Option<&Identities>,
    progress: &dyn Progress,
) -> Result<Inspection, ConvertError> {
    let metadata = std::fs::metadata(path).map_err(FileError::read(path))?;
    if metadata.is_dir() {
        let mut found = Inspection::empty("directory", path, None);
        let read = |inside: &str| read_in_root(path, inside).map_err(FileError::read(path.join(inside)));
        found.take_documents(read(MANIFEST_PATH)?, read(CONFIG_PATH)?);
        return Ok(found);
    }
    inspect_file(&ImageFile::open(path)?, hash, identities, progress)
}

/// Describes an image file that is open, as [`inspect`].
///
/// # Errors
/// When it cannot be read, or is no image.
pub(crate) fn inspect_file(
    image: &ImageFile,
    hash: bool,
    identities: Option<&Identities>,
    progress: &dyn Progress,
) -> Result<Inspection, ConvertError> {
    let limit = usize::try_from(MAX_CONFIG_BYTES).unwrap_or(usize::MAX);
    let (path, file) = (image.name(), image.file());
    let (kind, window) = image.root_window()?;
    let (name, sif, sif_config) = match kind {
        FileKind::Squashfs => ("squashfs", None, None),
        FileKind::Sif => {
            let mut sif = open_sif(path, file)?;
            let config = sif_config(path, &mut sif)?;
            ("sif", Some(SifDescription::of(&sif)), config)
        }
    };
    let bytes = file.metadata().map_err(FileError::read(path))?.len();
    let mut found = Inspection::empty(name, path, Some(bytes));
    found.sif = sif;
    let failed = |source| ConvertError::NotSquashfs { path: path.to_owned(), source };
    let image = Image::open(window.over(image.try_clone()?), ReadOptions::default()).map_err(failed)?;
    let superblock = image.superblock();
    found.squashfs = Some(SquashfsFacts {
        offset: window.offset,
        bytes: superblock.bytes_used,
        compressor: superblock.compressor.name(),
        block_size: superblock.block_size,
        inodes: superblock.inode_count,
        fragments: superblock.fragment_count,
        xattrs: superblock.has_xattrs(),
        mtime: superblock.mtime,
    });
    let manifest = image.read_file(MANIFEST_PATH, limit).map_err(failed)?;
    found.take_documents(manifest, image.read_file(CONFIG_PATH, limit).map_err(failed)?);
    found.config = found.config.or(sif_config);
    let state = || file.metadata().map(|metadata| FileIdentity::of(&metadata, (window.offset, window.len)));
    let before = state().map_err(FileError::read(path))?;
    found.rootfs_digest = identities.and_then(|identities| identities.find(&before));
    if hash && found.rootfs_digest.is_none() {
        progress.event(Event::ToRead { bytes: window.len });
        let (digest, _) =
            hash_telling(file, window.offset, window.len, progress).map_err(FileError::read(path))?;
        if let Some(identities) = identities
            && state().is_ok_and(|after| after == before)
        {
            // Then it is computed again the next time.
            let _ = identities.remember(&before, &digest);
        }
        found.rootfs_digest = Some(digest);
    }
    Ok(found)
}

/// Describes an image of layers that lies at `path`: of it, its manifest and configuration are read.
///
/// # Errors
/// When they cannot be had, are not what their digests say, or do not fit the platform.
pub fn inspect_layers(
    kind: &'static str,
    path: &Path,
    source: &dyn ImageSource,
    platform: &Platform,
) -> Result<Inspection, ResolveError> {
    let ImageParts { digest, manifest_bytes, config_bytes, .. } = resolve(source, platform)?;
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    let mut found = Inspection::empty(kind, path, file.map(|metadata| metadata.len()));
    found.take_documents(Some(manifest_bytes), Some(config_bytes));
    // It may be one of another kind.
    found.manifest_digest = Some(digest);
    Ok(found)
}

impl Inspection {
    fn empty(kind: &'static str, path: &Path, bytes: Option<u64>) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            bytes,
            manifest_digest: None,
            config_digest: None,
            rootfs_digest: None,
            platform: None,
            created: None,
            config: None,
            layers: Vec::new(),
            sif: None,
            squashfs: None,
        }
    }

    /// Takes over what manifest and configuration say. They come from the image, which anybody may have
    /// made: one that makes no sense says nothing.
    fn take_documents(&mut self, manifest: Option<Vec<u8>>, config: Option<Vec<u8>>) {
        self.manifest_digest = manifest.as_deref().map(Digest::sha256);
        self.config_digest = config.as_deref().map(Digest::sha256);
        if let Some(Ok(Document::Manifest(manifest))) = manifest.map(|bytes| Document::parse(&bytes, None)) {
            let layers = manifest.layers.into_iter();
            self.layers = layers
                .map(|layer| ImageLayer {
                    digest: layer.digest,
                    media_type: layer.media_type,
                    bytes: layer.size,
                })
                .collect();
        }
        if let Some(Ok(config)) = config.map(|bytes| ImageConfig::parse(&bytes)) {
            self.platform = Some(config.platform().to_string());
            self.created = config.created;
            self.config = Some(config.config);
        }
    }
}

/// The execution parameters that a SIF carries beside its root file system.
fn sif_config(path: &Path, sif: &mut SifFile<&File>) -> Result<Option<ExecConfig>, ConvertError> {
    let Some(object) = sif.find(DataType::GenericJson, SIF_CONFIG).cloned() else { return Ok(None) };
    if object.size > MAX_CONFIG_BYTES {
        return Ok(None);
    }
    let bytes =
        sif.read_object(&object).map_err(|source| ConvertError::SifRead { path: path.to_owned(), source })?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Reads a file of a directory tree; links in the tree stay in it.
fn read_in_root(root: &Path, inside: &str) -> io::Result<Option<Vec<u8>>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel gives up at a `..` while something is mounted or renamed anywhere on the machine (openat2(2)).
    const MAX_TRIES: u32 = 1000;
    let mut tries = (0..MAX_TRIES).map(|_| openat2(&root, inside, flags, Mode::empty(), resolve));
    let opened = tries.find(|tried| !matches!(tried, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN));
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::convert::{ConvertOptions, OutputFormat, convert_directory};
    use crate::copy::convert_file;
    use crate::source::Owners;

    const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64","config":{"Env":["A=1"],"Cmd":["x"]},
        "rootfs":{"type":"layers","diff_ids":[]}}"#;

    #[test]
    fn every_kind_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join(".situla")).unwrap();
        fs::write(tree.join(CONFIG_PATH), CONFIG).unwrap();
        let (sqsh, sif) = (dir.path().join("a.sqsh"), dir.path().join("a.sif"));
        let options = ConvertOptions::default();
        let made = convert_directory(&tree, Owners::Root, &sqsh, OutputFormat::Sqsh, &options, &()).unwrap();
        convert_file(&ImageFile::open(&sqsh).unwrap(), &sif, OutputFormat::Sif, &options, &()).unwrap();
        for (path, kind) in [(&tree, "directory"), (&sqsh, "squashfs"), (&sif, "sif")] {
            let found = inspect(path, true, None, &()).unwrap();
            assert_eq!(found.kind, kind);
            assert_eq!(found.config.as_ref().unwrap().env, ["A=1"], "{kind}");
            assert_eq!(found.config_digest, Some(Digest::sha256(CONFIG)));
            assert_eq!(found.platform.as_deref(), Some("linux/amd64"));
            if kind != "directory" {
                assert_eq!(found.rootfs_digest.as_ref(), Some(&made.rootfs_digest), "{kind}");
                assert_eq!(found.squashfs.unwrap().compressor, "zstd");
            }
            assert_eq!(found.sif.is_some(), kind == "sif");
        }
        let objects = inspect(&sif, false, None, &()).unwrap().sif.unwrap().objects;
        let root = objects.iter().find_map(|object| object.partition.as_ref()).unwrap();
        assert_eq!((root.fs, root.role), ("squashfs", "primary"), "{objects:?}");
    }

    #[test]
    fn other_things_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, b"hs").unwrap();
        assert!(matches!(inspect(&path, false, None, &()), Err(ConvertError::UnknownFormat { .. })));
        assert!(matches!(inspect(&dir.path().join("none"), false, None, &()), Err(ConvertError::File(_))));
        // A link in a tree must not lead to the host's files.
        let tree = dir.path().join("tree/.situla");
        fs::create_dir_all(&tree).unwrap();
        fs::write(dir.path().join("outside"), CONFIG).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), tree.join("config.json")).unwrap();
        assert!(inspect(&dir.path().join("tree"), false, None, &()).unwrap().config.is_none());
    }
}
