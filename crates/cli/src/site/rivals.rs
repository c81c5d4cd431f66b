//! Other plugins of the stack that have options of ours. Slurm gives an option to one plugin only, to the first in the
//! stack or to one that has it in a table: which container a user gets is then a matter of order, and every srun says that there are two.
//!
//! Names of options are text in a plugin's file, with a zero at each end: a file without one of ours has no such option,
//! if it is no interpreter of scripts. A file with one might have it for another purpose. `srun --help` knows, and loads
//! no more than every srun does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::plugin_file::MAX_PLUGIN;
use super::root::Root;
use super::slurm::{self, Slurm};
use super::stack::{Line, Stack};

/// What options are called behind the prefix.
const SUFFIXES: [&str; 17] = [
    "image",
    "environment",
    "name",
    "save",
    "mounts",
    "workdir",
    "env",
    "unshare",
    "mount-home",
    "no-mount-home",
    "remap-root",
    "no-remap-root",
    "entrypoint",
    "no-entrypoint",
    "entrypoint-log",
    "writable",
    "readonly",
];

/// What options begin with if nobody says.
pub(crate) const DEFAULT_PREFIX: &str = "container";

/// The options of a plugin of ours, without the dashes before them.
fn options(prefix: &str) -> Vec<String> {
    let name = |suffix: &&str| match (*suffix, prefix, suffix.strip_prefix("no-")) {
        ("environment", DEFAULT_PREFIX, _) => "environment".to_owned(),
        (_, _, Some(rest)) => format!("no-{prefix}-{rest}"),
        (suffix, ..) => format!("{prefix}-{suffix}"),
    };
    SUFFIXES.iter().map(name).collect()
}

/// A plugin that has, or seems to have, an option of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rival {
    /// Its line.
    pub(crate) line: Line,
    /// The first of the options.
    pub(crate) option: String,
}

/// Where the file of a line's plugin is: as it says, or in one of Slurm's directories.
pub(crate) fn file_of(root: &Root, slurm: &Slurm, line: &Line) -> PathBuf {
    if line.plugin.is_absolute() {
        return line.plugin.clone();
    }
    let found: Vec<PathBuf> =
        slurm.plugin_directories.iter().map(|directory| directory.join(&line.plugin)).collect();
    found.iter().find(|path| root.has(path)).or(found.first()).cloned().unwrap_or_default()
}

/// The first plugin of others in the stack whose file has the name of an option that ours has with this prefix.
pub(crate) fn rival(root: &Root, slurm: &Slurm, stack: &Stack, prefix: &str) -> Option<Rival> {
    let options = options(prefix);
    stack.lines.iter().filter(|line| !line.is_ours()).find_map(|line| {
        let path = file_of(root, slurm, line);
        // By its name as well: the file need not be here.
        let is_pyxis = line.has_name("spank_pyxis") && prefix == DEFAULT_PREFIX;
        let option = options.iter().find(|option| is_pyxis || has_text(root, &path, option))?;
        Some(Rival { line: line.clone(), option: option.clone() })
    })
}

/// Whether a plugin's file has a text with a zero before and behind it.
fn has_text(root: &Root, path: &Path, text: &str) -> bool {
    let is_small = |path: &Path| root.follow(path).and_then(|place| place.metadata());
    if !is_small(path).is_ok_and(|about| about.is_file() && about.len() <= MAX_PLUGIN) {
        return false;
    }
    let Ok(bytes) = root.read(path) else { return false };
    let wanted = [b"\0", text.as_bytes(), b"\0"].concat();
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What srun says of its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Srun {
    /// It cannot be asked here.
    Silent,
    /// It fails, and says so.
    Fails(String),
    /// It has these options, and says of others that two plugins have them.
    Has { options: BTreeSet<String>, twice: Vec<Twice> },
}

/// An option that two plugins have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Twice {
    pub(crate) option: String,
    /// Their files.
    pub(crate) plugins: [String; 2],
}

impl Twice {
    /// Understands a line of srun's: `srun: spank: option "a" provided by both b.so and c.so`.
    fn parse(line: &str) -> Option<Self> {
        let (option, rest) = line.split_once("spank: option \"")?.1.split_once("\" provided by both ")?;
        let (one, other) = rest.trim().split_once(" and ")?;
        Some(Twice { option: option.to_owned(), plugins: [one, other].map(str::to_owned) })
    }
}

impl Srun {
    /// Asks it, on this machine.
    pub(crate) fn ask(root: &Root) -> Self {
        match root.is_machine().then(|| slurm::answer("srun", &["--help"])).flatten() {
            None => Srun::Silent,
            Some(Err(error)) => Srun::Fails(error),
            Some(Ok(said)) => Srun::Has {
                options: shown(&said.text),
                twice: said.errors.lines().filter_map(Twice::parse).collect(),
            },
        }
    }

    /// The first of our options that it has.
    pub(crate) fn option(&self, prefix: &str) -> Option<String> {
        let Srun::Has { options: known, .. } = self else { return None };
        options(prefix).into_iter().find(|option| known.contains(option))
    }

    /// An option of ours that another plugin has as well.
    pub(crate) fn twice(&self, prefix: &str) -> Option<&Twice> {
        let Srun::Has { twice, .. } = self else { return None };
        let own = options(prefix);
        twice.iter().find(|twice| own.contains(&twice.option))
    }
}

/// The long options in a help text.
fn shown(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[' | ']'));
    words
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_those_of_the_plugin() {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spank/src/options.rs");
        let text = std::fs::read_to_string(place).unwrap();
        let settings = text.split_once("\nsettings! {\n").unwrap().1.split_once("\n}\n").unwrap().0;
        let quoted = |line: &str, index| line.split('"').nth(index).unwrap_or_default().to_owned();
        // Each setting is an option; the list of options has the switches, with what stands before and behind.
        let mut found: BTreeSet<String> = settings.lines().map(|line| quoted(line, 1)).collect();
        let switches = text.lines().filter(|line| line.trim_start().starts_with("Self::switch("));
        found.extend(switches.map(|line| format!("{}{}", quoted(line, 1), quoted(line, 3))));
        assert_eq!(found, SUFFIXES.map(str::to_owned).into());
        assert!(text.contains(&format!("const DEFAULT_PREFIX: &str = \"{DEFAULT_PREFIX}\";")));
    }

    #[test]
    fn options_are_called_by_their_prefix() {
        for (prefix, has, has_not) in [
            (
                "container",
                ["container-image", "environment", "no-container-remap-root"],
                "container-environment",
            ),
            ("box", ["box-image", "box-environment", "no-box-remap-root"], "environment"),
        ] {
            let options = options(prefix);
            assert!(has.iter().all(|name| options.iter().any(|option| option == name)), "{options:?}");
            assert!(!options.iter().any(|option| option == has_not), "{options:?}");
        }
    }

    #[test]
    fn a_plugin_with_the_name_of_an_option_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::tree(dir.path()).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("engine.so", b"\x7fELF...\0what it is\0environment\0more");
        write("longer.so", b"\x7fELF...\0container-images\0environment-of\0");
        write("at-end.so", b"\x7fELF...\0box-name\0");
        let slurm = Slurm { plugin_directories: vec!["/none".into(), "/".into()], ..Slurm::default() };
        for (stack, prefix, want) in [
            ("required engine.so", "container", Some("environment")),
            ("optional /engine.so x=y", "container", Some("environment")),
            ("required engine.so", "box", None),
            ("required at-end.so", "box", Some("box-name")),
            ("required longer.so", "container", None),
            ("required none.so", "container", None),
            ("required /none/spank_pyxis.so", "container", Some("container-image")),
            ("required /none/spank_pyxis.so", "box", None),
            ("required spank_situla.so", "container", None),
        ] {
            write("plugstack.conf", stack.as_bytes());
            let stack = Stack::read(&root, Path::new("/plugstack.conf")).unwrap();
            let found = rival(&root, &slurm, &stack, prefix);
            assert_eq!(found.as_ref().map(|rival| rival.option.as_str()), want, "{stack:?} {prefix}");
        }
    }

    #[test]
    fn what_srun_has_is_in_its_help() {
        let text = "  -x, --exclude=hosts   exclude --these\n      --container-image=[USER@]IMAGE  run\n\
                    \x20     --[no-]kill   x\n -- \n";
        let has = |text: &str| Srun::Has { options: shown(text), twice: Vec::new() };
        let srun = has(text);
        assert_eq!(srun.option("container").as_deref(), Some("container-image"));
        assert_eq!(srun.option("box"), None);
        assert_eq!(Srun::Silent.option("container"), None);
        assert_eq!(has("--environment=NAME").option("container").as_deref(), Some("environment"));
    }

    #[test]
    fn what_srun_says_of_two_plugins_is_understood() {
        let line = "srun: spank: option \"environment\" provided by both spank_situla.so and engine.so";
        let twice = Twice::parse(line).unwrap();
        assert_eq!(twice.option, "environment");
        assert_eq!(twice.plugins, ["spank_situla.so", "engine.so"].map(str::to_owned));
        assert_eq!(Twice::parse("srun: error: spank: something else"), None);
        let srun = Srun::Has { options: BTreeSet::new(), twice: vec![twice.clone()] };
        assert_eq!((srun.twice("container"), srun.twice("box")), (Some(&twice), None));
    }
}
