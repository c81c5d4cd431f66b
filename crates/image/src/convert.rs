//! From any source to a `.sqsh` or `.sif` file.
//!
//! A file appears under its name only complete; on an error nothing is left. SquashFS and SIF are turned
//! into each other without touching the file system's bytes.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use situla_oci::{Algorithm, Digest, ExecConfig, Hasher, ImageConfig, MAX_CONFIG_BYTES, Manifest, Platform};
use situla_sif::{DataType, FsType, SifError, SifObject, SifOptions, SifWriteError, SifWriter};
use situla_squashfs::{ReadOptions, StoredFile, WriteError, WriterOptions};
use thiserror::Error;

use crate::additions::{
    CONFIG_PATH, ENVIRONMENT_PATH, MANIFEST_PATH, SINGULARITY_DIR, environment_script, run_script,
};
use crate::additions::{image_additions, mount_points, singularity_additions};
use crate::file_error::FileError;
use crate::flatten::{FlattenError, FlattenOptions, Level, MergeError, Merger, flatten};
use crate::image_parts::{Addition, ImageParts};
use crate::output::{Existing, PendingFile};
use crate::progress::{Event, Progress};
use crate::resources::{Ledger, MemoryExhausted, MemoryPlan, Resources};
use crate::source::{DirectoryError, ImageSource, Owners, ResolveError, resolve, walk};
use crate::squash::SquashSink;
use crate::tree::Tree;
use crate::unpack::{Unpacked, unpack};
use crate::verify::VerifyError;

/// File format of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// A bare SquashFS.
    Sqsh,
    /// A SquashFS in a SIF.
    Sif,
}

impl OutputFormat {
    /// Chooses by the file name: `.sif` is a SIF, all else a SquashFS.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("sif")) { Self::Sif } else { Self::Sqsh }
    }
}

/// Settings of a conversion.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Layers fetched at the same time.
    pub n_fetchers: usize,
    /// Compression threads; the result does not depend on them.
    pub n_threads: usize,
    /// Memory to work in; the result does not depend on it either.
    pub memory: MemoryPlan,
    /// zstd level of the SquashFS.
    pub zstd_level: i32,
    /// Replace an existing output.
    pub overwrite: bool,
    /// Seconds since 1970: the time at which the image is said to be made, and the latest time of its files. Without
    /// it that is 0, and files keep their times.
    pub source_date_epoch: Option<u32>,
}

impl ConvertOptions {
    /// The usual settings, with what of the machine may be used.
    #[must_use]
    pub fn within(resources: Resources) -> Self {
        let Resources { n_threads, n_fetchers, memory } = resources;
        Self { n_fetchers, n_threads, memory, ..Self::default() }
    }
}

/// One thread, on a machine without limits: who knows more says so.
impl Default for ConvertOptions {
    fn default() -> Self {
        let memory = MemoryPlan::default();
        Self { n_fetchers: 4, n_threads: 1, memory, zstd_level: 3, overwrite: false, source_date_epoch: None }
    }
}

/// How long the parts of a conversion took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Name to manifest and configuration.
    pub resolve: Duration,
    /// Fetching, merging and compressing, which overlap.
    pub convert: Duration,
    /// Hashing the result and bringing it to disk.
    pub finish: Duration,
}

/// What a conversion made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Digest of the image manifest, if the source has one.
    pub manifest_digest: Option<Digest>,
    /// SHA-256 of the SquashFS (in a SIF, of the partition).
    pub rootfs_digest: Digest,
    /// Size of the output file in bytes.
    pub bytes: u64,
    /// How long it took.
    pub timings: Timings,
}

/// Why a conversion failed.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The source's name does not lead to a usable image.
    #[error(transparent)]
    Resolve(ResolveError),
    /// The layers cannot be turned into a tree.
    #[error(transparent)]
    Flatten(FlattenError),
    /// The directory cannot be read.
    #[error(transparent)]
    Directory(DirectoryError),
    /// The tree cannot be completed.
    #[error("cannot complete the file tree")]
    Tree(#[source] MergeError),
    /// The SquashFS cannot be written.
    #[error("cannot write the SquashFS of '{}'", path.display())]
    Squash {
        /// The file to be made.
        path: PathBuf,
        /// The cause.
        #[source]
        source: WriteError,
    },
    /// The SIF cannot be written.
    #[error("cannot write SIF '{}'", path.display())]
    SifWrite {
        /// The file to be made.
        path: PathBuf,
        /// The cause.
        #[source]
        source: SifWriteError,
    },
    /// The input is not a usable SIF.
    #[error("cannot read SIF '{}'", path.display())]
    SifRead {
        /// The input.
        path: PathBuf,
        /// The cause.
        #[source]
        source: SifError,
    },
    /// The SIF's file system is none that can be taken out.
    #[error("SIF '{}' has a root file system of type {fs:?}, not SquashFS", path.display())]
    SifFs {
        /// The input.
        path: PathBuf,
        /// Its file system.
        fs: FsType,
    },
    /// Which of its file systems is the root depends on the machine.
    #[error("SIF '{}' has several root file systems, for several kinds of machines", path.display())]
    SifRoots {
        /// The input.
        path: PathBuf,
    },
    /// The input is not a SquashFS.
    #[error("'{}' is not a usable SquashFS", path.display())]
    NotSquashfs {
        /// The input.
        path: PathBuf,
        /// The cause.
        #[source]
        source: situla_squashfs::Error,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The output is there already.
    #[error("'{}' exists already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The input is no image file.
    #[error("'{}' is neither a SquashFS nor a SIF image", path.display())]
    UnknownFormat {
        /// The input.
        path: PathBuf,
    },
    /// The image holds more than an image of its size does.
    #[error("'{}' unpacks to more than {limit} {what}, which no image of its size does", path.display())]
    TooMuch {
        /// The input.
        path: PathBuf,
        /// Of what.
        what: &'static str,
        /// The most that is taken.
        limit: u64,
    },
    /// Unpacking needs more memory than it may use.
    #[error("cannot unpack '{}'", path.display())]
    Memory {
        /// The input.
        path: PathBuf,
        /// The limit.
        #[source]
        source: MemoryExhausted,
    },
    /// An image of the store is no longer what was put there.
    #[error("'{}' has changed since it was stored", path.display())]
    Damaged {
        /// The file in the store.
        path: PathBuf,
        /// How it differs.
        #[source]
        source: VerifyError,
    },
}

impl ConvertError {
    pub(crate) fn sif_write(path: &Path) -> impl FnOnce(SifWriteError) -> ConvertError {
        |source| ConvertError::SifWrite { path: path.to_owned(), source }
    }
}

/// Converts an image from a registry or layout to a file.
///
/// # Errors
/// When the image cannot be had, is not what its digests promise, or the output cannot be written.
pub fn convert_image(
    source: &dyn ImageSource,
    platform: &Platform,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let began = Instant::now();
    let image = resolve(source, platform).map_err(ConvertError::Resolve)?;
    progress.event(resolved(&image.digest, &image.manifest));
    let resolve_time = began.elapsed();
    let pending = create_output(out, existing(options))?;
    let mut converted = write_output(
        &pending,
        out,
        format,
        &sif_options(&image.config),
        options,
        |sink| image_tree(source, &image, sink, options, progress),
        progress,
    )?;
    converted.manifest_digest = Some(image.digest);
    converted.timings.resolve = resolve_time;
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

/// Converts a directory tree to a file.
///
/// # Errors
/// When the tree cannot be read or the output cannot be written.
pub fn convert_directory(
    dir: &Path,
    owners: Owners,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    refuse_existing(out, options)?;
    let pending = create_output(out, existing(options))?;
    let sif = SifOptions { arch: Platform::native().architecture, ..SifOptions::default() };
    let mut converted = write_output(
        &pending,
        out,
        format,
        &sif,
        options,
        |sink| directory_tree(dir, owners, format, sink, options, progress),
        progress,
    )?;
    publish(pending, out, format, options, &mut converted)?;
    Ok(converted)
}

/// Unpacks an image from a registry or layout into a new directory, by way of a file without a name.
///
/// # Errors
/// As [`convert_image`] and [`crate::unpack_file`].
pub fn unpack_image(
    source: &dyn ImageSource,
    platform: &Platform,
    out: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<(Digest, Unpacked), ConvertError> {
    let image = resolve(source, platform).map_err(ConvertError::Resolve)?;
    progress.event(resolved(&image.digest, &image.manifest));
    // It gets no name.
    let pending = create_output(out, Existing::Replace)?;
    write_output(
        &pending,
        out,
        OutputFormat::Sqsh,
        &SifOptions::default(),
        options,
        |sink| image_tree(source, &image, sink, options, progress),
        progress,
    )?;
    let file = pending.file().map_err(FileError::write(out))?;
    let squashfs = situla_squashfs::Image::open(file, ReadOptions::default())
        .map_err(|source| ConvertError::NotSquashfs { path: out.to_owned(), source })?;
    Ok((image.digest, unpack(&squashfs, out, out, options.n_threads, progress)?))
}

pub(crate) fn resolved(digest: &Digest, manifest: &Manifest) -> Event {
    let layers = &manifest.layers;
    let bytes = layers.iter().map(|l| l.size).fold(0, u64::saturating_add);
    Event::Resolved { manifest: digest.clone(), n_layers: layers.len(), bytes }
}

/// Fetches and merges an image's layers into `sink`.
pub(crate) fn image_tree(
    source: &dyn ImageSource,
    image: &ImageParts,
    sink: &mut SquashSink<File>,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Tree<StoredFile>, ConvertError> {
    let flatten_options = FlattenOptions {
        n_fetchers: options.n_fetchers,
        memory: options.memory,
        ..FlattenOptions::default()
    };
    let additions = image_additions(image);
    let flat = flatten(source, image, &additions, &mount_points(), sink, flatten_options, progress);
    Ok(flat.map_err(ConvertError::Flatten)?.tree)
}

/// Takes over a directory tree into `sink`.
pub(crate) fn directory_tree(
    dir: &Path,
    owners: Owners,
    format: OutputFormat,
    sink: &mut SquashSink<File>,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Tree<StoredFile>, ConvertError> {
    let ledger = Ledger::new(options.memory);
    let mut merger = Merger::new(sink, &ledger, Level(1));
    merger.begin_layer(Level(1));
    walk(dir, owners, &mut merger, progress).map_err(ConvertError::Directory)?;
    merger.end_layer().map_err(ConvertError::Tree)?;
    if format == OutputFormat::Sqsh {
        // The file is the tree and nothing else; only SIF runtimes expect more of it.
        return merger.finish().map_err(ConvertError::Tree);
    }
    let keeps_own = merger.has(SINGULARITY_DIR);
    merger.begin_layer(Level(0));
    let mut add = |additions: Vec<Addition>| -> Result<(), ConvertError> {
        for addition in additions {
            let added = merger.entry(addition.entry, &mut addition.content.as_slice());
            added.map_err(ConvertError::Tree)?;
        }
        Ok(())
    };
    if !keeps_own {
        add(singularity_additions(&ImageConfig::default()))?;
    }
    add(mount_points())?;
    merger.finish().map_err(ConvertError::Tree)
}

/// Writes a root file system to an open output in the given format, and hashes it.
pub(crate) fn write_output(
    pending: &PendingFile,
    target: &Path,
    format: OutputFormat,
    sif: &SifOptions,
    options: &ConvertOptions,
    build: impl FnOnce(&mut SquashSink<File>) -> Result<Tree<StoredFile>, ConvertError>,
    progress: &dyn Progress,
) -> Result<Converted, ConvertError> {
    let began = Instant::now();
    let file = pending.file().map_err(FileError::write(target))?;
    let squash_failed = |source| ConvertError::Squash { path: target.to_owned(), source };
    let squash = |out: File| -> Result<(File, u64), ConvertError> {
        let writer_options = WriterOptions {
            zstd_level: options.zstd_level,
            threads: options.n_threads.max(1),
            mtime: options.source_date_epoch.unwrap_or_default(),
            ..WriterOptions::default()
        };
        let mut sink = SquashSink::create(out, writer_options).map_err(squash_failed)?;
        let mut tree = build(&mut sink)?;
        if let Some(epoch) = options.source_date_epoch {
            tree.clamp_times(epoch.into());
        }
        let (summary, out) = sink.finish(tree, progress).map_err(squash_failed)?;
        Ok((out, summary.padded_len))
    };
    let (file, offset) = match format {
        OutputFormat::Sqsh => (squash(file)?.0, 0),
        OutputFormat::Sif => {
            let mut writer = SifWriter::new(file, sif.clone()).map_err(ConvertError::sif_write(target))?;
            let offset = writer.partition_offset();
            // A clone of the descriptor shares its position, which stands at the partition.
            let clone = writer.output().try_clone().map_err(FileError::write(target))?;
            let (_, len) = squash(clone)?;
            (writer.finish(len).map_err(ConvertError::sif_write(target))?, offset)
        }
    };
    let convert = began.elapsed();
    let began = Instant::now();
    let (rootfs_digest, bytes) = hash_from(&file, offset).map_err(FileError::write(target))?;
    let timings = Timings { resolve: Duration::ZERO, convert, finish: began.elapsed() };
    Ok(Converted { manifest_digest: None, rootfs_digest, bytes: offset + bytes, timings })
}

/// Hashes a file from `offset` to its end; it was just written, so this reads memory.
pub(crate) fn hash_from(file: &File, offset: u64) -> io::Result<(Digest, u64)> {
    hash_telling(file, offset, u64::MAX, &())
}

/// Bytes hashed at a time: they stay in the processor's cache from the copy to the hash, and each page of a buffer costs a
/// fault, which a small image feels.
const HASH_BUFFER: usize = 128 << 10;

/// Hashes at most `len` bytes of a file from `offset`, counts them, and tells how far it is.
pub(crate) fn hash_telling(
    file: &File,
    offset: u64,
    len: u64,
    progress: &dyn Progress,
) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; HASH_BUFFER];
    let mut n_hashed = 0;
    while n_hashed < len {
        let wanted = usize::try_from(len - n_hashed).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(&mut buffer[..wanted], offset + n_hashed) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                n_hashed += n as u64;
                progress.event(Event::Read { bytes: n as u64 });
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((hasher.finish(), n_hashed))
}

pub(crate) fn refuse_existing(out: &Path, options: &ConvertOptions) -> Result<(), ConvertError> {
    // Said early, before minutes of work; publishing checks again, atomically.
    if !options.overwrite && fs::symlink_metadata(out).is_ok() {
        return Err(ConvertError::Exists { path: out.to_owned() });
    }
    Ok(())
}

pub(crate) fn create_output(out: &Path, existing: Existing) -> Result<PendingFile, ConvertError> {
    let dir = match out.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    // The hidden name must not exceed the limit where the visible one does not.
    let prefix: String = name.chars().take(40).collect();
    let pending = PendingFile::create(dir, &prefix).map_err(FileError::write(out))?;
    if existing == Existing::Refuse {
        pending.expect_new_names().map_err(FileError::write(out))?;
    }
    Ok(pending)
}

/// Whether an output may take another one's place.
pub(crate) fn existing(options: &ConvertOptions) -> Existing {
    if options.overwrite { Existing::Replace } else { Existing::Refuse }
}

pub(crate) fn publish(
    pending: PendingFile,
    out: &Path,
    format: OutputFormat,
    options: &ConvertOptions,
    converted: &mut Converted,
) -> Result<(), ConvertError> {
    let began = Instant::now();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ConvertError::Exists { path: out.to_owned() },
        _ => FileError::write(out)(source).into(),
    };
    let file = pending.file().map_err(failed)?;
    converted.bytes = file.metadata().map_err(failed)?.len();
    if format == OutputFormat::Sif {
        let_readers_execute(&file).map_err(failed)?;
    }
    pending.publish(out, existing(options)).map_err(failed)?;
    converted.timings.finish += began.elapsed();
    Ok(())
}

/// The launch line of a SIF makes `./image.sif` start the container: whoever may read it may execute it.
pub(crate) fn let_readers_execute(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    file.set_permissions(Permissions::from_mode(mode | ((mode & 0o444) >> 2)))
}

/// Returns what goes around the partition of an image with this configuration.
fn sif_options(config: &ImageConfig) -> SifOptions {
    let object = |name: &str, value: &serde_json::Value| SifObject {
        data_type: DataType::GenericJson,
        name: name.to_owned(),
        bytes: value.to_string().into_bytes(),
    };
    // What Apptainer's `inspect` shows without starting the container.
    let inspect = serde_json::json!({
        "data": { "attributes": {
            "environment": { format!("/{ENVIRONMENT_PATH}"): environment_script(&config.config) },
            "labels": config.config.labels,
            "runscript": run_script(&config.config),
        } },
        "type": "container",
    });
    SifOptions {
        arch: config.architecture.clone(),
        deffile: None,
        objects: vec![
            object("oci-config.json", &oci_config(&config.config)),
            object("inspect-metadata.json", &inspect),
        ],
    }
}

/// The execution parameters as other tools write them: without empty fields.
fn oci_config(config: &ExecConfig) -> serde_json::Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let serde_json::Value::Object(fields) = &mut value {
        fields.retain(|_, field| {
            *field != serde_json::json!([])
                && *field != serde_json::json!({})
                && *field != serde_json::json!("")
        });
    }
    value
}

/// Reads what a SquashFS says about itself; one that says nothing is for this machine's architecture.
pub(crate) fn describe_image(
    path: &Path,
    source: impl situla_squashfs::ReadAt + 'static,
) -> Result<(Option<Digest>, SifOptions), ConvertError> {
    let failed = |source| ConvertError::NotSquashfs { path: path.to_owned(), source };
    let image = situla_squashfs::Image::open(source, ReadOptions::default()).map_err(failed)?;
    let limit = usize::try_from(MAX_CONFIG_BYTES).unwrap_or(usize::MAX);
    let manifest = image.read_file(MANIFEST_PATH, limit).map_err(failed)?.map(|bytes| Digest::sha256(&bytes));
    let config = image.read_file(CONFIG_PATH, limit).map_err(failed)?;
    let sif = match config.and_then(|bytes| ImageConfig::parse(&bytes).ok()) {
        Some(config) => sif_options(&config),
        None => SifOptions { arch: Platform::native().architecture, ..SifOptions::default() },
    };
    Ok((manifest, sif))
}
