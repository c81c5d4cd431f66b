//! A tag becomes a digest once per job.
//!
//! Whoever needs an image by its tag first in a job leaves the digest in a file of the user's, and whoever
//! needs it later takes that: the other tasks and nodes of the step, later steps of a batch script, the tasks of an array,
//! the components of a heterogeneous job, and the job again when it was requeued. The registry may have another image
//! under the tag by then; a job has one. The file is found by the job's number alone, whatever of the environment is
//! exported.
//!
//! It is the user's own file, and no privilege comes from it: an image that is fetched is verified against its digest, and
//! what is in the user's store already he could have put there under any name.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use situla_oci::{Digest, Platform, Reference};
use situla_slurm::{Allocation, Context};

use crate::host::Host;

/// How long the pins of a job stay when nobody takes one: longer than it waits between two runs.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// How exactly their last use is known.
const DAY: Duration = Duration::from_secs(86_400);

/// Says when pins were looked through that nobody uses.
const SWEPT: &str = ".swept";

/// More than a digest and a reference have.
const MAX_FILE: u64 = 4096;

/// The pins of one job.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Those of all jobs.
    all: PathBuf,
    /// Of this one.
    job: String,
}

impl Pins {
    /// Those of the job that this process belongs to; `None` where there is no job, or no place for files of the user.
    pub(crate) fn of(host: &Host) -> Option<Self> {
        // In a shell of salloc the number may be that of a job that was over long ago.
        let of_job = |allocation: &&Allocation| allocation.context != Context::AllocationShell;
        let allocation = host.allocation.as_ref().filter(of_job)?;
        // The tasks of an array are jobs of their own, and so are the components of a heterogeneous job.
        let first = allocation.het.as_ref().and_then(|het| het.jobs.first().copied());
        let job = allocation.array.map(|array| array.job).or(first).unwrap_or(allocation.job);
        let cluster = allocation.cluster.as_deref().unwrap_or("cluster");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let cluster: String = cluster.chars().filter(|c| is_plain(*c)).collect();
        Some(Pins { all: host.pins.clone()?, job: format!("{cluster}-{}", job.0) })
    }

    /// What `reference` is in this job, where that is known.
    pub(crate) fn find(&self, reference: &Reference) -> Option<Digest> {
        let mut text = String::new();
        File::open(self.file(reference)).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        let (digest, named) = text.trim_end().split_once('\n')?;
        let digest = digest.parse().ok().filter(|_| named == subject(reference));
        let directory = self.all.join(&self.job);
        if digest.is_some() && age(&directory).is_some_and(|age| age > DAY) {
            // Where that fails, the job has a new pin after a month.
            let _ = File::open(&directory).and_then(|open| open.set_modified(SystemTime::now()));
        }
        digest
    }

    /// Makes `digest` what `reference` is in this job, where nobody else was faster; gives what it is then.
    ///
    /// # Errors
    /// It cannot be kept. The digest comes back.
    pub(crate) fn pin(&self, reference: &Reference, digest: Digest) -> Result<Digest, (io::Error, Digest)> {
        match self.publish(reference, &digest) {
            Ok(None) => Ok(digest),
            Ok(Some(other)) => Ok(other),
            Err(error) => Err((error, digest)),
        }
    }

    /// Leaves a digest; gives the one that is there already.
    fn publish(&self, reference: &Reference, digest: &Digest) -> io::Result<Option<Digest>> {
        /// How often, and after what time, a file is read again that is there and says nothing: other nodes may see what was
        /// written a little later (nfs(5), close-to-open).
        const ATTEMPTS: u32 = 40;
        const MOMENT: Duration = Duration::from_millis(50);
        let directory = self.all.join(&self.job);
        create(&directory)?;
        let file = self.file(reference);
        let text = format!("{digest}\n{}\n", subject(reference));
        let published = match without_a_name(&directory, &file, &text) {
            // NFS and Lustre have no nameless files.
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                by_another_name(&directory, &file, &text, false)
            }
            other => other,
        };
        match published {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => {
                other?;
                self.sweep();
                return Ok(None);
            }
        }
        for _ in 0..ATTEMPTS {
            if let Some(digest) = self.find(reference) {
                return Ok(Some(digest));
            }
            std::thread::sleep(MOMENT);
        }
        // Whoever made it was killed, or had no room.
        by_another_name(&directory, &file, &text, true)?;
        Ok(None)
    }

    /// Removes the pins of jobs that are long over, once a day at the most.
    fn sweep(&self) {
        let stamp = self.all.join(SWEPT);
        if age(&stamp).is_some_and(|age| age < DAY) {
            return;
        }
        // What cannot be removed now can be the next time, and another job may be at it as well.
        let _ = File::create(&stamp).and_then(|file| file.set_modified(SystemTime::now()));
        for entry in fs::read_dir(&self.all).into_iter().flatten().flatten() {
            if age(&entry.path()).is_some_and(|age| age > KEPT) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn file(&self, reference: &Reference) -> PathBuf {
        let name = Digest::sha256(subject(reference).as_bytes());
        self.all.join(&self.job).join(name.hex())
    }
}

/// Makes the directory of a job.
fn create(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).recursive(true).create(directory)
        }
        other => other,
    }
}

/// Makes a file with a text in it, where there is none: at once, so that nobody finds it empty, and with no name
/// before, so that whoever is killed leaves nothing.
fn without_a_name(directory: &Path, file: &Path, text: &str) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut unnamed = File::from(open(directory, flags, Mode::from_raw_mode(0o600))?);
    unnamed.write_all(text.as_bytes())?;
    let place = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    linkat(CWD, place, CWD, file, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// The same by a link to, or by the new name of, a file of another name, which tells nodes and processes apart.
fn by_another_name(directory: &Path, file: &Path, text: &str, replaces: bool) -> io::Result<()> {
    let host = rustix::system::uname().nodename().to_string_lossy().replace('/', "_");
    let own = directory.join(format!(".new-{host}-{}", std::process::id()));
    let made = File::create(&own).and_then(|mut new| {
        new.write_all(text.as_bytes())?;
        // Errors of a quota come as late as that.
        new.sync_all()
    });
    let made = made.and_then(|()| match replaces {
        true => fs::rename(&own, file),
        false => match fs::hard_link(&own, file) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                File::create_new(file).and_then(|_| fs::rename(&own, file))
            }
            other => other,
        },
    });
    match fs::remove_file(&own) {
        Err(error) if error.kind() != ErrorKind::NotFound => made.and(Err(error)),
        _ => made,
    }
}

/// How long ago something changed in a directory.
fn age(directory: &Path) -> Option<Duration> {
    fs::metadata(directory).ok()?.modified().ok()?.elapsed().ok()
}

/// Nodes of different kinds have different images under one tag.
fn subject(reference: &Reference) -> String {
    format!("{reference} {}", Platform::native())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::sha256(of.as_bytes())
    }

    #[test]
    fn the_first_pins_and_the_others_take_it() {
        let home = tempfile::tempdir().unwrap();
        let pins = |job: &str| Pins { all: home.path().join("pins"), job: job.to_owned() };
        let reference = |text: &str| Reference::parse(text).unwrap();
        let image = reference("registry.example/a:1");
        let first = pins("c-1");
        assert_eq!(first.find(&image), None);
        assert_eq!(first.pin(&image, digest("x")).unwrap(), digest("x"));
        assert_eq!(pins("c-1").pin(&image, digest("y")).unwrap(), digest("x"));
        assert_eq!(pins("c-1").find(&image), Some(digest("x")));
        // Neither another job nor another image has it.
        assert_eq!(pins("c-2").find(&image), None);
        assert_eq!(first.find(&reference("registry.example/a:2")), None);
        let left = fs::read_dir(home.path().join("pins/c-1")).unwrap().count();
        assert_eq!(left, 1, "a temporary file stays");
    }

    #[test]
    fn pins_that_nobody_uses_go_and_used_ones_stay() {
        let home = tempfile::tempdir().unwrap();
        let image = Reference::parse("registry.example/a:1").unwrap();
        let long_ago = SystemTime::now() - KEPT - DAY;
        for job in ["c-1", "c-2"] {
            let pins = Pins { all: home.path().to_owned(), job: job.to_owned() };
            pins.pin(&image, digest("x")).unwrap();
            File::open(home.path().join(job)).unwrap().set_modified(long_ago).unwrap();
        }
        File::options().write(true).open(home.path().join(SWEPT)).unwrap().set_modified(long_ago).unwrap();
        let second = Pins { all: home.path().to_owned(), job: "c-2".to_owned() };
        assert!(second.find(&image).is_some());
        let third = Pins { all: home.path().to_owned(), job: "c-3".to_owned() };
        third.pin(&image, digest("x")).unwrap();
        let left = ["c-1", "c-2", "c-3"].map(|job| home.path().join(job).exists());
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn many_at_once_agree() {
        let home = tempfile::tempdir().unwrap();
        let image = Reference::parse("registry.example/a:1").unwrap();
        let pinned: Vec<Digest> = std::thread::scope(|scope| {
            let one = |number: u32| {
                let pins = Pins { all: home.path().to_owned(), job: "c-1".to_owned() };
                let image = &image;
                scope.spawn(move || pins.pin(image, digest(&number.to_string())).unwrap())
            };
            let threads: Vec<_> = (0..8).map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(pinned.windows(2).all(|pair| pair[0] == pair[1]), "{pinned:?}");
    }

    #[test]
    fn without_nameless_files_and_links_it_is_the_same() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("pin");
        by_another_name(home.path(), &file, "one", false).unwrap();
        let second = by_another_name(home.path(), &file, "two", false).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        by_another_name(home.path(), &file, "three", true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "three");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "a file of another name stays");
    }

    #[test]
    fn an_empty_file_is_made_good_and_what_cannot_be_kept_comes_back() {
        let home = tempfile::tempdir().unwrap();
        let pins = Pins { all: home.path().to_owned(), job: "c-1".to_owned() };
        let image = Reference::parse("registry.example/a:1").unwrap();
        create(&home.path().join("c-1")).unwrap();
        fs::write(pins.file(&image), "").unwrap();
        assert_eq!(pins.pin(&image, digest("x")).unwrap(), digest("x"));
        assert_eq!(pins.find(&image), Some(digest("x")));
        let nowhere = Pins { all: "/proc/none".into(), job: "c-1".to_owned() };
        let (_, back) = nowhere.pin(&image, digest("x")).unwrap_err();
        assert_eq!(back, digest("x"));
    }

    #[test]
    fn what_is_in_the_file_of_another_counts_for_nothing() {
        let home = tempfile::tempdir().unwrap();
        let pins = Pins { all: home.path().to_owned(), job: "c-1".to_owned() };
        let image = Reference::parse("registry.example/a:1").unwrap();
        pins.pin(&image, digest("x")).unwrap();
        let file = pins.file(&image);
        for text in ["", "sha256:0\n", "no digest\nregistry.example/a:1", &format!("{}\nother", digest("x"))]
        {
            fs::write(&file, text).unwrap();
            assert_eq!(pins.find(&image), None, "{text:?}");
        }
    }
}
