//! What Slurm says of itself on this machine: its version, and where its plugin stack is.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::root::Root;

/// A release of Slurm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) micro: u32,
}

impl Version {
    /// `22.05.8`, `23.11`, or such a word at the end of what a program of Slurm says of itself: `slurm-wlm 22.05.8`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let word = text.lines().next()?.split_whitespace().next_back()?;
        let word = word.split('-').next()?;
        let mut parts = word.split('.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            part[..digits].parse::<u32>().ok()
        });
        let (major, minor) = (parts.next()??, parts.next()??);
        Some(Version { major, minor, micro: parts.next().flatten().unwrap_or(0) })
    }

    /// Whether Slurm of one takes a plugin for the other: it looks at the first two numbers.
    pub(crate) fn fits(self, other: Self) -> bool {
        (self.major, self.minor) == (other.major, other.minor)
    }

    /// As releases are called, and `SITULA_SLURM_VERSION` takes it.
    pub(crate) fn release(self) -> String {
        format!("{}.{:02}", self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}.{}", self.major, self.minor, self.micro)
    }
}

/// Slurm on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slurm {
    /// Who told a version, and which. slurmd first, since it is slurmd that loads the plugin for tasks.
    pub(crate) versions: Vec<(String, Version)>,
    /// Where the rest is from; nothing where there was no configuration to be had.
    pub(crate) source: Option<String>,
    /// The plugin stack, as `plugstack.conf` or `slurm.conf` names it.
    pub(crate) stack: PathBuf,
    /// Where plugins are that a line names without a directory.
    pub(crate) plugin_directories: Vec<PathBuf>,
    /// What keeps track of a step's processes.
    pub(crate) proctrack: Option<String>,
}

/// Where Slurm has its files if nobody says anything else.
const CONFIGURATION: &str = "/etc/slurm/slurm.conf";

/// Where its daemons are, which is not in the search path of everybody.
const USUAL_PLACES: [&str; 5] =
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/opt/slurm/sbin"];

/// The controller may be away, and its client waits for it.
const PATIENCE: Duration = Duration::from_secs(15);

impl Slurm {
    /// Asks Slurm, or believes who knows better.
    pub(crate) fn gather(root: &Root, version: Option<Version>, stack: Option<&Path>) -> Self {
        let versions = match version {
            Some(version) => vec![("Slurm".to_owned(), version)],
            None => [("slurmd", "-V"), ("scontrol", "--version")]
                .into_iter()
                .filter_map(|(program, word)| {
                    Some((program.to_owned(), Version::parse(&asked(program, &[word])?)?))
                })
                .collect(),
        };
        // The controller knows of this machine, and nothing of a tree that will be another one.
        let told = root.is_machine().then(|| asked("scontrol", &["show", "config"])).flatten();
        let (source, text) = match told {
            Some(text) => (Some("scontrol show config".to_owned()), text),
            None => {
                let named = std::env::var_os("SLURM_CONF").filter(|_| root.is_machine()).map(PathBuf::from);
                let file = named.unwrap_or_else(|| CONFIGURATION.into());
                let text = std::fs::read_to_string(root.place(&file)).ok();
                (text.is_some().then(|| file.display().to_string()), text.unwrap_or_default())
            }
        };
        let value = |key: &str| value(&text, key);
        let beside = Path::new(source.as_deref().unwrap_or(CONFIGURATION)).parent().map(Path::to_owned);
        let beside = beside.filter(|path| path.is_absolute()).unwrap_or_else(|| "/etc/slurm".into());
        let of_slurm = value("PlugStackConfig").map(PathBuf::from);
        let stack = stack.map(Path::to_owned).or(of_slurm).unwrap_or_else(|| beside.join("plugstack.conf"));
        let directories = value("PluginDir").unwrap_or_default();
        Slurm {
            versions,
            source,
            stack,
            plugin_directories: directories
                .split(':')
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
            proctrack: value("ProctrackType").map(|kind| kind.trim_start_matches("proctrack/").to_owned()),
        }
    }

    /// The version that the plugin must be for.
    pub(crate) fn version(&self) -> Option<Version> {
        self.versions.first().map(|(_, version)| *version)
    }
}

/// The value of a key, in `slurm.conf` or in what `scontrol show config` prints.
fn value(text: &str, key: &str) -> Option<String> {
    let mut found = text.lines().filter_map(|line| {
        let (name, value) = line.split('#').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case(key).then(|| value.trim().to_owned())
    });
    found.next_back().filter(|value| !value.is_empty() && value != "(null)")
}

/// What a program says, if it is there and succeeds in time.
fn asked(program: &str, words: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(USUAL_PLACES.map(PathBuf::from));
    let found = places.map(|place| place.join(program)).find(|path| path.is_absolute() && path.is_file())?;
    let mut child = Command::new::<&OsStr>(found.as_ref())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) if status.success() => break,
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    // Less than a pipe holds, or it would not have ended.
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_understood_however_slurm_writes_them() {
        for (text, want) in [
            ("slurm-wlm 22.05.8\n", Some("22.05.8")),
            ("slurm 23.11.4", Some("23.11.4")),
            ("23.11", Some("23.11.0")),
            ("slurm 24.05.0-0rc1", Some("24.05.0")),
            ("slurm 26.05.3-1", Some("26.05.3")),
            ("slurm 25.11.0rc2", Some("25.11.0")),
            ("slurm", None),
            ("22", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text).map(|version| version.to_string()).as_deref(), want, "{text}");
        }
        let version = |text| Version::parse(text).unwrap();
        assert!(version("22.05.8").fits(version("22.05")));
        assert!(!version("22.05.8").fits(version("22.11.8")) && !version("23.05").fits(version("22.05")));
        assert_eq!(version("23.2.1").release(), "23.02");
    }

    #[test]
    fn settings_are_found_in_both_forms() {
        let shown = "Configuration data as of today\nPlugStackConfig         = /a/plugstack.conf\nPluginDir = (null)\n";
        assert_eq!(value(shown, "PlugStackConfig").as_deref(), Some("/a/plugstack.conf"));
        assert_eq!(value(shown, "PluginDir"), None);
        let file = "#PluginDir=/no\nplugindir=/usr/lib/slurm # where\nPluginDir=/last\nX\n";
        assert_eq!(value(file, "PluginDir").as_deref(), Some("/last"));
        assert_eq!(value(file, "Plugin"), None);
    }
}
