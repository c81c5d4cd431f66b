//! Reading and writing files with secrets.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use situla_image::KeyringError;

use super::docker::DockerConfig;

/// Bytes of a file that are read.
const MAX_FILE: u64 = 4 << 20;
/// Links that are followed to the file that is to be written.
const MAX_LINKS: u32 = 16;

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
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)
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

/// Writes a configuration, for nobody else to read; a reader sees the old or the new one.
pub(super) fn save(path: &Path, config: &DockerConfig) -> Result<(), KeyringError> {
    let path = &target(path);
    let failed = |error: std::io::Error| KeyringError {
        message: format!("cannot write {}: {error}", path.display()),
        remedy: "check that the directory is yours and has room, or name another file with --authfile"
            .to_owned(),
    };
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Nobody else is to exchange the file, whatever the umask allows.
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
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
