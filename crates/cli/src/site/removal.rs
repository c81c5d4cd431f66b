//! Which steps a removal takes: decided by what is there, before anything is changed.
//!
//! **No plugin goes before the line that loads it**, on this machine or another one. Where others see the prefix and have a plugin
//! stack each, somebody must therefore say that no line is left.

use std::collections::BTreeSet;
use std::path::Path;

use super::install::{Plan, RECONFIGURE, Readers, Refusal, refusal, without, words};
use super::manifest::{Entry, Manifest, PLACE};
use super::root::Root;
use super::sharing::Sharing;
use super::slurm::Slurm;
use super::stack::{Line, Stack};
use super::steps::{Found, Step, look};

/// How much is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All, where that can harm nobody.
    Auto,
    /// This machine's line.
    Line,
    /// All: nobody loads the plugin any more.
    All,
}

/// What is removed, and from where.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    pub(crate) root: &'a Root,
    pub(crate) prefix: &'a Path,
    pub(crate) slurm: &'a Slurm,
    pub(crate) stack: &'a Stack,
    /// Who reads the stack.
    pub(crate) readers: Readers,
    /// Who sees the prefix.
    pub(crate) sharing: Sharing,
    pub(crate) manifest: &'a Manifest,
    pub(crate) extent: Extent,
}

impl Removal<'_> {
    /// Refuses to take the plugin away from machines whose own plugin stack may load it.
    fn refuse_others(&self) -> Result<(), Refusal> {
        let Sharing::Shared(kind) = self.sharing else { return Ok(()) };
        // What was handed out stays with the others until they are told.
        let is_seen = matches!(self.readers, Readers::Others(_)) && !self.slurm.hands_out;
        if self.extent != Extent::Auto || is_seen {
            return Ok(());
        }
        let (prefix, stack) = (self.prefix.display(), self.stack.file.display());
        let (whose, where_first) = match self.slurm.hands_out {
            true => ("was handed out", "first: situla site uninstall --only-line, and scontrol reconfigure"),
            false => (
                "is this machine's own",
                "first on each submit host and node: situla site uninstall --only-line",
            ),
        };
        Err(refusal(
            format!(
                "{prefix} is on {kind}, which nodes share, and {stack} {whose}: where another machine loads the plugin, every \
                 srun would fail"
            ),
            format!("{where_first}; then, once: situla site uninstall --with-files"),
        ))
    }

    /// Decides.
    pub(crate) fn plan(&self) -> Result<Plan, Refusal> {
        self.refuse_others()?;
        let mut plan = plan_all(self)?;
        if self.slurm.hands_out && plan.steps.iter().any(|step| matches!(step, Step::Edit { .. })) {
            plan.kept.push(RECONFIGURE.to_owned());
        }
        if self.extent != Extent::Line {
            return Ok(plan);
        }
        let is_line = |step: &Step| match step {
            Step::Edit { .. } => true,
            Step::Remove(path) => self.stack.lines.iter().any(|line| line.file == *path),
            _ => false,
        };
        plan.steps.retain(is_line);
        plan.kept.retain(|told| told == RECONFIGURE);
        Ok(plan)
    }
}

fn plan_all(removal: &Removal<'_>) -> Result<Plan, Refusal> {
    let Removal { root, prefix, slurm, stack, manifest, .. } = removal;
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
        let text = match root.read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        };
        // Bytes that are no text would not survive.
        let Ok(text) = String::from_utf8(text) else {
            plan.kept.push(format!("kept the lines in {}: it is no text", path.display()));
            continue;
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
        let place = match &slurm.copy {
            Some(copy) if copy.has(&line.file) => {
                format!("remove its line from {}, and call scontrol reconfigure", copy.place())
            }
            _ => "remove that line".to_owned(),
        };
        return Err(refusal(
            format!("{} loads {}, and is not as it was installed", line.place(), line.plugin.display()),
            format!("{place}: without the plugin every srun would fail; then try again"),
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
        let Ok(names) = root.names(directory) else { continue };
        let mut left = names.into_iter().map(|name| directory.join(name));
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
