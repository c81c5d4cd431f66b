//! Options of running that Apptainer's command line and ours have in common.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use situla_bindings::{CustomHome, DeviceName, NoMount, parse_apptainer_bind, parse_apptainer_mount};
use situla_engine::{Action, Isolation, OverlayRequest, Personality, RootfsWay, RunRequest};

use crate::command_error::CommandError;
use crate::output::note;
use crate::resources;

/// Which control groups a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CgroupNamespace {
    /// Its own, as the root of all.
    Private,
    /// The host's.
    Host,
}

/// How a container is made and entered.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RunOptions {
    /// Bind a path of the host: SRC[:DST[:OPTIONS]], comma-separated; OPTIONS are ro and rw
    #[arg(short = 'B', long, value_name = "SPEC")]
    bind: Vec<String>,
    /// Bind with key=value pairs: type=bind,source=SRC,destination=DST[,ro]
    #[arg(long, value_name = "SPEC")]
    mount: Vec<String>,
    /// Show a device, with what it needs, by the name that CDI gives it: VENDOR/CLASS=NAME, comma-separated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    device: Vec<String>,
    /// Bring Slurm's tools (srun, squeue, ...) and what they need, so that programs inside can start steps
    #[arg(long)]
    slurm: bool,
    /// Working directory inside the container
    #[arg(long, visible_alias = "pwd", value_name = "DIR")]
    cwd: Option<String>,
    /// Home directory: SRC[:DST]
    #[arg(short = 'H', long, value_name = "SPEC")]
    home: Option<String>,
    /// Do not bind the home directory
    #[arg(long)]
    no_home: bool,
    /// Leave default binds out: proc, sys, dev, home, tmp, cwd, bind-paths or /etc/hosts, ...
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    no_mount: Vec<String>,
    /// Lay a directory over the image: DIR[:ro], comma-separated; without ro it takes what is written
    #[arg(short = 'o', long, value_name = "DIR[:ro]", value_delimiter = ',')]
    overlay: Vec<String>,
    /// Let the container be written to, in memory
    #[arg(long)]
    writable_tmpfs: bool,
    /// Give it a /dev, /tmp, /var/tmp and home of its own, and leave the working directory out
    #[arg(short = 'c', long)]
    contain: bool,
    /// The same, with --cleanenv, --pid and --ipc
    #[arg(short = 'C', long)]
    containall: bool,
    /// Be root inside, with your own rights outside
    #[arg(short = 'f', long, visible_alias = "root")]
    fakeroot: bool,
    /// With --fakeroot: have your subordinate ids inside, too (/etc/subuid, /etc/subgid, newuidmap)
    #[arg(long)]
    subids: bool,
    /// Give it processes of its own
    #[arg(short = 'p', long)]
    pid: bool,
    /// Give it System V IPC and message queues of its own
    #[arg(short = 'i', long)]
    ipc: bool,
    /// Give it a host name of its own
    #[arg(long)]
    uts: bool,
    /// Give it this host name (with --uts)
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Give it a network of its own; only with --network none
    #[arg(short = 'n', long)]
    net: bool,
    /// What that network is connected to; only none: nothing but loopback
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Let it see its own control group as the root of all (private), or the host's (host)
    #[arg(long, value_name = "WHICH")]
    cgroupns: Option<CgroupNamespace>,
    /// Restrict what it can do: seccomp:FILE lets it make only the system calls that a profile allows
    #[arg(long, value_name = "KIND:VALUE", value_delimiter = ',')]
    security: Vec<String>,
    /// Keep the host's variables outside
    #[arg(short = 'e', long)]
    cleanenv: bool,
    /// Set variables: NAME=VALUE, comma-separated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Take the values of variables letter by letter
    #[arg(long)]
    no_eval: bool,
    /// Run in a user namespace (always so; accepted for compatibility)
    #[arg(short = 'u', long)]
    userns: bool,
    /// Share one container among the tasks of a step (always so where it can be; for compatibility)
    #[arg(long, conflicts_with = "no_share")]
    sharens: bool,
    /// Give every task a container of its own
    #[arg(long)]
    no_share: bool,
    /// How an image file becomes the root: mount (by the kernel where root may, else by FUSE), kernel, fuse,
    /// extract (once on each node), or auto (mount, or extract where there is no /dev/fuse)
    #[arg(long, value_name = "WAY")]
    rootfs: Option<String>,
    /// Keep this descriptor open for the command; inside a step of Slurm others are closed (repeatable)
    #[arg(long, value_name = "N")]
    keep_fd: Vec<i32>,
    /// Record this run also outside of Slurm
    #[arg(long)]
    record: bool,
}

impl RunOptions {
    /// Makes a request of the options, completed by what the environment sets.
    pub(crate) fn request(
        &self,
        personality: Personality,
        image: String,
        action: Action,
        cwd: &Path,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<RunRequest, CommandError> {
        let bad = |error: situla_bindings::SyntaxError| CommandError::other(&error, "bad-option", None);
        let set = Environment { variable };
        let mut request = RunRequest::new(personality, image, action);
        // Binds of the environment are added to those of the command line, not replaced by them.
        for text in &self.bind {
            request.binds.extend(parse_apptainer_bind(text, cwd, "--bind").map_err(bad)?);
        }
        for (name, text) in set.all(&["BIND", "BINDPATH"]) {
            request.binds.extend(parse_apptainer_bind(&text, cwd, &name).map_err(bad)?);
        }
        for text in &self.mount {
            request.binds.extend(parse_apptainer_mount(text, cwd, "--mount").map_err(bad)?);
        }
        for (name, text) in set.all(&["MOUNT"]) {
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                request.binds.extend(parse_apptainer_mount(line, cwd, &name).map_err(bad)?);
            }
        }
        let set_devices = set.first(&["DEVICE"]);
        let devices = self.device.iter().map(String::as_str);
        request.devices = device_names(devices.chain(set_devices.iter().flat_map(|list| list.split(','))))?;
        request.slurm = self.slurm;
        request.workdir = self.cwd.clone().or_else(|| set.first(&["CWD", "TARGET_CWD", "PWD", "TARGET_PWD"]));
        if let Some(home) = self.home.clone().or_else(|| set.first(&["HOME"])) {
            request.defaults.home = Some(custom_home(&home, cwd)?);
            request.options.push("home".to_owned());
        }
        request.defaults.no_home = self.no_home || set.flag("NO_HOME");
        let contain_all = self.containall || set.flag("CONTAINALL");
        request.defaults.contain = contain_all || self.contain || set.flag("CONTAIN");
        request.root = self.fakeroot || set.flag("FAKEROOT");
        request.subids = self.subids;
        if self.subids && !request.root {
            let message = "--subids has no effect without --fakeroot";
            return Err(CommandError::usage(message, "add --fakeroot, or leave it out"));
        }
        let set_security = set.first(&["SECURITY"]);
        let security = self.security.iter().map(String::as_str);
        for text in security.chain(set_security.iter().flat_map(|list| list.split(','))) {
            if request.seccomp.replace(seccomp_file(text, cwd)?).is_some() {
                let message = "there can be one filter of system calls";
                return Err(CommandError::usage(message, "name one file with --security seccomp:FILE"));
            }
        }
        request.isolation = self.isolation(contain_all, &set)?;
        let mut no_mount = self.no_mount.clone();
        no_mount.extend(
            set.first(&["NO_MOUNT"])
                .iter()
                .flat_map(|list| list.split(','))
                .map(|word| word.trim().to_owned()),
        );
        for word in no_mount {
            match NoMount::parse(&word) {
                Some(what) => request.defaults.no_mount.push(what),
                // Apptainer only warns, so scripts carry such words.
                None => note(&format!("WARNING: unknown mount type {word} of --no-mount")),
            }
        }
        let set_overlays = set.all(&["OVERLAY", "OVERLAYIMAGE"]);
        let set_overlays = set_overlays.iter().flat_map(|(_, list)| list.split(','));
        let overlays = self.overlay.iter().map(String::as_str).chain(set_overlays);
        request.overlays = overlays.filter(|text| !text.is_empty()).map(|text| overlay(text, cwd)).collect();
        request.writable_tmpfs = self.writable_tmpfs || set.flag("WRITABLE_TMPFS");
        request.memory = request.writable_tmpfs.then(resources::memory_of_groups).flatten();
        request.clean_env = contain_all || self.cleanenv || set.flag("CLEANENV");
        request.no_eval = self.no_eval || set.flag("NO_EVAL");
        request.share = !(self.no_share || set.flag("NO_SHARE"));
        request.record = self.record;
        request.keep_fds.clone_from(&self.keep_fd);
        request.rootfs = self.rootfs.as_deref().map(rootfs_way).transpose()?;
        for text in &self.env {
            request.env.extend(assignments(text)?);
        }
        let named = [
            ("cleanenv", request.clean_env),
            ("device", !request.devices.is_empty()),
            ("slurm", request.slurm),
            ("no-home", request.defaults.no_home),
            ("no-mount", !request.defaults.no_mount.is_empty()),
            ("env", !request.env.is_empty()),
            ("userns", self.userns),
            ("contain", request.defaults.contain),
            ("containall", contain_all),
            ("fakeroot", request.root),
            ("subids", request.subids),
            ("pid", request.isolation.pid),
            ("ipc", request.isolation.ipc),
            ("uts", request.isolation.uts),
            ("hostname", request.isolation.hostname.is_some()),
            ("net", request.isolation.network),
            ("network", request.isolation.network),
            ("security", request.seccomp.is_some()),
            ("cgroupns", request.isolation.cgroup),
            ("overlay", !request.overlays.is_empty()),
            ("writable-tmpfs", request.writable_tmpfs),
            ("rootfs", request.rootfs.is_some()),
            ("keep-fd", !request.keep_fds.is_empty()),
        ];
        if self.sharens {
            let private = named
                .iter()
                .find(|(name, given)| *given && matches!(*name, "contain" | "pid" | "writable-tmpfs"));
            if let Some((name, _)) = private {
                let message =
                    format!("--{name} gives each task a container of its own, which --sharens forbids");
                return Err(CommandError::usage(message, "leave one of the two out"));
            }
        }
        request.options.extend(named.iter().filter(|(_, given)| *given).map(|(name, _)| (*name).to_owned()));
        Ok(request)
    }

    /// The options that count for a container that stands already.
    pub(crate) fn for_entering(
        cwd: Option<String>,
        cleanenv: bool,
        env: Vec<String>,
        no_eval: bool,
        keep_fd: Vec<i32>,
        record: bool,
    ) -> Self {
        RunOptions { cwd, cleanenv, env, no_eval, keep_fd, record, ..RunOptions::default() }
    }

    /// An option that was given and says how a container is made: useless for one that stands already.
    pub(crate) fn only_for_new(&self) -> Option<&'static str> {
        // Taken apart, so that a new option is decided about here.
        let RunOptions {
            bind,
            mount,
            device,
            slurm,
            home,
            no_home,
            no_mount,
            overlay,
            writable_tmpfs,
            contain,
            containall,
            fakeroot,
            subids,
            pid,
            ipc,
            uts,
            hostname,
            net,
            network,
            cgroupns,
            sharens,
            no_share,
            rootfs,
            // What counts for the command.
            cwd: _,
            security: _,
            keep_fd: _,
            cleanenv: _,
            env: _,
            no_eval: _,
            record: _,
            // Always so.
            userns: _,
        } = self;
        let given = [
            ("bind", !bind.is_empty()),
            ("mount", !mount.is_empty()),
            ("device", !device.is_empty()),
            ("slurm", *slurm),
            ("home", home.is_some()),
            ("no-home", *no_home),
            ("no-mount", !no_mount.is_empty()),
            ("overlay", !overlay.is_empty()),
            ("writable-tmpfs", *writable_tmpfs),
            ("contain", *contain),
            ("containall", *containall),
            ("fakeroot", *fakeroot),
            ("subids", *subids),
            ("pid", *pid),
            ("ipc", *ipc),
            ("uts", *uts),
            ("hostname", hostname.is_some()),
            ("net", *net),
            ("network", network.is_some()),
            ("cgroupns", cgroupns.is_some()),
            ("sharens", *sharens),
            ("no-share", *no_share),
            ("rootfs", rootfs.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }

    fn isolation(&self, contain_all: bool, set: &Environment<'_>) -> Result<Isolation, CommandError> {
        let hostname = self.hostname.clone().or_else(|| set.first(&["HOSTNAME"]));
        if let Some(name) = hostname.as_deref().filter(|name| !is_hostname(name)) {
            let message = format!("{name:?} is no host name");
            return Err(CommandError::usage(message, "use up to 64 letters, digits, hyphens and dots"));
        }
        let network = self.network.clone().or_else(|| set.first(&["NETWORK"]));
        match network.as_deref() {
            Some("none") => {}
            Some(name) => {
                let message = format!("the network {name} cannot be set up without root");
                return Err(CommandError::usage(message, "use --network none, or leave it out"));
            }
            None if self.net || set.flag("NET") || set.flag("UNSHARE_NET") => {
                let message = "--net alone asks for a network that cannot be set up without root";
                return Err(CommandError::usage(message, "use --net --network none, or leave it out"));
            }
            None => {}
        }
        Ok(Isolation {
            pid: contain_all || self.pid || set.flag("PID") || set.flag("UNSHARE_PID"),
            ipc: contain_all || self.ipc || set.flag("IPC") || set.flag("UNSHARE_IPC"),
            uts: self.uts || hostname.is_some() || set.flag("UTS") || set.flag("UNSHARE_UTS"),
            hostname,
            network: network.is_some(),
            cgroup: self.cgroupns == Some(CgroupNamespace::Private),
        })
    }
}

/// Reads names of devices.
pub(crate) fn device_names<'a>(
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<DeviceName>, CommandError> {
    let name = |text: &str| text.parse().map_err(|error| CommandError::other(&error, "bad-option", None));
    texts.into_iter().map(name).collect()
}

/// What sethostname(2) and everybody who reads it can take.
fn is_hostname(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['-', '.'])
}

/// Options in `APPTAINER_X`, else in `SINGULARITY_X`.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Environment<'_> {
    fn get(&self, key: &str) -> Option<(String, String)> {
        ["APPTAINER", "SINGULARITY"].iter().find_map(|prefix| {
            let name = format!("{prefix}_{key}");
            (self.variable)(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
        })
    }

    fn all(&self, keys: &[&str]) -> Vec<(String, String)> {
        keys.iter().filter_map(|key| self.get(key)).collect()
    }

    fn first(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.get(key)).map(|(_, value)| value)
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|(_, value)| matches!(value.as_str(), "1" | "true" | "TRUE" | "yes" | "y"))
    }
}

fn rootfs_way(text: &str) -> Result<RootfsWay, CommandError> {
    RootfsWay::parse(text).ok_or_else(|| {
        CommandError::usage(
            format!("{text:?} is no way to a root"),
            "use --rootfs mount, kernel, fuse, extract or auto",
        )
    })
}

fn overlay(text: &str, cwd: &Path) -> OverlayRequest {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    OverlayRequest { path: cwd.join(path), read_only }
}

/// What `--security` asks for, of which there is one kind.
fn seccomp_file(text: &str, cwd: &Path) -> Result<PathBuf, CommandError> {
    match text.split_once(':') {
        Some(("seccomp", file)) if !file.is_empty() => Ok(cwd.join(file)),
        _ => {
            let message = format!("--security {text} is not supported");
            Err(CommandError::usage(message, "use --security seccomp:FILE"))
        }
    }
}

fn custom_home(text: &str, cwd: &Path) -> Result<CustomHome, CommandError> {
    let (source, destination) = text.split_once(':').unwrap_or((text, text));
    let (source, destination) = (cwd.join(source), cwd.join(destination));
    if source.as_os_str().is_empty() || destination == Path::new("/") {
        return Err(CommandError::usage(format!("{text} is no home directory"), "use --home SRC[:DST]"));
    }
    Ok(CustomHome { source, destination })
}

/// `A=1,B=2`; a comma that no `NAME=` follows belongs to the value.
fn assignments(text: &str) -> Result<Vec<(String, String)>, CommandError> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in text.split(',') {
        let name_end = part.find('=').filter(|end| {
            let name = &part[..*end];
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
        match (name_end, found.last_mut()) {
            (Some(end), _) => found.push((part[..end].to_owned(), part[end + 1..].to_owned())),
            (None, Some((_, value))) => {
                value.push(',');
                value.push_str(part);
            }
            (None, None) => {
                return Err(CommandError::usage(format!("{text} sets no variable"), "use --env NAME=VALUE"));
            }
        }
    }
    Ok(found)
}

/// An image and what follows it: everything behind the image belongs to the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImageAndCommand {
    /// The image: a .sif or .sqsh file, a directory, or docker:// or oras://REGISTRY/NAME:TAG
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// An image and arguments for its own command.
///
/// They are one list for the parser: once it has the image it looks for options no more. With two, it would take
/// the first argument for an option of ours where we have one of that name.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImageAndArguments {
    /// The image (a .sif or .sqsh file, a directory, or docker:// or oras://REGISTRY/NAME:TAG), and arguments for its own
    /// command
    #[arg(value_names = ["IMAGE", "ARGUMENT"], trailing_var_arg = true, required = true, num_args = 1..)]
    words: Vec<OsString>,
}

impl ImageAndArguments {
    /// The image, and the arguments.
    pub(crate) fn split(self) -> (String, Vec<OsString>) {
        let mut words = self.words.into_iter();
        let image = words.next().unwrap_or_default();
        (image.to_string_lossy().into_owned(), words.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_names_only() {
        let pairs = |text: &str| assignments(text).unwrap();
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        assert_eq!(pairs("A=1,B=2"), own(&[("A", "1"), ("B", "2")]));
        assert_eq!(pairs("A=1,2,B=x=y"), own(&[("A", "1,2"), ("B", "x=y")]));
        assert_eq!(pairs("A="), own(&[("A", "")]));
        assert!(assignments("nothing").is_err());
    }

    #[test]
    fn host_names_are_plain() {
        for (text, good) in [
            ("node1", true),
            ("a-b.example", true),
            ("", false),
            ("-a", false),
            ("a b", false),
            ("a\nb", false),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(is_hostname(text), good, "{text:?}");
        }
    }

    #[test]
    fn an_instance_is_not_made_anew_by_who_enters() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: RunOptions,
        }
        for (words, refused) in [
            (&["--cgroupns", "host"][..], Some("cgroupns")),
            (&["--cgroupns", "private"], Some("cgroupns")),
            (&["--no-share"], Some("no-share")),
            (&["--sharens"], Some("sharens")),
            (&["--subids"], Some("subids")),
            (&["--rootfs", "auto"], Some("rootfs")),
            (&["--bind", "/a"], Some("bind")),
            (&["--cwd", "/", "-e", "--env", "A=1", "--no-eval", "--record", "--userns"], None),
            (&["--security", "seccomp:f", "--keep-fd", "3", "--keep-fd", "4"], None),
        ] {
            let line: Line = clap::Parser::parse_from(["x"].iter().chain(words));
            assert_eq!(line.options.only_for_new(), refused, "{words:?}");
        }
    }

    #[test]
    fn the_environment_adds_binds_and_sets_flags() {
        let variable = |name: &str| match name {
            "APPTAINER_BIND" => Some("/b".to_owned()),
            "SINGULARITY_BIND" => Some("/ignored".to_owned()),
            "SINGULARITY_CLEANENV" => Some("1".to_owned()),
            _ => None,
        };
        let options = RunOptions { bind: vec!["/a:/x:ro".to_owned()], ..RunOptions::default() };
        let request = options
            .request(Personality::Apptainer, "i".to_owned(), Action::Shell(None), Path::new("/"), &variable)
            .unwrap();
        let destinations: Vec<_> =
            request.binds.iter().map(|bind| bind.destination.to_string_lossy()).collect();
        assert_eq!(destinations, ["/x", "/b"]);
        assert!(request.binds[0].read_only && request.clean_env);
        assert_eq!(request.options, ["cleanenv"]);
    }
}
