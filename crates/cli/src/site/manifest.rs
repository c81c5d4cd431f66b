//! What an installation has put where: all that a removal takes away, and nothing else.
//!
//! It is written before anything else is, with all that will be there, so that whatever an interrupted installation has
//! left can be removed; and once more at the end.
//!
//! Root does what it says. So it is believed where nobody else can have written it, and as far as an installation into its
//! prefix can have written it: another path in it is an error, whatever it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use situla_engine::untrusted;

use super::install::{COMMENT, PERSONALITIES};
use super::stack::{PLUGIN, SETTINGS};

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

    /// Fails where it names what no installation into this prefix, with this plugin stack, has put anywhere.
    pub(crate) fn confine(&self, prefix: &Path, stack: &Path) -> Result<(), String> {
        let below = |name: &str| prefix.join(name);
        let mut files = vec![below(PLACE), below("bin/situla"), below("lib").join(PLUGIN)];
        files.extend(PERSONALITIES.map(|name| below("bin").join(name)));
        // A release that puts something elsewhere adds the place, and none is ever taken out.
        files.extend(
            ["etc/situla/site.toml", "share/situla/apparmor/situla", "share/situla/tmpfiles.d/situla.conf"]
                .map(below),
        );
        if let Some(path) = self.paths().find(|path| !is_plain(path)) {
            return Err(format!("{} is no plain path", path.display()));
        }
        let is_own = |path: &PathBuf| files.contains(path) || is_stack(path) || path == stack;
        if let Some(path) = self.entries.keys().find(|path| !is_own(path)) {
            return Err(format!(
                "{} is not what an installation into {} has",
                path.display(),
                prefix.display()
            ));
        }
        let links = self.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::Link(target) => Some((path, target)),
            Entry::File(_) => None,
        });
        for (path, target) in links {
            let is_personality = PERSONALITIES.iter().any(|name| *path == below("bin").join(name));
            if !is_personality || target != Path::new("situla") {
                return Err(format!("{} is no link that is installed", path.display()));
            }
        }
        for (path, backup) in &self.backups {
            if !self.entries.contains_key(path) || *backup != backup_of(path) {
                return Err(format!("{} is not where {} was put aside", backup.display(), path.display()));
            }
        }
        let is_parent = |directory: &PathBuf| {
            let mut own = files.iter().chain(self.entries.keys());
            directory != Path::new("/") && own.any(|path| path.starts_with(directory) && path != directory)
        };
        if let Some(path) = self.directories.iter().find(|path| !is_parent(path)) {
            return Err(format!(
                "{} is no directory of an installation into {}",
                path.display(),
                prefix.display()
            ));
        }
        let (plugin, trampoline) =
            (below("lib").join(PLUGIN), format!("trampoline={}", below("bin/situla").display()));
        let is_own_line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_setting = |word: &&str| {
                word.split_once('=').is_some_and(|(name, _)| name != SETTINGS[0] && SETTINGS.contains(&name))
            };
            match words[..] {
                ["required", file, word, ref rest @ ..] => {
                    Path::new(file) == plugin && word == trampoline && rest.iter().all(is_setting)
                }
                _ => line == COMMENT,
            }
        };
        for (path, lines) in &self.lines {
            if let Some(line) = lines.iter().find(|line| !is_own_line(line)) {
                return Err(format!("{line:?} is no line that is added to {}", path.display()));
            }
        }
        Ok(())
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

/// Whether a path is absolute and has no part that leads elsewhere.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir) && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a path is that of a file of a plugin stack that an installation makes: its own in a directory that is included, or
/// the first one where there is none.
fn is_stack(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "situla.conf" || name == "plugstack.conf")
}

/// Where what is there under a name is put aside.
pub(crate) fn backup_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.before-situla"))
}

/// Why a list is not believed on a machine: somebody else could have written it.
pub(crate) fn distrusted(about: &Metadata) -> Option<&'static str> {
    match about.is_file() {
        true => untrusted(about.uid(), about.mode(), false),
        false => Some("it is no file"),
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

    #[test]
    fn what_no_installation_has_written_is_not_believed() {
        let confined = |manifest: &Manifest| manifest.confine(Path::new("/p"), Path::new("/etc/stack"));
        let file = |path: &str| (PathBuf::from(path), Entry::File(["sha256:a".to_owned()].into()));
        let mut good = Manifest { version: "1".to_owned(), ..Manifest::default() };
        good.entries.extend([
            file("/p/bin/situla"),
            file("/p/lib/spank_situla.so"),
            file("/p/etc/situla/site.toml"),
            file("/etc/slurm/plugstack.conf.d/situla.conf"),
            file("/etc/stack"),
            ("/p/bin/apptainer".into(), Entry::Link("situla".into())),
        ]);
        good.backups.insert("/p/bin/situla".into(), "/p/bin/situla.before-situla".into());
        good.directories.extend(["/p", "/p/bin", "/p/share/situla", "/etc/slurm"].map(PathBuf::from));
        let line = "required /p/lib/spank_situla.so trampoline=/p/bin/situla prefix=box";
        good.lines.insert("/etc/x.conf".into(), vec![COMMENT.to_owned(), line.to_owned()]);
        assert_eq!(confined(&good), Ok(()));
        type Change = fn(&mut Manifest);
        let changes: [(Change, &str); 13] = [
            (|m| drop(m.entries.insert("/etc/passwd".into(), Entry::Link("x".into()))), "/etc/passwd"),
            (|m| drop(m.entries.insert("/p/bin/sh".into(), Entry::Link("situla".into()))), "/p/bin/sh"),
            (|m| drop(m.entries.insert("/p/bin/apptainer".into(), Entry::Link("sh".into()))), "no link"),
            (|m| drop(m.entries.insert("/p/bin/situla".into(), Entry::Link("situla".into()))), "no link"),
            (
                |m| drop(m.entries.insert("/p/../etc/situla.conf".into(), Entry::Link("x".into()))),
                "plain path",
            ),
            (|m| drop(m.backups.insert("/p/bin/situla".into(), "/etc/shadow".into())), "/etc/shadow"),
            (
                |m| drop(m.backups.insert("/etc/cron.d/x".into(), "/etc/cron.d/x.before-situla".into())),
                "cron",
            ),
            (|m| m.directories.extend(["/var/spool".into()]), "/var/spool"),
            (|m| m.directories.extend(["/p/bin/situla".into()]), "no directory"),
            (|m| drop(m.lines.insert("/etc/sudoers".into(), vec!["root ALL=(ALL) ALL".into()])), "no line"),
            (
                |m| drop(m.lines.insert("/etc/x".into(), vec!["required /p/lib/spank_situla.so".into()])),
                "no line",
            ),
            (
                |m| {
                    let line = "required /q/lib/spank_situla.so trampoline=/p/bin/situla";
                    drop(m.lines.insert("/etc/x".into(), vec![line.into()]));
                },
                "no line",
            ),
            (|m| drop(m.lines.insert("/etc/../x".into(), Vec::new())), "plain path"),
        ];
        for (change, told) in changes {
            let mut manifest = good.clone();
            change(&mut manifest);
            let refused = confined(&manifest).expect_err(told);
            assert!(refused.contains(told), "{told}: {refused}");
        }
    }

    #[test]
    fn a_list_of_somebody_else_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("manifest.json");
        std::fs::write(&file, "{}").unwrap();
        let about = || std::fs::metadata(&file).unwrap();
        assert_eq!(distrusted(&std::fs::metadata(dir.path()).unwrap()), Some("it is no file"));
        if about().uid() != 0 {
            assert!(distrusted(&about()).unwrap().contains("belong to root"));
            return;
        }
        assert_eq!(distrusted(&about()), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o664)).unwrap();
        assert!(distrusted(&about()).unwrap().contains("can write"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        chown(&file, Some(1), None).unwrap();
        assert!(distrusted(&about()).unwrap().contains("belong to root"));
    }
}
