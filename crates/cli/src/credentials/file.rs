//! Reading and writing files with secrets.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use situla_image::KeyringError;

use super::docker::DockerConfig;

/// Bytes of a file that are read.
const MAX_FILE: u64 = 4 << 20;
/// Links that are followed to the file that is to be written.
const MAX_LINKS: u32 = 16;
/// How long another process may keep us from changing a file. It reads and writes a few bytes; one that was stopped
/// in between must not keep everybody for ever.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What a file holds; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, KeyringError> {
    // A named pipe in its place must not keep us waiting.
    let opened = OpenOptions::new().read(true).custom_flags(rustix_nonblock()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unusable(path, &error.to_string())),
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|error| unusable(path, &error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unusable(path, &format!("it has more than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| unusable(path, "it is no text"))
}

fn rustix_nonblock() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0)
}

/// Fails if somebody else can write a file.
pub(super) fn expect_own(path: &Path) -> Result<(), KeyringError> {
    let metadata = std::fs::metadata(path).map_err(|error| unusable(path, &error.to_string()))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if own && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(KeyringError {
        message: format!("{} can be written by others, and has a command for the shell", path.display()),
        remedy: format!("chmod 600 {}", path.display()),
    })
}

/// The configuration at `path`; an empty one if there is none.
pub(super) fn load(path: &Path) -> Result<DockerConfig, KeyringError> {
    let text = read(path)?.unwrap_or_default();
    DockerConfig::parse(&text).map_err(|why| unusable(path, &why))
}

/// Changes the configuration at `path`, where `change` tells that it has; nobody else of ours does so meanwhile, so that
/// of two logins at once none is lost.
pub(super) fn update(path: &Path, change: impl Fn(&mut DockerConfig) -> bool) -> Result<bool, KeyringError> {
    let path = &target(path);
    // Where there is nothing to change no directory is made, and nobody need be able to write.
    if !change(&mut load(path)?) {
        return Ok(false);
    }
    let _lock = lock(path)?;
    let mut config = load(path)?;
    let changed = change(&mut config);
    if changed {
        save(path, &config)?;
    }
    Ok(changed)
}

/// Keeps others from changing a file while the result lives. The lock has a file of its own, since each change puts
/// another one in the file's place; and one that can be written, which NFS wants for locks.
fn lock(path: &Path) -> Result<Lock, KeyringError> {
    let failed = |error: std::io::Error| unwritable(path, &error);
    let directory = directory_of(path);
    // Nobody else is to exchange the file, whatever the umask allows.
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lock = directory.join(format!(".{name}.lock"));
    let began = Instant::now();
    loop {
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0))
            .open(&lock);
        let file = opened.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // The one before may have taken the file away when he was done: then another one counts.
            Ok(()) if !is_at(&file, &lock) => {}
            // Where locks are missing nothing better can be done.
            Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
                return Ok(Lock { path: lock, _file: file });
            }
            Err(Errno::AGAIN | Errno::INTR) if began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// A lock that is held; nothing of it stays.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether an open file is still the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(id), std::fs::symlink_metadata(path).map(id)), (Ok(a), Ok(b)) if a == b)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn unwritable(path: &Path, error: &std::io::Error) -> KeyringError {
    KeyringError {
        message: format!("cannot write {}: {error}", path.display()),
        remedy: "check that the directory is yours and has room, or name another file with --authfile"
            .to_owned(),
    }
}

/// Writes a configuration, for nobody else to read; a reader sees the old or the new one.
fn save(path: &Path, config: &DockerConfig) -> Result<(), KeyringError> {
    let failed = |error: std::io::Error| unwritable(path, &error);
    let directory = directory_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
    // What a process of the same id has left is no obstacle; a link put there instead is not followed.
    let _ = std::fs::remove_file(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(config.to_text().as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed)?;
    // Without the directory's entry the file is lost with the power; it is there all the same.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

/// The file that a link leads to, so that the link stays.
fn target(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    path
}

/// Says that a file cannot be used.
pub(super) fn unusable(path: &Path, why: &str) -> KeyringError {
    KeyringError {
        message: format!("cannot use {}: {why}", path.display()),
        remedy: format!("correct {}, or move it away", path.display()),
    }
}
