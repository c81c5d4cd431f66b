//! The single steps of an installation or removal: shown first, or done one after the other.
//!
//! Each leaves a whole state: a file appears by a new one under its name, never by writing into the old one, which a
//! running step may have open.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use situla_oci::Digest;

use super::root::Root;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make a directory.
    Directory(PathBuf),
    /// Keep what is there under another name.
    Backup { path: PathBuf, backup: PathBuf },
    /// Write a file.
    File { path: PathBuf, bytes: Vec<u8>, mode: u32, what: String },
    /// Write a file anew that is there, with the owner and mode that it has.
    Edit { path: PathBuf, text: String, what: String },
    /// Make a symbolic link.
    Link { path: PathBuf, target: PathBuf },
    /// Remove a file or link.
    Remove(PathBuf),
    /// Remove an empty directory.
    RemoveDirectory(PathBuf),
    /// Give back its name to what was kept.
    Restore { backup: PathBuf, path: PathBuf },
}

impl Step {
    /// What is to be done, or was, in one line.
    pub(crate) fn told(&self, done: bool) -> String {
        let verb = |would: &'static str, did: &'static str| match done {
            true => did.to_owned(),
            false => format!("would {would}"),
        };
        match self {
            Step::Directory(path) => format!("{} directory {}", verb("make", "made"), path.display()),
            Step::Backup { path, backup } => {
                format!("{} {} as {}", verb("keep", "kept"), path.display(), backup.display())
            }
            Step::File { path, bytes, mode, what } => format!(
                "{} {} (mode {mode:o}, {} bytes): {what}",
                verb("write", "wrote"),
                path.display(),
                bytes.len()
            ),
            Step::Edit { path, what, .. } => {
                format!("{} {}: {what}", verb("change", "changed"), path.display())
            }
            Step::Link { path, target } => {
                format!("{} {} to {}", verb("link", "linked"), path.display(), target.display())
            }
            Step::Remove(path) => format!("{} {}", verb("remove", "removed"), path.display()),
            Step::RemoveDirectory(path) => {
                format!("{} directory {}", verb("remove", "removed"), path.display())
            }
            Step::Restore { backup, path } => {
                format!("{} {} as {}", verb("put back", "put back"), backup.display(), path.display())
            }
        }
    }

    /// Does it.
    pub(crate) fn apply(&self, root: &Root) -> io::Result<()> {
        match self {
            Step::Directory(path) => {
                let path = root.place(path)?;
                fs::create_dir(&path)?;
                fs::set_permissions(&path, Permissions::from_mode(0o755))
            }
            // Under its own name it stays until the new one takes that: Slurm may load it at any moment.
            Step::Backup { path, backup } => keep(&root.place(path)?, &root.place(backup)?),
            Step::File { path, bytes, mode, .. } => put(&root.place(path)?, bytes, *mode, None),
            Step::Edit { path, text, .. } => {
                // The file, not the link by which Slurm finds it.
                let path = root.place(&root.real(path)?)?;
                let found = fs::metadata(&path)?;
                put(&path, text.as_bytes(), found.mode() & 0o7777, Some((found.uid(), found.gid())))
            }
            Step::Link { path, target } => {
                let path = root.place(path)?;
                let new = temporary(&path);
                remove_if_there(&new)?;
                symlink(target, &new)?;
                fs::rename(&new, &path)?;
                sync_directory(&path)
            }
            Step::Remove(path) => fs::remove_file(root.place(path)?),
            Step::RemoveDirectory(path) => fs::remove_dir(root.place(path)?),
            Step::Restore { backup, path } => fs::rename(root.place(backup)?, root.place(path)?),
        }
    }
}

fn keep(path: &Path, backup: &Path) -> io::Result<()> {
    if path.is_symlink() {
        return symlink(fs::read_link(path)?, backup);
    }
    // File systems without links have copies.
    fs::hard_link(path, backup).or_else(|_| fs::copy(path, backup).map(drop))
}

fn put(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let new = temporary(path);
    remove_if_there(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| match owner {
        Some((uid, gid)) => fchown(&file, Some(uid), Some(gid)),
        None => Ok(()),
    });
    let written = written
        // Whatever the umask.
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    drop(file);
    written.and_then(|()| sync_directory(path))
}

/// Beside its target, and hidden from patterns such as `*.conf` of an include.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.situla-new"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// What is under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    File {
        digest: String,
        mode: u32,
    },
    Link(PathBuf),
    /// A directory, a device or the like.
    Other,
}

/// Looks under a name.
pub(crate) fn look(root: &Root, path: &Path) -> Result<Found, String> {
    let failed = |error: io::Error| format!("cannot look at {}: {error}", path.display());
    let found = root.place(path).and_then(|place| Ok((fs::symlink_metadata(&place)?, place)));
    let (found, place) = match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        other => other.map_err(failed)?,
    };
    Ok(match found.file_type() {
        kind if kind.is_symlink() => Found::Link(fs::read_link(&place).map_err(failed)?),
        kind if kind.is_file() => {
            let bytes = fs::read(&place).map_err(failed)?;
            Found::File { digest: Digest::sha256(&bytes).to_string(), mode: found.mode() & 0o7777 }
        }
        _ => Found::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_and_an_open_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::tree(dir.path()).unwrap();
        let write = |text: &str, mode| {
            Step::File { path: "/a".into(), bytes: text.into(), mode, what: String::new() }
                .apply(&root)
                .unwrap();
        };
        write("old", 0o755);
        let mut open = File::open(dir.path().join("a")).unwrap();
        write("new", 0o644);
        assert_eq!(io::read_to_string(&mut open).unwrap(), "old");
        let digest = Digest::sha256(b"new").to_string();
        assert_eq!(look(&root, Path::new("/a")), Ok(Found::File { digest, mode: 0o644 }));
        // What an interrupted one has left is no obstacle.
        fs::write(dir.path().join(".a.situla-new"), "half").unwrap();
        write("newer", 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_edited_file_keeps_its_mode_and_a_link_to_it_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::tree(dir.path()).unwrap();
        fs::write(dir.path().join("real"), "old").unwrap();
        fs::set_permissions(dir.path().join("real"), Permissions::from_mode(0o640)).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        Step::Edit { path: "/link".into(), text: "new".to_owned(), what: String::new() }
            .apply(&root)
            .unwrap();
        assert_eq!(look(&root, Path::new("/link")), Ok(Found::Link("real".into())));
        let digest = Digest::sha256(b"new").to_string();
        assert_eq!(look(&root, Path::new("/real")), Ok(Found::File { digest, mode: 0o640 }));
        assert_eq!(look(&root, Path::new("/none")), Ok(Found::Nothing));
        assert_eq!(look(&root, Path::new("/")), Ok(Found::Other));
    }

    #[test]
    fn what_is_kept_stays_under_its_name_until_the_new_one_comes() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::tree(dir.path()).unwrap();
        fs::write(dir.path().join("file"), "old").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        for name in ["/file", "/link"] {
            let path = PathBuf::from(name);
            let backup = path.with_extension("before");
            Step::Backup { path: path.clone(), backup: backup.clone() }.apply(&root).unwrap();
            assert_eq!(look(&root, &path), look(&root, &backup));
            Step::File { path, bytes: b"new".to_vec(), mode: 0o644, what: String::new() }
                .apply(&root)
                .unwrap();
        }
        assert_eq!(fs::read_to_string(dir.path().join("file.before")).unwrap(), "old");
        assert_eq!(fs::read_link(dir.path().join("link.before")).unwrap(), Path::new("file"));
        assert_eq!(fs::read_to_string(dir.path().join("link")).unwrap(), "new");
    }

    #[test]
    fn what_would_be_done_and_what_was_are_told_alike() {
        let step = Step::Link { path: "/p/bin/apptainer".into(), target: "situla".into() };
        assert_eq!(step.told(false), "would link /p/bin/apptainer to situla");
        assert_eq!(step.told(true), "linked /p/bin/apptainer to situla");
    }
}
