//! The trampoline: what a task of Slurm becomes when the plugin sends it into a container.
//!
//! The plugin has put this program in place of the task's own, and left the options of the
//! container and the name of the task's program in variables. TaskProlog has run, on the host.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use situla_bindings::{BindRequest, BindSource, Origin, parse_pyxis_mounts};
use situla_engine::{
    Action, ContainerRequest, EngineError, EntryPoint, Isolation, Personality, RunRequest, TASK_VARIABLES,
    check_pattern, parse_container_name, prepare,
};

use crate::command_error::CommandError;
use crate::output::{data, note};
use crate::resources;
use crate::{Context, end_as, environment_file};

/// The program that the task is to run: set by the plugin, together with those below.
pub(crate) const PROGRAM: &str = TASK_VARIABLES[0];
const IMAGE: &str = TASK_VARIABLES[1];
const MOUNTS: &str = TASK_VARIABLES[2];
const WORKDIR: &str = TASK_VARIABLES[3];
const ENV: &str = TASK_VARIABLES[4];
const UNSHARE: &str = TASK_VARIABLES[5];
const MOUNT_HOME: &str = TASK_VARIABLES[6];
const REMAP_ROOT: &str = TASK_VARIABLES[7];
const ENTRYPOINT: &str = TASK_VARIABLES[8];
// The ninth says whether the output of the entry point is shown: it is the task's own, so it always is.
const WRITABLE: &str = TASK_VARIABLES[10];
const ENVIRONMENT: &str = TASK_VARIABLES[11];
const NAME: &str = TASK_VARIABLES[12];
const SAVE: &str = TASK_VARIABLES[13];
const SCOPE: &str = TASK_VARIABLES[14];
const PROTOCOL: &str = TASK_VARIABLES[15];

/// Where the site's settings are, if its line in `plugstack.conf` says so. Unlike the others it stays for our own
/// processes below the task, which go by the same settings; payloads do not see it.
pub(crate) const CONFIG: &str = "SITULA_TASK_CONFIG";

/// The numbers of protocols that this program speaks. A plugin sends its own; those before there were numbers sent
/// none, which is 0. The newest is what the plugin of the same release has: `situla_protocol` in its callbacks.
///
/// A number grows when a variable changes its meaning, or one comes that must not be passed over. The old meaning stays
/// understood: a program is replaced under steps whose plugin is loaded already.
pub(crate) const PROTOCOLS: std::ops::RangeInclusive<u32> = 0..=2;

/// Refuses what a plugin of another release could mean.
fn check_protocol() -> Result<(), CommandError> {
    let told = std::env::var_os(PROTOCOL).unwrap_or_default();
    let number = if told.is_empty() { Some(0) } else { told.to_str().and_then(|told| told.parse().ok()) };
    if number.is_some_and(|number: u32| PROTOCOLS.contains(&number)) {
        return Ok(());
    }
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let (first, last) = (PROTOCOLS.start(), PROTOCOLS.end());
    Err(CommandError::refused(
        "setup-failed",
        format!(
            "the plugin speaks protocol {}, and {} (version {}) knows {first} to {last}",
            told.to_string_lossy(),
            program.display(),
            env!("CARGO_PKG_VERSION")
        ),
        "the site must install plugin and program of one release (`situla site install`)",
    ))
}

/// Runs the task. Without a name the program is the first of the words: from protocol 2 on, in steps of `--multi-prog`.
pub(crate) fn main(program: OsString, arguments: Vec<OsString>) -> ExitCode {
    match run(program, arguments) {
        Ok(code) => code,
        Err(error) => error.report(Some(&step_name())),
    }
}

fn run(program: OsString, arguments: Vec<OsString>) -> Result<ExitCode, CommandError> {
    let named = Some(program).filter(|program| !program.is_empty());
    let command: Vec<OsString> = named.into_iter().chain(arguments).collect();
    if command.is_empty() {
        return Err(CommandError::usage("the table of --multi-prog names no program for this task", ""));
    }
    let context = check_protocol().and_then(|()| Context::gather()).inspect_err(|error| {
        let image = std::env::var(IMAGE).unwrap_or_default();
        error.record_before_host(&image, &command, Personality::Task);
    })?;
    let mut request = match request(&context, command.clone()) {
        Ok(request) => request,
        Err(error) => {
            let image = context.host.variable(IMAGE).unwrap_or_default();
            error.record(&context.host, image, &command, Personality::Task);
            return Err(error);
        }
    };
    request.progress = context.is_first_task();
    let saves = request.container.as_ref().is_some_and(|container| container.save.is_some());
    let n_tasks = context.host.allocation.as_ref().and_then(|allocation| allocation.tasks_on_node);
    let failed = |error| {
        // Nobody is the last to save after, where one of several tasks does not come to its end. An option is refused to
        // all of them.
        let is_unsaid = saves && n_tasks != Some(1);
        let is_unsaid = is_unsaid
            && !matches!(
                error,
                EngineError::Save { .. } | EngineError::Interrupted { .. } | EngineError::BadOption { .. }
            );
        let error = CommandError::of_run(error, &context.host);
        if is_unsaid { error.therefore("the container of this node is not saved") } else { error }
    };
    let prepared = prepare(&request, &context.host, &context.site).map_err(failed)?;
    // One voice on each node.
    let is_voice = context.host.allocation.as_ref().and_then(|allocation| allocation.task);
    let is_voice = is_voice.is_none_or(|task| task.local_rank.0 == 0);
    for warning in prepared.warnings().iter().filter(|_| is_voice) {
        note(&format!("situla: warning: {warning} ({})", step_name()));
    }
    prepared.run(None).map(end_as).map_err(failed)
}

/// Says on standard output what is wrong with the plugin's variables, and with image files that are seen from here, for
/// who waits in srun, and not first in a queue. Whether images and mounts are there at all is for the nodes to say.
pub(crate) fn check() -> Result<ExitCode, CommandError> {
    let checked = match check_protocol() {
        Ok(()) => checked(&Context::gather()?),
        Err(error) => Err(error),
    };
    match checked {
        Ok(Some(file)) => data(&format!("{}\n", file.display()))?,
        Ok(None) => {}
        Err(error) => {
            data(&format!("{}\n", error.one_line()))?;
            return Ok(ExitCode::from(REFUSED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The file of the environment, where there is one and nothing is wrong.
fn checked(context: &Context) -> Result<Option<PathBuf>, CommandError> {
    let name = context.host.variable(ENVIRONMENT);
    let file = match name.map(|name| environment_file::check(name, context)).transpose()? {
        // What the variables hold is for the nodes to say.
        Some((file, None)) => return Ok(Some(file)),
        Some((file, Some(_))) => Some(file),
        None => None,
    };
    let request = request(context, Vec::new())?;
    situla_engine::check(&request, &context.host, &context.site).map_err(CommandError::engine)?;
    Ok(file)
}

/// The status that says that there is a refusal on standard output.
const REFUSED: u8 = 1;

/// What the plugin's variables ask for.
fn request(context: &Context, command: Vec<OsString>) -> Result<RunRequest, CommandError> {
    let variable = |name: &str| context.host.variable(name).map(str::to_owned);
    let script = command.first().and_then(|program| batch_script(program, context));
    let mut request = RunRequest::new(Personality::Task, "", Action::Exec(command));
    let mut warnings = Vec::new();
    if let Some(name) = variable(ENVIRONMENT) {
        let edf = environment_file::load(&name, context)?;
        warnings = environment_file::apply(&edf, &name, &mut request, &context.host.cwd)?;
        if edf.image.is_none() && variable(IMAGE).is_none() {
            let message = format!("the environment {name} names no image");
            return Err(CommandError::usage(
                message,
                "write `image = ...` into it, or add --container-image",
            ));
        }
    }
    // What is said beside an environment counts instead of what it says.
    if let Some(image) = variable(IMAGE) {
        request.image = image;
    }
    if request.image.is_empty() && variable(NAME).is_none() {
        return Err(CommandError::usage("the plugin has named no image", ""));
    }
    if let Some(mounts) = variable(MOUNTS) {
        let mounts = parse_pyxis_mounts(&mounts, &context.host.cwd, "--container-mounts")
            .map_err(|error| CommandError::other(&error, "bad-option", None))?;
        request.binds.extend(mounts.binds);
        request.defaults.unmounted = mounts.unmounted;
    }
    request.workdir = variable(WORKDIR).or(request.workdir);
    let switch = |name: &str, otherwise: bool| variable(name).map_or(otherwise, |value| value == "1");
    request.defaults.no_home = !switch(MOUNT_HOME, false);
    request.root = switch(REMAP_ROOT, false);
    request.entrypoint = match variable(ENTRYPOINT).as_deref() {
        None => request.entrypoint,
        Some("1") => EntryPoint::Yes,
        Some("default") => EntryPoint::IfAny,
        Some(_) => EntryPoint::No,
    };
    let says_nothing = variable(WRITABLE).is_none();
    request.writable_tmpfs = switch(WRITABLE, request.writable_tmpfs);
    request.container = container(&variable, (request.writable_tmpfs, says_nothing))?;
    // What is written to it is no matter of memory.
    request.writable_tmpfs &= request.container.is_none();
    let is_writable =
        request.writable_tmpfs || request.container.as_ref().is_some_and(|container| container.writable);
    request.memory = request.writable_tmpfs.then(resources::memory_of_groups).flatten();
    if let Some(names) = variable(ENV) {
        request.host_env = variable_names(&names)?;
    }
    if let Some(kinds) = variable(UNSHARE) {
        request.isolation = isolation(&kinds)?;
    }
    // By the names of these options, and by those that the command lines have for the same.
    // An option counts instead of a file.
    let has = |name: &str| context.host.env.iter().any(|(other, _)| other == name);
    request.env.retain(|(name, _)| !(request.host_env.contains(name) && has(name)));
    let named = [
        ("environment", variable(ENVIRONMENT).is_some()),
        ("device", !request.devices.is_empty()),
        ("slurm", request.slurm),
        ("mount-home", !request.defaults.no_home),
        ("remap-root", request.root),
        ("fakeroot", request.root),
        ("entrypoint", request.entrypoint == EntryPoint::Yes),
        ("name", variable(NAME).is_some()),
        ("save", variable(SAVE).is_some()),
        ("writable", is_writable),
        ("writable-tmpfs", is_writable),
        ("env", !(request.host_env.is_empty() && request.env.is_empty())),
        ("no-mount", !request.defaults.unmounted.is_empty()),
        ("net", request.isolation.network),
        ("network", request.isolation.network),
        ("ipc", request.isolation.ipc),
        ("uts", request.isolation.uts),
    ];
    request.options = named.iter().filter(|(_, given)| *given).map(|(name, _)| (*name).to_owned()).collect();
    request.binds.extend(script);
    if context.is_first_task() {
        for warning in warnings {
            note(&format!("situla: warning: {warning}"));
        }
    }
    Ok(request)
}

/// The container whose files stay, where one is asked for. Who saves it wants to have changed it, if he does not say
/// otherwise.
fn container(
    variable: &dyn Fn(&str) -> Option<String>,
    (writable, says_nothing): (bool, bool),
) -> Result<Option<ContainerRequest>, CommandError> {
    let (name, save) = (variable(NAME), variable(SAVE));
    if name.is_none() && save.is_none() {
        return Ok(None);
    }
    save.as_deref().map_or(Ok(()), check_pattern).map_err(CommandError::engine)?;
    let named = name.as_deref().map(parse_container_name).transpose().map_err(CommandError::engine)?;
    let (name, mode) = named.map_or((None, Default::default()), |(name, mode)| (Some(name), mode));
    let global = variable(SCOPE).is_some_and(|scope| scope == "global");
    let writable = writable || (save.is_some() && says_nothing);
    Ok(Some(ContainerRequest { name, mode, global, writable, save }))
}

/// The names of `--container-env`.
fn variable_names(list: &str) -> Result<Vec<String>, CommandError> {
    list.split(',')
        .map(|name| {
            let is_name = !name.is_empty() && !name.contains('=');
            is_name.then(|| name.to_owned()).ok_or_else(|| {
                let message = format!("--container-env={list} has {name:?} in it, which names no variable");
                CommandError::usage(
                    message,
                    "give names alone, separated by commas: --container-env=NAME,NAME",
                )
            })
        })
        .collect()
}

/// The namespaces of `--container-unshare`.
fn isolation(list: &str) -> Result<Isolation, CommandError> {
    let mut isolation = Isolation::default();
    for kind in list.split(',') {
        match kind {
            "net" => isolation.network = true,
            "ipc" => isolation.ipc = true,
            "uts" => isolation.uts = true,
            _ => {
                let message = format!("--container-unshare={list} has {kind:?} in it, which is no namespace");
                return Err(CommandError::usage(message, "choose from net, ipc and uts"));
            }
        }
    }
    Ok(isolation)
}

/// A batch script lies in the spool directory of slurmd, which the image does not have.
fn batch_script(program: &OsString, context: &Context) -> Option<BindRequest> {
    let step = context.host.allocation.as_ref()?.step?;
    let path = PathBuf::from(program);
    (step == situla_engine::StepId::Batch && path.is_absolute() && path.is_file()).then(|| BindRequest {
        source: BindSource::Host(path.clone()),
        destination: path,
        read_only: true,
        recursive: false,
        no_exec: false,
        propagation: situla_bindings::Propagation::default(),
        optional: false,
        no_follow: false,
        origin: Origin::Default,
        reason: "the batch script".to_owned(),
    })
}

/// Job, step and node, for messages.
pub(crate) fn step_name() -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "?".to_owned());
    let step = match variable("SLURM_STEP_ID").as_str() {
        "4294967291" => "batch".to_owned(),
        "4294967290" => "interactive".to_owned(),
        other => other.to_owned(),
    };
    format!("job {}, step {step}, node {}", variable("SLURM_JOB_ID"), variable("SLURMD_NODENAME"))
}

/// [`step_name`] where this process is a task of a step.
pub(crate) fn in_step() -> Option<String> {
    std::env::var_os("SLURM_STEP_ID").map(|_| step_name())
}
