//! Which steps an installation takes: decided by what is there, before anything is changed.
//!
//! **No machine reads a line before it has the plugin**: the plugin is `required`, since an optional one that fails lets tasks
//! run on the host, and with a required one that is missing every srun fails. Where others read the plugin stack and do
//! not see the prefix, somebody must therefore say that all of them have the plugin.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use situla_oci::Digest;

use super::manifest::{Entry, Manifest, PLACE, backup_of};
use super::rivals::{DEFAULT_PREFIX, Srun, file_of, rival};
use super::root::Root;
use super::sharing::Sharing;
use super::slurm::Slurm;
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

pub(super) fn refusal(message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
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
pub(super) const COMMENT: &str = "# Installed by `situla site install`.";

/// What becomes of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineWish {
    /// It is added where that can harm nobody.
    Auto,
    /// It is added: all that read it have the plugin.
    Add,
    /// It is left out.
    Leave,
}

/// Who reads the plugin stack that a line would be added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// This machine.
    Own,
    /// Others too: why.
    Others(String),
    /// It cannot be known.
    Unknown,
}

impl Readers {
    /// Of a file.
    pub(crate) fn of(root: &Root, slurm: &Slurm, file: &Path) -> Self {
        if slurm.hands_out {
            return Readers::Others("is handed to machines without a configuration of their own".to_owned());
        }
        if !root.is_machine() {
            return Readers::Own;
        }
        match Sharing::of_future(file) {
            Sharing::Shared(kind) => Readers::Others(format!("is on {kind}, which nodes share")),
            Sharing::Unknown => Readers::Unknown,
            Sharing::Own(_) | Sharing::Passing(_) => Readers::Own,
        }
    }
}

/// What is left to do where the controller hands its configuration out.
pub(super) const RECONFIGURE: &str =
    "machines that have their configuration from here get the change by: scontrol reconfigure";

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Installation<'a> {
    pub(crate) root: &'a Root,
    pub(crate) prefix: &'a Path,
    pub(crate) slurm: &'a Slurm,
    pub(crate) stack: &'a Stack,
    pub(crate) readers: Readers,
    /// Whether other machines do not see the prefix.
    pub(crate) prefix_is_own: bool,
    pub(crate) wish: LineWish,
    /// What srun has before that.
    pub(crate) srun: &'a Srun,
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
        let edit = self.plan_stack(&mut wanted, &mut plan.kept)?;
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
                let backup = backup_of(&one.path);
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
            if self.slurm.hands_out {
                plan.kept.push(RECONFIGURE.to_owned());
            }
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

    /// A directory of which a file of our own would be included. What the controller hands out is `plugstack.conf` without
    /// what that includes: there, and among what was fetched from it, the line must be in the file itself.
    fn included_directory(&self) -> Option<&Path> {
        let is_fetched = |path: &Path| self.slurm.copy.as_ref().is_some_and(|copy| copy.has(path));
        let found = self.stack.directory_for(self.root, "situla.conf").filter(|_| !self.slurm.hands_out);
        found.filter(|directory| !is_fetched(directory))
    }

    /// What to say where no line is to be added.
    ///
    /// # Errors
    /// It would fail every srun on machines that do not have the plugin.
    fn left_out(&self, line: &str) -> Result<Option<String>, Refusal> {
        if let Some(copy) = &self.slurm.copy
            && copy.beside.is_none()
            && self.included_directory().is_none()
        {
            return Ok(Some(format!(
                "left out the line: this machine has its plugin stack from the controller; when all nodes and submit hosts \
                 have the plugin, add to {}, and call scontrol reconfigure: {line}",
                copy.place()
            )));
        }
        if self.wish == LineWish::Leave {
            return Ok(Some(format!("left out of {}: {line}", self.stack.file.display())));
        }
        let Readers::Others(why) = &self.readers else { return Ok(None) };
        if self.wish == LineWish::Add || !self.prefix_is_own {
            return Ok(None);
        }
        let (stack, prefix) = (self.stack.file.display(), self.prefix.display());
        Err(refusal(
            format!(
                "{stack} {why}, and {prefix} is this machine's own: with the line there every srun fails for nodes that do \
                 not have the plugin yet"
            ),
            "first on each node and submit host: situla site install --without-line; then, once: situla site install --with-line",
        ))
    }

    /// Refuses options that another plugin has.
    fn refuse_rivals(&self) -> Result<(), Refusal> {
        let setting = self.settings.iter().find_map(|setting| setting.strip_prefix("prefix="));
        let prefix = setting.unwrap_or(DEFAULT_PREFIX);
        let rival = rival(self.root, self.slurm, self.stack, prefix);
        let message = match (rival, self.srun.option(prefix), self.srun) {
            // srun has loaded it, and has no such option: the name is there for something else.
            (Some(rival), None, Srun::Has { .. })
                if self.root.has(&file_of(self.root, self.slurm, &rival.line)) =>
            {
                return Ok(());
            }
            (Some(rival), option, _) => {
                let (place, plugin) = (rival.line.place(), rival.line.plugin.display());
                let option = option.unwrap_or(rival.option);
                format!("{place} loads {plugin}, which has the same options, such as --{option}")
            }
            (None, Some(option), _) => format!("srun has an option --{option} already, of another plugin"),
            (None, None, _) => return Ok(()),
        };
        Err(refusal(message, "add --setting prefix=WORD, which makes --WORD-image of --container-image"))
    }

    /// The directories that a path needs and that are not there.
    fn directories(&self, path: &Path, made: &mut BTreeSet<PathBuf>, steps: &mut Vec<Step>) {
        let missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|directory| !self.root.has(directory)).collect();
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
    fn plan_stack(
        &self,
        wanted: &mut Vec<Wanted>,
        kept: &mut Vec<String>,
    ) -> Result<Option<(Step, Vec<String>)>, Refusal> {
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
            if let Some(told) = self.left_out(&line)? {
                kept.push(told);
                return Ok(None);
            }
            self.refuse_rivals()?;
        }
        let file = match old {
            Some(old) if own_file(&old.file)? => Some(old.file.clone()),
            Some(_) => None,
            None => match self.included_directory() {
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
pub(super) fn words(line: &Line) -> impl Iterator<Item = &str> {
    line.plugin.to_str().into_iter().chain(line.arguments.iter().map(String::as_str))
}

/// A text without lines that were added to it: each once, the last that is like it.
pub(super) fn without(text: &str, added: &[String]) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    for line in added.iter().rev() {
        if let Some(index) = lines.iter().rposition(|other| other.trim_end() == line) {
            lines.remove(index);
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests;
