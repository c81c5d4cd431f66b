//! Writing into an OCI layout directory: blobs first, the index last.
//!
//! A blob appears under its digest only complete, and the index names an image only when all of it is
//! there. An interrupted save leaves blobs that nobody names, which the next one finds.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use situla_oci::{Algorithm, Descriptor, Digest, DigestWriter, MAX_MANIFEST_BYTES, Tag};

use super::SaveError;
use crate::file_error::FileError;
use crate::output::{Existing, PendingFile, make_directories, write_atomically};
use crate::source::{INDEX_FILE, LAYOUT_FILE, LayoutError, REF_NAME, blob};
use crate::verify::VerifiedReader;

/// A layout being written to.
#[derive(Debug)]
pub(crate) struct LayoutWriter {
    dir: PathBuf,
}

impl LayoutWriter {
    /// Opens a layout, or a directory that is empty or missing. Nothing is made before there is something to put.
    pub(crate) fn open(dir: &Path) -> Result<Self, SaveError> {
        let writer = Self { dir: dir.to_owned() };
        if dir.join(LAYOUT_FILE).exists() {
            // Fails early where this is no layout that can be written to.
            writer.index()?;
            return Ok(writer);
        }
        match fs::read_dir(dir) {
            // Blobs alone are what a save that was interrupted has left.
            Ok(mut entries) => {
                match entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "blobs")) {
                    false => Err(SaveError::NotALayout { path: dir.to_owned() }),
                    true => Ok(writer),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(writer),
            Err(e) => Err(FileError::write(dir)(e).into()),
        }
    }

    /// Tells whether a blob is there, whole: others write into layouts as well, and a disk may have lost some of it.
    pub(crate) fn has(&self, descriptor: &Descriptor) -> bool {
        let path = self.dir.join(blob(&descriptor.digest));
        if !path.metadata().is_ok_and(|found| found.is_file() && found.len() == descriptor.size) {
            return false;
        }
        let Ok(file) = File::open(&path) else { return false };
        let mut verified = VerifiedReader::new("a blob of the layout", descriptor, file);
        io::copy(&mut verified, &mut io::sink()).is_ok()
    }

    /// Writes a blob; `write` fills it. Gives its digest and size, and what `write` gave.
    pub(crate) fn put<T>(
        &self,
        algorithm: Algorithm,
        write: impl FnOnce(&mut DigestWriter<io::BufWriter<File>>) -> Result<T, SaveError>,
    ) -> Result<(Digest, u64, T), SaveError> {
        let dir = self.dir.join("blobs").join(algorithm.name());
        let failed = || FileError::write(dir.clone());
        make_directories(&dir).map_err(failed())?;
        let pending = PendingFile::create(&dir, "blob").map_err(failed())?;
        let file = io::BufWriter::with_capacity(1 << 20, pending.file().map_err(failed())?);
        let mut out = DigestWriter::new(algorithm, file);
        let given = write(&mut out)?;
        let (mut file, digest, size) = out.finish();
        file.flush().map_err(failed())?;
        drop(file);
        // A blob of the same name has the same bytes, or is damaged.
        pending.publish(&self.dir.join(blob(&digest)), Existing::Replace).map_err(failed())?;
        Ok((digest, size, given))
    }

    pub(crate) fn put_bytes(&self, bytes: &[u8]) -> Result<(Digest, u64), SaveError> {
        let path = self.dir.clone();
        let put = self.put(Algorithm::Sha256, |out| {
            out.write_all(bytes).map_err(|source| FileError::write(path)(source).into())
        });
        put.map(|(digest, size, ())| (digest, size))
    }

    /// Refuses early, before anything is fetched, a tag that is there; [`LayoutWriter::add`] checks again.
    pub(crate) fn check_tag(&self, tag: Option<&Tag>, overwrite: bool) -> Result<(), SaveError> {
        let (_, manifests) = self.index()?;
        match tag {
            Some(tag) if !overwrite && manifests.iter().any(|entry| has_tag(entry, tag)) => {
                Err(SaveError::Exists(format!("{}:{}", self.dir.display(), tag.as_str())))
            }
            _ => Ok(()),
        }
    }

    /// Names an image in the index. An image that had the tag loses it; its blobs stay.
    pub(crate) fn add(
        &self,
        manifest: &Descriptor,
        tag: Option<&Tag>,
        overwrite: bool,
    ) -> Result<(), SaveError> {
        let failed = || FileError::write(self.dir.join(INDEX_FILE));
        let version = self.dir.join(LAYOUT_FILE);
        if !version.exists() {
            let text = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
            write_atomically(&version, text.as_bytes()).map_err(failed())?;
        }
        // Two that write to one layout must not lose each other's images. Where locks are missing, nothing
        // better can be done.
        let lock = File::open(&self.dir).map_err(failed())?;
        match flock(&lock, FlockOperation::LockExclusive) {
            Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::BADF) => {}
            Err(errno) => return Err(failed()(errno.into()).into()),
        }
        self.check_tag(tag, overwrite)?;
        let (mut index, mut manifests) = self.index()?;
        let mut entry = serde_json::to_value(manifest).unwrap_or_default();
        let digest = json!(manifest.digest);
        match tag {
            Some(tag) => {
                entry["annotations"] = json!({ REF_NAME: tag.as_str() });
                manifests.retain(|other| !has_tag(other, tag));
            }
            // Without a tag it is one entry however often it is saved.
            None => manifests.retain(|other| other["digest"] != digest || has_any_tag(other)),
        }
        manifests.push(entry);
        index["manifests"] = manifests.into();
        write_atomically(&self.dir.join(INDEX_FILE), index.to_string().as_bytes()).map_err(failed())?;
        Ok(())
    }

    /// The index with all it holds, also what this program does not know, and its list of manifests.
    fn index(&self) -> Result<(Value, Vec<Value>), SaveError> {
        let path = self.dir.join(INDEX_FILE);
        let not_a_layout = || LayoutError::NotALayout { path: self.dir.clone() };
        let mut index = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                let n = io::Read::read_to_end(&mut io::Read::take(file, MAX_MANIFEST_BYTES + 1), &mut bytes)
                    .map_err(FileError::read(&path))?;
                if n as u64 > MAX_MANIFEST_BYTES {
                    return Err(LayoutError::TooLarge { path }.into());
                }
                serde_json::from_slice::<Value>(&bytes).map_err(|_| not_a_layout())?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => json!({ "schemaVersion": 2, "manifests": [] }),
            Err(e) => return Err(FileError::read(path)(e).into()),
        };
        let manifests = match index.get_mut("manifests").map(Value::take) {
            Some(Value::Array(manifests)) => manifests,
            _ => return Err(not_a_layout().into()),
        };
        Ok((index, manifests))
    }
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

fn has_tag(entry: &Value, tag: &Tag) -> bool {
    tag_of(entry) == Some(tag.as_str())
}

fn has_any_tag(entry: &Value) -> bool {
    tag_of(entry).is_some()
}
