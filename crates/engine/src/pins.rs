//! A tag becomes a digest once per job.
//!
//! Whoever needs an image by its tag first in a job leaves the digest in a file of the user's, and whoever
//! needs it later takes that: the other tasks and nodes of the step, later steps of a batch script, the tasks of an array,
//! the components of a heterogeneous job, and the job again when it was requeued. The registry may have another image
//! under the tag by then; a job has one. The file is found by the job's number alone, whatever of the environment is
//! exported.
//!
//! It is the user's own file, and no privilege comes from it: what he could write there he could have named as the image,
//! the policy has judged the repository before, and the digest is verified against the bytes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use situla_oci::{Digest, Platform, Reference};

use crate::host::Host;

/// How long the pins of a job stay when nobody takes one: longer than it waits between two runs.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// How exactly their last use is known.
const DAY: Duration = Duration::from_secs(86_400);

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
        let allocation = host.allocation.as_ref()?;
        // The tasks of an array are jobs of their own; the components of a heterogeneous job have one number.
        let job = allocation.array.map_or(allocation.job, |array| array.job);
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
    pub(crate) fn pin(&self, reference: &Reference, digest: Digest) -> io::Result<Digest> {
        let directory = self.all.join(&self.job);
        self.make(&directory)?;
        let file = self.file(reference);
        match publish(&directory, &file, &format!("{digest}\n{}\n", subject(reference))) {
            Ok(()) => Ok(digest),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self
                .find(reference)
                .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it cannot be read")),
            Err(error) => Err(error),
        }
    }

    /// Makes the directory of this job, and removes those of jobs that are long over.
    fn make(&self, directory: &Path) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        match builder.create(directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => builder.recursive(true).create(directory)?,
            other => other?,
        }
        for entry in fs::read_dir(&self.all)?.flatten() {
            if age(&entry.path()).is_some_and(|age| age > KEPT) {
                // Another job may be at it as well.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn file(&self, reference: &Reference) -> PathBuf {
        let name = Digest::sha256(subject(reference).as_bytes());
        self.all.join(&self.job).join(name.hex())
    }
}

/// Makes a file with a text in it, where there is none: at once, so that nobody finds it empty, and with no name
/// before, so that whoever is killed leaves nothing.
fn publish(directory: &Path, file: &Path, text: &str) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(unnamed) = open(directory, flags, Mode::from_raw_mode(0o600)) else {
        // A file system without nameless files. Whoever reads at this moment finds no digest, and says so.
        return File::create_new(file)?.write_all(text.as_bytes());
    };
    let mut unnamed = File::from(unnamed);
    unnamed.write_all(text.as_bytes())?;
    let place = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    linkat(CWD, place, CWD, file, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
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
