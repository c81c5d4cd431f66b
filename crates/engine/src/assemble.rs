//! From a resolved image and the facts about the host to the frozen Plan.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use situla_bindings::{BindRequest, BindSource, KeepFd, Origin, Propagation, plan_devices};
use situla_plan::{
    AccountError, Binding, Hooks, HostGroup, HostUser, LinuxSpec, MAX_ACCOUNT_FILE, Mount, Namespace,
    NamespaceKind, Patch, PatchContent, Place, Plan, ProcessSpec, RootSpec, Rootfs, RootfsSource, Rung,
    SCHEMA, Share, ShareKey, Spec, Text, Upper,
};
use situla_policy::Verdict;

use crate::accelerators::{accelerator_nodes, openable};
use crate::descriptors::plan_descriptors;
use crate::devices;
use crate::environment::{self, Circumstances};
use crate::error::EngineError;
use crate::host::Host;
use crate::identity::{Identity, identity};
use crate::image_view::{Found, ImageView};
use crate::mounted_images::OpenedImage;
use crate::overlay::Layers;
use crate::places::{self, Judged};
use crate::planned_binds::numeric_step;
use crate::request::{Action, EntryPoint, Isolation, Personality, RunRequest};
use crate::resolve::{FileState, Resolved};
use crate::seccomp_profile;
use crate::slurm_client;

/// Everything that the Plan is made of.
pub(crate) struct Parts<'a> {
    pub(crate) request: &'a RunRequest,
    pub(crate) host: &'a Host,
    pub(crate) image: &'a Resolved,
    pub(crate) verdict: Verdict,
    /// Where paths led when the policy was asked about them.
    pub(crate) judged: Judged,
    pub(crate) binds: Vec<BindRequest>,
    /// Those that the binds mount, in their order.
    pub(crate) images: &'a [OpenedImage],
    pub(crate) layers: Layers,
    pub(crate) home: Option<PathBuf>,
    /// Those that MPI needs.
    pub(crate) pmi_fds: Vec<KeepFd>,
}

/// Freezes the Plan.
pub(crate) fn assemble(parts: Parts<'_>) -> Result<Plan, EngineError> {
    let Parts { request, host, image, verdict, judged, binds, images, layers, home, pmi_fds } = parts;
    let descriptors = plan_descriptors(request, host, pmi_fds, situla_runtime::is_inherited)?;
    let shown = image.path.display().to_string();
    let mut layout = Layout::new(&image.view, host, &shown, &judged, images);
    for bind in binds {
        if request.isolation.pid && bind.origin == Origin::Default && bind.destination == Path::new("/proc") {
            layout.kernel_tree(&bind, "proc")?;
        } else {
            layout.bind(bind)?;
        }
    }
    if let Some(hostname) = &request.isolation.hostname {
        layout.hostname(hostname)?;
    }
    let Identity { account, groups, user, maps: [uid_mappings, gid_mappings], capabilities } =
        identity(request, host)?;
    let seccomp = match &request.seccomp {
        Some(path) => Some(seccomp_profile::load(path, capabilities.as_ref())?),
        None => None,
    };
    layout.accounts(account, &request.slurm_client.accounts, groups, home.as_deref())?;
    layout.devices();
    layout.scripts(&request.slurm_client.scripts)?;
    let home_text = home.as_ref().and_then(|home| home.to_str());
    let destinations: Vec<String> =
        request.binds.iter().map(|bind| bind.destination.display().to_string()).collect();
    let mut environment = environment::build(
        &image.view,
        image.config.as_ref(),
        &Circumstances {
            request,
            host: &host.env,
            image_path: &image.path,
            home: home_text,
            bind_destinations: &destinations,
        },
    )?;
    let mut args = command(request, image, &shown)?;
    if let (Action::Shell(None), [shell, ..]) = (&request.action, &args[..]) {
        // What programs that start a shell shall start is the image's, as with Apptainer, not the host's.
        let entry = format!("SHELL={}", shell.display());
        environment.entries.retain(|other| !other.as_bytes().starts_with(b"SHELL="));
        environment.entries.push(Text::from(OsString::from(entry)));
    }
    if let Some(script) = environment.shell.filter(|_| !args.is_empty()) {
        let prefix = ["/bin/sh", "-c", &script, "sh"].map(OsString::from);
        args = prefix.into_iter().chain(args).collect();
    }
    let command_paths = match &layers.overlay {
        None => command_paths(&args, &environment.entries, &layout)?,
        // The command may be in a layer above the image.
        Some(_) => Vec::new(),
    };
    let (cwd, cwd_fallbacks) = working_directory(request, host, image, home_text);
    let Layout { mounts, patches, mut bindings, mut identities, mut places, .. } = layout;
    identities.extend(&layers.identities);
    places.extend(layers.places);
    places.extend(image.place());
    bindings.extend(layers.directories.iter().map(|(path, read_only)| Binding {
        destination: "/".to_owned(),
        source: path.display().to_string(),
        reason: format!("--overlay: {}", if *read_only { "shown" } else { "takes what is written" }),
    }));
    bindings.extend(descriptors.keep.iter().map(|KeepFd { fd, reason }| Binding {
        destination: format!("fd:{fd}"),
        source: format!("fd:{fd}"),
        reason: reason.clone(),
    }));
    let (rung, reason, path) = match &image.source {
        RootfsSource::Squashfs { path, .. } => {
            (Rung::Fuse, "an image file, and no privileged mount is set up at this site", path.clone())
        }
        RootfsSource::Directory { path } => (Rung::Directory, "a directory", path.clone()),
    };
    let spec = Spec {
        oci_version: "1.2.0".to_owned(),
        process: ProcessSpec {
            terminal: false,
            user,
            args: args.into_iter().map(Text::from).collect(),
            env: environment.entries,
            cwd,
            no_new_privileges: true,
            capabilities,
            rlimits: Vec::new(),
        },
        root: RootSpec {
            path,
            readonly: match &request.container {
                Some(container) => !container.writable,
                None => layers.overlay.as_ref().is_none_or(|overlay| overlay.upper.is_none()),
            },
        },
        hostname: request.isolation.hostname.clone(),
        mounts,
        linux: LinuxSpec {
            namespaces: namespaces(&request.isolation),
            uid_mappings,
            gid_mappings,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            seccomp,
        },
        hooks: Some(&request.device_edits.hooks).filter(|hooks| **hooks != Hooks::default()).cloned(),
        annotations: request.annotations.clone(),
    };
    let rootfs = Rootfs {
        source: image.source.clone(),
        rung,
        reason: reason.to_owned(),
        patches,
        overlay: layers.overlay,
    };
    let share = share(request, host, &rootfs, &spec, (image.state, &identities));
    if let (Some(hooks), false) = (&spec.hooks, matches!(share, Share::Nobody { .. })) {
        devices::expect_shareable(hooks)?;
    }
    Ok(Plan {
        schema: SCHEMA,
        image: image.identity.clone(),
        verdict,
        allocation: host.allocation.clone(),
        rootfs,
        share,
        bindings,
        places,
        keep_fds: descriptors.keep.iter().map(|keep| keep.fd).collect(),
        inherit_fds: descriptors.inherit,
        command_paths,
        cwd_fallbacks,
        spec,
    })
}

/// The namespaces that a container gets.
fn namespaces(isolation: &Isolation) -> Vec<Namespace> {
    let asked = [
        (NamespaceKind::User, true),
        (NamespaceKind::Mount, true),
        (NamespaceKind::Ipc, isolation.ipc),
        (NamespaceKind::Uts, isolation.uts || isolation.hostname.is_some()),
        (NamespaceKind::Network, isolation.network),
        (NamespaceKind::Pid, isolation.pid),
        (NamespaceKind::Cgroup, isolation.cgroup),
    ];
    asked.into_iter().filter(|(_, asked)| *asked).map(|(kind, _)| Namespace { kind }).collect()
}

/// What an image that Apptainer has made runs.
const RUNSCRIPT: &str = "/.singularity.d/runscript";

/// What the image's own command line is, or the user's.
fn command(request: &RunRequest, image: &Resolved, shown: &str) -> Result<Vec<OsString>, EngineError> {
    let exists = |path: &str| -> Result<bool, EngineError> {
        let located = image.view.locate(path).map_err(EngineError::look_into(shown))?;
        Ok(located.found == Some(Found::File))
    };
    let strings = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let of_enroot = || vec!["/bin/sh".into(), environment::ENROOT_SCRIPT.into()];
    Ok(match &request.action {
        Action::Exec(command) if request.entrypoint != EntryPoint::No => {
            let entrypoint = match &image.config {
                Some(config) => strings(&config.entrypoint),
                None if exists(RUNSCRIPT)? => vec![RUNSCRIPT.into()],
                None if environment::is_of_enroot(&image.view, shown)? => of_enroot(),
                None if request.entrypoint == EntryPoint::IfAny => Vec::new(),
                None => {
                    return Err(EngineError::BadOption {
                        message: format!("{shown} says nothing of an entry point"),
                        remedy: "leave --container-entrypoint out, or name the program".to_owned(),
                    });
                }
            };
            entrypoint.into_iter().chain(command.clone()).collect()
        }
        Action::Exec(command) => command.clone(),
        Action::Start(arguments) => {
            const SCRIPT: &str = "/.singularity.d/startscript";
            let script = exists(SCRIPT)?.then(|| OsString::from(SCRIPT));
            script.into_iter().flat_map(|script| std::iter::once(script).chain(arguments.clone())).collect()
        }
        Action::Shell(Some(shell)) => vec![shell.clone()],
        Action::Shell(None) if exists("/bin/bash")? => vec!["/bin/bash".into(), "--norc".into()],
        Action::Shell(None) => vec!["/bin/sh".into()],
        Action::Run(arguments) => {
            let own = image.config.as_ref().map(|config| (strings(&config.entrypoint), strings(&config.cmd)));
            let (mut line, default_arguments) = match own {
                Some((entrypoint, cmd)) if !(entrypoint.is_empty() && cmd.is_empty()) => (entrypoint, cmd),
                _ if exists(RUNSCRIPT)? => (vec![RUNSCRIPT.into()], Vec::new()),
                // Apptainer does not know it.
                _ if request.personality != Personality::Apptainer
                    && environment::is_of_enroot(&image.view, shown)? =>
                {
                    (of_enroot(), Vec::new())
                }
                _ => (vec!["/bin/sh".into()], Vec::new()),
            };
            line.extend(if arguments.is_empty() { default_arguments } else { arguments.clone() });
            line
        }
    })
}

/// Where the command may be: the directories of the search path in which the image has it, and those
/// that a mount may have changed. Asking the open image is far cheaper than failing to execute it
/// through the kernel and our server, once for every directory before the right one.
fn command_paths(args: &[OsString], env: &[Text], layout: &Layout<'_>) -> Result<Vec<Text>, EngineError> {
    let Some(name) = args.first().and_then(|name| name.to_str()).filter(|name| !name.contains('/')) else {
        return Ok(Vec::new());
    };
    let path = env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let Some(path) = path.and_then(|path| std::str::from_utf8(path).ok()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for directory in path.split(':') {
        if !directory.starts_with('/') {
            // Relative to the working directory, which only the running container knows.
            return Ok(Vec::new());
        }
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        let keep = match layout.view.locate(&candidate) {
            Ok(located) => {
                let changed = layout.mounted.iter().any(|mount| Path::new(&located.path).starts_with(mount));
                let patched = layout.patches.iter().any(|patch| patch.path == located.path);
                changed || patched || located.found == Some(Found::File)
            }
            // A path that leads nowhere, or a directory that cannot be read: exec will tell.
            Err(_) => true,
        };
        if keep {
            found.push(candidate.into());
        }
    }
    Ok(found)
}

/// The working directory, and where to go if it does not exist inside.
fn working_directory(
    request: &RunRequest,
    host: &Host,
    image: &Resolved,
    home: Option<&str>,
) -> (Text, Vec<Text>) {
    if let Some(named) = &request.workdir {
        return (named.clone().into(), Vec::new());
    }
    if request.personality == Personality::Task {
        let own = image.config.as_ref().map(|config| config.working_dir.as_str()).unwrap_or_default();
        let own = if own.starts_with('/') { own } else { "/" };
        return (own.into(), vec!["/".into()]);
    }
    let fallbacks: Vec<Text> = home.into_iter().chain(["/"]).map(Text::from).collect();
    if request.defaults.contain {
        // The caller's directory is not visible, or is another one inside.
        return (home.unwrap_or("/").into(), fallbacks);
    }
    (host.cwd.clone().into_os_string().into(), fallbacks)
}

/// Decides with whom the container is shared.
fn share(
    request: &RunRequest,
    host: &Host,
    rootfs: &Rootfs,
    spec: &Spec,
    identities: (FileState, &[(u64, u64)]),
) -> Share {
    let nobody = |reason: &str| Share::Nobody { reason: reason.to_owned() };
    if let Some(instance) = &request.instance {
        return Share::Instance { key: ShareKey(instance.key.clone()) };
    }
    if !request.share {
        return nobody("switched off");
    }
    if request.isolation.pid {
        return nobody("processes of its own (--pid) belong to one task");
    }
    if request.defaults.contain {
        return nobody("files of its own (--contain) belong to one task");
    }
    // Tasks that Slurm sends here have one container, and what one writes the others see, as with pyxis.
    let into_memory =
        rootfs.overlay.as_ref().is_some_and(|overlay| matches!(overlay.upper, Some(Upper::Tmpfs { .. })));
    if into_memory && request.personality != Personality::Task {
        return nobody("what is written into memory (--writable-tmpfs) belongs to one task");
    }
    let Some(allocation) = &host.allocation else { return nobody("not in a step of Slurm") };
    let Some((job, step)) = numeric_step(host) else { return nobody("not in a numeric step of Slurm") };
    let (Some(local_tasks), Some(node)) = (allocation.tasks_on_node, &allocation.node) else {
        return nobody("the number of tasks on this node is not known");
    };
    if local_tasks < 2 {
        return nobody("the only task of its step on this node");
    }
    // Arguments, environment and working directory belong to each rank; the rest must be the same.
    // The cgroup tells the components of a heterogeneous step apart, which have one number.
    let place = (node, &host.step_cgroup);
    // How large a tmpfs may be depends on the moment at which a task looks.
    let overlay = rootfs.overlay.as_ref().map(|overlay| {
        let written = match &overlay.upper {
            Some(Upper::Directory { path }) => Some(Some(path)),
            Some(Upper::Tmpfs { .. }) => Some(None),
            None => None,
        };
        (&overlay.lowers, written)
    });
    // Whoever comes first writes them into the files of a container that stays, and the next one finds them there.
    let patches = if request.container.is_some() { &[] } else { rootfs.patches.as_slice() };
    let root = (&rootfs.source, patches, &overlay);
    let process = (&spec.process.user, &spec.process.capabilities);
    let made = (&spec.mounts, &spec.linux, &spec.hostname, &spec.hooks);
    let shared = (situla_runtime::MEETING_PROTOCOL, root, made, process, place, identities);
    let bytes = serde_json::to_vec(&shared).unwrap_or_default();
    // Nothing rests on its being hard to forge: whoever has another user id is turned away, and a user who makes two of his
    // containers meet deceives himself alone. A cryptographic hash would ask the processor what it can do, which takes some percent of joining where a
    // hypervisor answers. Another release of this program may count differently or speak otherwise; then its tasks have a container of their own.
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    let hash = hasher.finish();
    Share::Step {
        key: ShareKey(format!("{}/{job}.{step}/{hash:016x}", host.user.uid)),
        local_tasks,
        cgroup: host.step_cgroup.clone(),
    }
}

/// Collects mounts and what the image must show for them.
struct Layout<'a> {
    view: &'a ImageView,
    host: &'a Host,
    shown: &'a str,
    judged: &'a Judged,
    /// Those that no bind has been made of yet.
    images: std::slice::Iter<'a, OpenedImage>,
    mounts: Vec<Mount>,
    patches: Vec<Patch>,
    bindings: Vec<Binding>,
    /// Canonical destinations of the mounts so far.
    mounted: BTreeSet<PathBuf>,
    /// Which files and directories are bound: paths alone do not say, as they can be made anew.
    identities: Vec<(u64, u64)>,
    /// The same of those that were judged.
    places: Vec<Place>,
}

impl<'a> Layout<'a> {
    fn new(
        view: &'a ImageView,
        host: &'a Host,
        shown: &'a str,
        judged: &'a Judged,
        images: &'a [OpenedImage],
    ) -> Self {
        Layout {
            view,
            host,
            shown,
            judged,
            images: images.iter(),
            mounts: Vec::new(),
            patches: Vec::new(),
            bindings: Vec::new(),
            mounted: BTreeSet::new(),
            identities: Vec::new(),
            places: Vec::new(),
        }
    }

    fn bind(&mut self, bind: BindRequest) -> Result<(), EngineError> {
        let user_asked = matches!(bind.origin, Origin::User(_) | Origin::Device);
        let (source, kind, is_directory) = match &bind.source {
            BindSource::Host(path) => match self.look_at(path)? {
                Ok((place, is_directory)) => {
                    self.identities.push((place.dev, place.ino));
                    if self.judged.contains_key(path) {
                        self.places.push(place);
                    }
                    (path.clone().into_os_string(), "bind", is_directory)
                }
                Err(_) if bind.optional || !user_asked => return Ok(()),
                Err(source) => {
                    let (path, host) = (path.clone(), self.host.hostname.clone());
                    return Err(match source.kind() {
                        ErrorKind::NotFound | ErrorKind::NotADirectory => {
                            EngineError::BindSourceMissing { path, host }
                        }
                        _ => EngineError::Unreachable { path, host, source },
                    });
                }
            },
            BindSource::Tmpfs { .. } => (OsString::from("tmpfs"), "tmpfs", true),
            BindSource::Image(image) => (image.path.clone().into_os_string(), "squashfs", true),
            BindSource::MinimalDev => return self.minimal_dev(&bind),
        };
        let asked = bind.destination.to_string_lossy().into_owned();
        let destination = self.mount_point(&bind, &asked, is_directory)?;
        let mut options: Vec<String> = Vec::new();
        match &bind.source {
            BindSource::Tmpfs { size } => {
                let for_all =
                    [Path::new("/tmp"), Path::new("/var/tmp")].contains(&bind.destination.as_path());
                options.push(if for_all { "mode=1777" } else { "mode=0755" }.to_owned());
                options.extend(size.map(|size| format!("size={size}")));
            }
            BindSource::Image(image) => {
                if let Some(OpenedImage { offset, state: (dev, ino, size, modified, _), .. }) =
                    self.images.next()
                {
                    // A file may be written anew where it is.
                    self.identities.extend([(*dev, *ino), (*size, modified.unsigned_abs())]);
                    options.extend((*offset > 0).then(|| format!("offset={offset}")));
                }
                // As mount(8) writes it.
                options
                    .extend((image.directory != "/").then(|| format!("X-mount.subdir={}", image.directory)));
            }
            _ => options.push(if bind.recursive { "rbind" } else { "bind" }.to_owned()),
        }
        options.push("nosuid".to_owned());
        // Devices of the host stay devices, wherever they are shown; nothing else may bring any.
        if !Path::new(&source).starts_with("/dev") {
            options.push("nodev".to_owned());
        }
        if bind.read_only {
            options.push("ro".to_owned());
        }
        if bind.no_exec {
            options.push("noexec".to_owned());
        }
        if bind.propagation == Propagation::Private {
            options.push("rprivate".to_owned());
        }
        self.bindings.push(Binding {
            destination: destination.display().to_string(),
            source: source.to_string_lossy().into_owned(),
            reason: match &bind.origin {
                // The parser's own reason names the option already.
                Origin::User(option) if !bind.reason.starts_with(option.as_str()) => {
                    format!("{option}: {}", bind.reason)
                }
                _ => bind.reason.clone(),
            },
        });
        self.mounts.push(Mount {
            destination: destination.clone().into_os_string().into(),
            source: source.into(),
            kind: kind.to_owned(),
            options,
        });
        self.mounted.insert(destination);
        Ok(())
    }

    /// Looks at the source of a bind: which it is, and whether a directory. Fails where it is not what the
    /// policy was asked about.
    fn look_at(&self, path: &Path) -> Result<std::io::Result<(Place, bool)>, EngineError> {
        let Some(judged) = self.judged.get(path) else {
            // One call where nobody has judged anything: there are many such binds at every start.
            return Ok(std::fs::metadata(path).map(|metadata| {
                let place = Place {
                    path: path.as_os_str().to_owned().into(),
                    dev: metadata.dev(),
                    ino: metadata.ino(),
                };
                (place, metadata.is_dir())
            }));
        };
        match places::find(path) {
            Ok(found) if found.path != *judged => Err(places::exchanged(path)),
            found => Ok(found.map(|found| (found.place, found.is_directory))),
        }
    }

    /// A tree of the kernel's that shows the container's own namespaces.
    fn kernel_tree(&mut self, bind: &BindRequest, kind: &str) -> Result<(), EngineError> {
        let asked = bind.destination.to_string_lossy().into_owned();
        let destination = self.mount_point(bind, &asked, true)?;
        self.bindings.push(Binding {
            destination: destination.display().to_string(),
            source: kind.to_owned(),
            reason: "--pid: the processes inside".to_owned(),
        });
        self.mounts.push(Mount {
            destination: destination.clone().into_os_string().into(),
            source: kind.into(),
            kind: kind.to_owned(),
            options: ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec(),
        });
        self.mounted.insert(destination);
        Ok(())
    }

    /// Shows the host name where programs look for it at start.
    fn hostname(&mut self, hostname: &str) -> Result<(), EngineError> {
        let located = self.view.locate("/etc/hostname").map_err(EngineError::look_into(self.shown))?;
        let content = PatchContent::File { content: format!("{hostname}\n").into(), mode: 0o644 };
        if located.found != Some(Found::Directory) {
            self.add_patch(located.path, content, "--hostname".to_owned());
        }
        Ok(())
    }

    /// A `/dev` of the container's own: standard devices of the host, terminals and shared memory of its own.
    fn minimal_dev(&mut self, bind: &BindRequest) -> Result<(), EngineError> {
        let dev = self.mount_point(bind, "/dev", true)?;
        let mut add = |name: &str, source: &str, kind: &str, options: &[&str]| {
            let destination = if name.is_empty() { dev.clone() } else { dev.join(name) };
            self.bindings.push(Binding {
                destination: destination.display().to_string(),
                source: source.to_owned(),
                reason: bind.reason.clone(),
            });
            self.mounts.push(Mount {
                destination: destination.into_os_string().into(),
                source: source.into(),
                kind: kind.to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            });
        };
        add("", "tmpfs", "tmpfs", &["mode=0755", "nosuid", "noexec"]);
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let source = Path::new("/dev").join(name);
            if source.exists() {
                add(name, &source.to_string_lossy(), "bind", &["bind", "nosuid", "noexec"]);
            }
        }
        add("pts", "devpts", "devpts", &["mode=0620", "ptmxmode=0666"]);
        add("shm", "tmpfs", "tmpfs", &["mode=1777", "nosuid", "nodev", "noexec"]);
        self.mounted.insert(dev);
        Ok(())
    }

    /// Finds where a mount goes, and makes the image show a mount point there.
    fn mount_point(
        &mut self,
        bind: &BindRequest,
        asked: &str,
        is_directory: bool,
    ) -> Result<PathBuf, EngineError> {
        let wrong = |what: &str| EngineError::BadOption {
            message: format!("{} cannot be mounted at {asked}: {what}", bind_name(bind)),
            remedy: "choose another destination".to_owned(),
        };
        let look = |path: &str| self.view.locate(path).map_err(EngineError::look_into(self.shown));
        let located = if bind.no_follow {
            let (parent, name) = asked.rsplit_once('/').unwrap_or(("", asked));
            let parent = look(if parent.is_empty() { "/" } else { parent })?;
            let path = format!("{}/{name}", parent.path.trim_end_matches('/'));
            let followed = look(asked)?;
            // A link is hidden by a file of its own; what it leads to stays as it is.
            let found = followed.found.filter(|_| followed.path == path);
            crate::image_view::Located { path, found }
        } else {
            look(asked)?
        };
        let destination = PathBuf::from(&located.path);
        if located.path == "/" {
            return Err(wrong("that is the root"));
        }
        // Below another mount the host's files decide; the image cannot show anything there.
        let below_mount =
            self.mounted.iter().any(|mount| destination.starts_with(mount) && destination != *mount);
        match located.found {
            Some(Found::Directory) if !is_directory => {
                Err(wrong("that is a directory in the image, and this is a file"))
            }
            Some(Found::File | Found::Symlink(_)) if is_directory => {
                Err(wrong("that is a file in the image, and this is a directory"))
            }
            Some(_) => Ok(destination),
            None if below_mount => Ok(destination),
            None => {
                let content = if is_directory {
                    PatchContent::Directory
                } else {
                    PatchContent::File { content: Text::default(), mode: 0o644 }
                };
                self.add_patch(located.path, content, format!("mount point of {}", bind_name(bind)));
                Ok(destination)
            }
        }
    }

    fn add_patch(&mut self, path: String, content: PatchContent, reason: String) {
        if !self.patches.iter().any(|patch| patch.path == path) {
            self.patches.push(Patch { path, content, reason });
        }
    }

    /// Puts the user into the image's account files, where it has any.
    fn accounts(
        &mut self,
        mut user: HostUser,
        others: &[HostUser],
        groups: Vec<HostGroup>,
        home: Option<&Path>,
    ) -> Result<(), EngineError> {
        if let Some(home) = home.and_then(Path::to_str) {
            home.clone_into(&mut user.home);
        }
        let groups = PatchContent::Group { user: user.name.clone(), groups };
        let passwd = PatchContent::Passwd { user, others: others.to_vec() };
        self.account_file("/etc/passwd", passwd, "the user's name and home")?;
        self.account_file("/etc/group", groups, "the user's groups")
    }

    /// Has one account file completed. That is done inside, when somebody looks at it; what could
    /// fail then is found out now.
    fn account_file(&mut self, path: &str, content: PatchContent, reason: &str) -> Result<(), EngineError> {
        let located = self.view.locate(path).map_err(EngineError::look_into(self.shown))?;
        let size = self.view.file_size(&located.path).map_err(EngineError::look_into(self.shown))?;
        let Some(size) = size else { return Ok(()) };
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        if length > MAX_ACCOUNT_FILE {
            let (file, limit) = (path.to_owned(), MAX_ACCOUNT_FILE);
            return Err(AccountError::TooLong { file, length, limit }.into());
        }
        content.complete(b"").transpose()?;
        self.add_patch(located.path, content, reason.to_owned());
        Ok(())
    }

    /// Shows scripts that start programs of the host's.
    fn scripts(&mut self, scripts: &[(String, String)]) -> Result<(), EngineError> {
        slurm_client::expect_shell(scripts, self.view, self.shown)?;
        for (path, content) in scripts {
            let content = PatchContent::File { content: content.clone().into(), mode: 0o755 };
            self.add_patch(path.clone(), content, "Slurm's tools".to_owned());
        }
        Ok(())
    }

    /// Notes which accelerators of the host's `/dev` the step can open.
    fn devices(&mut self) {
        if self.host.allocation.as_ref().is_none_or(|allocation| allocation.gpus.is_none()) {
            return;
        }
        let plan = plan_devices(&accelerator_nodes(), &|path| openable(path));
        for node in plan.nodes {
            let path = node.path.display().to_string();
            self.bindings.push(Binding { destination: path.clone(), source: path, reason: node.reason });
        }
    }
}

fn bind_name(bind: &BindRequest) -> String {
    match &bind.source {
        BindSource::Host(path) => path.display().to_string(),
        BindSource::Tmpfs { .. } => "a tmpfs".to_owned(),
        BindSource::Image(image) => image.path.display().to_string(),
        BindSource::MinimalDev => "a /dev".to_owned(),
    }
}
