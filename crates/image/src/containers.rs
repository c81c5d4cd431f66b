//! Containers whose files are kept on a node: for the later steps of a job, or until they are removed.
//!
//! | path below the user's directory | content |
//! |---|---|
//! | `containers/SCOPE/NODE/NAME/` | one container; flock(2) of it: shared by whoever runs in it, exclusive to make or remove it |
//! | `…/root/` | its files; complete, since it gets its name by rename |
//! | `…/container.json` | which image they were made of, and by whom |
//! | `…/making/` | the files while they are made |
//! | `…/ends/STEP` | the process of each task of a step that has ended, where somebody counts them |
//!
//! The files are an extracted image, and nothing lies between them and who runs in them: steps that run at the same time
//! see each other's changes at once, what is removed is gone, and what is left is one directory tree. Locks are the
//! kernel's: those of a killed process have gone. The lock of a directory also keeps systemd-tmpfiles away
//! (tmpfiles.d(5)).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use situla_oci::Digest;

use crate::file_error::FileError;
use crate::identity::{FileIdentity, Identities};
use crate::trees::fill::{hash_part, write_json};
use crate::trees::{TreeError, create_own, expect_own, is_named, make_for_owner, names, read_json};

/// Version of the records.
const RECORD_VERSION: u32 = 1;

/// How the names of containers begin that are no longer at their place.
const REMOVED: &str = ".removed.";

/// How often a container is looked for that somebody else makes or removes meanwhile.
const MAX_TRIES: u32 = 100;

/// Bytes of the numbers of processes that have ended: more than a node has tasks.
const MAX_ENDS: u64 = 1 << 20;

/// How often to look whether somebody uses a container, and what lies between. Who looks has the lock himself for a moment,
/// and must not be taken for somebody who uses it; those who do keep it for longer than all of this.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// Where a container is: each is the name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPlace {
    /// Of which job it is, or for all.
    pub scope: String,
    /// The node; its disk may be that of several.
    pub node: String,
    /// How it is called.
    pub name: String,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    version: u32,
    /// The image as it was called.
    pub image: String,
    /// Digest of the image's SquashFS.
    pub rootfs_digest: Digest,
    /// Digest of the image's manifest, where it has one.
    pub manifest_digest: Option<String>,
    /// The step that has made it.
    pub made_by: String,
}

impl ContainerRecord {
    /// Of a container that is being made.
    #[must_use]
    pub fn new(
        image: String,
        rootfs_digest: Digest,
        manifest_digest: Option<String>,
        made_by: String,
    ) -> Self {
        ContainerRecord { version: RECORD_VERSION, image, rootfs_digest, manifest_digest, made_by }
    }
}

/// Whether a task that has ended was the last one of its step on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// It was.
    Last,
    /// Others will come.
    NotLast,
    /// No other one will come, and so many have not.
    LastButFor(u32),
}

/// The right to use a container; given back when dropped.
#[derive(Debug)]
pub struct ContainerLease {
    path: PathBuf,
    directory: File,
}

impl ContainerLease {
    /// The directory that is the root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// The file that says what is known of it.
    #[must_use]
    pub fn record_path(&self) -> PathBuf {
        self.path.join("container.json")
    }

    /// Counts a task of `step` that has ended, the `process`; the last of `n_tasks` alone has the right still. Whether
    /// others can come after it is asked where there are fewer: whether a task lives that is none of these processes.
    ///
    /// # Errors
    /// The count cannot be kept.
    pub fn count_end(
        &self,
        step: &str,
        (process, n_tasks): (u32, u32),
        others_live: impl FnOnce(&BTreeSet<u32>) -> bool,
    ) -> Result<TaskEnd, TreeError> {
        if n_tasks <= 1 {
            return Ok(TaskEnd::Last);
        }
        // From here on nobody but the last one needs the files.
        flock(&self.directory, FlockOperation::Unlock).map_err(self.failed())?;
        let directory = self.path.join("ends");
        make_for_owner(&directory).map_err(FileError::write(&directory))?;
        let path = directory.join(step);
        let counted = || -> io::Result<TaskEnd> {
            let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
            let mut file = options.open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            let mut text = String::new();
            Read::by_ref(&mut file).take(MAX_ENDS).read_to_string(&mut text)?;
            // What lies behind is where the next line goes.
            writeln!(file, "{process}")?;
            // A number is another process's by now, where many were started meanwhile: lines are counted, not numbers.
            let n_ended = u32::try_from(text.lines().count()).unwrap_or(u32::MAX).saturating_add(1);
            let ended = text.lines().filter_map(|line| line.parse().ok()).chain([process]).collect();
            Ok(match n_tasks.saturating_sub(n_ended) {
                0 => TaskEnd::Last,
                _ if others_live(&ended) => TaskEnd::NotLast,
                n_missing => TaskEnd::LastButFor(n_missing),
            })
        };
        let end = counted().map_err(FileError::write(&path))?;
        if end == TaskEnd::Last {
            // A later step has another name.
            let _ = fs::remove_file(&path);
            flock(&self.directory, FlockOperation::LockShared).map_err(self.failed())?;
            // Somebody may have removed it in between.
            if !is_named(&self.directory, &self.path) {
                return Err(TreeError::Lock { path: self.path.clone() });
            }
        }
        Ok(end)
    }

    fn failed(&self) -> impl Fn(Errno) -> TreeError {
        |errno| FileError::read(&self.path)(errno.into()).into()
    }
}

/// What was found or is to be made.
#[derive(Debug)]
pub enum MadeContainer {
    /// It is there, with what is known of it, and whether somebody used it already.
    Found(ContainerLease, ContainerRecord, bool),
    /// It is not, and nobody else makes it.
    New(NewContainer),
}

/// A container that is being made; what there is of it goes when this is dropped.
#[derive(Debug)]
pub struct NewContainer {
    path: PathBuf,
    directory: Option<File>,
}

impl NewContainer {
    /// A directory, which does not exist, in which its files can be made.
    #[must_use]
    pub fn making(&self) -> PathBuf {
        self.path.join("making")
    }

    /// Makes the directory `files`, below [`Self::making`], the root.
    ///
    /// # Errors
    /// It cannot be put into its place.
    pub fn finish(mut self, files: &Path, record: &ContainerRecord) -> Result<ContainerLease, TreeError> {
        let Some(directory) = self.directory.take() else {
            return Err(TreeError::Lock { path: self.path.clone() });
        };
        let lease = ContainerLease { path: self.path.clone(), directory };
        let finished = || -> Result<(), TreeError> {
            write_json(&lease.record_path(), record)?;
            let root = lease.root();
            fs::rename(files, &root).map_err(FileError::write(&root))?;
            let making = self.making();
            remove_tree(&making).map_err(FileError::write(&making))?;
            flock(&lease.directory, FlockOperation::LockShared).map_err(lease.failed())?;
            // One lock does not become another at once (flock(2)), and somebody may have removed it in between.
            match is_named(&lease.directory, &self.path) {
                true => Ok(()),
                false => Err(TreeError::Lock { path: self.path.clone() }),
            }
        };
        let finished = finished();
        // What has this name by now may be another one's.
        if finished.is_err() && is_named(&lease.directory, &self.path) {
            let _ = remove_tree(&self.path);
        }
        finished.map(|()| lease)
    }
}

impl Drop for NewContainer {
    fn drop(&mut self) {
        if self.directory.is_some() {
            let _ = remove_tree(&self.path);
        }
    }
}

/// A container that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// Where.
    pub place: ContainerPlace,
    /// What is known of it; nothing where it is not complete.
    pub record: Option<ContainerRecord>,
    /// Whether somebody runs in it, or makes it.
    pub is_used: bool,
}

/// The containers of a user on a machine.
#[derive(Clone, Debug)]
pub struct Containers {
    /// The user's directory.
    own: PathBuf,
}

impl Containers {
    /// Those in the user's directory `own`, which need not exist.
    #[must_use]
    pub fn new(own: PathBuf) -> Self {
        Containers { own }
    }

    fn all(&self) -> PathBuf {
        self.own.join("containers")
    }

    fn path(&self, place: &ContainerPlace) -> PathBuf {
        self.all().join(&place.scope).join(&place.node).join(&place.name)
    }

    /// What is known of a container that is complete, without a right to use it.
    ///
    /// # Errors
    /// The user's directory is somebody else's.
    pub fn look(&self, place: &ContainerPlace) -> Result<Option<ContainerRecord>, TreeError> {
        if self.own.symlink_metadata().is_err() {
            return Ok(None);
        }
        expect_own(&self.own)?;
        Ok(record_at(&self.path(place)))
    }

    /// Takes the right to use a container, or to make it where it is not there; waits for whoever makes it. Whether somebody
    /// used it already is told for certain where that `matters`, which takes a moment where somebody does.
    ///
    /// # Errors
    /// The directories cannot be made, or are somebody else's.
    pub fn acquire(&self, place: &ContainerPlace, matters: bool) -> Result<MadeContainer, TreeError> {
        let path = self.path(place);
        for _ in 0..MAX_TRIES {
            // Whoever removes the last container removes it as well.
            create_own(&self.own)?;
            let Some(directory) = self.make(place)? else { continue };
            let failed = |errno: Errno| TreeError::from(FileError::read(&path)(errno.into()));
            let alone = lock_alone(&directory, if matters { LOOKS } else { 1 });
            match alone {
                Ok(()) if !is_named(&directory, &path) => continue,
                // A user's work is not removed because a record is of another version, or cannot be read now.
                Ok(()) if is_unknown(&path) => return Err(TreeError::Unknown { path }),
                Ok(()) if record_at(&path).is_none() => {
                    let new = NewContainer { path: path.clone(), directory: Some(directory) };
                    // Of one that was killed while he made it.
                    for left in ["root", "making"].map(|name| path.join(name)) {
                        remove_tree(&left).map_err(FileError::write(&left))?;
                    }
                    return Ok(MadeContainer::New(new));
                }
                Ok(()) | Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(failed(errno)),
            }
            // Whoever makes or removes it is waited for; not who uses it.
            loop {
                match flock(&directory, FlockOperation::LockShared) {
                    Err(Errno::INTR) => {}
                    other => break other.map_err(failed)?,
                }
            }
            if let Some(record) = record_at(&path).filter(|_| is_named(&directory, &path)) {
                return Ok(MadeContainer::Found(ContainerLease { path, directory }, record, alone.is_err()));
            }
        }
        Err(TreeError::Lock { path })
    }

    /// Makes the directory of a container and opens it; `None` where somebody has removed it meanwhile.
    fn make(&self, place: &ContainerPlace) -> Result<Option<File>, TreeError> {
        let mut path = self.all();
        for name in [None, Some(&place.scope), Some(&place.node), Some(&place.name)] {
            path.extend(name);
            match make_for_owner(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(FileError::write(&path))?,
            }
        }
        open_directory(&path)
    }

    /// Lists all of them.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn list(&self) -> Result<Vec<ListedContainer>, TreeError> {
        let mut found = Vec::new();
        if self.own.symlink_metadata().is_err() {
            return Ok(found);
        }
        expect_own(&self.own)?;
        for scope in names(&self.all())? {
            for node in names(&self.all().join(&scope))? {
                for name in names_of_all(&self.all().join(&scope).join(&node))? {
                    let place = ContainerPlace { scope: scope.clone(), node: node.clone(), name };
                    let path = self.path(&place);
                    let Some(directory) = open_directory(&path)? else { continue };
                    let record = record_at(&path);
                    let is_used = lock_alone(&directory, LOOKS).is_err();
                    // Not for longer than a moment.
                    drop(directory);
                    found.push(ListedContainer { record, is_used, place });
                }
            }
        }
        Ok(found)
    }

    /// The scopes that there are.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn scopes(&self) -> Result<Vec<String>, TreeError> {
        Ok(names(&self.all())?.into_iter().collect())
    }

    /// Removes a container; false where somebody uses it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, place: &ContainerPlace) -> Result<bool, TreeError> {
        expect_own(&self.own)?;
        let path = self.path(place);
        if let Some(directory) = open_directory(&path)? {
            match lock_alone(&directory, LOOKS) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(errno) => return Err(FileError::read(&path)(errno.into()).into()),
            }
            // Whoever waits for it finds another place of this name.
            let away = match place.name.starts_with(REMOVED) {
                true => path.clone(),
                false => path.with_file_name(format!("{REMOVED}{}.{}", place.name, std::process::id())),
            };
            if away != path && is_named(&directory, &path) {
                fs::rename(&path, &away).map_err(FileError::write(&path))?;
            }
            remove_tree(&away).map_err(FileError::write(&away))?;
        }
        // Directories in which something is left, or comes this moment, stay.
        let above = path.ancestors().skip(1).take_while(|above| above.starts_with(&self.own));
        let _ = above.map(fs::remove_dir).take_while(Result::is_ok).count();
        Ok(true)
    }
}

/// Locks a container that nobody uses; `WOULDBLOCK` where somebody does, at each of so many looks.
fn lock_alone(directory: &File, n_looks: u32) -> Result<(), Errno> {
    for _ in 1..n_looks {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(BETWEEN_LOOKS),
            other => return other,
        }
    }
    flock(directory, FlockOperation::NonBlockingLockExclusive)
}

/// Whether there are files and a record, and the record says nothing.
fn is_unknown(path: &Path) -> bool {
    let is_there = |name: &str| fs::symlink_metadata(path.join(name)).is_ok();
    is_there("root") && is_there("container.json") && record_at(path).is_none()
}

fn record_at(path: &Path) -> Option<ContainerRecord> {
    let record: ContainerRecord = read_json(&path.join("container.json"))?;
    (record.version == RECORD_VERSION && path.join("root").is_dir()).then_some(record)
}

/// Opens a directory to lock it; `None` where it is not there.
fn open_directory(path: &Path) -> Result<Option<File>, TreeError> {
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::read(path)(error).into()),
    }
}

/// Also of those that have a hidden name: what has begun to be removed, and what a step has for itself.
fn names_of_all(directory: &Path) -> Result<Vec<String>, TreeError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::read(directory))?,
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Removes a tree, whatever modes a program has given to its directories.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mut waiting = vec![path.to_owned()];
            while let Some(directory) = waiting.pop() {
                if !fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir()) {
                    continue;
                }
                // What cannot be opened up cannot be removed either, and is told below.
                let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
                for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        waiting.push(entry.path());
                    }
                }
            }
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// The digest of a part of an open image, which `shown` names: as it was computed before, where that is so.
///
/// # Errors
/// It cannot be read, or changes meanwhile.
pub fn hash_image(
    image: &File,
    part: (u64, u64),
    shown: &Path,
    identities: Option<&Identities>,
) -> Result<Digest, TreeError> {
    let metadata = image.metadata().map_err(FileError::read(shown))?;
    let identity = FileIdentity::of(&metadata, part);
    if let Some(digest) = identities.and_then(|identities| identities.find(&identity)) {
        return Ok(digest);
    }
    let digest = hash_part(image, &identity, shown)?;
    // Without that it is computed again.
    let _ = identities.map(|identities| identities.remember(&identity, &digest));
    Ok(digest)
}

#[cfg(test)]
mod tests;
