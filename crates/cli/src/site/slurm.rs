//! What Slurm says of itself on this machine: its version, and where its plugin stack is.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use situla_slurm::SlurmConf;

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
    /// The plugin stack, as Slurm's programs here read it.
    pub(crate) stack: PathBuf,
    /// Where plugins are that a line names without a directory.
    pub(crate) plugin_directories: Vec<PathBuf>,
    /// What keeps track of a step's processes.
    pub(crate) proctrack: Option<String>,
    /// Set where this machine has the controller's configuration and none of its own.
    pub(crate) copy: Option<Copy>,
    /// Set where this is the controller, and it hands its configuration to machines without.
    pub(crate) hands_out: bool,
}

/// The controller's configuration on a machine that has none of its own (slurm.conf(5), "configless"): what is changed in it
/// is lost when it is fetched again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Where its files are; nothing where each program fetches them for itself.
    pub(crate) directory: Option<PathBuf>,
    /// The host of the controller.
    pub(crate) controller: String,
    /// The plugin stack there.
    pub(crate) stack: PathBuf,
    /// The local configuration that Slurm's commands take all the same, where there is one: then only slurmd and steps have
    /// the controller's.
    pub(crate) beside: Option<PathBuf>,
}

impl Copy {
    /// The file to change, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{} on {}", self.stack.display(), self.controller)
    }

    /// Whether a file is one of those that are fetched.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.directory.as_ref().is_some_and(|directory| path.starts_with(directory))
    }
}

/// Where Slurm has its files if nobody says anything else.
const CONFIGURATION: &str = "/etc/slurm/slurm.conf";

/// Where slurmd, or sackd, puts a link to what it has fetched.
const FETCHED: &str = "/run/slurm/conf";

/// How the directory is called that slurmd fetches it to.
const FETCHED_BY_SLURMD: &str = "conf-cache";

/// Where its daemons are, which is not in the search path of everybody.
const USUAL_PLACES: [&str; 5] =
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/opt/slurm/sbin"];

/// The controller may be away, and its client waits for it.
const PATIENCE: Duration = Duration::from_secs(15);

/// What decides where the configuration is.
struct Surroundings {
    /// `SLURM_CONF`
    named: Option<PathBuf>,
    /// Whether `SLURM_CONF_SERVER` is set, or slurmd was told of a server.
    has_server: bool,
    /// This host's name.
    host: String,
}

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
        let variable = |name: &str| std::env::var_os(name).filter(|_| root.is_machine());
        let surroundings = Surroundings {
            named: variable("SLURM_CONF").filter(|path| !path.is_empty()).map(PathBuf::from),
            has_server: variable("SLURM_CONF_SERVER").is_some() || (root.is_machine() && slurmd_has_server()),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        let found = Slurm::understand(root, told.as_deref(), &surroundings);
        Slurm { versions, stack: stack.map_or(found.stack, Path::to_owned), ..found }
    }

    /// What follows from what the controller says and from the files that are there.
    fn understand(root: &Root, told: Option<&str>, surroundings: &Surroundings) -> Self {
        let told_value = |key: &str| told.and_then(|text| shown(text, key));
        let fetched = Path::new(FETCHED).join("slurm.conf");
        let local = surroundings.named.clone().or_else(|| {
            // In this order Slurm's programs look.
            [PathBuf::from(CONFIGURATION), fetched.clone()].into_iter().find(|path| root.has(path))
        });
        let conf = local.as_ref().and_then(|file| {
            let text = |path: &Path| Some(String::from_utf8_lossy(&root.read(path).ok()?).into_owned());
            let beside = file.parent()?;
            Some(SlurmConf::parse(&text(file)?, |name| text(&beside.join(name))))
        });
        let value = |key: &str| {
            let own = conf.as_ref().and_then(|conf| conf.value(key)).map(str::to_owned);
            told_value(key).or(own)
        };
        let source = match (told, &local, &conf) {
            (Some(_), ..) => Some("scontrol show config".to_owned()),
            (None, Some(file), Some(_)) => Some(file.display().to_string()),
            _ => None,
        };
        let is_fetched = |file: &Path| {
            let real = |path: &Path| root.real(path).ok();
            let directory = file.parent().unwrap_or(Path::new("/"));
            directory.ends_with(FETCHED_BY_SLURMD)
                || directory.starts_with(FETCHED)
                || real(directory).is_some_and(|real_one| real(Path::new(FETCHED)) == Some(real_one))
        };
        let hosts: Vec<String> = (0..MAX_CONTROLLERS)
            .map_while(|index| told_value(&format!("SlurmctldHost[{index}]")))
            .chain(conf.as_ref().and_then(|conf| conf.value("SlurmctldHost")).map(str::to_owned))
            .map(|host| host.split('(').next().unwrap_or_default().to_owned())
            .collect();
        let copy = match &local {
            Some(file) if is_fetched(file) => Some((file.parent().map(Path::to_owned), None)),
            Some(file) if surroundings.has_server => {
                let directory = root.has(&fetched).then(|| PathBuf::from(FETCHED));
                Some((directory, Some(file.clone())))
            }
            None if surroundings.has_server => Some((None, None)),
            _ => None,
        };
        let copy = copy.map(|(directory, beside)| Copy {
            directory,
            controller: hosts.first().cloned().unwrap_or_else(|| "the controller".to_owned()),
            stack: told_value("SLURM_CONF")
                .map_or_else(|| CONFIGURATION.into(), PathBuf::from)
                .with_file_name("plugstack.conf"),
            beside,
        });
        // Where the configuration names a stack, that is a file of each machine's own.
        let named_stack = value("PlugStackConfig").map(PathBuf::from).filter(|path| path.is_absolute());
        let beside = local.as_deref().unwrap_or(Path::new(CONFIGURATION)).with_file_name("plugstack.conf");
        let copy = copy.filter(|copy| named_stack.is_none() || copy.beside.is_some());
        let is_here = |host: &String| {
            let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
            short(host) == short(&surroundings.host)
        };
        let parameters = value("SlurmctldParameters").unwrap_or_default();
        let hands_out =
            parameters.split(',').any(|word| word.trim().eq_ignore_ascii_case("enable_configless"));
        Slurm {
            versions: Vec::new(),
            source,
            hands_out: hands_out && copy.is_none() && named_stack.is_none() && hosts.iter().any(is_here),
            stack: named_stack.unwrap_or(beside),
            plugin_directories: value("PluginDir")
                .unwrap_or_default()
                .split(':')
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
            proctrack: value("ProctrackType").map(|kind| kind.trim_start_matches("proctrack/").to_owned()),
            copy,
        }
    }

    /// The version that the plugin must be for.
    pub(crate) fn version(&self) -> Option<Version> {
        self.versions.first().map(|(_, version)| *version)
    }
}

/// Controllers of a cluster; more than two are rare.
const MAX_CONTROLLERS: usize = 16;

/// The value of a key in what `scontrol show config` prints: the rest of its line.
fn shown(text: &str, key: &str) -> Option<String> {
    let mut found = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    });
    found.next().filter(|value| !value.is_empty() && value != "(null)")
}

/// Whether a slurmd of this machine was told to fetch its configuration. One with other mounts has another `/etc`.
fn slurmd_has_server() -> bool {
    let mounts = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let own = mounts(Path::new("/proc/self"));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|entry| {
        // Anybody can call a program slurmd.
        if entry.metadata().ok()?.uid() != 0 {
            return None;
        }
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        // Others' mounts are root's to see.
        let is_here = mounts(&entry.path()).is_none_or(|mounts| Some(mounts) == own);
        is_here.then_some(line)
    });
    lines.into_iter().any(|line| tells_server(&line))
}

/// Whether a command line is that of a slurmd with a server.
fn tells_server(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split('\0');
    let is_slurmd =
        words.next().is_some_and(|program| Path::new(program).file_name() == Some("slurmd".as_ref()));
    is_slurmd && words.any(|word| word == "--conf-server" || word.starts_with("--conf-server="))
}

/// What a program says, if it is there and succeeds in time.
fn asked(program: &str, words: &[&str]) -> Option<String> {
    answer(program, words)?.map(|said| said.text).ok()
}

/// What a program said that succeeded.
pub(super) struct Said {
    /// On its standard output.
    pub(super) text: String,
    /// On its standard error.
    pub(super) errors: String,
}

/// What a program says, if it is there: if it fails, or does not end in time, the first line of its errors.
pub(super) fn answer(program: &str, words: &[&str]) -> Option<Result<Said, String>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(USUAL_PLACES.map(PathBuf::from));
    let found = places.map(|place| place.join(program)).find(|path| path.is_absolute() && path.is_file())?;
    let mut child = Command::new::<&OsStr>(found.as_ref())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) => break status,
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Some(Err(format!("{program} does not end")));
            }
        }
    };
    // Less than a pipe holds, or it would not have ended.
    let (mut text, mut errors) = (String::new(), String::new());
    child.stderr.take()?.read_to_string(&mut errors).ok()?;
    if !status.success() {
        return Some(Err(errors.lines().next().unwrap_or_default().to_owned()));
    }
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    Some(Ok(Said { text, errors }))
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
    fn settings_are_found_in_what_the_controller_says() {
        let text = "Configuration data as of today\nPlugStackConfig         = /a/plugstack.conf\nPluginDir = (null)\n\
                    SlurmctldHost[0]        = c(10.0.0.1)\nSlurmdUser = root(0)\nEmpty = \n";
        assert_eq!(shown(text, "PlugStackConfig").as_deref(), Some("/a/plugstack.conf"));
        assert_eq!(shown(text, "SlurmctldHost[0]").as_deref(), Some("c(10.0.0.1)"));
        for key in ["PluginDir", "Plugin", "Empty"] {
            assert_eq!(shown(text, key), None, "{key}");
        }
    }

    #[test]
    fn a_slurmd_with_a_server_is_known_by_its_command_line() {
        for (line, want) in [
            (&b"slurmd\0-D\0--conf-server\0c:6817\0"[..], true),
            (b"/usr/sbin/slurmd\0--conf-server=c\0", true),
            (b"/usr/sbin/slurmd\0-D\0", false),
            (b"sh\0-c\0slurmd --conf-server c\0", false),
            (b"", false),
        ] {
            assert_eq!(tells_server(line), want, "{}", String::from_utf8_lossy(line));
        }
    }

    /// A machine with these files, where the variable names one of them and the controller says this.
    fn on_a_machine(
        files: &[(&str, &str)],
        named: Option<&str>,
        has_server: bool,
        told: Option<&str>,
    ) -> Slurm {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(target) = text.strip_prefix("-> ") {
                std::os::unix::fs::symlink(target, path).unwrap();
            } else {
                std::fs::write(path, text).unwrap();
            }
        }
        let root = Root::tree(dir.path()).unwrap();
        let surroundings =
            Surroundings { named: named.map(PathBuf::from), has_server, host: "here.example".to_owned() };
        Slurm::understand(&root, told, &surroundings)
    }

    const TOLD: &str = "PlugStackConfig = (null)\nSlurmctldHost[0] = ctl(10.0.0.1)\nSLURM_CONF = /srv/slurm/slurm.conf\n\
                        SlurmctldParameters = enable_configless\n";
    const CACHED: [(&str, &str); 2] = [
        ("var/spool/conf-cache/slurm.conf", "SlurmctldHost=ctl\n"),
        ("run/slurm/conf", "-> /var/spool/conf-cache"),
    ];

    #[test]
    fn a_machine_with_the_controllers_configuration_is_known() {
        let fetched = "/run/slurm/conf/plugstack.conf";
        let own = "/etc/slurm/plugstack.conf";
        let local = ("etc/slurm/slurm.conf", "ClusterName=a\n");
        let cached = CACHED.as_slice();
        for (files, named, has_server, told, stack, directory) in [
            // As slurmd and as sackd leave it, and as a step is told.
            (cached, None, true, Some(TOLD), fetched, Some("/run/slurm/conf")),
            (cached, None, false, None, fetched, Some("/run/slurm/conf")),
            (
                cached,
                Some("/var/spool/conf-cache/slurm.conf"),
                false,
                Some(TOLD),
                "/var/spool/conf-cache/plugstack.conf",
                Some("/var/spool/conf-cache"),
            ),
            // Each program fetches it for itself.
            (&[], None, true, Some(TOLD), own, None),
            // slurmd has the controller's, and commands take the one that is there.
            (&[CACHED[0], CACHED[1], local], None, true, Some(TOLD), own, Some("/run/slurm/conf")),
        ] {
            let slurm = on_a_machine(files, named, has_server, told);
            assert_eq!(slurm.stack, Path::new(stack), "{files:?} {named:?}");
            let copy = slurm.copy.unwrap_or_else(|| panic!("{files:?} {named:?}: no copy"));
            assert_eq!(copy.directory.as_deref(), directory.map(Path::new));
            assert_eq!(copy.controller, "ctl");
            let there = if told.is_some() { "/srv/slurm/plugstack.conf" } else { own };
            assert_eq!(copy.place(), format!("{there} on ctl"));
            assert_eq!(copy.beside.is_some(), files.contains(&local));
            assert!(!slurm.hands_out);
        }
    }

    #[test]
    fn a_machine_with_a_configuration_of_its_own_is_none_of_these() {
        let local = [("etc/slurm/slurm.conf", "ClusterName=a\n"), ("x/slurm.conf", "ClusterName=a\n")];
        for (files, named, told, stack) in [
            (&local[..], None, None, "/etc/slurm/plugstack.conf"),
            (&local, Some("/x/slurm.conf"), Some(TOLD), "/x/plugstack.conf"),
            (&local, None, Some("PlugStackConfig = /y/p.conf\n"), "/y/p.conf"),
            (&[("etc/slurm/slurm.conf", "PlugStackConfig=\"/z/p.conf\"\n")], None, None, "/z/p.conf"),
            // The controller's configuration, which names a file of this machine's.
            (&CACHED, None, Some("PlugStackConfig = /y/p.conf\n"), "/y/p.conf"),
            (&[], None, None, "/etc/slurm/plugstack.conf"),
        ] {
            let slurm = on_a_machine(files, named, false, told);
            assert_eq!((slurm.stack.as_path(), &slurm.copy), (Path::new(stack), &None), "{files:?} {told:?}");
        }
    }

    #[test]
    fn a_controller_that_hands_its_configuration_out_is_known() {
        let conf = "SlurmctldHost=here(10.0.0.1)\nSlurmctldParameters=a,enable_configless\n";
        for (text, want) in [
            (conf.to_owned(), true),
            (conf.replace("here", "ctl"), false),
            (conf.replace("enable_configless", "b"), false),
            (format!("{conf}PlugStackConfig=/etc/p.conf\n"), false),
        ] {
            let files = [("etc/slurm/slurm.conf", text.as_str())];
            assert_eq!(on_a_machine(&files, None, false, None).hands_out, want, "{text}");
        }
    }
}
