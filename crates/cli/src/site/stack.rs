//! The plugin stack: `plugstack.conf` and what it includes, as Slurm reads it.

use std::path::{Path, PathBuf};

use super::root::Root;

/// Files of a stack; they may include each other.
const MAX_FILES: usize = 256;

/// How our plugin's file is called.
pub(crate) const PLUGIN: &str = "spank_situla.so";

/// The words of our line that the plugin knows, without their values.
pub(crate) const SETTINGS: [&str; 7] =
    ["trampoline", "prefix", "sbatch_support", "execute_entrypoint", "container_scope", "config", "disabled"];

/// Whether a setting takes a value, by the rules of the plugin.
pub(crate) fn takes(name: &str, value: &str) -> bool {
    match name {
        "sbatch_support" | "execute_entrypoint" => matches!(value, "0" | "1"),
        "container_scope" => matches!(value, "job" | "global"),
        "prefix" => !value.is_empty() && value.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
        _ => value.starts_with('/'),
    }
}

/// A plugin that the stack loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The file that the line stands in, and the number of the line.
    pub(crate) file: PathBuf,
    pub(crate) number: usize,
    /// Whether Slurm goes on without the plugin.
    pub(crate) is_optional: bool,
    /// The plugin, as the line names it.
    pub(crate) plugin: PathBuf,
    /// The words behind it.
    pub(crate) arguments: Vec<String>,
}

impl Line {
    /// Whether it loads a plugin of ours, by the name of its file.
    pub(crate) fn is_ours(&self) -> bool {
        self.has_name("spank_situla")
    }

    /// Whether the plugin's file is called so, with an ending.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        let file =
            self.plugin.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', '-']))
    }

    /// The value of one of our settings; the last one counts.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let mut pairs = self.arguments.iter().filter_map(|word| word.split_once('='));
        pairs.rfind(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// What options begin with.
    pub(crate) fn prefix(&self) -> &str {
        self.setting("prefix").unwrap_or("container")
    }

    /// Where it stands, for messages.
    pub(crate) fn place(&self) -> String {
        format!("line {} of {}", self.number, self.file.display())
    }
}

/// A line that includes others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Include {
    directory: PathBuf,
    pattern: String,
}

/// All of the stack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack {
    /// The first file.
    pub(crate) file: PathBuf,
    /// Its text; `None` where it does not exist.
    pub(crate) text: Option<String>,
    /// What is loaded, in order.
    pub(crate) lines: Vec<Line>,
    includes: Vec<Include>,
}

impl Stack {
    /// Reads it.
    ///
    /// # Errors
    /// A file of it is there and cannot be read.
    pub(crate) fn read(root: &Root, file: &Path) -> Result<Self, String> {
        let mut stack = Stack { file: file.to_owned(), ..Stack::default() };
        let mut waiting = vec![file.to_owned()];
        let mut n_files = 0;
        while let Some(file) = waiting.pop() {
            n_files += 1;
            if n_files > MAX_FILES {
                return Err(format!("{} includes more than {MAX_FILES} files", stack.file.display()));
            }
            let text = match root.read(&file) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
            };
            for include in stack.take(&file, &text) {
                let mut found = include.files(root);
                // The last of the list is read next.
                found.reverse();
                waiting.extend(found);
            }
            if file == stack.file {
                stack.text = Some(text);
            }
        }
        Ok(stack)
    }

    /// Takes the lines of a file, and gives what it includes.
    fn take(&mut self, file: &Path, text: &str) -> Vec<Include> {
        let mut includes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
            match (words.next(), words.next()) {
                (Some("include"), Some(pattern)) => {
                    let path = file.parent().unwrap_or(Path::new("/")).join(pattern);
                    if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
                        let pattern = name.to_string_lossy().into_owned();
                        includes.push(Include { directory: directory.to_owned(), pattern });
                    }
                }
                (Some(how @ ("required" | "optional")), Some(plugin)) => self.lines.push(Line {
                    file: file.to_owned(),
                    number: index + 1,
                    is_optional: how == "optional",
                    plugin: plugin.into(),
                    arguments: words.map(str::to_owned).collect(),
                }),
                _ => {}
            }
        }
        if file == self.file {
            self.includes.clone_from(&includes);
        }
        includes
    }

    /// A directory that the first file includes all of, or at least what is called `name`.
    pub(crate) fn directory_for(&self, root: &Root, name: &str) -> Option<&Path> {
        let fits =
            |include: &&Include| matches(&include.pattern, name) && root.has_directory(&include.directory);
        self.includes.iter().find(fits).map(|include| include.directory.as_path())
    }

    /// The lines that load a plugin of ours.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.is_ours())
    }
}

impl Include {
    fn files(&self, root: &Root) -> Vec<PathBuf> {
        let names = root.names(&self.directory).unwrap_or_default().into_iter();
        let mut names: Vec<String> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| matches(&self.pattern, name))
            .collect();
        names.sort();
        names.into_iter().map(|name| self.directory.join(name)).collect()
    }
}

/// Whether a name fits a pattern with `*` and `?`, as for shells; names that begin with a dot fit no star.
fn matches(pattern: &str, name: &str) -> bool {
    fn fits(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                fits(rest, name) || name.split_first().is_some_and(|(_, name)| fits(pattern, name))
            }
            (Some(('?', pattern)), Some((_, name))) => fits(pattern, name),
            (Some((one, pattern)), Some((other, name))) => one == other && fits(pattern, name),
            _ => false,
        }
    }
    let is_hidden = name.starts_with('.') && !pattern.starts_with('.');
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    !is_hidden && fits(&chars(pattern), &chars(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for (pattern, name, want) in [
            ("*.conf", "situla.conf", true),
            ("*.conf", "situla.conf.new", false),
            ("*.conf", ".conf", false),
            ("*", "situla.conf", true),
            ("s?tula.conf", "situla.conf", true),
            ("pyxis.conf", "situla.conf", false),
            ("situla.conf", "situla.conf", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn a_stack_is_read_as_slurm_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "etc/slurm/plugstack.conf",
            "# all\n\ninclude plugstack.conf.d/*.conf\ninclude /etc/more/x\nrequired last.so\n",
        );
        write(
            "etc/slurm/plugstack.conf.d/b.conf",
            "optional /p/spank_situla.so trampoline=/t prefix=box # no=1\n",
        );
        write("etc/slurm/plugstack.conf.d/a.conf", "required spank_pyxis.so\nnonsense here\n");
        write("etc/slurm/plugstack.conf.d/c.txt", "required never.so\n");
        let root = Root::tree(dir.path()).unwrap();
        let stack = Stack::read(&root, Path::new("/etc/slurm/plugstack.conf")).unwrap();
        let shown: Vec<String> = stack.lines.iter().map(|line| line.plugin.display().to_string()).collect();
        assert_eq!(shown, ["last.so", "spank_pyxis.so", "/p/spank_situla.so"]);
        let ours: Vec<&Line> = stack.ours().collect();
        let [line] = ours[..] else { panic!("{ours:?}") };
        assert_eq!(
            (line.prefix(), line.setting("trampoline"), line.setting("no")),
            ("box", Some("/t"), None)
        );
        assert_eq!(line.place(), "line 1 of /etc/slurm/plugstack.conf.d/b.conf");
        assert!(line.is_optional);
        assert_eq!(stack.directory_for(&root, "situla.conf"), Some(Path::new("/etc/slurm/plugstack.conf.d")));
        assert_eq!(stack.directory_for(&root, "situla.txt"), None);
        let none = Stack::read(&root, Path::new("/etc/none.conf")).unwrap();
        assert!(none.text.is_none() && none.lines.is_empty());
        write("etc/loop.conf", "include loop.conf\n");
        assert!(Stack::read(&root, Path::new("/etc/loop.conf")).unwrap_err().contains("more than"));
    }
}
