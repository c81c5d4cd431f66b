//! The environment of the payload, by Apptainer's rules.
//!
//! What the image sets wins over the host's, and what the user asks for wins over both; `HOME`,
//! `PATH` and `LD_LIBRARY_PATH` never come from the host. An image's own scripts are evaluated here
//! where they only set variables; else the container's shell runs them, before the command.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use situla_oci::ExecConfig;
use situla_plan::Text;

use crate::env_script::{Variables, evaluate, expand};
use crate::error::EngineError;
use crate::image_view::{Found, ImageView};
use crate::request::{Personality, RunRequest};
use crate::slurm_client::TOOLS_PATH;

/// Apptainer's search path inside a container.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where an image keeps its environment scripts.
const SCRIPTS: &str = "/.singularity.d/env";
/// Where libraries of the host would be bound.
const LIBRARIES: &str = "/.singularity.d/libs";
/// The most that is read of one script, and how many of them.
const MAX_SCRIPT: usize = 1 << 20;
const MAX_SCRIPTS: usize = 100;
/// Scripts that every Apptainer image has and whose effect is built in here: placeholders, SCIF
/// applications (refused as an option), the library path and the user's changes to the path.
const BUILT_IN: [&str; 5] = ["01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh"];
/// What passes `--cleanenv`, besides the variables for proxies.
const ALWAYS_PASSED: [&str; 1] = ["TERM"];
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"];

/// The environment, and how to get there.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// `NAME=value` entries.
    pub(crate) entries: Vec<Text>,
    /// A shell script to run before the command, where the image's own scripts need a shell.
    pub(crate) shell: Option<String>,
}

/// What the environment is made for.
pub(crate) struct Circumstances<'a> {
    pub(crate) request: &'a RunRequest,
    pub(crate) host: &'a [(OsString, OsString)],
    pub(crate) image_path: &'a Path,
    pub(crate) home: Option<&'a str>,
    pub(crate) bind_destinations: &'a [String],
}

/// Builds the environment.
pub(crate) fn build(
    view: &ImageView,
    config: Option<&ExecConfig>,
    around: &Circumstances<'_>,
) -> Result<Environment, EngineError> {
    let request = around.request;
    let mut image = Variables::new();
    image.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
    image.insert("HOME".to_owned(), around.home.unwrap_or("/").to_owned());
    let mut needs_shell = false;
    match config {
        Some(config) => {
            let pairs = config.env.iter().filter_map(|entry| entry.split_once('='));
            image.extend(pairs.filter(|(name, _)| is_name(name)).map(|(k, v)| (k.to_owned(), v.to_owned())));
            if let Some(path) = image.get_mut("PATH") {
                complete_path(path);
            }
        }
        None => {
            needs_shell = !run_scripts(view, &mut image, around)?;
            if request.personality != Personality::Apptainer {
                of_enroot(view, &mut image, around)?;
            }
        }
    }
    image.insert("HOME".to_owned(), around.home.unwrap_or("/").to_owned());
    if request.personality == Personality::Task {
        for_pytorch(&mut image, around.host);
    }
    for name in wins_over_image(around) {
        image.remove(name);
    }
    image.extend(request.device_edits.env.iter().filter(|(name, _)| is_name(name)).cloned());
    let host = passed_from_host(around);
    let user = user_variables(request, around.host);
    let mut result = Environment::default();
    if needs_shell {
        let mut script = shell_script(&host, &user, request);
        if request.slurm {
            script = script
                .replace("exec \"$@\"\n", &format!("export PATH=\"{TOOLS_PATH}:$PATH\"\nexec \"$@\"\n"));
        }
        result.shell = Some(script);
        // The scripts must not see the host's variables, or they would keep their values.
        result.entries = entries(&image, &[], around);
        result.entries.extend(waiting_values(&host, &user));
        return Ok(result);
    }
    for (name, value) in &user {
        match request.personality {
            // By a file that says what a variable is, and not how it changes.
            Personality::Task => drop(image.insert(name.clone(), value.clone())),
            _ => apply(&mut image, name, value, request.no_eval),
        }
    }
    if request.personality != Personality::Task {
        let libraries = image.entry("LD_LIBRARY_PATH".to_owned()).or_default();
        let separator = if libraries.is_empty() { "" } else { ":" };
        libraries.push_str(separator);
        libraries.push_str(LIBRARIES);
    }
    if request.slurm {
        let path = image.entry("PATH".to_owned()).or_default();
        *path = format!("{TOOLS_PATH}:{path}");
        let configuration = request.slurm_client.configuration.display().to_string();
        image.insert("SLURM_CONF".to_owned(), configuration);
    }
    result.entries = entries(&image, &host, around);
    Ok(result)
}

/// The start script of an image that enroot has made, which goes to the working directory and runs the entry point.
pub(crate) const ENROOT_SCRIPT: &str = "/etc/rc";

/// Whether enroot has made the image: nothing else in it says so. An old init's script of that name takes no command.
pub(crate) fn is_of_enroot(view: &ImageView, shown: &str) -> Result<bool, EngineError> {
    let located = view.locate(ENROOT_SCRIPT).map_err(EngineError::look_into(shown))?;
    if located.found != Some(Found::File) {
        return Ok(false);
    }
    let script = view.read_file(ENROOT_SCRIPT, MAX_SCRIPT).map_err(EngineError::look_into(shown))?;
    Ok(script.is_some_and(|script| String::from_utf8_lossy(&script).contains("\"$@\"")))
}

/// Takes the variables of an image that enroot has made: a line for each, as it writes them. Its own do not go inside.
fn of_enroot(view: &ImageView, image: &mut Variables, around: &Circumstances<'_>) -> Result<(), EngineError> {
    let shown = around.image_path.display().to_string();
    if !is_of_enroot(view, &shown)? {
        return Ok(());
    }
    let found = view.read_file("/etc/environment", MAX_SCRIPT).map_err(EngineError::look_into(&shown))?;
    let text = found.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let is_taken = |name: &str| is_name(name) && !name.starts_with("ENROOT_");
    let pairs = text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| is_taken(name));
    for (name, value) in pairs {
        let within = |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
        image.insert(name.to_owned(), within('"').or_else(|| within('\'')).unwrap_or(value).to_owned());
    }
    if let Some(path) = image.get_mut("PATH") {
        complete_path(path);
    }
    Ok(())
}

/// Evaluates the scripts of the image; false where one of them needs a shell.
fn run_scripts(
    view: &ImageView,
    image: &mut Variables,
    around: &Circumstances<'_>,
) -> Result<bool, EngineError> {
    let shown = around.image_path.display().to_string();
    let names = view.list(SCRIPTS).map_err(EngineError::look_into(&shown))?;
    let scripts = names.iter().filter(|name| name.ends_with(".sh") && !BUILT_IN.contains(&name.as_str()));
    for name in scripts.take(MAX_SCRIPTS) {
        let path = format!("{SCRIPTS}/{name}");
        let found = view.read_file(&path, MAX_SCRIPT).map_err(EngineError::look_into(&shown))?;
        let Some(script) = found.and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
        if evaluate(without_helpers(&script).as_str(), image).is_err() {
            return Ok(false);
        }
        if let Some(path) = image.get_mut("PATH") {
            complete_path(path);
        }
    }
    Ok(true)
}

/// Takes out the call of `fixpath`, a function of Apptainer's interpreter, whose effect is
/// [`complete_path`].
fn without_helpers(script: &str) -> String {
    script.lines().filter(|line| line.trim() != "fixpath").collect::<Vec<_>>().join("\n")
}

/// Appends the directories of the default path that are missing.
fn complete_path(path: &mut String) {
    let present: BTreeSet<String> = path.split(':').map(str::to_owned).collect();
    for directory in DEFAULT_PATH.split(':').filter(|directory| !present.contains(*directory)) {
        if !path.is_empty() {
            path.push(':');
        }
        path.push_str(directory);
    }
}

/// The variables of the host that were asked for by name, as far as it has them.
fn wins_over_image<'a>(around: &'a Circumstances<'_>) -> impl Iterator<Item = &'a str> {
    let wanted = around.request.host_env.iter().map(String::as_str);
    wanted.filter(|name| around.host.iter().any(|(other, _)| other.to_str() == Some(*name)))
}

/// What PyTorch looks for when its ranks meet: images of it say which version they have. As pyxis and the hook
/// of enroot for it do it.
fn for_pytorch(image: &mut Variables, host: &[(OsString, OsString)]) {
    /// A port that no well-known service has, and most likely no other job of the node.
    const FIRST_PORT: u32 = 61_000;
    const N_PORTS: u32 = 4_536;
    if !image.contains_key("PYTORCH_VERSION") {
        return;
    }
    let value = |name: &str| {
        let found = host.iter().find(|(other, _)| other.to_str() == Some(name));
        found.and_then(|(_, value)| value.to_str())
    };
    let first_node =
        value("SLURM_STEP_NODELIST").and_then(|list| situla_slurm::expand(list).ok()?.into_iter().next());
    let job = value("SLURM_JOB_ID").and_then(|job| job.parse::<u32>().ok());
    let found = [
        ("RANK", value("SLURM_PROCID").map(str::to_owned)),
        ("LOCAL_RANK", value("SLURM_LOCALID").map(str::to_owned)),
        ("WORLD_SIZE", value("SLURM_STEP_NUM_TASKS").map(str::to_owned)),
        ("MASTER_ADDR", first_node),
        ("MASTER_PORT", job.map(|job| (FIRST_PORT + job % N_PORTS).to_string())),
    ];
    for (name, found) in found {
        if let Some(found) = found.filter(|_| value(name).is_none()) {
            image.insert(name.to_owned(), found);
        }
    }
}

/// The host's variables that go inside.
fn passed_from_host(around: &Circumstances<'_>) -> Vec<(String, Vec<u8>)> {
    let clean = around.request.clean_env;
    let is_task = around.request.personality == Personality::Task;
    let passes = |name: &str| {
        let own = ["APPTAINER", "SINGULARITY", "SITULA_TASK_", "SLURM_SITULA_"];
        if !is_name(name) || own.iter().any(|prefix| name.starts_with(prefix)) {
            return false;
        }
        if around.request.host_env.iter().any(|wanted| wanted == name) {
            return true;
        }
        if matches!(name, "HOME" | "PATH" | "LD_LIBRARY_PATH") {
            return false;
        }
        // An image need not have the host's languages, as pyxis has it.
        if is_task && matches!(name, "LANG" | "LANGUAGE" | "LC_ALL") {
            return false;
        }
        !clean || ALWAYS_PASSED.contains(&name) || PROXIES.contains(&name.to_ascii_lowercase().as_str())
    };
    let named = around.host.iter().filter_map(|(name, value)| Some((name.to_str()?, value)));
    let passed = named
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    // As Apptainer does it: an emptied environment still says which language, unless the image does.
    passed.chain(clean.then(|| ("LANG".to_owned(), b"C".to_vec()))).collect()
}

/// What the user sets: `APPTAINERENV_X` of the host, then `--env`.
fn user_variables(request: &RunRequest, host: &[(OsString, OsString)]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    if request.personality != Personality::Task {
        for prefix in ["SINGULARITYENV_", "APPTAINERENV_"] {
            let pairs = host.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
            found.extend(
                pairs
                    .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value)))
                    .filter(|(name, _)| is_name(name))
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
    }
    found.extend(request.env.iter().cloned());
    found
}

/// Sets one variable of the user, or changes the path.
fn apply(image: &mut Variables, name: &str, value: &str, literally: bool) {
    let expanded = if literally { None } else { expand(value, image) };
    let value = expanded.unwrap_or_else(|| value.to_owned());
    let path = image.get("PATH").cloned().unwrap_or_default();
    match name {
        "PREPEND_PATH" => image.insert("PATH".to_owned(), format!("{value}:{path}")),
        "APPEND_PATH" => image.insert("PATH".to_owned(), format!("{path}:{value}")),
        // Apptainer refuses to override HOME this way.
        "HOME" => None,
        _ => image.insert(name.to_owned(), value),
    };
}

/// Puts image, host and container variables together.
fn entries(image: &Variables, host: &[(String, Vec<u8>)], around: &Circumstances<'_>) -> Vec<Text> {
    let mut merged: Vec<(String, Vec<u8>)> = Vec::with_capacity(host.len() + image.len());
    merged.extend(host.iter().filter(|(name, _)| !image.contains_key(name)).cloned());
    // A variable that the image defines as empty is taken out: Apptainer's restore_env.
    let set = image.iter().filter(|(_, value)| !value.is_empty());
    merged.extend(set.map(|(name, value)| (name.clone(), value.clone().into_bytes())));
    if around.request.personality != Personality::Task {
        let own = container_variables(around);
        merged.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
        merged.extend(own.into_iter().map(|(name, value)| (name, value.into_bytes())));
    }
    merged
        .into_iter()
        .map(|(name, value)| {
            let mut entry = OsString::from(name).into_vec();
            entry.push(b'=');
            entry.extend(value);
            Text::from(entry)
        })
        .collect()
}

/// The variables by which programs see that they are in a container.
fn container_variables(around: &Circumstances<'_>) -> Vec<(String, String)> {
    let path = around.image_path.display().to_string();
    let name =
        around.image_path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let binds = around.bind_destinations.join(",");
    let mut found = vec![("PS1".to_owned(), "Apptainer> ".to_owned())];
    for prefix in ["APPTAINER", "SINGULARITY"] {
        let mut set =
            |suffix: &str, value: &str| found.push((format!("{prefix}_{suffix}"), value.to_owned()));
        set("CONTAINER", &path);
        set("NAME", &name);
        set("BIND", &binds);
        set("ENVIRONMENT", "/.singularity.d/env/91-environment.sh");
        if let Some(instance) = &around.request.instance {
            set("INSTANCE", &instance.name);
        }
        if prefix == "APPTAINER" {
            set("COMMAND", around.request.action.name());
            // Always empty: applications inside an image (SCIF) are refused as an option.
            set("APPNAME", "");
        }
    }
    found
}

/// Where the values of the host's and the user's variables wait for the script: an argument would
/// show them to every user of the node, and may not be longer than 128 KiB.
const HOST_PREFIX: &str = "SITULA_HOST_";
const USER_PREFIX: &str = "SITULA_USER_";

/// A script for the container's `/bin/sh`: the image's scripts, then the host's variables that they
/// have not set, then the user's. The values are taken from [`waiting_values`].
fn shell_script(host: &[(String, Vec<u8>)], user: &[(String, String)], request: &RunRequest) -> String {
    let mut script = String::from(
        "fixpath() { :; }\nfor situla_script in /.singularity.d/env/*.sh; do\n\
         if [ -f \"$situla_script\" ]; then . \"$situla_script\"; fi\ndone\n\
         unset -f fixpath; unset situla_script\n",
    );
    let is_task = request.personality == Personality::Task;
    for (name, _) in host {
        let waiting = format!("{HOST_PREFIX}{name}");
        let condition = match request.host_env.contains(name) {
            true => String::new(),
            false => format!("[ -n \"${{{name}+x}}\" ] || "),
        };
        script.push_str(&format!("{condition}export {name}=\"${waiting}\"; unset {waiting}\n"));
    }
    for (name, value) in user.iter().filter(|(name, _)| is_task || name != "HOME") {
        let waiting = format!("{USER_PREFIX}{name}");
        // Between double quotes in a shell, as Apptainer has it, where the value means to be.
        let evaluated = !request.no_eval && value.contains(['$', '`']) && !value.contains(['"', '\\']);
        if evaluated {
            script.push_str(&format!("eval \"{waiting}=\\\"${waiting}\\\"\"\n"));
        }
        script.push_str(&match name.as_str() {
            _ if is_task && value.is_empty() => format!("unset {name}\n"),
            _ if is_task => format!("export {name}=\"${waiting}\"\n"),
            "PREPEND_PATH" => format!("export PATH=\"${waiting}:$PATH\"\n"),
            "APPEND_PATH" => format!("export PATH=\"$PATH:${waiting}\"\n"),
            _ => format!("export {name}=\"${waiting}\"\n"),
        });
        script.push_str(&format!("unset {waiting}\n"));
    }
    script.push_str("exec \"$@\"\n");
    script
}

/// The entries that [`shell_script`] reads.
fn waiting_values<'a>(
    host: &'a [(String, Vec<u8>)],
    user: &'a [(String, String)],
) -> impl Iterator<Item = Text> + 'a {
    let entry = |prefix: &str, name: &str, value: &[u8]| {
        Text::from([prefix.as_bytes(), name.as_bytes(), b"=", value].concat())
    };
    let host = host.iter().map(move |(name, value)| entry(HOST_PREFIX, name, value));
    // A variable that is given twice has its last value.
    let last = user
        .iter()
        .enumerate()
        .filter(|(index, (name, _))| !user[index + 1..].iter().any(|(later, _)| later == name));
    host.chain(last.map(move |(_, (name, value))| entry(USER_PREFIX, name, value.as_bytes())))
}

/// Tells whether a shell could have a variable of this name.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests;
