//! What programs in a container need to talk to Slurm: its tools, and what these need of the host.
//!
//! Tools are the host's, and so are the loader and the libraries that they run with, in a directory of their own: the
//! image may be of another distribution, or have a C library of another kind. What Slurm's configuration names by
//! path is shown at that path: the configuration itself, plugins, munge's socket. All of it is shown as it is on the
//! host, where every user can read it, and gives nobody more rights than he has.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use situla_bindings::{BindRequest, BindSource, Origin, Propagation};
use situla_plan::HostUser;
use situla_slurm::SlurmConf;

use crate::error::EngineError;
use crate::host::Host;
use crate::image_view::{Found, ImageView};
use crate::request::RunRequest;
use crate::site::untrusted;
use crate::slurm_conf;

/// Where all this is inside.
const PLACE: &str = "/.situla/slurm";

/// Where the tools are inside, for the search path.
pub(crate) const TOOLS_PATH: &str = "/.situla/slurm/bin";

/// Programs that are brought, as far as the host has them; without the first there is no use in it.
const TOOLS: [&str; 11] = [
    "srun", "sbatch", "salloc", "scancel", "squeue", "sinfo", "scontrol", "sacct", "sstat", "sattach",
    "sbcast",
];

/// Loaders of the machines that we build for.
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];

/// Directories of the host that are never shown whole.
const SHARED: [&str; 8] = ["/", "/etc", "/run", "/var/run", "/usr", "/var", "/tmp", "/var/tmp"];

/// Files of one directory, and directories of libraries.
const MAX_FILES: usize = 256;
const MAX_LIBRARIES: usize = 16;

/// What is to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlurmClient {
    pub(crate) binds: Vec<BindRequest>,
    /// Scripts that start the tools: path inside and content.
    pub(crate) scripts: Vec<(String, String)>,
    /// Accounts that the configuration names.
    pub(crate) accounts: Vec<HostUser>,
    /// The configuration file.
    pub(crate) configuration: PathBuf,
}

/// Finds out what `request` needs of the host; `None` where it does not ask for Slurm's tools.
pub(crate) fn plan(request: &RunRequest, host: &Host) -> Result<Option<SlurmClient>, EngineError> {
    if !request.slurm {
        return Ok(None);
    }
    if request.root {
        // munge tells the user's id, and the tools would tell another.
        return Err(failure(
            "for root of a container, who is another user to Slurm",
            "leave --fakeroot or --container-remap-root out",
        ));
    }
    if request.isolation.network {
        return Err(failure(
            "without the host's network",
            "leave --network none or --container-unshare=net out",
        ));
    }
    let missing = |what: &str| {
        failure(
            &format!("on {}: there is no {what}", host.hostname),
            "ask the administrator, or leave slurm out",
        )
    };
    let loader = LOADERS.iter().find_map(|path| Path::new(path).canonicalize().ok());
    let loader = loader.ok_or_else(|| missing("loader of the GNU C library"))?;
    let configuration = configuration_file(host).ok_or_else(|| missing("slurm.conf"))?;
    let conf = slurm_conf::load(&configuration).ok_or_else(|| missing("slurm.conf that can be read"))?;
    let tools = tools(host);
    if tools.first().is_none_or(|(name, _)| *name != TOOLS[0]) {
        return Err(missing("srun"));
    }
    let mut libraries = library_directories(&loader);
    let plugins = plugin_directories(&conf, &libraries, &tools);
    if plugins.is_empty() {
        return Err(missing("directory of Slurm's plugins"));
    }
    let (socket, what) = socket(&conf);
    if !socket.exists() {
        return Err(missing(&format!("{what} at {}", socket.display())));
    }
    let mut client = SlurmClient { configuration: configuration.clone(), ..SlurmClient::default() };
    let mut shown = BTreeSet::new();
    let mut show = |source: &Path, destination: &Path| {
        if shown.insert(destination.to_owned()) {
            client.binds.push(bind(source, destination));
        }
    };
    let at = |part: &str| Path::new(PLACE).join(part);
    let mut search: Vec<String> = Vec::new();
    libraries.truncate(MAX_LIBRARIES);
    for (number, directory) in libraries.iter().enumerate() {
        let inside = at(&format!("lib/{number}"));
        show(directory, &inside);
        search.push(inside.display().to_string());
    }
    for directory in &plugins {
        show(directory, directory);
        search.push(directory.display().to_string());
    }
    for (name, path) in &tools {
        show(path, &at("tools").join(name));
    }
    let stack = configuration.with_file_name("plugstack.conf");
    for file in [&configuration, &stack, &socket].into_iter().filter(|file| file.exists()) {
        match file.parent() {
            // Others have much else there, which is the image's own inside.
            Some(directory) if SHARED.iter().any(|shared| directory == Path::new(shared)) => {
                show(file, file);
            }
            Some(directory) => show(directory, directory),
            None => {}
        }
    }
    for path in of_plugstack(&conf, &configuration) {
        show(&path, &path);
    }
    // A configuration of somebody else's leads where he likes: then the policy judges these like mounts of the user's.
    if !is_roots(&configuration) {
        for bind in &mut client.binds {
            bind.origin = Origin::User("SLURM_CONF".to_owned());
        }
    }
    let loader = format!("{}/{}", search[0], loader.file_name().unwrap_or_default().to_string_lossy());
    client.scripts = tools
        .iter()
        .map(|(name, _)| {
            let (path, search) = (format!("{TOOLS_PATH}/{name}"), search.join(":"));
            let start = format!("{loader} --inhibit-cache --library-path {search} {PLACE}/tools/{name}");
            (path, format!("#!/bin/sh\nexec {start} \"$@\"\n"))
        })
        .collect();
    for key in ["SlurmUser", "SlurmdUser"] {
        if let Some(name) = conf.value(key).filter(|name| *name != "root")
            && let Some(account) = crate::host::account_of(name)
            && !client.accounts.contains(&account)
        {
            client.accounts.push(account);
        }
    }
    Ok(Some(client))
}

/// Fails where `scripts` could not run in an image.
pub(crate) fn expect_shell(
    scripts: &[(String, String)],
    view: &ImageView,
    shown: &str,
) -> Result<(), EngineError> {
    let Some((first, _)) = scripts.first() else { return Ok(()) };
    let shell = view.locate("/bin/sh").map_err(EngineError::look_into(shown))?;
    if shell.found == Some(Found::File) {
        return Ok(());
    }
    Err(EngineError::BadOption {
        message: format!("{first} needs /bin/sh, which {shown} does not have"),
        remedy: "use an image with a shell, or leave slurm out".to_owned(),
    })
}

/// Whether nobody but root can have written a file, or put it there.
fn is_roots(file: &Path) -> bool {
    let Ok(real) = file.canonicalize() else { return false };
    real.ancestors().enumerate().all(|(index, part)| {
        std::fs::metadata(part).is_ok_and(|found| untrusted(found.uid(), found.mode(), index > 0).is_none())
    })
}

fn failure(why: &str, remedy: &str) -> EngineError {
    EngineError::BadOption {
        message: format!("Slurm's tools cannot be used in the container {why}"),
        remedy: remedy.to_owned(),
    }
}

fn bind(source: &Path, destination: &Path) -> BindRequest {
    BindRequest {
        source: BindSource::Host(source.to_owned()),
        destination: destination.to_owned(),
        read_only: true,
        recursive: true,
        no_exec: false,
        propagation: Propagation::default(),
        optional: false,
        no_follow: false,
        origin: Origin::Device,
        reason: "Slurm's tools".to_owned(),
    }
}

fn configuration_file(host: &Host) -> Option<PathBuf> {
    let named = host.variable("SLURM_CONF").map(PathBuf::from).filter(|path| path.is_absolute());
    slurm_conf::places(named.as_deref()).find(|path| path.is_file())
}

fn tools(host: &Host) -> Vec<(&'static str, PathBuf)> {
    let path = host.variable("PATH").unwrap_or_default();
    let directories: Vec<&str> =
        path.split(':').chain(["/usr/bin", "/usr/local/bin", "/opt/slurm/bin"]).collect();
    let find = |name: &&'static str| {
        let mut places = directories.iter().filter(|directory| directory.starts_with('/'));
        let found = places.find_map(|directory| Path::new(directory).join(name).canonicalize().ok())?;
        is_program(&found).then_some((*name, found))
    };
    TOOLS.iter().filter_map(find).collect()
}

/// Tells whether a file is a program that the loader can run.
fn is_program(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// Where the host has its libraries; the loader's directory first.
fn library_directories(loader: &Path) -> Vec<PathBuf> {
    let configured = std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().take(MAX_FILES);
    let configured = configured.filter_map(|entry| slurm_conf::text(&entry.path()));
    let lines: Vec<String> =
        configured.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let usual = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from);
    let named = lines.iter().map(|line| line.trim()).filter(|line| line.starts_with('/')).map(PathBuf::from);
    let mut found: Vec<PathBuf> = Vec::new();
    for path in loader.parent().map(Path::to_owned).into_iter().chain(named).chain(usual) {
        let Ok(path) = path.canonicalize() else { continue };
        // With libraries in directories of their own this has none, but much else.
        let is_none = path == Path::new("/usr/lib") && !found.is_empty();
        if path.is_dir() && !found.contains(&path) && !is_none {
            found.push(path);
        }
    }
    found
}

fn plugin_directories(conf: &SlurmConf, libraries: &[PathBuf], tools: &[(&str, PathBuf)]) -> Vec<PathBuf> {
    let named: Vec<PathBuf> =
        conf.value("PluginDir").into_iter().flat_map(|list| list.split(':')).map(PathBuf::from).collect();
    let beside = tools.iter().filter_map(|(_, path)| Some(path.parent()?.parent()?.to_owned()));
    let beside = beside.flat_map(|prefix| [prefix.join("lib"), prefix.join("lib64")]);
    let usual = libraries
        .iter()
        .cloned()
        .chain(beside)
        .flat_map(|directory| [directory.join("slurm-wlm"), directory.join("slurm")]);
    let mut found: Vec<PathBuf> = Vec::new();
    for path in named.into_iter().chain(usual) {
        let has_plugins = ["auth_munge.so", "auth_slurm.so"].iter().any(|name| path.join(name).exists());
        if path.is_absolute() && has_plugins && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// The socket by which users prove to Slurm who they are, and whose it is.
fn socket(conf: &SlurmConf) -> (PathBuf, &'static str) {
    if conf.value("AuthType") == Some("auth/slurm") {
        // Of slurmd or sackd; of a controller; since 26.05 one for each cluster comes first.
        let own = conf.cluster_name().map(|name| format!("/run/slurm-{name}/sack.socket"));
        let usual = ["/run/slurm/sack.socket", "/run/slurmctld/sack.socket"].map(str::to_owned);
        let mut places = own.into_iter().chain(usual.clone()).map(PathBuf::from);
        let found = places.find(|path| path.exists());
        return (found.unwrap_or_else(|| PathBuf::from(&usual[0])), "socket of auth/slurm");
    }
    let named = conf.value("AuthInfo").into_iter().flat_map(|list| list.split(','));
    let named = named.filter_map(|word| word.trim().strip_prefix("socket=")).map(PathBuf::from).next();
    let usual = ["/run/munge/munge.socket.2", "/var/run/munge/munge.socket.2"].map(PathBuf::from);
    let first = usual.iter().find(|path| path.exists()).unwrap_or(&usual[0]).clone();
    (named.unwrap_or(first), "socket of munge")
}

/// Files that the stack of plugins of srun names: plugins, the trampoline of ours, further configuration.
fn of_plugstack(conf: &SlurmConf, configuration: &Path) -> Vec<PathBuf> {
    let usual = configuration.with_file_name("plugstack.conf");
    let mut pending = vec![conf.value("PlugStackConfig").map_or(usual, PathBuf::from)];
    let (mut done, mut found) = (BTreeSet::new(), BTreeSet::new());
    while let Some(file) = pending.pop() {
        let Some(stack) = slurm_conf::text(&file) else { continue };
        if done.len() == MAX_FILES || !done.insert(file.clone()) {
            continue;
        }
        if file.parent() != configuration.parent() {
            found.insert(file.clone());
        }
        for line in stack.lines() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            match words[..] {
                ["include", pattern, ..] => pending.extend(matching(pattern, &file)),
                [_, plugin, ref arguments @ ..] => {
                    let ours = arguments.iter().filter_map(|word| word.strip_prefix("trampoline="));
                    let paths = [plugin].into_iter().chain(ours).map(PathBuf::from);
                    found.extend(paths.filter(|path| path.is_absolute() && path.is_file()));
                }
                _ => {}
            }
        }
    }
    found.into_iter().collect()
}

/// The files that an include names; `*` may stand in the last part of it.
fn matching(pattern: &str, from: &Path) -> Vec<PathBuf> {
    let path = from.parent().unwrap_or(Path::new("/")).join(pattern);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else { return vec![path] };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().take(MAX_FILES);
    let fits = |name: &str| {
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    entries.filter(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> SlurmConf {
        SlurmConf::parse(text, |_| None)
    }

    #[test]
    fn a_slurm_without_munge_has_its_plugins_too() {
        let directory = tempfile::tempdir().unwrap();
        for (name, is_one) in [("auth_none.so", false), ("auth_slurm.so", true)] {
            std::fs::write(directory.path().join(name), "").unwrap();
            let conf = conf(&format!("PluginDir={}\n", directory.path().display()));
            let found = plugin_directories(&conf, &[], &[]);
            assert_eq!(found == [directory.path()], is_one, "{name}: {found:?}");
        }
    }

    #[test]
    fn sockets_are_where_the_configuration_says() {
        for (text, place) in [
            ("AuthInfo=ttl=3,socket=/s\nAuthType=auth/munge\n", "/s"),
            ("AuthInfo=socket=/old\nauthinfo = \"socket=/s\"\n", "/s"),
            ("AuthType=auth/slurm", "/run/slurm/sack.socket"),
        ] {
            assert_eq!(socket(&conf(text)).0, Path::new(place), "{text}");
        }
    }

    #[test]
    fn what_the_stack_of_plugins_names_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["etc", "etc/stack.d", "lib"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        for name in ["lib/a.so", "lib/situla", "lib/b.so"] {
            std::fs::write(at(name), "").unwrap();
        }
        let (a, b, program) = (at("lib/a.so"), at("lib/b.so"), at("lib/situla"));
        std::fs::write(at("etc/plugstack.conf"), "# comment\ninclude stack.d/*.conf\noptional relative.so\n")
            .unwrap();
        let line = format!("required {} trampoline={}\n", a.display(), program.display());
        std::fs::write(at("etc/stack.d/one.conf"), line).unwrap();
        std::fs::write(at("etc/stack.d/two.conf"), format!("optional {} x=/etc\n", b.display())).unwrap();
        std::fs::write(at("etc/stack.d/three.old"), "required /bin/sh\n").unwrap();
        let found = of_plugstack(&conf(""), &at("etc/slurm.conf"));
        let wanted = [at("etc/stack.d/one.conf"), at("etc/stack.d/two.conf"), a, b, program];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let host = Host::gather(vec![("HOME".into(), "/nonexistent".into())]).unwrap();
        let mut request = RunRequest::new(
            crate::request::Personality::Native,
            "/image",
            crate::request::Action::Exec(Vec::new()),
        );
        assert_eq!(plan(&request, &host).unwrap(), None);
        request.slurm = true;
        request.root = true;
        assert!(plan(&request, &host).unwrap_err().to_string().contains("another user to Slurm"));
        request.root = false;
        request.isolation.network = true;
        assert!(plan(&request, &host).unwrap_err().to_string().contains("host's network"));
    }
}
