//! The digest of a plain file, computed once: found again as long as nothing about the file has changed.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use situla_oci::Digest;

use crate::output::{temporary_name, write_for_owner};

/// Version of the records.
const RECORD_VERSION: u32 = 1;
/// Largest record read.
const MAX_RECORD: u64 = 4096;

/// What tells one state of a part of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// First byte and length of the part.
    part: (u64, u64),
}

impl FileIdentity {
    /// The state in which a file was found; `part` is offset and length.
    #[must_use]
    pub fn of(metadata: &Metadata, part: (u64, u64)) -> Self {
        FileIdentity {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            part,
        }
    }

    /// First byte and length of the part.
    pub(crate) fn part(&self) -> (u64, u64) {
        self.part
    }

    /// All of it as a file name, in hexadecimal digits. A digest would be shorter, and tell nobody anything.
    fn name(&self) -> String {
        let FileIdentity { dev, ino, size, modified, changed, part } = self;
        format!(
            "{dev:x}-{ino:x}-{size:x}-{:x}-{:x}-{:x}-{:x}-{:x}-{:x}",
            modified.0, modified.1, changed.0, changed.1, part.0, part.1
        )
    }

    /// Whether a later change would show in the times: they have steps.
    pub(crate) fn is_settled(&self) -> bool {
        /// Longer than any step of a clock of a file system.
        const STEP: i64 = 2;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(self.changed.0) > STEP
    }

    /// The lock of whoever computes the digest in the cache of trees; temporary files of the record begin so, after a dot.
    pub(crate) fn lock_name(&self) -> String {
        format!("identity-{}", self.name())
    }

    /// The same file as if it had changed last at this second, for tests.
    #[cfg(test)]
    pub(crate) fn changed_at(self, seconds: i64) -> Self {
        FileIdentity { changed: (seconds, 0), ..self }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct IdentityRecord {
    version: u32,
    digest: Digest,
}

/// Digests of files in the states in which they were hashed, in a directory of the user's.
#[derive(Clone, Debug)]
pub struct Identities {
    directory: PathBuf,
}

impl Identities {
    /// Those in `directory`, which need not exist.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Identities { directory }
    }

    /// Those of a store.
    #[must_use]
    pub fn of_store(store: &Path) -> Self {
        Identities::new(store.join("identities"))
    }

    fn path(&self, identity: &FileIdentity) -> PathBuf {
        self.directory.join(format!("{}.json", identity.name()))
    }

    /// The digest of a file in a state, where it was computed before.
    #[must_use]
    pub fn find(&self, identity: &FileIdentity) -> Option<Digest> {
        let mut bytes = Vec::new();
        File::open(self.path(identity)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        let record: IdentityRecord = serde_json::from_slice(&bytes).ok()?;
        (record.version == RECORD_VERSION).then_some(record.digest)
    }

    /// Remembers the digest of a file in a state, unless a change could follow that would not show in its times. It is
    /// not synced: what is lost is computed again.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remember(&self, identity: &FileIdentity, digest: &Digest) -> io::Result<()> {
        if !identity.is_settled() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let record = IdentityRecord { version: RECORD_VERSION, digest: digest.clone() };
        let bytes = serde_json::to_vec(&record).map_err(io::Error::other)?;
        let pending = self.directory.join(temporary_name(&identity.lock_name(), "tmp"));
        write_for_owner(&pending, &bytes)
            .and_then(|()| fs::rename(&pending, self.path(identity)))
            .inspect_err(|_| drop(fs::remove_file(&pending)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_names_of_their_own_that_fit() {
        let state = FileIdentity { dev: 1, ino: 2, size: 3, modified: (4, 5), changed: (6, 7), part: (8, 9) };
        assert_eq!(state.name(), "1-2-3-4-5-6-7-8-9");
        let most = FileIdentity {
            dev: u64::MAX,
            ino: u64::MAX,
            size: u64::MAX,
            modified: (-1, 999_999_999),
            changed: (i64::MIN, 999_999_999),
            part: (u64::MAX, u64::MAX),
        };
        // NAME_MAX of limits.h, and what the names of locks and temporary files have around this.
        assert!(most.lock_name().len() < 255 - 64, "{}", most.lock_name());
    }

    #[test]
    fn a_digest_is_found_for_the_same_state_of_the_same_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"image").unwrap();
        let fresh = FileIdentity::of(&fs::metadata(&path).unwrap(), (0, 5));
        let identities = Identities::new(dir.path().join("cache/identities"));
        let digest = Digest::sha256(b"image");
        assert_eq!(identities.find(&fresh), None);
        identities.remember(&fresh, &digest).unwrap();
        assert_eq!(identities.find(&fresh), None, "it was made a moment ago");
        let old = fresh.changed_at(1);
        identities.remember(&old, &digest).unwrap();
        assert_eq!(identities.find(&old), Some(digest));
        for other in [
            old.changed_at(2),
            FileIdentity { part: (0, 4), ..old },
            FileIdentity { part: (1, 5), ..old },
            FileIdentity { size: 6, ..old },
            FileIdentity { ino: old.ino + 1, ..old },
            FileIdentity { dev: old.dev + 1, ..old },
            FileIdentity { modified: (0, 0), ..old },
        ] {
            assert_eq!(identities.find(&other), None, "{other:?}");
        }
        for text in ["", "{}", "{\"version\":2,\"digest\":\"sha256:00\"}"] {
            fs::write(identities.path(&old), text).unwrap();
            assert_eq!(identities.find(&old), None, "{text}");
        }
    }
}
