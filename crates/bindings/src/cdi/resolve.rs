//! From the names of devices to what is bound, set and run for them.

use std::path::{Path, PathBuf};

use situla_plan::{Hook, Hooks, Text};

use crate::bind::{BindRequest, BindSource, Origin, Propagation};
use crate::cdi::error::CdiError;
use crate::cdi::name::DeviceName;
use crate::cdi::spec::{CdiSpec, Edits, FileMount, NamedHook};
use crate::syntax::inside_of_path;

/// How many names of devices a message lists.
const SHOWN: usize = 20;

/// A specification, and where it was found.
#[derive(Debug, Clone)]
pub struct SpecFile {
    /// The file.
    pub path: PathBuf,
    /// The place of its directory in the search path: a later one counts more.
    pub rank: usize,
    /// What it says.
    pub spec: CdiSpec,
}

/// What devices ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceEdits {
    /// Device nodes and files, in no particular order.
    pub binds: Vec<BindRequest>,
    /// Variables; later ones win.
    pub env: Vec<(String, String)>,
    /// Programs to run at stages of the container's life.
    pub hooks: Hooks,
}

/// Finds out what `names` ask for, each once. What all devices of a specification ask for comes once as well.
///
/// # Errors
/// Nobody knows a device, two know it, or it asks for what cannot be done.
pub fn resolve(names: &[DeviceName], specs: &[SpecFile]) -> Result<DeviceEdits, CdiError> {
    let mut edits = DeviceEdits::default();
    let mut done: Vec<&DeviceName> = Vec::new();
    let mut files: Vec<&Path> = Vec::new();
    for name in names {
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let (file, own) = find(name, specs)?;
        let first_of_file = !files.contains(&file.path.as_path());
        for from in first_of_file.then_some(&file.spec.common).into_iter().chain([own]) {
            add(from, name, file, &mut edits)?;
        }
        files.push(&file.path);
    }
    Ok(edits)
}

fn find<'a>(name: &DeviceName, specs: &'a [SpecFile]) -> Result<(&'a SpecFile, &'a Edits), CdiError> {
    let mut found: Option<(&SpecFile, &Edits)> = None;
    for file in specs.iter().filter(|file| file.spec.kind == name.kind) {
        let Some(edits) = file.spec.devices.get(&name.device) else { continue };
        match found {
            Some((other, _)) if other.rank > file.rank => {}
            Some((other, _)) if other.rank == file.rank => {
                let (first, second) = (other.path.clone(), file.path.clone());
                return Err(CdiError::Ambiguous { device: name.to_string(), first, second });
            }
            _ => found = Some((file, edits)),
        }
    }
    found.ok_or_else(|| {
        let all = specs
            .iter()
            .flat_map(|file| file.spec.devices.keys().map(|device| format!("{}={device}", file.spec.kind)));
        let all: Vec<String> = all.collect();
        let known = match all.len() {
            0 => "there are none".to_owned(),
            n if n > SHOWN => format!("there are {}, and {} more", all[..SHOWN].join(", "), n - SHOWN),
            _ => format!("there are {}", all.join(", ")),
        };
        CdiError::Unknown { device: name.to_string(), known }
    })
}

/// Adds what `from`, of `file`, asks for.
fn add(from: &Edits, name: &DeviceName, file: &SpecFile, edits: &mut DeviceEdits) -> Result<(), CdiError> {
    let unsupported =
        |what: String| CdiError::Unsupported { device: name.to_string(), what, file: file.path.clone() };
    if let Some(key) = from.others.keys().next() {
        return Err(unsupported(key.clone()));
    }
    let reason = || format!("device {name}");
    for entry in &from.env {
        let pair = entry.split_once('=').filter(|(name, _)| !name.is_empty() && !entry.contains('\0'));
        let (name, value) = pair.ok_or_else(|| unsupported(format!("the variable {entry:?}")))?;
        edits.env.push((name.to_owned(), value.to_owned()));
    }
    let place =
        |path: &str| inside_of_path(Path::new(path)).map_err(|_| unsupported(format!("a place {path:?}")));
    let host = |path: &str| {
        let path = Path::new(path);
        if path.is_absolute() { Ok(path.to_owned()) } else { Err(unsupported(format!("the path {path:?}"))) }
    };
    for node in &from.device_nodes {
        let source = if node.host_path.is_empty() { &node.path } else { &node.host_path };
        let source = BindSource::Host(host(source)?);
        let bind = BindRequest::new(source, place(&node.path)?, Origin::Device, reason());
        push_once(&mut edits.binds, BindRequest { recursive: false, ..bind });
    }
    for mount in &from.mounts {
        let source = BindSource::Host(host(&mount.host_path)?);
        let bind = BindRequest::new(source, place(&mount.container_path)?, Origin::Device, reason());
        let bind =
            with_options(bind, mount).map_err(|option| unsupported(format!("a mount with {option:?}")))?;
        push_once(&mut edits.binds, bind);
    }
    for hook in &from.hooks {
        let list = stage(&mut edits.hooks, &hook.hook_name)
            .ok_or_else(|| unsupported(format!("the hook {} at {:?}", hook.path, hook.hook_name)))?;
        list.push(to_hook(hook));
    }
    Ok(())
}

fn push_once(binds: &mut Vec<BindRequest>, bind: BindRequest) {
    let same = |other: &BindRequest| other.source == bind.source && other.destination == bind.destination;
    if !binds.iter().any(same) {
        binds.push(bind);
    }
}

/// Applies the options of a mount; fails with one that is not known.
fn with_options(mut bind: BindRequest, mount: &FileMount) -> Result<BindRequest, String> {
    if !matches!(mount.kind.as_str(), "" | "bind" | "none") {
        return Err(mount.kind.clone());
    }
    for option in &mount.options {
        match option.as_str() {
            "ro" => bind.read_only = true,
            "rw" => bind.read_only = false,
            "bind" => bind.recursive = false,
            "rbind" => bind.recursive = true,
            "noexec" => bind.no_exec = true,
            "exec" => bind.no_exec = false,
            "private" | "rprivate" => bind.propagation = Propagation::Private,
            "slave" | "rslave" => bind.propagation = Propagation::Slave,
            // Always so.
            "nosuid" | "nodev" => {}
            _ => return Err(option.clone()),
        }
    }
    Ok(bind)
}

fn stage<'a>(hooks: &'a mut Hooks, name: &str) -> Option<&'a mut Vec<Hook>> {
    Some(match name {
        "prestart" => &mut hooks.prestart,
        "createRuntime" => &mut hooks.create_runtime,
        "createContainer" => &mut hooks.create_container,
        "startContainer" => &mut hooks.start_container,
        "poststart" => &mut hooks.poststart,
        "poststop" => &mut hooks.poststop,
        _ => return None,
    })
}

fn to_hook(hook: &NamedHook) -> Hook {
    let texts = |words: &[String]| words.iter().map(|word| Text::from(word.as_str())).collect();
    Hook {
        path: Text::from(hook.path.as_str()),
        args: texts(&hook.args),
        env: texts(&hook.env),
        timeout: hook.timeout,
    }
}
