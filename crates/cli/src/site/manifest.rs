//! What an installation has put where: all that a removal takes away, and nothing else.
//!
//! It is written before anything else is, with all that will be there, so that whatever an interrupted installation has
//! left can be removed; and once more at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Version of the file; one that is newer is refused.
const SCHEMA: u64 = 1;

/// Where it is below the prefix.
pub(crate) const PLACE: &str = "share/situla/manifest.json";

/// One thing that was put somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A file with one of these digests: two while a new one takes the place of an old one.
    File(BTreeSet<String>),
    /// A symbolic link, and where it leads.
    Link(PathBuf),
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The release that was installed.
    pub(crate) version: String,
    /// Files and links.
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
    /// What was there before under the same name, and where it is now.
    pub(crate) backups: BTreeMap<PathBuf, PathBuf>,
    /// Directories that were made.
    pub(crate) directories: BTreeSet<PathBuf>,
    /// Lines that were added to files of others.
    pub(crate) lines: BTreeMap<PathBuf, Vec<String>>,
}

impl Manifest {
    /// Understands a file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match value["schema"].as_u64() {
            Some(SCHEMA) => {}
            Some(other) => return Err(format!("it has schema {other}, and this program knows {SCHEMA}")),
            None => return Err("it has no schema".to_owned()),
        }
        let text =
            |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is no text"));
        let list =
            |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Result<Vec<_>, _>>();
        let object = |name: &str| value[name].as_object().into_iter().flatten();
        let mut manifest = Manifest { version: text(&value["version"])?, ..Manifest::default() };
        for (path, entry) in object("entries") {
            let entry = match &entry["link"] {
                Value::Null => Entry::File(list(&entry["digests"])?.into_iter().collect()),
                link => Entry::Link(text(link)?.into()),
            };
            manifest.entries.insert(path.into(), entry);
        }
        for (path, backup) in object("backups") {
            manifest.backups.insert(path.into(), text(backup)?.into());
        }
        for (path, lines) in object("lines") {
            manifest.lines.insert(path.into(), list(lines)?);
        }
        manifest.directories = list(&value["directories"])?.into_iter().map(PathBuf::from).collect();
        let relative = |path: &&PathBuf| !path.is_absolute();
        if let Some(path) = manifest.paths().find(relative) {
            return Err(format!("{} is no absolute path", path.display()));
        }
        Ok(manifest)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let files = self.entries.keys().chain(self.backups.keys()).chain(self.backups.values());
        files.chain(&self.directories).chain(self.lines.keys())
    }

    /// As it is written.
    pub(crate) fn to_text(&self) -> String {
        let name = |path: &Path| path.to_string_lossy().into_owned();
        let entries = self.entries.iter().map(|(path, entry)| {
            let entry = match entry {
                Entry::File(digests) => json!({ "digests": digests }),
                Entry::Link(target) => json!({ "link": name(target) }),
            };
            (name(path), entry)
        });
        let backups = self.backups.iter().map(|(path, backup)| (name(path), json!(name(backup))));
        let lines = self.lines.iter().map(|(path, lines)| (name(path), json!(lines)));
        let value = json!({
            "schema": SCHEMA,
            "version": self.version,
            "entries": entries.collect::<serde_json::Map<_, _>>(),
            "backups": backups.collect::<serde_json::Map<_, _>>(),
            "directories": self.directories.iter().map(|path| name(path)).collect::<Vec<_>>(),
            "lines": lines.collect::<serde_json::Map<_, _>>(),
        });
        format!("{value:#}\n")
    }

    /// Whether a file with this digest is one that was installed.
    pub(crate) fn has(&self, path: &Path, digest: &str) -> bool {
        matches!(self.entries.get(path), Some(Entry::File(digests)) if digests.contains(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut manifest = Manifest { version: "1.2.3".to_owned(), ..Manifest::default() };
        assert_eq!(Manifest::parse(&manifest.to_text()).as_ref(), Ok(&manifest));
        let digests = ["sha256:a", "sha256:b"].map(str::to_owned);
        manifest.entries.insert("/p/bin/situla".into(), Entry::File(digests.into()));
        manifest.entries.insert("/p/bin/apptainer".into(), Entry::Link("situla".into()));
        manifest.backups.insert("/p/bin/situla".into(), "/p/bin/situla.before-situla".into());
        manifest.directories.insert("/p".into());
        manifest.lines.insert("/etc/plugstack.conf".into(), vec!["# a".to_owned(), "required b".to_owned()]);
        assert_eq!(Manifest::parse(&manifest.to_text()).as_ref(), Ok(&manifest));
        assert!(manifest.has(Path::new("/p/bin/situla"), "sha256:b"));
        assert!(!manifest.has(Path::new("/p/bin/situla"), "sha256:c"));
        assert!(!manifest.has(Path::new("/p/bin/apptainer"), "sha256:b"));
    }

    #[test]
    fn what_is_not_understood_removes_nothing() {
        for (text, told) in [
            ("", "EOF"),
            ("{}", "no schema"),
            (r#"{"schema": 2}"#, "schema 2"),
            (r#"{"schema": 1}"#, "no text"),
            (r#"{"schema": 1, "version": "1", "directories": ["etc"]}"#, "etc is no absolute path"),
            (r#"{"schema": 1, "version": "1", "entries": {"/x": {"link": 7}}}"#, "no text"),
        ] {
            let refusal = Manifest::parse(text).unwrap_err();
            assert!(refusal.contains(told), "{text}: {refusal}");
        }
    }
}
