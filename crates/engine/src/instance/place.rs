//! Where the files of a user's instances on one host are.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::Deserialize;

use super::error::{InstanceError, InstanceFlaw};
use super::name::InstanceName;
use super::process::ProcessRef;
use super::state::{InstanceState, SCHEMA};

/// The largest file that is read or written: a filter of system calls, which is part of it, may have been 1 MiB
/// when it was read, and its form here has a few more letters.
const MAX_STATE: u64 = 4 << 20;

/// The most instances that are looked at.
const MAX_INSTANCES: usize = 10_000;

/// The directory of a user's instances on one host.
#[derive(Clone, Debug)]
pub struct Instances {
    directory: PathBuf,
}

/// What an instance is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It runs.
    Running,
    /// Its processes were killed, or the host was booted anew: only its file was left.
    Ended,
    /// It was started in another PID namespace of this host; nothing is known of it here.
    Elsewhere,
}

/// An instance with its condition.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What its file says.
    pub state: InstanceState,
    /// What is true.
    pub condition: Condition,
}

/// The right to start an instance or to remove a file; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Instances {
    /// The instances in `directory`, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Instances { directory }
    }

    fn path(&self, name: &str, ending: &str) -> PathBuf {
        self.directory.join(format!("{name}.{ending}"))
    }

    /// Where the output of an instance goes.
    pub(crate) fn logs(&self, name: &InstanceName) -> [PathBuf; 2] {
        ["out", "err"].map(|ending| self.path(name.as_str(), ending))
    }

    /// Makes the directory, for the owner alone.
    pub(crate) fn create(&self) -> Result<(), InstanceError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(failed("create", &self.directory))?;
        let metadata = fs::symlink_metadata(&self.directory).map_err(failed("read", &self.directory))?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !own || !metadata.is_dir() || metadata.mode() & 0o022 != 0 {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it is not yours alone to write");
            return Err(failed("use", &self.directory)(source));
        }
        Ok(())
    }

    /// Waits for the lock. Nobody holds it for longer than a start takes.
    pub(crate) fn lock(&self) -> Result<Lock, InstanceError> {
        let (file, path) = self.lock_file()?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &path)(errno.into())),
            }
        }
    }

    fn lock_file(&self) -> Result<(File, PathBuf), InstanceError> {
        let path = self.directory.join(".lock");
        let file = open_options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok((file.map_err(failed("open", &path))?, path))
    }

    /// Reads the file of one instance; `None` where there is none.
    fn read(&self, name: &str) -> Result<Option<InstanceState>, InstanceError> {
        let path = self.path(name, "json");
        let file = match open_options().read(true).open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map_err(failed("open", &path))?,
        };
        let metadata = file.metadata().map_err(failed("read", &path))?;
        let unusable = |flaw| Err(InstanceError::Unusable { path: path.clone(), flaw });
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return unusable(InstanceFlaw::Owner);
        }
        let mut bytes = Vec::new();
        file.take(MAX_STATE).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        match serde_json::from_slice::<Head>(&bytes) {
            Ok(Head { schema }) if schema != SCHEMA => return unusable(InstanceFlaw::Version(schema)),
            _ => {}
        }
        match serde_json::from_slice::<InstanceState>(&bytes) {
            Ok(state) if state.name == name => Ok(Some(state)),
            _ => unusable(InstanceFlaw::Content),
        }
    }

    /// Looks for one instance.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn get(&self, name: &InstanceName) -> Result<Option<Listed>, InstanceError> {
        Ok(self.read(name.as_str())?.map(judge))
    }

    /// Lists all, sorted by name. The files of those that have ended are removed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, InstanceError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read", &self.directory))?,
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_INSTANCES * 4) {
            let name = entry.map_err(failed("read", &self.directory))?.file_name();
            let name =
                name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(InstanceName::parse);
            // What cannot be used is no reason to show none of the others.
            if let Some(name) = name
                && let Ok(Some(state)) = self.read(name.as_str())
            {
                found.push(judge(state));
            }
        }
        found.sort_by(|a, b| a.state.name.cmp(&b.state.name));
        if found.iter().any(|listed| listed.condition == Condition::Ended) {
            self.remove_ended(&found);
        }
        Ok(found)
    }

    /// Removes the files of instances that have ended, unless somebody is starting one.
    fn remove_ended(&self, found: &[Listed]) {
        let Ok((file, _)) = self.lock_file() else { return };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            // The next who looks does it.
            return;
        }
        for listed in found.iter().filter(|listed| listed.condition == Condition::Ended) {
            self.remove(&listed.state);
        }
    }

    /// Publishes the file of an instance; an existing one stays, and that is an error.
    pub(crate) fn publish(&self, state: &InstanceState) -> Result<(), InstanceError> {
        let path = self.path(&state.name, "json");
        let pending = self.directory.join(format!(".{}.{}", state.name, std::process::id()));
        let bytes = serde_json::to_vec(state).map_err(io::Error::other).map_err(failed("write", &path))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) >= MAX_STATE {
            return Err(failed("write", &path)(io::ErrorKind::FileTooLarge.into()));
        }
        let written = open_options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&pending)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| match renameat_with(CWD, &pending, CWD, &path, RenameFlags::NOREPLACE) {
                // A file system that cannot do it; whoever starts holds the lock.
                Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&pending, &path),
                other => other.map_err(io::Error::from),
            });
        if written.is_err() {
            let _ = fs::remove_file(&pending);
        }
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(InstanceError::Exists { name: state.name.clone(), elsewhere: false })
            }
            other => other.map_err(failed("write", &path)),
        }
    }

    /// Removes the file of `state`, unless it is another instance's by now, and its logs where nothing was
    /// written to them. To be called by the holder itself, or under the lock.
    pub(crate) fn remove(&self, state: &InstanceState) {
        match self.read(&state.name) {
            Ok(Some(current)) if current.key != state.key => return,
            Err(InstanceError::Unusable { flaw: InstanceFlaw::Version(_) | InstanceFlaw::Owner, .. }) => {
                return;
            }
            _ => {}
        }
        let _ = fs::remove_file(self.path(&state.name, "json"));
        for log in [&state.log_out, &state.log_err] {
            remove_empty(log);
        }
    }

    /// Removes a file of ours of that name that says nothing, so that it is in nobody's way. To be called under the
    /// lock: whoever publishes a file holds it.
    pub(crate) fn remove_unusable(&self, name: &InstanceName) -> Result<(), InstanceError> {
        match self.read(name.as_str()) {
            Err(InstanceError::Unusable { path, flaw: InstanceFlaw::Content }) => {
                fs::remove_file(&path).map_err(failed("remove", &path))
            }
            other => other.map(drop),
        }
    }

    /// Removes what holders that were killed while they published an instance of that name have left. To be called
    /// under the lock.
    pub(crate) fn remove_pending(&self, name: &InstanceName) {
        let start = format!(".{name}.");
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for entry in entries.take(MAX_INSTANCES * 4) {
            let file = entry.file_name();
            let pid = file.to_str().and_then(|file| file.strip_prefix(&start)?.parse().ok());
            // One whose starter was killed may be publishing at this moment, without the lock.
            if pid.is_some_and(|pid| ProcessRef::of(pid).is_none()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the file of an instance that has ended.
    pub(crate) fn forget(&self, state: &InstanceState) -> Result<(), InstanceError> {
        let _lock = self.lock()?;
        self.remove(state);
        Ok(())
    }
}

/// Removes a log that holds nothing.
pub(crate) fn remove_empty(log: &Path) {
    if fs::symlink_metadata(log).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
        let _ = fs::remove_file(log);
    }
}

fn judge(state: InstanceState) -> Listed {
    let condition = match state.is_running() {
        Some(true) => Condition::Running,
        Some(false) => Condition::Ended,
        None => Condition::Elsewhere,
    };
    Listed { state, condition }
}

/// Opens nothing through a link, and never waits for a FIFO.
pub(crate) fn open_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
    options
}

pub(crate) fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> InstanceError + 'a {
    move |source| InstanceError::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::process::realm;
    use super::*;

    fn state(name: &str) -> InstanceState {
        let (boot, pid_namespace) = realm();
        let own = ProcessRef::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        InstanceState {
            schema: SCHEMA,
            name: name.to_owned(),
            key: format!("0/instance/{name}"),
            boot,
            pid_namespace,
            holder: own,
            init: own,
            image: "a.sif".to_owned(),
            image_path: "/a.sif".into(),
            tree: None,
            started: 0,
            step: None,
            log_out: "/nonexistent".into(),
            log_err: "/nonexistent".into(),
            stop_signal: None,
            root: false,
            contain: false,
            home: None,
            no_home: false,
            seccomp: None,
        }
    }

    fn place() -> (tempfile::TempDir, Instances) {
        let directory = tempfile::tempdir().unwrap();
        let instances = Instances::new(directory.path().join("host"));
        instances.create().unwrap();
        (directory, instances)
    }

    #[test]
    fn a_name_is_taken_once() {
        let (_directory, instances) = place();
        instances.publish(&state("a")).unwrap();
        let error = instances.publish(&state("a")).unwrap_err();
        assert!(matches!(error, InstanceError::Exists { .. }), "{error}");
        let listed = instances.get(&InstanceName::parse("a").unwrap()).unwrap().unwrap();
        assert_eq!((listed.condition, listed.state), (Condition::Running, state("a")));
        assert!(
            !fs::read_dir(&instances.directory)
                .unwrap()
                .any(|entry| { entry.unwrap().file_name().to_str().unwrap().starts_with(".a") })
        );
    }

    #[test]
    fn what_is_left_is_seen_once_and_removed() {
        let (_directory, instances) = place();
        let running = state("running");
        let other_start = ProcessRef { started: running.holder.started + 1, ..running.holder };
        let gone = InstanceState { holder: other_start, ..state("gone") };
        let other_boot = InstanceState { boot: "another".to_owned(), ..state("booted") };
        let elsewhere = InstanceState { pid_namespace: "pid:[1]".to_owned(), ..state("elsewhere") };
        for one in [&running, &gone, &other_boot, &elsewhere] {
            instances.publish(one).unwrap();
        }
        let seen = |instances: &Instances| -> Vec<(String, Condition)> {
            let listed = instances.list().unwrap();
            listed.into_iter().map(|one| (one.state.name, one.condition)).collect()
        };
        let own = |pairs: &[(&str, Condition)]| -> Vec<(String, Condition)> {
            pairs.iter().map(|(name, condition)| ((*name).to_owned(), *condition)).collect()
        };
        let all = [
            ("booted", Condition::Ended),
            ("elsewhere", Condition::Elsewhere),
            ("gone", Condition::Ended),
            ("running", Condition::Running),
        ];
        assert_eq!(seen(&instances), own(&all));
        assert_eq!(seen(&instances), own(&[all[1], all[3]]));
    }

    #[test]
    fn what_a_killed_holder_was_writing_goes_with_the_next_start() {
        let (_directory, instances) = place();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (gone, own) = (child.id(), std::process::id());
        let files = [
            (format!(".a.{gone}"), false),
            (format!(".a.{own}"), true),
            (format!(".b.{gone}"), true),
            (format!(".a.b.{gone}"), true),
            (".lock".to_owned(), true),
            ("a.out".to_owned(), true),
        ];
        for (name, _) in &files {
            fs::write(instances.directory.join(name), "{").unwrap();
        }
        instances.remove_pending(&InstanceName::parse("a").unwrap());
        for (name, stays) in &files {
            assert_eq!(instances.directory.join(name).exists(), *stays, "{name}");
        }
    }

    #[test]
    fn only_ones_own_file_is_removed() {
        let (_directory, instances) = place();
        let (old, new) = (state("a"), InstanceState { key: "0/instance/new".to_owned(), ..state("a") });
        instances.publish(&new).unwrap();
        instances.remove(&old);
        assert!(instances.read("a").unwrap().is_some());
        instances.remove(&new);
        assert!(instances.read("a").unwrap().is_none());
    }

    #[test]
    fn a_name_whose_file_says_nothing_is_free() {
        let (_directory, instances) = place();
        let name = InstanceName::parse("a").unwrap();
        let path = instances.path("a", "json");
        let other = serde_json::to_string(&state("other")).unwrap();
        for content in ["", "{", "{\"schema\":1}", &other] {
            fs::write(&path, content).unwrap();
            let error = instances.get(&name).unwrap_err();
            assert!(
                matches!(error, InstanceError::Unusable { flaw: InstanceFlaw::Content, .. }),
                "{content}: {error}"
            );
            assert!(error.to_string().contains("a.json") && error.remedy().is_some(), "{error}");
            instances.remove_unusable(&name).unwrap();
            instances.publish(&state("a")).unwrap();
            assert_eq!(instances.get(&name).unwrap().unwrap().condition, Condition::Running);
            instances.remove_unusable(&name).unwrap();
            instances.remove(&state("a"));
            assert!(!path.exists());
        }
        // One of another version may be of an instance that runs.
        fs::write(&path, "{\"schema\":2,\"what\":\"ever\"}").unwrap();
        let error = instances.remove_unusable(&name).unwrap_err();
        assert!(matches!(error, InstanceError::Unusable { flaw: InstanceFlaw::Version(2), .. }), "{error}");
        instances.remove(&state("a"));
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = instances.remove_unusable(&name).unwrap_err();
        assert!(matches!(error, InstanceError::Unusable { flaw: InstanceFlaw::Owner, .. }), "{error}");
    }

    #[test]
    fn what_is_no_state_is_passed_over() {
        let (directory, instances) = place();
        instances.publish(&state("good")).unwrap();
        let inside = |name: &str| instances.directory.join(name);
        fs::write(inside("text.json"), "{").unwrap();
        fs::write(inside("long.json"), vec![b' '; 1 << 23]).unwrap();
        let newer = serde_json::to_string(&InstanceState { schema: 2, ..state("newer") }).unwrap();
        fs::write(inside("newer.json"), newer).unwrap();
        fs::copy(inside("good.json"), inside("renamed.json")).unwrap();
        fs::create_dir(inside("directory.json")).unwrap();
        let names: Vec<String> = instances.list().unwrap().into_iter().map(|one| one.state.name).collect();
        assert_eq!(names, ["good"]);
        symlink(inside("good.json"), inside("link.json")).unwrap();
        let link = instances.get(&InstanceName::parse("link").unwrap());
        assert!(matches!(link, Err(InstanceError::File { .. })));
        fs::set_permissions(&instances.directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(instances.create().is_err(), "others could write there");
        drop(directory);
    }
}
