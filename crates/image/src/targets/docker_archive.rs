//! Writing an archive as `docker save` does: layers as plain tars, the configuration, and `manifest.json`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use situla_oci::{Algorithm, Digest, DigestWriter};

use super::SaveError;
use super::tar::{BLOCK, END, EntryHeader, pad};
use crate::convert::create_output;
use crate::file_error::FileError;
use crate::output::{Existing, PendingFile};
use crate::source::LIST_FILE;

/// An archive being written; it appears under its name only complete.
#[derive(Debug)]
pub(crate) struct DockerArchiveWriter {
    path: PathBuf,
    pending: PendingFile,
    file: File,
    /// The files of layers in order, repeated where a layer is.
    layers: Vec<String>,
    written: Vec<Digest>,
}

impl DockerArchiveWriter {
    pub(crate) fn create(path: &Path, existing: Existing) -> Result<Self, SaveError> {
        let pending = create_output(path, existing).map_err(SaveError::Image)?;
        let file = pending.file().map_err(FileError::write(path))?;
        Ok(Self { path: path.to_owned(), pending, file, layers: Vec::new(), written: Vec::new() })
    }

    /// Adds a layer again that was written before. Tells whether it was.
    pub(crate) fn repeat(&mut self, diff_id: &Digest) -> bool {
        let known = self.written.contains(diff_id);
        if known {
            self.layers.push(layer_name(diff_id));
        }
        known
    }

    /// Writes a layer; `write` gives its uncompressed tar. Gives its diff-id and size.
    pub(crate) fn layer(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), SaveError>,
    ) -> Result<(Digest, u64), SaveError> {
        let failed = || FileError::write(self.path.clone());
        // The header is written when the size is known. Its name is the digest, so it has one block.
        let start = self.file.stream_position().map_err(failed())?;
        self.file.write_all(&[0; BLOCK]).map_err(failed())?;
        let out = io::BufWriter::with_capacity(1 << 20, &self.file);
        let mut out = DigestWriter::new(Algorithm::Sha256, out);
        write(&mut out)?;
        let (mut out, diff_id, size) = out.finish();
        out.flush().map_err(failed())?;
        drop(out);
        if self.written.contains(&diff_id) {
            // Two layers of a new image can be equal; the file is there already.
            self.file
                .set_len(start)
                .and_then(|()| self.file.seek(SeekFrom::Start(start)))
                .map_err(failed())?;
        } else {
            pad(&mut self.file, size).map_err(failed())?;
            let header = EntryHeader::plain(layer_name(&diff_id).as_bytes(), size).to_bytes();
            if header.len() != BLOCK {
                // More than eight gigabytes take a record, for which there is no room now.
                return self.make_room(start, &header, size).map(|()| self.done(diff_id, size));
            }
            self.file.write_all_at(&header, start).map_err(failed())?;
        }
        Ok(self.done(diff_id, size))
    }

    fn done(&mut self, diff_id: Digest, size: u64) -> (Digest, u64) {
        self.layers.push(layer_name(&diff_id));
        self.written.push(diff_id.clone());
        (diff_id, size)
    }

    /// Moves the data of an entry back by what its header is longer than one block, from its end on.
    fn make_room(&mut self, start: u64, header: &[u8], size: u64) -> Result<(), SaveError> {
        let failed = || FileError::write(self.path.clone());
        let shift = (header.len() - BLOCK) as u64;
        let first = start + BLOCK as u64;
        let mut end = first + size.next_multiple_of(BLOCK as u64);
        let after = end + shift;
        let mut buffer = vec![0; 1 << 20];
        while end > first {
            let n = usize::try_from(end - first).unwrap_or(buffer.len()).min(buffer.len());
            end -= n as u64;
            self.file.read_exact_at(&mut buffer[..n], end).map_err(failed())?;
            self.file.write_all_at(&buffer[..n], end + shift).map_err(failed())?;
        }
        self.file.write_all_at(header, start).map_err(failed())?;
        self.file.seek(SeekFrom::Start(after)).map_err(failed())?;
        Ok(())
    }

    /// Adds configuration and list, and gives the archive its name.
    pub(crate) fn finish(
        mut self,
        config: &[u8],
        name: Option<&str>,
        existing: Existing,
    ) -> Result<(), SaveError> {
        let config_name = format!("{}.json", Digest::sha256(config).hex());
        let tags: Vec<String> = name.map(tagged).into_iter().collect();
        let list = serde_json::json!([{
            "Config": config_name, "RepoTags": tags, "Layers": self.layers,
        }]);
        let path = self.path.clone();
        let failed = || FileError::write(path.clone());
        for (name, bytes) in [(config_name.as_str(), config), (LIST_FILE, list.to_string().as_bytes())] {
            let size = bytes.len() as u64;
            let header = EntryHeader::plain(name.as_bytes(), size).to_bytes();
            self.file.write_all(&header).map_err(failed())?;
            self.file.write_all(bytes).map_err(failed())?;
            pad(&mut self.file, size).map_err(failed())?;
        }
        self.file.write_all(&END).map_err(failed())?;
        self.pending.publish(&path, existing).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => SaveError::Exists(path.display().to_string()),
            _ => failed()(source).into(),
        })
    }
}

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}

/// Docker wants a tag with each name.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

/// Refuses names that Docker would not load: it wants those of repositories, with a tag.
pub(crate) fn check_name(name: &str) -> Result<(), SaveError> {
    let named = tagged(name);
    let (repository, tag) = named.rsplit_once(':').unwrap_or((&named, ""));
    let word = |text: &str| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b);
        !text.is_empty() && text.bytes().all(fits) && !text.starts_with('/') && !text.ends_with('/')
    };
    if word(repository) && tag.parse::<situla_oci::Tag>().is_ok() {
        return Ok(());
    }
    Err(SaveError::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_repositories() {
        for name in ["a", "a:1", "r.example:5000/a/b:1.0", "library/x"] {
            check_name(name).unwrap();
        }
        for name in ["", "A:1", "a:", "a: b", "/a:1", "a/"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!([tagged("a"), tagged("r:5000/a"), tagged("a:1")], ["a:latest", "r:5000/a:latest", "a:1"]);
    }

    #[test]
    fn a_longer_header_finds_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = DockerArchiveWriter::create(&dir.path().join("a.tar"), Existing::Refuse).unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        writer.file.write_all(&[0; 2 * BLOCK]).unwrap();
        writer.file.write_all(&data).unwrap();
        pad(&mut writer.file, data.len() as u64).unwrap();
        writer.make_room(BLOCK as u64, &[7; 3 * BLOCK], data.len() as u64).unwrap();
        let at = 4 * BLOCK as u64;
        assert_eq!(writer.file.stream_position().unwrap(), at + data.len().next_multiple_of(BLOCK) as u64);
        let mut found = vec![0; data.len()];
        writer.file.read_exact_at(&mut found, at).unwrap();
        assert!(found == data);
    }
}
