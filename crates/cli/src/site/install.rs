//! Which steps an installation takes, and which a removal: decided by what is there, before anything is changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use situla_oci::Digest;

use super::manifest::{Entry, Manifest, PLACE};
use super::root::Root;
use super::stack::{Line, PLUGIN, Stack};
use super::steps::{Found, Step, look};

/// Steps in their order, and what there is to say about what they leave alone.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) kept: Vec<String>,
}

/// Why nothing is done, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) remedy: String,
}

fn refusal(message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { message: message.into(), remedy: remedy.into() }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        refusal(message, "")
    }
}

/// What is to be there afterwards.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
    /// Whether what is there already stays, whatever it is.
    pub(crate) keeps: bool,
    /// One line about it.
    pub(crate) what: String,
}

#[derive(Debug)]
pub(crate) enum Content {
    File { bytes: Vec<u8>, mode: u32 },
    Link(PathBuf),
}

/// The links beside the program: the names by which it is other command lines. The last is what the first line of a SIF
/// file names.
pub(crate) const PERSONALITIES: [&str; 3] = ["apptainer", "singularity", "run-singularity"];

const APPARMOR: &str = include_str!("../../../../packaging/apparmor/situla");
const TMPFILES: &str = include_str!("../../../../packaging/tmpfiles.d/situla.conf");

/// Settings that say nothing yet.
const SITE_FILE: &str = "\
# Settings of the site, read at every start; what is not understood fails every run. See docs/reference/configuration.md.
#
# [rootfs]
# way = \"auto\"             # how image files become roots
# cache = \"/local/scratch\" # directory on each node for extracted images
#
# [store]
# user = \"/scratch/{user}/situla\"
";

/// What stands above our line.
const COMMENT: &str = "# Installed by `situla site install`.";

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Installation<'a> {
    pub(crate) root: &'a Root,
    pub(crate) prefix: &'a Path,
    pub(crate) stack: &'a Stack,
    /// Words behind `trampoline=`; none leaves those of a line that is there.
    pub(crate) settings: &'a [String],
    pub(crate) program: Vec<u8>,
    /// Where it is from.
    pub(crate) program_source: &'a Path,
    pub(crate) plugin: Vec<u8>,
    pub(crate) plugin_source: &'a Path,
    /// Whether files that somebody else has left there are kept under another name, and ours put there.
    pub(crate) replaces: bool,
    pub(crate) manifest: Option<Manifest>,
}

impl Installation<'_> {
    fn plugin_path(&self) -> PathBuf {
        self.prefix.join("lib").join(PLUGIN)
    }

    fn line(&self) -> String {
        let (plugin, trampoline) = (self.plugin_path(), self.prefix.join("bin/situla"));
        let mut line = format!("required {} trampoline={}", plugin.display(), trampoline.display());
        for setting in self.settings {
            line.push(' ');
            line.push_str(setting);
        }
        line
    }

    /// The program last but one, the plugin last: a plugin may be older than its trampoline, and not newer.
    fn files(&self) -> Result<Vec<Wanted>, Refusal> {
        let file = |path: &str, bytes: &[u8], mode, what: &str| Wanted {
            path: self.prefix.join(path),
            content: Content::File { bytes: bytes.to_owned(), mode },
            keeps: false,
            what: what.to_owned(),
        };
        let source = |path: &Path| format!("from {}", path.display());
        let mut wanted = vec![
            file(
                "share/situla/apparmor/situla",
                APPARMOR.as_bytes(),
                0o644,
                "a profile for AppArmor, not in force",
            ),
            file(
                "share/situla/tmpfiles.d/situla.conf",
                TMPFILES.as_bytes(),
                0o644,
                "a rule for systemd-tmpfiles, not in force",
            ),
        ];
        if look(self.root, Path::new("/etc/situla/site.toml"))? == Found::Nothing {
            let settings =
                file("etc/situla/site.toml", SITE_FILE.as_bytes(), 0o644, "settings of the site, none yet");
            wanted.push(Wanted { keeps: true, ..settings });
        }
        wanted.push(file("bin/situla", &self.program, 0o755, &source(self.program_source)));
        wanted.extend(PERSONALITIES.map(|name| Wanted {
            path: self.prefix.join("bin").join(name),
            content: Content::Link("situla".into()),
            keeps: false,
            what: String::new(),
        }));
        let plugin = file("lib", &self.plugin, 0o755, &source(self.plugin_source));
        wanted.push(Wanted { path: self.plugin_path(), ..plugin });
        Ok(wanted)
    }

    /// Decides.
    pub(crate) fn plan(&self) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let mut manifest = self.manifest.clone().unwrap_or_default();
        env!("CARGO_PKG_VERSION").clone_into(&mut manifest.version);
        let mut final_manifest = manifest.clone();
        let mut steps = Vec::new();
        let mut foreign = Vec::new();
        let mut wanted = self.files()?;
        let edit = self.plan_stack(&mut wanted)?;
        for one in &wanted {
            let found = look(self.root, &one.path)?;
            let (same, entry) = match &one.content {
                Content::File { bytes, mode } => {
                    let digest = Digest::sha256(bytes).to_string();
                    let same = found == Found::File { digest: digest.clone(), mode: *mode };
                    (same, Entry::File([digest].into()))
                }
                Content::Link(target) => (found == Found::Link(target.clone()), Entry::Link(target.clone())),
            };
            if one.keeps && found != Found::Nothing {
                continue;
            }
            let was_ours = match &found {
                Found::File { digest, .. } => manifest.has(&one.path, digest),
                Found::Link(target) => manifest.entries.get(&one.path) == Some(&Entry::Link(target.clone())),
                Found::Nothing | Found::Other => false,
            };
            if !same && !was_ours && found != Found::Nothing {
                if !self.replaces || found == Found::Other {
                    foreign.push(one.path.display().to_string());
                    continue;
                }
                let name = one.path.file_name().unwrap_or_default().to_string_lossy();
                let backup = one.path.with_file_name(format!("{name}.before-situla"));
                if look(self.root, &backup)? != Found::Nothing {
                    return Err(refusal(format!("{} is there already", backup.display()), "move it away"));
                }
                final_manifest.backups.insert(one.path.clone(), backup.clone());
                steps.push(Step::Backup { path: one.path.clone(), backup });
            }
            // Until the new one is there, the old one is ours as well.
            let mut both = entry.clone();
            if let (Entry::File(both), Some(Entry::File(old))) = (&mut both, manifest.entries.get(&one.path))
            {
                both.extend(old.iter().cloned());
            }
            manifest.entries.insert(one.path.clone(), both);
            final_manifest.entries.insert(one.path.clone(), entry);
            if !same {
                self.directories(&one.path, &mut final_manifest.directories, &mut plan.steps);
                steps.push(match &one.content {
                    Content::File { bytes, mode } => Step::File {
                        path: one.path.clone(),
                        bytes: bytes.clone(),
                        mode: *mode,
                        what: one.what.clone(),
                    },
                    Content::Link(target) => Step::Link { path: one.path.clone(), target: target.clone() },
                });
            }
        }
        if !foreign.is_empty() {
            return Err(refusal(
                format!("not from an installation by this command, or changed since: {}", foreign.join(", ")),
                "move it away, or add --replace, which keeps it as FILE.before-situla",
            ));
        }
        if let Some((step, lines)) = edit {
            final_manifest.lines.insert(self.stack.file.clone(), lines);
            steps.push(step);
        }
        let place = self.prefix.join(PLACE);
        if steps.is_empty() && self.manifest.as_ref() == Some(&final_manifest) {
            return Ok(plan);
        }
        self.directories(&place, &mut final_manifest.directories, &mut plan.steps);
        let file = |manifest: &Manifest, what: &str| Step::File {
            path: place.clone(),
            bytes: manifest.to_text().into_bytes(),
            mode: 0o644,
            what: what.to_owned(),
        };
        manifest.directories.clone_from(&final_manifest.directories);
        manifest.backups.clone_from(&final_manifest.backups);
        manifest.lines.clone_from(&final_manifest.lines);
        plan.steps.push(file(&manifest, "what a removal will take away"));
        plan.steps.append(&mut steps);
        if manifest != final_manifest {
            plan.steps
                .push(file(&final_manifest, "what a removal will take away, without what was replaced"));
        }
        Ok(plan)
    }

    /// The directories that a path needs and that are not there.
    fn directories(&self, path: &Path, made: &mut BTreeSet<PathBuf>, steps: &mut Vec<Step>) {
        let missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|directory| !self.root.place(directory).exists()).collect();
        for directory in missing.into_iter().rev() {
            let step = Step::Directory(directory.to_owned());
            if !steps.contains(&step) {
                made.insert(directory.to_owned());
                steps.push(step);
            }
        }
    }

    /// How the plugin stack will load the plugin: by a file of its own, which joins `wanted`, or by lines in a file of the
    /// site's.
    fn plan_stack(&self, wanted: &mut Vec<Wanted>) -> Result<Option<(Step, Vec<String>)>, Refusal> {
        let plugin = self.plugin_path();
        let line = self.line();
        let lines: Vec<&Line> = self.stack.ours().collect();
        if let Some(other) = lines.iter().find(|line| line.plugin != plugin) {
            return Err(refusal(
                format!(
                    "{} loads {}, and there cannot be two of them",
                    other.place(),
                    other.plugin.display()
                ),
                "remove that line, or choose its prefix with --prefix",
            ));
        }
        let wanted_words: Vec<&str> = line.split_whitespace().skip(2).collect();
        let old = match lines[..] {
            [] => None,
            [old] => Some(old),
            [_, second, ..] => {
                return Err(refusal(
                    format!("{} loads the plugin once more", second.place()),
                    "remove one of the lines",
                ));
            }
        };
        let trampoline = self.prefix.join("bin/situla");
        let own_file = |file: &Path| -> Result<bool, Refusal> {
            let Some(manifest) = &self.manifest else { return Ok(false) };
            Ok(matches!(look(self.root, file)?, Found::File { digest, .. } if manifest.has(file, &digest)))
        };
        let own_lines = self.manifest.as_ref().and_then(|manifest| manifest.lines.get(&self.stack.file));
        if let Some(old) = old {
            if old.is_optional {
                return Err(refusal(
                    format!(
                        "{} makes the plugin optional, and then tasks run on the host where it fails",
                        old.place()
                    ),
                    "write `required` there",
                ));
            }
            if old.setting("trampoline").map(Path::new) != Some(&trampoline) {
                return Err(refusal(
                    format!("{} names another trampoline than {}", old.place(), trampoline.display()),
                    "change that line",
                ));
            }
            if self.settings.is_empty() || old.arguments == wanted_words {
                return Ok(None);
            }
            let is_own = own_file(&old.file)?
                || own_lines
                    .is_some_and(|own| own.iter().any(|own| own.split_whitespace().skip(1).eq(words(old))));
            if !is_own {
                return Err(refusal(
                    format!("{} has other settings, and not from this command", old.place()),
                    "change them there",
                ));
            }
        } else {
            let prefix = self
                .settings
                .iter()
                .find_map(|setting| setting.strip_prefix("prefix="))
                .unwrap_or("container");
            let rival =
                self.stack.lines.iter().find(|line| line.has_name("spank_pyxis") && prefix == "container");
            if let Some(rival) = rival {
                return Err(refusal(
                    format!("{} loads pyxis, which has the same options", rival.place()),
                    "add --setting prefix=WORD, which makes --WORD-image of --container-image",
                ));
            }
        }
        let file = match old {
            Some(old) if own_file(&old.file)? => Some(old.file.clone()),
            Some(_) => None,
            None => match self.stack.directory_for(self.root, "situla.conf") {
                Some(directory) => Some(directory.join("situla.conf")),
                None if self.stack.text.is_none() => Some(self.stack.file.clone()),
                None => None,
            },
        };
        if let Some(path) = file {
            let content = Content::File { bytes: format!("{COMMENT}\n{line}\n").into_bytes(), mode: 0o644 };
            wanted.push(Wanted { path, content, keeps: false, what: line });
            return Ok(None);
        }
        let mut text = self.stack.text.clone().unwrap_or_default();
        if let Some(own) = own_lines {
            text = without(&text, own);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{COMMENT}\n{line}\n"));
        let what = format!("add {line}");
        Ok(Some((Step::Edit { path: self.stack.file.clone(), text, what }, vec![COMMENT.to_owned(), line])))
    }
}

/// A line without its first word.
fn words(line: &Line) -> impl Iterator<Item = &str> {
    line.plugin.to_str().into_iter().chain(line.arguments.iter().map(String::as_str))
}

/// A text without lines that were added to it: each once, the last that is like it.
fn without(text: &str, added: &[String]) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    for line in added.iter().rev() {
        if let Some(index) = lines.iter().rposition(|other| other.trim_end() == line) {
            lines.remove(index);
        }
    }
    lines.concat()
}

/// Decides what a removal does.
pub(crate) fn plan_removal(
    root: &Root,
    prefix: &Path,
    stack: &Stack,
    manifest: &Manifest,
) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    let mut gone = BTreeSet::new();
    for (path, entry) in &manifest.entries {
        let is_own = match (entry, look(root, path)?) {
            (_, Found::Nothing) => continue,
            (Entry::File(digests), Found::File { digest, .. }) => digests.contains(&digest),
            (Entry::Link(target), Found::Link(found)) => *target == found,
            _ => false,
        };
        if !is_own {
            plan.kept.push(format!("kept {}: it was changed since it was installed", path.display()));
            continue;
        }
        gone.insert(path.clone());
        // Nobody is to load a plugin that is not there: what names it goes before it.
        let loads = stack.lines.iter().any(|line| line.file == *path);
        if loads { &mut first } else { &mut rest }.push(Step::Remove(path.clone()));
    }
    for (path, lines) in &manifest.lines {
        let text = match std::fs::read_to_string(root.place(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        };
        let changed = without(&text, lines);
        if changed != text {
            let what = format!("take out {}", lines.last().map_or("", String::as_str));
            first.push(Step::Edit { path: path.clone(), text: changed, what });
        }
    }
    let removes = |line: &Line| {
        let is_added = |own: &String| own.split_whitespace().skip(1).eq(words(line));
        gone.contains(&line.file)
            || manifest.lines.get(&line.file).is_some_and(|own| own.iter().any(is_added))
    };
    if let Some(line) = stack.lines.iter().find(|line| gone.contains(&line.plugin) && !removes(line)) {
        return Err(refusal(
            format!("{} loads {}, and is not as it was installed", line.place(), line.plugin.display()),
            "remove that line: without the plugin every srun would fail; then try again",
        ));
    }
    for (path, backup) in &manifest.backups {
        let is_free = look(root, path)? == Found::Nothing || gone.contains(path);
        if is_free && look(root, backup)? != Found::Nothing {
            gone.remove(path);
            gone.insert(backup.clone());
            rest.push(Step::Restore { backup: backup.clone(), path: path.clone() });
        }
    }
    let place = prefix.join(PLACE);
    gone.insert(place.clone());
    plan.steps = first;
    plan.steps.append(&mut rest);
    plan.steps.push(Step::Remove(place));
    for directory in manifest.directories.iter().rev() {
        let Ok(entries) = std::fs::read_dir(root.place(directory)) else { continue };
        let mut left = entries.filter_map(|entry| Some(directory.join(entry.ok()?.file_name())));
        match left.find(|path| !gone.contains(path)) {
            Some(other) => {
                plan.kept.push(format!(
                    "kept directory {}: {} is in it",
                    directory.display(),
                    other.display()
                ));
            }
            None => {
                gone.insert(directory.clone());
                plan.steps.push(Step::RemoveDirectory(directory.clone()));
            }
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests;
